"""How fast are the time steps, and how fast is storage? A table of each, gsio beside its peers; all rows are checked.

    python profiling/bench.py compute [--device gpu|cpu] [--only TEXT] [--repeats 5]
    python profiling/bench.py storage [--device gpu|cpu] [--only TEXT] [--repeats 3] [--folder PATH] [--frames 1000]

Each row runs in a process of its own, so that none holds memory another needs; figures are medians of the repeats.

compute: before it is timed, a row is compared with the float64 reference. On a GPU every contender but JAX and PyTorch
is timed with CUDA events. A start is random, of float32 values.

storage: the main job, 32 steps a frame, into a temporary folder; all rows, then all again. The loop lasts from the
first step until the operating system has everything, `durable` until the disk has it. In the first round three frames
of every output are read back by a stock reader and compared, byte for byte, with those of a solver that saves nothing.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from storage import DENSE_STEPS, Row, measure_storage, storage_rows

from gsio import log
from gsio.compute import open_solver
from gsio.compute.reference import step
from gsio.config import Config, load_config, usable_cores
from gsio.initial import Start, initial_state
from gsio.staging import layout_of

SECONDS = 0.3  # of one measurement, at least
TOLERANCE = {"float32": 2e-6, "float64": 1e-14}
MAIN = {"grid.rows": 1080, "grid.cols": 1920}
LARGE = {"grid.rows": 16384, "grid.cols": 16384}
SMALL = {"grid.rows": 256, "grid.cols": 256}
BATCH = {**SMALL, "model.feed": [0.014 + 0.0005 * i for i in range(64)]}
RAMP = {
    "model.feed": {"along": "y", "start": 0.01, "stop": 0.06},
    "model.kill": {"along": "x", "start": 0.05, "stop": 0.07},
}

NAIVE = r"""
extern "C" __global__ void naive(const float* u, const float* v, float* u_new, float* v_new, int rows, int cols,
                                 float du, float dv, float feed, float decay)
{
    const int c = blockIdx.x * blockDim.x + threadIdx.x, r = blockIdx.y * blockDim.y + threadIdx.y;
    if (r >= rows || c >= cols) return;
    const int up = r ? r - 1 : rows - 1, down = r + 1 < rows ? r + 1 : 0;
    const int left = c ? c - 1 : cols - 1, right = c + 1 < cols ? c + 1 : 0;
#define AT(f, r, c) f[(size_t)(r) * cols + (c)]
#define LAPLACIAN(f) (0.25f * (AT(f, up, left) + AT(f, up, right) + AT(f, down, left) + AT(f, down, right)) \
                    + 0.5f * (AT(f, up, c) + AT(f, down, c) + AT(f, r, left) + AT(f, r, right)) - 3 * AT(f, r, c))
    const float a = AT(u, r, c), b = AT(v, r, c), reaction = a * b * b;
    AT(u_new, r, c) = a + (du * LAPLACIAN(u) - reaction + feed * (1 - a));
    AT(v_new, r, c) = b + (dv * LAPLACIAN(v) + reaction - decay * b);
}
"""


LIBRARIES = "h5py", "zarr", "tensorstore", "numcodecs"
DESCRIPTION = f"""GB/s of raw frames, in the loop
dense: started from 5000 spots, {DENSE_STEPS} steps before the first frame; memory: the largest resident set
codec alone: the loop encodes and writes frames kept in memory"""


class Gsio:
    """The solver a run would use."""

    def __init__(self, config: Config, start: Start) -> None:
        self.solver: Any = open_solver(config, layout_of(config), 1, lambda _: start)
        self.steps = config.run.steps_per_frame

    def advance(self) -> None:
        """Advance by the steps of a frame."""
        self.solver.advance(self.steps)

    def fields(self) -> Any:
        """Return u and v on the host."""
        return self.solver.fields()

    def seconds(self, times: int) -> float:
        """Return the seconds so many frames take: one CUDA graph, timed by events."""
        if self.solver.backend != "cupy":
            return wall(self.advance, lambda: None, times)
        return graph_seconds(self.solver._device, self.solver._compute, lambda: self.solver._advance(self.steps), times)


class Naive:
    """One fused time step a launch, one thread a cell, 32 launches in a CUDA graph."""

    def __init__(self, config: Config, start: Start) -> None:
        import cupy

        self.kernel = cupy.RawKernel(NAIVE, "naive")
        self.fields_ = [cupy.asarray(f, np.float32) for f in start[:2]]
        self.other = [cupy.empty_like(f) for f in self.fields_]
        model = config.model
        rates = model.diffusion_u, model.diffusion_v, model.feed, model.feed + model.kill  # type: ignore[operator]
        self.rates = [np.float32(rate) for rate in rates]
        self.steps = config.run.steps_per_frame
        self.stream = cupy.cuda.Stream(non_blocking=True)
        cupy.cuda.runtime.deviceSynchronize()

    def advance(self) -> None:
        """Advance by the steps of a frame."""
        rows, cols = self.fields_[0].shape
        with self.stream:
            for _ in range(self.steps):
                grid = (-(-cols // 32), -(-rows // 8))
                sizes = (np.int32(rows), np.int32(cols))
                self.kernel(grid, (32, 8), (*self.fields_, *self.other, *sizes, *self.rates))
                self.fields_, self.other = self.other, self.fields_

    def fields(self) -> Any:
        """Return u and v on the host."""
        self.stream.synchronize()
        return [field.get() for field in self.fields_]

    def seconds(self, times: int) -> float:
        """Return the seconds so many frames take."""
        import cupy

        return graph_seconds(cupy.cuda.Device(0), self.stream, self.advance, times)


def laplacian_of_slices(xp: Any, f: Any, pad: Callable[[Any], Any]) -> Any:
    """Return the oono-puri Laplacian as a sum of nine slices of the padded field."""
    p, (rows, cols) = pad(f), f.shape
    weights = ((0.25, 0.5, 0.25), (0.5, -3.0, 0.5), (0.25, 0.5, 0.25))
    return sum(weights[i][j] * p[i : i + rows, j : j + cols] for i in range(3) for j in range(3))


class Jax:
    """3 × 3 slices under `jit`, the steps of a frame one `lax.fori_loop`, as its documentation advises."""

    def __init__(self, config: Config, start: Start) -> None:
        import jax
        import jax.numpy as jnp

        m, steps = config.model, config.run.steps_per_frame

        def one(_: Any, fields: Any) -> Any:
            u, v = fields
            lap_u, lap_v = (laplacian_of_slices(jnp, f, lambda f: jnp.pad(f, 1, mode="wrap")) for f in (u, v))
            reaction = u * v * v
            return (
                u + m.dt * (m.diffusion_u * lap_u - reaction + m.feed * (1 - u)),
                v + m.dt * (m.diffusion_v * lap_v + reaction - (m.feed + m.kill) * v),
            )

        self.run = jax.jit(lambda fields: jax.lax.fori_loop(0, steps, one, fields), donate_argnums=0)
        self.state = tuple(jnp.asarray(f, jnp.float32) for f in start[:2])

    def advance(self) -> None:
        """Advance by the steps of a frame."""
        self.state = self.run(self.state)

    def fields(self) -> Any:
        """Return u and v on the host."""
        return [np.asarray(f) for f in self.state]

    def seconds(self, times: int) -> float:
        """Return the seconds so many frames take."""
        return wall(self.advance, lambda: self.state[0].block_until_ready(), times)


class Torch:
    """`conv2d` over a circular padding, eager."""

    compiled = False

    def __init__(self, config: Config, start: Start) -> None:
        import torch
        from torch.nn.functional import conv2d, pad

        self.torch, m = torch, config.model
        where = "cuda" if torch.cuda.is_available() else "cpu"
        kernel = torch.tensor([[0.25, 0.5, 0.25], [0.5, -3.0, 0.5], [0.25, 0.5, 0.25]], device=where)

        def of_conv(f: Any) -> Any:
            return conv2d(pad(f[None, None], (1, 1, 1, 1), mode="circular"), kernel[None, None])[0, 0]

        def of_slices(f: Any) -> Any:
            return laplacian_of_slices(torch, f, lambda f: pad(f[None, None], (1, 1, 1, 1), mode="circular")[0, 0])

        laplacian = of_slices if self.compiled else of_conv

        def one(u: Any, v: Any) -> Any:
            reaction = u * v * v
            return (
                u + m.dt * (m.diffusion_u * laplacian(u) - reaction + m.feed * (1 - u)),
                v + m.dt * (m.diffusion_v * laplacian(v) + reaction - (m.feed + m.kill) * v),
            )

        self.one = torch.compile(one) if self.compiled else one
        self.steps = config.run.steps_per_frame
        self.state = tuple(torch.tensor(f, dtype=torch.float32, device=where) for f in start[:2])
        self.wait = torch.cuda.synchronize if where == "cuda" else lambda: None

    def advance(self) -> None:
        """Advance by the steps of a frame."""
        with self.torch.no_grad():
            for _ in range(self.steps):
                self.state = self.one(*self.state)

    def fields(self) -> Any:
        """Return u and v on the host."""
        return [f.cpu().numpy() for f in self.state]

    def seconds(self, times: int) -> float:
        """Return the seconds so many frames take."""
        return wall(self.advance, self.wait, times)


class TorchCompiled(Torch):
    """3 × 3 slices under `torch.compile`."""

    compiled = True


CONTENDERS = {"gsio": Gsio, "naive": Naive, "jax": Jax, "torch": Torch, "torch.compile": TorchCompiled}
PEERS = {
    "naive": "naive fused kernel",
    "jax": "JAX 3×3",
    "torch": "PyTorch conv2d",
    "torch.compile": "PyTorch 3×3, compiled",
}


def wall(advance: Callable[[], None], wait: Callable[[], None], times: int) -> float:
    """Return the seconds of `times` calls by the host's clock."""
    wait()
    start = time.perf_counter()
    for _ in range(times):
        advance()
    wait()
    return time.perf_counter() - start


