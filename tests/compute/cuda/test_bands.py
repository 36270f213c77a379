"""Bands on several GPUs, on simulated ones: the bits of one GPU, in whatever order the streams go on."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from banding import BLOCKS, FRAMES, blocks_of, layout_for
from simulation import Simulation, simulated

from gsio.compute.solver import fields
from gsio.config import Config
from gsio.run.initial import initial_state

MakeConfig = Callable[..., Config]
GRID = {
    "run.backend": "cupy", "grid.rows": 61, "grid.cols": 43, "run.steps_per_frame": 7, "output.fields": "u,v",
    "initial.kind": "noise",
}  # fmt: skip


class Stencil(Simulation):
    """A GPU whose time step spreads what a row has to the rows around it, so that a wrong halo is seen."""

    def advance(self, options: Any, grid: Any, *arguments: Any) -> None:
        (u, v, next_u, next_v), plan = (array.values for array in arguments[:4]), arguments[-2]
        passes = int(plan["passes"])
        for _ in range(passes * int(plan["steps"]) + int(plan["longer"])):
            u, v = self.spread(options, u) + v / 8, self.spread(options, v) / 2
        to = (next_u, next_v) if passes % 2 else arguments[:2]
        first, rows = int(plan["first"]), int(plan["tiles_y"] * plan["height"] + plan["taller"])
        for array, values in zip(to, (u, v), strict=True):
            stored = np.s_[..., first : first + rows, :]
            getattr(array, "values", array)[stored] = values[stored]

    def spread(self, options: Any, field: np.ndarray) -> np.ndarray:
        mode = "wrap" if "-DBOUNDARY=0" in options else "edge" if "-DBOUNDARY=1" in options else "constant"
        padded = np.pad(field, [(0, 0)] * (field.ndim - 2) + [(1, 1), (0, 0)], mode=mode)  # type: ignore[call-overload]
        found: np.ndarray = (padded[..., :-2, :] / 4 + field / 2 + padded[..., 2:, :] / 3) / 2
        return found


def check(
    make_config: MakeConfig, changes: dict[str, Any], count: int, compression: str, seed: int, *,
    encodes: bool = True, blocks: int = BLOCKS, gpu: dict[str, int] | None = None, **options: bool,
) -> None:  # fmt: skip
    config = make_config({**GRID, **changes})
    per_chunk = FRAMES if count == 2 else 1
    layout = layout_for(config, count, compression, per_chunk=per_chunk, encodes=encodes)
    start = initial_state(config)
    with simulated(Stencil(seed)) as solver_of:
        solver = solver_of(config, layout, start)
        expected = blocks_of(solver, layout, blocks), [field.tobytes() for field in fields(solver)]
    with simulated(Stencil(seed, **gpu or {})):
        bands = import_module("gsio.compute.cuda.bands")
        solver = bands.BandsSolver(config, layout, start, [0] * count, **options)
        found = blocks_of(solver, layout, blocks), [field.tobytes() for field in fields(solver)]
    assert found == expected


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("boundary", ["periodic", "neumann", "zero"])
@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize(("compression", "encodes"), [("deflate", True), ("deflate", False), ("none", False)])
def test_bands_have_the_bits_of_one_gpu(
    compression: str, encodes: bool, count: int, boundary: str, seed: int, make_config: MakeConfig
) -> None:
    check(make_config, {"grid.boundary": boundary}, count, compression, seed, encodes=encodes)


def test_rows_can_pass_host_memory(make_config: MakeConfig) -> None:
    for seed in range(5):
        check(make_config, {}, 3, "deflate", seed, direct=False)


@pytest.mark.parametrize("boundary", ["periodic", "neumann", "zero"])
@pytest.mark.parametrize("count", [2, 3])
def test_inner_rows_advance_while_halos_arrive(boundary: str, count: int, make_config: MakeConfig) -> None:
    small = {
        "multiprocessors": 1,
        "shared_nbytes": 24_000,
    }  # a GPU that needs several tiles, and a launch for each pass
    changes = {"grid.rows": 301, "grid.cols": 40, "grid.boundary": boundary, "run.steps_per_frame": 21}
    for seed in range(3):
        check(make_config, changes, count, "none", seed, encodes=False, blocks=2, gpu=small, direct=seed > 0)


def test_a_halo_can_be_exchanged_several_times_in_a_frame(make_config: MakeConfig) -> None:
    check(make_config, {"run.steps_per_frame": 40, "grid.rows": 23}, 3, "deflate", 1)
    many = {"run.steps_per_frame": 800, "grid.rows": 3}  # too many launches for a graph
    check(make_config, many, 3, "none", 1, encodes=False, blocks=1)


def test_members_of_a_batch_need_no_exchange(make_config: MakeConfig) -> None:
    feed = [0.02, 0.025, 0.03, 0.035]
    for count in (2, 3, 4):
        check(make_config, {"model.feed": feed}, count, "deflate", count)
