"""The time steps alone, of gsio and of its peers, from a random start; nothing is saved.

The GPU's own clock times gsio. The host's clock times the others, without the copy that waits for them.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from gsio.bench.check import checked_solver
from gsio.bench.ladder import MAX_STEPS, solver_of
from gsio.bench.tables import Column, Measurement, Options, Row, Table
from gsio.compute.solver import Solver
from gsio.config import load_config
from gsio.machine import usable_cores
from gsio.model.gray_scott import largest_eigenvalue
from gsio.run.plan import layout_of

MIN_SECONDS = 0.3  # of one measurement
SLOW = ("torch-compile",)  # these take minutes to start
MAIN = {"grid.rows": 1080, "grid.cols": 1920}
LARGE = {"grid.rows": 16384, "grid.cols": 16384}
SMALL = {"grid.rows": 256, "grid.cols": 256}
BATCH = {**SMALL, "model.feed": [0.014 + 0.0005 * i for i in range(64)]}
RAMP = {
    "model.feed": {"along": "y", "start": 0.01, "stop": 0.06},
    "model.kill": {"along": "x", "start": 0.05, "stop": 0.07},
}
RANDOM = {"initial.kind": "noise", "initial.u": 0.5, "initial.v": 0.25, "initial.amplitude": 0.25}


def table(options: Options) -> Table:
    """Return every kind of grid for gsio, and the peers on some."""
    rows = _cpu_rows() if options.device == "cpu" else _gpu_rows()
    if options.quick:
        grid = main_grid(options)
        rows = [_row(size_of(grid), peer, grid) for peer in contenders(options.device) if peer not in SLOW]
    columns = [Column("Gcell/s", "rate", spread=True), Column("error", "error", ".1e"), Column("tiling", "tiling")]
    return Table("time steps, nothing saved; 32 steps a frame where not said", rows, columns, timeout=120)


def main_grid(options: Options) -> dict[str, int]:
    """Return the grid of the main job, or a small one where there is little time and no GPU."""
    return {"grid.rows": 270, "grid.cols": 480} if options.quick and options.device == "cpu" else MAIN


def size_of(grid: dict[str, int]) -> str:
    """Return rows × columns."""
    return f"{grid['grid.rows']} × {grid['grid.cols']}"


def contenders(device: str) -> list[str]:
    """Return the names of the contenders on a device; on a GPU these include gsio on the CPU."""
    return [name for name, contender in CONTENDERS.items() if device == "gpu" or not contender.needs_gpu]


def _row(grid: str, contender: str, changes: dict[str, Any]) -> Row:
    return Row(f"{grid}, {CONTENDERS[contender].label}", [contender, changes])


def _cpu_rows() -> list[Row]:
    grids = {"1080 × 1920": MAIN, "256²": SMALL, "8192²": {"grid.rows": 8192, "grid.cols": 8192}}
    return [
        *(
            _row(f"{name}, {threads} threads", "numba", {**grid, "run.threads": threads})
            for name, grid in grids.items()
            for threads in (1, usable_cores())
        ),
        _row("1080 × 1920, float64", "numba", {**MAIN, "model.precision": "float64"}),
        *(_row(name, "jax", grid) for name, grid in grids.items()),
        *(_row("1080 × 1920", peer, MAIN) for peer in ("jax-convolve", "jax-scan", "torch", "torch-compile")),
    ]


def _gpu_rows() -> list[Row]:
    rows = [_row("1080 × 1920, 1024 steps a frame", "cupy", {**MAIN, "run.steps_per_frame": 1024})]
    for name, grid in (("1080 × 1920", MAIN), ("16384²", LARGE)):
        rows.append(_row(name, "cupy", grid))
        variants = {stencil: _stable(stencil) for stencil in ("five-point", "patra-karttunen", "ones")}
        variants |= {boundary: {"grid.boundary": boundary} for boundary in ("neumann", "zero")}
        variants |= {"float64": {"model.precision": "float64"}, "ramps of feed and kill": RAMP}
        rows += [_row(f"{name}, {what}", "cupy", {**grid, **changes}) for what, changes in variants.items()]
    rows += [
        _row("64 × 256²", "cupy", BATCH),
        _row("256²", "cupy", SMALL),
        _row("2160 × 3840", "cupy", {"grid.rows": 2160, "grid.cols": 3840}),
        _row("1079 × 1921", "cupy", {"grid.rows": 1079, "grid.cols": 1921}),
    ]
    peers = [peer for peer in CONTENDERS if peer not in ("cupy", "numba")]
    rows += [_row("1080 × 1920", peer, MAIN) for peer in peers]
    rows += [_row("16384²", peer, LARGE) for peer in ("naive", "cupy-arrays", "jax", "torch", "torch-compile")]
    return [*rows, _row("256²", "jax", SMALL)]


def _stable(stencil: str) -> dict[str, Any]:
    """Return a stencil and diffusions with which a step spreads no further than one of the default stencil."""
    weaker = largest_eigenvalue("oono-puri") / largest_eigenvalue(stencil)
    return {
        "model.stencil": stencil,
        "model.diffusion_u": min(0.1, 0.1 * weaker),
        "model.diffusion_v": min(0.05, 0.05 * weaker),
    }


def measure(folder: Path, device: str, contender: str, changes: dict[str, Any]) -> Measurement:
    """Check one contender, then time it; one frame at least, as many as take `MIN_SECONDS`."""
    backend = "cupy" if contender in MAX_STEPS else contender
    config = load_config(overrides={**RANDOM, "run.backend": backend, **changes}, environ={})
    solver, error = checked_solver(config, device, partial(solver_of, contender) if contender in MAX_STEPS else None)
    how = CONTENDERS[contender]
    steps, cells = config.run.steps_per_frame, layout_of(config).frame.cells
    solver.advance(steps)
    times = 1
    while (taken := how.seconds(solver, steps, times)) < MIN_SECONDS and times < 100_000:
        times = max(2 * times, int(1.2 * times * MIN_SECONDS / max(taken, MIN_SECONDS / 100)))
    found = {"rate": cells * steps * times / taken / 1e9, "error": error, "tiling": how.tiling(solver)}
    if config.run.steps_per_frame == 32 and config.model.precision == "float32":
        found["traffic"] = 16 * how.passes(solver, steps) / steps
    return found


def wall_seconds(solver: Solver, steps: int, times: int) -> float:
    """Return the seconds of `times` frames by the host's clock, without those of the copy that waits for the frames."""
    solver.field("v")
    start = time.perf_counter()
    solver.field("v")
    copied = time.perf_counter()
    for _ in range(times):
        solver.advance(steps)
    solver.field("v")
    return (time.perf_counter() - copied) - (copied - start)


