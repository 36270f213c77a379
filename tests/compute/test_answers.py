"""The answers every solver must give: model.md's list, and frames staged exactly as the fields are."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gsio.compute.cpu import CpuSolver
from gsio.compute.host import pack
from gsio.compute.peers import numpy as reference
from gsio.compute.solver import Solver, fields
from gsio.config import Config
from gsio.frames.block import Block
from gsio.frames.format import FrameFormat
from gsio.frames.layout import BlockLayout
from gsio.model.gray_scott import STENCILS, Field, laplacian
from gsio.run.initial import initial_state
from gsio.run.plan import layout_of

pytestmark = pytest.mark.numba

MakeConfig = Callable[..., Config]

FAST = ["numba", pytest.param("cupy", marks=pytest.mark.gpu)]
ALL = ["numpy", *FAST]
BOUNDARIES = ["periodic", "neumann", "zero"]
GRIDS = [(1, 1), (1, 7), (7, 1), (2, 2), (3, 61), (61, 3), (67, 61)]
# Relative L2 against the float64 reference after 32 steps, from the starts below. Measured: 1.6e-6 and 9e-16.
TOLERANCE = {"float32": 2e-6, "float64": 1e-14}
# After 1000 steps of the default parameters, from the starts below. Measured: 1.6e-5 and 4e-15.
LONG_TOLERANCE = {"float32": 5e-5, "float64": 1e-13}
PATTERNS = [(0.014, 0.054), (0.035, 0.065), (0.062, 0.0609)]  # feed, kill


def make_solver(backend: str, config: Config, layout: BlockLayout, fields: tuple[Field, Field] | None = None) -> Solver:
    """Return a solver of `config` that starts from `fields`, u and v, instead of its initial state."""
    start = initial_state(config)
    if fields:
        start = start._replace(u=fields[0], v=fields[1])
    if backend == "numpy":
        return reference.solver(config, layout, start)
    if backend == "numba":
        return CpuSolver(config, layout, start)
    from gsio.compute.cuda.solver import CudaSolver

    return CudaSolver(config, layout, start)


def solve(backend: str, config: Config, steps: int, start: tuple[Field, Field] | None = None) -> tuple[Field, Field]:
    # One thread: more would wait for one another longer than they compute where other processes share the cores.
    config = msgspec.structs.replace(config, run=msgspec.structs.replace(config.run, threads=1))
    solver = make_solver(backend, config, layout_of(config), start)
    solver.advance(steps)
    return fields(solver)


def random_start(rows: int, cols: int) -> tuple[Field, Field]:
    """Return u and v that float32 holds exactly, so that every solver starts from the same state."""
    u, v = np.random.default_rng(rows * 1000 + cols).random((2, rows, cols), np.float32).astype(np.float64)
    return u, v


def smooth_start(rows: int, cols: int) -> tuple[Field, Field]:
    y, x = (np.linspace(0, 2 * np.pi, n, endpoint=False) for n in (rows, cols))
    bump = (2 + np.cos(y)[:, None] + np.sin(x)) / 4
    return 1 - 0.5 * bump, 0.4 * bump


def relative_error(found: Field, expected: Field) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def assert_agrees(found: tuple[Field, Field], expected: tuple[Field, Field], tolerance: float) -> None:
    for name, mine, theirs in zip("uv", found, expected, strict=True):
        assert relative_error(mine, theirs) < tolerance, name


def assert_same_bits(found: tuple[Field, ...], expected: tuple[Field, ...]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == theirs.dtype
        assert mine.shape == theirs.shape
        assert mine.tobytes() == theirs.tobytes()


def record(solver: Solver, layout: BlockLayout, frames: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return data and statistics of `frames` frames, all blocks filled before the first is waited for."""
    blocks = []
    for first in range(0, frames, layout.frames_per_block):
        block = Block(layout, solver.allocate(layout.block_nbytes))
        block.count = min(layout.frames_per_block, frames - first)
        solver.fill(block)
        blocks.append(block)
    for block in reversed(blocks):
        solver.wait(block)
    data, statistics = zip(
        *((block.data[: block.count], block.statistics[: block.count]) for block in blocks), strict=True
    )
    return np.concatenate(data), np.concatenate(statistics)


