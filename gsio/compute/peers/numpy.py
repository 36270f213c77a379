"""The oracle: the equations as they are written, in NumPy and float64, for reading and for checking the other solvers.

    du/dt = Du ∇²u − u v² + F (1 − u)
    dv/dt = Dv ∇²v + u v² − (F + k) v

Gray & Scott, Chem. Eng. Sci. 39 (1984) 1087; forward Euler, unit grid spacing, both fields advanced from the same old
state.
"""

import numpy as np

from gsio.compute.host import ArraySolver, grid_shape
from gsio.config import Config
from gsio.frames.layout import BlockLayout
from gsio.model.gray_scott import Field, step
from gsio.model.start import Start


def solver(
    config: Config, layout: BlockLayout, start: Start, own: slice | None = None
) -> ArraySolver[tuple[Field, Field]]:
    """Return NumPy's solver: float64, whatever the precision of the file; it computes a band if it gets its `own`."""

    def advance(state: tuple[Field, Field], steps: int) -> tuple[Field, Field]:
        with np.errstate(over="ignore", invalid="ignore"):  # a run that diverges is told by its frames
            for _ in range(steps):
                state = step(*state, start.feed, start.kill, config.model, config.grid.boundary)
        return state

    shape = grid_shape(config, layout)
    u, v = (np.broadcast_to(field, shape).astype(np.float64) for field in start[:2])
    device = "CPU, NumPy float64"
    return ArraySolver("numpy", device, config, layout, (u, v), advance, lambda state, i: state[i], own)
