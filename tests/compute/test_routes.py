"""Array code in other libraries: the reference's answers, the way into a file, and what is refused."""

import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import gsio
from gsio.compute import BACKENDS, host, open_solver
from gsio.compute.peers import numpy as reference
from gsio.compute.solver import Solver, fields
from gsio.config import Config
from gsio.errors import UsageError
from gsio.frames.block import Block
from gsio.run.initial import initial_state
from gsio.run.plan import layout_of

MakeConfig = Callable[..., Config]

# Relative L2 against the float64 reference after 32 steps. Measured: 7e-7 and 3e-15.
TOLERANCE = {"float32": 2e-6, "float64": 1e-13}
SLOW = ("torch-compile",)  # seconds for each configuration
MARKS: dict[str, Any] = {"cupy-arrays": [pytest.mark.gpu], "torch-compile": [pytest.mark.slow]}
INSTALLED = [
    pytest.param(route, marks=MARKS.get(route, [])) for route in BACKENDS if route not in ("cupy", "numba", "numpy")
]
RAMP_X = {"along": "x", "start": 0.05, "stop": 0.07}
RAMP_Y = {"along": "y", "start": 0.01, "stop": 0.06}
WEAK = {"model.diffusion_u": 0.05, "model.diffusion_v": 0.025}  # stable with every stencil
CASES: list[dict[str, Any]] = [
    *(
        {"grid.rows": rows, "grid.cols": cols, "grid.boundary": boundary}
        for rows, cols in ((1, 1), (13, 2), (3, 17))
        for boundary in ("periodic", "neumann", "zero")
    ),
    *({"model.stencil": stencil, **WEAK} for stencil in ("five-point", "patra-karttunen", "ones")),
    {"model.feed": [0.01, 0.03, 0.05]},
    {"model.feed": [0.03]},
    {"model.feed": RAMP_Y, "model.kill": RAMP_X},
    {"model.feed": [0.01, 0.03], "model.kill": RAMP_X, "grid.boundary": "neumann"},
]
FEW: list[dict[str, Any]] = [{"model.feed": [0.01, 0.03], "model.kill": RAMP_X, "model.stencil": "five-point"}]


def need_library(route: str) -> None:
    """Skip the test if the library of a route is not installed; the solver imports it, cuPyNumeric in a thread."""
    library = route.split("-")[0]
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    if route == "torch-compile":  # the compiler of PyTorch itself uses what PyTorch calls deprecated
        warnings.simplefilter("ignore", DeprecationWarning)


def solve(solver: Solver) -> tuple[np.ndarray, np.ndarray]:
    for steps in (30, 2):
        solver.advance(steps)
    return fields(solver)


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("route", INSTALLED)
def test_every_route_gives_the_answers_of_the_reference(route: str, precision: str, make_config: MakeConfig) -> None:
    need_library(route)
    for changes in FEW if route in SLOW else CASES:
        config = make_config({"run.backend": route, "model.precision": precision, **changes})
        layout = layout_of(config)
        u, v = np.random.default_rng(1).random((2, *layout.frame.shape), np.float32).astype(np.float64)
        start = initial_state(config)._replace(u=u, v=v)
        expected = solve(reference.solver(config, layout, start))
        found = solve(open_solver(config.run.backend, config, layout, 1, lambda _, start=start: start))
        for mine, theirs in zip(found, expected, strict=True):
            assert (mine.dtype, mine.shape) == (precision, layout.frame.shape)
            assert np.linalg.norm(mine - theirs) < TOLERANCE[precision] * np.linalg.norm(theirs), changes


@pytest.mark.parametrize("route", INSTALLED)
def test_a_run_by_a_route_is_saved_as_any_other(
    route: str, make_config: MakeConfig, expected_frames: Any, tmp_path: Path
) -> None:
    need_library(route)
    config = make_config({"run.backend": route, "output.fields": "u,v", "model.feed": [0.02, 0.03]})
    gsio.simulate(config, tmp_path / "run.h5")
    with h5py.File(tmp_path / "run.h5") as file:
        assert file.attrs["backend"] == route
        for name, frames in expected_frames(config).items():
            np.testing.assert_allclose(file[name], frames, rtol=1e-5, atol=1e-7)


def test_threads_that_wait_for_the_same_block_all_find_it_staged(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config({"output.fields": "u,v"})
    layout = layout_of(config)
    solver = reference.solver(config, layout, initial_state(config))
    block = Block(layout, solver.allocate(layout.block_nbytes))
    block.count = 1
    solver.fill(block)
    staging, go_on, calls = threading.Event(), threading.Event(), []

    stage = host.stage

    def slow(*arguments: Any) -> None:
        calls.append(arguments)
        staging.set()
        go_on.wait()
        stage(*arguments)

    monkeypatch.setattr(host, "stage", slow)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(solver.wait, block)
        staging.wait()
        second = threads.submit(lambda: (solver.wait(block), block.statistics[0].copy())[1])
        go_on.set()
        first.result()
        np.testing.assert_array_equal(second.result(), block.statistics[0])
    assert block.statistics[0, :, 1].all()  # the maxima
    assert len(calls) == 2  # planes, each once


@pytest.mark.parametrize("route", ["jax", "jax-convolve", "torch", "torch-compile", "cupynumeric"])
def test_a_library_that_is_missing_is_named_with_its_extra(
    route: str, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = route.split("-")[0]
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"gsio.compute.peers.{library}", raising=False)
    config = make_config({"run.backend": route})
    with pytest.raises(UsageError, match=rf"run\.backend: {route} .* get it with pip install 'gsio\[{library}\]'"):
        open_solver(config.run.backend, config, layout_of(config), 1, initial_state)


def test_cupy_arrays_without_a_gpu_points_at_doctor(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gsio.compute.cuda.solver", None)
    config = make_config({"run.backend": "cupy-arrays"})
    with pytest.raises(UsageError, match=r"run\.backend: cupy cannot be used here: .* see 'gsio doctor'"):
        open_solver(config.run.backend, config, layout_of(config), 1, initial_state)


@pytest.mark.parametrize("route", ["jax", "torch", "cupynumeric"])
def test_a_device_that_is_not_there_is_refused(route: str, make_config: MakeConfig) -> None:
    need_library(route)
    config = make_config({"run.backend": route, "run.device": 99})
    with pytest.raises(UsageError, match=r"run\.device: expected .*, got 99"):
        open_solver(config.run.backend, config, layout_of(config), 1, initial_state)


def test_where_numba_may_not_compile_auto_is_numpy(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gsio", "run", "-n", "2", "-e", "2", "-r", "9", "-c", "9", "-o"]
    environ = {**os.environ, "NUMBA_DISABLE_JIT": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run([*command, tmp_path / "run.h5"], env=environ, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "NUMBA_DISABLE_JIT is set: the backend is numpy" in run.stderr
    with gsio.open_stack(tmp_path / "run.h5") as stack:
        assert (stack.frames, stack.attributes["backend"]) == (2, "numpy")
    run = subprocess.run(
        [*command, tmp_path / "no.h5", "--backend", "numba"], env=environ, capture_output=True, text=True
    )
    assert run.returncode == 2
    (line,) = run.stderr.splitlines()
    assert "run.backend: numba cannot be used with NUMBA_DISABLE_JIT" in line
    assert "choose the backend numpy" in line
    assert not (tmp_path / "no.h5").exists()
