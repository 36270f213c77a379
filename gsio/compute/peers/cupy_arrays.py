"""CuPy as one would use NumPy: slices of padded arrays, the arithmetic on them fused into one kernel."""

from typing import Any

import cupy
import numpy as np

from gsio.compute.host import ArraySolver, initial_arrays, set_outside
from gsio.config import Config
from gsio.frames.layout import BlockLayout
from gsio.model.gray_scott import Field
from gsio.model.start import Start


@cupy.fuse()
def _step(new_u, new_v, corner, edge, centre, spread_u, spread_v, rest, feed, keep_v, dt, *cells):  # type: ignore[no-untyped-def]
    """Write u and v one step later; `cells` are nine slices of either field, from the upper left to the lower right."""
    around_u, around_v = (
        corner * (nw + ne + sw + se) + edge * (n + w + e + s) + centre * here
        for nw, n, ne, w, here, e, sw, s, se in (cells[:9], cells[9:])
    )
    u, v = cells[4], cells[13]
    new_u[...] = spread_u * around_u + ((rest - feed - dt * v * v) * u + feed)
    new_v[...] = spread_v * around_v + (keep_v + dt * v * u) * v


def _slices(p: Any) -> list[Any]:
    rows, cols = p.shape[-2] - 2, p.shape[-1] - 2
    return [p[..., i : i + rows, j : j + cols] for i in range(3) for j in range(3)]


def solver(config: Config, layout: BlockLayout, start: Start) -> ArraySolver[Any]:
    """Return the solver of one NVIDIA GPU."""
    device = cupy.cuda.Device(config.run.device)
    with device:
        u, v, c = initial_arrays(config, layout, start, cupy.asarray)
        (corner, edge, _), (_, centre, _), _ = c.weights
        # As arrays, all have the precision of the fields; what a fused kernel makes of a number depends on the release.
        numbers = corner, edge, centre, c.spread_u, c.spread_v, c.rest, c.feed, c.keep_v, c.dt
        constants = [cupy.asarray(number, u.dtype) for number in numbers]
        *members, rows, cols = layout.frame.shape
        # [copy, field, ...]: a step reads one copy and writes the other.
        copies = cupy.zeros((2, 2, *members, rows + 2, cols + 2), u.dtype)
        copies[0, 0, ..., 1:-1, 1:-1], copies[0, 1, ..., 1:-1, 1:-1] = u, v
        slices = [[*_slices(p[0]), *_slices(p[1])] for p in copies]

    def advance(now: int, steps: int) -> int:
        with device:
            for _ in range(steps):
                set_outside(copies[now], config.grid.boundary)
                _step(slices[1 - now][4], slices[1 - now][13], *constants, *slices[now])
                now = 1 - now
        return now

    def copy(now: int, i: int) -> Field:
        with device:
            return np.asarray(copies[now, i, ..., 1:-1, 1:-1].get())

    name = cupy.cuda.runtime.getDeviceProperties(device.id)["name"].decode()
    return ArraySolver("cupy-arrays", f"{name}, CuPy {cupy.__version__}", config, layout, 0, advance, copy)
