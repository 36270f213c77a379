"""The plan of a run: each "auto" of a configuration becomes a value here, once, for all later code."""

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from gsio.codec import CODECS
from gsio.compute import devices_of, numba_compiles, why_too_old
from gsio.compute.bands import Band
from gsio.compute.cuda.segments import encoded_nbytes
from gsio.config import AUTO, BACKENDS, Config, one_of, parse_bytes, parse_devices
from gsio.errors import UsageError
from gsio.frames.chunking import Chunking
from gsio.frames.content import Content
from gsio.frames.layout import BlockLayout
from gsio.frames.sizes import Sizes, default_sizes
from gsio.log import log
from gsio.machine import available_memory, find_driver, how_to_install_cupy, one_line, usable_cores
from gsio.writer import format_of


class RunPlan(NamedTuple):
    """The choices with which a run is done.

    Attributes
    ----------
    config
        The configuration of the user, with the codec of the output. The output records it.
    backend
        The backend that computes.
    layout
        How blocks are cut. `layout.frame` is the format of a frame; `layout.chunks` says how the output is cut and
        encoded.
    threads, blocks
        Threads that encode, and blocks of the pool.
    """

    config: Config
    backend: str
    layout: BlockLayout
    threads: int
    blocks: int


def plan(
    config: Config,
    output: Path,
    frames_per_chunk: int = 0,
    lines_per_chunk: int = 0,
    sizes: Sizes | None = None,
    bands: int = 1,
) -> RunPlan:
    """Return the plan of a run that writes `output`; each of `bands`, or each GPU, gets slabs of the frames.

    An output that is extended keeps its `frames_per_chunk` and `lines_per_chunk`; 0: the number is chosen. Raises
    UsageError if the format of the output cannot hold such frames, or if `output.memory` is less than two blocks.
    """
    config, backend = with_codec(config, output), choose_backend(config)
    kept = {"frames_per_chunk": frames_per_chunk, "lines_per_chunk": lines_per_chunk}
    devices = len(devices_of(backend, config))
    if devices > 1 < bands:
        raise UsageError(f"run.devices: expected one GPU for each rank, got {devices}; leave the key out")
    layout = layout_of(config, backend, **kept, sizes=sizes, bands=max(bands, devices))
    return RunPlan(
        config,
        backend,
        layout,
        encoding_threads(config, layout),
        pool_size(config, layout, sizes),
    )


def with_codec(config: Config, output: Path) -> Config:
    """Return `config` with the codec that `output` gets; raise UsageError if its format cannot hold such frames."""
    compression = content_with_codec(Content.of(config), output, "output.").compression
    return msgspec.structs.replace(config, output=msgspec.structs.replace(config.output, compression=compression))


def content_with_codec(content: Content, output: Path, section: str = "") -> Content:
    """Return `content` with the codec that `output` gets; raise UsageError if its format cannot hold such frames.

    The message begins with the name of the value, in a `section` of the configuration of a run, or of an argument.
    """
    form, compression = format_of(output), content.compression
    allowed = {codec.name: codec for codec in form.codecs}
    if compression == AUTO:
        compression = next(iter(allowed))
    if compression not in allowed:
        how = " with shuffled bytes" if CODECS[compression].byte_planes else ""
        raise UsageError(f"{section}compression: {form.name} has no {compression}{how}; expected {one_of([*allowed])}")
    if content.shard_frames and not form.shards:
        raise UsageError(
            f"{section}shard_frames: {form.name} is one file already; expected 0, or an output that ends in .zarr"
        )
    if (levels := content.pyramid) and not form.pyramid:
        raise UsageError(
            f"{section}pyramid: {form.name} has no such levels; expected 0, or an output that ends in .zarr"
        )
    least = min(axis.size for axis in content.volume[1:])
    if least >> levels == 0:
        raise UsageError(
            f"{section}pyramid: expected at most {least.bit_length() - 1} with {least} cells, got {levels}"
        )
    if content.level not in (of_codec := allowed[compression].levels):
        expected = f"{of_codec[0]} to {of_codec[-1]} with {compression}"
        raise UsageError(f"{section}level: expected {expected}, got {content.level}")
    dtype = np.dtype(content.store)
    most = np.finfo(dtype).nmant - 1 if dtype.kind == "f" and dtype.itemsize >= 4 else 0
    if content.keep_bits > most:
        raise UsageError(f"{section}keep_bits: expected 0 to {most} with {dtype}, got {content.keep_bits}")
    if content.store == "float16" and not form.float16:
        raise UsageError(
            f"{f'{section}store' if section else 'dtype'}: float16 in {form.name} crashes netCDF readers; expected "
            f"{section}keep_bits=10, which keeps as many bits in float32, or an output that ends in .zarr"
        )
    return msgspec.structs.replace(content, compression=compression)


def choose_backend(config: Config) -> str:
    """Return the backend of the run; "auto" is the GPU if that can be used, or else Numba."""
    if config.run.backend != AUTO:
        return config.run.backend
    driver = find_driver()
    if driver is None or not driver.gpus:
        return _backend_on_cpu()
    wanted = (parse_devices("run.devices", config.run.devices) or (config.run.device,))[0]
    device = min(wanted, len(driver.gpus) - 1)  # `open_solver` refuses a GPU that does not exist
    gpu = driver.gpus[device]
    try:
        reason = why_too_old(device)
    except Exception as error:
        found = "CuPy is not installed" if find_spec("cupy") is None else f"CuPy does not start: {one_line(error)}"
        log.warning(f"{gpu} is not used, the CPU is: {found}; get it with {how_to_install_cupy(driver)}")
        return _backend_on_cpu()
    if reason:
        log.warning(f"{gpu} is not used, the CPU is: {reason}")
        return _backend_on_cpu()
    return "cupy"


