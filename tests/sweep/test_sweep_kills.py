"""A sweep that is killed goes on, and makes the result of one that was not."""

import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import h5py
import numpy as np
import psutil
import pytest
from patience import DEADLINE

from gsio.processes import python_module
from gsio.sweep.description import load_sweep
from gsio.sweep.plan import folder_of
from gsio.sweep.result import State, begin, read_states
from gsio.sweep.status import status_of_sweep
from gsio.sweep.tasks import run_tasks

pytestmark = pytest.mark.numba
Write = Callable[..., Path]
STEPS = ("link", "pwrite", "unlink")  # calls of the system by which a task enters the result


class Killed(BaseException):
    """Ends a task as abruptly as a test within a process can."""


def content(output: Path, bytes_of: Callable[[Path], Any]) -> Any:
    """Return what a sweep has made; the file of a task in HDF5 records when it was computed."""
    if output.is_dir():
        return bytes_of(output)
    with h5py.File(output) as file:
        return {name: np.asarray(file[name]).tobytes() for name in file}


@pytest.mark.parametrize("ending", [".zarr", ".h5"])
@pytest.mark.parametrize("step", STEPS)
def test_a_task_that_ends_at_any_step_goes_on_bit_for_bit(
    step: str, ending: str, write: Write, bytes_of: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = (write(name=f"{name}.toml").with_suffix(ending) for name in ("whole", "killed"))
    for output in (whole, killed):
        begin(load_sweep(output.with_suffix(".toml")), output)
    run_tasks(whole)
    real, ended = getattr(os, step), 0
    for deadly in (1, 2, 5):
        calls = iter(range(1, deadly + 1))

        def call(*arguments: Any, calls: Iterator[int] = calls, last: int = deadly, **options: Any) -> Any:
            own = threading.current_thread() is threading.main_thread()  # not of a run
            if own and next(calls, None) == last:
                raise Killed
            return real(*arguments, **options)

        with monkeypatch.context() as patched:
            patched.setattr(os, step, call)
            try:
                run_tasks(killed)
            except Killed:
                ended += 1
        assert set(read_states(killed)["status"]) <= {State.PENDING, State.COMPLETE}
    assert ended
    run_tasks(killed)
    status_of_sweep(killed).check(killed)
    assert content(killed, bytes_of) == content(whole, bytes_of)
    assert not list(folder_of(killed).glob("*run*"))


@pytest.fixture
def started() -> Iterator[Callable[[Path], "subprocess.Popen[bytes]"]]:
    """Return a function that starts the sweep of an output in a process, which ends with the test."""
    processes = []

    def start(output: Path) -> "subprocess.Popen[bytes]":
        command = python_module("gsio", "sweep", str(output.with_suffix(".toml")), "-o", str(output), "--quiet")
        processes.append(subprocess.Popen(command, stdin=subprocess.DEVNULL))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


LONG = "[run]\nframes = 400\nsteps_per_frame = 300\nbackend = 'numba'\nthreads = 1\ncheckpoint_every = 50\n"
LONG += "[grid]\nrows = 64\ncols = 64\n[sweep]\nbatch = 2\nmodel.feed = { from = 0.02, to = 0.05, count = 6 }"


def await_frames(output: Path, process: "subprocess.Popen[bytes]", frames: int) -> None:
    """Return when a task has so many frames, or the sweep has ended."""
    until = time.monotonic() + DEADLINE
    while process.poll() is None and time.monotonic() < until:
        if output.exists() and any(run.frame >= frames for run in status_of_sweep(output).running):
            return
        time.sleep(0.01)
    assert process.poll() == 0, "the sweep has neither ended nor made frames"


def test_the_status_is_known_before_the_result_is_there(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("[sweep]\nmodel.feed = { values = [0.03, 0.04] }")
    output = path.with_suffix(".zarr")
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr("gsio.sweep.result.create", Mock(side_effect=Killed))
        begin(load_sweep(path), output)
    assert not output.exists()
    assert status_of_sweep(output).counts()["pending"] == 2


def children_of(process: "subprocess.Popen[bytes]") -> list[int]:
    try:
        return [child.pid for child in psutil.Process(process.pid).children()]
    except psutil.NoSuchProcess:
        return []


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("ending", [".zarr", ".h5"])
def test_a_sweep_killed_at_random_makes_the_same_result(
    ending: str,
    write: Write,
    started: Callable[..., Any],
    bytes_of: Callable[[Path], Any],
    request: pytest.FixtureRequest,
) -> None:
    numbers = random.Random(24)
    whole, output = (write(LONG, shared="", name=f"{name}.toml").with_suffix(ending) for name in ("whole", "killed"))
    assert started(whole).wait(DEADLINE) == 0
    for _ in range(4 * request.config.getoption("--rounds")):
        sweep = started(output)
        await_frames(output, sweep, numbers.randrange(400))
        children = children_of(sweep)
        who = numbers.choice(["the task", "the parent", "all"])
        for pid in children if who == "the task" else [sweep.pid] if who == "the parent" else [sweep.pid, *children]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert sweep.wait(DEADLINE) in (0, 75, -signal.SIGKILL)
        counts = status_of_sweep(output).counts()
        assert sum(counts.values()) == 6
        assert counts["diverged"] == counts["failed"] == 0
    assert started(output).wait(DEADLINE) == 0
    assert content(output, bytes_of) == content(whole, bytes_of)


def test_an_interrupt_stops_all_tasks_with_a_checkpoint(write: Write, started: Callable[..., Any]) -> None:
    output = write(LONG.replace("frames = 400", "frames = 4000"), shared="").with_suffix(".zarr")
    sweep = started(output)
    await_frames(output, sweep, 20)
    (running,) = status_of_sweep(output).running
    children = children_of(sweep)
    sweep.send_signal(signal.SIGINT)
    assert sweep.wait(DEADLINE) == 75
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)
    status = status_of_sweep(output)
    assert status.counts()["running"] == 0
    assert running.task in status.left
    assert list(folder_of(output).glob("run*.checkpoint*"))
