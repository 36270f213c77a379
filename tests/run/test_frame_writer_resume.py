"""FrameWriter: states of a loop, and a loop that goes on where it stopped."""

import errno
import os
import pkgutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from patience import DEADLINE

import gsio
from gsio.errors import DataError, StorageError, UsageError
from gsio.reader.verify import problems
from gsio.run import checkpoints
from gsio.run.repair import repair
from gsio.testing import small_blocks
from gsio.writer.journal import journal_of

SHAPE = 12, 17
FRAMES = 40
FORMATS = pytest.mark.parametrize("name", ["run.h5", "run.zarr"])
Whole = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def blocks() -> Iterator[None]:
    """Blocks of six frames with chunks of three, so that a short loop has many."""
    with small_blocks(block_bytes=6 * 4 * 12 * 17, chunk_bytes=3 * 4 * 12 * 17):
        yield


class LoopError(Exception):
    """What ends a loop."""


def step(state: np.ndarray) -> np.ndarray:
    return (np.roll(state, 1, 0) * np.float32(0.75) + np.float32(0.125)).astype(np.float32)


def first() -> np.ndarray:
    return np.random.default_rng(5).random(SHAPE, np.float32)


def loop(path: Path, frames: int = FRAMES, stop: int = FRAMES, flushes: int = 7, **how: Any) -> int:
    """Save frames, and states after 9 and 22; raise LoopError after `stop` frames. Return the first frame computed."""
    with gsio.FrameWriter(path, SHAPE, threads=2, **how) as out:
        began, state = len(out), first() if out.checkpoint is None else out.checkpoint["state"]
        for n in range(began, frames):
            if n == stop:
                raise LoopError
            state = step(state)
            out.append(state, time=0.25 * n, step=8 * n)
            if n % flushes == flushes - 1:
                out.flush()
            if n + 1 in (9, 22):
                out.save({"state": state, "n": n})
    assert len(out) == out.frames_committed == frames
    return began


def stopped(path: Path, after: int, **how: Any) -> None:
    with pytest.raises(LoopError):
        loop(path, stop=after, **how)
    with gsio.open_stack(path) as stack:
        assert (stack.frames, stack.attributes["status"]) == (after, "stopped")


def contents(path: Path) -> dict[str, Any]:
    """Return the stored frames, series and state, after a look for what is wrong."""
    with gsio.open_stack(path) as stack:
        assert list(problems(stack)) == []
        assert stack.attributes["status"] == "complete"
        assert not journal_of(path).exists()
        found = {name: field[:].tobytes() for name, field in stack.fields.items()}
        found |= {name: stack.series(name).tobytes() for name in stack.recorded}
        states = checkpoints.load_states(path, stack.attributes["output_id"])
    return found | {"states": [(state.frames, state.structure, state.leaves[0].tobytes()) for state in states[:1]]}


