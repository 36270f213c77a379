"""Nobody reads stdout or stderr, or they are closed: a run goes on, and every command ends with its own exit code."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest

import gsio
from gsio.config import Config
from gsio.streams import Output, error_of

DEADLINE = 60
FULL = Path("/dev/full")
SMALL = ["-r", "12", "-c", "17", "-n", "9", "-e", "2", "--backend", "numpy"]
needs_full = pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")


def run(*arguments: str, closing: str = "", **streams: Any) -> "subprocess.CompletedProcess[str]":
    """Let a program of gsio do what `arguments` say; `closing` is shell for its descriptors."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    command = ["sh", "-c", f'exec "$0" -m gsio "$@" {closing}', sys.executable, *arguments]
    return subprocess.run(command, text=True, timeout=DEADLINE, check=False, **streams)


def frames_of(path: Path) -> int:
    with h5py.File(path) as file:
        assert file.attrs["status"] == b"complete"
        return len(file["v"])


@pytest.fixture
def unread() -> Any:
    """A pipe to write to that nobody can read any more."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_run_goes_on_when_its_reader_is_gone(stream: str, unread: int, tmp_path: Path) -> None:
    done = run("run", *SMALL, "--debug", "-o", str(tmp_path / "run.h5"), **{stream: unread})
    assert (done.returncode, frames_of(tmp_path / "run.h5")) == (0, 9)


@needs_full
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_run_goes_on_when_the_disk_of_its_log_is_full(stream: str, tmp_path: Path) -> None:
    with FULL.open("w") as full:
        done = run("run", *SMALL, "--debug", "-o", str(tmp_path / "run.h5"), **{stream: full})
    assert (done.returncode, frames_of(tmp_path / "run.h5")) == (0, 9)


@pytest.mark.parametrize("closing", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_no_output_gets_the_number_of_a_closed_stream(closing: str, tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    assert run("run", *SMALL, "--debug", "-o", str(path), closing=closing).returncode == 0
    assert frames_of(path) == 9
    assert b"block committed" not in path.read_bytes()


def test_a_run_goes_on_beside_a_reader_that_does_not_read(tmp_path: Path) -> None:
    """As on a terminal that is halted; of what it says more does not fit the pipe than does."""
    reading, writing = os.pipe()
    text = "x" * 4096
    os.set_blocking(writing, False)
    while True:
        try:
            os.write(writing, text.encode())
        except BlockingIOError:
            break
    os.set_blocking(writing, True)
    try:
        done = run("run", *SMALL, "--debug", "-o", str(tmp_path / "run.h5"), stderr=writing)
    finally:
        os.close(writing)
        os.close(reading)
    assert (done.returncode, frames_of(tmp_path / "run.h5")) == (0, 9)


@pytest.fixture
def output(make_config: Callable[..., Config], tmp_path: Path) -> Path:
    gsio.simulate(make_config(), tmp_path / "run.h5")
    return tmp_path / "run.h5"


@pytest.mark.parametrize("command", [["config", "show"], ["presets"], ["doctor"], ["--help"], ["info"], ["verify"]])
def test_results_that_nobody_wants_end_quietly(command: list[str], unread: int, output: Path) -> None:
    more = [str(output)] if command[0] in ("info", "verify") else []
    done = run(*command, *more, stdout=unread)
    assert (done.returncode, done.stderr) == (0, "")


@needs_full
@pytest.mark.parametrize("command", [["config", "show"], ["info"]])
def test_results_that_cannot_be_kept_are_an_error(command: list[str], output: Path) -> None:
    with FULL.open("w") as full:
        done = run(*command, *([str(output)] if command == ["info"] else []), stdout=full)
    assert done.returncode == 74
    assert done.stderr.startswith("gsio: error: stdout: No space left on device; expected")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [["run"], ["info", "missing.h5"], ["config", "show", "-r", "0"]])
def test_an_error_that_nobody_hears_keeps_its_code(arguments: list[str], unread: int) -> None:
    heard = run(*arguments)
    assert heard.returncode in (2, 65)
    assert run(*arguments, stderr=unread).returncode == heard.returncode


def test_an_output_says_why_it_dropped_text(unread: int) -> None:
    output = Output(unread, patient=True)
    assert output.error is None
    assert output.write(b"text") == 4
    assert isinstance(output.error, BrokenPipeError)
    assert error_of(sys.stdout) is None


def test_a_descriptor_that_another_process_made_non_blocking_is_waited_for() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with subprocess.Popen([sys.executable, "-c", "import sys; print(len(sys.stdin.read()))"], stdin=reading) as reader:
        os.close(reading)
        output, rest = Output(writing, patient=True), memoryview(bytes(1 << 20))
        while rest:
            rest = rest[output.write(rest) :]
        assert output.error is None
        os.close(writing)
        assert reader.wait(DEADLINE) == 0
