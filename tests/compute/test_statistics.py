"""The sum of a plane has the same bits for any bands, and for every CPU code that takes it."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from solvers import make_solver

from gsio.compute.host import stage
from gsio.compute.statistics import LANES, join, nodes, row_sums, tree
from gsio.config import load_config
from gsio.frames.block import Block
from gsio.frames.format import FrameFormat
from gsio.frames.layout import BlockLayout


def values(rows: int, cols: int, dtype: str = "float32") -> NDArray[np.floating]:
    """Return random values whose sum depends on the order in which they are added."""
    random = np.random.default_rng(rows * 1000 + cols)
    return (random.standard_normal((rows, cols)) * 10.0 ** random.integers(-3, 9, (rows, cols))).astype(dtype)


def one_by_one(row: NDArray[np.floating]) -> float:
    """Return the sum of a row by single additions, as the rule orders them."""
    lanes = [0.0] * LANES
    for j, x in enumerate(row.tolist()):
        lanes[j % LANES] += x
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = [lanes[lane] + lanes[lane + half] for lane in range(half)]
    return lanes[0]


@pytest.mark.parametrize("cols", [1, 2, 3, 31, 63, 64, 65, 127, 128, 200, 1000])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_sum_of_a_row_is_a_function_of_the_row_alone(cols: int, dtype: str) -> None:
    rows = values(9, cols, dtype)
    expected = [one_by_one(row) for row in rows]
    assert row_sums(rows).tolist() == expected
    assert row_sums(rows[3:5]).tolist() == expected[3:5]
    assert row_sums(rows[:, ::-1]).tolist() == [one_by_one(row) for row in rows[:, ::-1]]


@given(st.integers(1, 300), st.lists(st.integers(1, 299), max_size=9), st.randoms())
def test_bands_of_any_cut_have_the_sum_of_the_whole_plane(rows: int, cuts: list[int], random: object) -> None:
    sums = values(rows, 1, "float64")[:, 0]
    edges = sorted({0, rows, *(cut for cut in cuts if cut < rows)})
    found = [node for first, last in pairwise(edges) for node in nodes(sums[first:last], first)]
    random.shuffle(found)  # type: ignore[attr-defined]
    assert join(found) == tree(sums)
    assert tree(sums) == tree(np.append(sums, np.zeros(rows)))  # as if zeros made the rows a power of two
    assert math.isclose(tree(sums), math.fsum(sums), rel_tol=1e-9, abs_tol=1e-3)


def test_a_band_has_few_nodes() -> None:
    assert [node[:2] for node in nodes(np.ones(11), 5)] == [(0, 5), (1, 3), (3, 1)]
    assert [node.sum for node in nodes(np.ones(11), 5)] == [1, 2, 8]
    assert len(nodes(np.ones(1_000_000), 1)) < 40


@pytest.mark.numba
@pytest.mark.parametrize("shape", [(1, 1), (3, 61), (70, 130), (3, 23, 34)], ids=str)
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_numpy_and_the_cpu_solver_take_the_same_statistics(shape: tuple[int, ...], precision: str) -> None:
    grid = {"grid.rows": shape[-2], "grid.cols": shape[-1], "model.precision": precision, "initial.kind": "noise"}
    members = {"model.feed": [0.01, 0.03, 0.05]} if len(shape) > 2 else {}
    config = load_config(overrides={**grid, **members}, environ={})
    frame = FrameFormat.of(shape, "u,v", precision)
    layout = BlockLayout.of_frames(frame, 1)
    solver = make_solver("numba", config, layout)
    block = Block(layout, solver.allocate(layout.block_nbytes))
    block.count = 1
    solver.fill(block)
    solver.wait(block)
    for place, name in enumerate("uv"):
        again, statistics = np.zeros(frame.plane_nbytes, np.uint8), np.zeros(5)
        stage(solver.field(name), frame, again, statistics)
        assert block.statistics[0, place].tolist() == statistics.tolist()
        assert statistics[2] == tree(row_sums(solver.field(name).reshape(-1, shape[-1]))) / frame.cells


def test_values_that_are_not_finite_count_as_zeros_of_the_sum() -> None:
    plane = values(70, 130)
    plane[3, 5], plane[60] = np.nan, np.inf
    statistics = np.zeros(5)
    stage(plane, FrameFormat.of((70, 130), "v", "float32"), np.zeros(plane.nbytes, np.uint8), statistics)
    finite = np.isfinite(plane)
    expected = tree(np.array([one_by_one(row) for row in np.where(finite, plane, 0)])) / finite.sum()
    assert statistics[2] == expected
    assert statistics[4] == 131
