"""One grid on several GPUs, beside one GPU and beside JAX's `shard_map`: speeds, and whether the bits are the same.

python profiling/scaling.py PART [DEVICES] prints one table; DEVICES is a list such as 0,1, by default all GPUs. The
parts are:

bits      the fields after 100 steps on one GPU and on all, for each grid
steps     time steps alone, frames dropped: strong scaling (one grid) and weak scaling (a grid as large for each GPU)
modes     the same for one grid and each way to exchange rows, and without a graph
encoder   frames that are encoded or copied after each step, and dropped in host memory
output    whole runs with enough steps that computing bounds them, into FOLDER (environment; by default the current one)
jax       time steps with halos of one row in JAX
"""

import json
import os
import shutil
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import gsio
from gsio.compute import open_solver
from gsio.config import load_config
from gsio.frames.block import Block
from gsio.model.start import Start
from gsio.run.initial import initial_state
from gsio.run.plan import layout_of, with_codec

GRIDS = {
    "16384²": (16384, 16384),
    "8192²": (8192, 8192),
    "32768²": (32768, 32768),
    "2160 × 3840": (2160, 3840),
    "1080 × 1920": (1080, 1920),
}
SECONDS = 0.4  # of one measurement
TILE = 512  # the side of the noise that a start repeats: a random start of a large grid takes minutes

Row = dict[str, Any]


def devices_of(arguments: list[str]) -> list[int]:
    """Return the GPUs to measure."""
    from cupy.cuda import runtime

    return list(map(int, arguments[0].split(","))) if arguments else list(range(runtime.getDeviceCount()))


