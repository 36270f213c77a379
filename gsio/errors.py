"""What can go wrong, and the exit code each kind ends the process with.

GsioError
├── UsageError        2   bad option, configuration or environment; nothing was touched
│   └── TakenError        something else took the name of a new file while the file was written
├── DataError        65   data do not match: a corrupt or foreign file, a checkpoint of another configuration
├── DivergenceError  70   the simulation produced a non-finite value
├── StorageError     74   storage failed; what is committed is intact
└── Interrupted      75   stopped early, by a signal or a time limit; what is committed is intact
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class GsioError(Exception):
    """An error for a person: its text is one line that says what was expected, what was found and what to do."""

    exit_code = 70


class UsageError(GsioError):
    """A bad option, configuration or environment, found before anything was touched."""

    exit_code = 2


class TakenError(UsageError):
    """Something else took the name of a new file while the file was written. The other file stays."""


class DataError(GsioError):
    """A file is corrupt or of another kind."""

    exit_code = 65


class DivergenceError(GsioError):
    """A field that turned non-finite."""

    exit_code = 70


class StorageError(GsioError):
    """A failed write; every frame committed before it is intact."""

    exit_code = 74


class Interrupted(GsioError):  # noqa: N818 - a stop that was asked for, not a fault
    """A run stopped early; every frame committed before it is intact."""

    exit_code = 75


class ToldError(GsioError):
    """The run ended with an error that another of its processes tells the user."""

    def __init__(self, code: int) -> None:
        super().__init__("")
        self.exit_code = code


@contextmanager
def storage_errors(source: "Path", what: str, kinds: tuple[type[Exception], ...] = (OSError,)) -> Iterator[None]:
    """Raise errors of these `kinds` as StorageError, and a lack of memory for `what` is in `source` as DataError."""
    try:
        yield
    except MemoryError:
        raise DataError(f"{source}: expected {what} that fit into memory, found larger ones") from None
    except kinds as error:
        raise StorageError(f"storage failed: {reason_of(error)}; make space or choose another place") from error


def reason_of(error: Exception) -> str:
    """Return what went wrong in the words of the system, or of h5py, which has a RuntimeError for some of it."""
    return str(getattr(error, "strerror", None) or error)


NO_THREAD = (
    "expected to start a thread, but the system allows no more; raise the limit of processes (ulimit -u, or pids.max "
    "of the container) or of memory, or lower output.threads and run.threads"
)


def is_without_thread(error: BaseException) -> bool:
    """Return whether an error is Python's of a thread that cannot be started, which has no class of its own."""
    return isinstance(error, RuntimeError) and str(error) == "can't start new thread"
