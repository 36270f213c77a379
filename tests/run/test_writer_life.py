"""FrameWriter lives in any program: its threads, its signals, its event loop, its end; and what a flush promises."""

import asyncio
import gc
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import psutil
import pytest
import trio
from appending import ENDINGS, SHAPE, frame, frames, own_threads, python, stored, verified, wait_until
from patience import DEADLINE

import gsio
from gsio.errors import UsageError
from gsio.frames.block import Block
from gsio.writer.journal import read_journal

pytestmark = pytest.mark.usefixtures("blocks")


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Each test ends with the threads that it began with."""
    threads = own_threads()
    yield
    assert own_threads() <= threads


def committed(path: Path) -> int:
    """The number of frames that a watcher sees."""
    records = read_journal(path)
    return 0 if records is None else len(records.frames)


@ENDINGS
def test_asyncio_trio_and_threads_append_as_plain_code_does(tmp_path: Path, ending: str) -> None:
    async def loop(path: Path, pause: object) -> None:
        with gsio.FrameWriter(path, SHAPE) as out:
            for number in range(9):
                out.append(frame(number))
                await pause(0)  # type: ignore[operator]

    paths = [tmp_path / f"{name}{ending}" for name in ("asyncio", "trio", "thread")]
    with ThreadPoolExecutor(1) as apart:  # the tests of the page leave a loop of asyncio in this thread
        apart.submit(asyncio.run, loop(paths[0], asyncio.sleep)).result()
    trio.run(loop, paths[1], trio.sleep)
    thread = threading.Thread(target=trio.run, args=(loop, paths[2], trio.sleep))
    thread.start()
    thread.join()
    for path in paths:
        np.testing.assert_array_equal(stored(path), frames(9))


def test_the_frames_of_several_threads_are_in_the_order_of_the_calls(tmp_path: Path) -> None:
    path, calls = tmp_path / "run.h5", threading.Lock()
    expected: list[float] = []
    with gsio.FrameWriter(path, SHAPE) as out, ThreadPoolExecutor(6) as pool:
        out.append(np.full(SHAPE, -1.0))

        def run(thread: int) -> None:
            for number in range(20):
                if thread < 3:  # a lock tells the order of these calls
                    with calls:
                        expected.append(100.0 * thread + number)
                        out.append(np.full(SHAPE, expected[-1]), time=expected[-1])
                else:
                    out.append(np.full(SHAPE, 100.0 * thread + number), time=100 * thread + number)
                if number % 7 == 0:
                    out.flush()

        list(pool.map(run, range(6)))
    assert len(out) == 121
    with verified(path) as stack:
        found = stack.v[:][:, 3, 3]
        np.testing.assert_array_equal(found[1:], stack.times[1:])
    assert [value for value in found if 0 <= value < 300] == expected
    for thread in range(6):
        assert [value for value in found if value // 100 == thread] == [100 * thread + k for k in range(20)]


def test_ten_writers_work_at_once(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}{'.h5' if number % 2 else '.zarr'}" for number in range(10)]
    with ExitStack() as opened:
        writers = [opened.enter_context(gsio.FrameWriter(path, SHAPE, threads=2)) for path in paths]
        for number in range(9):
            for place, out in enumerate(writers):
                out.append(frame(number + place))
    for place, path in enumerate(paths):
        np.testing.assert_array_equal(stored(path), frames(9 + place)[place:])


@ENDINGS
def test_a_cell_that_runs_twice_is_told_who_has_the_output(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"run{ending}"
    out = gsio.FrameWriter(path, SHAPE, overwrite=True)
    for number in range(5):
        with pytest.raises(
            UsageError, match=r"^path: (another run|this process) writes .*run\.\w+'.*, or choose another$"
        ) as told:
            gsio.FrameWriter(path, SHAPE, overwrite=True)
        assert "\n" not in str(told.value)
        out.append(frame(number))
    with pytest.raises(UsageError, match=r"^path: .* exists; .* or pass resume='auto' or overwrite=True$"):
        gsio.FrameWriter(path, SHAPE)
    out.flush()
    wait_until(lambda: Path(f"{path}.status.json").exists())
    with pytest.raises(UsageError, match=r"this process writes .*run\.\w+' already; close that writer, or"):
        gsio.FrameWriter(path, SHAPE, overwrite=True)
    out.close()
    np.testing.assert_array_equal(stored(path), frames(5))
    with gsio.FrameWriter(path, SHAPE, overwrite=True) as out:
        out.append(frame(7))
    np.testing.assert_array_equal(stored(path), [frame(7)])


@ENDINGS
def test_a_writer_leaves_signals_alone_and_nothing_behind(tmp_path: Path, ending: str) -> None:
    def use(number: int) -> weakref.ref[gsio.FrameWriter]:
        out = gsio.FrameWriter(tmp_path / f"run-{number}{ending}", SHAPE)
        for place in range(22):
            out.append(frame(place))
        assert {one: signal.getsignal(one) for one in signal.valid_signals()} == handlers
        out.save([frame(0)])
        out.flush()
        out.close()
        out.close()
        return weakref.ref(out)

    def blocks() -> int:
        gc.collect()
        return sum(isinstance(found, Block) for found in gc.get_objects())

    handlers = {one: signal.getsignal(one) for one in signal.valid_signals()}
    use(0)  # imports, and threads of zarr-python
    before, files, threads = blocks(), psutil.Process().num_fds(), own_threads()
    left = [use(number) for number in range(1, 6)]
    assert blocks() <= before
    assert [found() for found in left] == [None] * 5
    assert psutil.Process().num_fds() == files
    assert own_threads() == threads


def test_a_writer_that_is_closed_refuses_more(tmp_path: Path) -> None:
    with gsio.FrameWriter(tmp_path / "run.h5", SHAPE) as out:
        out.append(frame(0))
    for call in (lambda: out.append(frame(1)), out.flush, lambda: out.save({})):
        with pytest.raises(UsageError, match=r"run\.h5' is closed; expected an open writer"):
            call()
    out.close()
    assert repr(out) == f"<gsio.FrameWriter {tmp_path / 'run.h5'}: 1 frames of v, 12 × 17, closed>"
    assert (len(out), out.frames_committed, out.checkpoint) == (1, 1, None)


def test_a_writer_without_a_frame_leaves_nothing(tmp_path: Path) -> None:
    with gsio.FrameWriter(tmp_path / "run.h5", SHAPE) as out:
        out.flush()
        with pytest.raises(UsageError, match="save: expected a frame before the first state"):
            out.save({})
    assert (len(out), out.frames_committed, out.waited_seconds) == (0, 0, 0)
    assert list(tmp_path.iterdir()) == []


ENDS = {
    "end": ("", 0, "stopped"),
    "exit": ("sys.exit(5)", 5, "stopped"),
    "error": ("raise LookupError('of the loop')", 1, "stopped"),
    "exit in with": ("with out: sys.exit(5)", 5, "stopped"),
    "close": ("out.close()", 0, "complete"),
}


@ENDINGS
@pytest.mark.parametrize("end", ENDS)
def test_the_end_of_the_program_closes_a_writer(tmp_path: Path, ending: str, end: str) -> None:
    path, (last, code, status) = tmp_path / f"run{ending}", ENDS[end]
    program = python(
        f"small_blocks()\nout = gsio.FrameWriter({str(path)!r}, SHAPE)\n"
        f"for number in range(10):\n    out.append(frame(number))\n{last}\n"
    )
    said, errors = program.communicate(timeout=DEADLINE)
    assert (program.returncode, said) == (code, "")
    told = f"gsio: '{path}' was not closed by the program; 10 frames are safe"
    assert (told in errors.splitlines()) == (end in ("end", "exit", "error"))
    with verified(path) as stack:
        assert stack.attributes["status"] == status
        np.testing.assert_array_equal(stack.v[:], frames(10))


@ENDINGS
def test_frames_are_durable_when_flush_returns(tmp_path: Path, ending: str) -> None:
    """Also in the middle of a chunk, and again and again."""
    path = tmp_path / f"run{ending}"
    program = python(f"""