def staged_field(layout: BlockLayout, data: NDArray[np.uint8]) -> Field:
    """Return the field [rows, cols] that lies in `data` as its byte planes or as it is."""
    raw = data.reshape(layout.frame.dtype.itemsize, -1).T.copy() if layout.frame.shuffle else data.copy()
    return raw.reshape(-1).view(layout.frame.dtype).reshape(layout.frame.shape)


def assert_statistics(found: NDArray[np.float64], field: Field) -> None:
    finite = field[np.isfinite(field)]
    assert found[0] == finite.min()
    assert found[1] == finite.max()
    assert found[2] == pytest.approx(finite.mean(dtype=np.float64), rel=1e-6)
    assert found[3] == 0  # the error, of what is stored as it is
    assert found[4] == field.size - finite.size


# 1. An independent reference


@pytest.mark.parametrize("backend", ALL)
def test_sum_of_v_is_that_of_py_pde(backend: str, make_config: MakeConfig) -> None:
    config = make_config(
        {
            "grid.rows": 64,
            "grid.cols": 64,
            "model.stencil": "five-point",
            "model.precision": "float64",
            "model.diffusion_u": 0.16,
            "model.diffusion_v": 0.08,
            "model.feed": 0.035,
            "model.kill": 0.065,
            "initial.kind": "square",
            "initial.size": 8,
            "initial.u": 0.5,
            "initial.v": 0.25,
        }
    )
    v = initial_state(config).v
    assert v[28:36, 28:36].sum() == v.sum() == 16
    solver = make_solver(backend, config, layout_of(config))
    sums = []
    for _ in range(4):
        solver.advance(50)
        sums.append(fields(solver)[1].sum())
    assert sums == pytest.approx([29.8857, 27.0847, 19.9030, 16.2082], abs=5.1e-5)


# 2. Agreement with the float64 reference


@pytest.mark.parametrize(("feed", "kill"), PATTERNS)
@pytest.mark.parametrize("stencil", STENCILS)
@pytest.mark.parametrize(("kind", "boundary"), [("school", "zero"), ("spots", "periodic"), ("noise", "neumann")])
@pytest.mark.parametrize("backend", FAST)
def test_32_steps_agree_with_the_reference(
    backend: str, kind: str, boundary: str, stencil: str, feed: float, kill: float, make_config: MakeConfig
) -> None:
    config = make_config(
        {
            "grid.rows": 32,
            "grid.cols": 40,
            "grid.boundary": boundary,
            "model.stencil": stencil,
            "model.feed": feed,
            "model.kill": kill,
            "initial.kind": kind,
            "initial.radius": 3,
            "initial.count": 5,
        }
    )
    assert_agrees(solve(backend, config, 32), solve("numpy", config, 32), TOLERANCE["float32"])


@pytest.mark.parametrize(
    ("kind", "stencil", "boundary", "precision"),
    [
        ("school", "oono-puri", "periodic", "float32"),
        ("school", "oono-puri", "periodic", "float64"),
        ("spots", "five-point", "neumann", "float32"),
        ("spots", "ones", "periodic", "float32"),
        ("noise", "patra-karttunen", "zero", "float32"),
    ],
)
@pytest.mark.parametrize("backend", FAST)
def test_1000_steps_agree_with_the_reference(
    backend: str, kind: str, stencil: str, boundary: str, precision: str, make_config: MakeConfig
) -> None:
    config = make_config(
        {
            "grid.rows": 32,
            "grid.cols": 40,
            "grid.boundary": boundary,
            "model.stencil": stencil,
            "model.precision": precision,
            "initial.kind": kind,
            "initial.radius": 3,
        }
    )
    assert_agrees(solve(backend, config, 1000), solve("numpy", config, 1000), LONG_TOLERANCE[precision])


@pytest.mark.parametrize("feed", [0.014, 0.0367, 0.06])
@pytest.mark.parametrize("boundary", ["periodic", "neumann"])
@pytest.mark.parametrize("stencil", STENCILS)
@pytest.mark.parametrize("backend", FAST)
def test_the_rest_state_stays_exactly(
    backend: str, stencil: str, boundary: str, feed: float, make_config: MakeConfig
) -> None:
    config = make_config({"grid.boundary": boundary, "model.stencil": stencil, "model.feed": feed})
    u, v = solve(backend, config, 200, (np.ones((12, 17)), np.zeros((12, 17))))
    assert (u == 1).all()
    assert (v == 0).all()


# 3. The same bits every time

