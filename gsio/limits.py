"""What ends a run before its last frame, or soon will: the time it may take, and the space and memory that are left."""

import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import structlog

from gsio.config import Config, parse_walltime
from gsio.files import UNSUPPORTED, changed, require_same
from gsio.staging import FrameLayout

if TYPE_CHECKING:
    from gsio.pipeline import Pipeline

MARGIN_SECONDS = 5.0  # to close the file and write the checkpoint
SPACE_SECONDS = 10.0  # between two looks at the free space
SLURM = "SLURM_JOB_END_TIME"  # seconds since 1970, set by Slurm for a job with a time limit
CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# Of a control group, cgroups(7), by the controllers its line names: where it is, the files of its limit and of what it
# has taken, and of the latter what files left behind, which is given back.
MEMORY = {
    "": (".", "memory.max", "memory.current", "inactive_file"),
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}

log = structlog.get_logger()


def available_memory() -> int:
    """Return the bytes this process can still take: of the machine, or fewer if a container or Slurm allows no more."""
    try:
        available: int = psutil.virtual_memory().available
    except OSError:  # no /proc
        available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        groups = OWN_CGROUPS.read_text().splitlines()
    except OSError:  # none, or no /proc
        groups = []
    for line in groups:
        _, controllers, place = line.split(":", 2)
        if controllers in MEMORY:
            folder, *names = MEMORY[controllers]
            root = CGROUPS / folder
            group = root / place.lstrip("/")
            above = (parent for parent in group.parents if parent.is_relative_to(root))
            available = min(available, *(_left(each, *names) for each in (group, *above)))
    return available


def free_space(folder: Path) -> int:
    """Return the bytes free on the disk of a folder, or `sys.maxsize` where the file system does not know."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        return sys.maxsize
    return usage.free if usage.total else sys.maxsize  # no blocks at all: some network file systems tell so


def _left(group: Path, limit: str, taken: str, kept: str) -> int:
    try:
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        most, used = (int((group / name).read_text()) for name in (limit, taken))
        return max(0, most - used + int(statistics[kept]))
    except (OSError, ValueError, KeyError):  # no limit, which version 2 calls "max", or not to be seen from here
        return sys.maxsize


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

    def estimate(self, layout: FrameLayout, frames: int) -> None:
        """Warn if so many frames do not fit on the disk should they not compress at all."""
        most, free = frames * layout.frame_nbytes, free_space(self._output.parent)
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
