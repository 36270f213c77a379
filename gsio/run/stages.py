"""The stages of a pipeline: plain functions, each in a thread of its own, that one trio loop starts and awaits."""

import contextvars
import math
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import trio

from gsio.errors import NO_THREAD, GsioError


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


async def run_stages(stages: Sequence[Callable[[], None]], fail: Callable[[], None], skip: Callable[[], None]) -> None:
    """Run each stage in a thread of its own until all have ended; raise what they raised.

    A stage that raises calls `fail`, so that the others end. Where the system allows no more threads, `skip` ends the
    stages that have started: the last stage feeds the others, so nothing has begun.
    """
    errors: list[BaseException] = []
    ended, end = trio.open_memory_channel[BaseException | None](math.inf)
    token = trio.lowlevel.current_trio_token()

    def run(stage: Callable[[], None]) -> None:
        error = None
        try:
            stage()
        except BaseException as raised:
            fail()
            error = raised
        token.run_sync_soon(ended.send_nowait, error)

    started = 0
    try:
        for stage in stages:
            threading.Thread(target=run, args=(stage,), name=stage.__name__, daemon=True).start()
            started += 1
    except (RuntimeError, MemoryError):
        errors.append(GsioError(NO_THREAD))
        skip()
    errors += [error for _ in range(started) if (error := await end.receive()) is not None]
    if errors:
        raise BaseExceptionGroup("stages of a run", errors)
