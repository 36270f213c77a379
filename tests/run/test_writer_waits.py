"""FrameWriter waits only where its memory is full, and tells errors of the storage and of the loop apart."""

import errno
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from appending import (
    PLANE,
    SHAPE,
    Gate,
    frame,
    frames,
    own_threads,
    python,
    stored,
    verified,
    wait_until,
    wait_until_full,
)
from patience import DEADLINE

import gsio
from gsio.errors import GsioError, StorageError, UsageError
from gsio.testing import small_blocks

NO_SPACE = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Each test ends with the threads that it began with."""
    threads = own_threads()
    yield
    assert own_threads() <= threads


def open_gated(path: Path, **options: Any) -> gsio.FrameWriter:
    return gsio.FrameWriter(path, SHAPE, compression="gate", threads=1, **options)


def in_thread(call: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """Start a thread that calls a function; the list gets what was returned or raised."""
    found: list[object] = []

    def run() -> None:
        try:
            found.append(call())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, found


def state_of(path: Path) -> str:
    """What the status file has of a writer that left its journal, which repair needs."""
    assert Path(f"{path}.journal").stat().st_size > 0
    state: str = json.loads(Path(f"{path}.status.json").read_text())["state"]
    return state


def append_all(out: gsio.FrameWriter, count: int) -> None:
    for number in range(len(out), count):
        out.append(frame(number))


def test_append_waits_only_where_all_blocks_are_full(tmp_path: Path, gate: Gate) -> None:
    path = tmp_path / "run.h5"
    with open_gated(path) as out:
        append_all(out, 9)  # two blocks and a frame, of which none can be written
        assert out.waited_seconds < 0.5
        thread, found = in_thread(lambda: append_all(out, 60))
        wait_until_full(out, thread)
        assert 9 <= len(out) <= 4 * 5  # a thread that encodes has five blocks
        assert out.frames_committed == 0
        assert repr(out) == f"<gsio.FrameWriter {path}: {len(out)} frames of v, 12 × 17, open>"
        gate.open.set()
        thread.join(DEADLINE)
        assert (found, len(out)) == ([None], 60)
        assert out.waited_seconds > 0
        out.flush()
        assert out.frames_committed == 60
    np.testing.assert_array_equal(stored(path), frames(60))


@pytest.mark.parametrize("memory", [2, 3])
def test_memory_bounds_the_frames_that_wait(tmp_path: Path, gate: Gate, memory: int) -> None:
    shape = 128, 128  # 64 KiB
    with small_blocks(block_bytes=256 << 10, chunk_bytes=64 << 10):
        out = gsio.FrameWriter(tmp_path / "run.h5", shape, compression="gate", memory=f"{memory}MiB")
        out.append(np.zeros(shape, np.float32))
    thread, found = in_thread(lambda: [out.append(np.full(shape, number, np.float32)) for number in range(1, 50)])
    wait_until_full(out, thread)
    assert len(out) in range(8, (memory << 20) // (2 * 64 << 10) + 1)  # the copies of the frames count too
    gate.open.set()
    thread.join(DEADLINE)
    out.close()
    np.testing.assert_array_equal(stored(tmp_path / "run.h5")[:, 5, 5], np.arange(50))
    assert not isinstance(found[0], BaseException)


def test_less_memory_than_two_blocks_is_refused_at_the_first_frame(tmp_path: Path) -> None:
    with gsio.FrameWriter(tmp_path / "run.h5", SHAPE, memory="1MB") as out:
        with pytest.raises(UsageError, match=r"^memory: expected at least .*MiB, two blocks of frames, got 1MB"):
            out.append(frame(0))
        assert len(out) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("blocks")
def test_the_summary_has_at_most_twelve_lines_of_eighty_columns(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with gsio.FrameWriter("run.h5", SHAPE, fields="u,v") as out:
        with pytest.raises(UsageError, match="summary: expected a frame; append one first"):
            out.summary()
        for number in range(30):
            out.append(frame(number), frame(number))
        out.summary()
    summary = out.summary()
    lines = str(summary).splitlines()
    assert len(lines) <= 12 and max(map(len, lines)) <= 80
    assert (summary.frames, summary.nbytes_in) == (30, 30 * 2 * PLANE)
    assert summary.nbytes_out > 0 and summary.wall_seconds >= summary.loop_seconds > 0
    assert out.summary() == summary  # nothing goes on after the end


@pytest.mark.parametrize("error", [NO_SPACE, RuntimeError("a filter has failed")])
def test_storage_that_fails_is_an_error_of_the_next_append_and_not_of_close(
    tmp_path: Path, gate: Gate, error: Exception
) -> None:
    path = tmp_path / "run.h5"
    out = open_gated(path)
    gate.open.set()
    append_all(out, 8)
    out.flush()
    gate.error = error
    with pytest.raises(StorageError, match="8 frames are committed, and 8 of these are known to be safe") as failed:
        append_all(out, 1000)
    kept = len(out)
    assert failed.value.__cause__ is error
    for _ in range(3):
        with pytest.raises(StorageError, match="8 frames are committed"):
            out.append(frame(0))
    with pytest.raises(StorageError, match="8 frames are committed"):
        out.flush()
    with pytest.raises(StorageError, match="8 frames are committed"):
        out.save({"state": frame(0)})
    assert (len(out), out.frames_committed) == (kept, 8)
    out.close()
    out.close()
    assert state_of(path) == "failed"
    with verified(path) as stack:
        assert (stack.frames, stack.attributes["status"]) == (8, "failed")
        np.testing.assert_array_equal(stack.v[:], frames(8))


@pytest.mark.parametrize("call", [gsio.FrameWriter.flush, gsio.FrameWriter.close])
def test_storage_that_fails_late_is_an_error_of_flush_or_close_once(
    tmp_path: Path, gate: Gate, call: Callable[[gsio.FrameWriter], None]
) -> None:
    out = open_gated(tmp_path / "run.h5")
    out.append(frame(0))
    gate.error = NO_SPACE
    gate.open.set()
    with pytest.raises(StorageError, match="No space left on device; 0 frames are committed"):
        call(out)
    with pytest.raises((StorageError, UsageError)):
        out.append(frame(1))
    out.close()


def test_another_error_of_a_codec_is_raised_as_it_is(tmp_path: Path, gate: Gate) -> None:
    gate.error = ZeroDivisionError("a bug of the codec")
    gate.open.set()
    out = open_gated(tmp_path / "run.h5")
    with pytest.raises(ZeroDivisionError, match="a bug of the codec"):
        append_all(out, 1000)
    with pytest.raises(ZeroDivisionError):
        out.append(frame(0))
    out.close()


def test_an_append_that_waits_hears_of_an_error(tmp_path: Path, gate: Gate) -> None:
    out = open_gated(tmp_path / "run.h5")
    append_all(out, 4)
    thread, found = in_thread(lambda: append_all(out, 1000))
    wait_until_full(out, thread)
    gate.error = NO_SPACE
    gate.open.set()
    thread.join(DEADLINE)
    assert isinstance(found[0], StorageError)
    out.close()


@pytest.mark.parametrize("ending", [".h5", ".zarr"])
@pytest.mark.usefixtures("blocks")
def test_an_error_of_the_loop_commits_what_was_appended(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"run{ending}"
    with pytest.raises(ValueError, match="of the loop"), gsio.FrameWriter(path, SHAPE) as out:
        append_all(out, 10)
        raise ValueError("of the loop")
    assert (len(out), out.frames_committed) == (10, 10)
    with verified(path) as stack:
        assert (stack.frames, stack.attributes["status"]) == (10, "stopped")
        np.testing.assert_array_equal(stack.v[:], frames(10))


def test_the_error_of_the_loop_goes_before_one_of_the_storage(
    tmp_path: Path, gate: Gate, capsys: pytest.CaptureFixture[str]
) -> None:
    gate.error = NO_SPACE
    gate.open.set()
    with pytest.raises(ValueError, match="of the loop"), open_gated(tmp_path / "run.h5") as out:
        out.append(frame(0))
        raise ValueError("of the loop")
    assert "No space left on device; 0 frames are committed" in capsys.readouterr().err


def test_ctrl_c_in_an_append_that_waits_loses_no_frame(tmp_path: Path, gate: Gate) -> None:
    path, main = tmp_path / "run.h5", threading.main_thread()

    def interrupt() -> None:
        wait_until_full(out, main)
        os.kill(os.getpid(), signal.SIGINT)
        wait_until(lambda: out in stopping)
        gate.open.set()

    stopping: list[gsio.FrameWriter] = []
    out = open_gated(path)
    thread, found = in_thread(interrupt)
    with pytest.raises(KeyboardInterrupt), out:
        try:
            append_all(out, 1000)
        finally:
            stopping.append(out)
    thread.join(DEADLINE)
    assert found == [None]
    assert out.frames_committed == len(out) < 1000
    with verified(path) as stack:
        assert stack.attributes["status"] == "stopped"
        np.testing.assert_array_equal(stack.v[:], frames(len(out)))


@pytest.mark.parametrize("call", [gsio.FrameWriter.flush, gsio.FrameWriter.close])
def test_a_signal_handler_cannot_call_a_writer_that_waits_in_append(
    tmp_path: Path, gate: Gate, call: Callable[[gsio.FrameWriter], None]
) -> None:
    main, ended = threading.main_thread(), threading.Event()

    def interrupt() -> None:
        wait_until_full(out, main)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert ended.wait(DEADLINE)
        gate.open.set()

    out = open_gated(tmp_path / "run.h5")
    before = signal.signal(signal.SIGUSR1, lambda *_: call(out))
    try:
        thread, found = in_thread(interrupt)
        with pytest.raises(UsageError, match="a signal handler called the writer inside another call"):
            append_all(out, 1000)
        ended.set()
        out.close()
    finally:
        signal.signal(signal.SIGUSR1, before)
        thread.join(DEADLINE)
    assert found == [None]
    np.testing.assert_array_equal(stored(out.path), frames(len(out)))


def test_ctrl_c_in_close_drops_what_is_not_written_yet(tmp_path: Path, gate: Gate) -> None:
    path = tmp_path / "run.h5"

    def interrupt() -> None:
        wait_until(gate.entered.is_set)
        wait_until(lambda: closing)
        os.kill(os.getpid(), signal.SIGINT)
        wait_until(lambda: handled)
        gate.open.set()

    closing: list[bool] = []
    handled: list[bool] = []
    before = signal.signal(signal.SIGINT, lambda *_: (handled.append(True), signal.default_int_handler(*_)))
    try:
        out = open_gated(path)
        append_all(out, 12)
        thread, found = in_thread(interrupt)
        closing.append(True)
        with pytest.raises(KeyboardInterrupt):
            out.close()
        thread.join(DEADLINE)
    finally:
        signal.signal(signal.SIGINT, before)
    assert found == [None]
    out.close()
    with verified(path) as stack:
        assert stack.frames < 12
        np.testing.assert_array_equal(stack.v[:], frames(12)[: stack.frames])


@pytest.mark.parametrize("ending", [".h5", ".zarr"])
def test_a_full_disk_is_an_error_with_the_number_of_frames_that_are_safe(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"run{ending}"
    code = """
