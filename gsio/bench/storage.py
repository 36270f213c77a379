"""Storage: gsio's writers, peers that store the frames of gsio's solver, and codecs alone.

A peer gets its frames as gsio's writers do: the solver copies them into pinned blocks, and the pool has enough blocks
to keep the threads of the peer busy. Files are made, and some are reserved, before the clock starts.
"""

import gc
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from gsio import codec
from gsio.bench.compute import main_grid
from gsio.bench.peers import PEERS, Contender
from gsio.bench.replay import RecordingWriter, ReplaySolver
from gsio.bench.tables import Column, Measurement, Options, Row, Table, empty, median
from gsio.codec.blosc import lz4_parameters
from gsio.compute import open_solver
from gsio.compute.solver import Solver, fields
from gsio.config import Config, load_config
from gsio.frames.block import Block, BlockPool, FilledBlock
from gsio.frames.content import Content
from gsio.frames.layout import BlockLayout
from gsio.machine import available_memory, usable_cores
from gsio.run.initial import initial_state
from gsio.run.pipeline import Pipeline
from gsio.run.plan import encoding_threads, layout_of, pool_size, with_codec
from gsio.run.tunings import recall
from gsio.trace import Trace
from gsio.writer.journal import Journal
from gsio.writer.provenance import root_attributes
from gsio.writer.session import Session, open_session
from gsio.writer.zarr.store import Folder

DENSE = {"initial.kind": "spots", "initial.count": 5000}  # the pattern fills 1080 × 1920: deflate gains a factor of 1.2
DENSE_STEPS = 1024  # before the first frame
SMALL = {"grid.rows": 256, "grid.cols": 256}
LARGE = {"grid.rows": 16384, "grid.cols": 16384}
DESCRIPTION = (
    "the main job; loop: from the first step until the operating system has all frames; durable: until the disk has "
    f"them; GB/s counts raw frames in the loop; dense: the run starts from 5000 spots and {DENSE_STEPS} steps before "
    "its first frame; codec alone: the loop encodes and writes frames that memory holds"
)
SMALL_FRAMES, LARGE_FRAMES = 20, 1 / 50  # of the frames of the main job
CODEC_ROUNDS = 5
PIECE_BYTES = 8 << 20  # of a call of a plain program


class Job(NamedTuple):
    """One row: `how` is gsio, codec, plain or the name of a peer; the ending of `output` names the format."""

    how: str
    output: str
    changes: dict[str, Any]
    frames: int
    before: int = 0  # time steps before the first frame


OUTPUTS = {
    f"{name} {compression}": (output, {"output.compression": compression})
    for name, output, compressions in (
        ("HDF5", "run.h5", ("deflate", "lz4", "zstd", "none")),
        ("Zarr", "run.zarr", ("lz4", "zstd", "none")),
    )
    for compression in compressions
}
MAIN_OUTPUTS = "HDF5 deflate", "Zarr lz4"  # the defaults of the two formats


