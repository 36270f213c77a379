"""What the tests share: small configurations."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from gsio.config import Config, load_config

SMALL = {
    "grid.rows": 12,
    "grid.cols": 17,
    "run.frames": 5,
    "run.steps_per_frame": 3,
    "run.backend": "numpy",
    "output.compression": "deflate",
}


@pytest.fixture
def make_config() -> Callable[..., Config]:
    """Return a function from dotted keys to a small configuration that ignores the environment."""

    def make(changes: Mapping[str, Any] = {}) -> Config:
        return load_config(overrides={**SMALL, **changes}, environ={})

    return make
