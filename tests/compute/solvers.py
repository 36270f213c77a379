"""What the tests of solvers share: every backend of the table, solvers that start at given fields, and their bits."""

import warnings
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import msgspec
import numpy as np
import pytest

from gsio.compute import BACKENDS
from gsio.compute.solver import Solver
from gsio.config import Config
from gsio.frames.layout import BlockLayout
from gsio.model.gray_scott import Field
from gsio.run.initial import initial_state

PEERS = [name for name, row in BACKENDS.items() if row.module.startswith("peers.") and name != "numpy"]
SLOW = ("torch-compile",)  # seconds for each configuration


def backend_param(name: str) -> Any:
    """Return a backend as a parameter of a test, with the markers of what it needs."""
    needs = {"gpu": BACKENDS[name].cuda, "numba": name == "numba", "slow": name in SLOW}
    return pytest.param(name, marks=[getattr(pytest.mark, mark) for mark, needed in needs.items() if needed])


EVERY = [backend_param(name) for name in BACKENDS]
BESIDES_NUMPY = [backend_param(name) for name in BACKENDS if name != "numpy"]


def need_library(backend: str) -> None:
    """Skip the test if the library of a backend is not installed; the solver imports it, cuPyNumeric in a thread."""
    library = "cupy" if BACKENDS[backend].cuda else backend.split("-")[0]
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    if backend == "torch-compile":  # the compiler of PyTorch itself uses what PyTorch calls deprecated
        warnings.simplefilter("ignore", DeprecationWarning)


def make_solver(backend: str, config: Config, layout: BlockLayout, fields: tuple[Field, Field] | None = None) -> Solver:
    """Return a solver of `config` that starts at `fields`, u and v, or at its initial state; stable or not."""
    need_library(backend)
    # One thread: more would wait for one another longer than they compute where other processes share the cores.
    run = msgspec.structs.replace(config.run, backend=backend, threads=config.run.threads or 1)
    config = msgspec.structs.replace(config, run=run)
    start = initial_state(config)
    if fields:
        start = start._replace(u=fields[0], v=fields[1])
    row = BACKENDS[backend]
    solver: Solver = getattr(import_module(f"gsio.compute.{row.module}"), row.solver)(config, layout, start)
    return solver


def random_start(*shape: int) -> tuple[Field, Field]:
    """Return u and v that float32 holds exactly, so that every solver starts from the same state."""
    u, v = np.random.default_rng(shape[-2] * 1000 + shape[-1]).random((2, *shape), np.float32).astype(np.float64)
    return u, v


def assert_same_bits(found: tuple[Field, ...], expected: tuple[Field, ...]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == theirs.dtype
        assert mine.shape == theirs.shape
        assert mine.tobytes() == theirs.tobytes()
