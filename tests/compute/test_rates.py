"""Feed and kill of every kind together, on every backend: a number, a list, a map along an axis, a map in a file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from solvers import EVERY, need_library

from gsio.compute import open_solver
from gsio.compute.solver import fields
from gsio.config import Config
from gsio.model.gray_scott import step
from gsio.run.initial import initial_state
from gsio.run.plan import layout_of

MakeConfig = Callable[..., Config]

SHAPE = (20, 30)
# Relative L2 against the float64 reference after 32 steps.
TOLERANCE = {"float32": 2e-6, "float64": 1e-13}
KINDS = ("number", "list", "along x", "along y", "file")


@pytest.fixture
def rate(tmp_path: Path) -> Callable[[str, float, float], Any]:
    """Return a function that makes a rate of a kind, from its least and its largest value."""

    def make(kind: str, start: float, stop: float) -> Any:
        if kind == "number":
            return start
        if kind == "list":
            return [start, stop, (start + stop) / 2]
        if kind.startswith("along"):
            return {"along": kind[-1], "start": start, "stop": stop}
        path = tmp_path / f"{start}.npy"
        np.save(path, np.random.default_rng(2).random(SHAPE))
        return {"path": str(path), "start": start, "stop": stop}

    return make


@pytest.mark.parametrize("feed", KINDS)
@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("backend", EVERY)
def test_every_kind_of_feed_goes_with_every_kind_of_kill(
    backend: str, precision: str, feed: str, rate: Callable[[str, float, float], Any], make_config: MakeConfig
) -> None:
    need_library(backend)
    for kill in KINDS:
        rates = {"model.feed": rate(feed, 0.01, 0.06), "model.kill": rate(kill, 0.05, 0.07)}
        grid = {"grid.rows": SHAPE[0], "grid.cols": SHAPE[1], "run.threads": 1}
        config = make_config({"run.backend": backend, "model.precision": precision, **grid, **rates})
        layout = layout_of(config)
        assert layout.frame.shape == ((3, *SHAPE) if "list" in (feed, kill) else SHAPE)
        u, v = np.random.default_rng(1).random((2, *layout.frame.shape), np.float32).astype(np.float64)
        start = initial_state(config)._replace(u=u, v=v)
        solver = open_solver(config.run.backend, config, layout, 1, lambda _, start=start: start)
        solver.advance(32)
        for mine, theirs in zip(fields(solver), expected(config, start), strict=True):
            assert np.linalg.norm(mine - theirs) < TOLERANCE[precision] * np.linalg.norm(theirs), kill


def expected(config: Config, start: Any) -> list[np.ndarray]:
    """Return u and v after 32 steps, each member computed alone with its rates of every cell."""
    shape = (config.members, *SHAPE)
    fields = [np.broadcast_to(field, shape) for field in start]
    members = []
    for u, v, feed, kill in zip(*fields, strict=True):
        for _ in range(32):
            u, v = step(u, v, feed, kill, config.model, config.grid.boundary)
        members.append((u, v))
    return [np.array(field).reshape(start.u.shape) for field in zip(*members, strict=True)]
