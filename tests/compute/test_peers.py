"""Array code in other libraries: blocks that several threads wait for, and what is refused."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from solvers import need_library

import gsio
from gsio.compute import host, open_solver
from gsio.compute.peers import numpy as reference
from gsio.config import Config
from gsio.errors import UsageError
from gsio.frames.block import Block
from gsio.run.initial import initial_state
from gsio.run.plan import layout_of

MakeConfig = Callable[..., Config]


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


@pytest.mark.parametrize("backend", ["jax", "jax-convolve", "torch", "torch-compile", "cupynumeric"])
def test_a_library_that_is_missing_is_named_with_its_extra(
    backend: str, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = backend.split("-")[0]
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"gsio.compute.peers.{library}", raising=False)
    config = make_config({"run.backend": backend})
    with pytest.raises(UsageError, match=rf"run\.backend: {backend} .* get it with pip install 'gsio\[{library}\]'"):
        open_solver(config.run.backend, config, layout_of(config), 1, initial_state)


def test_cupy_arrays_without_a_gpu_points_at_doctor(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gsio.compute.cuda.solver", None)
    config = make_config({"run.backend": "cupy-arrays"})
    with pytest.raises(UsageError, match=r"run\.backend: cupy cannot be used here: .* see 'gsio doctor'"):
        open_solver(config.run.backend, config, layout_of(config), 1, initial_state)


@pytest.mark.parametrize("backend", ["jax", "torch", "cupynumeric"])
def test_a_device_that_is_not_there_is_refused(backend: str, make_config: MakeConfig) -> None:
    need_library(backend)
    config = make_config({"run.backend": backend, "run.device": 99})
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
