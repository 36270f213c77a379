"""The resources of this machine: GPUs and their driver, asked without CuPy, memory, disk and cores."""

import ctypes
import os
import shutil
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from gsio.files import UNSUPPORTED


class Driver(NamedTuple):
    """The driver's version of CUDA, (major, minor), and the names of its GPUs."""

    cuda: tuple[int, int]
    gpus: tuple[str, ...]


def find_driver() -> Driver | None:
    """Return the version and the GPUs of the driver, or None if no driver starts."""
    cuda = _started_driver()
    version, count = ctypes.c_int(), ctypes.c_int()
    if cuda is None or cuda.cuDriverGetVersion(ctypes.byref(version)) or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return None
    names = []
    for ordinal in range(count.value):
        name = ctypes.create_string_buffer(256)
        cuda.cuDeviceGetName(name, len(name), ordinal)
        names.append(name.value.decode())
    return Driver((version.value // 1000, version.value % 1000 // 10), tuple(names))


def _started_driver() -> ctypes.CDLL | None:
    """Return the library of the driver, or None if no driver starts."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return None if cuda.cuInit(0) else cuda


def wake(devices: Iterable[int]) -> None:
    """Let a thread create the contexts of GPUs that CuPy will use: that takes as long as the imports of a run.

    An error is not told here, because CuPy meets it again. The process does not end before the thread: the driver could
    crash.
    """
    if find_spec("cupy") is not None:
        with suppress(RuntimeError):  # no thread can be started: CuPy creates the contexts
            threading.Thread(target=_create_contexts, args=(tuple(devices),)).start()


def _create_contexts(devices: tuple[int, ...]) -> None:
    device, context = ctypes.c_int(), ctypes.c_void_p()
    if (cuda := _started_driver()) is None:
        return
    for number in devices:
        if not cuda.cuDeviceGet(ctypes.byref(device), number):
            cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)


def one_line(error: Exception) -> str:
    """Return the first line of what CuPy reports, which can be long or empty."""
    return (str(error) or type(error).__name__).splitlines()[0]


def how_to_install_cupy(driver: Driver) -> str:
    """Return the command that installs the CuPy this driver can run."""
    return f"pip install 'gsio[cuda{13 if driver.cuda >= (13, 0) else 12}]'"


MEMINFO, CGROUPS, OWN_CGROUPS = Path("/proc/meminfo"), Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


# For each version of control groups, by the controllers in their line: the folder, the files of the limit and of the
# usage, and the entry of memory.stat with the page cache that the kernel can take back. See cgroups(7).
MEMORY = {
    "": (".", "memory.max", "memory.current", "inactive_file"),
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
# The folder, and the files of the microseconds of all cores that a group may take in a period, and of the period.
QUOTA = {
    "": (".", "cpu.max"),
    "cpu": ("cpu", "cpu.cfs_quota_us", "cpu.cfs_period_us"),
    "cpu,cpuacct": ("cpu,cpuacct", "cpu.cfs_quota_us", "cpu.cfs_period_us"),
}


def _groups(files: Mapping[str, tuple[str, ...]]) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Yield each control group of this process that has a controller of `files`, and those above, with their files."""
    try:
        lines = OWN_CGROUPS.read_text().splitlines()
    except OSError:  # none, or no /proc
        lines = []
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers in files:
            folder, *names = files[controllers]
            root = CGROUPS / folder
            group = root / place.lstrip("/")
            for each in (group, *group.parents):
                if each.is_relative_to(root):
                    yield each, tuple(names)


def available_memory() -> int:
    """Return the bytes this process can still take: of the machine, or fewer if a container or Slurm allows no more."""
    try:
        values = dict(line.split(":") for line in MEMINFO.read_text().splitlines())
        available = 1024 * int(values["MemAvailable"].removesuffix("kB"))
    except (OSError, ValueError, KeyError):  # no /proc
        available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(available, *(_left(group, *names) for group, names in _groups(MEMORY)), sys.maxsize)


def cache_folder() -> Path:
    """Return the folder of the user for what gsio can make again; raise RuntimeError if the user has no home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gsio"


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


def usable_cores() -> int:
    """Return the number of cores this process may use at once: a Slurm job or a container has fewer than the machine.

    The time that a control group may take counts as whole cores: two threads for 1.5 cores would wait for each other.
    """
    cores = len(os.sched_getaffinity(0))
    return max(1, min(cores, *(_quota(group, names) for group, names in _groups(QUOTA)), cores))


def _quota(group: Path, names: tuple[str, ...]) -> int:
    try:
        quota, period = (int(word) for name in names for word in (group / name).read_text().split())
    except (OSError, ValueError):  # no limit, which version 2 calls "max", or not to be seen from here
        return sys.maxsize
    return quota // period if quota > 0 < period else sys.maxsize
