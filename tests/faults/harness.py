"""Real processes of gsio, the storage that fails under them, and what they have to leave."""

import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from patience import DEADLINE

from gsio.reader import open_stack
from gsio.reader.verify import problems
from gsio.run import checkpoints
from gsio.writer.journal import read_journal

HERE = Path(__file__).parent
FRAMES, SHAPE = 61, (24, 32)
OPTIONS = [
    *("-r", str(SHAPE[0]), "-c", str(SHAPE[1]), "-e", "8", "--backend", "numpy", "--fields", "u,v"),
    *("--set", "initial.kind=noise", "--checkpoint-every", "8", "--log-format", "json"),
]
OUTPUTS = {
    **{f"HDF5, {codec}": ("run.h5", ["--compression", codec]) for codec in ("deflate", "lz4", "zstd", "none")},
    **{f"Zarr, {codec}": ("run.zarr", ["--compression", codec]) for codec in ("lz4", "zstd", "none")},
    "Zarr, lz4 in shards": ("run.zarr", ["--compression", "lz4", "--shard-frames", "4"]),
}
LOOPS = {f"FrameWriter, {name}": found for name, found in OUTPUTS.items()}  # the outputs of loop.py, not of a run
# Of faults, as in inject.c: the kinds of calls, and what happens to one.
WRITE, RENAME, TRUNCATE, SYNC, ALLOCATE, ANY = 1, 2, 4, 8, 16, 31
SHORT, TORN, KILL_BEFORE, KILL_AFTER, SLOW = -1, -2, -3, -4, -5
SERIES = ("step", "time", "integrity/crc32c", *(f"stats/{f}_{s}" for f in "uv" for s in ("min", "max", "mean")))


class Ended(NamedTuple):
    """How a process ended: its exit code, or minus the signal that killed it, and what it said."""

    code: int
    text: str
    seconds: float
    calls: dict[int, int]  # of each kind, where a fault was asked for and did not end it

    def calls_of(self, kinds: int) -> int:
        """Return how many calls of some kinds there were."""
        return sum(calls for kind, calls in self.calls.items() if kind & kinds)

    @property
    def error(self) -> str:
        """The one line that says what went wrong, or ""."""
        lines = re.findall(r"^gsio: error: (.*)$", self.text, re.MULTILINE)
        assert len(lines) <= 1, self.text
        return lines[0] if lines else ""


class Launcher:
    """Starts processes of gsio and waits for them, never longer than the deadline."""

    def __init__(self, folder: Path, library: Path) -> None:
        self._log = folder / "log"
        environment = {**os.environ, "LD_PRELOAD": str(library), "PYTHONWARNINGS": "ignore"}
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen([sys.executable, HERE / "launcher.py"], env=environment, **pipes)
        self._answers: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)

    def log(self) -> str:
        """Return what the process that runs, or ran last, has said."""
        return self._log.read_text() if self._log.exists() else ""

    def has_said(self, words: str) -> bool:
        return words in self.log()

    def run(
        self,
        *arguments: Any,
        kill_after: float | None = None,
        meanwhile: Callable[[int], None] = lambda pid: None,
        **how: Any,
    ) -> Ended:
        """Let gsio do what `arguments` say; kill it after so many seconds if it is not done by then.

        `meanwhile` is called with the id of its process.
        """
        self._log.unlink(missing_ok=True)
        self._log.with_suffix(".calls").unlink(missing_ok=True)
        request = {"arguments": list(map(str, arguments)), "log": str(self._log), **how}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        pid, began = int(self._answers.get(timeout=DEADLINE)), time.monotonic()
        try:
            meanwhile(pid)
            code = int(self._answers.get(timeout=DEADLINE if kill_after is None else kill_after))
        except queue.Empty:
            os.kill(pid, signal.SIGKILL)
            code = int(self._answers.get(timeout=DEADLINE))
            assert kill_after is not None, f"{arguments} did not end within {DEADLINE} s"
        except AssertionError as error:  # the answer of this process must not be taken for that of the next
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            code = int(self._answers.get(timeout=DEADLINE))
            raise AssertionError(f"{error}; the process ended with {code} and said: {self.log()}") from None
        seconds = time.monotonic() - began
        wait_for_group(pid)
        calls = self._log.with_suffix(".calls")
        made = json.loads(calls.read_text()) if calls.exists() else {}
        return Ended(code, self.log(), seconds, {int(kind): number for kind, number in made.items()})

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(DEADLINE) == 0
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()


