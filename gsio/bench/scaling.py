"""The speed of a run by the size of the grid, the steps between two frames, and the number of encoding threads."""

from pathlib import Path
from typing import Any

from gsio.bench.check import checked_solver
from gsio.bench.compute import main_grid, size_of
from gsio.bench.storage import stored
from gsio.bench.tables import Column, Measurement, Options, Row, Table
from gsio.config import load_config
from gsio.frames.block import BlockPool
from gsio.machine import usable_cores
from gsio.run.plan import layout_of, pool_size, with_codec

SIDES = 128, 256, 512, 1024, 2048, 4096, 8192, 16384
STEPS = 1, 4, 16, 32, 128, 1024
MAX_FACTOR = 20  # small grids save more frames than asked for, up to this factor


def table(options: Options) -> Table:
    """Return rows that differ from the main job in one property and take about the same number of cell updates."""
    frames = min(options.frames, 20) if options.quick else options.frames
    grid = main_grid(options)
    cells = grid["grid.rows"] * grid["grid.cols"]
    largest = 512 if options.quick else SIDES[-1] if options.device == "gpu" else 4096
    rows = [
        _row(f"{side}²", {"grid.rows": side, "grid.cols": side}, frames * cells / side**2, frames)
        for side in SIDES
        if side <= largest
    ]
    rows += [
        _row(f"{steps} steps a frame", {**grid, "run.steps_per_frame": steps}, frames * 32 / steps, frames)
        for steps in STEPS
    ]
    cores = usable_cores()
    threads = sorted({*(2**i for i in range(cores.bit_length()) if 2**i <= cores), cores})
    rows += [_row(f"{count} encoding threads", {**grid, "output.threads": count}, frames, frames) for count in threads]
    columns = [
        Column("frames", "frames", "g"),
        Column("loop, s", "loop", spread=True),
        Column("Gcell/s", "rate"),
        Column("GB/s of frames", "speed"),
        Column("error", "error", ".1e"),
    ]
    return Table(f"{size_of(grid)}, 32 steps a frame, HDF5, but for what the row says", rows, columns)


def _row(name: str, changes: dict[str, Any], frames: float, asked: int) -> Row:
    return Row(name, [{**changes, "run.frames": max(2, min(round(frames), MAX_FACTOR * asked))}])


def measure(folder: Path, device: str, changes: dict[str, Any]) -> Measurement:
    """Check the solver of a run, then save the run."""
    backend, output = "cupy" if device == "gpu" else "numba", folder / "run.h5"
    config = with_codec(load_config(overrides={"run.backend": backend, **changes}, environ={}), output)
    solver, error = checked_solver(config, device)
    layout, frames = layout_of(config, config.run.backend), config.run.frames
    pool = BlockPool(layout, pool_size(config, layout), solver.allocate)
    loop = stored(config, output, layout, solver, pool)["loop"]
    cells = frames * config.run.steps_per_frame * layout.frame.cells
    return {
        "frames": frames,
        "loop": loop,
        "rate": cells / loop / 1e9,
        "speed": frames * layout.frame.frame_nbytes / loop / 1e9,
        "error": error,
    }
