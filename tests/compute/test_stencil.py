"""The stability limit of every stencil, and the coefficients of one time step."""

import math
import re
from collections.abc import Callable

import msgspec
import numpy as np
import pytest

from gsio.compute import reference
from gsio.compute.base import Solver
from gsio.compute.cpu import CpuSolver
from gsio.compute.reference import laplacian, step
from gsio.compute.stencil import STENCILS, Coefficients, check_stability, coefficients, largest_eigenvalue
from gsio.config import Config, Model
from gsio.errors import UsageError
from gsio.initial import initial_state
from gsio.staging import layout_of

MakeConfig = Callable[..., Config]

# Powers of two but for patra-karttunen, so that dt · D · λmax is 2 to the last bit.
LIMITS = {"oono-puri": 4.0, "five-point": 2.0, "patra-karttunen": 3.0, "ones": 4 / 3}  # of dt, where D = 1/8


@pytest.fixture
def make_model(make_config: MakeConfig) -> Callable[..., Model]:
    """Return a function from fields to a model, whose values are not checked."""
    model = make_config({"model.diffusion_u": 0.125, "model.diffusion_v": 0.0625}).model
    return lambda **changes: msgspec.structs.replace(model, **changes)


@pytest.mark.parametrize("shape", [(6, 6), (4, 10)], ids=str)
@pytest.mark.parametrize("stencil", STENCILS)
def test_largest_eigenvalue_is_that_of_the_matrix(stencil: str, shape: tuple[int, int]) -> None:
    cells = np.eye(shape[0] * shape[1]).reshape(-1, *shape)
    matrix = np.stack([-laplacian(cell, stencil, "periodic").ravel() for cell in cells])
    assert largest_eigenvalue(stencil) == pytest.approx(np.linalg.eigvalsh(matrix).max(), rel=1e-12)


@pytest.mark.parametrize(("stencil", "dt"), LIMITS.items())
def test_dt_at_the_limit_is_accepted(stencil: str, dt: float, make_model: Callable[..., Model]) -> None:
    check_stability(make_model(stencil=stencil, dt=dt))


@pytest.mark.parametrize(("stencil", "limit"), LIMITS.items())
def test_dt_above_the_limit_is_refused_with_the_largest_allowed(
    stencil: str, limit: float, make_model: Callable[..., Model]
) -> None:
    with pytest.raises(UsageError, match=rf"^model\.dt: .*{stencil}") as refusal:
        check_stability(make_model(stencil=stencil, dt=limit * (1 + 1e-12)))
    told = re.search(r"at most ([\d.e+-]+)", str(refusal.value))
    assert told is not None
    assert float(told[1].rstrip(".")) == pytest.approx(limit, rel=1e-5)


@pytest.mark.parametrize("diffusion", [0.07, 0.1, 0.125, 0.3])
@pytest.mark.parametrize("stencil", STENCILS)
def test_the_dt_a_refusal_names_is_accepted(stencil: str, diffusion: float, make_model: Callable[..., Model]) -> None:
    model = make_model(stencil=stencil, diffusion_u=diffusion, dt=1000.0)
    with pytest.raises(UsageError) as refusal:
        check_stability(model)
    told = re.search(r"at most ([\d.e+-]+)", str(refusal.value))
    assert told is not None
    check_stability(msgspec.structs.replace(model, dt=float(told[1].rstrip("."))))


def test_the_larger_diffusion_sets_the_limit(make_model: Callable[..., Model]) -> None:
    check_stability(make_model(diffusion_u=0.125, diffusion_v=0.0, dt=4.0))
    with pytest.raises(UsageError, match="at most 2"):
        check_stability(make_model(diffusion_u=0.125, diffusion_v=0.25, dt=4.0))


def test_without_diffusion_any_dt_is_stable(make_model: Callable[..., Model]) -> None:
    check_stability(make_model(diffusion_u=0.0, diffusion_v=0.0, dt=1e6))


@pytest.mark.parametrize(
    "changes",
    [
        {"dt": math.inf},
        {"dt": math.nan},
        {"diffusion_u": math.inf},
        {"diffusion_v": math.inf},
        {"diffusion_u": math.nan},
        {"diffusion_v": math.nan},
        {"dt": math.inf, "diffusion_u": 0.0, "diffusion_v": 0.0},
    ],
    ids=str,
)
def test_values_that_are_not_finite_are_refused(changes: dict[str, float], make_model: Callable[..., Model]) -> None:
    with pytest.raises(UsageError, match=r"model\."):
        check_stability(make_model(**changes))


