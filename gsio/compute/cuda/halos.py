"""The exchange of halos between GPUs of one host: each gets the outermost rows of the bands of its neighbours."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import permutations
from typing import NamedTuple

import cupy
import numpy as np
from cupy.cuda import Event, Stream, runtime
from numpy.typing import NDArray

from gsio.compute.bands import Band
from gsio.compute.cuda.solver import CudaSolver
from gsio.compute.cuda.sources import HALO, HALO_BLOCKS, HALO_THREADS, read
from gsio.frames.layout import BlockLayout

ALREADY_ENABLED = 704  # the number of CUDA's error cudaErrorPeerAccessAlreadyEnabled


class Copy(NamedTuple):
    """Rows of a band that go to the halo of a neighbour, and `memory` of the host for u and v if they pass it."""

    to: "Lane"
    sent: slice
    received: slice
    memory: tuple[NDArray[np.uint8], ...]


class Lane:
    """One GPU with its band: the solver, and a stream that exchanges rows, with events before and after."""

    def __init__(self, band: Band, device: int, layout: BlockLayout, solver: CudaSolver) -> None:
        self.band, self.layout, self.solver, self.device = band, layout, solver, cupy.cuda.Device(device)
        self.copies: list[Copy] = []
        with self.device:
            self.ready, self.exchanged = Event(disable_timing=True), Event(disable_timing=True)
            self.exchanging = Stream(non_blocking=True)
            self.receive = cupy.RawModule(code=read("halo.cu"), options=("-std=c++17",)).get_function("receive")

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the device and its compute stream the current ones."""
        with self.device, self.solver.stream:
            yield

    def around(self) -> list["Lane"]:
        """Return this band and its neighbours."""
        return list(dict.fromkeys([self, *(copy.to for copy in self.copies)]))


class Halos:
    """The halos of all bands, which are exchanged after the steps for which they are good.

    The rows travel on streams of their own, so that the compute streams can stage frames meanwhile.
    """

    def __init__(self, lanes: Sequence[Lane], *, direct: bool) -> None:
        """Find the neighbours of each band; rows pass host memory if not `direct`, or if GPUs do not see each other."""
        self._lanes, self._sent = lanes, False
        self._direct = direct and _connected([lane.device.id for lane in lanes])
        for lane in lanes:
            lane.copies = list(self._copies_of(lane))

    def _copies_of(self, lane: Lane) -> Iterator[Copy]:
        for message in lane.band.messages:
            to = self._lanes[message.neighbour]
            received = next(other.received for other in to.band.messages if other.side != message.side)
            nbytes = lane.solver.rows("u", message.sent).nbytes
            pinned = () if self._direct else tuple(lane.solver.allocate(nbytes) for _ in "uv")
            yield Copy(to, message.sent, received, pinned)

    def send(self) -> None:
        """Queue the exchange: the outermost rows of all bands go to the halos of their neighbours."""
        if not self._lanes[0].copies:  # the bands of a batch have no halos
            return
        for lane in self._lanes:
            with lane.device:
                lane.ready.record(lane.solver.stream)
        for lane in self._lanes:
            with lane.device, lane.exchanging:
                for other in lane.around():
                    lane.exchanging.wait_event(other.ready)
                self._receive(lane) if self._direct else self._send_to_host(lane)
                lane.exchanged.record(lane.exchanging)
        if not self._direct:
            self._receive_from_host()
        self._sent = True

    def _receive(self, lane: Lane) -> None:
        """Queue the kernel with which a GPU reads the rows of its halo from the memory of the neighbours."""
        halo, number = np.zeros((), HALO), 0
        for other, copy in self._arriving(lane):
            for name in "uv":
                sent, received = other.solver.rows(name, copy.sent), lane.solver.rows(name, copy.received)
                halo["rows"][number] = sent.data.ptr, received.data.ptr, sent.nbytes
                number += 1
        blocks = -(-int(halo["rows"]["nbytes"].max()) // (16 * HALO_THREADS))
        lane.receive((min(HALO_BLOCKS, blocks), number), (HALO_THREADS,), (halo,))

    def _arriving(self, lane: Lane) -> Iterator[tuple[Lane, Copy]]:
        """Yield the copies of rows that a lane gets, each with the lane that has the rows."""
        for other in lane.around():
            yield from ((other, copy) for copy in other.copies if copy.to is lane)

    def _send_to_host(self, lane: Lane) -> None:
        """Queue the copies of the outermost rows of a band to host memory."""
        for copy in lane.copies:
            for name, memory in zip("uv", copy.memory, strict=True):
                rows = lane.solver.rows(name, copy.sent)
                kind = runtime.memcpyDeviceToHost
                runtime.memcpyAsync(memory.ctypes.data, rows.data.ptr, rows.nbytes, kind, lane.exchanging.ptr)

    def _receive_from_host(self) -> None:
        """Queue the copies of rows from host memory to the halos."""
        for lane in self._lanes:
            with lane.device:
                for other in lane.around():
                    lane.exchanging.wait_event(other.exchanged)
        for lane in self._lanes:
            with lane.device:
                for _, copy in self._arriving(lane):
                    for name, memory in zip("uv", copy.memory, strict=True):
                        rows = lane.solver.rows(name, copy.received)
                        kind, stream = runtime.memcpyHostToDevice, lane.exchanging
                        runtime.memcpyAsync(rows.data.ptr, memory.ctypes.data, rows.nbytes, kind, stream.ptr)
                lane.exchanged.record(lane.exchanging)

    def wait(self) -> None:
        """Let all GPUs wait for the exchange: for the rows that they get, and for those that they send."""
        if not self._sent:
            return
        self._sent = False
        for lane in self._lanes:
            with lane.device:
                for other in lane.around():
                    lane.solver.stream.wait_event(other.exchanged)


def _connected(devices: Sequence[int]) -> bool:
    """Return whether each GPU can be made to copy to the memory of all others, and make it so."""
    for one, other in permutations(dict.fromkeys(devices), 2):
        with cupy.cuda.Device(one):
            if not runtime.deviceCanAccessPeer(one, other):
                return False
            try:
                runtime.deviceEnablePeerAccess(other)
            except runtime.CUDARuntimeError as error:
                if error.status != ALREADY_ENABLED:
                    raise
    return True
