"""How far a run is: the value that its observers get, and what a person sees of it.

A person sees a bar on a terminal, or an event every ten seconds off a terminal. Reading frames shows a bar too.
"""

import datetime
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from gsio.frames.format import FrameFormat
from gsio.log import log
from gsio.writer.session import Session

LOG_SECONDS = 10.0


class Throughput(NamedTuple):
    """How fast a session has been since its frame loop began, and the time it still needs."""

    frames: int  # committed
    steps_per_second: float
    gcells_per_second: float
    gigabytes_in: float  # per second, before compression
    gigabytes_out: float  # per second, in the output
    ratio: float
    blocks_in_flight: int
    seconds_left: float | None  # None before the first frame


class Occupied(NamedTuple):
    """For how many seconds each resource of a session has been busy, and computing has waited for a free block.

    `encode` is the mean of the encoding threads. `compute` and `link` are those of a device up to the committed frames,
    where the device tells them.
    """

    compute: float = 0.0
    link: float = 0.0
    encode: float = 0.0
    write: float = 0.0
    wait: float = 0.0

    @property
    def bottleneck(self) -> str:
        """The name of the resource that was busy longest, or "" where none was; waiting is no resource."""
        resources = {name: seconds for name, seconds in self._asdict().items() if name != "wait" and seconds > 0}
        return max(resources, key=lambda name: resources[name], default="")

    def since(self, before: "Occupied") -> "Occupied":
        """Return the seconds since `before`."""
        return Occupied(*(max(0.0, now - then) for now, then in zip(self, before, strict=True)))

    def shares(self, seconds: float) -> dict[str, float]:
        """Return each as a share of `seconds`; a device tells a whole block at once, so a share can be cut to 1."""
        return {name: min(1.0, value / max(seconds, 1e-9)) for name, value in self._asdict().items()}


IDLE = Occupied()


@dataclass(frozen=True)
class Progress:
    """What is known of a run at one moment. A run that was stopped has several sessions; this is the present one.

    Attributes
    ----------
    frames_total, steps_per_frame
        Frames of the whole run, and time steps for each; 0 where nobody knows them.
    first
        Frames that the output held before this session.
    frames_committed, frames_durable
        Frames that the output holds now, and how many of these are known to be safe on the disk.
    cells, frame_nbytes
        Cells of a frame, and its bytes before compression.
    nbytes, nbytes_before
        Bytes of the output now, and before this session.
    frames_per_block, blocks_in_use
        Frames of a full block, and blocks that hold frames that are computed, encoded or written.
    seconds
        Time since the frame loop began, or the time that the loop took once it has ended.
    occupied
        For how much of that time each resource has been busy.
    outside
        The first value that is not from 0 to 1, in words; "" if there is none.
    """

    frames_total: int
    steps_per_frame: int
    first: int
    frames_committed: int
    frames_durable: int
    cells: int
    frame_nbytes: int
    nbytes: int
    nbytes_before: int
    frames_per_block: int
    blocks_in_use: int
    seconds: float
    occupied: Occupied = IDLE
    outside: str = ""

    @property
    def frames_added(self) -> int:
        """Frames that this session has committed."""
        return self.frames_committed - self.first

    @property
    def frames_left(self) -> int:
        """Frames that the run still has to commit."""
        return max(0, self.frames_total - self.frames_committed)

    @property
    def cell_steps(self) -> int:
        """Time steps of single cells in the frames that this session has committed."""
        return self.frames_added * self.steps_per_frame * self.cells

    @property
    def nbytes_in(self) -> int:
        """Bytes, before compression, of the frames that this session has committed."""
        return self.frames_added * self.frame_nbytes

    @property
    def nbytes_out(self) -> int:
        """Bytes that this session has added to the output."""
        return self.nbytes - self.nbytes_before

    @property
    def throughput(self) -> Throughput:
        """How fast this session has been since its frame loop began."""
        seconds, frames = max(self.seconds, 1e-9), self.frames_added
        return Throughput(
            frames=self.frames_committed,
            steps_per_second=frames * self.steps_per_frame / seconds,
            gcells_per_second=self.cell_steps / seconds / 1e9,
            gigabytes_in=self.nbytes_in / seconds / 1e9,
            gigabytes_out=self.nbytes_out / seconds / 1e9,
            ratio=self.nbytes_in / self.nbytes_out if self.nbytes_out else 0.0,
            blocks_in_flight=self.blocks_in_use,
            seconds_left=self.frames_left * seconds / frames if frames and self.frames_total else None,
        )