def graph_seconds(device: Any, stream: Any, advance: Callable[[], None], times: int) -> float:
    """Return the seconds of an even number of calls, captured as one CUDA graph, by events."""
    import cupy

    with device, stream:
        stream.begin_capture()
        for _ in range(times):
            advance()
        graph = stream.end_capture()
        graph.launch(stream)
        before, after = cupy.cuda.Event(), cupy.cuda.Event()
        before.record(stream)
        graph.launch(stream)
        after.record(stream)
        after.synchronize()
    return float(cupy.cuda.get_elapsed_time(before, after)) / 1e3


def rows_of(device: str) -> list[tuple[str, str, dict[str, Any]]]:
    """Return what is measured: name, contender, changes of the configuration."""
    if device == "cpu":
        grids = {"1080 × 1920": MAIN, "256²": SMALL, "8192²": {"grid.rows": 8192, "grid.cols": 8192}}
        cores = usable_cores()
        return [
            *(
                (f"{name}, {threads} threads", "gsio", {**grid, "run.threads": threads})
                for name, grid in grids.items()
                for threads in (1, cores)
            ),
            ("1080 × 1920, float64", "gsio", {**MAIN, "model.precision": "float64"}),
            *((f"{name}, {PEERS['jax']}", "jax", grid) for name, grid in grids.items()),
            *((f"1080 × 1920, {PEERS[peer]}", peer, MAIN) for peer in ("torch", "torch.compile")),
        ]
    rows = [
        ("1080 × 1920", "gsio", MAIN),
        ("1080 × 1920, 1024 steps a frame", "gsio", {**MAIN, "run.steps_per_frame": 1024}),
        ("16384²", "gsio", LARGE),
    ]
    for name, grid in (("1080 × 1920", MAIN), ("16384²", LARGE)):
        rows += [
            (f"{name}, {s}", "gsio", {**grid, "model.stencil": s}) for s in ("five-point", "patra-karttunen", "ones")
        ]
        rows += [(f"{name}, {b}", "gsio", {**grid, "grid.boundary": b}) for b in ("neumann", "zero")]
        rows += [(f"{name}, float64", "gsio", {**grid, "model.precision": "float64"})]
        rows += [(f"{name}, ramps of feed and kill", "gsio", {**grid, **RAMP})]
    rows += [
        ("64 × 256²", "gsio", BATCH),
        ("256²", "gsio", SMALL),
        ("2160 × 3840", "gsio", {"grid.rows": 2160, "grid.cols": 3840}),
        ("1079 × 1921", "gsio", {"grid.rows": 1079, "grid.cols": 1921}),
    ]
    for name, grid in (("1080 × 1920", MAIN), ("16384²", LARGE)):
        rows += [(f"{name}, {PEERS[peer]}", peer, grid) for peer in PEERS]
    return [*rows, (f"256², {PEERS['jax']}", "jax", SMALL)]