EVERY_NUMBER_OF_THREADS = """
import hashlib
from gsio.compute.cpu import CpuSolver
from gsio.config import load_config
from gsio.run.initial import initial_state
from gsio.frames.block import Block
from gsio.frames.format import FrameFormat
from gsio.frames.layout import BlockLayout

for rows in (3, 67):
    for threads in (7, 3, 2, 1):
        grid = {"grid.rows": rows, "grid.cols": 61, "initial.kind": "noise", "run.threads": threads}
        config = load_config(overrides=grid, environ={})
        layout = BlockLayout.of_frames(FrameFormat.of((rows, 61), "u,v", "float32", shuffle=True), 2)
        solver = CpuSolver(config, layout, initial_state(config))
        block = Block(layout, solver.allocate(layout.block_nbytes))
        block.count = 2
        solver.fill(block)
        print("bits", rows, hashlib.sha256(block.buffer).hexdigest(), solver.device)
"""


def test_frames_have_the_same_bits_for_any_number_of_threads() -> None:
    # Numba fixes the largest number of threads when it is imported, by default at that of the cores.
    run = subprocess.run(
        [sys.executable, "-c", EVERY_NUMBER_OF_THREADS],
        env={**os.environ, "NUMBA_NUM_THREADS": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line.split(maxsplit=3)[1:] for line in run.stdout.splitlines() if line.startswith("bits")]
    assert len({device for _, _, device in lines}) == 4
    assert len({(rows, digest) for rows, digest, _ in lines}) == len({rows for rows, _, _ in lines}) == 2


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="needs two cores")
def test_threads_of_one_solver_do_not_limit_the_next(make_config: MakeConfig) -> None:
    numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)
    devices = []
    for threads in (1, 2):
        config = make_config({"run.threads": threads})
        devices.append(make_solver("numba", config, layout_of(config)).device)
    assert devices == ["CPU, 1 threads", "CPU, 2 threads"]


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("pieces", [[40], [1] * 40, [7, 0, 33], [32, 8]], ids=["whole", "single steps", "odd", "even"])
@pytest.mark.parametrize("backend", ALL)
def test_a_run_in_pieces_has_the_bits_of_one_go(
    backend: str, pieces: list[int], precision: str, make_config: MakeConfig
) -> None:
    config = make_config({"grid.rows": 23, "grid.cols": 34, "model.precision": precision})
    start = random_start(23, 34)
    solver = make_solver(backend, config, layout_of(config), start)
    for steps in pieces:
        solver.advance(steps)
    assert_same_bits(fields(solver), solve(backend, config, 40, start))


@pytest.mark.parametrize("frames_per_block", [2, 3, 7, 10])
@pytest.mark.parametrize("fields", ["v", "u,v"])
@pytest.mark.parametrize("backend", ALL)
def test_frames_have_the_same_bits_for_any_block_size(
    backend: str, fields: str, frames_per_block: int, make_config: MakeConfig
) -> None:
    config = make_config({"grid.rows": 23, "grid.cols": 34, "output.fields": fields})
    frames = []
    for size in (1, frames_per_block):
        layout = BlockLayout.of_frames(layout_of(config).frame, size)
        frames.append(record(make_solver(backend, config, layout, random_start(23, 34)), layout, 7))
    (data, statistics), (expected_data, expected_statistics) = frames
    assert len(data) == 7
    np.testing.assert_array_equal(data, expected_data)
    np.testing.assert_array_equal(statistics, expected_statistics)


# 4. Symmetry


@pytest.mark.parametrize("axis", [pytest.param(0, id="up-down"), pytest.param(1, id="left-right")])
@pytest.mark.parametrize("shape", [(24, 31), (31, 24)], ids=str)
@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("stencil", STENCILS)
@pytest.mark.parametrize("backend", FAST)
def test_a_mirror_symmetric_start_stays_so(
    backend: str, stencil: str, boundary: str, shape: tuple[int, int], axis: int, make_config: MakeConfig
) -> None:
    config = make_config(
        {"grid.rows": shape[0], "grid.cols": shape[1], "grid.boundary": boundary, "model.stencil": stencil}
    )
    u, v = ((field + np.flip(field, axis)) / 2 for field in random_start(*shape))
    fields = solve(backend, config, 51, (u, v))
    assert_same_bits(fields, tuple(np.flip(field, axis) for field in fields))


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("shift", [(1, 0), (0, -1), (5, -11)], ids=str)
@pytest.mark.parametrize("stencil", STENCILS)
@pytest.mark.parametrize("backend", ALL)
def test_a_periodic_run_commutes_with_a_shift(
    backend: str, stencil: str, shift: tuple[int, int], precision: str, make_config: MakeConfig
) -> None:
    config = make_config({"grid.rows": 23, "grid.cols": 34, "model.stencil": stencil, "model.precision": precision})
    u, v = random_start(23, 34)
    shifted_start = np.roll(u, shift, (0, 1)), np.roll(v, shift, (0, 1))
    shifted_end = tuple(np.roll(field, shift, (0, 1)) for field in solve(backend, config, 51, (u, v)))
    assert_same_bits(solve(backend, config, 51, shifted_start), shifted_end)


