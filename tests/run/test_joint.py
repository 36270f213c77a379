"""Runs on several ranks, which are threads of this process: their outputs have the bits of a run on one."""

import errno
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from meeting import on_ranks

from gsio.config import Config
from gsio.errors import DataError, DivergenceError, GsioError, StorageError, ToldError, UsageError
from gsio.reader import open_stack
from gsio.reader.verify import problems
from gsio.run import checkpoints
from gsio.run.joint import assist
from gsio.run.ranks import Ranks
from gsio.run.simulate import simulate
from gsio.run.summary import Summary
from gsio.testing import small_blocks
from gsio.writer.zarr.chunks import ChunkWriter
from gsio.writer.zarr.store import Folder

ZARR = {"output.compression": "lz4", "grid.rows": 20, "run.frames": 9}


def run_on(count: int, config: Config, output: Path, **how: Any) -> list[Any]:
    """Return the summary of a run on so many ranks, or its error, and how each other rank ended."""
    if count == 1:
        return [simulate(config, output, **how)]

    def one(ranks: Ranks) -> Any:
        return assist(ranks) if ranks.number else simulate(config, output, **how, ranks=ranks)

    return on_ranks(count, one)


def contents(output: Path) -> dict[str, bytes]:
    """Return all frames, their pyramids, all series, and the newest checkpoint of an output, by name."""
    with open_stack(output) as stack:
        assert list(problems(stack)) == []
        found = {name: stack.series(name).tobytes() for name in stack.recorded}
        found |= {name: field[:].tobytes() for name, field in stack.fields.items()}
        found |= {f"level {name}": array[:].tobytes() for name, array in _levels(stack.root)}
    state = checkpoints.load(output)[0]
    return found | {"u": state.u.tobytes(), "v of the state": state.v.tobytes(), "frames": bytes(state.frames)}


def _levels(root: Any) -> list[tuple[str, Any]]:
    return [(name, array) for name, array in root["pyramid"].arrays()] if "pyramid" in root else []


def assert_whole(found: list[Any], frames: int) -> None:
    assert isinstance(found[0], Summary), found
    assert (found[0].frames, found[1:]) == (frames, [None] * (len(found) - 1))


def random_changes(dice: random.Random) -> dict[str, Any]:
    rows, cols = dice.randint(5, 30), dice.randint(4, 30)
    store = dice.choice(["computed", "float32", "float16", "uint16", "uint8"])
    feed: Any = dice.choice(
        [0.03, 0.03, [0.02, 0.025, 0.03, 0.035, 0.04], {"along": dice.choice("xy"), "start": 0.02, "stop": 0.04}]
    )
    return {
        "grid.rows": rows, "grid.cols": cols, "grid.boundary": dice.choice(["periodic", "neumann", "zero"]),
        "model.feed": feed, "model.stencil": dice.choice(["oono-puri", "five-point", "patra-karttunen"]),
        "model.precision": dice.choice(["float32", "float64"]) if store == "computed" else "float32",
        "initial.kind": "noise", "initial.u": 0.5, "initial.v": 0.25, "initial.amplitude": 0.2,
        "initial.seed": dice.randint(0, 1000),
        "run.frames": dice.randint(3, 12), "run.steps_per_frame": dice.randint(1, 9),
        "run.checkpoint_every": dice.choice([2, 3, "15m"]),
        "output.fields": dice.choice(["v", "u", "u,v"]), "output.store": store,
        "output.keep_bits": dice.choice([0, 9]) if store in ("computed", "float32") else 0,
        "output.compression": dice.choice(["lz4", "zstd", "none"]), "output.shard_frames": dice.choice([0, 0, 4]),
        "output.pyramid": dice.choice([0, 0, 1]), "output.threads": dice.randint(1, 3),
    }  # fmt: skip


def check_random(make_config: Callable[..., Config], folder: Path, dice: random.Random) -> None:
    """Check runs on 2, 3 and 5 ranks, and one that goes on on another number of ranks, against a run on one."""
    changes = random_changes(dice)
    config = make_config(changes)
    run_on(1, config, folder / "1.zarr")
    whole = contents(folder / "1.zarr")
    for count in (2, 3, 5):
        output = folder / f"{count}.zarr"
        ended = run_on(count, config, output)
        if isinstance(ended[0], UsageError):  # a slab has two lines at least, if there is a pyramid
            assert changes["output.pyramid"]
            assert "ranks or devices" in str(ended[0])
            continue
        assert_whole(ended, config.run.frames)
        found = contents(output)
        assert [name for name in whole if whole[name] != found[name]] == [], (count, changes)
    part, first, then = folder / "part.zarr", dice.choice([2, 3]), dice.choice([1, 2])
    sooner = make_config(changes | {"run.frames": dice.randint(1, config.run.frames - 1)})
    if isinstance(run_on(first, sooner, part)[0], Summary):
        assert_whole(run_on(then, config, part, resume="must"), config.run.frames - sooner.run.frames)
        found = contents(part)
        assert [name for name in whole if whole[name] != found[name]] == [], (first, then, changes)


@pytest.mark.parametrize("seed", range(10))
def test_outputs_of_any_number_of_ranks_have_the_same_bits(
    make_config: Callable[..., Config], tmp_path: Path, seed: int
) -> None:
    with small_blocks(block_bytes=6000, chunk_bytes=2000, large_bytes=3000, slab_bytes=1500):
        check_random(make_config, tmp_path, random.Random(seed))


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
