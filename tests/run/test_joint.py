"""Runs on several ranks, which are threads of this process: their outputs have the bits of a run on one."""

import errno
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from meeting import assert_whole, check_random, contents, run_on

from gsio.config import Config
from gsio.errors import DataError, DivergenceError, GsioError, StorageError, ToldError, UsageError
from gsio.reader import open_stack
from gsio.reader.verify import problems
from gsio.run import checkpoints
from gsio.testing import small_blocks
from gsio.trace.timeline import DEVICE, read
from gsio.writer.zarr.chunks import ChunkWriter
from gsio.writer.zarr.store import Folder

ZARR = {"output.compression": "lz4", "grid.rows": 20, "run.frames": 9}


@pytest.mark.parametrize("seed", range(10))
def test_outputs_of_any_number_of_ranks_have_the_same_bits(
    make_config: Callable[..., Config], tmp_path: Path, seed: int
) -> None:
    with small_blocks(block_bytes=6000, chunk_bytes=2000, large_bytes=3000, slab_bytes=1500):
        check_random(make_config, tmp_path, random.Random(seed))


@pytest.mark.numba
def test_outputs_of_the_compiled_solver_have_the_same_bits(make_config: Callable[..., Config], tmp_path: Path) -> None:
    for seed in range(3):
        folder = tmp_path / str(seed)
        folder.mkdir()
        check_random(make_config, folder, random.Random(seed), **{"run.backend": "numba", "run.threads": 1})


@pytest.mark.numba
def test_ranks_that_may_use_the_same_cores_divide_them(
    make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gsio.run.joint.usable_cores", lambda: 4)
    found = run_on(2, make_config(ZARR | {"run.backend": "numba"}), tmp_path / "run.zarr")
    assert found[0].device == "CPU, 2 threads, on each of 2 ranks"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 60))
def test_outputs_of_any_number_of_ranks_have_the_same_bits_in_many_configurations(
    make_config: Callable[..., Config], tmp_path: Path, seed: int
) -> None:
    with small_blocks(block_bytes=dice_bytes(seed), chunk_bytes=2000):
        check_random(make_config, tmp_path, random.Random(seed))


def dice_bytes(seed: int) -> int:
    return random.Random(seed).choice([1000, 6000, 100_000])


def fail_at(monkeypatch: pytest.MonkeyPatch, slab: int, number: int) -> None:
    """Let the disk of the rank that stores a slab be full from a chunk on."""
    put_new = Folder.put_new

    def put(self: Folder, key: str, parts: Any) -> None:
        _, at, line, *_ = key.split(".")
        if int(line) == slab and int(at) >= number:
            raise OSError(errno.ENOSPC, "No space left on device")
        put_new(self, key, parts)

    monkeypatch.setattr(Folder, "put_new", put)


@pytest.fixture
def whole(make_config: Callable[..., Config], tmp_path: Path) -> dict[str, bytes]:
    """The contents of an undisturbed run of `ZARR`."""
    run_on(1, make_config(ZARR), tmp_path / "whole.zarr")
    return contents(tmp_path / "whole.zarr")


@pytest.fixture
def tiny_blocks() -> Any:
    """Blocks of one frame."""
    with small_blocks(block_bytes=1, chunk_bytes=1) as until:
        yield until


