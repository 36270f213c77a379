"""Ranks that mpirun starts, for tests: how they are started, disturbed and waited for, and what they leave."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
from patience import DEADLINE

from gsio.errors import DataError
from gsio.reader import open_stack
from gsio.reader.verify import problems
from gsio.run import checkpoints
from gsio.writer.journal import read_journal

HERE = Path(sys.executable).parent / "mpirun"
MPIRUN = str(HERE) if HERE.exists() else shutil.which("mpirun")
RANK = Path(__file__).parent / "one_rank.py"
FRAMES = 150
OPTIONS = [
    *("-r", "24", "-c", "32", "-n", str(FRAMES), "-e", "16", "--backend", "numpy", "--fields", "u,v"),
    *("--set", "initial.kind=noise", "--checkpoint-every", "10"),
]
needs_mpi = pytest.mark.skipif(MPIRUN is None or find_spec("mpi4py") is None, reason="no MPI")


class Ended(NamedTuple):
    """How mpirun ended, what all ranks said, and for how many seconds it ran since it was disturbed."""

    code: int
    text: str
    seconds: float

    @property
    def errors(self) -> list[str]:
        return re.findall(r"^gsio: error: (.*)$", self.text, re.MULTILINE)


class Launch:
    """Ranks of one run, which end with this context if they have not ended before."""

    def __init__(self, ranks: int, *arguments: object, environment: dict[str, str] | None = None) -> None:
        assert MPIRUN is not None
        is_open_mpi = "Open MPI" in subprocess.check_output([MPIRUN, "--version"], text=True)
        how = ["--oversubscribe", "--bind-to", "none"] if is_open_mpi else []
        root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_pml": "ob1"}
        self._process = subprocess.Popen(
            [MPIRUN, *how, "-n", str(ranks), sys.executable, RANK, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **root, "PYTHONWARNINGS": "ignore", **(environment or {})},
            start_new_session=True,
        )
        self._disturbed = time.monotonic()

    def __enter__(self) -> "Launch":
        return self

    def __exit__(self, *error: object) -> None:
        for pid in self.ranks().values():
            os.kill(pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait(DEADLINE)
        assert self._process.stdout is not None
        self._process.stdout.close()

    @property
    def is_running(self) -> bool:
        """Whether mpirun has not ended."""
        return self._process.poll() is None

    def ranks(self) -> dict[int, int]:
        """Return the process of each rank that is there."""
        found = {}
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                variables = dict(item.split("=", 1) for item in path.read_text().split("\0") if "=" in item)
                parent = int((path.parent / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, UnicodeDecodeError):
                continue
            number = variables.get("OMPI_COMM_WORLD_RANK", variables.get("PMI_RANK"))
            if number is not None and parent in self._family():
                found[int(number)] = int(path.parent.name)
        return found

    def _family(self) -> set[int]:
        """Return the processes of mpirun: Open MPI's has none besides itself, and MPICH's has proxies."""
        text = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self._process.pid)], capture_output=True, text=True, check=False
        ).stdout
        return {self._process.pid, *map(int, text.split())}

    def signal(self, rank: int, number: int) -> None:
        self._disturbed = time.monotonic()
        os.kill(self.ranks()[rank], number)

    def wait(self) -> Ended:
        text, _ = self._process.communicate(timeout=DEADLINE)
        found = Ended(self._process.returncode, text.decode(errors="replace"), time.monotonic() - self._disturbed)
        assert "Traceback" not in found.text, found.text
        return found


def run(ranks: int, *arguments: object, **environment: str) -> Ended:
    with Launch(ranks, "run", *arguments, environment=environment) as launch:
        return launch.wait()


def committed(output: Path) -> int:
    """Return how many frames an output holds."""
    if not output.with_name(f"{output.name}.journal").exists():
        return FRAMES if output.exists() else 0  # a complete output has no journal
    try:
        records = read_journal(output)
    except DataError:  # it is being replaced
        return 0
    return 0 if records is None else len(records.frames)


def wait_for(output: Path, frames: int, launch: Launch) -> None:
    """Wait until so many frames are committed, or the ranks have ended."""
    end = time.monotonic() + DEADLINE
    while committed(output) < frames and launch.is_running:
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def contents(output: Path) -> dict[str, bytes]:
    """Return all frames and series of a complete output, and its checkpoint, by name."""
    with open_stack(output) as stack:
        assert (stack.attributes["status"], list(problems(stack))) == ("complete", [])
        found = {name: stack.series(name).tobytes() for name in stack.recorded}
        found |= {name: field[:].tobytes() for name, field in stack.fields.items()}
    state = checkpoints.load(output)[0]
    return found | {"state": state.u.tobytes() + state.v.tobytes(), "frames": bytes(state.frames)}


def undisturbed(folder: Path) -> dict[str, bytes]:
    """Return the contents of a run on one process, which no launcher has started."""
    output = folder / "run.zarr"
    subprocess.run([sys.executable, RANK, "run", "-q", *OPTIONS, "-o", output], check=True, timeout=DEADLINE)
    return contents(output)