# 5. Convergence


@pytest.mark.parametrize("stencil", STENCILS)
@pytest.mark.parametrize("backend", ALL)
def test_halving_dt_halves_the_error(backend: str, stencil: str, make_config: MakeConfig) -> None:
    rows, cols, end = 20, 28, 16
    ends = []
    for dt in (0.5, 0.25, 0.125):
        config = make_config(
            {
                "grid.rows": rows,
                "grid.cols": cols,
                "model.stencil": stencil,
                "model.precision": "float64",
                "model.dt": dt,
            }
        )
        ends.append(np.stack(solve(backend, config, round(end / dt), smooth_start(rows, cols))))
    coarse, fine = np.linalg.norm(ends[0] - ends[1]), np.linalg.norm(ends[1] - ends[2])
    assert np.log2(coarse / fine) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("stencil", "scale"), [("oono-puri", 1), ("five-point", 1), ("patra-karttunen", 1), ("ones", 3)]
)
def test_stencil_approximates_a_multiple_of_the_laplacian_at_order_2(stencil: str, scale: int) -> None:
    corner, edge = STENCILS[stencil]
    assert edge + 2 * corner == pytest.approx(scale)
    errors = []
    for n in (32, 64, 128):
        k = 2 * np.pi / n
        y, x = np.mgrid[:n, :n]
        wave = np.cos(2 * k * y + 3 * k * x)
        # In units of the domain, in which the wave is the same on every grid.
        errors.append(np.abs(laplacian(wave, stencil, "periodic") / scale / k**2 + (2**2 + 3**2) * wave).max())
    assert np.log2(np.divide(errors[:-1], errors[1:])) == pytest.approx([2, 2], abs=0.1)


@pytest.mark.parametrize("stencil", STENCILS)
def test_refining_the_grid_converges_at_order_2(stencil: str, make_config: MakeConfig) -> None:
    ends = []
    for refinement in (1, 2, 4):
        n = 16 * refinement
        config = make_config(
            {
                "grid.rows": n,
                "grid.cols": n,
                "model.stencil": stencil,
                "model.dt": 0.0625,
                # Cells half as wide: diffusion four times as large in cells² per unit time.
                "model.diffusion_u": 0.1 * refinement**2,
                "model.diffusion_v": 0.05 * refinement**2,
            }
        )
        fields = np.stack(solve("numpy", config, 256, smooth_start(n, n)))
        ends.append(fields[:, ::refinement, ::refinement])
    coarse, fine = np.linalg.norm(ends[0] - ends[1]), np.linalg.norm(ends[1] - ends[2])
    assert np.log2(coarse / fine) == pytest.approx(2, abs=0.1)


# 6. Boundaries on tiny and odd grids


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("shape", GRIDS, ids=str)
@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("stencil", STENCILS)
@pytest.mark.parametrize("backend", FAST)
def test_every_stencil_and_boundary_agrees_with_the_reference_on_any_grid(
    backend: str, stencil: str, boundary: str, shape: tuple[int, int], precision: str, make_config: MakeConfig
) -> None:
    config = make_config(
        {
            "grid.rows": shape[0],
            "grid.cols": shape[1],
            "grid.boundary": boundary,
            "model.stencil": stencil,
            "model.precision": precision,
        }
    )
    start = random_start(*shape)
    assert_agrees(solve(backend, config, 32, start), solve("numpy", config, 32, start), TOLERANCE[precision])