def measure(contender: str, changes: dict[str, Any], repeats: int, device: str) -> dict[str, Any]:
    """Check one contender, then time it."""
    log.configure("text", quiet=True)
    backend = "cupy" if device == "gpu" else "numba"
    changes = {"run.backend": backend, **changes}
    config = load_config(overrides=changes, environ={})
    layout, model = layout_of(config), config.model
    u, v = np.random.default_rng(0).random((2, *layout.shape), np.float32)
    start = initial_state(load_config(overrides={**changes, "initial.kind": "square"}, environ={}))
    start = start._replace(u=u.astype(np.float64), v=v.astype(np.float64))
    runner = CONTENDERS[contender](config, start)
    runner.advance()
    errors = [0.0, 0.0]
    if config.run.steps_per_frame <= 32:
        found = runner.fields()
        xp: Any = np
        if device == "gpu":
            import cupy as xp
        state = [xp.asarray(f) for f in start[:2]]
        rates = [xp.asarray(f) for f in start[2:]]
        for _ in range(config.run.steps_per_frame):
            state = list(step(*state, *rates, model, config.grid.boundary))
        errors = [
            float(xp.linalg.norm((xp.asarray(f) - s).ravel()) / xp.linalg.norm(s.ravel()))
            for f, s in zip(found, state, strict=True)
        ]
        del state, found
        if device == "gpu":
            xp.get_default_memory_pool().free_all_blocks()
        if max(errors) > (TOLERANCE[model.precision] if contender == "gsio" else 1e-4):
            return {"error": max(errors), "rates": []}
    cells = layout.cells * config.run.steps_per_frame
    times = 2
    while runner.seconds(times) < SECONDS and times < 4096:
        times *= 2
    rates = [cells * times / runner.seconds(times) / 1e9 for _ in range(repeats)]
    tiling = getattr(getattr(runner, "solver", None), "tiling", None)
    return {"error": max(errors), "rates": rates, "tiling": str(tiling or "")}