@pytest.mark.numba
@pytest.mark.parametrize("solver", [reference.solver, CpuSolver], ids=["numpy", "numba"])
@pytest.mark.parametrize(("stencil", "limit"), LIMITS.items())
def test_diffusion_is_bounded_below_the_limit_and_grows_above_it(
    solver: Callable[..., Solver], stencil: str, limit: float, make_config: MakeConfig
) -> None:
    start = 1 + np.random.default_rng(0).uniform(-1e-3, 1e-3, (12, 18))  # even: holds the fastest-growing wave
    growth = []
    for factor in (0.999, 1.05):
        config = make_config(
            {
                "grid.cols": 18,
                "model.stencil": stencil,
                "model.precision": "float64",
                "model.diffusion_u": 0.125,
                "model.dt": factor * limit,
                "model.feed": 0.0,
                "model.kill": 0.0,
                "run.threads": 1,
            }
        )
        beginning = initial_state(config)._replace(u=start, v=np.zeros_like(start))
        run = solver(config, layout_of(config), beginning)
        run.advance(300)
        growth.append(np.ptp(run.fields()[0]) / np.ptp(start))
    assert growth[0] < 1
    assert growth[1] > 1000


def test_coefficients_are_those_worked_out_by_hand(make_model: Callable[..., Model]) -> None:
    model = make_model(diffusion_u=0.2, diffusion_v=0.1, dt=0.5, stencil="oono-puri", precision="float64")
    found = coefficients(model, np.array(0.04), np.array(0.06))
    # The nine weights 1 2 1, 2 4 2, 1 2 1 add up to 16, and the corners count 1/4.
    assert found == pytest.approx(
        Coefficients(centre=2, spread_u=0.025, spread_v=0.0125, rest=0.6, feed=0.02, keep_v=0.75, dt=0.5)
    )


@pytest.mark.parametrize("stencil", STENCILS)
@pytest.mark.parametrize(("feed", "kill"), [(0.014, 0.054), (0.03, 0.06), (0.0367, 0.0649), (0.062, 0.0609)])
def test_in_float32_a_uniform_field_loses_what_it_has_to(
    feed: float, kill: float, stencil: str, make_model: Callable[..., Model]
) -> None:
    model = make_model(stencil=stencil, diffusion_u=0.1, diffusion_v=0.05)
    c = coefficients(model, np.array(feed), np.array(kill))
    for number in (c.spread_u, c.spread_v, c.rest, float(c.feed), float(c.keep_v)):
        assert number == np.float32(number)
    weight = (2 + c.centre) ** 2 if c.centre else 4
    corner, edge = STENCILS[stencil]
    assert c.spread_u * weight == pytest.approx(0.1 * (corner or edge) * weight, rel=5e-7)
    keep_u = float(np.float32(c.rest) - np.float32(c.feed))
    assert keep_u + weight * c.spread_u == pytest.approx(1 - feed, abs=1.6e-8)  # about a quarter of a last bit
    assert c.keep_v + weight * c.spread_v == pytest.approx(1 - feed - kill, abs=1.6e-8)


def test_one_step_is_that_worked_out_by_hand(make_model: Callable[..., Model]) -> None:
    model = make_model(diffusion_u=0.2, diffusion_v=0.1, dt=0.5, stencil="oono-puri")
    u, v = np.full((3, 5), 0.9), np.zeros((3, 5))
    v[1, 2] = 0.5
    u_new, v_new = step(u, v, np.array(0.04), np.array(0.06), model, "zero")
    # u: no gradient; u v² = 0.225; feed 0.04 · 0.1. v: ∇² = −3 · 0.5, decay 0.1 · 0.5.
    assert u_new[1, 2] == pytest.approx(0.9 + 0.5 * (-0.225 + 0.004))
    assert v_new[1, 2] == pytest.approx(0.5 + 0.5 * (0.1 * -1.5 + 0.225 - 0.05))
    assert v_new[0, 2] == v_new[1, 1] == pytest.approx(0.5 * 0.1 * 0.5 * 0.5)  # an edge of the cell
    assert v_new[0, 1] == v_new[2, 3] == pytest.approx(0.5 * 0.1 * 0.25 * 0.5)  # a corner of the cell
    assert (v_new[:, [0, 4]] == 0).all()
    # Above the first row u = 0: two corners and an edge of weight 1/4, 1/4, 1/2 are missing.
    assert u_new[0, 1] == pytest.approx(0.9 + 0.5 * (0.2 * -0.9 + 0.004))


@pytest.mark.parametrize("stencil", STENCILS)
def test_coefficients_make_the_step_of_the_equations(stencil: str, make_model: Callable[..., Model]) -> None:
    model = make_model(stencil=stencil, dt=0.7, precision="float64")
    fields = np.random.default_rng(1).random((2, 3, 3))
    feed, kill = np.array(0.03), np.array(0.06)
    c = coefficients(model, feed, kill)
    line = np.array([1, c.centre, 1])
    weights = np.outer(line, line) if c.centre else np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]])
    (u, v), (u_sum, v_sum) = fields[:, 1, 1], (fields * weights).sum(axis=(1, 2))
    reaction = u * v * c.dt * v
    u_new = c.spread_u * u_sum + ((c.rest - c.feed) * u + (c.feed - reaction))
    v_new = c.spread_v * v_sum + (c.keep_v * v + reaction)
    expected = [field[1, 1] for field in step(*fields, feed, kill, model, "periodic")]
    assert [u_new, v_new] == pytest.approx(expected, rel=1e-13)
