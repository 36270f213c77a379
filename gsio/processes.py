"""How a process of gsio ends: by which signals, and together with the one that started it."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping

from gsio.errors import NO_THREAD, GsioError

PARENT = "_GSIO_PARENT"  # a variable: the id of the process with which one of its children ends
PARENT_SECONDS = 1.0  # between two looks at a process that is not the direct parent
FIRST_SECONDS = 10.0  # in which the first of several processes says why all are refused
GIVING_WAY = 10  # added to the nice value of a thread
SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG, prctl(2)
LAUNCHERS = (  # the variables that have the number of a process, and of all: Open MPI; MPICH, Intel and Cray; Slurm
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
)


class Terminated(KeyboardInterrupt):
    """A signal asked the process to end, outside of a run; `number` says which."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM and SIGHUP interrupt as Ctrl-C does, so that what is half made goes and children end.

    A signal that is ignored, as SIGHUP is under nohup, or that the program has a use for, is left as it is.
    """
    here = threading.current_thread() is threading.main_thread()
    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if here and is_default(number)]
    for number in numbers:
        signal.signal(number, _terminate)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _terminate(number: int, frame: object) -> None:
    raise Terminated(number)


def is_default(number: int) -> bool:
    """Return whether a signal does what it does in every process."""
    return signal.getsignal(number) is signal.SIG_DFL


def python_module(name: str, *arguments: str) -> list[str]:
    """Return the command that runs a module of gsio, whatever modules of the user lie in the working folder."""
    here = os.path.dirname(os.path.dirname(__file__))  # noqa: PTH120 - most commands need no pathlib
    run = f"runpy.run_module({name!r}, None, '__main__', alter_sys=True)"
    return [sys.executable, "-P", "-c", f"import runpy, sys; sys.path.append({here!r}); {run}", *arguments]


def with_parent(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables of a child that calls `end_with_parent`, so that it ends with this process."""
    return {**environment, PARENT: str(os.getpid())}


def end_with_parent(number: int = signal.SIGKILL) -> None:
    """Let the kernel send the signal `number` when the process that called `with_parent` ends, if one did.

    A child that is stuck in a library ends too, for the kernel sends the signal. Where another process is between the
    two, or the kernel cannot, a thread looks once a second.
    """
    known = os.environ.pop(PARENT, "")
    if not known.isdecimal():
        return
    import ctypes

    parent, libc = int(known), ctypes.CDLL(None)
    if os.getppid() == parent and hasattr(libc, "prctl") and not libc.prctl(SET_DEATH_SIGNAL, int(number), 0, 0, 0):
        if os.getppid() != parent:  # it has ended meanwhile
            os.kill(os.getpid(), number)
        return
    with contextlib.suppress(RuntimeError):  # no thread can be started
        threading.Thread(target=_end_after, args=(parent, number), daemon=True).start()


def _end_after(parent: int, number: int) -> None:
    while exists(parent):
        time.sleep(PARENT_SECONDS)
    os.kill(os.getpid(), number)


def check_threads(number: int) -> None:
    """Raise GsioError unless `number` threads can be started now, so that none fails in the middle of the work."""
    done = threading.Event()
    threads = [threading.Thread(target=done.wait, daemon=True) for _ in range(number)]
    started = 0
    try:
        for thread in threads:
            thread.start()
            started += 1
    except (RuntimeError, MemoryError):
        raise GsioError(NO_THREAD) from None
    finally:
        done.set()
        for thread in threads[:started]:
            thread.join()


def give_way() -> None:
    """Let the calling thread have from now on a tenth of the time of a core that another thread wants."""
    with contextlib.suppress(OSError, AttributeError):  # a sandbox can forbid it; not every system has it
        nice = min(19, os.getpriority(os.PRIO_PROCESS, os.getpid()) + GIVING_WAY)  # of the main thread
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)  # on Linux, of this thread alone


def launched() -> tuple[int, int]:
    """Return the number of this process among those that MPI or Slurm has started together, and how many these are."""
    found = [tuple(os.environ.get(name, "") for name in names) for names in LAUNCHERS]
    known = [(int(number), int(count)) for number, count in found if number.isdecimal() and count.isdecimal()]
    return max(known, key=lambda launch: launch[1], default=(0, 1))


def leave_to_first() -> None:
    """Let the first of the processes that were started together say what is wrong, before this one ends.

    A launcher ends all processes when one has failed; this one then returns.
    """
    with contextlib.suppress(Terminated):
        time.sleep(FIRST_SECONDS)


def exists(pid: int) -> bool:
    """Return whether there is a process of this number that has not ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OverflowError:  # no number of a process
        return False
    except PermissionError:  # of another user
        return True
    return _stat(pid)[:1] != [b"Z"]  # a zombie: nobody has asked yet how it ended


def started_at(pid: int) -> int | None:
    """Return when a process started, in clock ticks since the machine did, or None if nobody can tell.

    The time tells two processes apart that had the same number.
    """
    try:
        return int(_stat(pid)[19])  # `starttime`, the 22nd field of proc(5)
    except (ValueError, IndexError):
        return None


def _stat(pid: int) -> list[bytes]:
    """Return what the system tells of a process, from its state on, or nothing."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
            return file.read().rpartition(b")")[2].split()
    except OSError:
        return []