@pytest.mark.parametrize(
    ("boundary", "outside"), [("periodic", [3.0, 1.0]), ("neumann", [1.0, 3.0]), ("zero", [0.0, 0.0])]
)
def test_reference_takes_cells_outside_from_the_boundary(boundary: str, outside: list[float]) -> None:
    left, right = outside
    row = np.array([[1.0, 2.0, 3.0]])
    above_and_below = 0 if boundary == "zero" else 2 * row  # the only row is its own neighbour
    beside = np.array([[left + 2, 1 + 3, 2 + right]])
    np.testing.assert_array_equal(laplacian(row, "five-point", boundary), beside + above_and_below - 4 * row)


# Batches and maps of the rates

RATES = {
    "members": {"model.feed": [0.014, 0.03, 0.062], "model.kill": [0.054, 0.057, 0.0609]},
    "ramps": {
        "model.feed": {"along": "x", "start": 0.01, "stop": 0.07},
        "model.kill": {"along": "y", "start": 0.04, "stop": 0.07},
    },
    "members of a ramp": {"model.feed": {"along": "y", "start": 0.01, "stop": 0.07}, "model.kill": [0.05, 0.06]},
}


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("shape", [(1, 1), (3, 61), (67, 61), (40, 300)], ids=str)
@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("rates", RATES.values(), ids=RATES)
@pytest.mark.parametrize("backend", FAST)
def test_rates_that_vary_agree_with_the_reference(
    backend: str, rates: dict[str, Any], boundary: str, shape: tuple[int, int], precision: str, make_config: MakeConfig
) -> None:
    size = {"grid.rows": shape[0], "grid.cols": shape[1], "grid.boundary": boundary, "model.precision": precision}
    config = make_config({**size, **rates})
    start = random_start(*shape)
    assert_agrees(solve(backend, config, 32, start), solve("numpy", config, 32, start), TOLERANCE[precision])


