"""What a person sees while a run goes on: a bar on a terminal, an event every ten seconds off it.

And while frames are read: a bar.
"""

import datetime
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable

    from gsio.run.pipeline import Pipeline

LOG_SECONDS = 10.0

log = structlog.get_logger()


class Rates(NamedTuple):
    """Rates since the frame loop began, and the time it has left."""

    frames: int  # in the file
    steps_per_second: float
    gcells_per_second: float
    gigabytes_in: float  # per second, raw
    gigabytes_out: float  # per second, in the file
    ratio: float
    blocks_in_flight: int
    seconds_left: float | None  # None before the first frame


def rates(pipeline: "Pipeline") -> Rates:
    """Return how fast `pipeline` goes."""
    config, frames = pipeline.config, pipeline.frames_committed - pipeline.first
    seconds = max(time.perf_counter() - pipeline.started, 1e-9)
    steps = frames * config.run.steps_per_frame
    raw, stored = frames * pipeline.pool.layout.frame.frame_nbytes, pipeline.writer.nbytes - pipeline.nbytes_before
    return Rates(
        frames=pipeline.frames_committed,
        steps_per_second=steps / seconds,
        gcells_per_second=steps * pipeline.pool.layout.frame.cells / seconds / 1e9,
        gigabytes_in=raw / seconds / 1e9,
        gigabytes_out=stored / seconds / 1e9,
        ratio=raw / stored if stored else 0.0,
        blocks_in_flight=pipeline.pool.in_use,
        seconds_left=(config.run.frames - pipeline.frames_committed) * seconds / frames if frames else None,
    )


@contextmanager
def shown(*, quiet: bool) -> "Iterator[Callable[[Pipeline], None]]":
    """Give the function to pass as `watch` to `gsio.simulate`."""
    if quiet:
        yield lambda pipeline: None
    elif sys.stderr.isatty():
        with _bar() as watch:
            yield watch
    else:
        yield _events()


def _events() -> "Callable[[Pipeline], None]":
    due = 0.0

    def watch(pipeline: "Pipeline") -> None:
        nonlocal due
        due = due or pipeline.started + LOG_SECONDS
        if time.perf_counter() >= due:
            due += LOG_SECONDS
            log.info("progress", **{key: value and round(value, 3) for key, value in rates(pipeline)._asdict().items()})

    return watch


@contextmanager
def _bar() -> "Iterator[Callable[[Pipeline], None]]":
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress_bar import ProgressBar

    # The bar is drawn when `watch` is called: no thread of rich's own.
    with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as live:

        def watch(pipeline: "Pipeline") -> None:
            now, total = rates(pipeline), pipeline.config.run.frames
            left = datetime.timedelta(seconds=round(now.seconds_left)) if now.seconds_left is not None else "-:--:--"
            lines = (
                f"frame {now.frames}/{total}   {now.steps_per_second:.0f} steps/s   {now.gcells_per_second:.2f} Gcell/s"
                f"   {left} left",
                f"in {now.gigabytes_in:.2f} GB/s   out {now.gigabytes_out:.2f} GB/s   {now.ratio:.2f} times smaller"
                f"   {now.blocks_in_flight} blocks in flight",
            )
            live.update(Group(*lines, ProgressBar(total=total, completed=now.frames)), refresh=True)

        yield watch


@contextmanager
def counted(frames: int, *, quiet: bool = False) -> "Iterator[Callable[[int], object]]":
    """Give the function to call with the number of frames done, which a bar shows on a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    # What is printed goes above the bar, but only where both are on the terminal: it can be redirected.
    with Progress(console=Console(stderr=True), transient=True, redirect_stdout=sys.stdout.isatty()) as progress:
        task = progress.add_task("frames", total=frames)
        yield lambda done: progress.advance(task, done)
