"""Is the run as fast as its slowest part? Times the parts alone and together, in one process, and prints a table.

    python profiling/parts.py --output /tmp/run.h5 [--repeats 3] [--set KEY=VALUE …]

compute alone     the time steps of every frame, nothing staged
copy alone        one copy from the device to pinned memory per block (GPU only)
encode + write    the run's own frames, recorded in memory beforehand, through the encoders and the writer
dropped           the whole loop, with a writer that drops every frame
written           the whole loop, into the file
"""

import argparse
import platform
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gsio
from gsio import log
from gsio.bench.storage import Drop, Record, Replay, loop
from gsio.compute import open_solver, with_backend
from gsio.config import Config, parse_assignment
from gsio.files import require_new
from gsio.frames.block import BlockPool
from gsio.frames.layout import FrameLayout, layout_of
from gsio.run.plan import encoding_threads, pool_size
from gsio.trace import Trace
from gsio.writer import for_output, open_writer
from gsio.writer.journal import Journal
from gsio.writer.protocol import Target
from gsio.writer.provenance import root_attributes


def compute_alone(config: Config, layout: FrameLayout) -> float:
    """Return the seconds all time steps take."""
    solver = open_solver(config, layout, 1)
    solver.advance(config.run.steps_per_frame)
    solver.fields()
    start = time.perf_counter()
    for _ in range(config.run.frames):
        solver.advance(config.run.steps_per_frame)
    solver.fields()  # waits for the device
    return time.perf_counter() - start


def copy_alone(config: Config, layout: FrameLayout) -> float | None:
    """Return the seconds of copying every block to pinned memory, or None without a GPU."""
    try:
        import cupy
    except ImportError:
        return None
    device = cupy.zeros(layout.block_nbytes, cupy.uint8)
    pinned = [cupy.cuda.alloc_pinned_memory(layout.block_nbytes) for _ in range(4)]
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.runtime.deviceSynchronize()
    start = time.perf_counter()
    for i in range(-(-config.run.frames // layout.frames_per_block)):
        to_host = cupy.cuda.runtime.memcpyDeviceToHost
        cupy.cuda.runtime.memcpyAsync(pinned[i % 4].ptr, device.data.ptr, layout.block_nbytes, to_host, stream.ptr)
    stream.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("parts.h5"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--set", dest="assignments", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    log.configure("text", quiet=True)
    require_new("--output", arguments.output)
    config = for_output(
        gsio.load_config(overrides=dict(map(parse_assignment, arguments.assignments))), arguments.output
    )
    config = with_backend(config)
    layout = layout_of(config)
    threads, blocks = encoding_threads(config, layout), pool_size(config, layout)
    solver = open_solver(config, layout, blocks)
    pool = BlockPool(layout, blocks, solver.allocate)
    record = Record()
    loop(config, solver, pool, record, Trace(), threads)
    replay_pool = BlockPool(layout, blocks, Replay({}).allocate)

    def dropped() -> float:
        pipeline = loop(config, open_solver(config, layout, blocks), pool, Drop(), Trace(), threads)
        return pipeline.finished - pipeline.started

    def to_file(make: Callable[[], Any], pool: BlockPool) -> float:
        solver, trace = make(), Trace()
        if arguments.output.is_dir():
            shutil.rmtree(arguments.output)
        arguments.output.unlink(missing_ok=True)
        attributes = root_attributes(config, "", solver.device)
        with Journal(arguments.output) as journal:
            writer = open_writer(Target(arguments.output, config, layout, attributes, journal, trace))
            pipeline = loop(config, solver, pool, writer, trace, threads)
            journal.remove()
        closing.append(time.perf_counter() - pipeline.finished)
        sizes.append(writer.nbytes)
        return pipeline.finished - pipeline.started

    closing: list[float] = []
    sizes: list[int] = []
    parts: dict[str, Callable[[], float | None]] = {
        "compute alone": lambda: compute_alone(config, layout),
        "copy alone": lambda: copy_alone(config, layout),
        "encode + write alone": lambda: to_file(lambda: Replay(record.blocks), replay_pool),
        "loop, frames dropped": dropped,
        "loop, frames written": lambda: to_file(lambda: open_solver(config, layout, blocks), pool),
    }
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for repeat in range(arguments.repeats + 1):  # interleaved, so that a drift of the machine meets all alike
        for name, part in parts.items():
            if (measured := part()) is not None and repeat:  # the first round warms up
                seconds[name].append(measured)
    median = {name: statistics.median(values) for name, values in seconds.items() if values}
    slowest = max(median[name] for name in list(parts)[:3] if name in median)
    cells = config.run.frames * config.run.steps_per_frame * config.grid.rows * config.grid.cols
    print(f"{solver.device}, {threads} encoding threads, {blocks} blocks; Python {platform.python_version()}")
    print(f"{config.run.frames} frames of {config.grid.rows} × {config.grid.cols} {config.model.precision}, ", end="")
    print(
        f"{config.run.steps_per_frame} steps apart, {config.output.compression}; {arguments.repeats} repeats, medians\n"
    )
    print("| what | median s | min – max | |\n|---|---|---|---|")
    notes = {
        "compute alone": f"{cells / median['compute alone'] / 1e9:.1f} Gcell/s",
        "loop, frames dropped": f"{median['loop, frames dropped'] / median['compute alone']:.3f} × compute alone",
        "loop, frames written": f"{median['loop, frames written'] / slowest:.3f} × the slowest part alone",
    }
    for name, value in median.items():
        spread = f"{min(seconds[name]):.3f} – {max(seconds[name]):.3f}"
        print(f"| {name} | {value:.3f} | {spread} | {notes.get(name, '')} |")
    print(f"\noutput: {sizes[-1] / 1e9:.3f} GB; close and fsync {statistics.median(closing):.3f} s")


if __name__ == "__main__":
    main()
