"""Runs by mpirun: processes that share one output, and are stopped, killed, hung and refused together."""

import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mpirun import FRAMES, OPTIONS, Launch, committed, contents, needs_mpi, run, undisturbed, wait_for

from gsio.run import checkpoints

pytestmark = needs_mpi


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The contents of an undisturbed run on one process."""
    return undisturbed(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "run.zarr"


@pytest.fixture
def running(output: Path) -> Iterator[Callable[[int, int], Launch]]:
    """A function that starts ranks, and returns when they have committed so many frames."""
    started: list[Launch] = []

    def begin(ranks: int, frames: int) -> Launch:
        started.append(Launch(ranks, "run", "--mpi", *OPTIONS, "-o", output, "--resume"))
        wait_for(output, frames, started[-1])
        return started[-1]

    yield begin
    for launch in started:
        launch.__exit__()


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_write_what_one_process_writes(output: Path, whole: dict[str, bytes], ranks: int) -> None:
    ended = run(ranks, "--mpi", *OPTIONS, "-o", output)
    assert (ended.code, ended.errors) == (0, []), ended.text
    assert f"on each of {ranks} ranks" in ended.text
    assert ended.text.count("checkpoint written frame=150") == 1
    assert contents(output) == whole


def test_a_signal_to_one_rank_stops_all_and_another_number_goes_on(
    output: Path, whole: dict[str, bytes], running: Callable[[int, int], Launch]
) -> None:
    launch = running(3, 8)
    launch.signal(1, signal.SIGTERM)
    ended = launch.wait()
    assert ended.code == 75, ended.text
    (error,) = ended.errors
    frames = int(re.findall(r"stopped by SIGTERM after (\d+) of 150 frames, which are safe", error)[0])
    assert checkpoints.load(output)[0].frames == frames == committed(output) < FRAMES
    launch = running(2, frames + 8)
    launch.signal(0, signal.SIGINT)
    ended = launch.wait()
    assert (ended.code, len(ended.errors)) == (75, 1), ended.text
    assert run(3, "--mpi", *OPTIONS, "-o", output, "--resume=must").code == 0
    assert contents(output) == whole


@pytest.mark.parametrize("rank", [0, 1])
def test_a_full_disk_of_one_rank_ends_all(output: Path, whole: dict[str, bytes], rank: int) -> None:
    ended = run(2, "--mpi", *OPTIONS, "-o", output, RANK_WITH_FULL_DISK=str(rank))
    assert ended.code == 74, ended.text
    (error,) = ended.errors
    frames = committed(output)
    assert f"No space left on device{' on rank 1' if rank else ''}; {frames} frames are committed" in error
    assert run(2, "--mpi", *OPTIONS, "-o", output, "--resume=must").code == 0
    assert contents(output) == whole


def test_a_killed_rank_ends_all_and_no_committed_frame_is_lost(
    output: Path, whole: dict[str, bytes], running: Callable[[int, int], Launch]
) -> None:
    launch = running(3, 12)
    launch.signal(2, signal.SIGKILL)
    ended = launch.wait()
    assert ended.code != 0
    assert ended.seconds < 30
    assert launch.ranks() == {}
    assert committed(output) >= 12
    assert run(2, "--mpi", *OPTIONS, "-o", output, "--resume=must").code == 0
    assert contents(output) == whole


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "life"), [(0, "0.25"), (1, "1")])  # the latter is that of the product
def test_a_rank_that_hangs_ends_all(
    output: Path, running: Callable[[int, int], Launch], rank: int, life: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK_LIFE", life)
    launch = running(2, 12)
    launch.signal(rank, signal.SIGSTOP)
    ended = launch.wait()
    assert ended.code == 70, ended.text
    assert ended.seconds < 30
    assert [f"rank {rank} has given no sign of life" in error for error in ended.errors] == [True]
    assert run(3 - 2 * rank, "--mpi", *OPTIONS, "-o", output, "--resume=must").code in (0, 2)


def test_a_refusal_is_one_line_of_all_ranks(output: Path, tmp_path: Path) -> None:
    def refused(*arguments: object, ranks: int = 2) -> str:
        ended = run(ranks, *arguments)
        assert (ended.code, len(ended.errors)) == (2, 1), ended.text
        assert list(tmp_path.iterdir()) == []
        return ended.errors[0]

    assert "gsio export" in refused("--mpi", *OPTIONS, "-o", tmp_path / "run.h5")
    assert "--mpi: expected it" in refused(*OPTIONS, "-o", output)
    assert "not a valid integer" in refused("--mpi", "-n", "many", "-o", output)
    assert "cannot read" in refused("--mpi", tmp_path / "none.toml", "-o", output)
    assert "at most 2 ranks or devices, got 3" in refused("--mpi", *OPTIONS, "-r", "2", "-o", output, ranks=3)
