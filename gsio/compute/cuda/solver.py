"""The production solver for NVIDIA GPUs: CuPy, with the kernels of the folder ``kernels``.

Two streams. The compute stream advances the fields and stages each frame into a slot of a small ring on the device: the
bytes, shuffled, and their statistics; all it does for a block is one CUDA graph. The link stream copies a full slot
into the pinned memory of a block. Events order the two, so that neither waits for the host.

Where the layout says so chunks are encoded on the GPU, in that graph, and then put together in a slot. How many bytes
they take is known only then: the thread that waits for a block is told, and lets the link stream copy so much.

Streams, events, memory and kernels belong to the device that was current in the thread that made them, which is device
0 in a new thread. So every method, and every function that a method returns, makes and uses them `with self._device`.
"""

import math
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import cupy
import numpy as np
from cupy.cuda import Event, Stream, runtime
from numpy.typing import NDArray

from gsio.compute.cuda import encoder
from gsio.compute.cuda.encoder import ChunkEncoder, chunks_in
from gsio.compute.cuda.sources import ADVANCE, FLAG_STRIDE, STAGE, STAGE_THREADS, kernel_options, read, stage_options
from gsio.compute.cuda.tiling import (
    MOST_STEPS,
    Device,
    Job,
    Tiling,
    choose,
    remember,
    tilings,
)
from gsio.config import Config
from gsio.frames.block import Block
from gsio.frames.layout import STATISTICS, BlockLayout
from gsio.model.gray_scott import Field, coefficients
from gsio.model.start import Start

ANCHOR_SECONDS = 4.0  # so long the times of events, float32 milliseconds, are good to a quarter of a microsecond
SLOTS = 3  # one filling, one copying, one to spare
MOST_SLOTS, SLOTS_BYTES = 6, 256 << 20  # where the host has a part in the copy, and the slots are small
GRAPH_LAUNCHES = 4096  # of the longest graph; where a block takes more, the host keeps ahead without one
UPLOAD_BYTES = 64 << 20
EVEN = 1.25  # so many times the bytes of a block's chunks may be copied, if that takes one copy

TILE_PLAN = np.dtype([
    (name, np.int32)
    for name in (
        "rows", "cols", "members", "tiles_y", "height", "taller", "tiles_x", "width", "wider", "halo_y", "halo_x",
        "closed", "tiles", "passes", "steps", "longer", "shift", "maps",
    )
])  # fmt: skip


def count_devices() -> int:
    """Return the number of GPUs CuPy can use."""
    return int(runtime.getDeviceCount())


def free_bytes(device: int) -> int:
    """Return the free memory of a GPU."""
    with cupy.cuda.Device(device):
        return int(runtime.memGetInfo()[0])


def needed_bytes(config: Config, layout: BlockLayout) -> int:
    """Return the device memory a run takes: two copies of each field, maps of the rates, slots, and to encode."""
    fields = (4 + 2 * config.model.maps) * layout.frame.cells * np.dtype(config.model.precision).itemsize
    encoding = encoder.needed_bytes(layout, config.output.compression) if layout.encoded_nbytes else 0
    return fields + math.prod(slots_of(layout)) + encoding