def bytes_of(path: Path) -> dict[str, tuple[int, bytes]]:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return {str(file): (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


@pytest.fixture
def whole(tmp_path: Path) -> Whole:
    """Return a function that gives the contents of an output whose loop nobody disturbed."""

    def made(name: str, **how: Any) -> dict[str, Any]:
        (tmp_path / "whole").mkdir()
        loop(tmp_path / "whole" / name, **how)
        return contents(tmp_path / "whole" / name)

    return made


@pytest.mark.parametrize(
    ("name", "after", "how"),
    [
        ("run.h5", 8, {"compression": "deflate"}),
        ("run.h5", 31, {"compression": "lz4"}),
        ("run.h5", 23, {"compression": "none"}),
        ("run.zarr", 10, {"compression": "lz4", "pyramid": 1}),
        ("run.zarr", 23, {"compression": "zstd", "shard_frames": 6}),
        ("run.zarr", 1, {"compression": "none"}),
    ],
)
def test_a_stopped_loop_goes_on_from_its_state(
    name: str, after: int, how: dict[str, Any], tmp_path: Path, whole: Whole
) -> None:
    stopped(tmp_path / name, after, **how)
    assert loop(tmp_path / name, resume="auto", **how) == max(frames for frames in (0, 9, 22) if frames <= after)
    assert contents(tmp_path / name) == whole(name, **how)


@FORMATS
def test_a_loop_that_is_stopped_again_and_again_saves_the_same(name: str, tmp_path: Path, whole: Whole) -> None:
    for after in (11, 10, 40):  # the second one stops while it computes again
        with suppress(LoopError):
            loop(tmp_path / name, stop=after, resume="auto", flushes=4)
    assert contents(tmp_path / name) == whole(name)


@FORMATS
def test_a_complete_output_stays_as_it_is_if_its_loop_has_nothing_to_add_and_else_is_extended(
    name: str, tmp_path: Path, whole: Whole
) -> None:
    path = tmp_path / name
    loop(path, frames=20)
    stopped(path, 22, resume="auto")
    assert loop(path, frames=22, resume="auto") == 22  # the loop has only to be closed
    before = bytes_of(path)
    assert loop(path, frames=22, resume="auto") == 22
    assert bytes_of(path) == before
    assert not journal_of(path).exists()
    assert loop(path, resume="must") == 22
    assert contents(path) == whole(name)


@FORMATS
def test_a_frame_that_differs_when_computed_again_is_named_and_stays(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    stopped(path, 20)
    with gsio.open_stack(path) as stack:
        before = stack.fields["v"][:]
    with gsio.FrameWriter(path, SHAPE, resume="auto") as out:
        assert (len(out), out.frames_committed, out.checkpoint["n"]) == (9, 20, 8)
        state = out.checkpoint["state"]
        while len(out) < 14:
            state = step(state)
            out.append(state)
        out.append(state + 1)
        with pytest.raises(DataError, match=r"^frame 14, .* differs .*resume='must' and discard_after=14$"):
            out.flush()
        with pytest.raises(DataError, match="frame 14"):
            out.append(state)
    with gsio.open_stack(path) as stack:
        assert list(problems(stack)) == []
        np.testing.assert_array_equal(stack.fields["v"][:], before)
        assert stack.attributes["status"] == "failed"
    assert out.frames_committed == 20


@pytest.mark.parametrize(("name", "keep"), [("run.h5", 0), ("run.h5", 20), ("run.zarr", 14)])
def test_frames_behind_discard_after_are_computed_anew(name: str, keep: int, tmp_path: Path, whole: Whole) -> None:
    path = tmp_path / name
    stopped(path, 25)
    with gsio.FrameWriter(path, SHAPE, resume="must", discard_after=keep) as out:
        assert (len(out), out.frames_committed) == (9 if keep >= 9 else 0, keep)
        state = first() if out.checkpoint is None else out.checkpoint["state"]
        for n in range(len(out), keep + 4):
            state = step(state) if n < keep else np.full(SHAPE, n, np.float32)
            out.append(state, time=0.25 * n, step=8 * n)
    with gsio.open_stack(path) as stack:
        assert list(problems(stack)) == []
        assert (stack.fields["v"][keep:] == np.arange(keep, keep + 4, dtype=np.float32)[:, None, None]).all()
    assert loop(path, resume="must", discard_after=keep) == (9 if keep >= 9 else 0)
    assert contents(path) == whole(name)


def test_frames_without_values_in_the_series_go_with_the_wreck(tmp_path: Path, whole: Whole) -> None:
    path = tmp_path / "run.h5"
    loop(path, frames=31)
    with h5py.File(path, "r+") as file:  # as a kill in the middle of a cut leaves the file
        for name in ("time", "integrity/crc32c", "stats/v_max"):
            file[name].resize((13,))
    assert f"rebuilt with 13 of 31 frames; the output as it was is '{tmp_path}/run.damaged-1.h5'" in repair(path)
    assert loop(path, resume="must") == 9
    assert contents(path) == whole("run.h5")


def test_arguments_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    with pytest.raises(UsageError, match="does not exist"):
        gsio.FrameWriter(path, SHAPE, resume="must")
    assert list(tmp_path.iterdir()) == []
    stopped(path, 4)
    before = bytes_of(path)
    refused: list[dict[str, Any]] = [
        {"resume": "auto", "overwrite": True},
        {"resume": "auto", "discard_after": 3},
        {"resume": "must", "discard_after": 5},
        {"discard_after": 3},
        {},
    ]
    for how in refused:
        with pytest.raises(UsageError):
            gsio.FrameWriter(path, SHAPE, **how)
        assert bytes_of(path) == before


COORDS = {"y": np.linspace(0, 1, 12), "x": np.linspace(0, 2, 17)}
GIVEN: dict[str, Any] = {
    "shape": SHAPE, "fields": {"u": {"units": "K"}, "v": {}}, "coords": COORDS, "dtype": "float32",
    "compression": "none",
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"fields": {"v": {}, "u": {"units": "K"}}}, "order of its fields"),
        ({"fields": {"u": {"units": "m"}, "v": {}}}, "fields"),
        ({"shape": (12, 34), "coords": COORDS | {"x": np.linspace(0, 2, 34)}}, "shape"),
        ({"coords": COORDS | {"x": np.linspace(0, 3, 17)}}, "coords"),
        ({"dtype": "float64", "compression": "lz4"}, "dtype, compression"),
        ({"time": {"units": "s"}}, "time"),
    ],
)
def test_another_content_is_refused_by_name(changes: dict[str, Any], what: str, tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    with gsio.FrameWriter(path, **GIVEN) as out:
        out.append(*np.random.default_rng(0).random((2, *SHAPE), np.float32))
    before = bytes_of(path)
    with pytest.raises(DataError, match=f"^resume: '{path}' differs in its {what}; open the writer as before"):
        gsio.FrameWriter(path, **GIVEN | changes, resume="auto")
    assert bytes_of(path) == before


def test_a_loop_does_not_extend_a_run_nor_a_run_a_loop(tmp_path: Path, make_config: Callable[..., Any]) -> None:
    config = make_config({"output.compression": "none"})
    gsio.simulate(config, tmp_path / "run.h5")
    loop(tmp_path / "loop.zarr", frames=3, compression="none")
    before = bytes_of(tmp_path)
    with pytest.raises(DataError, match="is an output of 'gsio run'"):
        gsio.FrameWriter(tmp_path / "run.h5", SHAPE, resume="auto", compression="none")
    with pytest.raises(DataError, match=r"loop\.zarr"):
        gsio.simulate(config, tmp_path / "loop.zarr", resume="auto")
    assert bytes_of(tmp_path) == before


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("name", "newest", "previous", "began"),
    [("run.zarr", tear, None, 9), ("run.h5", Path.unlink, None, 9), ("run.h5", Path.unlink, tear, 0)],
)
def test_the_newest_state_that_is_whole_counts(
    name: str, newest: Any, previous: Any, began: int, tmp_path: Path, whole: Whole
) -> None:
    path = tmp_path / name
    stopped(path, 30)
    for file, damage in zip(checkpoints.paths_of(path), (newest, previous), strict=True):
        if damage is not None:
            damage(file)
    if began == 0:
        with pytest.raises(DataError, match=r"is damaged .*; delete them to compute again from the first frame"):
            gsio.FrameWriter(path, SHAPE, resume="auto")
        checkpoints.paths_of(path)[1].unlink()
    assert loop(path, resume="auto") == began
    assert contents(path)["v"] == whole(name)["v"]