def start_of(config: gsio.Config) -> Start:
    """Return a start that looks random and takes little host memory: float32, and made of copies of one tile."""
    rows, cols = config.grid.rows, config.grid.cols
    u, v = np.random.default_rng(0).random((2, TILE, TILE), np.float32) * np.array([[[1]], [[0.5]]], np.float32)
    repeats = -(-rows // TILE), -(-cols // TILE)
    rates = initial_state(load_config(overrides={"grid.rows": 4, "grid.cols": 4}, environ={}))
    u, v = (np.tile(field, repeats)[:rows, :cols] for field in (u, v))
    return Start(u, v, rates.feed, rates.kill)


def config_of(rows: int, cols: int, devices: list[int], **changes: Any) -> gsio.Config:
    """Return the configuration of a run on some GPUs."""
    numbers = ",".join(map(str, devices))
    base = {
        "grid.rows": rows, "grid.cols": cols, "run.backend": "cupy", "run.device": devices[0], "run.devices": numbers,
        "run.frames": 1000,
    }  # fmt: skip
    return load_config(
        overrides={**base, **{key.replace("__", "."): value for key, value in changes.items()}}, environ={}
    )


def solver_of(config: gsio.Config, devices: list[int], **options: Any) -> Any:
    """Return a solver with small blocks, for steps alone."""
    from gsio.compute.cuda.bands import BandsSolver
    from gsio.compute.cuda.solver import CudaSolver
    from gsio.frames.content import Content
    from gsio.frames.layout import BlockLayout

    layout = BlockLayout.of_frames(Content.of(config).frame(shuffle=False), 1)
    if len(devices) == 1:
        return CudaSolver(config, layout, start_of(config))
    return BandsSolver(config, layout, start_of(config), devices, **options)


def speed(solver: Any, cells: int, steps: int = 32) -> list[float]:
    """Return Gcell/s of five measurements."""
    solver.advance(steps)
    times = max(3, round(SECONDS / max(solver.seconds(steps, 3) / 3, 1e-6)))
    return sorted(cells * steps * times / solver.seconds(steps, times) / 1e9 for _ in range(5))


def measured(make: Callable[[], Row], **row: Any) -> Row:
    """Return `row` with what `make` finds, or with the error that it raises, and print it."""
    start = time.perf_counter()
    try:
        row |= make()
    except Exception as error:
        traceback.print_exc()
        row["error"] = f"{type(error).__name__}: {error}"[:200]
    row["took"] = round(time.perf_counter() - start, 1)
    print(json.dumps(row, ensure_ascii=False), flush=True)
    free()
    return row


def free() -> None:
    """Give the memory of CuPy's pools back."""
    import gc

    import cupy

    gc.collect()
    for device in range(cupy.cuda.runtime.getDeviceCount()):
        with cupy.cuda.Device(device):
            cupy.get_default_memory_pool().free_all_blocks()


def one_speed(rows: int, cols: int, devices: list[int], **options: Any) -> Row:
    """Return the speed of the steps of a grid."""
    solver = solver_of(config_of(rows, cols, devices), devices, **options)
    found = speed(solver, rows * cols)
    row = {"Gcell/s": round(median(found), 1), "least": round(found[0], 1), "tiling": str(solver.tiling)}
    if len(devices) > 1:
        row["depth"] = solver.bands[0].depth
    return row


def steps(devices: list[int]) -> None:
    """Print strong and weak scaling."""
    for name, (rows, cols) in GRIDS.items():
        one = measured(partial(one_speed, rows, cols, devices[:1]), grid=name, gpus=1)
        strong = measured(partial(one_speed, rows, cols, devices), grid=name, gpus=len(devices), scaling="strong")
        if name != "32768²":
            many = rows * len(devices)
            weak = measured(partial(one_speed, many, cols, devices), grid=name, gpus=len(devices), scaling="weak")
        else:
            weak = {}
        ratios = {kind: row["Gcell/s"] / one["Gcell/s"] for kind, row in (("strong", strong), ("weak", weak))
                  if "Gcell/s" in row and "Gcell/s" in one}  # fmt: skip
        text = ", ".join(f"{kind} {ratio:.3f} × ({ratio / len(devices):.1%})" for kind, ratio in ratios.items())
        print(f"--> {name}: {text}", flush=True)


def modes(devices: list[int]) -> None:
    """Print the speed of each way to order the work of several GPUs."""
    from gsio.compute.cuda import graphs

    for name in ("16384²", "8192²", "1080 × 1920"):
        rows, cols = GRIDS[name]
        for options in ({}, {"direct": False}):
            measured(partial(one_speed, rows, cols, devices, **options), grid=name, gpus=len(devices), **options)
        most, graphs.GRAPH_LAUNCHES = graphs.GRAPH_LAUNCHES, 0
        measured(partial(one_speed, rows, cols, devices), grid=name, gpus=len(devices), graphs=False)
        graphs.GRAPH_LAUNCHES = most


def bits(devices: list[int]) -> None:
    """Print whether the fields on all GPUs are those on one."""

    def checksums(rows: int, cols: int, numbers: list[int]) -> dict[str, int]:
        solver = solver_of(config_of(rows, cols, numbers), numbers)
        solver.advance(100)
        return {name: zlib.crc32(solver.field(name)) for name in "uv"}

    def compare(rows: int, cols: int) -> Row:
        one = checksums(rows, cols, devices[:1])
        free()
        return {"equal": one == checksums(rows, cols, devices)}

    for name, (rows, cols) in {**GRIDS, "1079 × 1921": (1079, 1921), "4099 × 4097": (4099, 4097)}.items():
        measured(partial(compare, rows, cols), grid=name)


def dropped(devices: list[int], rows: int, cols: int, compression: str, seconds: float = 2.0) -> Row:
    """Return the frames a second that arrive in host memory, one step apart, as they are or encoded by the GPUs."""
    config = config_of(rows, cols, devices, run__steps_per_frame=1, output__compression=compression)
    layout = layout_of(config, "cupy", bands=len(devices))
    solver = open_solver("cupy", config, layout, 4, start_of)
    blocks = [Block(layout, solver.allocate(layout.block_nbytes)) for _ in range(8)]
    nbytes, frames = 0, 0

    def size(block: Block) -> int:
        solver.wait(block)
        sizes = [len(chunk) for chunks in block.chunks.values() for chunk in chunks]
        return sum(sizes) if sizes else block.count * layout.frame.frame_nbytes

    with ThreadPoolExecutor(len(blocks)) as threads:
        waits: list[Any] = []
        begin = 0.0
        for number in range(1_000_000):
            block = blocks[number % len(blocks)]
            if len(waits) == len(blocks):
                nbytes += waits.pop(0).result()
                frames += layout.frames_per_block
            if number == 3 * len(blocks):
                begin, nbytes, frames = time.perf_counter(), 0, 0
            if begin and time.perf_counter() - begin > seconds:
                break
            block.count = layout.frames_per_block
            solver.fill(block)
            waits.append(threads.submit(size, block))
        taken = time.perf_counter() - begin
        for wait in waits:
            wait.result()
    raw = frames * layout.frame.frame_nbytes
    return {
        "frames/s": round(frames / taken, 1), "raw GB/s": round(raw / taken / 1e9, 2),
        "link GB/s": round(nbytes / taken / 1e9, 2), "encoded": bool(layout.encoded_nbytes),
        "slabs": layout.chunks.slabs, "frames a block": layout.frames_per_block,
    }  # fmt: skip


def encoder(devices: list[int]) -> None:
    """Print how encoding and copying scale."""
    for name, compression in (
        ("16384²", "none"), ("16384²", "lz4"), ("16384²", "deflate"), ("1080 × 1920", "none"), ("1080 × 1920", "lz4"),
        ("1080 × 1920", "deflate"),
    ):  # fmt: skip
        rows, cols = GRIDS[name]
        found = [
            measured(
                partial(dropped, numbers, rows, cols, compression), grid=name, codec=compression, gpus=len(numbers)
            )
            for numbers in (devices[:1], devices)
        ]
        if all("frames/s" in row for row in found):
            print(f"--> {name}, {compression}: {found[1]['frames/s'] / found[0]['frames/s']:.2f} ×", flush=True)


def saved(devices: list[int], rows: int, cols: int, output: Path, frames: int, steps: int) -> Row:
    """Return the speed of a run, in which computing takes the most time."""
    config = config_of(rows, cols, devices, run__frames=frames, run__steps_per_frame=steps)
    config = with_codec(config, output)
    summary = gsio.simulate(config, output)
    assert summary is not None
    found = rows * cols * frames * steps / summary.loop_seconds / 1e9
    print(summary, flush=True)
    shutil.rmtree(output, ignore_errors=True) if output.is_dir() else output.unlink()
    for beside in output.parent.glob(f"{output.name}.*"):
        beside.unlink()
    return {"Gcell/s": round(found, 1), "loop s": round(summary.loop_seconds, 2), "bottleneck": summary.bottleneck}


def output(devices: list[int]) -> None:
    """Print the speed of whole runs with output, and of their steps alone."""
    folder = Path(os.environ.get("FOLDER", "."))
    rows, cols, frames, steps = 8192, 8192, 30, 4000
    for numbers in (devices[:1], devices):

        def alone(numbers: list[int] = numbers) -> Row:
            config = config_of(rows, cols, numbers, run__steps_per_frame=steps)
            return {"Gcell/s": round(median(speed(solver_of(config, numbers), rows * cols, steps)), 1)}

        dry = measured(alone, grid="8192²", gpus=len(numbers), output="dropped")
        for name in ("run.zarr", "run.h5"):
            path = folder / name
            wet = measured(partial(saved, numbers, rows, cols, path, frames, steps), gpus=len(numbers), output=name)
            if "Gcell/s" in dry and "Gcell/s" in wet:
                print(f"--> {name}, {len(numbers)} GPUs: {wet['Gcell/s'] / dry['Gcell/s']:.1%} of the steps alone")


def jax_speed(rows: int, cols: int, count: int) -> Row:
    """Return the speed of array code under `shard_map`, with halos of one row."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from gsio.compute.host import initial_arrays

    shard_map: Any = getattr(jax, "shard_map", None) or import_module("jax.experimental.shard_map").shard_map
    config = config_of(rows, cols, [0])
    start = start_of(config)
    _, _, c = initial_arrays(load_config(overrides={"grid.rows": 4, "grid.cols": 4}, environ={}),
                             layout_of(load_config(overrides={"grid.rows": 4, "grid.cols": 4}, environ={})),
                             start._replace(u=start.u[:4, :4], v=start.v[:4, :4]), np.asarray)  # fmt: skip
    mesh, spec = Mesh(np.array(jax.devices()[:count]), ("band",)), PartitionSpec("band", None)
    down, up = ([(i, (i + d) % count) for i in range(count)] for d in (1, -1))

    def padded(field: Any) -> Any:
        above, below = jax.lax.ppermute(field[-1:], "band", down), jax.lax.ppermute(field[:1], "band", up)
        return jnp.pad(jnp.concatenate([above, field, below]), ((0, 0), (1, 1)), "wrap")

    def step(_: int, state: Any) -> Any:
        return c.step(*state, *(c.around(padded(field)) for field in state))

    def frame(u: Any, v: Any) -> Any:
        return jax.lax.fori_loop(0, 32, step, (u, v))

    advance = jax.jit(shard_map(frame, mesh=mesh, in_specs=(spec, spec), out_specs=(spec, spec)), donate_argnums=(0, 1))
    state = tuple(jax.device_put(field, NamedSharding(mesh, spec)) for field in start[:2])
    state = jax.block_until_ready(advance(*state))
    found = []
    for _ in range(3):
        begin = time.perf_counter()
        state = jax.block_until_ready(advance(*state))
        found.append(rows * cols * 32 / (time.perf_counter() - begin) / 1e9)
    return {"Gcell/s": round(median(found), 2), "jax": jax.__version__}


def jax(devices: list[int]) -> None:
    """Print the speeds of JAX on one GPU and on all."""
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    for name in ("16384²", "8192²"):
        rows, cols = GRIDS[name]
        for count in (1, len(devices)):
            measured(partial(jax_speed, rows, cols, count), grid=name, gpus=count, library="JAX shard_map")


PARTS = {"bits": bits, "steps": steps, "modes": modes, "encoder": encoder, "output": output, "jax": jax}


def names() -> Iterator[str]:
    """Yield the names of the GPUs."""
    from cupy.cuda import runtime

    for device in range(runtime.getDeviceCount()):
        yield runtime.getDeviceProperties(device)["name"].decode()


if __name__ == "__main__":
    part, *rest = sys.argv[1:]
    print(json.dumps({"part": part, "gpus": list(names()), "gsio": gsio.__version__}))
    PARTS[part](devices_of(rest))