import os, resource, signal
from gsio.errors import StorageError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path, frame = Path(sys.argv[1]), np.zeros((500, 500), np.float32)
out = gsio.FrameWriter(path, frame.shape, compression="none")
try:
    for number in range(200):
        if number == 5:  # each chunk of Zarr is a file
            largest = path.stat().st_size + 5_000_000 if path.is_file() else 100_000
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))
        out.append(frame + number)
        out.flush()
except StorageError as error:
    print(error)
out.close()
print(len(own_threads()), out.frames_committed)
"""
    program = python(code, path)
    said, errors = program.communicate(timeout=DEADLINE)
    assert program.returncode == 0, errors
    line, last = said.splitlines()
    threads, committed = map(int, last.split())
    assert f"storage failed: File too large; {committed} frames are committed" in line
    assert threads == 1 and 5 <= committed < 200
    assert state_of(path) == "failed"
    with verified(path) as stack:
        assert stack.frames == committed
        np.testing.assert_array_equal(stack.v[:][:, 3, 3], np.arange(committed))


@pytest.mark.parametrize("ending", [".h5", ".zarr"])
def test_ctrl_c_at_any_place_loses_no_frame_and_counts_none_twice(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"run{ending}"
    code = """
import random, signal
armed, kept, between = False, [], []

