"""The production solver for machines without a GPU: Numba, compiled to vector code, on every core it may use.

A field does not fit the cache, and a step does little with each cell: one by one, steps would wait for memory. So up
to `LEVELS` steps go over the field together, as a wavefront. Level n holds rows after n steps; once three of its rows
are there, level n + 1 can make the middle one. Here, three steps together::

    level 3  . n . . .             n: made at this front, from three rows of the level below
    level 2  o o n . .             o: kept, in a ring of three rows that stays in the cache
    level 1  . o o n .
    level 0  . . o o n             n: copied from the field, or outside the grid by the boundary
             row ──▶ └ front

The last level is written to a second array, which is read the next time. Each thread has a band of rows, and makes for
itself the rows beyond that it needs, one less per level and side. A cell has the same bits wherever the bands are cut,
as the same instructions make every copy of it.
"""

import time

import numba
import numpy as np
import structlog
from numba import njit, prange
from numpy.typing import NDArray

from gsio.compute.base import Field, stage
from gsio.compute.stencil import Coefficients, coefficients
from gsio.config import Config, usable_cores
from gsio.initial import Start
from gsio.staging import Block, FrameLayout

log = structlog.get_logger()

LEVELS = 16  # as many as leave the rings of a 1080p grid in a core's L2 cache (float32: 0.7 MB)
PAGE = 4096  # bytes
PERIODIC, NEUMANN, ZERO = range(3)
BOUNDARIES = {"periodic": PERIODIC, "neumann": NEUMANN, "zero": ZERO}


@njit(fastmath={"contract"})
def _step_row(u0, u1, u2, v0, v1, v2, u_new, v_new, c):  # type: ignore[no-untyped-def]
    """Advance one row, given the rows above, at and below it as 1-D arrays that have a halo cell at either end.

    The sum of the cells above and below serves the corners on both sides and the edges; it is carried from cell to
    cell, which costs less than loading it again.
    """
    one, four = u1.dtype.type(1), u1.dtype.type(4)  # next to a Python number, float32 would become float64
    u_left, u_here = u0[0] + u2[0], u0[1] + u2[1]
    v_left, v_here = v0[0] + v2[0], v0[1] + v2[1]
    for j in range(len(u_new)):
        u, v = u1[j + 1], v1[j + 1]
        u_right, v_right = u0[j + 2] + u2[j + 2], v0[j + 2] + v2[j + 2]
        u_corners, u_edges = u_left + u_right, u_here + (u1[j] + u1[j + 2])
        v_corners, v_edges = v_left + v_right, v_here + (v1[j] + v1[j + 2])
        u_laplacian = c.corner * (u_corners - four * u) + c.edge * (u_edges - four * u)
        v_laplacian = c.corner * (v_corners - four * v) + c.edge * (v_edges - four * v)
        reaction = c.dt * u * (v * v)
        u_new[j] = u + (c.u_diffusion * u_laplacian + (c.feed * (one - u) - reaction))
        v_new[j] = v + (c.v_diffusion * v_laplacian + (reaction - c.decay * v))
        u_left, u_here, v_left, v_here = u_here, u_right, v_here, v_right


@njit
def _close_row(row, boundary):  # type: ignore[no-untyped-def]
    """Set the halo cells at both ends of a row; those of the zero boundary never change."""
    if boundary == PERIODIC:
        row[0], row[-1] = row[-2], row[1]
    elif boundary == NEUMANN:
        row[0], row[-1] = row[1], row[-2]


@njit
def _copied_row(i, rows, boundary):  # type: ignore[no-untyped-def]
    """Return the row of the grid that row `i`, inside or outside, is a copy of; a mirrored row evolves as its image."""
    if boundary == PERIODIC:
        return i % rows
    if boundary == NEUMANN:
        i %= 2 * rows
        return min(i, 2 * rows - 1 - i)
    return i