def table(options: Options) -> Table:
    """Return the rows of gsio's outputs, of peers and of codecs, for a main job of `options.frames` frames."""
    frames = min(options.frames, 20) if options.quick else options.frames
    small, large = SMALL_FRAMES * frames, max(2, round(LARGE_FRAMES * frames))
    peer = {"output.compression": "lz4"}  # the blocks of lz4 hold plain frames
    jobs = {f"gsio, {name}": Job("gsio", *of, frames) for name, of in OUTPUTS.items()}
    for name in MAIN_OUTPUTS:
        output, changes = OUTPUTS[name]
        jobs[f"gsio dense, {name}"] = Job("gsio", output, {**changes, **DENSE}, frames, DENSE_STEPS)
    jobs |= {
        "peer: h5py, chunked, not compressed, 1 thread": Job("h5py", "run.h5", peer, frames),
        "peer: zarr-python, Blosc lz4": Job("zarr-python", "run.zarr", peer, frames),
        "peer: zarr-python, fused pipeline, Blosc lz4": Job("zarr-python fused", "run.zarr", peer, frames),
        "peer: TensorStore zarr3, Blosc lz4": Job("TensorStore", "run.zarr", peer, frames),
        "floor: pwrite of raw frames": Job("pwrite", "run.raw", peer, frames),
    }
    jobs |= {f"floor: the bytes of gsio, {name}": Job("plain", *OUTPUTS[name], frames) for name in MAIN_OUTPUTS}
    for name in MAIN_OUTPUTS:
        output, changes = OUTPUTS[name]
        jobs[f"gsio 256², {name}"] = Job("gsio", output, {**changes, **SMALL}, small)
        if options.device == "gpu":
            jobs[f"gsio 16384², {name}"] = Job("gsio", output, {**changes, **LARGE}, large)
    compressed = {name: of for name, of in OUTPUTS.items() if not name.endswith("none")}
    jobs |= {f"codec alone, {name}": Job("codec", *of, frames) for name, of in compressed.items()}
    if options.quick:
        skipped = "dense", "256²", "16384²", "zstd", "codec", "floor: the bytes"
        jobs = {name: job for name, job in jobs.items() if not any(word in name for word in skipped)}
        jobs = {name: job._replace(changes={**job.changes, **main_grid(options)}) for name, job in jobs.items()}
    columns = [
        Column("loop, s", "loop", ".3f", spread=True),
        Column("durable, s", "durable", ".3f", spread=True),
        Column("frames", "frames", "g"),
        Column("on disk, GB", "size", ".3f"),
        Column("GB/s", "speed", ".2f"),
        Column("memory, GB", "memory", ".2f"),
        Column("codec alone, s", "alone", ".3f"),
    ]
    return Table(DESCRIPTION, [Row(name, list(job)) for name, job in jobs.items()], columns)


