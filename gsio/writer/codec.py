"""What becomes of a chunk: its checksum, and its encoded bytes."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
from crc32c import crc32c
from isal import isal_zlib
from numcodecs import Shuffle, blosc
from numpy.typing import NDArray

from gsio.config import Output
from gsio.staging import Block


class Blosc(NamedTuple):
    """How Blosc encodes a chunk, after its byte shuffle; the names are its own."""

    cname: Literal["lz4", "zstd"]
    clevel: int
    blocksize: int


def blosc_of(output: Output) -> Blosc | None:
    """Return how Blosc encodes the chunks of a run, or None if it does not.

    Larger blocks than Blosc's own choice made zstd 1.8 times as fast, and smaller; higher levels made lz4 slower, and
    so did larger blocks, of which a GPU makes about the same.
    """
    if output.compression == "lz4":
        return Blosc("lz4", 3, 32 << 10)
    if output.compression == "zstd":
        return Blosc("zstd", max(1, output.level), 1 << 20)
    return None


def checksum(block: Block, first: int, last: int) -> None:
    """Set the crc32c (Castagnoli) of the frames [first, last) of `block`: all their fields, as staged."""
    for frame in range(first, min(last, block.count)):
        block.checksums[frame] = crc32c(block.data[frame])


def encode(block: Block, output: Output, slab: int) -> None:
    """Set the chunks of one slab of `block`, and with the first the checksums; the GIL is free meanwhile.

    Nothing is left to do if the solver did. A checksum comes after its chunk: its bytes are in the cache then, and it
    takes half as long.
    """
    if (0, slab) in block.chunks:
        return
    layout = block.layout
    compress = _compressor(output, layout.dtype.itemsize)
    for number, frame in enumerate(range(0, block.count, layout.frames_per_chunk)):
        chunk = [compress(_gathered(block, number, slab, field)) for field in range(len(layout.fields))]
        block.chunks[number, slab] = chunk
        if slab == 0:
            checksum(block, frame, frame + layout.frames_per_chunk)


def decode(encoded: bytes, how: str, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the values [value] of a chunk, by 'deflate', 'blosc' or 'none'; raises ValueError if it is damaged."""
    try:
        if how == "deflate":
            return np.frombuffer(Shuffle(dtype.itemsize).decode(isal_zlib.decompress(encoded)), dtype)
        return np.frombuffer(blosc.decompress(encoded) if how == "blosc" else encoded, dtype)
    except Exception as error:  # each library has its own
        raise ValueError(f"a chunk cannot be decoded: {error}") from None


def _compressor(output: Output, itemsize: int) -> Callable[[NDArray[np.uint8]], Any]:
    if output.compression == "deflate":  # by ISA-L: a plain zlib stream, which HDF5's own filter reads
        return lambda chunk: isal_zlib.compress(chunk, output.level)
    if (how := blosc_of(output)) is not None:
        name = how.cname.encode()
        return lambda chunk: blosc.compress(chunk, name, how.clevel, blosc.SHUFFLE, how.blocksize, itemsize)
    return lambda chunk: chunk


def _gathered(block: Block, number: int, slab: int, field: int) -> NDArray[np.uint8]:
    """Return the bytes [byte] of one field of a chunk, in the order its codec wants; a view if that is theirs now."""
    layout = block.layout
    planes = layout.dtype.itemsize if layout.shuffle else 1  # those of all frames lie together
    frame, line = number * layout.frames_per_chunk, slab * layout.lines_per_chunk
    frames = block.data[frame : min(frame + layout.frames_per_chunk, block.count), field]
    lines = frames.reshape(len(frames), planes, layout.shape[0], -1)[:, :, line : line + layout.lines_per_chunk]
    found = lines.swapaxes(0, 1)
    if found.size < layout.chunk_nbytes:
        chunk = np.zeros((planes, *layout.chunk_shape[:2], found.shape[-1]), np.uint8)
        chunk[:, : len(frames), : found.shape[2]] = found
        found = chunk
    return found.reshape(-1)