def test_the_state_of_another_output_is_not_taken(tmp_path: Path, make_config: Callable[..., Any]) -> None:
    path, other, of_run = tmp_path / "run.h5", tmp_path / "other.zarr", tmp_path / "simulated.h5"
    stopped(path, 25)
    stopped(other, 30)
    gsio.simulate(make_config(), of_run)
    for file, foreign in zip(checkpoints.paths_of(path), (other, of_run), strict=True):
        file.write_bytes(checkpoints.paths_of(foreign)[0].read_bytes())
    with gsio.FrameWriter(path, SHAPE, resume="auto") as out:
        assert (len(out), out.checkpoint, out.frames_committed) == (0, None, 25)


def test_a_state_behind_the_frames_of_the_output_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    stopped(path, 30)
    kept = [file.read_bytes() for file in checkpoints.paths_of(path)]
    stopped(path, 12, resume="must", discard_after=10)
    for file, text in zip(checkpoints.paths_of(path), kept, strict=True):
        file.write_bytes(text)
    with gsio.FrameWriter(path, SHAPE, resume="auto") as out:
        assert len(out) == 9


@FORMATS
def test_a_loop_goes_on_through_a_link(name: str, tmp_path: Path, whole: Whole) -> None:
    (tmp_path / "store").mkdir()
    path, link = tmp_path / "store" / name, tmp_path / name
    stopped(path, 25)
    link.symlink_to(path)
    assert loop(link, resume="auto") == 22
    assert link.is_symlink()
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith("run")] == [name]
    assert contents(path) == whole(name)


SECOND = """
import sys, gsio
from gsio.errors import UsageError
try:
    gsio.FrameWriter(sys.argv[1], (12, 17), resume='auto')
except UsageError as error:
    print(error)
"""


@FORMATS
def test_a_second_writer_of_an_output_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with gsio.FrameWriter(path, SHAPE) as out:
        out.append(first())
        out.flush()
        with pytest.raises(UsageError):
            gsio.FrameWriter(path, SHAPE, resume="auto")
        said = subprocess.run([sys.executable, "-c", SECOND, path], capture_output=True, text=True, timeout=DEADLINE)
        assert said.stdout.startswith(f"path: another run writes '{path}'"), (said.stdout, said.stderr)
        assert said.stdout.count("\n") == 1
        out.append(first())
    with gsio.open_stack(path) as stack:
        assert (stack.frames, stack.attributes["status"]) == (2, "complete")


