"""The answers that the production solvers must give: the list of the model."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from solvers import assert_same_bits, make_solver, random_start

from gsio.compute.host import pack
from gsio.compute.solver import fields
from gsio.config import Config
from gsio.frames.format import FrameFormat
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


def solve(backend: str, config: Config, steps: int, start: tuple[Field, Field] | None = None) -> tuple[Field, Field]:
    solver = make_solver(backend, config, layout_of(config), start)
    solver.advance(steps)
    return fields(solver)


def smooth_start(rows: int, cols: int) -> tuple[Field, Field]:
    y, x = (np.linspace(0, 2 * np.pi, n, endpoint=False) for n in (rows, cols))
    bump = (2 + np.cos(y)[:, None] + np.sin(x)) / 4
    return 1 - 0.5 * bump, 0.4 * bump


def relative_error(found: Field, expected: Field) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def assert_agrees(found: tuple[Field, Field], expected: tuple[Field, Field], tolerance: float) -> None:
    for name, mine, theirs in zip("uv", found, expected, strict=True):
        assert relative_error(mine, theirs) < tolerance, name


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


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("backend", FAST)
def test_a_member_has_the_same_bits_in_any_batch_and_alone(
    backend: str, boundary: str, precision: str, make_config: MakeConfig
) -> None:
    size = {"grid.rows": 37, "grid.cols": 52, "grid.boundary": boundary, "model.precision": precision}
    feeds, kills = [0.014, 0.03, 0.062], [0.054, 0.057, 0.0609]
    start = random_start(37, 52)
    batch = solve(backend, make_config({**size, "model.feed": feeds, "model.kill": kills}), 40, start)
    other = make_config({**size, "model.feed": feeds[::-1], "model.kill": kills[::-1]})
    assert_same_bits(solve(backend, other, 40, start), tuple(field[::-1].copy() for field in batch))
    for member, (feed, kill) in enumerate(zip(feeds, kills, strict=True)):
        alone = solve(backend, make_config({**size, "model.feed": feed, "model.kill": kill}), 40, start)
        assert_same_bits(alone, tuple(field[member] for field in batch))


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("rates", [{}, RATES["ramps"]], ids=["constants", "ramps"])
def test_a_grid_cut_into_small_parts_has_the_same_bits(
    rates: dict[str, Any], boundary: str, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config({"grid.rows": 67, "grid.cols": 301, "grid.boundary": boundary, **rates})
    start = random_start(67, 301)
    whole = solve("numba", config, 40, start)
    for kilobytes in (4, 32, 96):
        monkeypatch.setattr("gsio.compute.cpu.second_level_cache", lambda kilobytes=kilobytes: kilobytes << 10)
        assert_same_bits(solve("numba", config, 40, start), whole)


@pytest.mark.parametrize("boundary", ["periodic", "neumann"])
def test_a_grid_of_any_width_stays_the_same_in_all_rows(boundary: str, make_config: MakeConfig) -> None:
    for cols in range(1, 40):  # narrower and wider than the vectors of any machine
        start = random_start(1, cols)
        size = {"grid.cols": cols, "grid.boundary": boundary}
        one = solve("numba", make_config({**size, "grid.rows": 1}), 9, start)
        three = solve("numba", make_config({**size, "grid.rows": 3}), 9, tuple(np.repeat(f, 3, axis=0) for f in start))
        assert_same_bits(three, tuple(np.repeat(field, 3, axis=0) for field in one))
        assert_agrees(one, solve("numpy", make_config({**size, "grid.rows": 1}), 9, start), TOLERANCE["float32"])


# Values stored in fewer bits


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
