"""What a person sees while Numba compiles the solver: that it does, and how long it took the last time."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import get_ident
from typing import Any

from numba.core import event

from gsio.log import log

RECORD = "seconds to compile the CPU solver"


class _Compiling(event.Listener):
    """Calls `begin` before this thread compiles its first function; functions in Numba's cache are not compiled."""

    def __init__(self, begin: Callable[[], object]) -> None:
        self._begin, self._thread = begin, get_ident()
        self.began = False

    def on_start(self, event: Any) -> None:
        if not self.began and get_ident() == self._thread:
            self.began = True
            self._begin()

    def on_end(self, event: Any) -> None:
        """Do nothing: the next function follows."""


@contextmanager
def compiling(recall: Callable[[str], Any], remember: Callable[[str, Any], object]) -> Iterator[None]:
    """Say when functions that are called inside are compiled, and `remember` under a name how long all took."""

    def say() -> None:
        last = recall(RECORD)
        known = {"seconds_last_time": last} if isinstance(last, float) else {}
        log.info("compiling the solver for this machine", **known)

    listener, start = _Compiling(say), time.perf_counter()
    with event.install_listener("numba:compile", listener):
        yield
    if listener.began:
        seconds = round(time.perf_counter() - start, 1)
        log.info("solver compiled", seconds=seconds)
        with suppress(OSError):  # The user may have no folder for it.
            remember(RECORD, seconds)
