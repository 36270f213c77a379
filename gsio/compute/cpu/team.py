"""Threads of a solver, which work on shares of one thing together."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from gsio.compute.cpu.vectors import MEETING, MEETING_NUMBERS
from gsio.errors import NO_THREAD, GsioError


class Team:
    """A number of threads: the thread that calls `run`, and others that wait for it.

    `meeting` is the argument of `meet`, with which compiled functions wait for the same place of all threads. A child
    that was forked, which has none of its parent's threads, starts threads of its own.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.meeting = np.zeros(MEETING_NUMBERS, np.int64)
        self._pid = 0

    def run(self, work: Callable[[int], None]) -> None:
        """Call `work` with each number below `threads`, each in a thread of its own, and return when all are done.

        Raises the first error of `work`, or GsioError if no thread can be started.
        """
        if self.threads == 1:
            return work(0)
        if self._pid != os.getpid():
            self._start()
        self.meeting[:] = 0
        others = [self._pool.submit(self._work, work, share) for share in range(1, self.threads)]
        try:
            self._work(work, 0)
        finally:
            errors = [error for other in others if (error := other.exception())]
        if errors:
            raise errors[0]
        return None

    def _start(self) -> None:
        self._pool = ThreadPoolExecutor(self.threads - 1, "gsio-compute")
        here = threading.Barrier(self.threads)
        try:
            for _ in range(1, self.threads):
                self._pool.submit(here.wait)  # The executor starts a thread, because all others wait.
            here.wait()
        except (RuntimeError, MemoryError):
            here.abort()
            self._pool.shutdown()
            raise GsioError(NO_THREAD) from None
        self._pid = os.getpid()

    def _work(self, work: Callable[[int], None], share: int) -> None:
        try:
            work(share)
        except BaseException:
            self.meeting[MEETING] = np.iinfo(np.int64).min  # The others shall not wait for this thread.
            raise
