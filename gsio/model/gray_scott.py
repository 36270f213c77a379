"""Laplacian stencils, the coefficients of one time step, the stability limit, and the range of the values."""

import decimal
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gsio.config import Model
from gsio.errors import UsageError

# name: (corner, edge); the centre is −4 (corner + edge).
# oono-puri: Oono & Puri, Phys. Rev. Lett. 58 (1987) 836.
# patra-karttunen: Patra & Karttunen, Numer. Methods Partial Differ. Equ. 22 (2006) 936.
STENCILS = {
    "oono-puri": (1 / 4, 1 / 2),
    "five-point": (0.0, 1.0),
    "patra-karttunen": (1 / 6, 2 / 3),
    "ones": (1.0, 1.0),
}
# Values outside 0 to 1 by more than this are reported. Rounding alone stays below: float32 rounds u near 1 by up to
# 6e-8 a step, and feeding corrects errors, so that they stay below 6e-8 / (dt F), or 6e-6 if dt F is 0.01. An unstable
# mode grows with each step, and passes any margin within a few frames.
MARGIN = 1e-3
Rate = NDArray[np.float64]  # broadcasts to [members, rows, cols]
OF_MEMBERS = ("spread_u", "spread_v", "rest", "feed", "keep_v")  # coefficients that differ between members


class Coefficients(NamedTuple):
    """Constants of one forward Euler step, in the form the fast solvers use.

    With S the sum of the 3 × 3 cells around a cell with the weights [1 centre 1] ⊗ [1 centre 1], or, where `centre` is
    0, of the four beside, above and below it::

        u' = spread_u S(u) + ((keep_u − dt v v) u + feed)        keep_u = rest − feed
        v' = spread_v S(v) + (keep_v + dt v u) v

    The weights inside S are whole numbers. `rest` is the share of u that diffusion leaves in a cell. keep_u is computed
    as rest − feed, so that u = 1, v = 0 stays constant to the last bit. A member of a batch has the constants that a
    run of its own has.
    """

    centre: int
    spread_u: Rate
    spread_v: Rate
    rest: Rate
    feed: Rate
    keep_v: Rate
    dt: float

    @property
    def keep_u(self) -> Rate:
        """The share of u that feeding and diffusion leave in a cell."""
        return self.rest - self.feed

    @property
    def weights(self) -> tuple[tuple[int, ...], ...]:
        """The weights inside S, 3 × 3."""
        corner, edge, centre = (1, self.centre, self.centre**2) if self.centre else (0, 1, 0)
        return (corner, edge, corner), (edge, centre, edge), (corner, edge, corner)

    def around(self, p: Any) -> Any:
        """Return S of the inner cells of `p` [..., rows + 2, cols + 2], an array of any library with NumPy's slices."""
        edges = p[..., :-2, 1:-1] + p[..., 2:, 1:-1] + p[..., 1:-1, :-2] + p[..., 1:-1, 2:]
        if not self.centre:
            return edges
        corners = p[..., :-2, :-2] + p[..., :-2, 2:] + p[..., 2:, :-2] + p[..., 2:, 2:]
        return corners + self.centre * (edges + self.centre * p[..., 1:-1, 1:-1])

    def step(self, u: Any, v: Any, around_u: Any, around_v: Any) -> tuple[Any, Any]:
        """Return u and v one time step later, given S of both; fields and rates are arrays of any library."""
        return (
            self.spread_u * around_u + ((self.keep_u - self.dt * v * v) * u + self.feed),
            self.spread_v * around_v + (self.keep_v + self.dt * v * u) * v,
        )


def coefficients(model: Model, feed: Rate, kill: Rate) -> Coefficients:
    """Return the constants of one time step of `model` with the rates `feed` and `kill`, per unit time.

    All are of the precision of the model; `feed` and `keep_v` have the shape of the rates, and the spreads and `rest`
    are numbers, or [members, 1, 1].
    """
    corner, edge = STENCILS[model.stencil]
    centre = round(edge / corner) if corner else 0
    weight = (2 + centre) ** 2 if corner else 4
    rounded = np.dtype(model.precision).type
    lost_u, lost_v = model.dt * feed, model.dt * (feed + kill)
    by_cell = any(rate.shape[-2:] not in ((), (1, 1)) for rate in (feed, kill))

    def keep_u(spread: Any, lost: Rate) -> Any:
        return rounded(1 - weight * spread) - rounded(lost)

    def keep_v(spread: Any, lost: Rate) -> Any:
        return rounded(1 - lost - weight * spread)

    def spread(diffusion: float, lost: Rate, keep: Callable[[Any, Rate], Any]) -> Rate:
        exact = rounded(model.dt * diffusion * (corner or edge))
        if exact.dtype != np.float32 or not exact or (lost.ndim and by_cell):
            return np.array(exact, np.float64)
        return _spread(exact, weight, lost, keep)

    spread_u = spread(model.diffusion_u, lost_u, keep_u)
    spread_v = spread(model.diffusion_v, lost_v, keep_v)
    return Coefficients(
        centre=centre,
        spread_u=spread_u,
        spread_v=spread_v,
        rest=np.asarray(rounded(1 - weight * spread_u), np.float64),
        feed=np.asarray(rounded(lost_u), np.float64),
        keep_v=np.asarray(keep_v(spread_v, lost_v), np.float64),
        dt=model.dt,
    )


