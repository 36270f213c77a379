"""The time to copy frames from the GPU to the host, beside the time of their steps."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from gsio.bench.check import checked_solver
from gsio.bench.compute import LARGE, MAIN
from gsio.bench.tables import Column, Measurement, Options, Row, Table
from gsio.config import load_config
from gsio.run.plan import layout_of

FRAMES, STEPS = 20, 32
WAYS = {  # the steps before each copy (0: no steps), and the kind of host memory
    "the steps of a frame, nothing copied": (STEPS, ""),
    "a frame copied, pageable": (0, "pageable"),
    "a frame copied, pinned": (0, "pinned"),
    "copied after each step, pageable": (1, "pageable"),
    "copied after each step, pinned": (1, "pinned"),
    "copied after the steps, pageable": (STEPS, "pageable"),
    "copied after the steps, pinned": (STEPS, "pinned"),
    "copied while the next frame is computed, pinned": (STEPS, "overlapped"),
}


def table(options: Options) -> Table:
    """Return a row for each way to copy, for the grid of the main job and a large one; the table needs a GPU."""
    grids = {"1080 × 1920": MAIN} if options.quick else {"1080 × 1920": MAIN, "16384²": LARGE}
    columns = [
        Column("ms a frame", "milliseconds", spread=True),
        Column("GB/s copied", "speed"),
        Column("in steps", "steps"),
        Column("error", "error", ".1e"),
    ]
    rows = [Row(f"{name}: {way}", [way, grid]) for name, grid in grids.items() for way in WAYS]
    return Table(f"a frame is v, float32, {STEPS} steps after the one before", rows, columns, timeout=120)


def measure(folder: Path, device: str, way: str, changes: dict[str, Any]) -> Measurement:
    """Measure one way to copy frames from the GPU, and the steps alone."""
    config = load_config(overrides={"run.backend": "cupy", **changes}, environ={})
    solver: Any
    solver, error = checked_solver(config, device)
    import cupy

    every, memory = WAYS[way]
    nbytes = layout_of(config).frame.frame_nbytes
    host = np.ones(nbytes, np.uint8) if memory == "pageable" else solver.allocate(nbytes)
    frame, computed = cupy.zeros(nbytes, cupy.uint8), cupy.cuda.Event(disable_timing=True)
    stream = link = solver.stream
    if memory == "overlapped":
        link = cupy.cuda.Stream(non_blocking=True)

    def copy() -> None:
        computed.record(stream)
        link.wait_event(computed)
        to_host = cupy.cuda.runtime.memcpyDeviceToHost
        cupy.cuda.runtime.memcpyAsync(host.ctypes.data, frame.data.ptr, nbytes, to_host, link.ptr)

    def make_frame() -> None:
        for _ in range(STEPS // every if every else 1):
            if every:
                solver.advance(every)
            if memory:
                copy()

    def seconds() -> float:
        start = time.perf_counter()
        for _ in range(FRAMES):
            make_frame()
        stream.synchronize()
        link.synchronize()
        return (time.perf_counter() - start) / FRAMES

    seconds()  # compiles the kernels and captures the graphs
    taken, step = seconds(), solver.seconds(STEPS, FRAMES) / FRAMES / STEPS
    found = {"milliseconds": 1e3 * taken, "steps": taken / step, "error": error}
    if memory:
        found["speed"] = nbytes * (STEPS // every if every else 1) / taken / 1e9
    return found
