"""How processes end: at which signals, with their parents, and where the system allows no more threads."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gsio import processes
from gsio.cli import main
from gsio.processes import exists, give_way, started_at, terminable
from gsio.profile import nsys

DEADLINE = 60.0
Captured = pytest.CaptureFixture[str]

# What a child is: it ends with its parent by `end_with_parent`, and says when it has asked for that.
CHILD = """
import os, sys, threading
from gsio.processes import end_with_parent
end_with_parent()
print(os.getpid(), flush=True)
threading.Event().wait()
"""
# A parent that starts `BETWEEN` or the child itself, and waits.
PARENT = """
import subprocess, sys
from gsio.processes import with_parent
subprocess.Popen(sys.argv[1:], env=with_parent()).wait()
"""
BETWEEN = "import subprocess, sys; subprocess.Popen(sys.argv[1:]).wait()"


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@pytest.fixture
def started() -> Iterator[list[int]]:
    """Ids of processes that have to go at the end, whatever a test finds."""
    found: list[int] = []
    yield found
    for pid in found:
        if exists(pid):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("direct", [True, False])
def test_a_child_ends_with_a_parent_that_is_killed(direct: bool, started: list[int]) -> None:
    child = [*([] if direct else [sys.executable, "-c", BETWEEN]), sys.executable, "-c", CHILD]
    with subprocess.Popen([sys.executable, "-c", PARENT, *child], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        started.append(int(parent.stdout.readline()))
        parent.kill()
        assert parent.stdout.read() == ""  # until no process holds the pipe


def test_a_process_without_such_a_parent_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: None)
    processes.end_with_parent()
    monkeypatch.setenv(processes.PARENT, "no number")
    processes.end_with_parent()
    assert processes.PARENT not in os.environ


def test_a_number_that_is_given_out_again_is_known_by_its_start() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert exists(child.pid)
        assert started_at(child.pid) == started_at(child.pid) is not None
        assert started_at(child.pid) != started_at(os.getpid()) or os.getppid() == 0
        assert child.stdin is not None
        child.stdin.close()
        child.wait(DEADLINE)
    assert not exists(child.pid)
    assert started_at(child.pid) is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_the_run_exits_143(
    number: int, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gsio.run.simulate.simulate", lambda *arguments, **options: signal.raise_signal(number))
    before = signal.signal(number, signal.SIG_DFL)
    try:
        assert main(["run", "-q", "-o", str(tmp_path / "run.h5")]) == 143
        assert signal.getsignal(number) is signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN)
        assert main(["run", "-q", "-o", str(tmp_path / "run.h5")]) == 0
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)
    assert capsys.readouterr().err.strip() == "gsio: error: interrupted; nothing was written"


def test_a_handler_of_the_program_stays() -> None:
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with terminable():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]


# Put in place of a table of `gsio bench`: one row, which takes for ever and says which process it is.
TABLE = """
import os, pathlib, sys, threading, types

def table(options):
    from gsio.bench.tables import Row, Table
    return Table("", [Row("for ever", [])], [])

def measure(*arguments):
    told = pathlib.Path(os.environ["TOLD"])
    told.with_suffix(".new").write_text(str(os.getpid()))
    told.with_suffix(".new").rename(told)
    threading.Event().wait()

sys.modules["gsio.bench.compute"] = types.SimpleNamespace(table=table, measure=measure)
"""


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), (signal.SIGHUP, 143), (signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_a_stopped_bench_leaves_no_row_behind(number: int, code: int, tmp_path: Path, started: list[int]) -> None:
    (tmp_path / "sitecustomize.py").write_text(TABLE)
    told = tmp_path / "told"
    path = os.pathsep.join([str(tmp_path), *sys.path])
    command = [sys.executable, "-m", "gsio", "bench", "compute", "--device", "cpu", "--folder", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": path, "TOLD": str(told)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as bench:
        wait_until(lambda: told.exists() or bench.poll() is not None)
        started.append(row := int(told.read_text()))
        bench.send_signal(number)
        assert bench.wait(DEADLINE) == code
    wait_until(lambda: not exists(row))


@pytest.mark.parametrize("between", [True, False])
def test_what_runs_under_nsys_is_stopped_with_it(
    between: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "told"
    run = f"""
import signal, sys, pathlib, os
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(75))
pathlib.Path({str(told)!r}).write_text("x")
os.kill(int(sys.argv[1]), signal.SIGTERM)
signal.pause()
"""
    tool = tmp_path / "nsys"
    body = "subprocess.run(command).returncode" if between else "os.execv(command[0], command)"
    tool.write_text(
        f"#!{sys.executable}\nimport os, subprocess, sys\n"
        f"command = sys.argv[sys.argv.index({sys.executable!r}):]\nsys.exit({body})\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    with terminable():
        code = nsys.record(str(tool), tmp_path / "report", [sys.executable, "-c", run, str(os.getpid())])
    assert code == 75
    assert told.exists()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (0, 1)),
        ({"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "3"}, (2, 3)),
        ({"PMI_RANK": "1", "PMI_SIZE": "4"}, (1, 4)),
        ({"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8"}, (5, 8)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, (0, 1)),  # the batch script itself
        ({"PMI_RANK": "0", "PMI_SIZE": "1", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, (1, 2)),
    ],
)
def test_a_process_knows_how_many_were_launched_with_it(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: tuple[int, int]
) -> None:
    for names in processes.LAUNCHERS:
        for name in names:
            monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert processes.launched() == expected


def test_several_processes_without_mpi_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured, tmp_path: Path
) -> None:
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setattr(processes, "FIRST_SECONDS", 0.0)  # no launcher ends the second process
    for number, lines in (("0", 1), ("1", 0)):  # the first process speaks for all
        monkeypatch.setenv("PMI_RANK", number)
        assert main(["run", "-q", "-n", "1", "-o", str(tmp_path / "run.zarr")]) == 2
        assert capsys.readouterr().err.count("gsio: error: --mpi: expected it") == lines
    assert list(tmp_path.iterdir()) == []


def test_a_thread_gives_way_alone_and_as_much_however_often_it_says_so() -> None:
    def priority() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def given_way() -> int:
        give_way()
        give_way()
        return priority()

    before = priority()
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(given_way).result() == min(19, before + 10)
    assert priority() == before
