"""What this machine has, for `gsio doctor`."""

import os
import platform
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from gsio.machine import available_memory, find_driver, free_space, how_to_install_cupy, one_line, usable_cores
from gsio.profile import nsys

Finding = tuple[str, str]


def findings() -> Iterator[Finding]:
    """Yield what was found, each as a name and one line."""
    yield "python", f"{platform.python_version()}, {platform.platform()}"
    yield "cores", f"{usable_cores()} usable of {os.cpu_count()}"
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    yield "memory", f"{available_memory() / 1e9:.1f} GB available of {total / 1e9:.1f} GB"
    free = free_space(Path.cwd())
    yield "disk", f"{f'{free / 1e9:.1f} GB' if free < sys.maxsize else 'an unknown space'} free in {Path.cwd()}"
    if tool := nsys.find():
        version, deaf = nsys.describe(tool)
        yield "nsys", deaf or f"{version}, {tool}"
    driver = find_driver()
    if driver is None or not driver.gpus:
        yield "gpu", "none: no NVIDIA driver or no device was found; runs use the CPU"
        return
    yield "gpu", f"{', '.join(driver.gpus)}; the driver runs CUDA {driver.cuda[0]}.{driver.cuda[1]}"
    install = how_to_install_cupy(driver)
    if find_spec("cupy") is None:
        yield "cupy", f"not installed; get it with: {install}"
        return
    yield from _cupy(install)


def _cupy(install: str) -> Iterator[Finding]:
    try:
        import cupy

        free, total = cupy.cuda.runtime.memGetInfo()
        yield "cupy", f"{cupy.__version__}, CUDA runtime {cupy.cuda.runtime.runtimeGetVersion()}"
        yield "gpu memory", f"{free / 1e9:.1f} GB free of {total / 1e9:.1f} GB"
    except Exception as error:
        yield "cupy", f"does not start: {one_line(error)}; reinstall with: {install}"
        return
    try:
        cupy.RawKernel('extern "C" __global__ void probe() {}', "probe").compile()
        yield "nvrtc", "compiles"
    except Exception as error:
        yield "nvrtc", f"does not compile: {one_line(error)}; reinstall with: {install}"
