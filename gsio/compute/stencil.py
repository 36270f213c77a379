"""Laplacian stencils, the coefficients of one time step, and the stability limit."""

import decimal
import math
from typing import NamedTuple

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
Rate = NDArray[np.float64]  # broadcasts to [members, rows, cols]


class Coefficients(NamedTuple):
    """Constants of one forward Euler step.

    With C and E the sums over the four corners and the four edges of a cell, and r = dt u v²::

        u' = u + (u_diffusion (corner (C(u) − 4u) + edge (E(u) − 4u)) + (feed (1 − u) − r))
        v' = v + (v_diffusion (corner (C(v) − 4v) + edge (E(v) − 4v)) + (r − decay v))

    The centre is subtracted from the sums, and the weights stay apart from the rates: however the constants are
    rounded, the Laplacian of a uniform field is zero. Folded into fewer products it is not, which in float32 costs up
    to ten times the error after 1000 steps. Adding the increment to the old value last keeps u = 1, v = 0 as it is.
    """

    corner: float
    edge: float
    u_diffusion: float
    v_diffusion: float
    feed: Rate
    decay: Rate
    dt: float


def coefficients(model: Model, feed: Rate, kill: Rate) -> Coefficients:
    """Return the constants of one time step of `model` with the rates `feed` and `kill`, per unit time."""
    corner, edge = STENCILS[model.stencil]
    return Coefficients(
        corner=corner,
        edge=edge,
        u_diffusion=model.dt * model.diffusion_u,
        v_diffusion=model.dt * model.diffusion_v,
        feed=model.dt * feed,
        decay=model.dt * (feed + kill),
        dt=model.dt,
    )


def largest_eigenvalue(stencil: str) -> float:
    """Return λmax, the largest eigenvalue of −∇² for `stencil`, in 1/cell².

    On the plane wave (kx, ky) the stencil gives 4(c + e) − 4c cos kx cos ky − 2e (cos kx + cos ky), which is linear in
    either cosine: its largest value lies where both cosines are ±1.
    """
    corner, edge = STENCILS[stencil]
    return max(8 * edge, 8 * corner + 4 * edge)


def check_stability(model: Model) -> None:
    """Raise UsageError if forward Euler is unstable: it needs dt · D · λmax ≤ 2."""
    for diffusion in (model.diffusion_u, model.diffusion_v):
        rate = diffusion * largest_eigenvalue(model.stencil)
        if not model.dt * rate <= 2:  # also refuses NaN
            # Six digits, none of them rounded up: the limit that is named has to pass.
            limit = decimal.Context(prec=6, rounding=decimal.ROUND_FLOOR).create_decimal(2 / rate if rate else math.inf)
            raise UsageError(
                f"model.dt: {model.dt:g} is unstable with the {model.stencil} stencil and diffusion {diffusion:g}: "
                f"expected at most {float(limit):g}; lower model.dt or the diffusion"
            )