def in_process(job: list[Any], timeout: float) -> tuple[dict[str, Any], str]:
    """Measure one row in a process of its own; return what it found, or nothing and why."""
    environ = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    command = [sys.executable, __file__, "one", json.dumps(job)]
    try:
        run = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=timeout)
    except subprocess.TimeoutExpired:
        return {}, f"longer than {timeout:g} s"
    if run.returncode == 0:
        return json.loads(run.stdout.splitlines()[-1]), ""
    return {}, (run.stderr.strip().splitlines() or [f"exit code {run.returncode}"])[-1][:120]


def compute(arguments: argparse.Namespace) -> None:
    """Measure the time steps and print the table, row by row."""
    rows = [row for row in rows_of(arguments.device) if arguments.only in row[0]]
    print(f"Python {platform.python_version()}, medians of {arguments.repeats}; 32 steps a frame where not said\n")
    print("| grid | Gcell/s | min – max | error | tiling |\n|---|---|---|---|---|", flush=True)
    for name, contender, changes in rows:
        job = ["compute", contender, changes, arguments.repeats, arguments.device]
        found, reason = in_process(job, arguments.timeout)
        if not found.get("rates"):
            print(f"| {name} | not run | | {found.get('error', '')} | {reason} |", flush=True)
            continue
        rates = found["rates"]
        spread = f"{min(rates):.4g} – {max(rates):.4g}"
        print(
            f"| {name} | {statistics.median(rates):.4g} | {spread} | {found['error']:.1e} | {found['tiling']} |",
            flush=True,
        )


