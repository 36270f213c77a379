"""The oracle: the equations as they are written, in NumPy and float64, for reading and for checking the other solvers.

    du/dt = Du ∇²u − u v² + F (1 − u)
    dv/dt = Dv ∇²v + u v² − (F + k) v

Gray & Scott, Chem. Eng. Sci. 39 (1984) 1087; forward Euler, unit grid spacing, both fields advanced from the same old
state.
"""

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gsio.compute.base import Field, stage
from gsio.compute.stencil import STENCILS
from gsio.config import Config, Model
from gsio.initial import Start
from gsio.staging import Block, FrameLayout

PADDING = {"periodic": "wrap", "neumann": "edge", "zero": "constant"}


def laplacian(field: Field, stencil: str, boundary: str) -> Field:
    """Return ∇² of `field` [..., rows, cols] by one of `STENCILS`, with cells outside the grid given by `boundary`."""
    corner, edge = STENCILS[stencil]
    p = np.pad(field, [(0, 0)] * (field.ndim - 2) + [(1, 1)] * 2, mode=PADDING[boundary])  # type: ignore[call-overload]
    corners = p[..., :-2, :-2] + p[..., :-2, 2:] + p[..., 2:, :-2] + p[..., 2:, 2:]
    edges = p[..., :-2, 1:-1] + p[..., 2:, 1:-1] + p[..., 1:-1, :-2] + p[..., 1:-1, 2:]
    total: Field = corner * corners + edge * edges - 4 * (corner + edge) * field
    return total


def step(u: Field, v: Field, feed: Field, kill: Field, model: Model, boundary: str) -> tuple[Field, Field]:
    """Return u and v one time step later; `feed` and `kill` broadcast to them."""
    reaction = u * v * v
    du = model.diffusion_u * laplacian(u, model.stencil, boundary) - reaction + feed * (1 - u)
    dv = model.diffusion_v * laplacian(v, model.stencil, boundary) + reaction - (feed + kill) * v
    return u + model.dt * du, v + model.dt * dv


class ReferenceSolver:
    """NumPy in float64, whatever the precision of the file."""

    backend = "numpy"
    device = "CPU, NumPy float64"

    def __init__(self, config: Config, layout: FrameLayout, start: Start) -> None:
        self._config = config
        self._layout = layout
        self._u: Field = np.array(np.broadcast_to(start.u, layout.shape), np.float64)
        self._v: Field = np.array(np.broadcast_to(start.v, layout.shape), np.float64)
        self._rates = start.feed, start.kill

    def advance(self, steps: int) -> None:
        """Advance both fields by `steps` time steps."""
        with np.errstate(over="ignore", invalid="ignore"):  # a run that diverges is told by its frames
            for _ in range(steps):
                self._u, self._v = step(self._u, self._v, *self._rates, self._config.model, self._config.grid.boundary)

    def fields(self) -> tuple[Field, Field]:
        """Return copies of u and v, float64, of the layout's shape."""
        return self._u.copy(), self._v.copy()

    def snapshot(self) -> Callable[[], tuple[Field, Field]]:
        """Copy u and v, and return a function that returns the copies."""
        copies = self.fields()
        return lambda: copies

    def allocate(self, nbytes: int) -> NDArray[np.uint8]:
        """Return ordinary memory."""
        return np.zeros(nbytes, np.uint8)

    def fill(self, block: Block) -> None:
        """Compute and stage the next `block.count` frames."""
        start = time.perf_counter()
        for frame in range(block.count):
            self.advance(self._config.run.steps_per_frame)
            for i, name in enumerate(self._layout.fields):
                plane = {"u": self._u, "v": self._v}[name]
                stage(plane, self._layout, block.data[frame, i], block.statistics[frame, i])
        block.compute_seconds = time.perf_counter() - start

    def wait(self, block: Block) -> None:
        """Return at once: `fill` leaves the frames complete."""