import os, signal
small_blocks(block_bytes=20 * PLANE, chunk_bytes=7 * PLANE)
out = gsio.FrameWriter({str(path)!r}, SHAPE)
for number in range(23):
    out.append(frame(number))
    if number != 1:
        out.flush()
        assert out.frames_committed == number + 1
print("flushed", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
""")
    said, errors = program.communicate(timeout=DEADLINE)
    assert (said, program.returncode) == ("flushed\n", -signal.SIGKILL), errors
    with verified(path) as stack:
        assert stack.attributes["status"] == "running"
        np.testing.assert_array_equal(stack.v[:], frames(23))
    np.testing.assert_array_equal(stored(path), frames(23))
    assert committed(path) == 23


@ENDINGS
def test_a_frame_waits_at_most_about_a_second_for_others(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"run{ending}"
    with gsio.FrameWriter(path, SHAPE) as out:
        for number in range(3):
            began = time.monotonic()
            out.append(frame(number))
            wait_until(lambda number=number: committed(path) == number + 1)  # type: ignore[misc]
            wait_until(lambda number=number: out.frames_committed == number + 1)  # type: ignore[misc]
        assert time.monotonic() - began > 0.5  # a quick loop fills blocks instead
    np.testing.assert_array_equal(stored(path), frames(3))
