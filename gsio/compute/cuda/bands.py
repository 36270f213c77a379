"""One grid on several NVIDIA GPUs of one host: each has a band of the grid, and a stream pair of its own.

The time steps of a block are one CUDA graph of all GPUs, so that nothing between them waits for the host; where passes
are long, the host keeps ahead without a graph. Before the steps for which a halo is good, each GPU gets the outermost
rows of its neighbours on streams of their own, and advances its inner rows meanwhile. Each GPU encodes its own chunks,
and copies them over its own link.

One thread of the host drives all GPUs, since this leaves it little to do.
"""

import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import cupy
import msgspec
import numpy as np
from cupy.cuda import Event, Stream
from numpy.typing import NDArray

from gsio.compute.bands import Band, Cost, cut, told
from gsio.compute.cuda.graphs import Graphs
from gsio.compute.cuda.halos import Halos, Lane
from gsio.compute.cuda.segments import encoded_nbytes
from gsio.compute.cuda.solver import CudaSolver, needed_bytes, pinned_fields
from gsio.compute.cuda.tiling import choose, job_of
from gsio.compute.parts import join_blocks
from gsio.config import Config
from gsio.frames.block import Block
from gsio.frames.layout import PAGE, BlockLayout
from gsio.model.gray_scott import Field
from gsio.model.start import Start

COST = Cost(exchange_seconds=2e-5, cells_per_second=1e12, pass_steps=8)  # of an H200 with NVLink
LINK_BANDWIDTH = 3e11  # bytes a second between two of them
# The host keeps ahead of passes that take as many microseconds; a graph of two GPUs takes 20 µs to begin and end.
LONG_PASS = 150
MOST_DEVICES = 64  # that a message names


