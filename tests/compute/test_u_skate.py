"""The preset `u-skate` holds what it is named for: a U of low v that glides and keeps its shape."""

import numpy as np
import pytest
from scipy import ndimage

from gsio.compute import open_solver
from gsio.compute.peers import numpy as reference
from gsio.compute.solver import Solver
from gsio.config import load_config
from gsio.run.initial import initial_state
from gsio.run.plan import layout_of

SPEED = 1.35  # cells in 1000 steps, about
MARGIN = 40  # cells around the grid, copied from its other side: the largest shape that counts lies inside
Shape = tuple[np.ndarray, float]  # its centre, rows and columns, and how much v lacks in it


def shapes(v: np.ndarray) -> list[Shape]:
    """Return the connected shapes of low v in a periodic field, but those that are longer than `MARGIN`."""
    low = np.pad(np.maximum(0.25 - v, 0), MARGIN, mode="wrap")
    labels, _ = ndimage.label(low > 0.05)
    found = []
    for number, place in enumerate(ndimage.find_objects(labels), 1):
        whole = all(side.start > 0 and side.stop < n for side, n in zip(place, low.shape, strict=True))
        weights = np.where(labels[place] == number, low[place], 0)
        centre = ndimage.center_of_mass(weights) + np.array([side.start for side in place]) - MARGIN
        if whole and ((centre >= 0) & (centre < v.shape)).all():
            found.append((centre, float(weights.sum())))
    return found


def track(shape: Shape, now: list[Shape], size: np.ndarray) -> tuple[np.ndarray, Shape]:
    """Return how far a shape has moved to the nearest one of a later time, and that one."""
    moves = [(centre - shape[0] + size / 2) % size - size / 2 for centre, _ in now]
    nearest = int(np.argmin([np.hypot(*move) for move in moves]))
    return moves[nearest], now[nearest]


def gliders(solver: Solver, size: np.ndarray, thousands: int) -> list[Shape]:
    """Return the shapes that glide with the speed of a U-skate, straight and unchanged, for so many thousand steps."""
    tracks = [([np.zeros(2)], shape) for shape in shapes(solver.field("v"))]
    for _ in range(thousands):
        solver.advance(1000)
        now = shapes(solver.field("v"))
        steps = [(moves, before, *track(before, now, size)) for moves, before in tracks]
        tracks = [
            ([*moves, move], after)
            for moves, before, move, after in steps
            if 0.85 * SPEED < np.hypot(*move) < 1.15 * SPEED and abs(after[1] - before[1]) < 0.05 * before[1]
        ]
    return [shape for moves, shape in tracks if np.hypot(*np.sum(moves, axis=0)) > 0.9 * SPEED * thousands]


def test_a_u_glides_at_the_rates_of_the_preset() -> None:
    n = 64
    config = load_config(preset="u-skate", overrides={"grid.rows": n, "grid.cols": n}, environ={})
    # A U of u = 1, v = 0 in the uniform state that is not u = 1: there F (1 − u) = (F + k) v and u v = F + k.
    feed, lost = config.model.feed, config.model.feed + config.model.kill
    v = (1 + np.sqrt(1 - 4 * lost**2 / feed)) * feed / (2 * lost)
    y, x = np.mgrid[:n, :n] - 32
    bow, arms = abs(np.hypot(y, x) - 6) < 2.6, abs(abs(y) - 6) < 2.6
    inside = np.where(x < 0, bow, arms & (x < 8))
    start = initial_state(config)._replace(u=np.where(inside, 1, lost / v), v=np.where(inside, 0, v))
    solver = reference.solver(config, layout_of(config), start)
    solver.advance(2000)
    (glider,) = gliders(solver, np.array([n, n]), 3)
    assert glider[0][1] < 28  # towards its bow


@pytest.mark.slow  # where Numba has to compile first
def test_the_preset_has_gliders_until_its_end() -> None:
    config = load_config(preset="u-skate", overrides={"run.backend": "numba"}, environ={})
    solver = open_solver(config.run.backend, config, layout_of(config), 1, initial_state)
    steps = config.run.frames * config.run.steps_per_frame
    solver.advance(steps - 4000)
    found = gliders(solver, np.array([config.grid.rows, config.grid.cols]), 4)
    assert len(found) >= 3  # of five