def wait_for_group(pid: int) -> None:
    """Wait until no process that `pid` started is there; a reader of a wreck ends soon after the run that asked it."""

    def is_gone() -> bool:
        try:
            os.killpg(pid, 0)
        except ProcessLookupError:
            return True
        return False

    wait_until(is_gone)


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until something is so, never longer than the deadline."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


class Case:
    """One output, undisturbed and disturbed.

    Attributes
    ----------
    folder, output
        Where the disturbed run writes; nothing else is in the folder.
    whole
        What the undisturbed run left, by name.
    seconds
        Duration of the undisturbed run.
    frames
        Number of frames that stock readers decoded in the last check.
    """

    def __init__(self, name: str, launcher: Launcher, folder: Path) -> None:
        self.name = name
        self.launcher = launcher
        self.command = "run" if name in OUTPUTS else "loop"
        file, options = (OUTPUTS | LOOPS)[name]
        self._found, self._whole, self._decoded = (folder / name for name in ("found.npz", "whole.npz", "decoded.json"))
        self.folder = folder / "runs"
        self.folder.mkdir()
        self.output = self.folder / file
        options = options if name in LOOPS else [*OPTIONS, *options]
        self.options = ["-n", str(FRAMES), *options, "-o", self.output]
        ended = self.run()
        assert ended.code == 0, ended.text
        self.whole, self.seconds = contents(self.output), ended.seconds
        values = {name: np.frombuffer(self.whole[name], np.float32).reshape(FRAMES, *SHAPE) for name in ("u", "v")}
        np.savez(self._whole, **values)
        self.frames = 0
        self.clear()

    def run(self, *more: Any, **how: Any) -> Ended:
        return self.launcher.run(self.command, *self.options, *more, **how)

    def resume(self, **how: Any) -> Ended:
        return self.run("--resume=auto", **how)

    def clear(self) -> None:
        shutil.rmtree(self.folder)
        self.folder.mkdir()

    def look(self) -> None:
        """Check that stock tools find whole frames, those of the undisturbed run; raise WreckError if they cannot."""
        self.frames = 0
        if not os.path.lexists(self.output):
            return
        self._found.unlink(missing_ok=True)
        ended = self.launcher.run("look", self.output, self._found)
        if ended.code:
            raise WreckError(ended.text.strip()[-300:] or f"the reader ended with {ended.code}")
        with np.load(self._found) as found:
            self.frames = len(found["v"])
            for name in found:
                size = len(self.whole[name]) // FRAMES * self.frames
                assert found[name].tobytes() == self.whole[name][:size], f"{name} of {self.frames} frames differs"

    @property
    def journalled(self) -> int:
        """How many frames the journal knows."""
        records = read_journal(self.output)
        return 0 if records is None else len(records.frames)

    def decodable(self, *paths: Path) -> set[int]:
        """Return the frames that can be decoded from outputs, or from any there is in the folder, in any way."""
        found: set[int] = set()
        for path in paths or self.folder.iterdir():
            if path.suffix not in (".h5", ".zarr"):
                continue
            for how in ("raw", "stock"):
                self._decoded.unlink(missing_ok=True)
                self.launcher.run("decode", path, how, self._whole, self._decoded, kill_after=30)  # a wreck may kill it
                if self._decoded.exists():
                    found |= set(json.loads(self._decoded.read_text()))
        return found

    def check_prefix(self, safe: int = 0) -> str:
        """Check that `safe` frames are, after a repair if it takes one, and say whether it did."""
        try:
            self.look()
            torn = self.frames < safe and not self.output.is_dir()
        except WreckError:
            torn = True
        if torn:
            ended = self.launcher.run("repair", self.output)
            assert ended.code == 0, ended.text
            self.look()
        # A reader sees those of Zarr a second later.
        frames = max(self.frames, self.journalled) if self.output.is_dir() else self.frames
        assert frames >= safe, f"{safe} frames were said to be safe, {frames} are"
        return "repaired" if torn else "intact"

    def check_resume(self, **how: Any) -> None:
        """Complete the run, and check that nothing tells it from the undisturbed one, and that nothing is left over.

        What a repair found stays beside it.
        """
        ended = self.resume(**how)
        assert ended.code == 0, ended.text
        assert "Traceback" not in ended.text
        found = contents(self.output)
        assert [name for name in self.whole if found[name] != self.whole[name]] == []
        ends = ("", ".checkpoint.npz", ".checkpoint_prev.npz", ".status.json")
        left = {path.name for path in self.folder.iterdir()} - {f"{self.output.name}{end}" for end in ends}
        assert [name for name in left if not re.fullmatch(r"run(\.\w+)?\.damaged-\d+\.\w+(\.journal)?", name)] == []
        if self.output.is_dir():
            assert list(self.output.rglob(".*")) == []


