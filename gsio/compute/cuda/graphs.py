"""CUDA graphs of the work of a GPU, or of several GPUs that wait for one another: one order of the host starts all."""

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from cupy.cuda import Event, Stream

# The most launches in one graph. A block with more launches takes so long that the host keeps ahead without a graph.
GRAPH_LAUNCHES = 4096

State = TypeVar("State")


class Graphs:
    """Runs orders to streams, each of a device of its own, as graphs. The first device is the current one.

    A graph of several devices starts when all streams have come to it, and their later work follows all of the graph.

    Attributes
    ----------
    launched
        When the last orders began to be given to the device, in seconds of `time.perf_counter`.
    """

    launched = 0.0

    def __init__(self, streams: Sequence[tuple[Any, Stream]]) -> None:
        """Remember the streams, each with its `cupy.cuda.Device`."""
        (first, self._first), *others = streams
        with first:
            self._here = Event(disable_timing=True)
        self._others = []
        for device, stream in others:
            with device:
                self._others.append((device, stream, Event(disable_timing=True)))
        self._graphs: dict[Any, tuple[Any, Any]] = {}

    def run(self, key: Any, launches: int, order: Callable[[], State]) -> State:
        """Call `order`, which gives orders with `launches` launches, or run them again as the graph of this `key`.

        `order` returns the state after its orders, which is also returned for a graph. It is always called if there are
        too many launches for a graph. Single launches cost the host 60 µs each.
        """
        if launches > GRAPH_LAUNCHES:
            self.launched = time.perf_counter()
            return order()
        self._join()
        if key not in self._graphs:
            self._first.begin_capture()
            self._fork()
            state = order()
            self._join()
            self._graphs[key] = self._first.end_capture(), state
        graph, state = self._graphs[key]
        before = time.perf_counter()
        graph.launch(self._first)
        self.launched = (before + time.perf_counter()) / 2
        self._fork()
        return state

    def _join(self) -> None:
        """Let the first stream wait for the others."""
        for device, stream, there in self._others:
            with device:
                there.record(stream)
            self._first.wait_event(there)

    def _fork(self) -> None:
        """Let the other streams wait for the first."""
        if self._others:
            self._here.record(self._first)
        for device, stream, _ in self._others:
            with device:
                stream.wait_event(self._here)
