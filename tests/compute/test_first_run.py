"""The first run on a CPU: it says before it compiles that it does; a later run neither compiles nor says so."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from patience import DEADLINE

pytestmark = pytest.mark.numba


def run(folder: Path, name: str) -> list[str]:
    """Run a small job, and return its events."""
    small = ["--rows", "8", "--cols", "8", "-n", "1", "-e", "1", "--backend", "numba"]
    done = subprocess.run(
        [sys.executable, "-m", "gsio", "run", "-o", folder / name, *small],
        env={**os.environ, "NUMBA_CACHE_DIR": str(folder / "numba"), "XDG_CACHE_HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=True,
    )
    return done.stderr.splitlines()


def test_a_run_says_that_it_compiles_and_how_long_that_took_the_last_time(tmp_path: Path) -> None:
    record = tmp_path / "gsio/tilings.json"
    record.parent.mkdir()
    record.write_text(json.dumps({"seconds to compile the CPU solver": 3.5}))
    compiling, compiled, started, *_ = run(tmp_path, "first.h5")
    assert compiling == "gsio: compiling the solver for this machine seconds_last_time=3.5"
    assert compiled.startswith("gsio: solver compiled seconds=")
    assert started.startswith("gsio: run started")
    (seconds,) = json.loads(record.read_text()).values()
    assert compiled.endswith(f"={seconds}")
    assert run(tmp_path, "second.h5")[0].startswith("gsio: run started")


def test_a_kill_while_the_solver_compiles_leaves_nothing(tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    command = [sys.executable, "-m", "gsio", "run", "-o", output / "run.h5", "-r", "8", "-c", "8", "--backend", "numba"]
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "numba"), "XDG_CACHE_HOME": str(tmp_path)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("gsio: compiling the solver")
        process.kill()
    assert not list(output.iterdir())
