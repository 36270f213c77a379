"""What computes the tasks of a sweep: the processors of this machine, Slurm, or a queue of somebody's own."""

import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from gsio.config import BACKENDS, Config, parse_devices
from gsio.errors import Interrupted, StorageError
from gsio.machine import find_driver
from gsio.processes import python_module, with_parent
from gsio.run.plan import choose_backend
from gsio.sweep.plan import Plan, Task
from gsio.sweep.status import Status, status_of_sweep

LOOK_SECONDS = 0.25
FORWARDED = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


def command_of(output: Path, *more: str) -> list[str]:
    """Return the command that computes tasks of a sweep."""
    return python_module("gsio", *_words(output, *more))


def _words(output: Path, *more: str) -> list[str]:
    return ["sweep", "task", os.fspath(output.absolute()), *more]


def printed(output: Path, tasks: Sequence[Task]) -> list[str]:
    """Return a command line for each task, which any queue can run, in any order and as often as it likes."""
    return [shlex.join(["gsio", *_words(output, str(task.number))]) for task in tasks]


def gpus(config: Config) -> list[int | None]:
    """Return the GPUs that compute a sweep on this machine: those that the configuration names, or else all.

    None stands for the processors.
    """
    backend = choose_backend(config)
    if not BACKENDS[backend].cuda:
        return [None]
    wanted = parse_devices("run.devices", config.run.devices)
    if wanted or (wanted == () and config.run.device):
        return list(wanted or (config.run.device,))
    driver = find_driver()
    return list(range(len(driver.gpus))) if driver is not None else [0]


def compute(plan: Plan, output: Path, devices: Sequence[int | None], show: Callable[[Status], object]) -> None:
    """Compute all missing tasks, in one process for each device, and return when all processes have ended.

    Raises
    ------
    Interrupted
        A signal has stopped the tasks, or a process was killed; the sweep goes on when it is begun again.
    StorageError
        Storage failed in one of the processes.
    """
    with _workers(output, devices) as (workers, stopped):
        while any(worker.poll() is None for worker in workers):
            began = time.monotonic()
            show(status_of_sweep(output, plan))
            time.sleep(max(LOOK_SECONDS, 10 * (time.monotonic() - began)))  # to look takes few of the processors
    status = status_of_sweep(output, plan)
    show(status)
    codes = [worker.returncode for worker in workers]
    if not status.left:
        return
    if stopped.is_set():
        raise Interrupted("stopped by a signal; the same command goes on with the sweep")
    if StorageError.exit_code in codes:
        raise StorageError("storage failed in a task; make space, and the same command goes on with the sweep")
    if bad := [code for code in codes if code]:
        how = f"exit code {bad[0]}" if bad[0] > 0 else signal.Signals(-bad[0]).name
        raise Interrupted(f"a process that computes tasks has ended early ({how}); the same command goes on")


@contextmanager
def _workers(
    output: Path, devices: Sequence[int | None]
) -> Iterator[tuple[list["subprocess.Popen[bytes]"], threading.Event]]:
    """Start a process for each device, and pass signals on to all; they end before this context does.

    The processes are in a session of their own: else they would get Ctrl-C twice, from the terminal and from here.
    """
    workers: list[subprocess.Popen[bytes]] = []
    stopped = threading.Event()

    def stop(number: int, frame: object) -> None:
        stopped.set()
        for worker in workers:
            worker.send_signal(signal.SIGTERM)

    previous = {number: signal.getsignal(number) for number in FORWARDED}
    handled = [number for number in FORWARDED if previous[number] not in (signal.SIG_IGN, None)]
    if threading.current_thread() is not threading.main_thread():
        handled = []
    for number in handled:
        signal.signal(number, stop)
    try:
        for device in devices:
            if not stopped.is_set():
                more = [] if device is None else ["--device", str(device)]
                workers.append(
                    subprocess.Popen(
                        command_of(output, "--quiet", *more), env=environment(), stdin=subprocess.DEVNULL,
                        stdout=2, stderr=2, start_new_session=True,
                    )
                )  # fmt: skip
        yield workers, stopped
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.terminate()
            worker.wait()
        for number in handled:
            signal.signal(number, previous[number])


def environment() -> dict[str, str]:
    """Return the variables of a child; its tasks have their values from the plan, not from GSIO_* variables."""
    return {name: value for name, value in with_parent().items() if not name.startswith("GSIO_")}