KILLED = """
import os, signal, sys, time
from pathlib import Path
sys.path[:0] = [str(folder) for folder in Path(sys.argv[1]).parents[:2]]
from test_frame_writer_resume import SHAPE, first, small_blocks, step
import gsio
from gsio.run import checkpoints

path, frames = Path(sys.argv[2]), int(sys.argv[3])
small_blocks(block_bytes=6 * 4 * 12 * 17, chunk_bytes=3 * 4 * 12 * 17)
with gsio.FrameWriter(path, SHAPE) as out:
    state = first()
    for n in range(frames):
        state = step(state)
        out.append(state, time=0.25 * n, step=8 * n)
        if n + 1 in (9, 22):
            out.save({"state": state, "n": n})
    out.flush()
    while [state.frames for state in checkpoints.load_states(path)][:1] != [9 if frames < 22 else 22]:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("name", "frames"), [("run.h5", 20), ("run.h5", 22), ("run.zarr", 22), ("run.zarr", FRAMES)])
def test_a_killed_loop_goes_on_and_ends_as_complete(name: str, frames: int, tmp_path: Path, whole: Whole) -> None:
    path = tmp_path / name
    done = subprocess.run([sys.executable, "-c", KILLED, __file__, path, str(frames)], timeout=DEADLINE)
    assert done.returncode == -signal.SIGKILL
    with gsio.open_stack(path) as stack:
        assert (stack.frames, stack.attributes["status"]) == (frames, "running")
    wanted = 22 if frames == 22 else FRAMES  # after 22 the loop has only to be closed
    loop(path, wanted, resume="auto")
    assert contents(path) == whole(name, frames=wanted)


WRITERS = {"run.h5": "gsio.writer.hdf5.chunked.ChunkWriter", "run.zarr": "gsio.writer.zarr.writer.ZarrWriter"}


@pytest.mark.parametrize(("name", "method"), [("run.h5", "commit"), ("run.h5", "sync"), ("run.zarr", "encode")])
def test_after_a_failure_of_the_storage_no_frame_is_taken_and_a_resumed_loop_goes_on(
    name: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Whole
) -> None:
    path, fails = tmp_path / name, threading.Event()
    real = getattr(pkgutil.resolve_name(WRITERS[name]), method)

    def call(*arguments: Any) -> Any:
        if fails.is_set():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments)

    monkeypatch.setattr(f"{WRITERS[name]}.{method}", call)
    out = gsio.FrameWriter(path, SHAPE)
    state = first()
    for n in range(9):
        state = step(state)
        out.append(state, time=0.25 * n, step=8 * n)
    out.flush()
    fails.set()
    state = step(state)
    out.append(state, time=0.25 * 9, step=8 * 9)
    with pytest.raises(StorageError, match=r"No space left.* 9 of these are known to be safe .* resume='auto'$"):
        out.flush()
    fails.clear()  # space that comes back does not bring back the frames
    for verb in (lambda: out.append(state), out.flush, lambda: out.save({"state": state})):
        with pytest.raises(StorageError, match="No space left"):
            verb()
    out.close()  # the error was raised before
    assert journal_of(path).exists()
    with gsio.open_stack(path) as stack:
        assert stack.attributes["status"] == "failed"
        assert stack.frames == out.frames_committed == (10 if method == "sync" else 9)
    loop(path, resume="auto")
    assert contents(path) == whole(name)


FORKED = """
import os, sys
import numpy as np
import gsio
with gsio.FrameWriter(sys.argv[1], (12, 17)) as out:
    for n in range(30):
        out.append(np.full((12, 17), n, np.float32))
        if n % 10 == 5 and os.fork() == 0:
            for call in (lambda: out.append(np.zeros((12, 17), np.float32)), out.flush, lambda: out.save(n)):
                try:
                    call()
                except gsio.GsioError as error:
                    assert f"is open in process {os.getppid()};" in str(error)
                else:
                    os._exit(1)
            out.close()
            try:
                out.append(np.zeros((12, 17), np.float32))
            except gsio.errors.UsageError:
                os._exit(0)
    for n in range(3):
        assert os.wait()[1] == 0
"""


@FORMATS
def test_a_process_that_the_program_forks_leaves_the_output_alone(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORKED, tmp_path / name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
    assert (done.returncode, done.stderr) == (0, "")
    with gsio.open_stack(tmp_path / name) as stack:
        assert list(problems(stack)) == []
        assert (stack.frames, stack.attributes["status"]) == (30, "complete")
