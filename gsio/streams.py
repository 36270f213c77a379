"""stdout and stderr of the program, on which a write never fails: whether anybody reads them ends no run.

A pipe whose reader has gone, a closed terminal, a full disk and a descriptor that was closed at the start are all met
here, below Python's buffers, so that nothing above needs to know: neither the log, nor the bar, nor the flush at exit.
"""

import io
import os
import select
import sys
from typing import Any, TextIO

from gsio.inputs import printable

PATIENCE_SECONDS = 2.0  # a write to stderr waits for its reader as long as this, and then drops the text


class Output(io.FileIO):
    """A descriptor to write to; what cannot be written is dropped.

    Attributes
    ----------
    error
        Why text was dropped the last time, or None if all is written.
    """

    def __init__(self, descriptor: int, *, patient: bool) -> None:
        """Wait for a slow reader without limit if `patient`; else drop text after `PATIENCE_SECONDS`."""
        super().__init__(descriptor, "w", closefd=False)
        self.error: OSError | None = None
        self._patience: float | None = None if patient else PATIENCE_SECONDS

    def write(self, data: Any) -> int:
        """Write some of `data`, or drop all, and return how many bytes these are."""
        view = memoryview(data).cast("B")
        try:
            if self._patience is not None:
                if not self._is_writable(self._patience):
                    self._patience = 0.0
                    raise BlockingIOError("nobody reads")
                self._patience = PATIENCE_SECONDS
                view = view[: select.PIPE_BUF]  # so much is free where anything is
            while (written := super().write(view)) is None:  # somebody else made the descriptor non-blocking
                self._is_writable(None)
            return written
        except OSError as error:
            self.error = error
            return len(view)

    def _is_writable(self, seconds: float | None) -> bool:
        poll = select.poll()
        poll.register(self.fileno(), select.POLLOUT)
        return bool(poll.poll(None if seconds is None else 1000 * seconds))


def open_outputs() -> None:
    """Let `sys.stdout` and `sys.stderr` be such outputs, and let no file get the number of a closed standard stream."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free: this one
    if sys.stdout is sys.__stdout__:
        sys.stdout = _text(1, sys.stdout, patient=True)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text(2, sys.stderr, patient=False)


def _text(descriptor: int, before: TextIO | None, *, patient: bool) -> TextIO:
    if before is not None:
        before.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(Output(descriptor, patient=patient)),
        encoding=getattr(before, "encoding", "utf-8"),
        errors="backslashreplace",
        line_buffering=not patient or getattr(before, "line_buffering", False),
        write_through=getattr(before, "write_through", False),
    )


def error_of(stream: Any) -> OSError | None:
    """Return why text that was written to a stream of the program was dropped, or None."""
    error = getattr(getattr(getattr(stream, "buffer", None), "raw", None), "error", None)
    return error if isinstance(error, OSError) else None


def say(text: object, *, err: bool = False, nl: bool = True) -> None:
    """Print a line to stdout or stderr, with the characters spelled out that would control a terminal."""
    stream = sys.stderr if err else sys.stdout
    if stream is not None:  # a service can lack one
        print(printable(str(text)), file=stream, end="\n" if nl else "", flush=True)