def slots_of(layout: BlockLayout) -> tuple[int, int]:
    """Return how many slots the ring has, and the bytes of each: a block, or its chunks."""
    if not layout.encoded_nbytes:
        return SLOTS, layout.block_nbytes
    nbytes = layout.chunks.chunks_of(layout.frames_per_block) * layout.encoded_nbytes
    return max(SLOTS, min(MOST_SLOTS, SLOTS_BYTES // nbytes)), nbytes


def job_of(config: Config, *, by_cell: bool) -> Job:
    """Return what a launch has to do."""
    return Job(
        members=config.model.members,
        rows=config.grid.rows,
        cols=config.grid.cols,
        itemsize=np.dtype(config.model.precision).itemsize,
        steps=min(config.run.steps_per_frame, MOST_STEPS),
        by_cell=by_cell,
        periodic=config.grid.boundary == "periodic",
    )


def tile_plan(tiling: Tiling, job: Job, maps: int) -> NDArray[np.void]:
    """Return the struct Plan of ``tiles.cu``, without its passes."""
    units = job.cols // tiling.unit(job)
    plan = np.zeros((), TILE_PLAN)
    plan["rows"], plan["cols"], plan["members"] = job.rows, job.cols, job.members
    plan["tiles_y"], plan["tiles_x"] = tiling.tiles_y, tiling.tiles_x
    plan["height"], plan["taller"] = divmod(job.rows, tiling.tiles_y)
    plan["width"], plan["wider"] = divmod(units, tiling.tiles_x)
    plan["halo_y"], plan["halo_x"], plan["closed"] = tiling.halo_y(job), tiling.halo_x(job), tiling.closed(job)
    plan["tiles"], plan["shift"], plan["maps"] = tiling.tiles(job), tiling.reach(job), maps
    return plan


def tuning_name(device: str, config: Config, job: Job) -> str:
    """Return the name under which the fastest tiling of a run is kept: all that its speed depends on."""
    grid, model = config.grid, config.model
    rates = "maps" if job.by_cell else "constants"
    size = " × ".join(map(str, (job.members, job.rows, job.cols)))
    return f"{device}: {size} {model.precision}, {grid.boundary}, {model.stencil}, {rates}, {job.steps} steps"


class Slot:
    """Memory of the current device from which the link stream copies, and the event that says when it has."""

    def __init__(self, nbytes: int) -> None:
        self.memory = cupy.zeros(nbytes, cupy.uint8)
        self.copied = Event(disable_timing=True)
        self.due: Block | None = None  # whose chunks are here and have to be copied


class Anchor(NamedTuple):
    """An event, and when it happened on the host's clock."""

    event: Any
    seconds: float


class Marks:
    """Events of the current device around the work for one block, and when the host gave the orders between them.

    The host's times are on its own clock.

    Where the device is idle it begins with the orders, not with the event before them: as good a guess as any is the
    middle of the call, which takes 0.1 ms under a profiler.
    """

    anchor: Anchor  # that happened before the others
    launched, gathered, sent = 0.0, 0.0, 0.0
    slot: Slot

    def __init__(self) -> None:
        self.computing, self.staged, self.computed = Event(), Event(), Event()
        self.copying, self.copied = Event(), Event(block=True)
        self.told = Event(block=True, disable_timing=True)  # the block has its ends
        self.lock = threading.Lock()
        self.arrived = False  # the block is in host memory

    def interval(self, begin: Any, ordered: float, end: Any) -> tuple[float, float]:
        """Return when what is between two events began, on the host's clock, and the seconds it took."""
        event, seconds = self.anchor
        began, ended = (seconds + cupy.cuda.get_elapsed_time(event, mark) / 1e3 for mark in (begin, end))
        began = min(max(began, ordered), ended)
        return began, ended - began


class CudaSolver:
    """One NVIDIA GPU, float32 or float64."""

    backend = "cupy"

    def __init__(self, config: Config, layout: BlockLayout, start: Start, tiling: Tiling | None = None) -> None:
        """Put `start` on the GPU; `tiling` is chosen if it is not given."""
        self._layout = layout
        self._steps = config.run.steps_per_frame
        self._device = cupy.cuda.Device(config.run.device)
        dtype = np.dtype(config.model.precision)
        constants = coefficients(config.model, start.feed, start.kill)
        feed, keep_v = np.broadcast_arrays(constants.feed, constants.keep_v)
        rates = 0 if feed.ndim == 0 else 1 if feed.shape[-2:] == (1, 1) else 2
        with self._device:
            properties = runtime.getDeviceProperties(self._device.id)
            self.device = properties["name"].decode()
            self.job = job_of(config, by_cell=rates == 2)
            self.gpu = Device(properties["multiProcessorCount"], properties["sharedMemPerBlockOptin"])
            self.tiling = tiling or choose(self.job, self.gpu, tuned=tuning_name(self.device, config, self.job))
            self._compute, self._link = Stream(non_blocking=True), Stream(non_blocking=True)
            # All blocks of a launch wait for one another; launched as cooperative, they are all there or it fails.
            module = cupy.RawModule(
                code=read(*ADVANCE),
                options=kernel_options(config, self.tiling, self.job, self.gpu, constants.centre, rates),
                enable_cooperative_groups=True,
            )
            self._kernel = module.get_function("advance")
            self._kernel.max_dynamic_shared_size_bytes = self.tiling.shared_nbytes(self.job)
            staging = cupy.RawModule(
                code=read(*STAGE),
                options=stage_options(layout.frame),
            )
            self._stage, self._summarise = map(staging.get_function, ("stage", "summarise"))
            names = ("spread_u", "spread_v", "rest", "feed", "keep_u", "keep_v", "dt")
            self._constants = np.zeros((), [(name, dtype) for name in names])
            for name in names:
                self._constants[name] = np.ravel(getattr(constants, name))[0]
            if rates == 2:
                shape = (feed.shape[0] if feed.ndim == 3 else 1, *layout.frame.shape[-2:])
                feed, keep_v = np.broadcast_to(feed, shape), np.broadcast_to(keep_v, shape)
            maps = len(feed) if rates == 2 else 1
            self._rates = tuple(cupy.asarray(np.ascontiguousarray(rate, dtype)) for rate in (feed, keep_v))
            self._plan = tile_plan(self.tiling, self.job, maps)
            self._flags = cupy.zeros(int(self._plan["tiles"]) * FLAG_STRIDE, np.uint32)
            # Two copies of (u, v): a pass reads one and writes the other.
            self._states = [tuple(cupy.empty(layout.frame.shape, dtype) for _ in "uv") for _ in range(2)]
            for field, values in zip(self._states[0], start[:2], strict=True):
                _upload(np.broadcast_to(values, layout.frame.shape), field)
            self._now = 0
            self._graphs: dict[tuple[Any, ...], tuple[Any, int]] = {}
            self._partial = cupy.empty((STAGE_THREADS, len(STATISTICS)), np.float64)
            slots, nbytes = slots_of(layout)
            self._slots = [Slot(nbytes) for _ in range(slots)]
            self._encoder = ChunkEncoder(layout, config.output.compression) if layout.encoded_nbytes else None
            self._filled = 0
            self._marks: dict[int, Marks] = {}
            self._sending = threading.Lock()  # of orders for the link stream that belong together
            self._clock = Stream(non_blocking=True)
            self._anchor = self._new_anchor()
            runtime.deviceSynchronize()  # the arrays were filled on CuPy's own stream

    def advance(self, steps: int) -> None:
        """Advance both fields by `steps` time steps, on the compute stream."""
        with self._device, self._compute:
            self._replay(("advance", steps), self.launches(steps), lambda: self._advance(steps))

    @property
    def stream(self) -> Stream:
        """The compute stream."""
        return self._compute

    def launches(self, steps: int) -> int:
        """Return the number of kernels that `steps` time steps take."""
        return -(-steps // MOST_STEPS) if self.tiling.at_once else self.tiling.passes(steps)

    def seconds(self, steps: int, times: int) -> float:
        """Return the seconds the GPU takes to advance by `steps` time steps `times` times."""
        with self._device:
            before, after = Event(), Event()
            before.record(self._compute)
            for _ in range(times):
                self.advance(steps)
            after.record(self._compute)
            after.synchronize()
            return float(cupy.cuda.get_elapsed_time(before, after)) / 1e3

    def _replay(self, what: tuple[Any, ...], launches: int, launch: Callable[[], None]) -> None:
        """Do `launch`, as one CUDA graph if it is not too long: one by one, launches cost the host 60 µs each."""
        key = (*what, self._now)
        if launches > GRAPH_LAUNCHES:
            launch()
        elif key in self._graphs:
            graph, self._now = self._graphs[key]
            graph.launch(self._compute)
        else:
            self._compute.begin_capture()
            launch()
            graph = self._compute.end_capture()
            self._graphs[key] = graph, self._now
            graph.launch(self._compute)

    def _advance(self, steps: int) -> None:
        while steps > 0:
            at_once = min(steps, MOST_STEPS)
            passes = self.tiling.passes(at_once)
            if self.tiling.at_once:
                self._launch(passes, at_once)
            else:
                for i in range(passes):
                    self._launch(1, at_once * (i + 1) // passes - at_once * i // passes)
            steps -= at_once

    def _launch(self, passes: int, steps: int) -> None:
        """Launch the kernel once, for `steps` steps in `passes` passes of nearly the same length."""
        plan = self._plan.copy()
        plan["passes"], plan["steps"], plan["longer"] = passes, steps // passes, steps % passes
        blocks = min(int(plan["tiles"]), self.gpu.multiprocessors)
        fields = (*self._states[self._now], *self._states[1 - self._now])
        arguments = (*fields, *self._rates, self._flags, plan, self._constants)
        shared = self.tiling.shared_nbytes(self.job)
        self._kernel((blocks,), (32 * self.tiling.shape.warps,), arguments, shared_mem=shared)
        self._now = (self._now + passes) % 2

    def snapshot(self) -> Callable[[], tuple[Field, Field]]:
        """Queue copies of u and v to pinned memory; return a function that waits for them and returns them."""
        with self._device, self._compute:
            copied = Event(block=True, disable_timing=True)
            copies = []
            for field in self._states[self._now]:
                memory = cupy.cuda.alloc_pinned_memory(field.nbytes)  # of the pool: making it stops the device
                copies.append(np.frombuffer(memory, field.dtype, field.size).reshape(field.shape))
                address = copies[-1].ctypes.data
                to_host = runtime.memcpyDeviceToHost
                runtime.memcpyAsync(address, field.data.ptr, field.nbytes, to_host, self._compute.ptr)
            copied.record()

        def wait() -> tuple[Field, Field]:
            with self._device:
                copied.synchronize()
            u, v = copies
            return u, v

        return wait

    def field(self, name: str) -> Field:
        """Return a host copy of u or v, of the layout's shape."""
        with self._device, self._compute:
            return np.asarray(self._states[self._now]["uv".index(name)].get())

    def allocate(self, nbytes: int) -> NDArray[np.uint8]:
        """Return pinned memory: the GPU copies to it at full speed and without the host.

        CuPy's pool would take the next power of two, nearly twice a block.
        """
        with self._device:
            memory = cupy.cuda.PinnedMemory(nbytes, runtime.hostAllocPortable)
        return np.frombuffer(cupy.cuda.PinnedMemoryPointer(memory, 0), np.uint8, nbytes)

    def _new_anchor(self) -> Anchor:
        """Return the most exact of some anchors set now, on a stream that has nothing else to do."""
        anchors: list[tuple[float, Anchor]] = []
        for _ in range(5):
            event, before = Event(), time.perf_counter()
            event.record(self._clock)
            event.synchronize()
            after = time.perf_counter()
            anchors.append((after - before, Anchor(event, (before + after) / 2)))
        return min(anchors, key=lambda found: found[0])[1]

    def fill(self, block: Block) -> None:
        """Queue the next `block.count` frames and their copy; returns as soon as the GPU has its orders."""
        number = self._filled % len(self._slots)
        slot = self._slots[number]
        self._filled += 1
        address = block.buffer.ctypes.data
        with self._device:
            if address not in self._marks:
                self._marks[address] = Marks()
            marks = self._marks[address]
            if time.perf_counter() - self._anchor.seconds > ANCHOR_SECONDS:
                self._anchor = self._new_anchor()
            marks.anchor, marks.slot, marks.arrived = self._anchor, slot, False
            # Each call that lets go of Python's lock may wait for it: of those, encoding takes only what it needs.
            with self._compute:
                if self._encoder is not None:
                    self._run(block, marks, 0, self._encoder.memory)
                    self._gather(block, marks, self._encoder)
                    return
                self._compute.wait_event(slot.copied)
                self._run(block, marks, number, slot.memory)
            self._link.wait_event(marks.staged)
            marks.copying.record(self._link)
            marks.sent = time.perf_counter()
            nbytes = self._layout.header_nbytes + block.count * self._layout.frame.frame_nbytes
            _copy(address, slot.memory.data.ptr, nbytes, self._link)
            marks.copied.record(self._link)
            slot.copied.record(self._link)

    def _run(self, block: Block, marks: Marks, number: int, memory: Any) -> None:
        """Compute and stage the frames of `block` in the device memory of that number."""
        marks.computing.record()
        launches = block.count * (2 * len(self._layout.frame.fields) + self.launches(self._steps)) + 3
        before = time.perf_counter()
        self._replay((number, block.count), launches, lambda: self._launch_frames(memory, block.count))
        marks.launched = (before + time.perf_counter()) / 2
        marks.staged.record()

    def _gather(self, block: Block, marks: Marks, encoder: ChunkEncoder) -> None:
        """Put encoded chunks into the block's slot, and into the block what comes before them, and where they end.

        Not a part of the graph, which would be one for each slot: to make one takes milliseconds.
        """
        if (due := marks.slot.due) is not None:  # nobody has waited for it yet
            self._send(due)
        self._compute.wait_event(marks.slot.copied)
        before = time.perf_counter()
        encoder.gather(block.count, marks.slot.memory)
        marks.gathered = (before + time.perf_counter()) / 2
        marks.computed.record()
        _copy(block.buffer.ctypes.data, encoder.memory.data.ptr, self._layout.header_nbytes, self._compute)
        marks.told.record()
        marks.slot.due = block

    def _send(self, block: Block) -> None:
        """Queue the copy of encoded chunks, once it is known how long they are; whoever comes first does it."""
        marks, pitch = self._marks[block.buffer.ctypes.data], self._layout.encoded_nbytes
        marks.told.synchronize()
        ends = block.ends[: self._layout.chunks.chunks_of(block.count)]
        longest = int(ends.max())
        orders = [(chunk * pitch, nbytes, 1) for chunk, nbytes in enumerate(ends.tolist())]
        if longest * len(ends) < EVEN * ends.sum(dtype=np.int64):  # between several the link may wait for this thread
            orders = [(0, longest, len(ends))]
        source, address = marks.slot.memory.data.ptr, block.buffer.ctypes.data + self._layout.header_nbytes
        with self._sending:
            if marks.slot.due is not block:
                return
            marks.copying.record(self._link)
            before = time.perf_counter()
            for number, (place, nbytes, pieces) in enumerate(orders):
                _copy(address + place, source + place, nbytes, self._link, pieces, pitch)
                if number == 0:
                    marks.sent = (before + time.perf_counter()) / 2
            marks.copied.record(self._link)
            marks.slot.copied.record(self._link)
            marks.slot.due = None  # last: from now on the slot is filled again

    def _launch_frames(self, memory: Any, count: int) -> None:
        layout, cells = self._layout, np.int64(self._layout.frame.cells)
        for frame in range(count):
            self._advance(self._steps)
            for i, name in enumerate(layout.frame.fields):
                plane = frame * len(layout.frame.fields) + i
                data = memory[layout.header_nbytes + plane * layout.frame.plane_nbytes :]
                field = self._states[self._now]["uv".index(name)]
                self._stage((STAGE_THREADS,), (STAGE_THREADS,), (field, data, self._partial, cells))
                statistics = memory[plane * 8 * len(STATISTICS) :]
                self._summarise((1,), (STAGE_THREADS,), (self._partial, statistics, cells))
        if self._encoder is not None:
            self._encoder.encode(count)

    def wait(self, block: Block) -> None:
        """Return when the copy of `block` is done."""
        marks = self._marks[block.buffer.ctypes.data]
        with marks.lock, self._device:  # for each slab a thread comes; one of them does it
            if marks.arrived:
                return
            if self._encoder is not None:
                self._send(block)
            marks.copied.synchronize()
            if self._encoder is not None:
                block.chunks = chunks_in(block)
            block.compute_start, block.compute_seconds = marks.interval(marks.computing, marks.launched, marks.staged)
            if self._encoder is not None:  # not what the device waited for these orders
                block.compute_seconds += marks.interval(marks.staged, marks.gathered, marks.computed)[1]
            block.link_start, block.link_seconds = marks.interval(marks.copying, marks.sent, marks.copied)
            marks.arrived = True


def _copy(address: int, source: int, nbytes: int, stream: Stream, pieces: int = 1, pitch: int = 0) -> None:
    """Queue the copy of so many bytes to the host, or of as many pieces of them, `pitch` bytes apart."""
    if pieces == 1:
        runtime.memcpyAsync(address, source, nbytes, runtime.memcpyDeviceToHost, stream.ptr)
    else:
        runtime.memcpy2DAsync(address, pitch, source, pitch, nbytes, pieces, runtime.memcpyDeviceToHost, stream.ptr)


def _upload(values: NDArray[Any], field: Any) -> None:
    """Copy values of any precision to the device, some lines at a time: at once takes two more copies on the host."""
    lines = max(1, UPLOAD_BYTES * len(field) // field.nbytes)
    for line in range(0, len(field), lines):
        field[line : line + lines].set(values[line : line + lines].astype(field.dtype))


def tune(config: Config, layout: BlockLayout, start: Start, most: int = 16) -> Iterator[tuple[Tiling, float]]:
    """Yield the `most` tilings of a run that are likely to be fast, and the Gcell/s measured of each.

    At the end the fastest is kept for later runs of the same grid on a GPU of the same name.
    """
    solver = CudaSolver(config, layout, start)
    job, gpu, name = solver.job, solver.gpu, tuning_name(solver.device, config, solver.job)
    likely = sorted(tilings(job, gpu), key=lambda tiling: tiling.estimate(job, gpu))
    speeds: dict[Tiling, float] = {}
    for tiling in dict.fromkeys([solver.tiling, *likely[:most]]):
        del solver  # before the next takes its memory
        solver = CudaSolver(config, layout, start, tiling)
        solver.advance(job.steps)
        times = max(2, round(20_000 / tiling.estimate(job, gpu)))
        seconds = statistics.median(solver.seconds(job.steps, times) for _ in range(5))
        speeds[tiling] = layout.frame.cells * job.steps * times / seconds / 1e9
        yield tiling, speeds[tiling]
    remember(name, max(speeds, key=lambda tiling: speeds[tiling]))
