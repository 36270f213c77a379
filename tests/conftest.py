"""What the tests share: small configurations."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from gsio.compute import reference
from gsio.config import Config, load_config
from gsio.initial import initial_state
from gsio.staging import layout_of

SMALL = {
    "grid.rows": 12,
    "grid.cols": 17,
    "run.frames": 5,
    "run.steps_per_frame": 3,
    "run.backend": "numpy",
    "output.compression": "deflate",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rounds", type=int, default=1, help="of each test in tests/faults, for each kind of output; 1: the short form"
    )
    parser.addoption("--fault", default="", help="only faults of the storage whose name holds this, as EIO")
    parser.addoption("--report", metavar="PATH", help="write a table of the rounds of tests/faults, in Markdown")


@pytest.fixture
def make_config() -> Callable[..., Config]:
    """Return a function from dotted keys to a small configuration that ignores the environment."""

    def make(changes: Mapping[str, Any] = {}) -> Config:
        return load_config(overrides={**SMALL, **changes}, environ={})

    return make


@pytest.fixture
def expected_frames() -> Callable[[Config], dict[str, np.ndarray]]:
    """Return a function from a configuration to u and v of every frame, [frame, …], without staging or files."""

    def frames_of(config: Config) -> dict[str, np.ndarray]:
        solver = reference.solver(config, layout_of(config), initial_state(config))
        frames = []
        for _ in range(config.run.frames):
            solver.advance(config.run.steps_per_frame)
            frames.append([field.astype(config.model.precision) for field in solver.fields()])
        return dict(zip("uv", np.swapaxes(np.array(frames), 0, 1), strict=True))

    return frames_of
