"""The Gray Scott School's job by every backend: 1000 frames of 1080 × 1920 float32, 32 steps apart, in one HDF5 file.

Each backend saves its frames in three ways: by h5py in the loop, by h5py in a thread that may be a few frames behind,
and by gsio. The solver is checked against the reference first, and the last frame of each file against the solver.
"""

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gsio.bench.check import checked_solver
from gsio.bench.compute import CONTENDERS, contenders, main_grid, size_of
from gsio.bench.storage import stored
from gsio.bench.tables import Column, Measurement, Options, Row, Table
from gsio.compute.cuda.sources import RUNGS
from gsio.compute.solver import Solver
from gsio.config import Config, load_config
from gsio.frames.block import BlockPool
from gsio.run.plan import layout_of, pool_size, with_codec

MAX_WAITING = 4  # frames between the loop and the thread that writes
QUICK = {"gpu": 50, "cpu": 5}  # frames
SLOW = "jax-convolve", "jax-scan", "torch-compile", "cupynumeric"  # these take minutes to start


def table(options: Options) -> Table:
    """Return a row for each backend except the reference."""
    backends = [name for name in contenders(options.device) if name not in RUNGS]
    frames, grid = options.frames, main_grid(options)
    if options.quick:
        backends = [name for name in backends if name not in SLOW]
        frames = min(frames, QUICK[options.device])
    columns = [
        Column("h5py in the loop, s", "synchronous", spread=True),
        Column("h5py in a thread, s", "threaded", spread=True),
        Column("saved by gsio, s", "gsio", spread=True),
        Column("the fastest / the first row's", "best", relative=True),
        Column("error", "error", ".1e"),
        Column("device", "device"),
    ]
    rows = [Row(CONTENDERS[backend].label, [backend, {**grid, "run.frames": frames}]) for backend in backends]
    title = f"{frames} frames of {size_of(grid)} float32, 32 steps apart, from the first step until all are in the file"
    return Table(title, rows, columns, timeout=900)


def measure(folder: Path, device: str, backend: str, changes: dict[str, Any]) -> Measurement:
    """Save the frames of one backend in three ways, first by gsio; h5py does not compress, so content is no matter."""
    output = folder / "run.h5"
    config = with_codec(load_config(overrides={"run.backend": backend, **changes}, environ={}), output)
    solver, error = checked_solver(config, device)
    found: Measurement = {"error": error, "device": solver.device}
    for name, save in (("gsio", by_gsio), ("synchronous", in_the_loop), ("threaded", in_a_thread)):
        found[name] = save(solver, config, output)
        with h5py.File(output) as file:
            if len(file["v"]) != config.run.frames or (file["v"][-1] != solver.field("v")).any():
                raise ValueError(f"expected the solver's fields in the last of {config.run.frames} frames, got others")
        output.unlink()
    return {**found, "best": min(found[name] for name in ("synchronous", "threaded", "gsio"))}


@contextmanager
def dataset(config: Config, output: Path) -> Iterator[Any]:
    """Give an uncompressed dataset with a frame in each chunk, and close the file at the end."""
    shape = layout_of(config).frame.shape
    with h5py.File(output, "w") as file:
        yield file.create_dataset("v", (config.run.frames, *shape), np.float32, chunks=(1, *shape))


def in_the_loop(solver: Solver, config: Config, output: Path) -> float:
    """Compute and write one frame after the other."""
    start = time.perf_counter()
    with dataset(config, output) as frames:
        for number in range(config.run.frames):
            solver.advance(config.run.steps_per_frame)
            frames[number] = solver.field("v")
    return time.perf_counter() - start


def in_a_thread(solver: Solver, config: Config, output: Path) -> float:
    """Compute frames while a thread writes the frames before them."""
    writing: deque[Future[None]] = deque()
    start = time.perf_counter()
    with dataset(config, output) as frames, ThreadPoolExecutor(1) as thread:
        for number in range(config.run.frames):
            solver.advance(config.run.steps_per_frame)
            writing.append(thread.submit(frames.__setitem__, number, solver.field("v")))
            if len(writing) > MAX_WAITING:
                writing.popleft().result()
        for written in writing:
            written.result()
    return time.perf_counter() - start


def by_gsio(solver: Solver, config: Config, output: Path) -> float:
    """Save the frames as `gsio run` does."""
    layout = layout_of(config, config.run.backend)
    pool = BlockPool(layout, pool_size(config, layout), solver.allocate)
    return float(stored(config, output, layout, solver, pool)["loop"])