@njit
def _ring_row(rings, level, field, i, cols):  # type: ignore[no-untyped-def]
    """Return the place of row `i`, with its halo cells.

    Rings lie on whole pages, every other level half a page on: a store at the low 12 address bits of a load that comes
    soon after would hold that load up, at up to half the speed.
    """
    start = level % 2 * (PAGE // 2 // rings.itemsize)
    return rings[level, field, i % 3, start : start + cols + 2]


@njit
def _advance_band(u, v, u_new, v_new, rings, c, boundary, first, last, steps):  # type: ignore[no-untyped-def]
    """Write the rows [first, last) of `u_new`, `v_new`, which are `steps` steps on from `u`, `v`."""
    rows, cols = u.shape
    for front in range(first - steps, last + steps):
        for level in range(min(steps, (front - first + steps) // 2) + 1):
            i = front - level
            if level > 0:
                u0, v0 = _ring_row(rings, level - 1, 0, i - 1, cols), _ring_row(rings, level - 1, 1, i - 1, cols)
                u1, v1 = _ring_row(rings, level - 1, 0, i, cols), _ring_row(rings, level - 1, 1, i, cols)
                u2, v2 = _ring_row(rings, level - 1, 0, i + 1, cols), _ring_row(rings, level - 1, 1, i + 1, cols)
                if level == steps:
                    _step_row(u0, u1, u2, v0, v1, v2, u_new[i], v_new[i], c)
                    continue
            u_row, v_row = _ring_row(rings, level, 0, i, cols), _ring_row(rings, level, 1, i, cols)
            if boundary == ZERO and not 0 <= i < rows:
                u_row[:] = 0
                v_row[:] = 0
            elif level == 0:
                k = _copied_row(i, rows, boundary)
                u_row[1:-1] = u[k]
                v_row[1:-1] = v[k]
            else:
                _step_row(u0, u1, u2, v0, v1, v2, u_row[1:-1], v_row[1:-1], c)
            _close_row(u_row, boundary)
            _close_row(v_row, boundary)


@njit(parallel=True, nogil=True, cache=True)
def _advance(u, v, u_new, v_new, rings, c, boundary, steps):  # type: ignore[no-untyped-def]
    """Advance `steps` steps, and return the four arrays, those with the result first."""
    rows, bands, levels = u.shape[0], rings.shape[0], rings.shape[1]
    while steps > 0:
        together = min(steps, levels)
        for band in prange(bands):
            first, last = rows * band // bands, rows * (band + 1) // bands
            _advance_band(u, v, u_new, v_new, rings[band], c, boundary, first, last, together)
        u, v, u_new, v_new = u_new, v_new, u, v
        steps -= together
    return u, v, u_new, v_new


@njit(parallel=True, nogil=True, fastmath={"reassoc", "nsz"}, cache=True)
def _stage(field, words, planes, values, shuffle, bands):  # type: ignore[no-untyped-def]
    """Copy `field` to `planes` [byte, cell] if `shuffle`, else to `values` [cell].

    `words` is the memory of `field` as unsigned integers; `planes` and `values` are the same memory too. Returns
    minimum, maximum, sum (float64, summed per row: the same for any number of bands) and non-finite count.
    """
    rows, cols = field.shape
    low, high = np.empty(rows, field.dtype), np.empty(rows, field.dtype)
    total, bad = np.empty(rows, np.float64), np.empty(rows, np.int64)
    largest = np.finfo(field.dtype).max
    for band in prange(bands):
        for i in range(rows * band // bands, rows * (band + 1) // bands):
            row, bits = field[i], words[i]
            smallest, biggest, added, wrong = row[0], row[0], 0.0, 0
            for j in range(cols):
                x = row[j]
                smallest, biggest = min(smallest, x), max(biggest, x)
                added += x
                wrong += 0 if abs(x) <= largest else 1
            low[i], high[i], total[i], bad[i] = smallest, biggest, added, wrong
            if shuffle:
                for plane in range(planes.shape[0]):
                    out = planes[plane, i * cols : (i + 1) * cols]
                    for j in range(cols):
                        out[j] = bits[j] >> (8 * plane)
            else:
                for j in range(cols):
                    values[i * cols + j] = row[j]
    return low.min(), high.max(), total.sum(), bad.sum()


class CpuSolver:
    """Numba on the cores of this machine, float32 or float64."""

    backend = "numba"

    def __init__(self, config: Config, layout: FrameLayout, start: Start) -> None:
        dtype = np.dtype(config.model.precision)
        self._layout = layout
        self._steps = config.run.steps_per_frame
        self._boundary = BOUNDARIES[config.grid.boundary]
        self._threads = min(config.run.threads or usable_cores(), numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
        self._coefficients = Coefficients._make(map(dtype.type, coefficients(config.model, start.feed, start.kill)))
        self.device = f"CPU, {self._threads} threads"
        self._u, self._v = (np.array(field, dtype, order="C") for field in start[:2])
        self._u_new, self._v_new = np.zeros_like(self._u), np.zeros_like(self._v)
        bands = min(self._threads, layout.shape[-2])
        page = PAGE // dtype.itemsize
        stride = -(-(layout.shape[-1] + 2 + page // 2) // page) * page
        # A band makes about as many rows again beyond its ends as it has levels: few, if it has few rows.
        levels = min(LEVELS, max(4, layout.shape[-2] // bands // 8))
        self._rings = np.zeros((bands, levels, 2, 3, stride), dtype)  # [band, level, field, row modulo 3, cell]
        self._compile()

    def _compile(self) -> None:
        """Compile before the run begins: seconds the first time, then from Numba's cache on disk."""
        start = time.perf_counter()
        self.advance(0)
        block = Block(self._layout, self.allocate(self._layout.block_nbytes))
        self._stage(self._u, block.data[0, 0], block.statistics[0, 0])
        seconds = time.perf_counter() - start
        if seconds > 2:
            log.info("solver compiled", seconds=round(seconds, 1))

    def advance(self, steps: int) -> None:
        """Advance both fields by `steps` time steps."""
        numba.set_num_threads(self._threads)  # counts for the calling thread only
        arrays = self._u, self._v, self._u_new, self._v_new
        arrays = _advance(*arrays, self._rings, self._coefficients, self._boundary, steps)
        self._u, self._v, self._u_new, self._v_new = arrays

    def fields(self) -> tuple[Field, Field]:
        """Return copies of u and v, [rows, cols]."""
        return self._u.copy(), self._v.copy()

    def allocate(self, nbytes: int) -> NDArray[np.uint8]:
        """Return ordinary memory."""
        return np.zeros(nbytes, np.uint8)

    def fill(self, block: Block) -> None:
        """Compute and stage the next `block.count` frames."""
        start = time.perf_counter()
        for frame in range(block.count):
            self.advance(self._steps)
            for i, name in enumerate(self._layout.fields):
                self._stage({"u": self._u, "v": self._v}[name], block.data[frame, i], block.statistics[frame, i])
        block.compute_seconds = time.perf_counter() - start

    def _stage(self, field: Field, data: NDArray[np.uint8], statistics: NDArray[np.float64]) -> None:
        itemsize = self._layout.dtype.itemsize
        words = field.view(f"u{itemsize}")
        bands = min(self._threads, self._layout.shape[-2])
        planes, values = data.reshape(itemsize, -1), data.view(field.dtype)
        low, high, total, bad = _stage(field, words, planes, values, self._layout.shuffle, bands)
        if bad:  # rare, and the end of the run: count and summarise the finite values the slow way
            stage(field, self._layout, data, statistics)
        else:
            statistics[:] = low, high, total / self._layout.cells, 0

    def wait(self, block: Block) -> None:
        """Return at once: `fill` leaves the frames complete."""
