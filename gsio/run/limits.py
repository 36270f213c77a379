"""What ends a run before its last frame, or soon will: the time it may take, and the space and memory that are left."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from gsio.config import Config, parse_walltime
from gsio.files import changed, require_same
from gsio.frames.layout import BlockLayout
from gsio.machine import free_space

if TYPE_CHECKING:
    from gsio.run.pipeline import Pipeline

MARGIN_SECONDS = 5.0  # to close the file and write the checkpoint
SPACE_SECONDS = 10.0  # between two looks at the free space
SLURM = "SLURM_JOB_END_TIME"  # seconds since 1970, set by Slurm for a job with a time limit

log = structlog.get_logger()


class Limits:
    """The limits of one run, which begins now; raises UsageError if `run.max_walltime` is none."""

    def __init__(self, config: Config, output: Path) -> None:
        self._output = output
        ends = []
        if config.run.max_walltime:
            ends.append(parse_walltime("run.max_walltime", config.run.max_walltime))
        if (slurm := os.environ.get(SLURM, "")).isdecimal():
            ends.append(int(slurm) - time.time())
        # By a clock that nobody sets.
        self._end = time.monotonic() + min(ends) if ends else None
        self._looked = time.monotonic()
        self._warned = False
        self._file: os.stat_result | None = None

    def estimate(self, layout: BlockLayout, frames: int) -> None:
        """Warn if so many frames do not fit on the disk should they not compress at all."""
        most, free = frames * layout.frame.frame_nbytes, free_space(self._output.parent)
        if most > free:
            log.warning(
                f"{most / 1e9:.1f} GB before compression, {free / 1e9:.1f} GB free: the disk may become full; "
                "the run would stop with what is committed intact, and go on with --resume once there is space"
            )

    def check(self, pipeline: "Pipeline") -> None:
        """Stop `pipeline` in time, and warn of a disk that will be full; raises StorageError if the output is gone."""
        now = time.monotonic()
        if self._end is not None and now > self._end - MARGIN_SECONDS - _draining(pipeline):
            pipeline.stop("the wall-time limit")
        if not self._file or now > self._looked + SPACE_SECONDS:
            self._looked = now
            self.look(pipeline)

    def look(self, pipeline: "Pipeline") -> None:
        """Warn of a disk that will be full; raises StorageError if the output is gone."""
        if self._file is not None:
            require_same(self._output, self._file)
        else:
            try:
                self._file = self._output.stat()
            except OSError:
                raise changed(self._output, "deleted or renamed") from None
        done, left = pipeline.frames_committed, pipeline.config.run.frames - pipeline.frames_committed
        needed = pipeline.writer.nbytes / done * left if done else 0
        free = free_space(self._output.parent)
        if needed > free and not self._warned:
            self._warned = True
            log.warning(f"{left} frames to come need about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")


def _draining(pipeline: "Pipeline") -> float:
    """Return about the seconds that the frames already computed take until they are committed, twice over."""
    done = pipeline.frames_committed - pipeline.first
    if not done:
        return 0.0
    seconds = (time.perf_counter() - pipeline.started) / done
    return 2 * seconds * pipeline.pool.in_use * pipeline.pool.layout.frames_per_block
