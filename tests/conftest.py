"""What the tests share: small configurations, and what has to be so before the first of them begins."""

import fcntl
import itertools
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from gsio.compute.peers import numpy as reference
from gsio.compute.solver import fields
from gsio.config import Config, load_config
from gsio.frames.sizes import DEFAULT
from gsio.run.initial import initial_state
from gsio.run.plan import layout_of

SMALL = {
    "grid.rows": 12,
    "grid.cols": 17,
    "run.frames": 5,
    "run.steps_per_frame": 3,
    "run.backend": "numpy",
    "output.compression": "deflate",
}
# What each function that Numba compiles is compiled for, besides the precision.
COMPILED = [
    *(("output.store", store) for store in ("computed", "float32", "float16", "uint8")),
    ("model.feed", {"along": "x", "start": 0.02, "stop": 0.03}),
]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rounds",
        type=int,
        default=1,
        help="run each test in tests/faults N times for each kind of output; 1 is the short form",
    )
    parser.addoption(
        "--fault", default="", help="only inject faults of the storage whose name holds this text, for example EIO"
    )
    parser.addoption("--screenshots", metavar="FOLDER", help="write the pictures of the page that docs/ shows")
    parser.addoption("--report", metavar="PATH", help="write a table of the rounds of tests/faults, in Markdown")


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a shell's background job, and of what tests start
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.getoption("--report") and config.getoption("numprocesses", None):
        raise pytest.UsageError("--report: expected one process, whose rounds it lists; leave out --numprocesses")
    settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("patient")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Compile what tests run by Numba, a minute the first time, so that no test's own time counts it."""
    if not any(item.get_closest_marker("numba") and not item.get_closest_marker("gpu") for item in session.items):
        return
    from gsio.compute.cpu import CpuSolver

    with Path(__file__).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # one process compiles, others load what is then in Numba's cache
        for precision, (key, value) in itertools.product(("float32", "float64"), COMPILED):
            changes = {**SMALL, "run.threads": 1, "model.precision": precision, key: value}
            config = load_config(overrides=changes, environ={})
            CpuSolver(config, layout_of(config), initial_state(config))


@pytest.fixture(autouse=True)
def default_sizes() -> Iterator[None]:
    """Let `small_blocks` last until the end of a test."""
    before = DEFAULT.set(DEFAULT.get())
    yield
    DEFAULT.reset(before)


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
            frames.append([field.astype(config.model.precision) for field in fields(solver)])
        return dict(zip("uv", np.swapaxes(np.array(frames), 0, 1), strict=True))

    return frames_of
