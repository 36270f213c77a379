"""The production solver for machines without a GPU: Numba, compiled to vector code, on every core it may use.

Each field lies in an array [rows + 2, cols + 2] whose frame of halo cells holds the values outside the grid. A step
reads one pair of arrays and writes the other; the rows are cut into one band per thread. Floating-point contraction is
left off, so that a cell has the same bits wherever the bands are cut and whatever the processor's vector width.
"""

import os
import time

import numba
import numpy as np
import structlog
from numba import njit, prange
from numpy.typing import NDArray

from gsio.compute.base import Field, stage
from gsio.compute.stencil import Coefficients, coefficients
from gsio.config import Config
from gsio.staging import Block, FrameLayout

log = structlog.get_logger()

PERIODIC, NEUMANN, ZERO = range(3)
BOUNDARIES = {"periodic": PERIODIC, "neumann": NEUMANN, "zero": ZERO}


def usable_cores() -> int:
    """Return the number of cores this process may run on (a Slurm job has fewer than the machine)."""
    return len(os.sched_getaffinity(0))


@njit
def _step_row(u0, u1, u2, v0, v1, v2, u_new, v_new, c):  # type: ignore[no-untyped-def]
    """Advance one row; rows above, at and below it come as 1-D arrays, which is what makes the loop vectorise."""
    for j in range(1, len(u_new) - 1):
        u, v = u1[j], v1[j]
        reaction = c.dt * u * (v * v)
        u_corners = (u0[j - 1] + u0[j + 1]) + (u2[j - 1] + u2[j + 1])
        v_corners = (v0[j - 1] + v0[j + 1]) + (v2[j - 1] + v2[j + 1])
        u_edges = (u0[j] + u2[j]) + (u1[j - 1] + u1[j + 1])
        v_edges = (v0[j] + v2[j]) + (v1[j - 1] + v1[j + 1])
        u_laplacian = c.corner * (u_corners - 4 * u) + c.edge * (u_edges - 4 * u)
        v_laplacian = c.corner * (v_corners - 4 * v) + c.edge * (v_edges - 4 * v)
        u_new[j] = u + (c.u_diffusion * u_laplacian + (c.feed * (1 - u) - reaction))
        v_new[j] = v + (c.v_diffusion * v_laplacian + (reaction - c.decay * v))


@njit
def _close_row(field, boundary):  # type: ignore[no-untyped-def]
    """Set the halo cells at both ends of one row."""
    if boundary == PERIODIC:
        field[0], field[-1] = field[-2], field[1]
    elif boundary == NEUMANN:
        field[0], field[-1] = field[1], field[-2]


@njit
def _close_column(field, row, boundary):  # type: ignore[no-untyped-def]
    """Set the halo rows that repeat `row`, if any."""
    last = field.shape[0] - 2
    if row == 1:
        if boundary == PERIODIC:
            field[last + 1] = field[1]
        elif boundary == NEUMANN:
            field[0] = field[1]
    if row == last:
        if boundary == PERIODIC:
            field[0] = field[last]
        elif boundary == NEUMANN:
            field[last + 1] = field[last]


@njit(parallel=True, nogil=True, cache=True)
def _step(u, v, u_new, v_new, c, boundary, bands):  # type: ignore[no-untyped-def]
    rows = u.shape[0] - 2
    for band in prange(bands):
        for i in range(1 + rows * band // bands, 1 + rows * (band + 1) // bands):
            _step_row(u[i - 1], u[i], u[i + 1], v[i - 1], v[i], v[i + 1], u_new[i], v_new[i], c)
            for field in (u_new, v_new):
                _close_row(field[i], boundary)
                _close_column(field, i, boundary)


@njit(nogil=True, cache=True)
def _advance(u, v, u_new, v_new, c, boundary, bands, steps):  # type: ignore[no-untyped-def]
    """Advance `steps` steps; the result is in `u`, `v` if `steps` is even, else in `u_new`, `v_new`."""
    for _ in range(steps):
        _step(u, v, u_new, v_new, c, boundary, bands)
        u, u_new = u_new, u
        v, v_new = v_new, v


@njit(parallel=True, nogil=True, fastmath={"reassoc", "nsz"}, cache=True)
def _stage(field, words, planes, values, shuffle, bands):  # type: ignore[no-untyped-def]
    """Copy the inner cells of `field` to `planes` [byte, cell] if `shuffle`, else to `values` [cell].

    `words` is the memory of `field` as unsigned integers; `planes` and `values` are the same memory too. Returns
    minimum, maximum, sum (float64, summed per row: the same for any number of bands) and non-finite count.
    """
    rows, cols = field.shape[0] - 2, field.shape[1] - 2
    low, high = np.empty(rows, field.dtype), np.empty(rows, field.dtype)
    total, bad = np.empty(rows, np.float64), np.empty(rows, np.int64)
    largest = np.finfo(field.dtype).max
    for band in prange(bands):
        for i in range(rows * band // bands, rows * (band + 1) // bands):
            row, bits = field[i + 1, 1:-1], words[i + 1, 1:-1]
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

    def __init__(self, config: Config, layout: FrameLayout, u: Field, v: Field) -> None:
        dtype = np.dtype(config.model.precision)
        self._layout = layout
        self._steps = config.run.steps_per_frame
        self._boundary = BOUNDARIES[config.grid.boundary]
        self._threads = min(config.run.threads or usable_cores(), numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
        self._coefficients = Coefficients._make(map(dtype.type, coefficients(config.model)))
        self.device = f"CPU, {self._threads} threads"
        mode = {PERIODIC: "wrap", NEUMANN: "edge", ZERO: "constant"}[self._boundary]
        self._u, self._v = (np.pad(field.astype(dtype), 1, mode=mode) for field in (u, v))  # type: ignore[call-overload]
        self._u_new, self._v_new = np.zeros_like(self._u), np.zeros_like(self._v)
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
        bands = min(self._threads, self._u.shape[0] - 2)
        _advance(self._u, self._v, self._u_new, self._v_new, self._coefficients, self._boundary, bands, steps)
        if steps % 2:
            self._u, self._u_new = self._u_new, self._u
            self._v, self._v_new = self._v_new, self._v

    def fields(self) -> tuple[Field, Field]:
        """Return copies of u and v, [rows, cols]."""
        return self._u[1:-1, 1:-1].copy(), self._v[1:-1, 1:-1].copy()

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
        bands = min(self._threads, self._layout.rows)
        planes, values = data.reshape(itemsize, -1), data.view(field.dtype)
        low, high, total, bad = _stage(field, words, planes, values, self._layout.shuffle, bands)
        if bad:  # rare, and the end of the run: count and summarise the finite values the slow way
            stage(field[1:-1, 1:-1], self._layout, data, statistics)
        else:
            statistics[:] = low, high, total / (self._layout.rows * self._layout.cols), 0

    def wait(self, block: Block) -> None:
        """Return at once: `fill` leaves the frames complete."""
