"""Every rung of the ladder of kernels, naive, fused and tiled, has the answers of the equations."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gsio.bench.ladder import MAX_STEPS, solver_of
from gsio.compute import open_solver
from gsio.compute.solver import Solver, fields
from gsio.config import Config
from gsio.frames.layout import BlockLayout
from gsio.model.gray_scott import step
from gsio.model.start import Start
from gsio.run.plan import layout_of

pytestmark = pytest.mark.gpu
STEPS = 37  # not a multiple of the steps of a launch


def tiled(config: Config, layout: BlockLayout, start: Start) -> Solver:
    return open_solver("cupy", config, layout, 1, lambda _: start)


@pytest.mark.parametrize("rung", [*MAX_STEPS, "tiled"])
@pytest.mark.parametrize("shape", [(67, 121), (3, 200), (256, 256)], ids=str)  # the second is smaller than a halo
def test_a_rung_has_the_answers_of_the_equations(
    shape: tuple[int, int], rung: str, make_config: Callable[..., Config]
) -> None:
    rows, cols = shape
    config = make_config({"grid.rows": rows, "grid.cols": cols, "run.backend": "cupy"})
    u, v = np.random.default_rng(3).random((2, *shape))
    rates: Any = config.model.feed, config.model.kill
    feed, kill = map(np.array, rates)
    layout, start = layout_of(config), Start(u, v, feed, kill)
    solver = tiled(config, layout, start) if rung == "tiled" else solver_of(rung, config, layout, start)
    solver.advance(STEPS)
    for _ in range(STEPS):
        u, v = step(u, v, feed, kill, config.model, "periodic")
    for found, expected in zip(fields(solver), (u, v), strict=True):
        assert np.linalg.norm(found - expected) < 2e-6 * np.linalg.norm(expected)