def _spread(exact: np.floating[Any], weight: int, lost: Rate, keep: Callable[[Any, Rate], Any]) -> Rate:
    """Return factors of S next to `exact` with which a uniform field loses `lost` a step more exactly, in float32.

    The share that a cell keeps is rounded by up to 3e-8, or 2e-6 of a loss of 0.014, and these errors add up. An error
    of the factor counts less, because diffusion soon removes its effect. A search over four units in the last place, at
    a price of 0.3 a unit, gave the smallest measured errors after 32 and 1000 steps over all cases of the tests.
    """
    nearby = exact + np.array(sorted(range(-4, 5), key=abs)) * np.spacing(exact)
    factors = nearby.astype(np.float64)
    lost = lost[..., np.newaxis]
    errors = np.abs(keep(factors, lost) + weight * factors + (lost - 1))
    errors += 0.3 * weight * np.abs(factors - float(exact))
    return np.asarray(factors[errors.argmin(axis=-1)])


def largest_eigenvalue(stencil: str) -> float:
    """Return λmax, the largest eigenvalue of −∇² for `stencil`, in 1/cell².

    On the plane wave (kx, ky) the stencil gives 4(c + e) − 4c cos kx cos ky − 2e (cos kx + cos ky), which is linear in
    either cosine: its largest value lies where both cosines are ±1.
    """
    corner, edge = STENCILS[stencil]
    return max(8 * edge, 8 * corner + 4 * edge)


def check_stability(model: Model, feed: Rate, kill: Rate) -> None:
    """Raise UsageError if forward Euler is unstable with the rates `feed` and `kill`, per unit time, of any shape.

    Around u = 1, v = 0 the wave that grows the fastest is multiplied by 1 − dt (D λmax + r) in a step, with r = F for u
    and r = F + k for v. Both have to be −1 or more: dt (Du λmax + F) ≤ 2 and dt (Dv λmax + F + k) ≤ 2, in every cell.
    The limit that the error names is one that passes.
    """
    spread = largest_eigenvalue(model.stencil)
    rates = {
        "diffusion_u λmax + feed": model.diffusion_u * spread + float(np.max(feed)),
        "diffusion_v λmax + feed + kill": model.diffusion_v * spread + float(np.max(feed + kill)),
    }
    name, rate = max(rates.items(), key=lambda item: math.inf if math.isnan(item[1]) else item[1])
    if not model.dt * rate <= 2:  # also refuses NaN
        # Six digits, none of them rounded up: the limit that is named has to pass.
        limit = decimal.Context(prec=6, rounding=decimal.ROUND_FLOOR).create_decimal(2 / rate if rate else math.inf)
        raise UsageError(
            f"model.dt: {model.dt:g} is unstable with the {model.stencil} stencil, whose λmax is {spread:g}: "
            f"dt ({name}) is at most 2; expected at most {float(limit):g}, or less diffusion, feed or kill"
        )


def values_outside(least: Rate, largest: Rate, fields: Sequence[str], first: int = 0) -> str:
    """Return in words the worst value of the first frame with values outside 0 to 1 by more than `MARGIN`, or "".

    `least` and `largest` are the extreme values [frame, field] of the frames from number `first` on.
    """
    beyond = np.maximum(-least, largest - 1)
    frames = np.flatnonzero((beyond > MARGIN).any(axis=1))
    if not len(frames):
        return ""
    frame, field = frames[0], beyond[frames[0]].argmax()
    below = least[frame, field] < -MARGIN and -least[frame, field] >= largest[frame, field] - 1
    value = (least if below else largest)[frame, field]
    return f"{fields[field]} is {value:.4g} at frame {first + frame}, outside 0 to 1"


Field = NDArray[np.floating[Any]]


PADDING = {"periodic": "wrap", "neumann": "edge", "zero": "constant"}  # modes of `pad` in NumPy and JAX


def laplacian(field: Field, stencil: str, boundary: str) -> Field:
    """Return ∇² of `field` [..., rows, cols] by one of `STENCILS`, with cells outside the grid given by `boundary`."""
    corner, edge = STENCILS[stencil]
    p = np.pad(field, [(0, 0)] * (field.ndim - 2) + [(1, 1)] * 2, mode=PADDING[boundary])  # type: ignore[call-overload]
    corners = p[..., :-2, :-2] + p[..., :-2, 2:] + p[..., 2:, :-2] + p[..., 2:, 2:]
    edges = p[..., :-2, 1:-1] + p[..., 2:, 1:-1] + p[..., 1:-1, :-2] + p[..., 1:-1, 2:]
    total: Field = corner * corners + edge * edges - 4 * (corner + edge) * field
    return total


def step(u: Field, v: Field, feed: Field, kill: Field, model: Model, boundary: str) -> tuple[Field, Field]:
    """Return u and v one time step later; `feed` and `kill` broadcast to them."""
    reaction = u * v * v
    du = model.diffusion_u * laplacian(u, model.stencil, boundary) - reaction + feed * (1 - u)
    dv = model.diffusion_v * laplacian(v, model.stencil, boundary) + reaction - (feed + kill) * v
    return u + model.dt * du, v + model.dt * dv
