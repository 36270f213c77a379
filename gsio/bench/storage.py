"""Storage: gsio's writers, peers that store what gsio's solver computes, and codecs alone.

A peer gets frames as cheaply as gsio's writers do: the solver copies them into pinned blocks, as many as its threads
can use, and a thread that stores one gives it back. The codec has the same parameters for all, so that storage alone
differs. Files are made, and where the row says so reserved, before the clock starts.
"""

import gc
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from gsio import codec
from gsio.bench.compute import main_grid
from gsio.bench.tables import Column, Found, Options, Row, Table, empty, median
from gsio.compute import open_solver
from gsio.compute.solver import Solver
from gsio.config import Config, load_config
from gsio.frames.block import Block, BlockPool
from gsio.frames.layout import BlockLayout
from gsio.machine import available_memory, usable_cores
from gsio.run.initial import initial_state
from gsio.run.pipeline import Pipeline
from gsio.run.plan import encoding_threads, layout_of, pool_size, with_codec
from gsio.trace import Trace
from gsio.writer import open_writer
from gsio.writer.journal import Journal
from gsio.writer.protocol import Target
from gsio.writer.provenance import root_attributes
from gsio.writer.zarr import Folder

DENSE = {"initial.kind": "spots", "initial.count": 5000}  # fills 1080 × 1920; what it becomes is 1.2 times smaller
DENSE_STEPS = 1024  # before the first frame
SMALL = {"grid.rows": 256, "grid.cols": 256}
LARGE = {"grid.rows": 16384, "grid.cols": 16384}
DESCRIPTION = (
    "the main job; loop: from the first step until the operating system has all, durable: until the disk has it; GB/s "
    f"of raw frames, in the loop; dense: from 5000 spots, {DENSE_STEPS} steps before the first frame; codec alone: the "
    "loop encodes and writes frames kept in memory"
)
SMALL_FRAMES, LARGE_FRAMES = 20, 1 / 50  # of the frames of the main job
CODEC_ROUNDS = 5


class Job(NamedTuple):
    """What is measured: `how` is gsio, codec or a peer; the ending of `output` says the format."""

    how: str
    output: str
    changes: dict[str, Any]
    frames: int
    before: int = 0  # time steps before the first frame


class Peer(Protocol):
    """Stores float32 frames [frame, row, col]; `batch` frames at once, or if 0 as many as gsio stages together."""

    threads: int
    batch: int

    def write(self, first: int, frames: NDArray[np.float32]) -> None:
        """Store the frames from number `first` on; called from `threads` threads."""

    def flush(self) -> None:
        """Hand everything to the operating system."""

    def sync(self) -> None:
        """Wait until the disk has everything, and close."""


class Drop:
    """A writer that drops every frame."""

    nbytes = 0

    def encode(self, block: Block, task: int) -> None:
        """Do nothing."""

    def commit(self, blocks: Sequence[Block]) -> None:
        """Do nothing."""

    def close(self, status: str) -> None:
        """Do nothing."""


# Bytes and statistics of a block, and its chunks if the solver has encoded them.
Recorded = tuple[NDArray[Any], NDArray[Any], dict[tuple[int, int], list[bytes]]]


class Record(Drop):
    """A writer that keeps every block in memory."""

    def __init__(self) -> None:
        self.blocks: dict[int, Recorded] = {}

    def encode(self, block: Block, task: int) -> None:
        """Keep a copy of `block`."""
        if task:
            return
        chunks = {place: [bytes(chunk) for chunk in chunks] for place, chunks in block.chunks.items()}
        self.blocks[block.first] = block.data.copy(), block.statistics.copy(), chunks


class Replay:
    """A solver that hands out recorded blocks at once."""

    backend = device = "replay"

    def __init__(self, blocks: dict[int, Recorded]) -> None:
        self._blocks = blocks

    def fill(self, block: Block) -> None:
        """Point `block` at the recorded frames."""
        block.data, recorded, chunks = self._blocks[block.first]
        block.statistics[:] = recorded
        block.chunks = dict(chunks)

    def wait(self, block: Block) -> None:
        """Return at once."""

    def allocate(self, nbytes: int) -> NDArray[Any]:
        """Return ordinary memory."""
        return np.zeros(nbytes, np.uint8)


