"""The exchange of halos between GPUs of one host: each sends the outermost rows of its band to its neighbours."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import cupy
from cupy.cuda import Event, Stream, runtime

from gsio.compute.bands import Band
from gsio.compute.cuda.solver import CudaSolver
from gsio.frames.layout import BlockLayout
from gsio.trace import place

ALREADY_ENABLED = 704  # the number of CUDA's error cudaErrorPeerAccessAlreadyEnabled


@dataclass
class Copy:
    """Rows of a band that go to the halo of a neighbour, and `memory` of the host for u and v if they pass it."""

    to: "Lane"
    sent: slice
    received: slice
    memory: tuple[Any, ...] = ()


class Lane:
    """One GPU with its band: the solver, and for each of u and v a stream that sends rows and an event when it did."""

    def __init__(self, band: Band, device: int, layout: BlockLayout, solver: CudaSolver) -> None:
        self.band, self.layout, self.solver, self.device = band, layout, solver, cupy.cuda.Device(device)
        self.copies: list[Copy] = []
        self._place = place(f"GPU {device}")
        with self.device:
            self.ready = Event(disable_timing=True)
            self.sending = [(Stream(non_blocking=True), Event(disable_timing=True)) for _ in "uv"]

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the device and its compute stream the current ones, in a range that names the GPU."""
        with self.device, self.solver.stream, self._place:
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
        """Queue the sending of the outermost rows of all bands to the halos of their neighbours."""
        if not self._lanes[0].copies:  # the bands of a batch have no halos
            return
        for lane in self._lanes:
            with lane.device:
                lane.ready.record(lane.solver.stream)
        for lane in self._lanes:
            with lane.device:
                for place, (name, (stream, sent)) in enumerate(zip("uv", lane.sending, strict=True)):
                    for other in lane.around():
                        stream.wait_event(other.ready)
                    for copy in lane.copies:
                        source = lane.solver.rows(name, copy.sent)
                        kind, to = runtime.memcpyDeviceToHost, copy.memory and copy.memory[place].ctypes.data
                        if self._direct:
                            kind, to = runtime.memcpyDefault, copy.to.solver.rows(name, copy.received).data.ptr
                        runtime.memcpyAsync(to, source.data.ptr, source.nbytes, kind, stream.ptr)
                    sent.record(stream)
        if not self._direct:
            self._receive_rows()
        self._sent = True

    def _receive_rows(self) -> None:
        """Queue the copies of rows from host memory to the halos."""
        for lane in self._lanes:
            for copy in lane.copies:
                with copy.to.device:
                    for place, name in enumerate("uv"):
                        stream, _ = copy.to.sending[place]
                        stream.wait_event(lane.sending[place][1])
                        to = copy.to.solver.rows(name, copy.received)
                        address, kind = copy.memory[place].ctypes.data, runtime.memcpyHostToDevice
                        runtime.memcpyAsync(to.data.ptr, address, to.nbytes, kind, stream.ptr)
        for lane in self._lanes:
            with lane.device:
                for stream, sent in lane.sending:
                    sent.record(stream)

    def wait(self) -> None:
        """Let all GPUs wait for the exchange: for the rows that they get, and for those that they send."""
        if not self._sent:
            return
        self._sent = False
        for lane in self._lanes:
            with lane.device:
                for other in lane.around():
                    for _, sent in other.sending:
                        lane.solver.stream.wait_event(sent)


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
