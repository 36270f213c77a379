"""Ranks that are threads of one process: the messages of MPI, without MPI."""

import contextvars
import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from patience import DEADLINE

from gsio.run.ranks import Ranks


class Meeting:
    """What the ranks share: a queue of messages for each two ranks and each tag, and a place to meet."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.queues: defaultdict[Any, queue.SimpleQueue[Any]] = defaultdict(queue.SimpleQueue)
        self.barriers = {name: threading.Barrier(count) for name in ("gathered", "largest", "share", "close")}
        self.values: dict[tuple[str, int], Any] = {}


class ThreadMpi:
    """The messages of one rank, as `gsio.run.mpi.Mpi` has them."""

    def __init__(self, meeting: Meeting, number: int) -> None:
        self.number, self.count, self._meeting = number, meeting.count, meeting
        self.local = number

    def _met(self, name: str, value: Any) -> list[Any]:
        barrier = self._meeting.barriers[name]
        self._meeting.values[name, self.number] = value
        barrier.wait(DEADLINE)
        found = [self._meeting.values[name, rank] for rank in range(self.count)]
        barrier.wait(DEADLINE)
        return found

    def exchange(self, messages: Sequence[tuple[Any, Any]]) -> list[Any]:
        for message, rows in messages:
            self.send(rows.copy(), message.neighbour, ("halo", message.side))
        return [self.receive(message.neighbour, ("halo", 1 - message.side)) for message, _ in messages]

    def largest(self, numbers: Sequence[int]) -> list[int]:
        return np.max(self._met("largest", list(numbers)), axis=0).tolist()  # type: ignore[no-any-return]

    def gathered(self, value: Any) -> list[Any]:
        return self._met("gathered", value)

    def send(self, value: Any, rank: int, tag: Any) -> None:
        self._meeting.queues[self.number, rank, tag].put(value)

    def receive(self, rank: int, tag: Any) -> Any:
        return self._meeting.queues[rank, self.number, tag].get(timeout=DEADLINE)

    def received(self, rank: int, tag: Any) -> tuple[Any] | None:
        try:
            return (self._meeting.queues[rank, self.number, tag].get_nowait(),)
        except queue.Empty:
            return None

    def send_array(self, array: Any, rank: int, tag: Any) -> None:
        self.send(np.array(array), rank, ("array", tag))

    def receive_array(self, into: Any, rank: int, tag: Any) -> None:
        into[...] = self.receive(rank, ("array", tag)).reshape(into.shape)

    def share_array(self, array: Any) -> None:
        found = self._met("share", array)[0]
        if self.number:
            array[...] = found
        self._meeting.barriers["share"].wait(DEADLINE)

    def close(self, tag: Any) -> None:
        self._met("close", None)

    def abort(self, code: int) -> None:
        raise AssertionError(f"rank {self.number} ended all with {code}")


def on_ranks(count: int, run: Callable[[Ranks], Any]) -> list[Any]:
    """Return what `run` returns, or raises, in each of `count` ranks."""
    meeting = Meeting(count)

    def one(number: int) -> Any:
        try:
            with Ranks(ThreadMpi(meeting, number)) as ranks:  # type: ignore[arg-type]
                return run(ranks)
        except Exception as error:
            return error

    with ThreadPoolExecutor(count) as threads:
        begun = [threads.submit(contextvars.copy_context().run, one, number) for number in range(count)]
        return [each.result() for each in begun]