class H5py:
    """One chunked dataset, a chunk a frame, one thread: HDF5 runs one call at a time whatever their number."""

    threads, batch = 1, 0

    def __init__(self, path: Path, shape: Sequence[int], how: codec.Blosc) -> None:
        import h5py

        self.path = path
        self.file = h5py.File(path, "w", rdcc_nbytes=0)  # chunks are written once and whole: no cache of them
        self.frames = self.file.create_dataset("v", shape, np.float32, chunks=(1, *shape[1:]))

    def write(self, first: int, frames: NDArray[np.float32]) -> None:
        """Store frames by a selection."""
        self.frames[first : first + len(frames)] = frames

    def flush(self) -> None:
        """Flush HDF5's buffers."""
        self.file.flush()

    def sync(self) -> None:
        """Close, then fsync the file."""
        self.file.close()
        with self.path.open("rb") as file:
            os.fsync(file)


class ZarrPython:
    """Batches of frames, encoded by zarr-python's threads; two batches at once, so that these never run dry."""

    threads, batch = 2, usable_cores()
    pipeline: ClassVar[dict[str, Any]] = {}

    def __init__(self, path: Path, shape: Sequence[int], how: codec.Blosc) -> None:
        import zarr
        from zarr.codecs import BloscCodec

        cores = usable_cores()
        zarr.config.set({"async.concurrency": 2 * cores, "threading.max_workers": cores, **self.pipeline})
        self.path = path
        self.frames = zarr.create_array(
            path / "v",
            shape=tuple(shape),
            dtype=np.float32,
            chunks=(1, *shape[1:]),
            compressors=BloscCodec(cname=how.cname, clevel=how.clevel, shuffle="shuffle", blocksize=how.blocksize),
            config={"write_empty_chunks": True},  # else every chunk is compared with the fill value
        )

    def write(self, first: int, frames: NDArray[np.float32]) -> None:
        """Store frames by a selection."""
        self.frames[first : first + len(frames)] = frames

    def flush(self) -> None:
        """Do nothing: chunks are files, written when `write` returns."""

    def sync(self) -> None:
        """Sync the file system."""
        Folder(self.path).sync()  # one call, as gsio's own Zarr writer does


class ZarrFused(ZarrPython):
    """The pipeline that zarr-python 3.3 has for local files, one thread a chunk; it must be chosen."""

    pipeline: ClassVar[dict[str, Any]] = {
        "codec_pipeline.path": "zarr.core.codec_pipeline.FusedCodecPipeline",
        "codec_pipeline.max_workers": usable_cores(),
    }

    def __init__(self, path: Path, shape: Sequence[int], how: codec.Blosc) -> None:
        import zarr
        import zarr.core.codec_pipeline

        if not hasattr(zarr.core.codec_pipeline, "FusedCodecPipeline"):
            raise ImportError(f"zarr-python {zarr.__version__} has no FusedCodecPipeline")
        super().__init__(path, shape, how)


class TensorStore:
    """Asynchronous writes to a zarr3 array, as many blocks in flight as there are cores; fsync once, at the end."""

    threads, batch = usable_cores(), 0

    def __init__(self, path: Path, shape: Sequence[int], how: codec.Blosc) -> None:
        import tensorstore

        self.path = path
        blosc = {**how._asdict(), "shuffle": "shuffle", "typesize": 4}
        spec = {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": f"{path}/v/"},
            "metadata": {
                "shape": list(shape),
                "data_type": "float32",
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, *shape[1:]]}},
                "codecs": [
                    {"name": "bytes", "configuration": {"endian": "little"}},
                    {"name": "blosc", "configuration": blosc},
                ],
            },
            "context": {
                "data_copy_concurrency": {"limit": usable_cores()},
                "file_io_concurrency": {"limit": usable_cores()},
                "file_io_sync": False,
            },
        }
        self.frames = tensorstore.open(spec, create=True).result()

    def write(self, first: int, frames: NDArray[np.float32]) -> None:
        """Start writing and wait for it; nobody touches `frames` before, so that they need not be copied."""
        array = self.frames[first : first + len(frames)]
        array.write(frames, can_reference_source_data_indefinitely=True).result()

    def flush(self) -> None:
        """Do nothing: chunks are files, written when `write` returns."""

    def sync(self) -> None:
        """Sync the file system."""
        Folder(self.path).sync()  # one call, as gsio's own Zarr writer does