def _backend_on_cpu() -> str:
    """Return the backend that "auto" is without a GPU: Numba, or NumPy where Numba may not compile."""
    if numba_compiles():
        return "numba"
    log.warning("NUMBA_DISABLE_JIT is set: the backend is numpy, which is slow; unset the variable to use numba")
    return "numpy"


def layout_of(
    config: Config,
    backend: str = "",
    *,
    frames_per_chunk: int = 0,
    lines_per_chunk: int = 0,
    sizes: Sizes | None = None,
    bands: int = 1,
) -> BlockLayout:
    """Return the layout of the frames of a run of `config`; see `content_layout`."""
    return content_layout(
        Content.of(config),
        backend,
        frames=config.run.frames,
        steps=config.run.steps_per_frame,
        frames_per_chunk=frames_per_chunk,
        lines_per_chunk=lines_per_chunk,
        sizes=sizes,
        bands=bands,
    )


def layout_of_band(layout: BlockLayout, config: Config, bands: Sequence[Band], number: int) -> BlockLayout:
    """Return the layout of the blocks of one of `bands`, which have the same frames as the blocks of all others."""
    shapes = [band.shape(layout.frame.shape) for band in bands]
    parts = [
        replace(layout.chunks, frame=replace(layout.frame, shape=shape)) for shape in (max(shapes), shapes[number])
    ]
    blocks = BlockLayout.choose(
        parts[0],
        default_sizes(),
        steps=config.run.steps_per_frame,
        halve=layout.frames_per_task < layout.frames_per_block,
        encoded_nbytes=layout.encoded_nbytes,
    )
    return replace(blocks, chunks=parts[1], part=True)


def content_layout(
    content: Content,
    backend: str = "",
    *,
    frames: int = 0,
    steps: int = 0,
    frames_per_chunk: int = 0,
    lines_per_chunk: int = 0,
    sizes: Sizes | None = None,
    bands: int = 1,
) -> BlockLayout:
    """Return the layout of the frames of `content`, whose codec is known, in chunks and blocks.

    Without a `backend` that can encode, threads encode. The sizes of a chunk, and `sizes`, are chosen if not given. The
    `frames` of the output, and the time `steps` between two of them, are 0 where nobody knows them.
    """
    sizes = sizes or default_sizes()
    codec = CODECS.get(content.compression)  # None for AUTO: a caller that has no output encodes nothing
    chunks = Chunking.choose(
        content.frame(shuffle=codec is not None and codec.byte_planes),
        sizes,
        frames=frames,
        steps=steps,
        frames_per_chunk=frames_per_chunk,
        lines_per_chunk=lines_per_chunk,
        bands=bands,
        frames_per_shard=content.shard_frames,
        pyramid=content.pyramid,
        codec=codec.name if codec is not None else "",
        level=content.level,
    )
    # The levels of a pyramid are made from frames in host memory, so a GPU does not encode.
    kernels = codec.kernels if codec is not None and not content.pyramid else None
    can_encode = backend in BACKENDS and BACKENDS[backend].encodes
    whole = bands == 1 or chunks.slabs >= bands  # an output that is extended may have too few slabs for bands of them
    by_gpu = can_encode and whole and kernels is not None and content.level in kernels.levels
    encoded = encoded_nbytes(chunks, chunks.codec) if by_gpu else 0
    halve = not encoded and not (codec is not None and codec.raw)  # else a block costs a thread little
    return BlockLayout.choose(chunks, sizes, steps=steps, halve=halve, encoded_nbytes=encoded)


def encoding_threads(config: Config, layout: BlockLayout) -> int:
    """Return the number of threads that encode a run."""
    return config.output.threads or default_threads(layout)


def default_threads(layout: BlockLayout) -> int:
    """Return the number of threads that encode: one for each core that this process may use.

    With a GPU that encodes and many cores, there are fewer threads than cores. Threads that only write take turns at
    the interpreter: with more of them, the thread of the solver waits longer for its turn.
    """
    cores = usable_cores()
    return min(cores, 4 + cores // 4) if layout.encoded_nbytes else cores


def pool_size(config: Config, layout: BlockLayout, sizes: Sizes | None = None) -> int:
    """Return the number of blocks of a run, which needs no more than hold all its frames; raises as `blocks_of`."""
    in_the_run = -(-config.run.frames // layout.frames_per_block)
    return min(in_the_run, blocks_of(layout, encoding_threads(config, layout), config.output.memory, sizes))


def blocks_of(
    layout: BlockLayout,
    threads: int,
    memory: str,
    sizes: Sizes | None = None,
    *,
    nbytes_beside: int = 0,
    key: str = "output.memory",
) -> int:
    """Return the number of blocks: as many as `memory` holds, or else enough to keep encoding `threads` and link busy.

    `nbytes_beside` are bytes that each block takes beside its own. Raises UsageError if `memory` is less than two
    blocks, in a line that begins with `key`: one is filled while another is written.
    """
    if memory:
        nbytes = layout.block_nbytes + nbytes_beside
        blocks = parse_bytes(key, memory) // nbytes
        if blocks < 2:
            least = -(-2 * nbytes // 2**20)
            raise UsageError(f"{key}: expected at least {least}MiB, two blocks of frames, got {memory}")
        return blocks
    wanted = -(-threads // layout.chunks.slabs) + 4
    # Small blocks too cover the pauses of a disk.
    wanted *= max(1, (sizes or default_sizes()).block_bytes // layout.block_nbytes)
    affordable = available_memory() // 4 // (2 * layout.block_nbytes)
    return max(2, min(wanted, int(affordable)))