def fault(case: Case, kinds: int, nth: int, action: int = 0, *, lasts: bool = False) -> dict[str, Any]:
    """Return what the launcher wants to know of a fault of the nth call, and if it lasts of all after it."""
    return {"folder": str(case.folder), "kinds": kinds, "nth": nth, "action": action, "lasts": lasts}


def check_stop(ended: Ended) -> int:
    """Check that a run ended as one whose storage failed, and return how many frames it says are safe."""
    assert ended.code == 74, f"exit code {ended.code}: {ended.text[-500:]}"
    assert not re.search(r'File ".*/gsio/', ended.text), ended.text  # h5py says what it cannot raise by itself
    said = re.search(r"(\d+|no) (?:committed )?frames? .*(safe|written)", ended.error)
    if said is None:  # a wreck that could not be rebuilt
        assert "and its journal are as they were" in ended.error
        return 0
    return int(said[1]) if said[1].isdecimal() else 0


class WreckError(Exception):
    """An output that stock tools cannot read."""


def contents(path: Path) -> dict[str, bytes]:
    """Return all frames and series of a finished output, and its checkpoint, by name."""
    with open_stack(path) as stack:
        assert stack.attributes["status"] == "complete"
        assert list(problems(stack)) == []
        found = {name: stack.series(name).tobytes() for name in SERIES}
        found |= {name: field[:].tobytes() for name, field in stack.fields.items()}
    state = newest_state(path)
    of_run = isinstance(state, checkpoints.Checkpoint)
    arrays, text = ([state.u, state.v], state.config) if of_run else (state.leaves, state.structure)
    return found | {"checkpoint": b"".join(map(bytes, arrays)) + f"{state.frames} {text}".encode()}


def newest_state(path: Path) -> checkpoints.Checkpoint | checkpoints.SavedState:
    """Return the newest checkpoint of a run, or of another loop."""
    return next(iter([*checkpoints.load(path), *checkpoints.load_states(path)]))


class Tally:
    """The rounds of one test: how each ended, by output and fault. A failed round does not end the test."""

    def __init__(self, rows: dict[tuple[str, str], Counter[str]]) -> None:
        self._rows = rows
        self.failures: list[str] = []

    def play(self, case: Case, fault: str, what: str, play: Callable[[], Iterator[str]], *, clear: bool = True) -> None:
        row = self._rows.setdefault((case.name, fault), Counter())
        row["rounds"] += 1
        if clear:
            case.clear()
        try:
            for result in play():
                row[result] += 1
        except (AssertionError, WreckError) as error:
            row["failed"] += 1
            self.failures.append(f"{case.name}, {fault}, {what}: {error}")