class Floor:
    """Raw frames put in place by `pwrite` from threads, in one preallocated file: no format, no codec."""

    threads, batch = usable_cores(), 0

    def __init__(self, path: Path, shape: Sequence[int], how: codec.Blosc) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        self.frame_nbytes = 4 * shape[1] * shape[2]
        os.posix_fallocate(self.fd, 0, shape[0] * self.frame_nbytes)

    def write(self, first: int, frames: NDArray[np.float32]) -> None:
        """Write frames to their place."""
        rest, place = frames.reshape(-1).view(np.uint8).data, first * self.frame_nbytes
        while rest:
            written = os.pwrite(self.fd, rest, place)
            rest, place = rest[written:], place + written

    def flush(self) -> None:
        """Do nothing: the operating system has everything."""

    def sync(self) -> None:
        """Sync and close the file."""
        os.fsync(self.fd)
        os.close(self.fd)


PEERS: dict[str, Any] = {
    "h5py": H5py,
    "zarr-python": ZarrPython,
    "zarr-python fused": ZarrFused,
    "TensorStore": TensorStore,
    "pwrite": Floor,
}
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
    """Return gsio's outputs, peers and codecs, for a main job of `options.frames` frames."""
    frames = min(options.frames, 20) if options.quick else options.frames
    small, large = SMALL_FRAMES * frames, max(2, round(LARGE_FRAMES * frames))
    peer = {"output.compression": "lz4"}  # whose layout is that of plain frames
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
    for name in MAIN_OUTPUTS:
        output, changes = OUTPUTS[name]
        jobs[f"gsio 256², {name}"] = Job("gsio", output, {**changes, **SMALL}, small)
        if options.device == "gpu":
            jobs[f"gsio 16384², {name}"] = Job("gsio", output, {**changes, **LARGE}, large)
    compressed = {name: of for name, of in OUTPUTS.items() if not name.endswith("none")}
    jobs |= {f"codec alone, {name}": Job("codec", *of, frames) for name, of in compressed.items()}
    if options.quick:
        skipped = "dense", "256²", "16384²", "zstd", "codec"
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


def measure(folder: Path, device: str, *values: Any) -> Found:
    """Run one row with few frames, to warm up, then with all, in `folder`; check three frames of what it wrote."""
    job = Job(*values)
    output = folder / job.output
    backend = "cupy" if device == "gpu" else "numba"
    config = load_config(overrides={"run.backend": backend, "run.frames": job.frames, **job.changes}, environ={})
    if job.how not in PEERS:
        config = with_codec(config, output)
    if job.how == "codec":  # whose frames all stay in memory, raw and encoded
        affordable = available_memory() // 4 // layout_of(config).frame.frame_nbytes
        config = with_frames(config, min(job.frames, max(1, affordable)))
    few = with_frames(config, min(config.run.frames, 2 * layout_of(config).frames_per_block))
    run_job(job, few, output)
    shutil.rmtree(output) if output.is_dir() else output.unlink()
    free()
    os.sync()  # what others and the warm-up left is not to be waited for
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
    """Store all frames of `config` as the job says, and return the seconds and the device."""
    if job.how == "gsio":
        return run_gsio(config, output, job.before)
    if job.how == "codec":
        return run_codec(config, output, job.before)
    return run_peer(config, output, job.before, PEERS[job.how])


def loop(config: Config, solver: Any, pool: BlockPool, writer: Any, trace: Trace, threads: int) -> Pipeline:
    """Run the frame loop and return its pipeline."""
    pipeline = Pipeline(config, solver, pool, writer, trace, threads)
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
    trace = Trace()
    attributes = root_attributes(config, solver.backend, solver.device)
    with Journal(output) as journal:
        writer = open_writer(Target(output, config, layout, attributes, journal, trace))
        use_page_cache(output.parent, config.run.frames * layout.frame.frame_nbytes)
        pipeline = loop(config, solver, pool, writer, trace, encoding_threads(config, layout))
        journal.remove()
    durable = time.perf_counter() - pipeline.started
    return {"loop": pipeline.finished - pipeline.started, "durable": durable, "device": solver.device}


