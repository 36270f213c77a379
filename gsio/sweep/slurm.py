"""Tasks of a sweep as a job array of Slurm, by submitit."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from gsio.config import parse_walltime
from gsio.errors import Interrupted, UsageError, reason_of
from gsio.sweep.engines import command_of, environment
from gsio.sweep.plan import Task, folder_of

ENDS_SOON = signal.SIGUSR2  # what submitit lets Slurm send before the end of a job, or at a preemption
LOOK_SECONDS = 0.2
MOST_REQUEUES = 1_000_000  # a task goes on with every job, so that none of them is in vain


class TaskJob:
    """What a job runs: one task, as a command of its own. The job goes back to the queue if the task is not done."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self._child: subprocess.Popen[bytes] | None = None
        self._cancelled = False

    def __call__(self, number: int) -> int:
        """Compute a task, and return the exit code of its command, 0; raises RuntimeError for any other code."""
        requeue = signal.getsignal(ENDS_SOON)
        signal.signal(signal.SIGTERM, self._cancel)  # from `scancel`, which the task hears too
        self._child = subprocess.Popen(
            command_of(self.output, str(number)), env=environment(), stdin=subprocess.DEVNULL, preexec_fn=_ignore
        )
        if self._cancelled:  # before the task began
            self._child.terminate()
        while self._child.poll() is None:
            time.sleep(LOOK_SECONDS)
        code = int(self._child.returncode)
        if code == Interrupted.exit_code and not self._cancelled and callable(requeue):
            signal.raise_signal(ENDS_SOON)  # submitit calls `checkpoint`, asks Slurm to requeue the job, and ends it
        if code:
            raise RuntimeError(f"task {number} of {self.output} has ended with exit code {code}")
        return code

    def checkpoint(self, number: int) -> Any:
        """Stop the task, which leaves a checkpoint, and return what the requeued job has to do."""
        from submitit.helpers import DelayedSubmission

        if self._child is not None:
            with suppress(ProcessLookupError):
                self._child.terminate()
            with suppress(ChildProcessError):  # this interrupts `__call__`, whose `poll` can hold a lock
                os.waitid(os.P_PID, self._child.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(TaskJob(self.output), number)

    def _cancel(self, number: int, frame: object) -> None:
        self._cancelled = True
        if self._child is not None:
            with suppress(ProcessLookupError):
                self._child.terminate()


def _ignore() -> None:
    """Let the task ignore the signal for its job, which Slurm sends to all processes of the job."""
    signal.signal(ENDS_SOON, signal.SIG_IGN)


def submit(output: Path, tasks: Sequence[Task], options: Mapping[str, Any], cluster: str = "slurm") -> list[Any]:
    """Submit a job for each task, all as one array, and return the jobs of submitit.

    Parameters
    ----------
    options
        Options of `sbatch` by the names that submitit gives them, such as partition, gpus_per_node, time and
        array_parallelism; others go to sbatch as they are.
    cluster
        The executor of submitit: "slurm", or "local", which needs no Slurm.

    Raises
    ------
    UsageError
        submitit is not installed, there is no Slurm, or it refuses the jobs.
    """
    try:
        import submitit
        from submitit.core.utils import FailedSubmissionError
    except ImportError:
        raise UsageError("--engine: slurm needs submitit; get it with pip install 'gsio[slurm]'") from None
    if "time" in options and isinstance(options["time"], str):
        options = {**options, "time": -(-int(parse_walltime("--slurm time", options["time"])) // 60)}
    try:
        executor = submitit.AutoExecutor(
            folder_of(output.absolute()) / "slurm", cluster=cluster, **{f"{cluster}_max_num_timeout": MOST_REQUEUES}
        )
        executor.update_parameters(name="gsio", slurm_use_srun=True, **_named(options))
        jobs = executor.map_array(TaskJob(output.absolute()), [task.number for task in tasks])
    except (RuntimeError, NameError, AssertionError, TypeError, FailedSubmissionError) as error:
        raise UsageError(f"--engine: slurm: {error}".splitlines()[0]) from None
    except OSError as error:
        raise UsageError(f"--engine: slurm: {reason_of(error)}") from None
    return list(jobs)


def _named(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as arguments of submitit: those that it does not know go into the file for sbatch."""
    from submitit.slurm.slurm import SlurmExecutor

    known = {name: value for name, value in options.items() if name in SlurmExecutor._valid_parameters()}
    others = {name.replace("_", "-"): value for name, value in options.items() if name not in known}
    return {
        **{f"slurm_{name}": value for name, value in known.items()},
        "slurm_additional_parameters": {"requeue": True, **others},
    }
