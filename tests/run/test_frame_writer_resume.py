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

import numpy as np
import pytest
from patience import DEADLINE

import gsio
from gsio.errors import DataError, StorageError, UsageError
from gsio.reader.verify import problems
from gsio.run import checkpoints
from gsio.testing import small_blocks
from gsio.writer.journal import journal_of

SHAPE = 12, 17
FRAMES = 40
OUTPUTS = [
    *(("run.h5", {"compression": compression}) for compression in ("deflate", "lz4", "zstd", "none")),
    *(("run.zarr", {"compression": compression}) for compression in ("lz4", "zstd", "none")),
    ("run.zarr", {"compression": "lz4", "shard_frames": 6}),
]
EACH = pytest.mark.parametrize(("name", "how"), OUTPUTS)
FORMATS = pytest.mark.parametrize("name", ["run.h5", "run.zarr"])


@pytest.fixture(autouse=True)
def blocks() -> Iterator[None]:
    """Blocks of six frames with chunks of three, so that a short loop has many."""
    with small_blocks(block_bytes=6 * 4 * 12 * 17, chunk_bytes=3 * 4 * 12 * 17):
        yield


class Stop(Exception):
    """What ends a loop."""


def step(state: np.ndarray) -> np.ndarray:
    return (np.roll(state, 1, 0) * np.float32(0.75) + np.float32(0.125)).astype(np.float32)


def first() -> np.ndarray:
    return np.random.default_rng(5).random(SHAPE, np.float32)


def loop(
    path: Path,
    frames: int = FRAMES,
    *,
    stop: int = FRAMES,
    saves: tuple[int, ...] = (9, 22),
    flushes: int = 7,
    **how: Any,
) -> gsio.FrameWriter:
    """Save frames, the state after some, and flush after every `flushes`; raise Stop after `stop` frames."""
    with gsio.FrameWriter(path, SHAPE, threads=2, **how) as out:
        state = first() if out.checkpoint is None else out.checkpoint["state"]
        for n in range(len(out), frames):
            if n == stop:
                raise Stop
            state = step(state)
            out.append(state, time=0.25 * n, step=8 * n)
            if n % flushes == flushes - 1:
                out.flush()
            if n + 1 in saves:
                out.save({"state": state, "n": n})
    return out