def progress_of(
    session: Session,
    frame: FrameFormat,
    seconds: float,
    nbytes_before: int,
    *,
    compute: float,
    link: float = 0.0,
    frames_total: int = 0,
    steps_per_frame: int = 0,
    outside: str = "",
) -> Progress:
    """Return how far a session of such frames is after `seconds`.

    A device has computed, and copied, for some of the time.
    """
    trace, layout = session.trace, session.pool.layout
    return Progress(
        frames_total=frames_total,
        steps_per_frame=steps_per_frame,
        first=session.earlier.frames,
        frames_committed=session.frames_committed,
        frames_durable=session.frames_durable,
        cells=frame.cells,
        frame_nbytes=frame.frame_nbytes,
        nbytes=session.writer.nbytes,
        nbytes_before=nbytes_before,
        frames_per_block=layout.frames_per_block,
        blocks_in_use=session.pool.in_use,
        seconds=seconds,
        occupied=Occupied(compute, link, trace.encode.total / session.threads, trace.write.busy, trace.wait.busy),
        outside=outside,
    )


# An observer is a context manager: entering begins it and gives the function that observes, leaving ends it.
Observe = Callable[[Progress], object]


@contextmanager
def run_progress(*, quiet: bool) -> Iterator[Observe]:
    """Show how far a run is while this context lasts; give the function to pass as `watch` to `gsio.simulate`."""
    with shown(_bar, _events, quiet=quiet) as observe:
        yield observe


@contextmanager
def shown(
    bar: Callable[[], AbstractContextManager[Callable[[Any], object]]],
    events: Callable[[], Callable[[Any], object]],
    *,
    quiet: bool,
) -> Iterator[Callable[[Any], object]]:
    """Give the function that shows progress: by a `bar` on a terminal, elsewhere by `events`, not at all if `quiet`."""
    if quiet:
        yield lambda progress: None
    elif sys.stderr.isatty():
        with bar() as show:
            yield show
    else:
        yield events()


def _events() -> Observe:
    due = LOG_SECONDS

    def observe(progress: Progress) -> None:
        nonlocal due
        if progress.seconds >= due:
            due += LOG_SECONDS
            values = progress.throughput._asdict()
            log.info("progress", **{key: value and round(value, 3) for key, value in values.items()})

    return observe


@contextmanager
def _bar() -> Iterator[Observe]:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress_bar import ProgressBar

    # The bar is drawn when `observe` is called: rich starts no thread of its own.
    with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as live:
        ended = 0.0

        def observe(progress: Progress) -> None:
            nonlocal ended
            now, total = progress.throughput, progress.frames_total
            left = datetime.timedelta(seconds=round(now.seconds_left)) if now.seconds_left is not None else "-:--:--"
            first = f"{now.steps_per_second:.0f} steps/s   {now.gcells_per_second:.2f} Gcell/s   {left} left"
            if not progress.frames_left:  # the disk decides how long the end takes
                ended = ended or time.monotonic()
                waited = time.monotonic() - ended
                first = f"making {progress.nbytes_out / 1e9:.2f} GB durable … {waited:.0f} s"
            lines = (
                f"frame {now.frames}/{total}   {first}",
                f"in {now.gigabytes_in:.2f} GB/s   out {now.gigabytes_out:.2f} GB/s   {now.ratio:.2f} times smaller"
                f"   {now.blocks_in_flight} blocks in flight",
            )
            live.update(Group(*lines, ProgressBar(total=total, completed=now.frames)), refresh=True)

        yield observe


@contextmanager
def frame_progress(frames: int, *, quiet: bool = False) -> Iterator[Callable[[int], object]]:
    """Show how many of `frames` are done, on a terminal; give the function to call with each number done."""
    if quiet or not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress as Bars

    # Printed lines appear above the bar only if stdout is the terminal too: stdout can be redirected.
    with Bars(console=Console(stderr=True), transient=True, redirect_stdout=sys.stdout.isatty()) as bars:
        task = bars.add_task("frames", total=frames)
        yield lambda done: bars.advance(task, done)
