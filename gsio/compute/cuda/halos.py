"""The exchange of halos between GPUs of one host: each gets the outermost rows of the bands of its neighbours."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import permutations
from typing import NamedTuple

import cupy
import numpy as np
from cupy.cuda import Event, Stream, runtime
from numpy.typing import NDArray

from gsio.compute.bands import Band, Message
from gsio.compute.cuda.cubins import load_module
from gsio.compute.cuda.solver import CudaSolver
from gsio.compute.cuda.sources import HALO, HALO_BLOCKS, HALO_THREADS
from gsio.frames.layout import BlockLayout
from gsio.trace import placed

ALREADY_ENABLED = 704  # the number of CUDA's error cudaErrorPeerAccessAlreadyEnabled


class Relay(NamedTuple):
    """Host memory for u and v, through which rows pass between GPUs that do not see each other.

    The stream and the event belong to the GPU that sends.
    """

    memory: list[NDArray[np.uint8]]
    stream: Stream
    sent: Event


@dataclass
class Side:
    """What a band gets from the neighbour at one side: rows `sent` of `other` for the rows `received` of its halo.

    Attributes
    ----------
    number
        0 above, 1 below.
    stream
        The rows come on this stream, and what needs them can follow there.
    arrived, done
        Events on that stream: the neighbour may change its rows; all that followed is done.
    """

    number: int
    other: "Lane"
    sent: slice
    received: slice
    relay: Relay | None

    def __post_init__(self) -> None:
        self.stream = Stream(non_blocking=True)
        self.arrived, self.done = Event(disable_timing=True), Event(disable_timing=True)


class Lane:
    """One GPU with its band: the solver, and what comes from its neighbours."""

    def __init__(self, band: Band, device: int, layout: BlockLayout, solver: CudaSolver) -> None:
        self.band, self.layout, self.solver, self.device = band, layout, solver, cupy.cuda.Device(device)
        self.sides: list[Side] = []
        self._place = placed(f"GPU {device}")
        with self.device:
            self.ready = Event(disable_timing=True)
            self.receive = load_module(("halo.cu",), ("-std=c++17",)).get_function("receive")

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the device and its compute stream the current ones, in a range that names the GPU."""
        with self.device, self.solver.stream, self._place:
            yield

    @property
    def streams(self) -> dict[int, Stream]:
        """The streams after which the rows of the halo have arrived, by the number of the side."""
        return {side.number: side.stream for side in self.sides}

    def wait(self) -> None:
        """Let the compute stream wait for all that these streams do, and until the neighbours have read their rows."""
        compute = self.solver.stream
        for side in self.sides:
            side.done.record(side.stream)
            compute.wait_event(side.done)
        for other in {id(side.other): side.other for side in self.sides}.values():
            for side in other.sides:
                if side.other is self:
                    compute.wait_event(side.arrived)


class Halos:
    """The halos of all bands, which are exchanged before the steps that need them.

    The rows travel on streams of their own, so that each compute stream can advance the inner rows of its band.
    """

    def __init__(self, lanes: Sequence[Lane], *, direct: bool) -> None:
        """Find the neighbours of each band; rows pass host memory if not `direct`, or if GPUs do not see each other."""
        self._lanes = lanes
        direct = direct and _connected([lane.device.id for lane in lanes])
        for lane in lanes:
            lane.sides = [self._side(lane, message, direct=direct) for message in lane.band.messages]

    def _side(self, lane: Lane, message: Message, *, direct: bool) -> Side:
        other, relay = self._lanes[message.neighbour], None
        sent = next(theirs.sent for theirs in other.band.messages if theirs.side != message.side)
        if not direct:
            memory = [lane.solver.allocate(lane.solver.rows(name, message.received).nbytes) for name in "uv"]
            with other.device:
                relay = Relay(memory, Stream(non_blocking=True), Event(disable_timing=True))
        with lane.device:
            return Side(message.side, other, sent, message.received, relay)

    def exchange(self) -> None:
        """Queue the exchange: the halos get the outermost rows of their neighbours. `Lane.wait` follows for each."""
        for lane in self._lanes:
            with lane.device:
                lane.ready.record(lane.solver.stream)
        for lane in self._lanes:
            for side in lane.sides:
                sent = side.other.ready
                if side.relay is not None:
                    _send_to_host(side, side.relay)
                    sent = side.relay.sent
                with lane.device:
                    side.stream.wait_event(lane.ready)
                    side.stream.wait_event(sent)
                    _receive(lane, side)
                    side.arrived.record(side.stream)


def _send_to_host(side: Side, relay: Relay) -> None:
    """Queue the copies of a neighbour's rows to host memory."""
    with side.other.device:
        relay.stream.wait_event(side.other.ready)
        for name, memory in zip("uv", relay.memory, strict=True):
            rows, kind = side.other.solver.rows(name, side.sent), runtime.memcpyDeviceToHost
            runtime.memcpyAsync(memory.ctypes.data, rows.data.ptr, rows.nbytes, kind, relay.stream.ptr)
        relay.sent.record(relay.stream)


def _receive(lane: Lane, side: Side) -> None:
    """Queue the copies of rows into the halo of `lane`."""
    halo = np.zeros((), HALO)
    for field, name in enumerate("uv"):
        rows, to = side.other.solver.rows(name, side.sent), lane.solver.rows(name, side.received)
        source = rows.data.ptr if side.relay is None else side.relay.memory[field].ctypes.data
        halo["rows"][field] = source, to.data.ptr, to.nbytes
    if side.relay is None and lane.solver.tiling.at_once:  # else no multiprocessor is free for a kernel
        blocks = -(-int(halo["rows"]["nbytes"].max()) // (16 * HALO_THREADS))
        with side.stream:
            lane.receive((min(HALO_BLOCKS, blocks), len("uv")), (HALO_THREADS,), (halo,))
        return
    kind = runtime.memcpyDefault if side.relay is None else runtime.memcpyHostToDevice
    for source, to, nbytes in halo["rows"].tolist():
        runtime.memcpyAsync(to, source, nbytes, kind, side.stream.ptr)


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
