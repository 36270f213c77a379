"""Laplacian stencils, the coefficients of one time step, and the stability limit."""

from typing import NamedTuple

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


class Coefficients(NamedTuple):
    """Constants of one forward Euler step, with dt, the diffusion and the stencil folded together.

    With C and E the sums over the four corners and the four edges of a cell and r = dt u v²::

        u' = u + (u_corner C(u) + u_edge E(u) + u_centre u + (feed − r))
        v' = v + (v_corner C(v) + v_edge E(v) + v_centre v + r)

    The increment is added to the old value last: a uniform state u = 1, v = 0 stays exactly as it is, where folding the
    old value into the centre would drift by one rounding error a step.
    """

    u_corner: float
    u_edge: float
    u_centre: float
    v_corner: float
    v_edge: float
    v_centre: float
    feed: float
    dt: float


def coefficients(model: Model) -> Coefficients:
    """Return the constants of one time step of `model`."""
    corner, edge = STENCILS[model.stencil]
    centre = -4 * (corner + edge)
    u, v = model.dt * model.diffusion_u, model.dt * model.diffusion_v
    return Coefficients(
        u_corner=u * corner,
        u_edge=u * edge,
        u_centre=u * centre - model.dt * model.feed,
        v_corner=v * corner,
        v_edge=v * edge,
        v_centre=v * centre - model.dt * (model.feed + model.kill),
        feed=model.dt * model.feed,
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
    diffusion = max(model.diffusion_u, model.diffusion_v)
    reach = model.dt * diffusion * largest_eigenvalue(model.stencil)
    if not reach <= 2:  # also refuses NaN
        limit = 2 / (diffusion * largest_eigenvalue(model.stencil))
        raise UsageError(
            f"model.dt: {model.dt:g} is unstable with the {model.stencil} stencil and diffusion {diffusion:g}: "
            f"expected at most {limit:.6g}; lower model.dt or the diffusion"
        )
