"""The engines of a sweep: processes of this machine, job arrays, and command lines for a queue of somebody's own."""

import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from patience import DEADLINE

from gsio.cli import main
from gsio.errors import UsageError
from gsio.sweep.description import load_sweep
from gsio.sweep.pieces import run_path
from gsio.sweep.plan import folder_of
from gsio.sweep.result import begin
from gsio.sweep.slurm import submit
from gsio.sweep.status import status_of_sweep
from gsio.sweep.tasks import missing, run_tasks
from gsio.writer.status_file import read_status

pytestmark = pytest.mark.numba
Write = Callable[..., Path]
LONG = "[grid]\nrows = 64\ncols = 64\n[run]\nframes = 3000\nsteps_per_frame = 300\nbackend = 'numba'\nthreads = 1\n"
# From the manual of sbatch, Slurm 24.05, section OPTIONS.
OPTIONS_OF_SBATCH = {
    "account", "array", "comment", "constraint", "cpus-per-gpu", "cpus-per-task", "error", "exclude", "exclusive",
    "gpus-per-node", "gpus-per-task", "gres", "job-name", "mail-type", "mail-user", "mem", "mem-per-cpu", "mem-per-gpu",
    "nodelist", "nodes", "ntasks-per-node", "open-mode", "output", "partition", "qos", "requeue", "reservation",
    "signal", "time", "wckey",
}  # fmt: skip


def test_printed_lines_compute_the_sweep_in_any_order(
    write: Write, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(name="a plane.toml")
    output = path.with_suffix(".zarr")
    arguments = ["sweep", str(path), "-o", output.name, "--engine", "print"]
    monkeypatch.chdir(path.parent)
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    monkeypatch.chdir("/")
    for line in reversed(lines):
        name, *words = shlex.split(line)
        assert name == "gsio"
        assert main([*words, "--quiet"]) == 0
    status_of_sweep(output).check(output)
    monkeypatch.chdir(path.parent)
    assert main(arguments) == 0
    assert capsys.readouterr().out == ""  # nothing is missing


def test_a_sweep_tells_each_task_and_the_whole(write: Write, capfd: pytest.CaptureFixture[str]) -> None:
    path = write()
    assert main(["sweep", str(path), "-o", str(path.with_suffix(".zarr"))]) == 0
    out, err = capfd.readouterr()
    assert out == f"{path.with_suffix('.zarr')}: 8 members: 8 complete; 0 of 3 tasks are left\n"
    told = re.findall(r"task finished task=(\d) members=(\d) complete=(\d)", err)
    assert sorted(told) == [("0", "3", "3"), ("1", "3", "3"), ("2", "2", "2")]


def test_a_dry_run_makes_nothing(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write()
    before = sorted(path.parent.iterdir())
    assert main(["sweep", str(path), "-o", str(path.with_suffix(".h5")), "--dry-run", "--quiet"]) == 0
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == "8 members (4 feed × 2 kill) in 3 tasks of up to 3 members, each of 5 frames"
    assert re.fullmatch(r"about \d+:\d\d:\d\d on the CPU, measured on 5 frames of 3 members on CPU, 1 thread", second)
    assert re.fullmatch(r"about \d+\.\d\d GB, and \d+\.\d\d GB are free", third)
    assert sorted(path.parent.iterdir()) == before


def test_a_task_is_computed_once_at_a_time(write: Write) -> None:
    path = write()
    output = path.with_suffix(".zarr")
    plan = begin(load_sweep(path), output)
    held = "import fcntl, sys; file = open(sys.argv[1], 'ab'); fcntl.lockf(file, fcntl.LOCK_EX, 1, 1, 0)"
    command = [sys.executable, "-c", f"{held}; print(flush=True); sys.stdin.read()", folder_of(output) / "lock"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        run_tasks(output)
        assert missing(plan, output) == [plan.tasks[1]]
        other.communicate(timeout=DEADLINE)
    run_tasks(output)
    assert missing(plan, output) == []


def test_numbers_that_no_task_has_are_refused(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write()
    begin(load_sweep(path), path.with_suffix(".zarr"))
    assert main(["sweep", "task", str(path.with_suffix(".zarr")), "3"]) == 2
    assert "expected numbers of tasks below 3, got 3" in capsys.readouterr().err
    assert main(["sweep", str(path), "-o", str(path.with_suffix(".zarr")), "--slurm", "time=3"]) == 2
    assert "--slurm: expected it with --engine slurm only" in capsys.readouterr().err


def test_submitit_runs_the_tasks_of_an_array(write: Write) -> None:
    pytest.importorskip("submitit")
    path = write()
    output = path.with_suffix(".zarr")
    plan = begin(load_sweep(path), output)
    assert [job.result() for job in submit(output, missing(plan, output), {}, cluster="local")] == [0, 0, 0]
    status_of_sweep(output).check(output)


def test_a_job_that_has_to_end_goes_back_to_the_queue_and_on(write: Write) -> None:
    pytest.importorskip("submitit")
    path = write("[sweep]\nmodel.feed = { values = [0.02] }", shared=LONG)
    output = path.with_suffix(".zarr")
    plan = begin(load_sweep(path), output)
    (job,) = submit(output, plan.tasks, {}, cluster="local")
    until = time.monotonic() + DEADLINE
    while not any(run.frame for run in status_of_sweep(output).running):
        assert time.monotonic() < until
        time.sleep(0.01)
    task = psutil.Process(read_status(run_path(output, plan.tasks[0]))["pid"])
    task.parent().send_signal(signal.SIGUSR2)  # as Slurm does before the end of a job
    assert job.result() == 0
    assert "Requeued job" in job.stdout()
    assert "run resumed" in job.stderr()
    status_of_sweep(output).check(output)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put an `sbatch` on PATH that keeps the file it is given, and return where that file will be."""
    pytest.importorskip("submitit")
    folder, kept = tmp_path / "bin", tmp_path / "kept.sh"
    folder.mkdir()
    for name, text in (
        ("sbatch", f'cp "$1" {shlex.quote(str(kept))}; echo Submitted batch job 24'),
        ("srun", "exit 1"),
    ):
        program = folder / name
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return kept


def test_the_file_for_sbatch_has_options_of_slurm_only(
    write: Write, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write()
    output = path.with_suffix(".zarr")
    given = [
        "partition=gpu",
        "time=1:30:00",
        "gpus_per_node=1",
        "cpus_per_task=8",
        "array_parallelism=2",
        "reservation=us",
    ]
    options = [word for one in given for word in ("--slurm", one)]
    assert main(["sweep", str(path), "-o", str(output), "--engine", "slurm", *options]) == 0
    assert capsys.readouterr().out.startswith("3 jobs are submitted, 24_0 to 24_2; 'gsio sweep status ")
    found = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", slurm.read_text(), re.MULTILINE))
    assert found.keys() <= OPTIONS_OF_SBATCH
    expected = {"partition": "gpu", "time": "90", "gpus-per-node": "1", "cpus-per-task": "8", "array": "0-2%2",
                "reservation": "us", "requeue": "", "signal": "USR2@90", "open-mode": "append"}  # fmt: skip
    assert found.items() >= expected.items()
    assert "submitit.core._submit" in slurm.read_text()


def test_without_slurm_the_engine_says_so(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    path = write()
    plan = begin(load_sweep(path), path.with_suffix(".zarr"))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UsageError, match=r"--engine: slurm: .*srun"):
        submit(path.with_suffix(".zarr"), plan.tasks, {})
