"""The production solver for NVIDIA GPUs: CuPy, with the kernels of the folder ``kernels``.

The compute stream advances the fields and stages each frame. All of this work for a block is one CUDA graph. The link
copies the block to the host on another stream meanwhile.

Streams, events, memory and kernels belong to the device that was current in the thread that made them. A new thread
starts with device 0. So every method, and every function that a method returns, uses them `with self._device`.
"""

import math
import statistics
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

import cupy
import numpy as np
from cupy.cuda import Event, Stream, runtime
from numpy.typing import NDArray

from gsio.compute.cuda import link
from gsio.compute.cuda.cubins import load_module
from gsio.compute.cuda.graphs import Graphs
from gsio.compute.cuda.link import BlockLink
from gsio.compute.cuda.ring import copy_to_host
from gsio.compute.cuda.sources import ADVANCE, FLAG_STRIDE, kernel_options
from gsio.compute.cuda.tiling import (
    MOST_STEPS,
    Device,
    Tiling,
    choose,
    job_of,
    pitch_of,
    set_rows,
    tile_plan,
    tilings,
    tuning_name,
)
from gsio.compute.host import grid_shape
from gsio.config import Config
from gsio.frames.block import Block
from gsio.frames.format import FrameFormat
from gsio.frames.layout import BlockLayout
from gsio.model.gray_scott import Coefficients, Field, coefficients
from gsio.model.start import Start

UPLOAD_BYTES = 64 << 20


def count_devices() -> int:
    """Return the number of GPUs CuPy can use."""
    return int(runtime.getDeviceCount())


def free_bytes(device: int) -> int:
    """Return the free memory of a GPU."""
    with cupy.cuda.Device(device):
        return int(runtime.memGetInfo()[0])


def needed_bytes(config: Config, layout: BlockLayout) -> int:
    """Return the bytes of device memory of a run: two copies of each field, maps of the rates, the link."""
    *lines, cols = grid_shape(config, layout)
    cells = math.prod(lines) * pitch_of(cols)
    fields = (4 + 2 * config.model.maps) * cells * np.dtype(config.model.precision).itemsize
    return fields + link.needed_bytes(layout)


class Halo(Protocol):
    """The rows around a band, which come from other GPUs."""

    @property
    def streams(self) -> Mapping[int, Stream]:
        """The streams after which the rows have arrived, above (0) and below (1), where there are any."""

    def wait(self) -> None:
        """Let the compute stream wait for these streams, and until the neighbours have read the rows of this band."""


