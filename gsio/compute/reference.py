"""The oracle: the equations as they are written, in NumPy and float64, for reading and for checking the other solvers.

    du/dt = Du ∇²u − u v² + F (1 − u)
    dv/dt = Dv ∇²v + u v² − (F + k) v

Gray & Scott, Chem. Eng. Sci. 39 (1984) 1087; forward Euler, unit grid spacing, both fields advanced from the same old
state.
"""

import numpy as np

from gsio.compute.base import PADDING, ArraySolver, Field
from gsio.compute.stencil import STENCILS
from gsio.config import Config, Model
from gsio.initial import Start
from gsio.staging import FrameLayout


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


def solver(config: Config, layout: FrameLayout, start: Start) -> ArraySolver[tuple[Field, Field]]:
    """Return NumPy's solver: float64, whatever the precision of the file."""

    def advance(state: tuple[Field, Field], steps: int) -> tuple[Field, Field]:
        with np.errstate(over="ignore", invalid="ignore"):  # a run that diverges is told by its frames
            for _ in range(steps):
                state = step(*state, start.feed, start.kill, config.model, config.grid.boundary)
        return state

    u, v = (np.broadcast_to(field, layout.shape).astype(np.float64) for field in start[:2])
    device = "CPU, NumPy float64"
    return ArraySolver("numpy", device, config, layout, (u, v), advance, lambda state, i: state[i])
