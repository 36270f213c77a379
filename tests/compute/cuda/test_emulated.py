"""The kernel has the answers of the equations on the CPU, where grids are cut into tiles that are much smaller."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulation import COMPILER, Emulation
from simulation import simulated

from gsio.compute.cuda.tiling import SHAPES, Device, Shape, Tiling, job_of, tilings
from gsio.compute.peers import numpy as reference
from gsio.compute.solver import fields
from gsio.config import Config
from gsio.run.initial import initial_state
from gsio.run.plan import layout_of

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs g++")
SMALL = {4: [Shape(4, 3, 2), Shape(2, 4, 2)], 8: [Shape(2, 3, 2)]}
RAMP = {"along": "y", "start": 0.02, "stop": 0.05}


def some_tilings(config: Config, multiprocessors: int) -> list[Tiling]:
    """Return a tiling of each way to go over the tiles of a grid, one of them with the narrower shape."""
    job, found = job_of(config, by_cell="along" in str(config.model)), dict[Any, Tiling]()
    for tiling in tilings(job, Device(multiprocessors, 1 << 18)):
        if tiling.depth < 6:
            found.setdefault((tiling.at_once, tiling.tiles(job) <= multiprocessors), tiling)
    narrow = next(tiling for tiling in tilings(job, Device(1, 1 << 18)) if tiling.shape == SHAPES[job.itemsize][-1])
    return [*found.values(), narrow]


@pytest.mark.parametrize(
    ("rows", "cols", "multiprocessors", "changes"),
    [
        (29, 189, 4, {}),
        (31, 190, 4, {"grid.boundary": "neumann", "model.feed": RAMP}),
        (31, 191, 50, {"grid.boundary": "neumann"}),
        (30, 189, 50, {"grid.boundary": "zero"}),
        (9, 131, 4, {"grid.boundary": "zero", "model.feed": RAMP, "model.precision": "float64"}),
        (5, 3, 4, {"model.feed": [0.02, 0.03]}),
        (2, 2, 1, {"grid.boundary": "neumann", "model.stencil": "five-point"}),
    ],
    ids=str,
)
def test_every_tiling_has_the_bits_of_every_other_and_the_answers_of_the_reference(
    rows: int,
    cols: int,
    multiprocessors: int,
    changes: dict[str, Any],
    make_config: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for itemsize, shapes in SMALL.items():
        monkeypatch.setitem(SHAPES, itemsize, shapes)
    job = {"run.backend": "cupy", "output.compression": "none", "run.steps_per_frame": 7, "model.dt": 0.5}
    config = make_config({**job, "grid.rows": rows, "grid.cols": cols, **changes})
    layout = layout_of(config, "cupy")
    u, v = np.random.default_rng(7).random((2, *layout.frame.shape), np.float32).astype(np.float64)
    start = initial_state(config)._replace(u=u, v=v)
    oracle = reference.solver(config, layout, start)
    oracle.advance(11)
    found = []
    for seed, tiling in enumerate(some_tilings(config, multiprocessors)):
        with simulated(Emulation(seed, tmp_path, multiprocessors)) as solver_of:
            solver = solver_of(config, layout, start, tiling)
            for steps in (7, 4):
                solver.advance(steps)
            found.append([solver.field(name) for name in "uv"])
    tolerance = 2e-6 if config.model.precision == "float32" else 1e-14
    for expected, *mine in zip(fields(oracle), *found, strict=True):
        assert np.linalg.norm(mine[0] - expected) < tolerance * np.linalg.norm(expected)
        for other in mine[1:]:
            np.testing.assert_array_equal(other, mine[0])
