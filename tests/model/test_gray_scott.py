"""The stability limit of every stencil, and the coefficients of one time step."""

import math
import re
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsio.compute.cpu import CpuSolver
from gsio.compute.peers import numpy as reference
from gsio.compute.solver import Solver
from gsio.config import Config, Model, load_config
from gsio.errors import UsageError
from gsio.model.gray_scott import (
    STENCILS,
    Coefficients,
    check_stability,
    coefficients,
    laplacian,
    largest_eigenvalue,
    step,
)
from gsio.run.initial import initial_state
from gsio.run.plan import layout_of

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


@pytest.mark.parametrize("boundary", ["neumann", "zero"])
@pytest.mark.parametrize("stencil", STENCILS)
def test_no_boundary_has_a_larger_eigenvalue(stencil: str, boundary: str) -> None:
    cells = np.eye(63).reshape(-1, 7, 9)
    matrix = np.stack([-laplacian(cell, stencil, boundary).ravel() for cell in cells])
    largest = np.abs(np.linalg.eigvals(matrix)).max()
    assert 0.85 * largest_eigenvalue(stencil) < largest < largest_eigenvalue(stencil)


NONE = np.array(0.0)  # as a rate


@pytest.mark.parametrize(("stencil", "dt"), LIMITS.items())
def test_dt_at_the_limit_is_accepted(stencil: str, dt: float, make_model: Callable[..., Model]) -> None:
    check_stability(make_model(stencil=stencil, dt=dt), NONE, NONE)


@pytest.mark.parametrize(("stencil", "limit"), LIMITS.items())
def test_dt_above_the_limit_is_refused_with_the_largest_allowed(
    stencil: str, limit: float, make_model: Callable[..., Model]
) -> None:
    with pytest.raises(UsageError, match=rf"^model\.dt: .*{stencil}") as refusal:
        check_stability(make_model(stencil=stencil, dt=limit * (1 + 1e-12)), NONE, NONE)
    told = re.search(r"expected at most ([\d.e+-]+),", str(refusal.value))
    assert told is not None
    assert float(told[1]) == pytest.approx(limit, rel=1e-5)


DEFAULT = load_config(environ={}).model
RATES = st.floats(0, 1)


@given(
    stencil=st.sampled_from(list(STENCILS)),
    diffusions=st.tuples(*[st.floats(0, 1e6)] * 2),
    feed=st.one_of(RATES, st.lists(RATES, min_size=3, max_size=3)),
    kill=st.one_of(RATES, st.lists(RATES, min_size=3, max_size=3)),
)
def test_the_dt_a_refusal_names_is_accepted(
    stencil: str, diffusions: tuple[float, float], feed: Any, kill: Any
) -> None:
    u, v = diffusions
    model = msgspec.structs.replace(DEFAULT, stencil=stencil, diffusion_u=u, diffusion_v=v, dt=1e6)
    rates = np.array(feed), np.array(kill)
    try:
        check_stability(model, *rates)
    except UsageError as refusal:
        told = re.search(r"expected at most ([\d.e+-]+),", str(refusal))
        assert told is not None
        limit = float(told[1])
        check_stability(msgspec.structs.replace(model, dt=limit), *rates)
        with pytest.raises(UsageError):  # and there is no larger one, but for what is rounded
            check_stability(msgspec.structs.replace(model, dt=limit * (1 + 2e-5)), *rates)


def test_feed_counts_for_u_and_feed_and_kill_for_v(make_model: Callable[..., Model]) -> None:
    model = make_model(stencil="oono-puri", diffusion_u=0.125, diffusion_v=0.0)  # Du λmax is 1/2
    with pytest.raises(UsageError, match=r"diffusion_u λmax \+ feed\) .* at most 3\.2,"):
        check_stability(msgspec.structs.replace(model, dt=3.3), np.array(0.125), np.array(0.25))
    with pytest.raises(UsageError, match=r"diffusion_v λmax \+ feed \+ kill\) .* at most 2\.66666,"):
        check_stability(msgspec.structs.replace(model, dt=2.7), np.array(0.125), np.array(0.625))


def test_the_largest_of_rates_that_vary_counts(make_model: Callable[..., Model]) -> None:
    model = make_model(stencil="oono-puri", diffusion_u=0.0, diffusion_v=0.0, dt=2.0)
    feed, kill = np.array([0.75, 0.5, 0.25])[:, None, None], np.array([0.25, 0.5, 0.75])
    check_stability(model, feed[1:], kill[:2])
    check_stability(model, feed, kill[:1])
    with pytest.raises(UsageError, match=r"expected at most 1\.33333,"):  # 0.75 + 0.75 in one cell
        check_stability(model, feed, kill)


def test_the_larger_diffusion_sets_the_limit(make_model: Callable[..., Model]) -> None:
    check_stability(make_model(diffusion_u=0.125, diffusion_v=0.0, dt=4.0), NONE, NONE)
    with pytest.raises(UsageError, match="expected at most 2,"):
        check_stability(make_model(diffusion_u=0.125, diffusion_v=0.25, dt=4.0), NONE, NONE)


def test_without_diffusion_and_rates_any_dt_is_stable(make_model: Callable[..., Model]) -> None:
    check_stability(make_model(diffusion_u=0.0, diffusion_v=0.0, dt=1e6), NONE, NONE)


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
        check_stability(make_model(**changes), NONE, NONE)


@pytest.mark.numba
@pytest.mark.parametrize("solver", [reference.solver, CpuSolver], ids=["numpy", "numba"])
@pytest.mark.parametrize("field", ["u", "v"])
@pytest.mark.parametrize(("feed", "kill"), [(0.0, 0.0), (0.25, 0.5)])
@pytest.mark.parametrize(("stencil", "limit"), LIMITS.items())
def test_a_wave_around_the_rest_state_decays_below_the_limit_and_grows_above_it(
    solver: Callable[..., Solver],
    stencil: str,
    limit: float,
    feed: float,
    kill: float,
    field: str,
    make_config: MakeConfig,
) -> None:
    wave = np.random.default_rng(0).uniform(-1, 1, (12, 18))  # even: holds the fastest-growing wave
    wave *= 1e-9 if field == "u" else 1e-20  # v v stays small
    kill = kill if field == "v" else 0.0
    start = {"u": np.ones_like(wave), "v": np.zeros_like(wave)}
    start[field] += wave
    growth = []
    for factor in (0.999, 1.05):
        config = make_config(
            {
                "grid.cols": 18,
                "model.stencil": stencil,
                "model.precision": "float64",
                "model.diffusion_u": 0.125 if field == "u" else 0.0,
                "model.diffusion_v": 0.125 if field == "v" else 0.0,
                "model.dt": factor * 2 / (2 / limit + feed + kill),
                "model.feed": feed,
                "model.kill": kill,
                "run.threads": 1,
            }
        )
        if factor > 1:
            with pytest.raises(UsageError, match=r"model\.dt"):
                check_stability(config.model, np.array(feed), np.array(kill))
        else:
            check_stability(config.model, np.array(feed), np.array(kill))
        run = solver(config, layout_of(config), initial_state(config)._replace(**start))
        run.advance(300)
        growth.append(np.ptp(run.field(field)) / np.ptp(start[field]))
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
