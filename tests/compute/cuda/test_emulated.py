"""The kernel has the answers of the equations on the CPU, where grids are cut into tiles that are much smaller."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from banding import layout_for
from emulation import COMPILER, Emulation
from simulation import simulated

from gsio.compute.cuda.tiling import SHAPES, Device, Shape, Tiling, job_of, tilings
from gsio.compute.peers import numpy as reference
from gsio.compute.solver import fields
from gsio.config import Config
from gsio.frames.layout import BlockLayout
from gsio.model.start import Start
from gsio.run.initial import initial_state

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs g++")
SMALL = {4: [Shape(4, 3, 2), Shape(2, 4, 2)], 8: [Shape(2, 3, 2)]}
JOB = {
    "run.backend": "cupy", "run.frames": 1, "output.compression": "none", "run.steps_per_frame": 7, "model.dt": 0.5,
}  # fmt: skip
RAMP = {"along": "y", "start": 0.02, "stop": 0.05}


@pytest.fixture(autouse=True)
def small_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    for itemsize, shapes in SMALL.items():
        monkeypatch.setitem(SHAPES, itemsize, shapes)


def some_tilings(config: Config, multiprocessors: int) -> list[Tiling]:
    """Return a tiling of each way to go over the tiles of a grid, one of them with the narrower shape."""
    job, found = job_of(config, by_cell="along" in str(config.model)), dict[Any, Tiling]()
    for tiling in tilings(job, Device(multiprocessors, 1 << 18)):
        if tiling.depth < 6:
            found.setdefault((tiling.at_once, tiling.tiles(job) <= multiprocessors), tiling)
    narrow = next(tiling for tiling in tilings(job, Device(1, 1 << 18)) if tiling.shape == SHAPES[job.itemsize][-1])
    return [*found.values(), narrow]


def start_of(config: Config, layout: BlockLayout) -> Start:
    """Return a start in which no two cells are the same."""
    u, v = np.random.default_rng(7).random((2, *layout.frame.shape), np.float32).astype(np.float64)
    return initial_state(config)._replace(u=u, v=v)


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
    tmp_path: Path,
) -> None:
    config = make_config({**JOB, "grid.rows": rows, "grid.cols": cols, **changes})
    layout = layout_for(config, 1, "none")
    start = start_of(config, layout)
    oracle = reference.solver(config, layout, start)
    oracle.advance(11)
    found = []
    for seed, tiling in enumerate(some_tilings(config, multiprocessors)):
        with simulated(Emulation(seed, tmp_path, multiprocessors)) as solver_of:
            solver = solver_of(config, layout, start, tiling)
            for steps in (7, 4):
                solver.advance(steps)
            found.append(fields(solver))
    tolerance = 2e-6 if config.model.precision == "float32" else 1e-14
    for expected, *mine in zip(fields(oracle), *found, strict=True):
        assert np.linalg.norm(mine[0] - expected) < tolerance * np.linalg.norm(expected)
        for other in mine[1:]:
            np.testing.assert_array_equal(other, mine[0])


@pytest.mark.parametrize("boundary", ["periodic", "zero"])
def test_bands_whose_inner_rows_are_computed_first_have_the_bits_of_one_grid(
    boundary: str, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("gsio.compute.cuda.tiling.FEW", 0)  # a launch for each pass
    monkeypatch.setitem(SHAPES, 4, SMALL[4][1:])
    config = make_config({**JOB, "grid.rows": 45, "grid.cols": 61, "grid.boundary": boundary})
    layout, found, first_rows = layout_for(config, 2, "none", encodes=False), [], set[int]()
    start = start_of(config, layout)

    class Watched(Emulation):
        def advance(self, options: Any, grid: Any, *arguments: Any) -> None:
            first_rows.add(int(arguments[-2]["first"]))
            super().advance(options, grid, *arguments)

    for seed, devices in enumerate([[0], [0, 0]]):
        with simulated(Watched(seed, tmp_path, 4)):
            solver = import_module("gsio.compute.cuda.bands").BandsSolver(config, layout, start, devices)
            for steps in (7, 4):
                solver.advance(steps)
            found.append(fields(solver))
    np.testing.assert_array_equal(*found)
    assert len(first_rows) > 2, "no pass computed only some rows"
