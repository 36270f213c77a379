"""The beginning of writes to the disk while a loop still runs, so that little is left for the sync at the end."""

import ctypes
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

from gsio.files import LIBC

# The least time between two beginnings: a fast run into the page cache would lose a third of its speed to more of them.
PAUSE_SECONDS = 0.25


class Writeback:
    """Lets the disk begin to write files.

    It has a thread of its own, because the call waits while the disk is busy; that took half of the time of a writer.
    """

    def __init__(self, begin: Callable[[], object]) -> None:
        """Let `start` call `begin`, at most once in `PAUSE_SECONDS`."""
        self._begin = begin
        self._thread = ThreadPoolExecutor(1)
        self._started: Future[object] | None = None
        self._due = time.monotonic() + PAUSE_SECONDS

    def start(self) -> None:
        """Begin, unless that was a moment ago, or the call before has not yet returned."""
        if (self._started is None or self._started.done()) and time.monotonic() >= self._due:
            self._due = time.monotonic() + PAUSE_SECONDS
            with suppress(RuntimeError):  # no thread can be started: the disk begins later
                self._started = self._thread.submit(self._begin)

    def end(self) -> None:
        """Wait for the thread; called before the files are closed."""
        self._thread.shutdown()


def begin_to_write(fd: int) -> None:
    """Let the disk begin to write a file, which is only a hint."""
    write = 2  # SYNC_FILE_RANGE_WRITE: start, do not wait
    if hasattr(LIBC, "sync_file_range"):
        LIBC.sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(0), write)