def run_codec(config: Config, output: Path, before: int) -> dict[str, Any]:
    """Keep the frames of a run in memory; encode them, and encode and write them, with the same threads, in turn.

    Medians of some rounds: a machine that is shared changes its speed within seconds.
    """
    layout = layout_of(config)  # without a backend: the solver stages frames, and threads encode them
    threads, blocks = encoding_threads(config, layout), pool_size(config, layout)
    solver = started_solver(config, layout, blocks, before)
    record = Record()
    loop(config, solver, BlockPool(layout, blocks, solver.allocate), record, Trace(), threads)
    tasks: list[tuple[Block, int]] = []
    for first, (data, _, _) in sorted(record.blocks.items()):
        block = Block(layout, np.empty(layout.block_nbytes, np.uint8))
        block.data, block.count = data, min(layout.frames_per_block, config.run.frames - first)
        tasks += [(block, task) for task in range(layout.tasks)]

    def encode(tasks: Iterator[tuple[Block, int]]) -> None:
        for block, task in tasks:
            codec.encode(block, config.output, task)
            block.chunks.clear()  # as a writer lets go of what it wrote

    rounds: list[Found] = []
    for _ in range(CODEC_ROUNDS):
        if rounds:
            empty(output.rename(Path(tempfile.mkdtemp(dir=output.parent), output.name)))
        shared, start = iter(tasks), time.perf_counter()
        with ThreadPoolExecutor(threads) as executor:
            list(executor.map(encode, [shared] * threads))
        alone = time.perf_counter() - start
        pool = BlockPool(layout, blocks, Replay({}).allocate)
        rounds.append({**stored(config, output, layout, Replay(record.blocks), pool), "alone": alone})
    return {**{key: median(rounds, key) for key in ("loop", "durable", "alone")}, "device": solver.device}


def run_peer(config: Config, output: Path, before: int, make: Any) -> dict[str, Any]:
    """Store the frames of gsio's solver by a peer."""
    layout, frames = layout_of(config), config.run.frames
    per_block = make.batch or layout.frames_per_block
    layout = BlockLayout.of_frames(layout.frame, per_block)
    blocks = make.threads + 4
    solver = started_solver(config, layout, blocks, before)
    pool = BlockPool(layout, blocks, solver.allocate)
    how = codec.blosc_of(config.output)
    assert how is not None
    peer: Peer = make(output, (frames, *layout.frame.shape), how)

    def store(block: Block) -> None:
        try:
            solver.wait(block)
            peer.write(block.first, block.data[: block.count].view(layout.frame.dtype).reshape(-1, *layout.frame.shape))
        finally:  # else computing would wait for it forever
            pool.release(block)

    use_page_cache(output.parent, frames * layout.frame.frame_nbytes)
    start = time.perf_counter()
    with ThreadPoolExecutor(peer.threads) as executor:
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
    """Write a file in `folder`, as large as so many raw bytes are once they are encoded, and delete it.

    A virtual machine has to ask its host for memory that nobody used for seconds, which took 10 µs a page where to
    write it takes 1 µs; that is no matter of storage.
    """
    piece = bytes(8 << 20)
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(nbytes // 4 // len(piece)):
            file.write(piece)


def started_solver(config: Config, layout: BlockLayout, blocks: int, before: int) -> Solver:
    """Return gsio's solver after the steps before the first frame."""
    solver = open_solver(config.run.backend, config, layout, blocks, initial_state)
    if before:
        solver.advance(before)
        solver.fields()  # waits for the device
    return solver


def wrong_frames(config: Config, output: Path, before: int) -> list[int]:
    """Compute the run again, saving nothing, and return which of three frames in the file differ in any byte."""
    solver = started_solver(config, layout_of(config), 1, before)
    last = config.run.frames - 1
    wrong = []
    for number in range(config.run.frames):
        solver.advance(config.run.steps_per_frame)
        if number in (0, last // 2, last):
            expected = solver.fields()[1]
            if read_frame(output, number, expected.shape).tobytes() != expected.tobytes():
                wrong.append(number)
    return wrong


def read_frame(output: Path, number: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return a frame as the format's usual reader gives it."""
    if output.suffix == ".h5":
        import h5py

        with suppress(ImportError):  # then h5py says which filter it lacks
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
    """Give the memory of the solver before this back, on the GPU too, which CuPy else keeps."""
    gc.collect()
    if "cupy" in sys.modules:
        import cupy

        cupy.get_default_memory_pool().free_all_blocks()