def storage(arguments: argparse.Namespace) -> None:
    """Measure storage, all rows and then all again, and print the table."""
    rows = [row for row in storage_rows(arguments.device, arguments.frames) if arguments.only in row.name]
    found: dict[str, list[dict[str, Any]]] = {row.name: [] for row in rows}
    reasons: dict[str, str] = {}
    for repeat in range(arguments.repeats):  # interleaved, so that a drift of the machine meets all alike
        for row in rows:
            if row.name in reasons:
                continue
            with tempfile.TemporaryDirectory(prefix="gsio-bench-", dir=arguments.folder) as folder:
                job = ["storage", row, arguments.device, folder, repeat == 0]
                one, reason = in_process(job, arguments.timeout)
            if wrong := one.get("wrong"):
                reason = f"frames {wrong} are not the solver's"
            if reason:
                reasons[row.name] = reason
            else:
                found[row.name].append(one)
            print(f"{repeat + 1}: {row.name}: {reason or round(one['loop'], 3)}", file=sys.stderr, flush=True)
    devices = {one["device"] for several in found.values() for one in several}
    print(f"{', '.join(devices)}; Python {platform.python_version()}, {', '.join(map(installed, LIBRARIES))}")
    print(f"in {arguments.folder or tempfile.gettempdir()}; medians of {arguments.repeats}; {DESCRIPTION}\n")
    print("| storage | frames | loop s | min – max | durable s | min – max | on disk GB | GB/s | memory GB | |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(storage_line(row, found[row.name], reasons.get(row.name, "")))


def storage_line(row: Row, found: list[dict[str, Any]], reason: str) -> str:
    """Return a row of the table of storage."""
    if reason:
        return f"| {row.name} | | not run | | | | | | | {reason} |"
    frames = found[0]["frames"]
    median = {key: statistics.median(one[key] for one in found) for key in found[0] if key not in ("device", "wrong")}
    times = " | ".join(
        f"{median[key]:.3f} | {min(one[key] for one in found):.3f} – {max(one[key] for one in found):.3f}"
        for key in ("loop", "durable")
    )
    note = f"{frames / median['loop']:.0f} frames/s"
    if "alone" in median:
        ratio = statistics.median(one["loop"] / one["alone"] for one in found)
        note = f"codec alone {median['alone']:.3f} s; with the writer {ratio:.3f} times that"
    sizes = f"{median['size'] / 1e9:.3f} | {median['nbytes'] / median['loop'] / 1e9:.2f} | {median['memory'] / 1e9:.2f}"
    return f"| {row.name} | {frames} | {times} | {sizes} | {note} |"


def installed(package: str) -> str:
    """Return the name and the version of a package."""
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"no {package}"


MEASURES = {"compute": measure, "storage": measure_storage}


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, print_table, repeats, timeout in (("compute", compute, 5, 120), ("storage", storage, 3, 600)):
        table = commands.add_parser(name)
        table.set_defaults(print_table=print_table)
        table.add_argument("--device", choices=["gpu", "cpu"], default="gpu")
        table.add_argument("--only", default="", metavar="TEXT", help="only rows whose name holds TEXT")
        table.add_argument("--repeats", type=int, default=repeats)
        table.add_argument("--timeout", type=float, default=timeout, metavar="S", help="seconds a row may take")
        if name == "storage":
            table.add_argument("--folder", type=Path, metavar="PATH", help="where to write; else the system's own")
            table.add_argument("--frames", type=int, default=1000, help="of the main job; other rows take a share")
    one = commands.add_parser("one")
    one.add_argument("job")
    arguments = parser.parse_args()
    if arguments.command == "one":
        what, *job = json.loads(arguments.job)
        print(json.dumps(MEASURES[what](*job)))
    else:
        arguments.print_table(arguments)


if __name__ == "__main__":
    main()
