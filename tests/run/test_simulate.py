"""A run from end to end: back-pressure, failing storage, divergence, signals and kills."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import crc32c
import h5py
import numpy as np
import pytest
import structlog
import trio
from patience import DEADLINE

import gsio
from gsio.compute.peers import numpy as reference
from gsio.compute.solver import fields
from gsio.config import Config, config_folder, load_config
from gsio.errors import DivergenceError, GsioError, Interrupted, StorageError, UsageError
from gsio.frames.block import Block, BlockPool
from gsio.frames.content import Content
from gsio.reader import open_stack
from gsio.reader.verify import problems
from gsio.run import checkpoints
from gsio.run.initial import initial_state
from gsio.run.pipeline import Pipeline
from gsio.run.plan import encoding_threads, layout_of, pool_size
from gsio.run.progress import Progress
from gsio.run.simulate import last_frame
from gsio.testing import KeepingWriter, small_blocks
from gsio.trace import Trace
from gsio.writer.hdf5 import open_writer
from gsio.writer.journal import Journal
from gsio.writer.protocol import Target, Writer
from gsio.writer.session import Session

Make = Callable[..., Config]
WORK = "gsio/run/pipeline.py", "gsio/writer/session.py"
ONE_FRAME_A_BLOCK = {"grid.rows": 1024, "grid.cols": 1536, "run.frames": 12, "run.steps_per_frame": 1}


@pytest.fixture(autouse=True)
def many_blocks() -> None:
    """Have several blocks in a short run."""
    small_blocks(block_bytes=8 << 20, chunk_bytes=4 << 20)


class CountingSolver:
    """The reference, counting the blocks it fills."""

    backend = device = "counting"

    def __init__(self, config: Config) -> None:
        solver = reference.solver(config, layout_of(config), initial_state(config))
        self.backend = solver.backend
        self.advance, self.snapshot, self._fill = solver.advance, solver.snapshot, solver.fill
        self.allocate, self.wait = solver.allocate, solver.wait
        self.filled = 0
        self.before_fill: Callable[[Block], object] = lambda block: None

    def fill(self, block: Block) -> None:
        self.before_fill(block)
        self.filled += 1
        self._fill(block)


def new_pipeline(
    config: Config, writer: Writer, *, blocks: int = 3, threads: int = 2
) -> tuple[Pipeline, CountingSolver]:
    solver = CountingSolver(config)
    pool = BlockPool(layout_of(config), blocks, solver.allocate)
    return Pipeline(config, solver, Session(writer, pool, Trace(), threads)), solver


def working_threads() -> list[str]:
    """Return the functions of gsio.run.pipeline and gsio.writer.session that some thread is in."""
    return [
        frame.f_code.co_name
        for identifier, frame in sys._current_frames().items()
        if identifier != threading.get_ident() and frame.f_code.co_filename.endswith(WORK)
    ]


def intact_frames(path: Path) -> int:
    """Return the number of committed frames after checking each against its checksum."""
    with h5py.File(path) as file:
        committed = len(file["v"])
        assert len(file["time"]) == committed
        for frame in range(committed):
            values = file["v"][frame].reshape(-1).view(np.uint8)
            staged = values if file["v"].compression is None else np.ascontiguousarray(values.reshape(-1, 4).T)
            assert crc32c.crc32c(staged) == file["integrity/crc32c"][frame]
    return committed


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("compression", ["deflate", "none"])
def test_frames_are_the_same_for_any_number_of_threads(
    threads: int, compression: str, make_config: Make, tmp_path: Path
) -> None:
    changes = {"output.compression": compression, "initial.kind": "noise", "run.frames": 40}
    gsio.simulate(make_config(changes), tmp_path / "one.h5")
    gsio.simulate(make_config(changes | {"output.threads": threads, "run.backend": "numpy"}), tmp_path / "many.h5")
    with h5py.File(tmp_path / "one.h5") as one, h5py.File(tmp_path / "many.h5") as many:
        np.testing.assert_array_equal(one["v"], many["v"])
        np.testing.assert_array_equal(one["integrity/crc32c"], many["integrity/crc32c"])


def test_a_slow_writer_bounds_what_is_computed_ahead_and_loses_nothing(make_config: Make) -> None:
    config, writer, full = make_config(ONE_FRAME_A_BLOCK), KeepingWriter(), threading.Event()
    pipeline, solver = new_pipeline(config, writer, blocks=3)
    ahead = []

    def before_fill(block: Block) -> None:
        ahead.append(solver.filled + 1 - len(writer.committed))
        if solver.filled + 1 == 3:
            full.set()

    solver.before_fill = before_fill
    writer.before_commit = lambda blocks: full.wait(DEADLINE)
    pipeline.run()
    assert full.is_set()
    assert writer.committed == list(range(12))
    assert max(ahead) == 3
    assert writer.status == "complete"


def test_frames_encoded_out_of_order_are_committed_in_order(make_config: Make) -> None:
    config, writer, later = make_config(ONE_FRAME_A_BLOCK), KeepingWriter(), threading.Event()
    pipeline, _ = new_pipeline(config, writer)
    writer.before_encode = lambda block: later.wait(DEADLINE) if block.first == 0 else later.set()
    pipeline.run()
    assert later.is_set()
    assert writer.committed == list(range(12))


@pytest.mark.parametrize("failing", ["encode", "commit"])
def test_a_failing_writer_ends_the_run_with_the_frames_before_it(failing: str, make_config: Make) -> None:
    config, writer = make_config(ONE_FRAME_A_BLOCK), KeepingWriter()
    pipeline, _ = new_pipeline(config, writer)

    def fail(first: int) -> None:
        if first >= 5:
            raise OSError(errno.EIO, "Input/output error")

    writer.before_encode = lambda block: fail(block.first) if failing == "encode" else None
    writer.before_commit = lambda blocks: fail(blocks[-1].first) if failing == "commit" else None
    with pytest.raises(StorageError, match="Input/output error") as error:
        pipeline.run()
    assert error.value.exit_code == 74
    assert "\n" not in str(error.value)
    assert writer.committed == list(range(len(writer.committed)))
    assert len(writer.committed) <= 5
    assert f"; {len(writer.committed)} frames are committed" in str(error.value)
    assert writer.status == "failed"
    assert working_threads() == []


def test_a_failing_close_is_a_storage_error(make_config: Make) -> None:
    writer = KeepingWriter()
    pipeline, _ = new_pipeline(make_config(), writer)

    def fail(status: str) -> None:
        raise OSError(errno.EIO, "Input/output error")

    writer.before_close = fail
    with pytest.raises(StorageError):
        pipeline.run()
    assert writer.committed == [0, 1, 2, 3, 4]


def test_a_failing_solver_keeps_the_frames_before_it(make_config: Make) -> None:
    config, writer = make_config(ONE_FRAME_A_BLOCK), KeepingWriter()
    pipeline, solver = new_pipeline(config, writer)

    def before_fill(block: Block) -> None:
        if block.first == 7:
            raise ValueError("device lost")

    solver.before_fill = before_fill
    with pytest.raises(ValueError, match="device lost"):
        pipeline.run()
    assert writer.committed == list(range(7))
    assert writer.status == "failed"
    assert working_threads() == []


def test_the_file_of_a_failed_run_opens_with_what_was_committed(make_config: Make, tmp_path: Path) -> None:
    config = make_config(ONE_FRAME_A_BLOCK)
    writer = open_writer(
        Target(tmp_path / "run.h5", Content.of(config), layout_of(config), {}, Journal(tmp_path / "run.h5"), Trace())
    )

    def fail(blocks: Sequence[Block]) -> None:
        if blocks[-1].first >= 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        writer.commit(blocks)

    broken = KeepingWriter()
    broken.encode, broken.commit, broken.close = writer.encode, fail, writer.close  # type: ignore[method-assign]
    pipeline, _ = new_pipeline(config, broken)
    with pytest.raises(StorageError, match="No space left"):
        pipeline.run()
    assert intact_frames(tmp_path / "run.h5") == pipeline.session.frames_committed <= 4
    with h5py.File(tmp_path / "run.h5") as file:
        assert file.attrs["status"] == b"failed"


@pytest.mark.parametrize("compression", ["deflate", "none"])
def test_the_first_non_finite_frame_is_not_committed(compression: str, make_config: Make, tmp_path: Path) -> None:
    start = np.full((12, 17), 0.5)
    start[5, 5] = 30.0  # large enough for u v² to run away within a few steps
    np.savez(tmp_path / "start.npz", u=np.ones_like(start), v=start)
    config = make_config({
        "initial.kind": "file", "initial.path": str(tmp_path / "start.npz"), "output.compression": compression,
        "run.steps_per_frame": 1, "run.frames": 50,
    })  # fmt: skip
    solver = reference.solver(config, layout_of(config), initial_state(config))
    finite = -1
    with np.errstate(over="ignore"):
        while np.isfinite(fields(solver)[1].astype(np.float32)).all():
            solver.advance(1)
            finite += 1
    assert finite > 1
    with pytest.raises(DivergenceError, match=f"frame {finite}, step {finite + 1};") as error:
        gsio.simulate(config, tmp_path / "run.h5")
    assert error.value.exit_code == 70
    assert intact_frames(tmp_path / "run.h5") == finite


def test_a_program_that_says_nothing_about_logging_hears_nothing(
    make_config: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    structlog.reset_defaults()
    gsio.simulate(make_config(), tmp_path / "run.h5")
    assert capsys.readouterr() == ("", "")


def test_watch_sees_the_progress(make_config: Make, tmp_path: Path) -> None:
    seen: list[Progress] = []
    summary = gsio.simulate(make_config(), tmp_path / "run.h5", watch=seen.append)
    assert seen
    assert (seen[0].frames_total, seen[0].first, seen[0].cells) == (5, 0, 12 * 17)
    assert all(0 <= now.frames_committed <= 5 for now in seen)
    assert summary is not None
    assert summary.frames == 5


def test_a_watch_stops_a_run_whose_frames_are_safe(make_config: Make, tmp_path: Path) -> None:
    def watch(progress: Progress) -> None:
        if progress.frames_committed:
            raise Interrupted("enough")

    with pytest.raises(Interrupted, match="enough"):
        gsio.simulate(make_config({"run.frames": 1_000_000_000}), tmp_path / "run.h5", watch=watch)
    with open_stack(tmp_path / "run.h5") as stack:
        assert (stack.attributes["status"], checkpoints.load(stack.path)[0].frames) == ("stopped", stack.frames)


def test_a_watch_that_fails_ends_the_run(make_config: Make) -> None:
    config, writer = make_config({"run.frames": 1_000_000_000}), KeepingWriter()
    pipeline, _ = new_pipeline(config, writer)

    def watch(progress: Progress) -> None:
        raise ValueError("no display")

    with pytest.raises(ValueError, match="no display"):
        pipeline.run([watch])
    assert writer.status in ("failed", "stopped")
    assert writer.committed == list(range(len(writer.committed)))
    assert working_threads() == []


def test_the_summary_adds_up(make_config: Make, tmp_path: Path) -> None:
    summary = gsio.simulate(make_config(), tmp_path / "run.h5")
    assert (summary.frames, summary.cells, summary.nbytes_in) == (5, 5 * 3 * 12 * 17, 5 * 12 * 17 * 4)
    assert summary.nbytes_out == (tmp_path / "run.h5").stat().st_size
    assert 0 < summary.compute_seconds <= summary.loop_seconds <= summary.wall_seconds
    assert summary.bottleneck in ("compute", "encode", "write")
    assert 0 <= summary.hidden <= 1


@pytest.mark.parametrize(
    ("memory", "blocks"), [("20MiB", 2), ("48 MiB", 5), ("64MB", 7), ("0.5GiB", 12), ("1.5GB", 12)]
)
def test_memory_sizes_the_pool(memory: str, blocks: int, make_config: Make) -> None:
    config = make_config({**ONE_FRAME_A_BLOCK, "grid.cols": 2048, "output.memory": memory})  # blocks of 8 MiB
    assert pool_size(config, layout_of(config)) == blocks


@pytest.mark.parametrize("memory", ["16MiB", "1 MB", "512", "1TiB", "much", "-1GB"])
def test_a_memory_that_cannot_be_used_is_refused(memory: str, make_config: Make, tmp_path: Path) -> None:
    config = make_config({**ONE_FRAME_A_BLOCK, "grid.cols": 2048, "output.memory": memory})
    with pytest.raises(UsageError, match=r"output\.memory: expected"):
        gsio.simulate(config, tmp_path / "run.h5")
    assert list(tmp_path.iterdir()) == []


def test_the_pool_is_no_larger_than_the_run(make_config: Make) -> None:
    short = make_config({**ONE_FRAME_A_BLOCK, "run.frames": 2, "output.threads": 16})
    long = make_config({**ONE_FRAME_A_BLOCK, "run.frames": 1000, "output.threads": 16})
    assert pool_size(short, layout_of(short)) == 2
    assert pool_size(long, layout_of(long)) == 20


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 2), (4, 4), (16, 8), (64, 20)])
def test_threads_that_only_write_take_some_of_many_cores(
    cores: int, threads: int, make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gsio.run.plan.usable_cores", lambda: cores)

    def threads_for(backend: str, **output: Any) -> int:
        config = make_config({"run.backend": backend} | {f"output.{key}": value for key, value in output.items()})
        return encoding_threads(config, layout_of(config, backend))

    assert threads_for("cupy", compression="lz4") == threads  # which a GPU makes
    assert threads_for("cupy", compression="zstd") == threads_for("numba", compression="lz4") == cores
    assert threads_for("cupy", compression="lz4", threads=5) == 5


def test_a_pool_of_small_blocks_holds_as_many_bytes(make_config: Make) -> None:
    size = {"grid.rows": 512, "grid.cols": 512, "run.frames": 1000, "output.threads": 16}
    whole, small = make_config({**size, "run.steps_per_frame": 1}), make_config({**size, "run.steps_per_frame": 1000})
    assert (layout_of(whole).frames_per_block, layout_of(small).frames_per_block) == (8, 2)
    assert (pool_size(whole, layout_of(whole)), pool_size(small, layout_of(small))) == (20, 60)  # 3 × 2 MiB in 8 MiB


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_stops_the_run_with_what_is_computed(number: int, make_config: Make) -> None:
    config, writer = make_config({"run.frames": 1_000_000_000, "grid.rows": 512, "grid.cols": 512}), KeepingWriter()
    pipeline, solver = new_pipeline(config, writer)
    solver.before_fill = lambda block: os.kill(os.getpid(), number) if solver.filled == 3 else None
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=signal.Signals(number).name) as error:
        pipeline.run()
    assert signal.getsignal(number) is before
    assert error.value.exit_code == 75
    assert len(writer.committed) == pipeline.session.frames_committed == solver.filled * 8
    assert writer.status == "stopped"
    assert working_threads() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_that_was_ignored_stays_ignored(number: int, make_config: Make) -> None:
    config, writer = make_config(ONE_FRAME_A_BLOCK), KeepingWriter()
    pipeline, solver = new_pipeline(config, writer)
    solver.before_fill = lambda block: os.kill(os.getpid(), number)
    before = signal.signal(number, signal.SIG_IGN)
    try:
        pipeline.run()
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)
    assert (writer.committed, writer.status) == (list(range(12)), "complete")


@pytest.mark.parametrize("threads", range(5))
@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()])
def test_a_run_that_cannot_start_all_its_threads_ends(
    threads: int, error: Exception, make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, writer = make_config(ONE_FRAME_A_BLOCK), KeepingWriter()
    pipeline, solver = new_pipeline(config, writer, threads=3)
    left, start = threads, threading.Thread.start

    def few(thread: threading.Thread) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise error
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", few)
    with pytest.raises(GsioError, match="expected to start a thread") as raised:
        pipeline.run()
    assert raised.value.exit_code == 70
    assert (solver.filled, writer.committed, writer.status) == (0, [], "failed")
    assert working_threads() == []


def test_a_run_inside_trio_gives_what_it_gives_elsewhere(make_config: Make, tmp_path: Path) -> None:
    config, seen = make_config(), set[int]()

    async def main() -> Any:
        return gsio.simulate(config, tmp_path / "inside.h5", watch=lambda progress: seen.add(threading.get_ident()))

    assert trio.run(main).frames == 5
    gsio.simulate(config, tmp_path / "outside.h5")
    assert seen and threading.get_ident() not in seen
    with open_stack(tmp_path / "inside.h5") as inside, open_stack(tmp_path / "outside.h5") as outside:
        np.testing.assert_array_equal(inside.v[:], outside.v[:])


def test_an_error_inside_trio_is_the_one_that_ended_the_run(make_config: Make) -> None:
    writer = KeepingWriter()
    pipeline, _ = new_pipeline(make_config({"run.frames": 1000}), writer)

    def fail(blocks: Sequence[Block]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def main() -> None:
        pipeline.run()

    writer.before_commit = fail
    with pytest.raises(StorageError, match="No space left on device; 0 frames are committed"):
        trio.run(main)
    assert writer.status == "failed"
    assert working_threads() == []


def test_ctrl_c_inside_trio_stops_the_run_before_it_is_raised(make_config: Make) -> None:
    config, writer = make_config({"run.frames": 1_000_000_000, "grid.rows": 512, "grid.cols": 512}), KeepingWriter()
    pipeline, solver = new_pipeline(config, writer)
    me = threading.get_ident()
    solver.before_fill = lambda block: signal.pthread_kill(me, signal.SIGINT) if solver.filled == 3 else None

    async def main() -> None:
        pipeline.run()

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)
    assert len(writer.committed) == pipeline.session.frames_committed == solver.filled * 8 > 0
    assert writer.status == "stopped"
    assert working_threads() == []


SMALL_BLOCKS = """
import sys
from gsio.cli import main
from gsio.testing import small_blocks
small_blocks(block_bytes=8 << 20, chunk_bytes=4 << 20)
sys.exit(main())
"""


def start_gsio(*arguments: str) -> "subprocess.Popen[str]":
    """Start `gsio run` with a start that keeps it busy and many commits a second, each logged to stderr."""
    options = ["--debug", "--log-format", "json", "--backend", "numpy", "-n", "100000"]
    gsio_run = [sys.executable, "-c", SMALL_BLOCKS, "run", *options]
    return subprocess.Popen([*gsio_run, *arguments], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def wait_for_event(process: "subprocess.Popen[str]", event: str, times: int = 1) -> dict[str, Any]:
    """Read events from stderr until `event` has come `times` times."""
    assert process.stderr is not None
    for line in process.stderr:
        found = json.loads(line)
        times -= found["event"].startswith(event)
        if times == 0:
            return dict(found)
    raise AssertionError(f"the process ended before '{event}'")


@pytest.mark.parametrize("compression", ["deflate", "none"])
@pytest.mark.parametrize("commits", [1, 7])
def test_a_killed_run_leaves_every_committed_frame(compression: str, commits: int, tmp_path: Path) -> None:
    small = ["-r", "400", "-c", "300", "-n", "2000", "-e", "1", "--compression", compression]
    with start_gsio(*small, "-o", str(tmp_path / "run.h5")) as process:
        committed = wait_for_event(process, "block committed", commits)["frame"]
        process.kill()
    assert intact_frames(tmp_path / "run.h5") >= committed
    with h5py.File(tmp_path / "run.h5") as file:
        assert file.attrs["status"] == b"running"


@pytest.mark.parametrize("compression", ["lz4", "none"])
def test_a_killed_run_leaves_a_group_that_is_intact_as_far_as_it_says(compression: str, tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    small = ["-r", "400", "-c", "300", "-n", "2000", "-e", "1", "--compression", compression]
    with start_gsio(*small, "-o", str(path)) as process:
        wait_for_event(process, "block committed", 5)
        process.kill()
    with open_stack(path) as stack:
        assert 0 < stack.frames < 2000
        assert list(problems(stack)) == []
        assert stack.attributes["status"] == "running"


def test_ctrl_c_leaves_a_closed_file_and_one_line(tmp_path: Path) -> None:
    with start_gsio("-r", "400", "-c", "300", "-e", "1", "-o", str(tmp_path / "run.h5")) as process:
        wait_for_event(process, "block committed")
        process.send_signal(signal.SIGINT)
        wait_for_event(process, "stopping")
        assert process.stderr is not None
        last = process.stderr.read().splitlines()[-1]
        assert process.wait(DEADLINE) == 75
    assert last.startswith("gsio: error: stopped by SIGINT after ")
    with h5py.File(tmp_path / "run.h5") as file:
        assert file.attrs["status"] == b"stopped"
        assert f"after {len(file['v'])} of 100000 frames" in last
    intact_frames(tmp_path / "run.h5")


STUCK = """
import sys, threading
from gsio import load_config, log
from gsio.run.pipeline import Pipeline
from gsio.run.simulate import last_frame
from gsio.run.plan import layout_of
from gsio.compute.peers import numpy as reference
from gsio.run.initial import initial_state
from gsio.frames.block import BlockPool
from gsio.testing import KeepingWriter
from gsio.trace import Trace
from gsio.writer.session import Session

