"""The band of one rank on its GPU. NCCL exchanges halos between the GPUs of all ranks, within a host and across hosts.

The exchanges are ordered on the compute stream, before the steps that need them, so that the host waits for nothing.
"""

import time
from collections.abc import Callable
from typing import Any

import cupy
import numpy as np
from cupy.cuda import nccl
from numpy.typing import NDArray

from gsio.compute.bands import Band
from gsio.compute.cuda.solver import CudaSolver
from gsio.frames.block import Block
from gsio.model.gray_scott import Field

if not nccl.available:
    raise ImportError("CuPy finds no NCCL")
TYPES = {np.dtype(np.float32): nccl.NCCL_FLOAT32, np.dtype(np.float64): nccl.NCCL_FLOAT64}


def new_key() -> Any:
    """Return what all ranks need to meet in NCCL; one rank makes it, and tells the others."""
    return nccl.get_unique_id()


class NcclSolver:
    """Advances the band of a grid whose other bands are on the GPUs of other ranks; all ranks make it together."""

    def __init__(self, solver: CudaSolver, band: Band, key: Any, device: int, steps_per_frame: int) -> None:
        """Join the other ranks, which have the same `key`; `solver` has the band and its halo on a `device`."""
        self._solver, self._band, self._steps = solver, band, steps_per_frame
        self._device = cupy.cuda.Device(device)
        self.backend, self.device = solver.backend, f"{solver.device}, on each of {band.bands} ranks"
        self.snapshot: Callable[[], Callable[[], tuple[Field, Field]]] = solver.snapshot
        self.field: Callable[[str], Field] = solver.field
        self.allocate: Callable[[int], NDArray[np.uint8]] = solver.allocate
        self.wait: Callable[[Block], None] = solver.wait
        with self._device:
            self._ranks = nccl.NcclCommunicator(band.bands, key, band.number)

    def advance(self, steps: int) -> None:
        """Queue `steps` time steps, as all other ranks do at the same time, and the exchanges that they need."""
        for part in self._band.rounds(steps):
            with self._device, self._solver.stream:
                self._exchange()
            self._solver.advance(part)

    def _exchange(self) -> None:
        """Queue the exchange of halos with the neighbours.

        NCCL matches what two ranks send and receive by its order. What a rank sends first, from its upper side, arrives
        at the lower side of the neighbour, which therefore receives for its lower side first.
        """
        messages, stream = self._band.messages, self._solver.stream.ptr
        if not messages:
            return
        nccl.groupStart()
        for message in messages:
            for name in "uv":
                rows = self._solver.rows(name, message.sent)
                self._ranks.send(rows.data.ptr, rows.size, TYPES[rows.dtype], message.neighbour, stream)
        for message in reversed(messages):
            for name in "uv":
                rows = self._solver.rows(name, message.received)
                self._ranks.recv(rows.data.ptr, rows.size, TYPES[rows.dtype], message.neighbour, stream)
        nccl.groupEnd()

    def fill(self, block: Block) -> None:
        """Queue the next `block.count` frames and their copy. Returns before the GPU has done them."""
        link, before = self._solver.link, time.perf_counter()
        with self._device, self._solver.stream:
            _, memory = link.begin(block)
            link.mark(block)
        for frame in range(block.count):
            self.advance(self._steps)
            with self._device, self._solver.stream:
                self._solver.stage(memory, frame)
        with self._device, self._solver.stream:
            link.finish(memory, block.count)
            link.send(block, before)