def measure(folder: Path, device: str, *values: Any) -> Measurement:
    """Run one row with few frames, to warm up, then with all, in `folder`; check three frames of the file."""
    job = Job(*values)
    output = folder / job.output
    backend = "cupy" if device == "gpu" else "numba"
    config = load_config(overrides={"run.backend": backend, "run.frames": job.frames, **job.changes}, environ={})
    if job.how not in PEERS:
        config = with_codec(config, output)
    if job.how == "codec":  # memory holds all frames, raw and encoded
        affordable = available_memory() // 4 // layout_of(config).frame.frame_nbytes
        config = with_frames(config, min(job.frames, max(1, affordable)))
    few = with_frames(config, min(config.run.frames, 2 * layout_of(config).frames_per_block))
    run_job(job, few, output)
    shutil.rmtree(output) if output.is_dir() else output.unlink()
    free()
    os.sync()  # the row must not wait for bytes that other programs and the warm-up left
    found = run_job(job, config, output)
    found["frames"] = config.run.frames
    found["speed"] = layout_of(config).frame.frame_nbytes * config.run.frames / found["loop"] / 1e9
    found["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    files = [path for path in output.rglob("*") if path.is_file()] if output.is_dir() else [output]
    found["size"] = sum(path.stat().st_blocks * 512 for path in files) / 1e9
    free()
    if wrong := wrong_frames(config, output, job.before):
        raise ValueError(f"expected the solver's fields in every frame, got others in {wrong}")
    return found


def run_job(job: Job, config: Config, output: Path) -> dict[str, Any]:
    """Store all frames of `config` by the way of the job, and return the seconds and the device."""
    if job.how == "gsio":
        return run_gsio(config, output, job.before)
    if job.how == "codec":
        return run_codec(config, output, job.before)
    if job.how == "plain":
        return run_plain(config, output, job.before)
    return run_peer(config, output, job.before, PEERS[job.how])


def loop(config: Config, solver: Any, session: Session) -> Pipeline:
    """Run the frame loop and return its pipeline."""
    pipeline = Pipeline(config, solver, session)
    pipeline.run()
    return pipeline


def run_gsio(config: Config, output: Path, before: int) -> dict[str, Any]:
    """Store frames as `gsio run` does."""
    layout = layout_of(config, config.run.backend)
    blocks = pool_size(config, layout)
    solver = started_solver(config, layout, blocks, before)
    return stored(config, output, layout, solver, BlockPool(layout, blocks, solver.allocate))


def stored(config: Config, output: Path, layout: BlockLayout, solver: Any, pool: BlockPool) -> dict[str, Any]:
    """Run the pipeline of gsio; the loop ends when all frames are committed, the run when they are synced."""
    attributes = root_attributes(config, solver.backend, solver.device)
    with Journal(output) as journal:
        content = Content.of(config)
        session = open_session(output, content, attributes, journal, pool, encoding_threads(config, layout))
        use_page_cache(output.parent, config.run.frames * layout.frame.frame_nbytes)
        pipeline = loop(config, solver, session)
        journal.remove()
    durable = time.perf_counter() - pipeline.started
    return {"loop": pipeline.finished - pipeline.started, "durable": durable, "device": solver.device}


def run_codec(config: Config, output: Path, before: int) -> dict[str, Any]:
    """Keep the frames of a run in memory, then encode them, and then encode and write them, with the same threads.

    The result has medians of several rounds, because a shared machine changes its speed within seconds.
    """
    layout = layout_of(config)  # without a backend: the solver stages frames, and threads encode them
    threads, blocks = encoding_threads(config, layout), pool_size(config, layout)
    solver = started_solver(config, layout, blocks, before)
    record = RecordingWriter()
    loop(config, solver, Session(record, BlockPool(layout, blocks, solver.allocate), Trace(), threads))
    tasks: list[tuple[FilledBlock, int]] = []
    for first, (data, _, _) in sorted(record.blocks.items()):
        block = Block(layout, np.empty(layout.block_nbytes, np.uint8))
        block.data, block.count = data, min(layout.frames_per_block, config.run.frames - first)
        tasks += [(FilledBlock(block), task) for task in range(layout.tasks)]

    def encode(tasks: Iterator[tuple[FilledBlock, int]]) -> None:
        for block, task in tasks:
            codec.encode(block, task)
            block.chunks.clear()  # a writer too drops the chunks that it has written

    rounds: list[Measurement] = []
    for _ in range(CODEC_ROUNDS):
        if rounds:
            empty(output.rename(Path(tempfile.mkdtemp(dir=output.parent), output.name)))
        shared, start = iter(tasks), time.perf_counter()
        with ThreadPoolExecutor(threads) as executor:
            list(executor.map(encode, [shared] * threads))
        alone = time.perf_counter() - start
        pool = BlockPool(layout, blocks, ReplaySolver({}).allocate)
        rounds.append({**stored(config, output, layout, ReplaySolver(record.blocks), pool), "alone": alone})
    return {**{key: median(rounds, key) for key in ("loop", "durable", "alone")}, "device": solver.device}


def run_plain(config: Config, output: Path, before: int) -> dict[str, Any]:
    """Store frames, then write the bytes of the output by a plain program, and return the seconds of the program.

    One thread writes them into a reserved file, or a thread for each core into as many files as the output has.
    """
    device = run_gsio(config, output, before)["device"]
    files = sorted(path for path in output.rglob("*") if path.is_file()) if output.is_dir() else [output]
    contents = [path.read_bytes() for path in files]
    again = Path(tempfile.mkdtemp(dir=output.parent))
    os.sync()
    reserved = None
    if not output.is_dir():
        reserved = os.open(again / "plain", os.O_WRONLY | os.O_CREAT)
        os.posix_fallocate(reserved, 0, len(contents[0]))
    start = time.perf_counter()
    if reserved is not None:
        for place in range(0, len(contents[0]), PIECE_BYTES):
            os.pwrite(reserved, memoryview(contents[0])[place : place + PIECE_BYTES], place)
    else:
        with ThreadPoolExecutor(usable_cores()) as threads:
            list(threads.map(lambda number: (again / str(number)).write_bytes(contents[number]), range(len(contents))))
    handed = time.perf_counter() - start
    if reserved is not None:
        os.fsync(reserved)
        os.close(reserved)
    else:
        Folder(again).sync()
    durable = time.perf_counter() - start
    empty(again)
    return {"loop": handed, "durable": durable, "device": device}


def run_peer(config: Config, output: Path, before: int, contender: Contender) -> dict[str, Any]:
    """Store the frames of gsio's solver by a peer."""
    layout, frames = layout_of(config), config.run.frames
    per_block, blocks = contender.batch or layout.frames_per_block, contender.threads + 4
    layout = BlockLayout.of_frames(layout.frame, per_block)
    solver = started_solver(config, layout, blocks, before)
    pool = BlockPool(layout, blocks, solver.allocate)
    peer = contender.make(output, (frames, *layout.frame.shape), lz4_parameters(config.output.level))

    def store(block: Block) -> None:
        try:
            solver.wait(block)
            peer.write(block.first, block.data[: block.count].view(layout.frame.dtype).reshape(-1, *layout.frame.shape))
        finally:  # without the block, computing would wait forever
            pool.release(block)

    use_page_cache(output.parent, frames * layout.frame.frame_nbytes)
    start = time.perf_counter()
    with ThreadPoolExecutor(contender.threads) as executor:
        stores = []
        for first in range(0, frames, per_block):
            block = pool.acquire()
            assert block is not None
            block.first, block.count = first, min(per_block, frames - first)
            solver.fill(block)
            stores.append(executor.submit(store, block))
    for done in stores:
        done.result()
    peer.flush()
    handed = time.perf_counter() - start
    peer.sync()
    return {"loop": handed, "durable": time.perf_counter() - start, "device": solver.device}


def use_page_cache(folder: Path, nbytes: int) -> None:
    """Write a file of a quarter of `nbytes`, about the size of encoded frames, in `folder`, and delete it.

    A virtual machine asks its host for memory that was unused for seconds. Each such page took 10 µs, where writing
    takes 1 µs, and would count as storage.
    """
    piece = bytes(8 << 20)
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(nbytes // 4 // len(piece)):
            file.write(piece)


def started_solver(config: Config, layout: BlockLayout, blocks: int, before: int) -> Solver:
    """Return gsio's solver, `before` steps after the start."""
    solver = open_solver(config.run.backend, config, layout, blocks, initial_state, recall)
    if before:
        solver.advance(before)
        fields(solver)  # waits for the device
    return solver


def wrong_frames(config: Config, output: Path, before: int) -> list[int]:
    """Compute the run again without saving, and return the numbers of those of three stored frames that differ."""
    solver = started_solver(config, layout_of(config), 1, before)
    last = config.run.frames - 1
    wrong = []
    for number in range(config.run.frames):
        solver.advance(config.run.steps_per_frame)
        if number in (0, last // 2, last):
            expected = fields(solver)[1]
            if read_frame(output, number, expected.shape).tobytes() != expected.tobytes():
                wrong.append(number)
    return wrong


def read_frame(output: Path, number: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return a frame of the file by the usual reader of its format."""
    if output.suffix == ".h5":
        import h5py

        with suppress(ImportError):  # h5py then names the filter that it lacks
            import hdf5plugin  # noqa: F401
        with h5py.File(output) as file:
            return np.asarray(file["v"][number])
    if output.suffix == ".zarr":
        import zarr

        return np.asarray(zarr.open_array(output / "v", mode="r")[number])
    cells = int(np.prod(shape))
    return np.fromfile(output, np.float32, cells, offset=4 * cells * number)


def with_frames(config: Config, frames: int) -> Config:
    """Return `config` with another number of frames."""
    return msgspec.structs.replace(config, run=msgspec.structs.replace(config.run, frames=frames))


def free() -> None:
    """Release the memory of the last solver, on the GPU too, where CuPy keeps it for later."""
    gc.collect()
    if "cupy" in sys.modules:
        import cupy

        cupy.get_default_memory_pool().free_all_blocks()