def hang(blocks):
    print("stuck", file=sys.stderr, flush=True)
    threading.Event().wait()

writer = KeepingWriter()
writer.before_commit = hang
log.configure("json")
config = load_config(overrides={"grid.rows": 9, "grid.cols": 9}, environ={})
solver = reference.solver(config, layout_of(config), initial_state(config))
pool = BlockPool(layout_of(config), 3, solver.allocate)
Pipeline(config, solver, Session(writer, pool, Trace(), 1)).run()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)])
def test_the_third_signal_aborts_even_a_stuck_writer(number: int, code: int) -> None:
    command = [sys.executable, "-c", STUCK]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "stuck\n"
        process.send_signal(number)
        wait_for_event(process, "stopping when")
        process.send_signal(number)
        wait_for_event(process, "stopping after")
        process.send_signal(number)
        assert process.wait(DEADLINE) == code


@pytest.mark.parametrize("compression", ["deflate", "none"])
def test_a_file_that_may_not_grow_ends_the_run_with_what_is_committed(compression: str, tmp_path: Path) -> None:
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000_000, 100_000_000))\n"
        "from gsio.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    noise = ["--set=initial.kind=noise", "--set=run.backend=numpy", "-r200", "-c300", "-n800", "-e1"]
    output = ["--compression", compression, "-o", str(tmp_path / "run.h5")]
    command = [sys.executable, "-c", limited, "run", *noise, *output]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert ended.returncode == 74
    assert "File too large" in ended.stderr.splitlines()[-1]
    committed = intact_frames(tmp_path / "run.h5")
    assert 0 < committed < 800
    assert f"; {committed} frames are committed" in ended.stderr


@pytest.mark.numba
@pytest.mark.parametrize("name", sorted(path.stem for path in (config_folder() / "presets").glob("*.toml")))
def test_every_preset_ends_in_a_living_pattern(name: str) -> None:
    v = last_frame(load_config(preset=name, overrides={"run.backend": "numba", "run.threads": 1}, environ={}))
    assert np.isfinite(v).all()
    assert v.std() > 0.03  # measured: 0.037 (beta, in whose gaps a pattern comes and goes) to 0.16; uniform: 0
