"""The page of a run beside the run: a process of its own, so that neither waits for the other's Python."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gsio.processes import python_module, with_parent
from gsio.streams import say

END_SECONDS = 5.0


@contextmanager
def shown(output: Path, *, wanted: bool) -> Iterator[None]:
    """Show an output that a run is about to write, if that is `wanted`; whatever becomes of the page ends no run.

    On a terminal the page stays until the person ends it, if the run has ended well.
    """
    page = _start(output) if wanted else None
    if page is None:
        yield
        return
    try:
        yield
        if sys.stderr.isatty() and page.poll() is None:
            say("The page stays open; Ctrl-C ends it.", err=True)
            with suppress(KeyboardInterrupt):
                page.wait()
    finally:
        # A child of a process that ignores Ctrl-C ignores it too.
        ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        page.send_signal(signal.SIGTERM if ignored else signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            page.wait(END_SECONDS)


def _start(output: Path) -> "subprocess.Popen[bytes] | None":
    """Start `gsio view` apart from the terminal, whose Ctrl-C is for the run; its address goes to stderr."""
    command = python_module("gsio", "view", "--wait", "--", str(output))
    try:
        return subprocess.Popen(
            command, env=with_parent(), stdin=subprocess.DEVNULL, stdout=2, stderr=2, start_new_session=True
        )
    except OSError as error:
        say(f"gsio: warning: --view: the page could not be started: {error}", err=True)
        return None
