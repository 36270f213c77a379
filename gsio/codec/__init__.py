"""What becomes of a chunk: its checksum, and its encoded bytes."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from crc32c import crc32c
from isal import isal_zlib
from numcodecs import Shuffle, blosc
from numpy.typing import NDArray

from gsio.config import Output
from gsio.frames.block import Block

STORED = 65535  # bytes, at most, of a block that deflate stores


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


def encode(block: Block, output: Output, task: int) -> None:
    """Set the chunks of one task of `block`, and with the first slab the checksums; the GIL is free meanwhile.

    Nothing is left to do if the solver did. A checksum comes after its chunk: its bytes are in the cache then, and it
    takes half as long.
    """
    layout = block.layout
    compress = compressor(output, layout.frame.dtype.itemsize)
    numbers, slab = block.chunk_numbers(task)
    for number in numbers:
        if (number, slab) in block.chunks:
            return
        chunk = [compress(gathered(block, number, slab, field)) for field in range(len(layout.frame.fields))]
        block.chunks[number, slab] = chunk
        if slab == 0:
            checksum(block, number * layout.chunks.frames_per_chunk, (number + 1) * layout.chunks.frames_per_chunk)


def kind_of(output: Output) -> str:
    """Return how the chunks of a run are decoded, as `decode` takes it."""
    return "blosc" if blosc_of(output) else output.compression


def prepend(block: Block, before: Sequence[NDArray[Any]], output: Output) -> None:
    """Put frames that the output holds before those of `block`, with which they share a chunk or shard.

    `before` has the stored values of each field, [frame, …] of the layout's shape. Chunks that a solver has encoded are
    decoded, so that all frames of the block are encoded together.
    """
    layout, kept, count = block.layout, len(before[0]), block.count
    if block.chunks:
        fresh = []
        for field in range(len(layout.frame.fields)):
            slabs = [
                np.concatenate([
                    decode(bytes(block.chunks[number, slab][field]), kind_of(output), layout.frame.dtype)
                    .reshape(layout.chunks.chunk_shape)
                    for number in range(-(-count // layout.chunks.frames_per_chunk))
                ])
                for slab in range(layout.chunks.slabs)
            ]  # fmt: skip
            fresh.append(np.concatenate(slabs, axis=1)[:count, : layout.frame.shape[0]])
        block.chunks = {}
        for frame, field in np.ndindex(count, len(layout.frame.fields)):
            block.put(kept + frame, field, fresh[field][frame])
    else:
        block.data[kept : kept + count] = block.data[:count].copy()
    block.statistics[kept : kept + count] = block.statistics[:count].copy()
    block.statistics[:kept] = 0
    for frame, field in np.ndindex(kept, len(layout.frame.fields)):
        block.put(frame, field, before[field][frame])
    block.first, block.count, block.kept = block.first - kept, kept + count, kept


def decode(encoded: Any, how: str, dtype: np.dtype[Any], nbytes: int | None = None) -> NDArray[Any]:
    """Return the values [value] of a chunk, any bytes-like object, by 'deflate', 'blosc' or 'none'.

    `nbytes` is the size of the chunk when it is decoded; not given, the chunk is one of gsio's own that never left
    memory. Raises ValueError if the chunk is damaged or decodes to any other size: a small file can pretend to hold
    much, so nothing more is decoded.
    """
    try:
        if how == "deflate":
            stream = isal_zlib.decompressobj()
            raw = stream.decompress(encoded, 0 if nbytes is None else nbytes + 1)
            if not stream.eof or stream.unused_data:
                raise ValueError("the stream does not end where the chunk does")
            raw = Shuffle(dtype.itemsize).decode(raw)
        elif how == "blosc":
            _check_blosc(encoded, nbytes)
            raw = blosc.decompress(encoded)
        else:
            raw = encoded
        found = np.frombuffer(raw, dtype)
        if nbytes is not None and found.nbytes != nbytes:
            raise ValueError(f"expected {nbytes} bytes, found {found.nbytes}")
    except Exception as error:  # each library has its own
        raise ValueError(f"a chunk cannot be decoded: {error}") from None
    return found


def _check_blosc(encoded: Any, nbytes: int | None) -> None:
    """Raise ValueError unless the header of Blosc, version 1, has the sizes that are expected; Blosc believes it."""
    header = bytes(encoded[:16])
    if len(header) < 16 or header[0] != 2:
        raise ValueError("expected the header of Blosc, found another")
    decoded, size = (int.from_bytes(header[start : start + 4], "little") for start in (4, 12))
    if size != len(encoded) or nbytes not in (None, decoded):
        raise ValueError(f"expected {len(encoded)} bytes that become {nbytes}, found {size} that become {decoded}")


def compressor(output: Output, itemsize: int) -> Callable[[NDArray[np.uint8]], Any]:
    """Return the function that encodes the bytes of a chunk, of values of `itemsize` bytes."""
    if output.compression == "deflate":
        return lambda chunk: _deflate(chunk, output.level)
    if (how := blosc_of(output)) is not None:
        name = how.cname.encode()
        return lambda chunk: blosc.compress(chunk, name, how.clevel, blosc.SHUFFLE, how.blocksize, itemsize)
    return lambda chunk: chunk


def _deflate(chunk: NDArray[np.uint8], level: int) -> Any:
    """Return a plain zlib stream, RFC 1950, which HDF5's own filter reads; by ISA-L, but noise is stored as it is.

    In a dense pattern that is three of four byte planes, in which ISA-L finds nothing and takes half its time.
    """
    few = _is_noise(chunk, every=4)
    if 4 * few.sum() <= len(few):  # cutting the stream would cost more than it gains
        return isal_zlib.compress(chunk, level)
    noise = _is_noise(chunk, every=1)
    parts: list[Any] = [b"\x78\x01"]
    edges = [0, *(np.flatnonzero(np.diff(noise)) + 1).tolist(), len(noise)]
    for first, last in itertools.pairwise(edges):
        here = chunk[first * STORED : last * STORED]
        if noise[first]:
            parts.append(here.reshape(-1, STORED))
        else:
            compressor = isal_zlib.compressobj(level, wbits=-15)
            parts += [compressor.compress(here), compressor.flush(isal_zlib.Z_SYNC_FLUSH)]
    compressor = isal_zlib.compressobj(level, wbits=-15)
    parts += [compressor.compress(chunk[len(noise) * STORED :]), compressor.flush()]
    parts.append(isal_zlib.adler32(chunk).to_bytes(4, "big"))
    out = np.empty(sum(len(part) if isinstance(part, bytes) else len(part) * (5 + STORED) for part in parts), np.uint8)
    rest = out
    for part in parts:  # NumPy copies without the GIL
        if isinstance(part, bytes):
            here, rest = np.split(rest, [len(part)])
            here[:] = np.frombuffer(part, np.uint8)
        else:  # each a block of the kind `stored`, RFC 1951, 3.2.4
            here, rest = np.split(rest, [len(part) * (5 + STORED)])
            blocks = here.reshape(-1, 5 + STORED)
            blocks[:, :5] = np.frombuffer(b"\0\xff\xff\0\0", np.uint8)
            blocks[:, 5:] = part
    return out


def _is_noise(chunk: NDArray[np.uint8], every: int) -> NDArray[np.bool_]:
    """Return which of some pieces of `STORED` bytes would not shrink, by 256 of their bytes: 32 windows of 8.

    Of 256 random bytes 162 are different, give or take 5, and one is the same as the byte before; two windows in a flat
    part of the picture are enough to tell.
    """
    pieces = -(-(len(chunk) // STORED) // every)
    shape, strides = (pieces, 32, 8), (STORED * every, STORED // 32, 1)
    sample = np.lib.stride_tricks.as_strided(chunk, shape, strides, writeable=False).reshape(pieces, 256)
    ordered = np.sort(sample, axis=1)
    different = (ordered[:, 1:] != ordered[:, :-1]).sum(axis=1)
    repeated = (sample[:, 1:] == sample[:, :-1]).sum(axis=1)
    return np.asarray((different > 148) & (repeated < 8))


def gathered(block: Block, number: int, slab: int, field: int) -> NDArray[np.uint8]:
    """Return the bytes [byte] of one field of a chunk, in the order its codec wants; a view if that is theirs now."""
    layout = block.layout
    planes = layout.frame.dtype.itemsize if layout.frame.shuffle else 1  # those of all frames lie together
    frame, line = number * layout.chunks.frames_per_chunk, slab * layout.chunks.lines_per_chunk
    frames = block.data[frame : min(frame + layout.chunks.frames_per_chunk, block.count), field]
    lines = frames.reshape(len(frames), planes, layout.frame.shape[0], -1)
    found = lines[:, :, line : line + layout.chunks.lines_per_chunk].swapaxes(0, 1)
    if found.size < layout.chunks.chunk_nbytes:
        chunk = np.zeros((planes, *layout.chunks.chunk_shape[:2], found.shape[-1]), np.uint8)
        chunk[:, : len(frames), : found.shape[2]] = found
        found = chunk
    return found.reshape(-1)
