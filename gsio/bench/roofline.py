"""The two roofs of a machine: the bandwidth of its memory, and its float32 operations a second."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from gsio.bench.tables import Measurement
from gsio.machine import usable_cores

NBYTES = 1 << 30  # of the array to copy, which is larger than any cache
SIDE = {"gpu": 8192, "cpu": 2048}  # of the matrices to multiply
OPERATIONS = 24  # a cell and step: for both fields a sum of nine cells in two passes, and the equations


def measure(folder: Path, device: str) -> Measurement:
    """Return the `bandwidth` of a copy, GB/s read and written, and the `operations` of a matrix product, 10⁹/s."""
    side = SIDE[device]
    xp: Any = np
    if device == "gpu":
        import cupy as xp  # type: ignore[no-redef]
    matrix, old = xp.ones((side, side), np.float32), xp.ones(NBYTES, np.uint8)
    new = xp.empty_like(old)

    def copy() -> None:
        if device == "gpu":
            new[:] = old
        else:
            with ThreadPoolExecutor(usable_cores()) as threads:
                list(threads.map(np.copyto, np.array_split(new, usable_cores()), np.array_split(old, usable_cores())))

    def fastest(work: Callable[[], Any]) -> float:
        taken = []
        for _ in range(5):
            start = time.perf_counter()
            work()
            if device == "gpu":
                xp.cuda.runtime.deviceSynchronize()
            taken.append(time.perf_counter() - start)
        return min(taken)

    return {
        "bandwidth": 2 * NBYTES / fastest(copy) / 1e9,
        "operations": 2 * side**3 / fastest(lambda: matrix @ matrix) / 1e9,
    }
