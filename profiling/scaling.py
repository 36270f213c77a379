"""One grid on several GPUs, beside one GPU and beside JAX's `shard_map`: speeds, and whether the bits are the same.

The parts "steps" and "jax" are the rows of `gsio bench scaling --devices`, in one process.

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
from pathlib import Path
from statistics import median
from typing import Any

import gsio
from gsio.bench import devices as grids
from gsio.bench.devices import GRIDS, config_of, free, solver_of, speeds, start_of
from gsio.bench.tables import Options
from gsio.compute import open_solver
from gsio.frames.block import Block
from gsio.run.plan import layout_of, with_codec

Row = dict[str, Any]


def devices_of(arguments: list[str]) -> list[int]:
    """Return the GPUs to measure."""
    from cupy.cuda import runtime

    return list(map(int, arguments[0].split(","))) if arguments else list(range(runtime.getDeviceCount()))


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


def table(devices: list[int], library: str) -> None:
    """Print strong and weak scaling of a library, as `gsio bench scaling --devices` does."""
    options = Options("gpu", "", 0, 0, None, 0, quick=False, devices=",".join(map(str, devices)))
    for row in grids.table(options).rows:
        if row.arguments[0] == library:
            measured(partial(grids.measure, Path(), "gpu", *row.arguments), row=row.name)


def one_speed(rows: int, cols: int, devices: list[int], **options: Any) -> Row:
    """Return the speed of the steps of a grid."""
    speed, cut, _ = grids.of_gsio(rows, cols, devices, **options)
    return {"Gcell/s": round(speed, 1), "cut": cut}


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
            return {"Gcell/s": round(median(speeds(solver_of(config, numbers), rows * cols, steps)), 1)}

        dry = measured(alone, grid="8192²", gpus=len(numbers), output="dropped")
        for name in ("run.zarr", "run.h5"):
            path = folder / name
            wet = measured(partial(saved, numbers, rows, cols, path, frames, steps), gpus=len(numbers), output=name)
            if "Gcell/s" in dry and "Gcell/s" in wet:
                print(f"--> {name}, {len(numbers)} GPUs: {wet['Gcell/s'] / dry['Gcell/s']:.1%} of the steps alone")


PARTS: dict[str, Callable[[list[int]], None]] = {
    "bits": bits,
    "steps": partial(table, library="gsio"),
    "modes": modes,
    "encoder": encoder,
    "output": output,
    "jax": partial(table, library="jax"),
}


def names() -> Iterator[str]:
    """Yield the names of the GPUs."""
    from cupy.cuda import runtime

    for device in range(runtime.getDeviceCount()):
        yield runtime.getDeviceProperties(device)["name"].decode()


if __name__ == "__main__":
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # JAX would take three quarters of the memory
    part, *rest = sys.argv[1:]
    print(json.dumps({"part": part, "gpus": list(names()), "gsio": gsio.__version__}))
    PARTS[part](devices_of(rest))
