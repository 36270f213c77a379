"""The production solver for machines without a GPU: compiled functions, called by threads of its own."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gsio.compute.cpu.compiling import compiling
from gsio.compute.cpu.staging import stage_rows
from gsio.compute.cpu.team import Team
from gsio.compute.cpu.wavefront import (
    LINE,
    NEUMANN,
    PERIODIC,
    ZERO,
    Constants,
    advance,
    columns,
    ring_rows,
    row_stride,
)
from gsio.compute.host import pack
from gsio.compute.statistics import tree
from gsio.config import Config
from gsio.frames.block import Block
from gsio.frames.layout import BlockLayout
from gsio.machine import usable_cores
from gsio.model.gray_scott import Field, coefficients
from gsio.model.start import Start

BOUNDARIES = {"periodic": PERIODIC, "neumann": NEUMANN, "zero": ZERO}
CACHE_LINE = 64  # bytes, and of the widest vector
CACHE = 512 << 10  # bytes of a core's second-level cache, if the machine does not say
MOST_STEPS = 32  # of a pass
FROM_CACHE, FROM_MEMORY = 2.0, 6.0  # steps that take as long as to load and to save the fields
SLACK = 2 * LINE  # lines around the rings that are read or written with them
SHARE = 8192  # cells for which another thread pays

Fields = tuple[NDArray[Any], NDArray[Any]]  # u and v, [member, row, cell]


class CpuSolver:
    """Functions that Numba compiles for the cores of this machine, float32 or float64."""

    backend = "numba"

    def __init__(
        self,
        config: Config,
        layout: BlockLayout,
        start: Start,
        own: slice | None = None,
        recall: Callable[[str], Any] = lambda name: None,
        remember: Callable[[str, Any], object] = lambda name, record: None,
    ) -> None:
        """Prepare the run of a grid, or of a band with its halo, of which the layout has the rows `own`."""
        dtype = np.dtype(config.model.precision)
        self._layout = layout
        self._steps = config.run.steps_per_frame
        self._boundary = BOUNDARIES[config.grid.boundary]
        members, rows, cols = self._shape = (config.members, config.grid.rows, config.grid.cols)
        self._own = own or slice(None)
        threads = config.run.threads or min(usable_cores(), max(1, members * rows * cols // SHARE))
        self._team = Team(threads)
        self.device = f"CPU, {threads} thread{'s' * (threads > 1)}"
        self._now, self._next = ((_aligned(self._shape, dtype), _aligned(self._shape, dtype)) for _ in range(2))
        for field, given in zip(self._now, start[:2], strict=True):
            field[:] = given
        c = coefficients(config.model, start.feed, start.kill)
        self._constants = Constants(
            dtype.type(c.centre) if c.centre else None,
            *(_rates(of_member, self._shape, dtype) for of_member in (c.spread_u, c.spread_v, c.rest)),
            dtype.type(c.dt),
        )
        self._rates = tuple(_rates(rate, self._shape, dtype) for rate in np.broadcast_arrays(c.feed, c.keep_v))
        self.cut = cut(members, rows, cols, threads, dtype.itemsize, self._steps)
        self._rings = _aligned((threads, self.cut.numbers), dtype)
        with compiling(recall, remember):  # only the first time: later runs load the functions from Numba's cache
            self._advance(self._now, self._next, 0, 0)
            block = Block(layout, self.allocate(layout.block_nbytes))
            self._stage(self._now[0], block.data[0, 0], np.empty(layout.frame.cells), threads - 1)

    def _advance(self, now: Fields, new: Fields, steps: int, share: int) -> tuple[Fields, Fields]:
        """Advance a share of the present fields, and return the fields that are present now, and the others."""
        how = self._constants, self._boundary, self._shape, self.cut.tiles, steps, self.cut.steps
        passes = advance(now, new, self._rings, *self._rates, *how, share, self._team.meeting)
        return (new, now) if passes % 2 else (now, new)

    def advance(self, steps: int) -> None:
        """Advance both fields by `steps` time steps."""
        now, new = self._now, self._next

        def work(share: int) -> None:
            self._now, self._next = self._advance(now, new, steps, share)

        self._team.run(work)

    def field(self, name: str) -> Field:
        """Return a copy of u or v, of the layout's shape."""
        return self._now["uv".index(name)][:, self._own].reshape(self._layout.frame.shape).copy()

    def rows(self, where: slice) -> NDArray[Any]:
        """Return a copy of rows of both fields, [field, member, row, col]."""
        return np.stack([field[:, where] for field in self._now])

    def set_rows(self, where: slice, rows: NDArray[Any]) -> None:
        """Replace rows of both fields by `rows`, [field, member, row, col]."""
        for field, values in zip(self._now, rows, strict=True):
            field[:, where] = values

    def snapshot(self) -> Callable[[], tuple[Field, Field]]:
        """Copy u and v at once, and return a function that returns the copies."""
        copies = self.field("u"), self.field("v")
        return lambda: copies

    def allocate(self, nbytes: int) -> NDArray[np.uint8]:
        """Return ordinary memory."""
        return np.zeros(nbytes, np.uint8)

    def fill(self, block: Block) -> None:
        """Compute and stage the next `block.count` frames."""
        self._make(block, range(block.count), self._steps)

    def stage(self, block: Block, frame: int) -> None:
        """Stage the present fields as a frame of `block`."""
        self._make(block, range(frame, frame + 1), 0)

    def _make(self, block: Block, frames: range, steps: int) -> None:
        """Advance the fields by `steps` and stage them, for each of these frames of `block`."""
        fields, threads = self._layout.frame.fields, self._team.threads
        sums = np.empty((len(frames), len(fields), self._layout.frame.cells // self._layout.frame.shape[-1]))
        found = np.empty((4, len(frames), len(fields), threads))
        now, new = self._now, self._next

        def work(share: int) -> None:
            present, other = now, new
            for place, frame in enumerate(frames):
                present, other = self._advance(present, other, steps, share)
                for i, name in enumerate(fields):
                    field = present["uv".index(name)]
                    found[:, place, i, share] = self._stage(field, block.data[frame, i], sums[place, i], share)
            self._now, self._next = present, other

        self._team.run(work)
        low, high, error, finite = found[0].min(-1), found[1].max(-1), found[2].max(-1), found[3].sum(-1)
        statistics = block.statistics[frames.start : frames.stop]
        statistics[:] = np.stack(
            (low, high, tree(sums) / np.maximum(finite, 1), error, self._layout.frame.cells - finite), -1
        )
        statistics[finite == 0, :4] = 0
        if self._layout.part:
            block.sums[frames.start : frames.stop] = sums

    def _stage(
        self, field: NDArray[Any], data: NDArray[np.uint8], sums: NDArray[np.float64], share: int
    ) -> tuple[float, float, float, int]:
        """Stage a share of a plane, and return the minimum, the maximum, the error and the number of finite values.

        Other threads may advance the fields meanwhile: their first pass leaves the present fields as they are.
        """
        frame = self._layout.frame
        rows = field[:, self._own].reshape(-1, field.shape[-1])
        first, last = (len(rows) * number // self._team.threads for number in (share, share + 1))
        if first == last:
            return np.inf, -np.inf, 0.0, 0
        stored, error = pack(rows[first:last], frame)
        words, planes = stored.view(f"u{frame.dtype.itemsize}"), data.reshape(frame.dtype.itemsize, -1)
        low, high, finite = stage_rows(rows, words, planes, data.view(words.dtype), frame.shuffle, first, last, sums)
        return low, high, error, finite

    def wait(self, block: Block) -> None:
        """Return at once: `fill` leaves the frames complete."""


def _aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return zeros that begin with a cache line, and behind which two vectors of any machine can be read."""
    nbytes = math.prod(shape) * dtype.itemsize
    memory = np.zeros(nbytes + 3 * CACHE_LINE, np.uint8)
    start = -memory.ctypes.data % CACHE_LINE
    return memory[start : start + nbytes].view(dtype).reshape(shape)


def _rates(rate: NDArray[np.float64], shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[np.floating[Any]]:
    """Return a rate as [member] if it does not vary by cell, else as [member, cell], or [1, cell] for all members."""
    rate = rate.reshape((1,) * (3 - rate.ndim) + rate.shape)
    if rate.shape[1:] == (1, 1):
        return np.ascontiguousarray(np.broadcast_to(rate[:, 0, 0], shape[:1]), dtype)
    found = _aligned((len(rate), *shape[1:]), dtype)
    found[:] = rate
    return found.reshape(len(rate), -1)


class Cut(NamedTuple):
    """How a grid is cut: rows and columns of tiles in each member, steps of a pass, and the numbers of a ring."""

    tiles: tuple[int, int]
    steps: int
    numbers: int


def cut(members: int, rows: int, cols: int, threads: int, itemsize: int, steps_per_frame: int) -> Cut:
    """Return the cut of a grid that takes the least time, as far as that can be told beforehand.

    More steps read the fields less often, but leave room for narrower tiles, which compute more of their neighbours'
    cells. The columns of tiles are as wide as the rings of a tile may be. Rows are added until every thread has the
    same number of tiles, or so many that one more or less does not matter.
    """
    cache, best = second_level_cache() // itemsize, (math.inf, Cut((1, 1), 1, 0))
    cost = FROM_CACHE if 4 * members * rows * cols <= cache * threads else FROM_MEMORY
    fewest = -(-steps_per_frame // MOST_STEPS)
    for steps in {-(-steps_per_frame // passes) for passes in range(fewest, 8 * fewest)}:
        widest = cache // 2 // (6 * steps) - 2 * LINE
        tiles_x = 1 if cols <= max(widest, 2 * steps) else -(-cols // max(LINE, widest - 2 * steps))
        tiles_y = 1
        while (tiles := members * tiles_y * tiles_x) % threads and tiles < 8 * threads and tiles_y < rows:
            tiles_y += 1
        width = max(right - left for left, right in (columns(cols, x, tiles_x) for x in range(tiles_x)))
        redundant = (1 + 2 * steps / width * (tiles_x > 1)) * (1 + (steps - 1) * tiles_y / rows)
        numbers = (ring_rows(steps) * row_stride(width + 2 * steps) // LINE + SLACK) * LINE
        best = min(best, (redundant * (1 + cost / steps), Cut((tiles_y, tiles_x), steps, numbers)))
    return best[1]


def second_level_cache() -> int:
    """Return the bytes of a core's second-level cache."""
    try:
        return int(Path("/sys/devices/system/cpu/cpu0/cache/index2/size").read_text().strip().removesuffix("K")) << 10
    except (OSError, ValueError):
        return CACHE
