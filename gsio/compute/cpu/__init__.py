"""The production solver for machines without a GPU: the functions of ``wavefront``, on every core it may use."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import structlog
from numpy.typing import NDArray

from gsio.compute.cpu.wavefront import (
    NEUMANN,
    PAD,
    PASS_STEPS,
    PERIODIC,
    ZERO,
    Constants,
    advance,
    columns,
    stage_plane,
)
from gsio.compute.host import pack, stage
from gsio.compute.statistics import tree
from gsio.config import Config
from gsio.frames.block import Block
from gsio.frames.layout import BlockLayout
from gsio.machine import usable_cores
from gsio.model.gray_scott import Field, coefficients
from gsio.model.start import Start
from gsio.processes import check_threads

log = structlog.get_logger()

BOUNDARIES = {"periodic": PERIODIC, "neumann": NEUMANN, "zero": ZERO}
CACHE = 48 << 10  # bytes of a core's first-level cache, if the machine does not say


class CpuSolver:
    """Numba on the cores of this machine, float32 or float64."""

    backend = "numba"

    def __init__(self, config: Config, layout: BlockLayout, start: Start, own: slice | None = None) -> None:
        """Prepare the run of a grid, or of a band with its halo, of which the layout has the rows `own`."""
        dtype = np.dtype(config.model.precision)
        self._layout = layout
        self._steps = config.run.steps_per_frame
        self._boundary = BOUNDARIES[config.grid.boundary]
        self._threads = min(config.run.threads or usable_cores(), numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
        self._caller = 0
        self.device = f"CPU, {self._threads} threads"
        members, rows, cols = self._shape = (config.model.members, config.grid.rows, config.grid.cols)
        self._own = own if own is not None else slice(None)
        # Fields are [cell] here: see `_load_row`.
        self._u, self._v = (np.broadcast_to(f, self._shape).astype(dtype).reshape(-1) for f in start[:2])
        self._u_new, self._v_new = np.zeros_like(self._u), np.zeros_like(self._v)
        c = coefficients(config.model, start.feed, start.kill)
        self._constants = Constants._make(map(dtype.type, (c.centre, c.spread_u, c.spread_v, c.rest, c.dt)))
        self._rates = tuple(_rates(rate, self._shape, dtype) for rate in np.broadcast_arrays(c.feed, c.keep_v))
        self._tiles, cells = cut(members, rows, cols, self._threads, dtype.itemsize)
        self._rings = np.zeros((self._threads, cells), dtype)
        self._compile()

    def _compile(self) -> None:
        """Compile before the run begins. This takes seconds the first time; later runs load Numba's cache on disk."""
        start = time.perf_counter()
        self.advance(0)
        block = Block(self._layout, self.allocate(self._layout.block_nbytes))
        self._stage("v", block.data[0, 0], block.statistics[0, 0])
        seconds = time.perf_counter() - start
        if seconds > 2:
            log.info("solver compiled", seconds=round(seconds, 1))

    def advance(self, steps: int) -> None:
        """Advance both fields by `steps` time steps."""
        if self._caller != (caller := threading.get_ident()):  # Numba starts threads for each calling thread
            check_threads(self._threads)
            self._caller = caller
        numba.set_num_threads(self._threads)  # affects the calling thread only
        arrays = self._u, self._v, self._u_new, self._v_new
        how = self._constants, self._boundary, self._shape, self._tiles
        arrays = advance(*arrays, self._rings, *self._rates, *how, steps)
        self._u, self._v, self._u_new, self._v_new = arrays

    def field(self, name: str) -> Field:
        """Return a copy of u or v, of the layout's shape."""
        return self._rows(name, self._own).reshape(self._layout.frame.shape).copy()

    def _rows(self, name: str, where: slice) -> NDArray[Any]:
        """Return a view of rows of u or v, [member, row, col]."""
        return (self._u if name == "u" else self._v).reshape(self._shape)[:, where]

    def rows(self, where: slice) -> NDArray[Any]:
        """Return a copy of rows of both fields, [field, member, row, col]."""
        return np.stack([self._rows(name, where) for name in "uv"])

    def set_rows(self, where: slice, rows: NDArray[Any]) -> None:
        """Replace rows of both fields by `rows`, [field, member, row, col]."""
        for name, values in zip("uv", rows, strict=True):
            self._rows(name, where)[:] = values

    def snapshot(self) -> Callable[[], tuple[Field, Field]]:
        """Copy u and v at once, and return a function that returns the copies."""
        copies = self.field("u"), self.field("v")
        return lambda: copies

    def allocate(self, nbytes: int) -> NDArray[np.uint8]:
        """Return ordinary memory."""
        return np.zeros(nbytes, np.uint8)

    def fill(self, block: Block) -> None:
        """Compute and stage the next `block.count` frames."""
        for frame in range(block.count):
            self.advance(self._steps)
            self.stage(block, frame)

    def stage(self, block: Block, frame: int) -> None:
        """Stage the present fields as a frame of `block`."""
        for i, name in enumerate(self._layout.frame.fields):
            sums = block.sums[frame, i] if self._layout.part else None
            self._stage(name, block.data[frame, i], block.statistics[frame, i], sums)

    def _stage(
        self,
        name: str,
        data: NDArray[np.uint8],
        statistics: NDArray[np.float64],
        sums: NDArray[np.float64] | None = None,
    ) -> None:
        field = self._rows(name, self._own).reshape(-1, self._layout.frame.shape[-1])
        stored, error = pack(field, self._layout.frame)
        itemsize = self._layout.frame.dtype.itemsize
        words, planes = stored.view(f"u{itemsize}"), data.reshape(itemsize, -1)
        values = data.view(words.dtype)
        tasks = min(self._threads, len(field))
        low, high, of_rows, bad = stage_plane(field, words, planes, values, self._layout.frame.shuffle, tasks)
        if bad:  # This is rare and ends the run: count and summarise the finite values the slow way.
            stage(field, self._layout.frame, data, statistics, sums)
            return
        statistics[:] = low, high, tree(of_rows) / self._layout.frame.cells, error, 0
        if sums is not None:
            sums[:] = of_rows

    def wait(self, block: Block) -> None:
        """Return at once: `fill` leaves the frames complete."""


