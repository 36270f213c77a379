"""What the NVIDIA driver says of this machine, asked without CuPy."""

import ctypes
from typing import NamedTuple


class Driver(NamedTuple):
    """The driver's version of CUDA, (major, minor), and the names of its GPUs."""

    cuda: tuple[int, int]
    gpus: tuple[str, ...]


def find_driver() -> Driver | None:
    """Return what the driver knows, or None where there is no driver or it does not start."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version, count = ctypes.c_int(), ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDriverGetVersion(ctypes.byref(version)) or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return None
    names = []
    for ordinal in range(count.value):
        name = ctypes.create_string_buffer(256)
        cuda.cuDeviceGetName(name, len(name), ordinal)
        names.append(name.value.decode())
    return Driver((version.value // 1000, version.value % 1000 // 10), tuple(names))


def one_line(error: Exception) -> str:
    """Return the first line of what CuPy reports, which can be long or empty."""
    return (str(error) or type(error).__name__).splitlines()[0]


def how_to_install_cupy(driver: Driver) -> str:
    """Return the command that installs the CuPy this driver can run."""
    return f"pip install 'gsio[cuda{13 if driver.cuda >= (13, 0) else 12}]'"
