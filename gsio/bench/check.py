"""The check before each measurement: a solver has to agree with the float64 reference."""

from collections.abc import Callable
from typing import Any

import numpy as np

from gsio.compute import open_solver
from gsio.compute.solver import Solver, fields
from gsio.config import Config
from gsio.model.gray_scott import check_stability, step
from gsio.run.initial import initial_state
from gsio.run.plan import layout_of
from gsio.run.tunings import recall

TOLERANCE = {"float32": 2e-6, "float64": 1e-13}  # relative L2
STEPS = 32


def checked_solver(config: Config, device: str, make: Callable[..., Solver] | None = None) -> tuple[Solver, float]:
    """Return the solver of `config`, or of `make`, 32 steps after the start, and its relative L2 error there.

    The reference runs on the GPU if `device` is "gpu". Raises ValueError if the error is too large.
    """
    start, layout = initial_state(config), layout_of(config, config.run.backend)
    check_stability(config.model, start.feed, start.kill)
    if make:
        solver = make(config, layout, start)
    else:
        solver = open_solver(config.run.backend, config, layout, 1, initial_state, recall)
    solver.advance(STEPS)
    found = fields(solver)
    xp: Any = np
    if device == "gpu":
        import cupy as xp  # type: ignore[no-redef]
    u, v, feed, kill = (xp.asarray(field) for field in start)
    for _ in range(STEPS):
        u, v = step(u, v, feed, kill, config.model, config.grid.boundary)
    errors = [
        float(xp.linalg.norm((xp.asarray(f) - s).ravel()) / xp.linalg.norm(s.ravel()))
        for f, s in zip(found, (u, v), strict=True)
    ]
    if xp is not np:
        del u, v
        xp.get_default_memory_pool().free_all_blocks()
    tolerance = TOLERANCE[config.model.precision]
    if not max(errors) <= tolerance:  # NaN is wrong too
        raise ValueError(f"expected the reference's fields within {tolerance:g}, got an error of {max(errors):.1e}")
    return solver, max(errors)
