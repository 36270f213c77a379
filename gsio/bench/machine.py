"""A description of the machine for the head of a table."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from gsio.machine import find_driver, usable_cores

PACKAGES = "gsio", "numpy", "numba", "h5py", "zarr", "jax", "torch", "nvidia-cupynumeric", "tensorstore"


def facts() -> dict[str, str]:
    """Return processor, GPU and versions, by name."""
    found = {"processor": f"{_processor()}, {usable_cores()} cores usable"}
    if (driver := find_driver()) and driver.gpus:
        found["GPU"] = f"{', '.join(driver.gpus)}; driver {_driver()}, CUDA {driver.cuda[0]}.{driver.cuda[1]}"
    packages = [f"{name} {_version(name)}" for name in ("cupy-cuda12x", "cupy-cuda13x", *PACKAGES) if _version(name)]
    found["software"] = ", ".join([f"Python {platform.python_version()}", *packages])
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _driver() -> str:
    try:  # NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.82.07  …
        words = Path("/proc/driver/nvidia/version").read_text().split()
    except OSError:
        return "unknown"
    return next((word for word in words if word[0].isdigit() and "." in word), "unknown")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
