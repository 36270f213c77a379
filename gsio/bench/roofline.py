"""The two roofs of a machine: what it copies in memory, and what it computes, float32."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from gsio.bench.tables import Measurement
from gsio.machine import usable_cores

NBYTES = 1 << 30  # of one array that is copied: more than any cache holds
SIDE = {"gpu": 8192, "cpu": 2048}  # of matrices that are multiplied
OPERATIONS = 24  # of a time step of one cell, both fields: two sums of nine cells in two passes, then the equations


def measure(folder: Path, device: str) -> Measurement:
    """Return `bandwidth`, GB/s read and written by a copy, and `operations`, 10⁹ a second in a product of matrices."""
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
