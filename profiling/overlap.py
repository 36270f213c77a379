"""Is the run as fast as its slowest part? Times the parts alone and together, in one process, and prints a table.

    python profiling/overlap.py --output /tmp/run.h5 [--repeats 3] [--set KEY=VALUE …]

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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import gsio
from gsio import log
from gsio.compute import open_solver
from gsio.config import Config, parse_assignment
from gsio.run import Pipeline, encoding_threads, layout_of, pool_size
from gsio.staging import Block, BlockPool, FrameLayout
from gsio.trace import Trace
from gsio.writer import for_output, open_writer
from gsio.writer.metadata import root_attributes


class Drop:
    """A writer that drops every frame."""

    nbytes = 0

    def encode(self, block: Block, slab: int = 0) -> None:
        """Do nothing."""

    def commit(self, blocks: Sequence[Block]) -> None:
        """Do nothing."""

    def close(self, status: str) -> None:
        """Do nothing."""


class Record(Drop):
    """A writer that keeps every block in memory."""

    def __init__(self) -> None:
        self.blocks: dict[int, tuple[np.ndarray, np.ndarray, dict[tuple[int, int], list[bytes]]]] = {}

    def encode(self, block: Block, slab: int = 0) -> None:
        """Keep a copy of `block`."""
        chunks = {place: [bytes(chunk) for chunk in chunks] for place, chunks in block.chunks.items()}
        self.blocks[block.first] = (block.data.copy(), block.statistics.copy(), chunks)


class Replay:
    """A solver that hands out recorded blocks at once."""

    backend = device = "replay"

    def __init__(self, blocks: dict[int, tuple[np.ndarray, np.ndarray, dict[tuple[int, int], list[bytes]]]]) -> None:
        self._blocks = blocks

    def fill(self, block: Block) -> None:
        """Point `block` at the recorded frames."""
        block.data, recorded, chunks = self._blocks[block.first]
        block.statistics[:] = recorded
        block.chunks = dict(chunks)

    def wait(self, block: Block) -> None:
        """Return at once."""

    def allocate(self, nbytes: int) -> np.ndarray:
        """Return ordinary memory."""
        return np.zeros(nbytes, np.uint8)


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


def loop(config: Config, solver: Any, pool: BlockPool, writer: Any, trace: Trace, threads: int) -> Pipeline:
    """Run the frame loop and return its pipeline."""
    pipeline = Pipeline(config, solver, pool, writer, trace, threads)
    pipeline.run()
    return pipeline


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("overlap.h5"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--set", dest="assignments", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    log.configure("text", quiet=True)
    config = for_output(
        gsio.load_config(overrides=dict(map(parse_assignment, arguments.assignments))), arguments.output
    )
    layout = layout_of(config)
    threads, blocks = encoding_threads(config), pool_size(config, layout)
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
        writer = open_writer(arguments.output, config, layout, root_attributes(config, "", solver.device), trace)
        pipeline = loop(config, solver, pool, writer, trace, threads)
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