@pytest.mark.parametrize("backend", FAST)
def test_a_member_has_the_same_bits_in_any_batch_and_as_a_map(backend: str, make_config: MakeConfig) -> None:
    size = {"grid.rows": 37, "grid.cols": 52}
    feeds, kills = [0.014, 0.03, 0.062], [0.054, 0.057, 0.0609]
    start = random_start(37, 52)
    batch = solve(backend, make_config({**size, "model.feed": feeds, "model.kill": kills}), 40, start)
    other = make_config({**size, "model.feed": feeds[::-1], "model.kill": kills[::-1]})
    assert_same_bits(solve(backend, other, 40, start), tuple(field[::-1].copy() for field in batch))
    for member in range(3):
        flat = [{"along": "x", "start": rates[member], "stop": rates[member]} for rates in (feeds, kills)]
        alone = solve(backend, make_config({**size, "model.feed": flat[0], "model.kill": flat[1]}), 40, start)
        assert_same_bits(alone, tuple(field[member] for field in batch))


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("rates", [{}, RATES["ramps"]], ids=["constants", "ramps"])
def test_a_grid_cut_into_small_parts_has_the_same_bits(
    rates: dict[str, Any], boundary: str, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config({"grid.rows": 67, "grid.cols": 301, "grid.boundary": boundary, **rates})
    start = random_start(67, 301)
    whole = solve("numba", config, 40, start)
    monkeypatch.setattr("gsio.compute.cpu.first_level_cache", lambda: 8 << 10)
    assert_same_bits(solve("numba", config, 40, start), whole)


# Staging


@pytest.mark.parametrize("shuffle", [True, False], ids=["shuffled", "plain"])
@pytest.mark.parametrize("shape", [(1, 1), (13, 9), (16, 20)], ids=str)
@pytest.mark.parametrize("fields", ["v", "u", "u,v"])
@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("backend", ALL)
def test_blocks_hold_the_fields_and_their_statistics(
    backend: str, precision: str, fields: str, shape: tuple[int, int], shuffle: bool, make_config: MakeConfig
) -> None:
    config = make_config({"grid.rows": shape[0], "grid.cols": shape[1], "model.precision": precision})
    layout = BlockLayout.of_frames(FrameFormat.of(shape, fields, precision, shuffle=shuffle), 3)
    solver, twin = (make_solver(backend, config, layout, random_start(*shape)) for _ in range(2))
    block = Block(layout, solver.allocate(layout.block_nbytes))
    for count in (3, 3, 2):  # the last block of a run is not full
        block.count = count
        solver.fill(block)
        solver.wait(block)
        for frame in range(count):
            twin.advance(config.run.steps_per_frame)
            now = dict(zip("uv", fields(twin), strict=True))
            for i, name in enumerate(fields.split(",")):
                expected = now[name].astype(layout.frame.dtype)
                assert_same_bits((staged_field(layout, block.data[frame, i]),), (expected,))
                assert_statistics(block.statistics[frame, i], expected)
        assert_same_bits(fields(solver), fields(twin))


@pytest.mark.parametrize("shuffle", [True, False], ids=["shuffled", "plain"])
@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("backend", ALL)
def test_statistics_count_non_finite_values_and_describe_the_others(
    backend: str, bad: float, precision: str, shuffle: bool, make_config: MakeConfig
) -> None:
    config = make_config({"grid.rows": 21, "grid.cols": 33, "model.precision": precision})
    layout = BlockLayout.of_frames(FrameFormat.of((21, 33), "u,v", precision, shuffle=shuffle), 1)
    u, v = random_start(21, 33)
    u[4, 5] = v[0, 0] = v[20, 17] = bad
    solver = make_solver(backend, config, layout, (u, v))
    block = Block(layout, solver.allocate(layout.block_nbytes))
    block.count = 1
    solver.fill(block)
    solver.wait(block)
    for i, field in enumerate(fields(solver)):
        field = field.astype(layout.frame.dtype)
        assert 3 * 9 < block.statistics[0, i, 4] < field.size
        assert_same_bits((staged_field(layout, block.data[0, i]),), (field,))
        assert_statistics(block.statistics[0, i], field)


@pytest.mark.parametrize("backend", ALL)
def test_statistics_of_a_field_without_a_finite_value_are_zero(backend: str, make_config: MakeConfig) -> None:
    config = make_config()
    layout = BlockLayout.of_frames(layout_of(config).frame, 1)
    nowhere = np.full((12, 17), np.nan)
    _, statistics = record(make_solver(backend, config, layout, (nowhere, nowhere)), layout, 1)
    assert statistics.tolist() == [[[0, 0, 0, 0, 12 * 17]]]


LOSSY = [("", 5), ("float32", 0), ("float32", 12), ("float16", 0), ("uint16", 0), ("uint8", 0)]


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize(("store", "keep_bits"), LOSSY)
def test_values_are_stored_in_fewer_bits_alike_on_every_backend(
    store: str, keep_bits: int, precision: str, shuffle: bool, backend: str, make_config: MakeConfig
) -> None:
    config = make_config({"grid.rows": 21, "grid.cols": 33, "model.precision": precision})
    frame = FrameFormat.of((21, 33), "u,v", precision, shuffle=shuffle, store=store, keep_bits=keep_bits)
    layout = BlockLayout.of_frames(frame, 1)
    solver = make_solver(backend, config, layout, random_start(21, 33))
    data, statistics = record(solver, layout, 1)
    for i, field in enumerate(fields(solver)):
        expected, error = pack(field.astype(precision), frame)
        assert_same_bits((staged_field(layout, data[0, i]),), (expected,))
        assert statistics[0, i, 3] == error
        assert (error > 0) == frame.lossy
        assert statistics[0, i, 1] == field.astype(precision).max()


@pytest.mark.parametrize("precision", ["float32", "float64"])
@given(keep_bits=st.integers(1, 22), seed=st.integers(0, 1000))
def test_rounded_mantissas_are_the_nearest_that_end_in_zeros(keep_bits: int, seed: int, precision: str) -> None:
    values = np.random.default_rng(seed).uniform(-2, 2, 200).astype(precision)
    found, error = pack(values, FrameFormat.of((200,), "v", precision, keep_bits=keep_bits))
    spacing = np.exp2(np.floor(np.log2(np.abs(values.astype(np.float64)))) - keep_bits)
    assert np.all(np.abs(found.astype(np.float64) - values) <= spacing / 2)
    np.testing.assert_array_equal(found / spacing, np.rint(found / spacing))
    assert error == np.abs(found.astype(np.float64) - values).max()


@pytest.mark.parametrize(("store", "levels"), [("uint8", 255), ("uint16", 65535)])
def test_integers_stand_for_zero_to_one(store: str, levels: int) -> None:
    values = np.array([0, 1, 0.5, 1 / levels, 1.25, -3, np.nan, np.inf])
    found, error = pack(values, FrameFormat.of((8,), "v", "float64", store=store))
    np.testing.assert_array_equal(found[[0, 1, 3, 4, 5]], [0, levels, 1, levels, 0])
    assert abs(int(found[2]) - levels / 2) == 0.5
    assert error == 3  # of the value that is clipped the most
