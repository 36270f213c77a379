"""The signals that stop a run, or ask it for a checkpoint."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import trio

from gsio.log import log

SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1
STOPPING = (
    "stopping when the frames already computed are written; a second signal drops them",
    "stopping after the block being written; a third signal aborts",
)


@contextmanager
def listening(stop: Callable[[str], None], drop: Callable[[], None], checkpoint: Callable[[], None]) -> Iterator[None]:
    """Call `stop` with the name of the first signal, `drop` on the second, and abort the process on the third.

    SIGUSR1 calls `checkpoint` instead. A signal that was ignored when the process started stays ignored, as SIGHUP is
    under nohup, and SIGINT in the background of a shell. Python runs the handler between two instructions of the main
    thread, whatever trio waits for; only the message waits for trio. A run in another thread hears no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    token = trio.lowlevel.current_trio_token()
    received = 0

    def handle(number: int, frame: object) -> None:
        nonlocal received
        if number == signal.SIGUSR1:
            checkpoint()
            return
        received += 1
        if received > 2:
            os._exit(128 + (signal.SIGINT if number == signal.SIGINT else signal.SIGTERM))
        if received > 1:
            drop()
        stop(signal.Signals(number).name)
        token.run_sync_soon(_warn, STOPPING[received - 1])

    previous = {number: signal.getsignal(number) for number in SIGNALS}
    handled = [number for number in SIGNALS if previous[number] not in (signal.SIG_IGN, None)]
    for number in handled:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, previous[number])


def _warn(text: str) -> None:
    with suppress(OSError):  # a message that nobody can read ends no run
        log.warning(text)