def _passes_of_numba(solver: Any, steps: int) -> int:
    return int(-(-steps // solver.cut.steps))


class Contender(NamedTuple):
    """What a table shows of a solver, and how a measurement asks it.

    `seconds(solver, steps, times)` is the time of `times` frames, and `passes(solver, steps)` the number of times that
    `steps` steps read and write the fields; a peer that does not tell makes at least one pass a step.
    """

    label: str
    needs_gpu: bool = False
    seconds: Callable[[Any, int, int], float] = wall_seconds
    passes: Callable[[Any, int], int] = lambda solver, steps: steps
    tiling: Callable[[Any], str] = lambda solver: ""


CONTENDERS = {
    "cupy": Contender(
        "gsio, CUDA",
        needs_gpu=True,
        seconds=lambda solver, steps, times: solver.seconds(steps, times),
        passes=lambda solver, steps: solver.launches(steps),
        tiling=lambda solver: str(solver.tiling),
    ),
    "numba": Contender("gsio, CPU", passes=_passes_of_numba),
    "naive": Contender("naive fused kernel", needs_gpu=True),
    "fused": Contender(
        "steps in shared memory", needs_gpu=True, passes=lambda solver, steps: -(-steps // MAX_STEPS["fused"])
    ),
    "cupy-arrays": Contender("CuPy slices, fused", needs_gpu=True),
    "jax": Contender("JAX slices, fori_loop"),
    "jax-convolve": Contender("JAX convolve, fori_loop"),
    "jax-scan": Contender("JAX slices, scan"),
    "torch": Contender("PyTorch conv2d"),
    "torch-compile": Contender("PyTorch slices, compiled"),
    "cupynumeric": Contender("cuPyNumeric slices", needs_gpu=True),
}