def stopped(path: Path, after: int, **how: Any) -> None:
    with pytest.raises(Stop):
        loop(path, stop=after, **how)


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
def whole(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Return a function that gives the contents of an output whose loop nobody disturbed."""

    def made(name: str, **how: Any) -> dict[str, Any]:
        (tmp_path / "whole").mkdir()
        loop(tmp_path / "whole" / name, **how)
        return contents(tmp_path / "whole" / name)

    return made


@EACH
@pytest.mark.parametrize("after", [1, 8, 20, 23, 31])
def test_a_stopped_loop_goes_on_with_its_state(
    name: str, how: dict[str, Any], after: int, tmp_path: Path, whole: Callable[..., dict[str, Any]]
) -> None:
    path = tmp_path / name
    stopped(path, after, **how)
    with gsio.open_stack(path) as stack:
        assert (stack.frames, stack.attributes["status"]) == (after, "stopped")
    with gsio.FrameWriter(path, SHAPE, resume="auto", **how) as out:
        from_frame = max((frames for frames in (9, 22) if frames <= after), default=0)
        assert len(out) == from_frame
        assert out.frames_committed == after
        assert (out.checkpoint is None) == (from_frame == 0)
        assert out.checkpoint is None or out.checkpoint["n"] == from_frame - 1
    out = loop(path, resume="auto", **how)
    assert len(out) == out.frames_committed == FRAMES
    assert contents(path) == whole(name, **how)


@FORMATS
def test_a_loop_that_is_stopped_again_and_again_saves_the_same(
    name: str, tmp_path: Path, whole: Callable[..., dict[str, Any]]
) -> None:
    for after in (2, 2, 5, 10, 9, 10, 24, 23, 37, 40):
        with suppress(Stop):
            loop(tmp_path / name, stop=after, resume="auto", flushes=4)
    assert contents(tmp_path / name) == whole(name)


@FORMATS
def test_a_complete_output_stays_as_it_is_if_its_loop_has_nothing_to_add(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    loop(path, saves=(9, FRAMES))
    before = bytes_of(path)
    journal_of(path).write_text("{}")  # as a kill between the end of the output and that of its journal leaves one
    journal_of(path).write_bytes(b"")
    out = loop(path, saves=(9, FRAMES), resume="auto")
    assert len(out) == out.frames_committed == FRAMES
    assert bytes_of(path) == before
    assert not journal_of(path).exists()


@FORMATS
def test_a_complete_output_is_extended(name: str, tmp_path: Path, whole: Callable[..., dict[str, Any]]) -> None:
    loop(tmp_path / name, frames=23)
    loop(tmp_path / name, resume="must")
    assert contents(tmp_path / name) == whole(name)


@FORMATS
def test_a_frame_that_differs_when_computed_again_is_named_and_stays(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    stopped(path, 20)
    with gsio.open_stack(path) as stack:
        before = stack.fields["v"][:]
    with gsio.FrameWriter(path, SHAPE, resume="auto") as out:
        state = out.checkpoint["state"]
        for n in range(len(out), 14):
            state = step(state)
            out.append(state, time=0.25 * n, step=8 * n)
        out.append(state + 1, time=3.5, step=112)
        with pytest.raises(DataError, match=r"^frame 14, .* differs .*resume='must' and discard_after=14$") as found:
            out.flush()
        with pytest.raises(DataError) as again:
            out.append(state)
        assert again.value is found.value
    with gsio.open_stack(path) as stack:
        assert list(problems(stack)) == []
        np.testing.assert_array_equal(stack.fields["v"][:], before)
    assert out.frames_committed == 20
    loop(path, resume="auto")
    assert contents(path)


@FORMATS
@pytest.mark.parametrize("keep", [0, 10, 14, 20])
def test_frames_behind_discard_after_are_computed_anew(
    name: str, keep: int, tmp_path: Path, whole: Callable[..., dict[str, Any]]
) -> None:
    path = tmp_path / name
    stopped(path, 20)
    with gsio.FrameWriter(path, SHAPE, resume="must", discard_after=keep) as out:
        assert out.frames_committed == keep
        assert len(out) == (9 if keep >= 9 else 0)
        state = first() if out.checkpoint is None else out.checkpoint["state"]
        for n in range(len(out), keep + 4):
            state = step(state) if n < keep else np.full(SHAPE, n, np.float32)
            out.append(state, time=0.25 * n, step=8 * n)
    with gsio.open_stack(path) as stack:
        assert list(problems(stack)) == []
        assert (stack.fields["v"][keep:] == np.arange(keep, keep + 4, dtype=np.float32)[:, None, None]).all()
    with pytest.raises(UsageError, match=f"expected 0 to {keep + 4}, the committed frames, got 99"):
        gsio.FrameWriter(path, SHAPE, resume="must", discard_after=99)
    loop(path, resume="must", discard_after=keep)
    assert contents(path) == whole(name)


def test_arguments_that_cannot_be_meant_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    with pytest.raises(UsageError, match="does not exist"):
        gsio.FrameWriter(path, SHAPE, resume="must")
    stopped(path, 4)
    for how in (
        {"resume": "auto", "overwrite": True},
        {"resume": "auto", "discard_after": 3},
        {"discard_after": 3},
        {},
    ):
        before = bytes_of(path)
        with pytest.raises(UsageError):
            gsio.FrameWriter(path, SHAPE, **how)  # type: ignore[arg-type]
        assert bytes_of(path) == before


FIELDS = {"u": {"units": "K"}, "v": {}}
COORDS = {"y": np.linspace(0, 1, 12), "x": np.linspace(0, 2, 17)}
GIVEN: dict[str, Any] = {"fields": FIELDS, "coords": COORDS, "dtype": "float32", "compression": "none"}


@FORMATS
@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"fields": "u"}, "fields"),
        ({"fields": {"v": {}, "u": {"units": "K"}}}, "order of its fields"),
        ({"fields": FIELDS | {"u": {"units": "m"}}}, "fields"),
        ({"shape": (12, 34), "coords": {"y": COORDS["y"], "x": np.linspace(0, 2, 34)}}, "shape"),
        ({"coords": COORDS | {"x": np.linspace(0, 3, 17)}}, "coords"),
        ({"coords": None}, "coords"),
        ({"dtype": "float64"}, "dtype"),
        ({"compression": "zstd"}, "compression"),
        ({"keep_bits": 7}, "keep_bits"),
        ({"time": {"units": "s"}}, "time"),
        ({"dtype": "float64", "compression": "lz4"}, "dtype, compression"),
    ],
)
def test_another_output_than_the_first_is_refused(
    name: str, changes: dict[str, Any], what: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    planes = np.random.default_rng(0).random((2, *SHAPE), np.float32)
    with gsio.FrameWriter(path, SHAPE, **GIVEN) as out:
        out.append(*planes)
    before = bytes_of(path)
    how = {"shape": SHAPE, **GIVEN, **changes}
    with pytest.raises(DataError, match=f"'{path}'") as found:
        gsio.FrameWriter(path, resume="auto", **how)
    assert all(word in str(found.value) for word in [*what.split(", "), "has another"]), found.value
    assert bytes_of(path) == before
    with gsio.FrameWriter(path, SHAPE, resume="auto", **GIVEN) as out:
        assert out.frames_committed == 1


@FORMATS
def test_an_output_of_a_run_is_none_of_a_loop_and_the_reverse(
    name: str, tmp_path: Path, make_config: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    config = make_config({"output.compression": "none"})
    gsio.simulate(config, tmp_path / name)
    before = bytes_of(tmp_path / name)
    with pytest.raises(DataError, match="is an output of 'gsio run'"):
        gsio.FrameWriter(tmp_path / name, SHAPE, resume="auto", compression="none")
    assert bytes_of(tmp_path / name) == before
    loop(tmp_path / f"loop-{name}", compression="none")
    with pytest.raises(DataError) as found:
        gsio.simulate(config, tmp_path / f"loop-{name}", resume="auto")
    assert "loop-run" in str(found.value)


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@FORMATS
@pytest.mark.parametrize("newest", ["whole", "missing", "torn"])
@pytest.mark.parametrize("before", ["whole", "missing", "torn"])
def test_the_newest_state_that_is_whole_is_the_one(
    name: str, newest: str, before: str, tmp_path: Path, whole: Callable[..., dict[str, Any]]
) -> None:
    path = tmp_path / name
    stopped(path, 30)
    files = dict(zip(checkpoints.paths_of(path), (newest, before), strict=True))
    for file, how in files.items():
        if how != "whole":
            file.unlink() if how == "missing" else tear(file)
    if "whole" not in files.values() and "torn" in files.values():
        with pytest.raises(DataError, match="is damaged .*; delete them to compute again"):
            gsio.FrameWriter(path, SHAPE, resume="auto")
        for file in files:
            file.unlink(missing_ok=True)
    with gsio.FrameWriter(path, SHAPE, resume="auto") as out:
        assert len(out) == (22 if newest == "whole" else 9 if before == "whole" else 0)
    loop(path, resume="auto", saves=(9, 22, 33))
    assert contents(path) == whole(name, saves=(9, 22, 33))


@FORMATS
def test_the_state_of_another_output_is_not_taken(
    name: str, tmp_path: Path, make_config: Callable[..., Any], whole: Callable[..., dict[str, Any]]
) -> None:
    path, other = tmp_path / name, tmp_path / f"other-{name}"
    stopped(path, 25)
    stopped(other, 30)
    gsio.simulate(make_config(), tmp_path / "run.other.h5")
    of_run = checkpoints.paths_of(tmp_path / "run.other.h5")[0]
    for foreign in (checkpoints.paths_of(other)[0], of_run):
        for file in checkpoints.paths_of(path):
            file.write_bytes(foreign.read_bytes())
        with gsio.FrameWriter(path, SHAPE, resume="auto") as out:
            assert (len(out), out.checkpoint, out.frames_committed) == (0, None, 25)
    loop(path, resume="auto")
    assert contents(path) == whole(name)


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
def test_a_loop_goes_on_through_a_link(name: str, tmp_path: Path, whole: Callable[..., dict[str, Any]]) -> None:
    (tmp_path / "store").mkdir()
    path, link = tmp_path / "store" / name, tmp_path / name
    stopped(path, 25)
    link.symlink_to(path)
    loop(link, resume="auto")
    assert link.is_symlink()
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith("run")] == [name]
    assert contents(path) == whole(name)


@FORMATS
def test_a_second_writer_of_an_output_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    program = (
        "import sys, gsio\n"
        "from gsio.errors import UsageError\n"
        "try:\n"
        "    gsio.FrameWriter(sys.argv[1], (12, 17), resume='auto')\n"
        "except UsageError as error:\n"
        "    print(error)\n"
    )
    with gsio.FrameWriter(path, SHAPE) as out:
        out.append(first())
        out.flush()
        with pytest.raises(UsageError):
            gsio.FrameWriter(path, SHAPE, resume="auto")
        said = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
        assert said.stdout.startswith(f"path: another run writes '{path}'"), (said.stdout, said.stderr)
        assert said.stdout.count("\n") == 1
        out.append(first())
    with gsio.open_stack(path) as stack:
        assert (stack.frames, stack.attributes["status"]) == (2, "complete")


KILLED = """
import os, signal, sys, time
from pathlib import Path
sys.path[:0] = [str(Path(sys.argv[1]).parent)]
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


@FORMATS
@pytest.mark.parametrize("frames", [20, 22, FRAMES])
def test_a_killed_loop_goes_on_and_ends_as_complete(
    name: str, frames: int, tmp_path: Path, whole: Callable[..., dict[str, Any]]
) -> None:
    path = tmp_path / name
    done = subprocess.run([sys.executable, "-c", KILLED, __file__, path, str(frames)], timeout=DEADLINE)
    assert done.returncode == -signal.SIGKILL
    with gsio.open_stack(path) as stack:
        assert (stack.frames, stack.attributes["status"]) == (frames, "running")
    if frames == 22:  # the loop has only to be closed
        loop(path, frames, resume="auto")
        with gsio.open_stack(path) as stack:
            assert (stack.frames, stack.attributes["status"]) == (22, "complete")
            assert not journal_of(path).exists()
    out = loop(path, resume="auto")
    assert out.frames_committed == FRAMES
    assert contents(path) == whole(name)


WRITERS = {"run.h5": "gsio.writer.hdf5.chunked.ChunkWriter", "run.zarr": "gsio.writer.zarr.writer.ZarrWriter"}


@FORMATS
@pytest.mark.parametrize("method", ["encode", "commit", "sync"])
def test_after_a_failure_of_the_storage_the_writer_takes_no_frame_and_the_loop_can_go_on(
    name: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Callable[..., dict[str, Any]]
) -> None:
    path = tmp_path / name
    fails = threading.Event()
    real = getattr(pkgutil.resolve_name(WRITERS[name]), method)

    def call(*arguments: Any) -> Any:
        if fails.is_set():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments)

    monkeypatch.setattr(f"{WRITERS[name]}.{method}", call)
    out = gsio.FrameWriter(path, SHAPE)
    state = first()
    for n in range(20):
        state = step(state)
        out.append(state, time=0.25 * n, step=8 * n)
        if n == 8:
            out.flush()
            fails.set()
    with pytest.raises(StorageError, match=r"No space left .* 9 of these are known to be safe .* resume='auto'$"):
        out.flush()
    fails.clear()  # space that comes back does not bring back the frames
    for verb in (lambda: out.append(state), out.flush, lambda: out.save({"state": state})):
        with pytest.raises(StorageError, match="No space left"):
            verb()
    out.close()
    assert journal_of(path).exists()
    with gsio.open_stack(path) as stack:
        assert stack.attributes["status"] == "failed"
        assert stack.frames == out.frames_committed
        assert (stack.frames == 9) == (method != "sync")
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
            sys.exit(0)  # leaves the context, and calls what `atexit` knows
    for n in range(3):
        assert os.wait()[1] == 0
"""


@FORMATS
def test_a_process_that_the_program_forks_leaves_the_output_alone(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED, tmp_path / name],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert (done.returncode, done.stderr) == (0, "")
    with gsio.open_stack(tmp_path / name) as stack:
        assert list(problems(stack)) == []
        assert (stack.frames, stack.attributes["status"]) == (30, "complete")
