"""A trio loop inside synchronous code, whatever the thread of the caller is doing."""

import contextvars
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import trio

from gsio.errors import GsioError


def run_trio(main: Callable[[], Awaitable[None]], interrupt: Callable[[], None]) -> None:
    """Run `main` in a trio loop, in a thread of its own if the caller's thread is inside such a loop.

    Raises the error that ended it: the first that gsio raised, or else the first. A KeyboardInterrupt of the caller's
    loop calls `interrupt`, and is raised once `main` has ended.
    """
    try:
        if not trio.lowlevel.in_trio_run():
            trio.run(main)
            return
        with ThreadPoolExecutor(1) as thread:
            ended = thread.submit(contextvars.copy_context().run, partial(trio.run, main))
            try:
                ended.result()
            except KeyboardInterrupt:  # the caller's loop raises it here; the loop of `main` hears no signals
                interrupt()
                raise
    except BaseExceptionGroup as group:
        ours, _ = group.split(GsioError)
        error: BaseException = ours or group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None
