"""What ends a run before its last frame, or soon will: the time it may take, the space on the disk, its own output."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gsio.config import Config, parse_walltime
from gsio.files import changed, require_same
from gsio.log import log
from gsio.machine import free_space
from gsio.run.progress import Observe, Progress

MARGIN_SECONDS = 5.0  # to close the file and write the checkpoint
SPACE_SECONDS = 10.0  # between two looks at the output and its disk
SLURM = "SLURM_JOB_END_TIME"  # seconds since 1970, set by Slurm for a job with a time limit


def time_limit(config: Config) -> float | None:
    """Return when a run that begins now has to end, `time.monotonic` seconds, or None if it may take any time.

    Raises UsageError if `run.max_walltime` is no time.
    """
    ends = []
    if config.run.max_walltime:
        ends.append(parse_walltime("run.max_walltime", config.run.max_walltime))
    if (slurm := os.environ.get(SLURM, "")).isdecimal():
        ends.append(int(slurm) - time.time())
    return time.monotonic() + min(ends) if ends else None


@contextmanager
def limits(
    output: Path, end: float | None, progress: Callable[[], Progress], stop: Callable[[str], None]
) -> Iterator[Observe]:
    """Observe a run: `stop` it in time before `end`, and warn if its disk becomes full.

    Raises StorageError, while the run goes on or after its end, if the output is deleted, renamed or replaced.
    """
    _estimate(output, progress())
    file: os.stat_result | None = None
    looked, warned = float("-inf"), False

    def look(now: Progress) -> None:
        nonlocal file, warned
        if file is not None:
            require_same(output, file)
        else:
            try:
                file = output.stat()
            except OSError:
                raise changed(output, "deleted or renamed") from None
        needed = now.nbytes / now.frames_committed * now.frames_left if now.frames_committed else 0
        free = free_space(output.parent)
        if needed > free and not warned:
            warned = True
            log.warning(
                f"{now.frames_left} frames to come need about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
            )

    def observe(now: Progress) -> None:
        nonlocal looked
        moment = time.monotonic()
        if end is not None and moment > end - MARGIN_SECONDS - _draining(now):
            stop("the wall-time limit")
        if moment > looked + SPACE_SECONDS:
            looked = moment
            look(now)

    yield observe
    look(progress())


def _estimate(output: Path, now: Progress) -> None:
    """Warn if the frames to come do not fit on the disk without compression."""
    needed, free = now.frames_left * now.frame_nbytes, free_space(output.parent)
    if needed > free:
        log.warning(
            f"{needed / 1e9:.1f} GB before compression, {free / 1e9:.1f} GB free: the disk may become full; "
            "the run would stop with what is committed intact, and go on with --resume once there is space"
        )


def _draining(now: Progress) -> float:
    """Return twice the seconds that the computed frames will probably take until they are committed."""
    if not now.frames_added:
        return 0.0
    return 2 * now.seconds / now.frames_added * now.blocks_in_use * now.frames_per_block
