"""MPI: the messages between the ranks of a run, each waited for without keeping a core busy.

MPI libraries spin while they wait. Several threads of a rank wait for long, so that each asks again and again here, and
sleeps in between.
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsio.compute.bands import Message
from gsio.errors import UsageError
from gsio.machine import one_line

SPINS = 100  # questions without a pause, which take about as long as a message
NAP_SECONDS, LONGEST_NAP_SECONDS = 50e-6, 2e-3
PIECE_NBYTES = 1 << 30  # of an array in one message: many libraries count in 31 bits


class Mpi:
    """The messages of this process; any thread may send and receive.

    Attributes
    ----------
    number, count
        The number of this rank, and of all ranks.
    local
        The number of this rank among those of its host.
    sharing
        How many ranks of its host may use the same cores as this one, which counts.
    """

    def __init__(self) -> None:
        """Start MPI, together with all ranks; raise UsageError if MPI cannot be used."""
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:  # mpi4py finds no library of MPI
            raise UsageError(
                f"--mpi: mpi4py cannot be used here: {one_line(error)}; get it with pip install 'gsio[mpi]'"
            ) from None
        if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
            raise UsageError("--mpi: expected a library of MPI that several threads may call, found one for fewer")
        self._mpi = MPI
        self._halos, self._messages = MPI.COMM_WORLD.Dup(), MPI.COMM_WORLD.Dup()
        self.number, self.count = self._messages.Get_rank(), self._messages.Get_size()
        host, cores = MPI.COMM_WORLD.Split_type(MPI.COMM_TYPE_SHARED), os.sched_getaffinity(0)
        self.local: int = host.Get_rank()
        self.sharing = sum(map(cores.__eq__, host.allgather(cores)))
        self._pending: list[Any] = []  # messages that were sent and are not known to have left
        self._sending = threading.Lock()

    def exchange(self, messages: Sequence[tuple[Message, NDArray[Any]]]) -> list[NDArray[Any]]:
        """Send rows to each neighbour, and return the rows that each has sent, in the order of the messages."""
        received = [np.empty_like(rows) for _, rows in messages]
        requests = [
            self._halos.Irecv(into, message.neighbour, 1 - message.side)
            for (message, _), into in zip(messages, received, strict=True)
        ]
        requests += [self._halos.Isend(rows, message.neighbour, message.side) for message, rows in messages]
        until(lambda: self._mpi.Request.Testall(requests))
        return received

    def largest(self, numbers: Sequence[int]) -> list[int]:
        """Return the largest of each of some numbers over all ranks, which call this at the same time."""
        mine, found = np.array(numbers, np.int64), np.zeros(len(numbers), np.int64)
        until(self._halos.Iallreduce(mine, found, self._mpi.MAX).Test)
        return [int(number) for number in found]

    def gathered(self, value: Any) -> list[Any]:
        """Return the values of all ranks, which call this at the same time."""
        until(self._messages.Ibarrier().Test)  # the library would spin until the last rank is here
        found: list[Any] = self._messages.allgather(value)
        return found

    def send(self, value: Any, rank: int, tag: int) -> None:
        """Send any value, and return at once."""
        with self._sending:
            self._pending = [request for request in self._pending if not request.Test()]
            self._pending.append(self._messages.isend(value, rank, tag))

    def receive(self, rank: int, tag: int) -> Any:
        """Return the next value of a rank with this tag."""
        return until(lambda: self.received(rank, tag))[0]

    def received(self, rank: int, tag: int) -> tuple[Any] | None:
        """Return the next value of a rank with this tag, in a tuple, or None if there is none yet."""
        message = self._messages.improbe(rank, tag)
        return None if message is None else (message.recv(),)

    def send_array(self, array: NDArray[Any], rank: int, tag: int) -> None:
        """Send an array, and return when its memory is free again."""
        for piece in _pieces(np.ascontiguousarray(array)):
            until(self._messages.Isend(piece, rank, tag).Test)

    def receive_array(self, into: NDArray[Any], rank: int, tag: int) -> None:
        """Fill a contiguous array with what a rank has sent."""
        for piece in _pieces(into):
            until(self._messages.Irecv(piece, rank, tag).Test)

    def share_array(self, array: NDArray[Any]) -> None:
        """Fill a contiguous array of each rank with that of rank 0; all ranks call this at the same time."""
        for piece in _pieces(array):
            until(self._messages.Ibcast(piece, 0).Test)

    def close(self, tag: int) -> None:
        """Receive the messages with a tag that are still on the way; all ranks call this at the same time."""
        until(self._messages.Ibarrier().Test)
        while (message := self._messages.improbe(tag=tag)) is not None:
            message.recv()

    def abort(self, code: int) -> None:
        """End all ranks at once, with an exit code."""
        self._mpi.COMM_WORLD.Abort(code)


def _pieces(array: NDArray[Any]) -> list[NDArray[np.uint8]]:
    raw = array.reshape(-1).view(np.uint8)
    return [raw[start : start + PIECE_NBYTES] for start in range(0, raw.size, PIECE_NBYTES)]


def until(ask: Callable[[], Any]) -> Any:
    """Return the first answer that is not false."""
    for _ in range(SPINS):
        if answer := ask():
            return answer
    nap = NAP_SECONDS
    while not (answer := ask()):
        time.sleep(nap)
        nap = min(1.1 * nap, LONGEST_NAP_SECONDS)
    return answer
