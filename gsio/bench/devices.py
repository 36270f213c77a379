"""The time steps alone of one grid on several GPUs, beside one GPU and beside `shard_map` of JAX; nothing is saved.

Every row is measured on one GPU and on all of them in the same process. With strong scaling, all share the grid of the
one; with weak scaling, each gets a grid as large.
"""

import gc
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from gsio.bench.check import TOLERANCE
from gsio.bench.tables import Column, Measurement, Options, Row, Table
from gsio.config import Config, load_config, parse_devices
from gsio.errors import UsageError
from gsio.frames.content import Content
from gsio.frames.layout import BlockLayout
from gsio.machine import find_driver
from gsio.model.gray_scott import Field, coefficients
from gsio.model.start import Start
from gsio.run.initial import rates

GRIDS = {
    "16384²": (16384, 16384),
    "8192²": (8192, 8192),
    "32768²": (32768, 32768),
    "2160 × 3840": (2160, 3840),
    "1080 × 1920": (1080, 1920),
}
WEAK = "16384²", "8192²", "1080 × 1920"
OF_JAX = "16384²", "8192²"
STEPS = 32  # of a frame
SECONDS = 0.4  # of one measurement
TILE = 512  # the side of the noise that a start repeats: a random start of a large grid takes minutes


def table(options: Options) -> Table:
    """Return the grids with strong and with weak scaling, and some of them by JAX."""
    devices = numbers_of(options.devices)
    kinds = [(f"{name}, strong", "gsio", name, False) for name in GRIDS]
    kinds += [(f"{name}, weak", "gsio", name, True) for name in WEAK]
    kinds += [(f"{name}, strong, JAX shard_map", "jax", name, False) for name in OF_JAX]
    if options.quick:
        kinds = [kind for kind in kinds if kind[2] == "1080 × 1920"]
    rows = [Row(title, [library, *GRIDS[name], weak, devices]) for title, library, name, weak in kinds]
    columns = [
        Column("one GPU, Gcell/s", "one", spread=True),
        Column("all, Gcell/s", "all", spread=True),
        Column("all / one", "ratio", ".3f"),
        Column("efficiency", "each", ".1%"),
        Column("error", "error", ".1e"),
        Column("cut", "cut"),
    ]
    which = ", ".join(map(str, devices))
    return Table(f"time steps on the GPUs {which}; 32 steps a frame, nothing saved", rows, columns, timeout=180)


def numbers_of(devices: str) -> list[int]:
    """Return the numbers of the GPUs that a text such as "0,1" or "all" names; raise UsageError unless two or more."""
    found = parse_devices("--devices", devices)
    if found is None:
        driver = find_driver()
        found = tuple(range(len(driver.gpus) if driver is not None else 0))
    if len(found) < 2:
        raise UsageError(f"--devices: expected two GPUs or more, got {len(found)}; leave the option out for one GPU")
    return list(found)


def measure(
    folder: Path, device: str, library: str, rows: int, cols: int, weak: bool, devices: Sequence[int]
) -> Measurement:
    """Measure a grid on the first of some GPUs and on all, and compare the answers with that of gsio on one."""
    one, all_of_them = (partial(SPEEDS[library], cols=cols, devices=some) for some in (devices[:1], devices))
    speed, _, first = one(rows)
    if library != "gsio":
        _, _, first = of_gsio(rows, cols, devices[:1])
    several, cut, found = all_of_them(rows * len(devices) if weak else rows)
    error = 0.0
    if not weak:
        error = float(np.linalg.norm((found - first).ravel()) / np.linalg.norm(first.ravel()))
        if not error <= (TOLERANCE["float32"] if library != "gsio" else 0.0):  # NaN is wrong too
            raise ValueError(f"expected the answer of one GPU, got an error of {error:.1e}")
    ratio = several / speed
    return {"one": speed, "all": several, "ratio": ratio, "each": ratio / len(devices), "error": error, "cut": cut}


def of_gsio(rows: int, cols: int, devices: Sequence[int], **options: Any) -> tuple[float, str, Field]:
    """Return the Gcell/s of gsio on some GPUs, how the grid is cut, and v after the first frame."""
    solver = solver_of(config_of(rows, cols, devices), devices, **options)
    solver.advance(STEPS)
    v = solver.field("v")
    found = median(speeds(solver, rows * cols))
    cut = str(solver.tiling) if len(devices) == 1 else f"{solver.tiling}, halos of {solver.bands[0].depth}"
    del solver
    free()
    return found, cut, v


