"""Spans: one context manager that is an NVTX range in the domain `gsio`, an entry of the timeline and a counter.

And the summary the counters feed.
"""

import threading
import time
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any

import nvtx

from gsio.trace.timeline import DEVICE, Interval, Timeline

# Constant names, each in the category of the resource it uses; the payload is the frame number.
CATEGORIES = {
    "loop": "run",
    "advance": "compute",
    "wait_block": "compute",
    "stage": "d2h",
    "encode": "io",
    "write": "io",
    "commit": "io",
    "checkpoint": "io",
}


def placed(name: str) -> AbstractContextManager[object]:
    """Return an NVTX range that names the GPU or rank for which a thread works inside it; "": there is only one."""
    return nvtx.annotate(name, domain="gsio", category="run") if name else nullcontext()


class Counter:
    """How long something was going on: as a union over threads, and summed over threads."""

    def __init__(self) -> None:
        self.busy = 0.0  # seconds in which at least one thread was inside
        self.total = 0.0  # thread-seconds
        self._inside = 0
        self._counted = 0.0  # until when
        self._lock = threading.Lock()

    def enter(self, now: float) -> None:
        """Count one thread in."""
        with self._lock:
            self._count(now)
            self._inside += 1

    def leave(self, since: float, now: float) -> None:
        """Count one thread out that entered at `since`."""
        with self._lock:
            self._count(now)
            self._inside -= 1

    def update(self, now: float) -> None:
        """Count the threads that are inside until `now`."""
        with self._lock:
            self._count(now)

    def _count(self, now: float) -> None:
        # Threads come a little out of order: each read its clock before it got the lock. Where `now` lies before
        # `_counted`, what was counted too much is taken back.
        seconds, self._counted = now - self._counted, now
        self.total += self._inside * seconds
        self.busy += seconds if self._inside else 0.0


class Entry:
    """An interval of a timeline, told like a counter when it begins and ends."""

    __slots__ = ("_frame", "_name", "_timeline")

    def __init__(self, timeline: Timeline, name: str, frame: int) -> None:
        self._timeline = timeline
        self._name = name
        self._frame = frame

    def enter(self, now: float) -> None:
        """Do nothing: `leave` is told the begin again."""

    def leave(self, since: float, now: float) -> None:
        """Keep what this thread did from `since` until `now`."""
        self._timeline.add(Interval(self._name, threading.get_native_id(), self._frame, since, now))


class Trace:
    """The spans and counters of one run.

    Attributes
    ----------
    timeline
        Where the spans are kept, or None if nobody asked for them.
    advance, wait, encode, write, io
        The orders to compute a block, or computing it; computing that waits for a block; encoding; writing and
        committing; the last two together.
    """

    def __init__(self, timeline: Timeline | None = None) -> None:
        self.timeline = timeline
        self._domain = nvtx.get_domain("gsio")
        self.advance, self.wait = Counter(), Counter()
        self.encode, self.write, self.io = Counter(), Counter(), Counter()
        self._counters: dict[str, tuple[Counter, ...]] = {
            "advance": (self.advance,),
            "wait_block": (self.wait,),
            "encode": (self.encode, self.io),
            "write": (self.write, self.io),
            "commit": (self.write, self.io),
        }

    def span(self, name: str, frame: int) -> "Span":
        """Return the context manager of one of `CATEGORIES`, for the block that begins at `frame`."""
        attributes = self._domain.get_event_attributes(name, category=CATEGORIES[name], payload=frame)
        counters: tuple[Counter | Entry, ...] = self._counters.get(name, ())
        if self.timeline is not None:
            counters = (*counters, Entry(self.timeline, name, frame))
        return Span(self._domain, attributes, counters)

    def update(self) -> None:
        """Let the counters have the spans that go on, up to now."""
        now = time.perf_counter()
        for counter in (self.advance, self.wait, self.encode, self.write, self.io):
            counter.update(now)

    def device(self, name: str, frame: int, begin: float, seconds: float, number: int = 0) -> None:
        """Keep what a device of the run did, `compute` or `copy`, if it told when (`begin` is not 0)."""
        if self.timeline is not None and begin:
            self.timeline.add(Interval(name, DEVICE - number, frame, begin, begin + seconds))


class Span:
    """One range on the current thread; made by `Trace.span`."""

    __slots__ = ("_attributes", "_counters", "_domain", "_since")

    def __init__(self, domain: Any, attributes: Any, counters: tuple[Counter | Entry, ...]) -> None:
        self._domain = domain
        self._attributes = attributes
        self._counters = counters
        self._since = 0.0

    def __enter__(self) -> None:
        self._domain.push_range(self._attributes)
        self._since = time.perf_counter()
        for counter in self._counters:
            counter.enter(self._since)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        now = time.perf_counter()
        for counter in self._counters:
            counter.leave(self._since, now)
        self._domain.pop_range()