def _rates(rate: NDArray[np.float64], shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[np.floating[Any]]:
    """Return a rate as [member] if it does not vary by cell, else as [member, cell], or [1, cell] for all members.

    The result is contiguous, because functions are compiled for this layout, which is the fastest to index.
    """
    rate = rate.reshape((1,) * (3 - rate.ndim) + rate.shape)
    if rate.shape[1:] == (1, 1):
        return np.ascontiguousarray(np.broadcast_to(rate[:, 0, 0], shape[:1]), dtype)
    return np.ascontiguousarray(np.broadcast_to(rate, (len(rate), *shape[1:])), dtype).reshape(len(rate), -1)


def cut(members: int, rows: int, cols: int, threads: int, itemsize: int) -> tuple[tuple[int, int], int]:
    """Return the numbers of rows and columns of tiles that a grid is cut into, and the cells of a ring.

    The columns are as wide as possible while all rings of a tile fit into the first-level cache. Rows are added until
    every thread has the same number of tiles, or so many that one more or less does not matter.
    """
    widest = max(4 * PASS_STEPS, int(0.75 * first_level_cache()) // (6 * PASS_STEPS * itemsize) - PAD)
    tiles_x = -(-cols // (widest - 2 * PASS_STEPS))
    tiles_y = 1
    while (tiles := members * tiles_y * tiles_x) % threads and tiles < 8 * threads and tiles_y < rows:
        tiles_y += 1
    width = max(right - left for left, right in (columns(cols, x, tiles_x) for x in range(tiles_x)))
    return (tiles_y, tiles_x), (6 * PASS_STEPS + 2 * (PASS_STEPS + 1)) * (width + 2 * PASS_STEPS + PAD)


def first_level_cache() -> int:
    """Return the bytes of a core's first-level data cache."""
    try:
        return int(Path("/sys/devices/system/cpu/cpu0/cache/index0/size").read_text().strip().removesuffix("K")) << 10
    except (OSError, ValueError):
        return CACHE