def of_jax(rows: int, cols: int, devices: Sequence[int]) -> tuple[float, str, Field]:
    """Return the Gcell/s of array code under `shard_map` with halos of one row, its version, and v after a frame."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    shard_map: Any = getattr(jax, "shard_map", None) or import_module("jax.experimental.shard_map").shard_map
    config, count = config_of(rows, cols, devices), len(devices)
    start = start_of(config)
    c = coefficients(config.model, start.feed, start.kill)
    mesh, spec = Mesh(np.array([jax.devices()[number] for number in devices]), ("band",)), PartitionSpec("band", None)
    down, up = ([(i, (i + d) % count) for i in range(count)] for d in (1, -1))

    def padded(field: Any) -> Any:
        above, below = jax.lax.ppermute(field[-1:], "band", down), jax.lax.ppermute(field[:1], "band", up)
        return jnp.pad(jnp.concatenate([above, field, below]), ((0, 0), (1, 1)), "wrap")

    def step(_: int, state: Any) -> Any:
        return c.step(*state, *(c.around(padded(field)) for field in state))

    def frame(u: Any, v: Any) -> Any:
        return jax.lax.fori_loop(0, STEPS, step, (u, v))

    advance = jax.jit(shard_map(frame, mesh=mesh, in_specs=(spec, spec), out_specs=(spec, spec)), donate_argnums=(0, 1))
    state = tuple(jax.device_put(field, NamedSharding(mesh, spec)) for field in start[:2])
    state = jax.block_until_ready(advance(*state))
    v, taken = np.array(state[1]), []
    for _ in range(3):
        begin = time.perf_counter()
        state = jax.block_until_ready(advance(*state))
        taken.append(time.perf_counter() - begin)
    return rows * cols * STEPS / median(taken) / 1e9, f"JAX {jax.__version__}", v


SPEEDS: dict[str, Callable[..., tuple[float, str, Field]]] = {"gsio": of_gsio, "jax": of_jax}


def config_of(rows: int, cols: int, devices: Sequence[int], **changes: Any) -> Config:
    """Return the configuration of a run on some GPUs; in the names of `changes`, two underscores stand for a dot."""
    base = {
        "grid.rows": rows, "grid.cols": cols, "run.backend": "cupy", "run.device": devices[0],
        "run.devices": ",".join(map(str, devices)), "run.frames": 1000,
    }  # fmt: skip
    named = {name.replace("__", "."): value for name, value in changes.items()}
    return load_config(overrides={**base, **named}, environ={})


def start_of(config: Config) -> Start:
    """Return a start that looks random and takes little host memory: float32, and made of copies of one tile."""
    rows, cols = config.grid.rows, config.grid.cols
    fields = np.random.default_rng(0).random((2, TILE, TILE), np.float32) * np.array([[[1]], [[0.5]]], np.float32)
    repeats = -(-rows // TILE), -(-cols // TILE)
    u, v = (np.tile(field, repeats)[:rows, :cols] for field in fields)
    return Start(u, v, *rates(config))


def solver_of(config: Config, devices: Sequence[int], **options: Any) -> Any:
    """Return a solver with small blocks, for steps alone."""
    layout = BlockLayout.of_frames(Content.of(config).frame(shuffle=False), 1)
    if len(devices) == 1:
        from gsio.compute.cuda.solver import CudaSolver

        return CudaSolver(config, layout, start_of(config))
    from gsio.compute.cuda.bands import BandsSolver

    return BandsSolver(config, layout, start_of(config), devices, **options)


def speeds(solver: Any, cells: int, steps: int = STEPS) -> list[float]:
    """Return the Gcell/s of five measurements, the least first."""
    solver.advance(steps)
    times = max(3, round(SECONDS / max(solver.seconds(steps, 3) / 3, 1e-6)))
    return sorted(cells * steps * times / solver.seconds(steps, times) / 1e9 for _ in range(5))


def free() -> None:
    """Give the memory of CuPy's pools back."""
    import cupy

    gc.collect()
    for device in range(cupy.cuda.runtime.getDeviceCount()):
        with cupy.cuda.Device(device):
            cupy.get_default_memory_pool().free_all_blocks()
