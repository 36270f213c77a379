"""The production solver for NVIDIA GPUs: CuPy, with the kernels of ``kernels.cu``.

Two streams. The compute stream advances the fields, `steps_per_frame` steps as one CUDA graph, and stages each frame
into a slot of a small ring on the device: the bytes, shuffled, and their statistics. The link stream copies a full slot
into the pinned memory of a block. Events order the two, so that neither waits for the host.
"""

from pathlib import Path
from typing import Any

import cupy
import numpy as np
from cupy.cuda import Event, Stream, runtime
from numpy.typing import NDArray

from gsio.compute.base import Field
from gsio.compute.stencil import coefficients
from gsio.config import Config
from gsio.initial import Start
from gsio.staging import STATISTICS, Block, FrameLayout

SLOTS = 3  # one filling, one copying, one to spare
GRAPH_STEPS = 1024  # longest graph
STEP_THREADS = (32, 8)
STAGE_BLOCKS = STAGE_THREADS = 256  # as merge_block in kernels.cu expects
BOUNDARIES = {"periodic": 0, "neumann": 1, "zero": 2}


def count_devices() -> int:
    """Return the number of GPUs CuPy can use."""
    return int(runtime.getDeviceCount())


def free_bytes(device: int) -> int:
    """Return the free memory of a GPU."""
    with cupy.cuda.Device(device):
        return int(runtime.memGetInfo()[0])


def needed_bytes(layout: FrameLayout) -> int:
    """Return the device memory a run takes: two copies of each field, and the ring of slots."""
    return 4 * layout.plane_nbytes + SLOTS * layout.block_nbytes


class Slot:
    """Device memory laid out as a block, and the events that say who has it."""

    def __init__(self, nbytes: int) -> None:
        self.memory = cupy.zeros(nbytes, cupy.uint8)
        self.copied = Event(disable_timing=True)


class Marks:
    """Timed events around the work for one block; the last is waited for without spinning."""

    def __init__(self) -> None:
        self.computing, self.computed, self.copying, self.copied = Event(), Event(), Event(), Event(block=True)


class CudaSolver:
    """One NVIDIA GPU, float32 or float64."""

    backend = "cupy"

    def __init__(self, config: Config, layout: FrameLayout, start: Start) -> None:
        self._layout = layout
        self._steps = config.run.steps_per_frame
        self._device = cupy.cuda.Device(config.run.device)
        dtype = np.dtype(config.model.precision)
        with self._device:
            properties = runtime.getDeviceProperties(self._device.id)
            self.device = properties["name"].decode()
            self._compute, self._link = Stream(non_blocking=True), Stream(non_blocking=True)
            module = cupy.RawModule(
                code=(Path(__file__).parent / "kernels.cu").read_text(),
                options=(
                    "-std=c++17",
                    f"-DREAL={'float' if dtype == np.float32 else 'double'}",
                    f"-DBOUNDARY={BOUNDARIES[config.grid.boundary]}",
                    f"-DSHUFFLE={int(layout.shuffle)}",
                ),
            )
            self._step, self._stage, self._summarise = map(module.get_function, ("step", "stage", "summarise"))
            self._coefficients = tuple(map(dtype.type, coefficients(config.model, start.feed, start.kill)))
            # Two copies of (u, v): a step reads one and writes the other.
            self._states = [
                tuple(cupy.asarray(f, dtype) for f in start[:2]),
                tuple(cupy.empty(layout.shape, dtype) for _ in "uv"),
            ]
            self._now = 0
            self._graphs: dict[tuple[int, int], Any] = {}
            self._partial = cupy.empty((STAGE_BLOCKS, len(STATISTICS)), np.float64)
            self._slots = [Slot(layout.block_nbytes) for _ in range(SLOTS)]
            self._filled = 0
            self._marks: dict[int, Marks] = {}
            runtime.deviceSynchronize()  # the arrays were filled on CuPy's own stream

    def advance(self, steps: int) -> None:
        """Advance both fields by `steps` time steps, on the compute stream."""
        with self._device, self._compute:
            self._advance(steps)

    def _advance(self, steps: int) -> None:
        while steps > 0:
            length = min(steps, GRAPH_STEPS)
            key = (self._now, length)
            if key not in self._graphs:
                self._graphs[key] = self._capture(length)
            self._graphs[key].launch(self._compute)
            self._now = (self._now + length) % 2
            steps -= length

    def _capture(self, steps: int) -> Any:
        """Record `steps` launches from the present state as one CUDA graph, which costs the host one call."""
        rows, cols = self._layout.shape
        grid = (-(-cols // STEP_THREADS[0]), -(-rows // STEP_THREADS[1]))
        self._compute.begin_capture()
        for i in range(steps):
            old, new = self._states[(self._now + i) % 2], self._states[(self._now + i + 1) % 2]
            self._step(grid, STEP_THREADS, (*old, *new, np.int32(rows), np.int32(cols), *self._coefficients))
        return self._compute.end_capture()

    def fields(self) -> tuple[Field, Field]:
        """Return host copies of u and v, [rows, cols]."""
        with self._device, self._compute:
            u, v = (field.get() for field in self._states[self._now])
        return u, v

    def allocate(self, nbytes: int) -> NDArray[np.uint8]:
        """Return pinned memory: the GPU copies to it at full speed and without the host."""
        with self._device:
            memory = cupy.cuda.alloc_pinned_memory(nbytes)
        return np.frombuffer(memory, np.uint8, nbytes)

    def fill(self, block: Block) -> None:
        """Queue the next `block.count` frames and their copy; returns as soon as the GPU has its orders."""
        slot = self._slots[self._filled % SLOTS]
        self._filled += 1
        address = block.buffer.ctypes.data
        with self._device:
            if address not in self._marks:
                self._marks[address] = Marks()
            marks = self._marks[address]
            with self._compute:
                self._compute.wait_event(slot.copied)
                marks.computing.record()
                for frame in range(block.count):
                    self._advance(self._steps)
                    self._stage_frame(slot, frame)
                marks.computed.record()
            nbytes = self._layout.header_nbytes + block.count * self._layout.frame_nbytes
            self._link.wait_event(marks.computed)
            marks.copying.record(self._link)
            runtime.memcpyAsync(address, slot.memory.data.ptr, nbytes, runtime.memcpyDeviceToHost, self._link.ptr)
            marks.copied.record(self._link)
            slot.copied.record(self._link)

    def _stage_frame(self, slot: Slot, frame: int) -> None:
        layout, cells = self._layout, np.int64(self._layout.cells)
        for i, name in enumerate(layout.fields):
            field = self._states[self._now]["uv".index(name)]
            number = frame * len(layout.fields) + i
            data = slot.memory[layout.header_nbytes + number * layout.plane_nbytes :]
            self._stage((STAGE_BLOCKS,), (STAGE_THREADS,), (field, data, self._partial, cells))
            self._summarise((1,), (STAGE_BLOCKS,), (self._partial, slot.memory[number * 8 * len(STATISTICS) :], cells))

    def wait(self, block: Block) -> None:
        """Return when the copy of `block` is done."""
        marks = self._marks[block.buffer.ctypes.data]
        with self._device:
            marks.copied.synchronize()
        block.compute_seconds = cupy.cuda.get_elapsed_time(marks.computing, marks.computed) / 1e3
        block.link_seconds = cupy.cuda.get_elapsed_time(marks.copying, marks.copied) / 1e3