class CudaSolver:
    """One NVIDIA GPU, float32 or float64."""

    backend = "cupy"

    def __init__(
        self,
        config: Config,
        layout: BlockLayout,
        start: Start,
        tiling: Tiling | None = None,
        *,
        recall: Callable[[str], Any] = lambda name: None,
        own: slice | None = None,
    ) -> None:
        """Put `start` on the GPU; `recall` returns the record of a tuned tiling, which is used if none is given.

        The solver of a band with its halo has a `layout` of parts, which have only its `own` rows.
        """
        self._layout = layout
        self._steps = config.run.steps_per_frame
        self._device = cupy.cuda.Device(config.run.device)
        dtype = np.dtype(config.model.precision)
        constants = coefficients(config.model, start.feed, start.kill)
        feed, keep_v = np.broadcast_arrays(constants.feed, constants.keep_v)
        rates = 0 if feed.ndim == 0 else 1 if feed.shape[-2:] == (1, 1) else 2
        shape = grid_shape(config, layout)
        pitch = pitch_of(shape[-1])
        self._own = own if own is not None else slice(None)
        with self._device:
            properties = runtime.getDeviceProperties(self._device.id)
            self.device = properties["name"].decode()
            self.job = job_of(config, by_cell=rates == 2)
            self.gpu = Device(properties["multiProcessorCount"], properties["sharedMemPerBlockOptin"])
            self.tiling = tiling or choose(self.job, self.gpu, recall(tuning_name(self.device, config, self.job)))
            self.link = BlockLink(layout, self._device, pitch)
            self._compute = self.link.compute
            # The blocks of a launch of many passes wait for one another, so that all have to run at once.
            options = kernel_options(config, self.tiling, self.job, self.gpu, constants.centre, rates)
            module = load_module(ADVANCE, options, cooperative=self.tiling.at_once)
            self._kernel = module.get_function("advance")
            self._kernel.max_dynamic_shared_size_bytes = self.tiling.shared_nbytes(self.job)
            of_members = _coefficients_structs(constants, dtype)
            self._constants = of_members[:1].reshape(())
            if rates == 1:
                feed = of_members.view(dtype)  # the kernel finds the coefficients of each member there
            if rates == 2:
                of_maps = (feed.shape[0] if feed.ndim == 3 else 1, *shape[-2:])
                feed, keep_v = np.broadcast_to(feed, of_maps), np.broadcast_to(keep_v, of_maps)
                feed, keep_v = (_padded(rate, pitch) for rate in (feed, keep_v))
            maps = len(feed) if rates == 2 else 1
            self._rates = tuple(cupy.asarray(np.ascontiguousarray(rate, dtype)) for rate in (feed, keep_v))
            self._plan = tile_plan(self.tiling, self.job, maps)
            self._flags = cupy.zeros(int(self._plan["tiles"]) * FLAG_STRIDE, np.uint32)
            # Two copies of (u, v): a pass reads one and writes the other.
            self._states = [tuple(cupy.empty((*shape[:-1], pitch), dtype) for _ in "uv") for _ in range(2)]
            for field, values in zip(self._states[0], start[:2], strict=True):
                _upload(np.broadcast_to(values, shape), field)
            self.now = 0
            self._graphs = Graphs([(self._device, self._compute)])
            runtime.deviceSynchronize()  # the arrays were filled on CuPy's own stream

    def advance(self, steps: int) -> None:
        """Advance both fields by `steps` time steps, on the compute stream."""
        with self._device, self._compute:
            self.now = self._graphs.run(("advance", steps, self.now), self.launches(steps), lambda: self.order(steps))

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

    def order(self, steps: int, halo: Halo | None = None) -> int:
        """Queue the launches of `steps` time steps on the current stream, and return `now` after them.

        Where a band's `halo` arrives on other streams, the first pass begins with the rows that do not need it.
        """
        while steps > 0:
            at_once = min(steps, MOST_STEPS)
            steps -= at_once
            passes = self.tiling.passes(at_once)
            if self.tiling.at_once:
                if halo is not None:
                    halo.wait()
                self._launch(passes, at_once)
                self.now = (self.now + passes) % 2
            else:
                for i in range(passes):
                    done = at_once * (i + 1) // passes
                    self._order_pass(done - at_once * i // passes, steps + at_once - done, None if i else halo)
            halo = None  # it is here
        return self.now

    def _order_pass(self, steps: int, left: int, halo: Halo | None) -> None:
        """Queue one pass of `steps` time steps, after which `left` steps follow before the next exchange of halos."""
        start, stop, _ = self._own.indices(self.job.rows)
        needed = range(max(start - left, 0), min(stop + left, self.job.rows))
        if halo is None:
            self._launch(1, steps, needed)
        elif inner := self._inner(steps, needed, halo.streams):
            self._launch(1, steps, inner)
            for side, stream in halo.streams.items():
                with stream:
                    self._launch(1, steps, range(inner.stop, needed.stop) if side else range(needed.start, inner.start))
            halo.wait()
        else:
            halo.wait()
            self._launch(1, steps, needed)
        self.now = 1 - self.now

    def _inner(self, steps: int, needed: range, sides: Collection[int]) -> range:
        """Return the rows of whole tiles that need nothing of the halos at some sides (0 above, 1 below) in a pass."""
        start = self._own.start + steps if 0 in sides else needed.start
        stop = self._own.stop - steps if 1 in sides else needed.stop
        spare = max(0, stop - start) % self.tiling.height(self.job)
        above = spare if 1 not in sides else spare // 2 if 0 in sides else 0
        return range(start + above, stop - spare + above)

    def _launch(self, passes: int, steps: int, rows: range | None = None) -> None:
        """Launch the kernel once, for `steps` steps of some rows in `passes` passes of nearly the same length."""
        plan = self._plan.copy()
        if rows is not None:
            set_rows(plan, self.tiling, self.job, rows)
        plan["passes"], plan["steps"], plan["longer"] = passes, steps // passes, steps % passes
        blocks = min(int(plan["tiles"]), self.gpu.multiprocessors)
        fields = (*self._states[self.now], *self._states[1 - self.now])
        arguments = (*fields, *self._rates, self._flags, plan, self._constants)
        shared = self.tiling.shared_nbytes(self.job)
        self._kernel((blocks,), (32 * self.tiling.shape.warps,), arguments, shared_mem=shared)

    def rows(self, name: str, where: slice) -> Any:
        """Return a view of rows of u or v as they are now, also of the halo of a band, with the cells between rows."""
        return self._states[self.now]["uv".index(name)][where]

    def snapshot(self) -> Callable[[], tuple[Field, Field]]:
        """Queue copies of u and v to pinned memory; return a function that waits for them and returns them."""
        with self._device:
            u, v = copies = pinned_fields(self._layout.frame)
        wait = self.copy(copies)

        def copied() -> tuple[Field, Field]:
            wait()
            return u, v

        return copied

    def copy(self, fields: Sequence[Field]) -> Callable[[], None]:
        """Queue copies of u and v to `fields` in pinned memory, and return a function that waits for them."""
        with self._device, self._compute:
            copied = Event(block=True, disable_timing=True)
            for name, to in zip("uv", fields, strict=True):
                self._copy(name, to)
            copied.record()

        def wait() -> None:
            with self._device:
                copied.synchronize()

        return wait

    def _copy(self, name: str, to: Field) -> None:
        """Queue a copy of u or v to the host, without the cells between rows."""
        field, row = self.rows(name, self._own), to.shape[-1] * to.itemsize
        pitch = field.shape[-1] * to.itemsize
        pieces, nbytes = (1, to.nbytes) if row == pitch else (to.nbytes // row, row)
        copy_to_host(to.ctypes.data, field.data.ptr, nbytes, self._compute, pieces, row, pitch)

    def field(self, name: str) -> Field:
        """Return a host copy of u or v, of the layout's shape."""
        with self._device, self._compute:
            padded = self.rows(name, self._own).get()
        return np.ascontiguousarray(padded[..., : self.job.cols])

    def allocate(self, nbytes: int) -> NDArray[np.uint8]:
        """Return pinned memory."""
        return self.link.allocate(nbytes)

    def fill(self, block: Block) -> None:
        """Queue the next `block.count` frames and their copy. Returns before the GPU has done them."""
        # A call that releases Python's lock may wait to get it back, so that the calls are few.
        with self._device, self._compute:
            number, memory = self.link.begin(block)
            self.link.mark(block)
            launches = block.count * (len(self._layout.frame.fields) + self.launches(self._steps)) + 4
            key = (number, block.count, self.now)
            self.now = self._graphs.run(key, launches, lambda: self._order_frames(memory, block.count))
            self.link.send(block, self._graphs.launched)

    def _order_frames(self, memory: Any, count: int) -> int:
        for frame in range(count):
            self.order(self._steps)
            self.stage(memory, frame)
        self.link.finish(memory, count)
        return self.now

    def stage(self, memory: Any, frame: int) -> None:
        """Queue the staging of u and v, as far as they are saved, as a frame of a block, on the current stream."""
        fields = self._layout.frame.fields
        for i, name in enumerate(fields):
            self.link.stage(self.rows(name, self._own), memory, frame * len(fields) + i)

    def wait(self, block: Block) -> None:
        """Return when the copy of `block` is done."""
        self.link.wait(block)


def pinned_fields(frame: FrameFormat) -> tuple[Field, Field]:
    """Return pinned memory for u and v, from CuPy's pool: an allocation stops the device."""
    memory = (cupy.cuda.alloc_pinned_memory(frame.cells * frame.computed.itemsize) for _ in "uv")
    u, v = (np.frombuffer(piece, frame.computed, frame.cells).reshape(frame.shape) for piece in memory)
    return u, v


def _coefficients_structs(constants: Coefficients, dtype: np.dtype[Any]) -> NDArray[np.void]:
    """Return the struct Coefficients of ``stencil.cu`` of each member; rates that vary by cell get the first value."""
    names = ("spread_u", "spread_v", "rest", "feed", "keep_u", "keep_v", "dt")
    values = [np.ravel(getattr(constants, name)) for name in names]
    if constants.keep_v.shape[-2:] not in ((), (1, 1)):
        values = [value[:1] for value in values]
    structs = np.zeros(max(map(len, values)), [(name, dtype) for name in names])
    for name, value in zip(names, values, strict=True):
        structs[name] = value
    return structs


def _padded(values: NDArray[Any], pitch: int) -> NDArray[Any]:
    """Return rows of `pitch` cells; nobody needs those that are added."""
    if (after := pitch - values.shape[-1]) == 0:
        return values
    return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, after)])


def _upload(values: NDArray[Any], field: Any) -> None:
    """Copy values of any precision to the device in pieces, since the host needs two more copies of each."""
    lines = max(1, UPLOAD_BYTES * len(field) // field.nbytes)
    for line in range(0, len(field), lines):
        piece = values[line : line + lines].astype(field.dtype)
        field[line : line + lines].set(_padded(piece, field.shape[-1]))


def tune(
    config: Config,
    layout: BlockLayout,
    start: Start,
    recall: Callable[[str], Any],
    remember: Callable[[str, Any], object],
    most: int = 16,
) -> Iterator[tuple[Tiling, float]]:
    """Yield the `most` tilings of a run that are likely to be fast, and the measured Gcell/s of each.

    At the end `remember` gets the record of the fastest, for later runs of the same grid on a GPU of the same name.
    """
    solver = CudaSolver(config, layout, start, recall=recall)
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
    remember(name, max(speeds, key=lambda tiling: speeds[tiling]).record())