@pytest.mark.usefixtures("tiny_blocks")
@pytest.mark.parametrize("slab", [0, 2])
def test_a_full_disk_of_one_rank_ends_all_and_the_run_goes_on(
    make_config: Callable[..., Config],
    tmp_path: Path,
    whole: dict[str, bytes],
    slab: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "run.zarr"
    with monkeypatch.context() as patch:
        fail_at(patch, slab, 5)
        error, *others = run_on(3, make_config(ZARR), output)
    assert isinstance(error, StorageError)
    where = "" if slab == 0 else " on rank 2"
    assert f"No space left on device{where}; 5 frames are committed" in str(error)
    assert [(type(other), other.exit_code) for other in others] == [(ToldError, 74)] * 2
    with open_stack(output) as stack:
        assert (stack.frames, list(problems(stack))) == (5, [])
    assert_whole(run_on(2, make_config(ZARR), output, resume="must"), 4)
    assert contents(output) == whole


@pytest.mark.usefixtures("tiny_blocks")
def test_a_disk_that_cannot_be_synced_ends_all(
    make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sync(self: ChunkWriter) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(ChunkWriter, "sync", sync)
    error, *others = run_on(3, make_config(ZARR), tmp_path / "run.zarr")
    assert isinstance(error, StorageError)
    assert "Input/output error on rank 1; 9 frames are committed" in str(error)
    assert [other.exit_code for other in others] == [74, 74]


@pytest.mark.usefixtures("tiny_blocks")
def test_a_run_that_diverges_ends_with_the_frame_of_one_rank(
    make_config: Callable[..., Config], tmp_path: Path
) -> None:
    v = np.zeros((20, 17))
    v[12, 4] = 1e6
    np.savez(tmp_path / "start.npz", u=np.ones_like(v), v=v)
    config = make_config(
        ZARR | {"initial.kind": "file", "initial.path": str(tmp_path / "start.npz"), "run.steps_per_frame": 1}
    )
    alone, together = (pytest.raises(DivergenceError), tmp_path / "3.zarr")
    with alone as expected:
        run_on(1, config, tmp_path / "1.zarr")
    error, *others = run_on(3, config, together)
    assert (type(error), str(error)) == (DivergenceError, str(expected.value))
    assert [other.exit_code for other in others] == [70, 70]
    with open_stack(tmp_path / "1.zarr") as one, open_stack(together) as three:
        assert one.frames == three.frames > 0
        assert one.fields["v"][:].tobytes() == three.fields["v"][:].tobytes()


@pytest.mark.usefixtures("tiny_blocks")
def test_frames_that_differ_from_the_committed_ones_end_all(make_config: Callable[..., Config], tmp_path: Path) -> None:
    output = tmp_path / "run.zarr"
    assert_whole(run_on(3, make_config(ZARR), output), 9)
    for path in checkpoints.paths_of(output):
        path.unlink(missing_ok=True)
    checksums = output / "integrity" / "crc32c" / "c.0"
    stored = np.frombuffer(checksums.read_bytes(), np.uint32).copy()
    stored[4] ^= 1
    checksums.write_bytes(stored.tobytes())
    error, *others = run_on(3, make_config(ZARR | {"run.frames": 12}), output, resume="must")
    assert isinstance(error, DataError)
    assert [other.exit_code for other in others] == [65, 65]


def test_a_run_on_ranks_shows_each_of_them(make_config: Callable[..., Config], tmp_path: Path) -> None:
    timeline = tmp_path / "timeline.json"
    summary, *_ = run_on(3, make_config(ZARR), tmp_path / "run.zarr", timeline=timeline)
    assert re.match(r"3 of 6 to 7 rows, with halos of \d+; an estimated ", summary.bands)
    assert re.fullmatch(r"band \d was the slowest, .*% above the mean; exchanges took .*% of its time", summary.balance)
    assert len(str(summary).splitlines()) <= 12
    rows = {interval.thread for interval in read(timeline).intervals if interval.name == "compute"}
    assert rows == {DEVICE, DEVICE - 1, DEVICE - 2}


def test_a_refusal_is_one_of_all_ranks_and_touches_nothing(
    make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(config: Config, name: str, count: int = 3) -> str:
        error, *others = run_on(count, config, tmp_path / name)
        assert isinstance(error, UsageError)
        assert [(type(other), other.exit_code) for other in others] == [(ToldError, 2)] * (count - 1)
        assert list(tmp_path.iterdir()) == []
        return str(error)

    assert "cannot write one HDF5 file" in refused(make_config(ZARR), "run.h5")
    assert "expected the backend cupy, numba or numpy, got jax" in refused(
        make_config(ZARR | {"run.backend": "jax"}), "a.zarr"
    )
    assert "at most 4 ranks or devices, got 5" in refused(make_config(ZARR | {"grid.rows": 4}), "a.zarr", 5)
    monkeypatch.setattr("gsio.run.joint.journal_of", lambda output: tmp_path / "elsewhere")
    assert "expected a folder that all ranks share" in refused(make_config(ZARR), "a.zarr")


def test_a_rank_that_fails_alone_while_it_computes_ends_all_at_once(
    make_config: Callable[..., Config],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fill(self: Any, block: Any) -> None:
        raise MemoryError("no memory")

    monkeypatch.setattr("gsio.compute.banded.BandSolver.fill", fill)
    found = run_on(2, make_config(ZARR), tmp_path / "run.zarr")
    assert {str(error) for error in found} <= {"rank 0 ended all with 70", "rank 1 ended all with 70"}
    assert "gsio: error: internal error: MemoryError: no memory" in capsys.readouterr().err


def test_what_is_no_error_of_gsio_is_told_as_one() -> None:
    from gsio.run.ranks import Ended

    error = Ended.of(RuntimeError("odd")).error("rank 1")
    assert (type(error), str(error)) == (GsioError, "rank 1: internal error: RuntimeError: odd")