def bands_of(config: Config, layout: BlockLayout, count: int) -> tuple[Band, ...]:
    """Return `count` bands of a grid: whole slabs of the file if the GPUs encode, else any rows.

    Raises UsageError if there are not enough slabs or rows.
    """
    chunks = layout.chunks
    if chunks.slabs < count and not layout.encoded_nbytes:
        chunks = replace(chunks, lines_per_chunk=max(1, chunks.frame.shape[0] // count))
    return cut(config, chunks, count, COST)


def part_of(config: Config, layout: BlockLayout, band: Band, device: int) -> tuple[Config, BlockLayout]:
    """Return the configuration of the solver of a band on a GPU, and its layout: the parts of frames."""
    own, frame = band.config(config), replace(layout.frame, shape=band.shape(layout.frame.shape))
    run = msgspec.structs.replace(own.run, device=device, steps_per_frame=next(band.rounds(own.run.steps_per_frame)))
    chunks = replace(layout.chunks, frame=frame)
    return msgspec.structs.replace(own, run=run), replace(layout, chunks=chunks, part=True)


def needed_by_each(config: Config, layout: BlockLayout, devices: Sequence[int]) -> list[int]:
    """Return the bytes of device memory that each GPU needs for its band, or a single one for the whole grid."""
    if len(devices) == 1:
        return [needed_bytes(config, layout)]
    bands = bands_of(config, layout, len(devices))
    return [needed_bytes(*part_of(config, layout, *of_one)) for of_one in zip(bands, devices, strict=True)]


def enough(config: Config, layout: BlockLayout, more_than: int, free: int) -> int:
    """Return the smallest number of GPUs, each with `free` bytes, that have enough memory for a run; 0: none is."""
    lines, chunks = layout.frame.shape[0], layout.chunks
    for count in range(more_than + 1, min(lines, MOST_DEVICES) + 1):
        finer = replace(chunks, lines_per_chunk=min(chunks.lines_per_chunk, lines // count))
        encoded = encoded_nbytes(finer, finer.codec) if layout.encoded_nbytes else 0
        parts = replace(layout, chunks=finer, encoded_nbytes=encoded)
        if max(needed_by_each(config, parts, range(count))) <= free:
            return count
    return 0


class _Parts:
    """The parts of a block, one for each band, and whether they are joined; the first thread that waits joins them."""

    def __init__(self, block: Block, headers: NDArray[np.uint8], lanes: Sequence[Lane]) -> None:
        self.block, self.lanes = block, lanes
        self.lock, self.joined = threading.Lock(), False
        self.blocks = block.parts = list[Block]()
        header, chunk = 0, 0
        for lane in lanes:
            layout, lines = lane.layout, lane.band.lines
            if layout.encoded_nbytes:  # in this order, since the chunks of a band come together
                chunks = layout.chunks.chunks_of(layout.frames_per_block)
                data = block.encoded[chunk * layout.encoded_nbytes :][: chunks * layout.encoded_nbytes]
                chunk += chunks
            else:
                width = block.planes.shape[-1] // block.layout.frame.shape[0]
                data = block.planes[..., lines.start * width : lines.stop * width]
            self.blocks.append(Block(layout, headers[header:][: layout.header_nbytes], data))
            header += layout.header_nbytes

    def wait(self) -> None:
        """Return when all parts have arrived, and are joined to the block."""
        with self.lock:
            if self.joined:
                return
            each = list(zip(self.lanes, self.blocks, strict=True))
            for lane, part in each:
                lane.solver.link.start(part)  # all links copy at the same time
            for lane, part in each:
                lane.solver.wait(part)
                for (number, slab), chunks in part.chunks.items():
                    self.block.chunks[number, slab + lane.band.slabs.start] = chunks
            join_blocks(self.blocks, self.block)
            self._join_times()
            self.joined = True

    def _join_times(self) -> None:
        """Set the times of the block: the first begin, and the seconds of the busiest GPU and link."""
        for what in ("compute", "link"):
            for name, of_all in ((f"{what}_start", min), (f"{what}_seconds", max)):
                setattr(self.block, name, of_all(getattr(part, name) for part in self.blocks))


def _estimate(config: Config, lanes: Sequence[Lane]) -> str:
    """Return how the grid is cut, and what that costs by the estimates of tilings; warn if one GPU would be faster."""
    steps, band, solvers = config.run.steps_per_frame, lanes[0].band, [lane.solver for lane in lanes]
    halo = 2 * band.depth * config.grid.cols * np.dtype(config.model.precision).itemsize  # bytes of u and v, one side
    exchanges = len(list(band.rounds(steps))) if halo else 0
    of_step = max(solver.tiling.estimate(solver.job, solver.gpu) / solver.job.steps for solver in solvers)
    hidden = 0 if solvers[0].tiling.at_once else of_step * solvers[0].tiling.depth  # by the inner rows of a pass
    exchange = exchanges * max(0.0, (COST.exchange_seconds + 2 * halo / LINK_BANDWIDTH) * 1e6 - hidden)
    taken, job = steps * of_step + exchange, job_of(config, by_cell=solvers[0].job.by_cell)
    alone = choose(job, solvers[0].gpu).estimate(job, solvers[0].gpu) / job.steps * steps
    return told([lane.band for lane in lanes], alone / taken, exchange / taken, "GPU", "leave --devices out")


class BandsSolver:
    """Several NVIDIA GPUs of one host, float32 or float64.

    A block has parts, the blocks of the bands: each has a header of its own, and its data in the block.
    """

    backend = "cupy"

    def __init__(
        self,
        config: Config,
        layout: BlockLayout,
        start: Start,
        devices: Sequence[int],
        *,
        recall: Callable[[str], Any] = lambda name: None,
        direct: bool = True,
    ) -> None:
        """Put `start` on the GPUs; one may be named several times. If not `direct`, rows travel through host memory.

        `recall` returns the record of a tuned tiling, which is used for the bands that have its size.
        """
        self._layout, self._steps = layout, config.run.steps_per_frame
        self._lanes: list[Lane] = []
        for band, device in zip(bands_of(config, layout, len(devices)), devices, strict=True):
            own, parts = part_of(config, layout, band, device)
            rows = None if band.batch else band.own
            solver = CudaSolver(own, parts, band.start(start), recall=recall, own=rows)
            self._lanes.append(Lane(band, device, parts, solver))
        self._first = self._lanes[0]
        self._halos = Halos(self._lanes, direct=direct)
        names = Counter(lane.solver.device for lane in self._lanes)
        self.device = ", ".join(f"{count} × {name}" for name, count in names.items())
        self._graphs = Graphs([(lane.device, lane.solver.stream) for lane in self._lanes])
        first = self._first.solver
        passes = first.tiling.passes(first.job.steps)
        self._long_passes = first.tiling.estimate(first.job, first.gpu) > LONG_PASS * passes
        self.note = _estimate(config, self._lanes)
        self._headers: dict[int, NDArray[np.uint8]] = {}
        self._parts: dict[int, _Parts] = {}

    @property
    def stream(self) -> Stream:
        """The compute stream of the first GPU, with which the others join after all work."""
        return self._first.solver.stream

    @property
    def tiling(self) -> Any:
        """How the first band is cut into tiles."""
        return self._first.solver.tiling

    @property
    def bands(self) -> tuple[Band, ...]:
        """The bands of the grid, in the order of the devices."""
        return tuple(lane.band for lane in self._lanes)

    def launches(self, steps: int) -> int:
        """Return the number of kernels that `steps` time steps take on one GPU."""
        return sum(map(self._first.solver.launches, self._first.band.rounds(steps)))

    def advance(self, steps: int) -> None:
        """Advance both fields by `steps` time steps."""
        self._run(("advance", steps), self.launches(steps), lambda: self._order_steps(steps))

    def seconds(self, steps: int, times: int) -> float:
        """Return the seconds the GPUs take to advance by `steps` time steps `times` times."""
        with self._first.device:
            before, after = Event(), Event()
            before.record(self.stream)
            for _ in range(times):
                self.advance(steps)
            for lane in self._lanes[1:]:
                with lane.device:
                    lane.ready.record(lane.solver.stream)
                self.stream.wait_event(lane.ready)
            after.record(self.stream)
            after.synchronize()
            return float(cupy.cuda.get_elapsed_time(before, after)) / 1e3

    def _run(self, what: tuple[Any, ...], launches: int, order: Callable[[], None]) -> None:
        """Call `order`, or run its orders once more as a graph of all GPUs."""

        def ordered() -> list[int]:
            order()
            return [lane.solver.now for lane in self._lanes]

        launches = sys.maxsize if self._long_passes else launches * len(self._lanes)
        with self._first.device:
            key = (*what, *(lane.solver.now for lane in self._lanes))
            found = self._graphs.run(key, launches, ordered)
        for lane, now in zip(self._lanes, found, strict=True):
            lane.solver.now = now

    def _order_steps(self, steps: int) -> None:
        """Queue time steps in rounds: an exchange of halos, and the steps for which they are good."""
        for of_round in self._first.band.rounds(steps):
            self._halos.exchange()
            for lane in self._lanes:
                with lane.current():
                    lane.solver.order(of_round, lane if lane.sides else None)

    def snapshot(self) -> Callable[[], tuple[Field, Field]]:
        """Queue copies of u and v to pinned memory; return a function that waits for them and returns them."""
        with self._first.device:
            u, v = pinned_fields(self._layout.frame)
        waits = []
        for lane in self._lanes:
            lines = slice(lane.band.lines.start, lane.band.lines.stop)
            waits.append(lane.solver.copy((u[lines], v[lines])))

        def copied() -> tuple[Field, Field]:
            for wait in waits:
                wait()
            return u, v

        return copied

    def field(self, name: str) -> Field:
        """Return a host copy of u or v, of the layout's shape."""
        return np.concatenate([lane.solver.field(name) for lane in self._lanes])

    def allocate(self, nbytes: int) -> NDArray[np.uint8]:
        """Return pinned memory for a block, and keep more behind it for the headers of its parts."""
        start = -(-nbytes // PAGE) * PAGE
        headers = sum(lane.layout.header_nbytes for lane in self._lanes)
        pinned = self._first.solver.allocate(start + headers)
        self._headers[pinned.ctypes.data] = pinned[start:]
        return pinned[:nbytes]

    def fill(self, block: Block) -> None:
        """Queue the next `block.count` frames and their copies. Returns before the GPUs have done them."""
        address, count = block.buffer.ctypes.data, block.count
        if address not in self._parts:
            self._parts[address] = _Parts(block, self._headers[address], self._lanes)
        parts = self._parts[address]
        parts.joined = False
        numbers, memories = [], []
        for lane, part in zip(self._lanes, parts.blocks, strict=True):
            part.count = count
            with lane.current():
                number, memory = lane.solver.link.begin(part)
                lane.solver.link.mark(part)
            numbers.append(number)
            memories.append(memory)

        def order() -> None:
            for frame in range(count):
                self._order_steps(self._steps)
                for lane, memory in zip(self._lanes, memories, strict=True):
                    with lane.current():
                        lane.solver.stage(memory, frame)
            for lane, memory in zip(self._lanes, memories, strict=True):
                with lane.current():
                    lane.solver.link.finish(memory, count)

        launches = count * (len(self._layout.frame.fields) + self.launches(self._steps)) + 4
        self._run((*numbers, count), launches, order)
        for lane, part in zip(self._lanes, parts.blocks, strict=True):
            with lane.current():
                lane.solver.link.send(part, self._graphs.launched)

    def wait(self, block: Block) -> None:
        """Return when the copies of `block` are done, and its parts are joined."""
        self._parts[block.buffer.ctypes.data].wait()