def interrupt(*_):
    if armed:
        raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
small_blocks(block_bytes=2 * 4 * 64, chunk_bytes=4 * 64)
out = gsio.FrameWriter(sys.argv[1], (8, 8), memory="64MiB")
out.append(np.zeros((8, 8)))
for number in range(1, 600):
    signal.setitimer(signal.ITIMER_REAL, random.Random(number).uniform(1e-6, 150e-6))
    try:
        armed = True
        out.append(np.full((8, 8), float(number)))
        armed = False
        kept.append(number)
    except KeyboardInterrupt:
        armed = False
        between.append(number)
    if number % 100 == 0:
        out.flush()
signal.setitimer(signal.ITIMER_REAL, 0)
out.close()
print([kept, between, len(out)])
"""
    program = python(code, path)
    said, errors = program.communicate(timeout=DEADLINE)
    assert program.returncode == 0, errors
    kept, between, length = json.loads(said)
    with verified(path) as stack:
        found = stack.v[:][1:, 3, 3].tolist()
        np.testing.assert_array_equal(stack.times, np.arange(length))
    assert found == sorted(set(found))
    assert between and set(kept) <= set(found) <= {*kept, *between}


def test_a_system_that_allows_no_more_threads_is_an_error_that_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(thread: threading.Thread) -> None:
        if thread.name == "watch":
            raise RuntimeError("can't start new thread")
        really(thread)

    really = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", start)
    with gsio.FrameWriter(tmp_path / "run.h5", SHAPE) as out:
        with pytest.raises(GsioError, match="expected to start a thread, but the system allows no more"):
            out.append(frame(0))
        assert len(out) == 0
