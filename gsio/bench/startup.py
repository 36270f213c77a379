"""Start-up: commands of gsio as whole processes, each beside a program that imports the least it needs."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gsio.bench.compute import main_grid
from gsio.bench.tables import Column, Measurement, Options, Row, Table
from gsio.processes import python_module

LEAST = {
    "gpu": "import cupy, numpy; cupy.cuda.runtime.memGetInfo()",  # this creates the context
    "cpu": "import numba, numpy",
}


def table(options: Options) -> Table:
    """Return the rows of `gsio --help`, and of runs of one frame."""
    least = LEAST[options.device]
    changes = {"run.backend": {"gpu": "cupy", "cpu": "numba"}[options.device], "run.frames": 1, **main_grid(options)}
    rows = [
        Row("gsio --help, beside a bare interpreter", ["", {}, "pass"]),
        Row(f"one frame into Zarr, beside: {least}", ["run.zarr", changes, least]),
        Row(f"one frame into HDF5, beside: {least}", ["run.h5", changes, least]),
    ]
    columns = [
        Column("s", "seconds", ".3f", spread=True),
        Column("beside it, s", "least", ".3f", spread=True),
        Column("times as long", "times", ".2f", spread=True),
    ]
    title = "whole processes; compiled kernels and files of the system are in their caches"
    return Table(title, rows, columns, repeats=7)


def measure(folder: Path, device: str, output: str, changes: dict[str, Any], least: str) -> Measurement:
    """Run `gsio --help`, or a run if there is an `output`, and the program beside it."""
    command = ["--help"]
    if output:
        keys = [f"--set={key}={value}" for key, value in changes.items()]
        command = ["run", "--quiet", "--overwrite", *keys, "--output", str(folder / output)]
    command, beside = python_module("gsio", *command), [sys.executable, "-c", least]
    for warm_up in (command, beside):
        seconds(warm_up)
    found, least_seconds = seconds(command), seconds(beside)
    return {"seconds": found, "least": least_seconds, "times": found / least_seconds}


def seconds(command: list[str]) -> float:
    """Return how long a command takes; raise RuntimeError, with what it says, if it fails."""
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    taken = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"Error: {done.stderr.strip() or done.returncode}")
    return taken
