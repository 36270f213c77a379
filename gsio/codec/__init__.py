"""Codecs: the table of them, and how the chunks of a block are encoded and decoded.

To add a codec, write a file that makes a `Codec`, and add its row to `gsio.config.tables.CODECS`.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsio import config
from gsio.codec.checksum import set_checksums
from gsio.codec.interface import Codec
from gsio.frames.block import Block, FilledBlock

__all__ = ["CODECS", "Codec", "chunk_bytes", "decode", "encode", "prepend", "register", "set_checksums", "values"]

CODECS: dict[str, Codec] = {
    name: getattr(import_module(f"gsio.codec.{module}"), name.upper()) for name, module in config.CODECS.items()
}


def register(codec: Codec) -> None:
    """Add a codec at run time, so that a configuration can name it."""
    CODECS[codec.name] = codec
    config.CODECS.setdefault(codec.name, "")


def encode(block: FilledBlock, task: int) -> None:
    """Set the chunks of one task of `block`, and with the first slab the checksums, without the interpreter lock.

    If the solver has encoded the block, nothing is left to do. The checksums of frames are taken after their chunk is
    encoded: the bytes are in the cache by then, so that a checksum takes half as long.
    """
    layout, codec = block.layout, CODECS[block.layout.chunks.codec]
    numbers, slab = block.chunk_numbers(task)
    for number in numbers:
        if (number, slab) in block.chunks:
            return
        chunks = (chunk_bytes(block, number, slab, field) for field in range(len(layout.frame.fields)))
        block.chunks[number, slab] = [
            codec.encode(chunk, layout.frame.dtype.itemsize, layout.chunks.level) for chunk in chunks
        ]
        if slab == 0:
            set_checksums(block, number * layout.chunks.frames_per_chunk, (number + 1) * layout.chunks.frames_per_chunk)


def prepend(block: FilledBlock, before: Sequence[NDArray[Any]]) -> None:
    """Put frames of the output before the frames of `block`, with which they share a chunk or shard.

    `before` has the stored values of each field, [frame, …] of the layout's shape. Chunks that a solver has encoded are
    decoded, so that all frames of the block are encoded together.
    """
    kept, count, fields = len(before[0]), block.count, len(block.layout.frame.fields)
    if block.layout.encoded_nbytes:
        fresh, block.chunks = values(block), {}
        for frame, field in np.ndindex(count, fields):
            block.put(kept + frame, field, fresh[field][frame])
    else:
        block.data[kept : kept + count] = block.data[:count].copy()
    for series in (block.statistics, block.times, block.steps, *([block.sums] if block.layout.part else [])):
        series[kept : kept + count] = series[:count].copy()
        series[:kept] = 0
    for frame, field in np.ndindex(kept, fields):
        block.put(frame, field, before[field][frame])
    block.first, block.count, block.kept = block.first - kept, kept + count, kept


def values(block: Block, first: int = 0) -> list[NDArray[Any]]:
    """Return the stored values of each field, [frame, …], of the frames of `block` from place `first` on.

    If the solver encodes, the chunks are decoded, and the frame at `first` begins one.
    """
    layout, shape, dtype = block.layout, block.layout.frame.shape, block.layout.frame.dtype
    fields, count = range(len(layout.frame.fields)), block.count - first
    if not layout.encoded_nbytes:
        planes = dtype.itemsize if layout.frame.shuffle else 1
        raw = block.data[first : block.count].reshape(count, len(fields), planes, -1)
        plain = raw.swapaxes(2, 3).tobytes()
        return list(np.frombuffer(plain, dtype).reshape(count, len(fields), *shape).swapaxes(0, 1))
    codec, chunks = CODECS[layout.chunks.codec], layout.chunks
    numbers = range(first // chunks.frames_per_chunk, -(-block.count // chunks.frames_per_chunk))
    slabs = [
        [
            np.concatenate([
                decode(codec, bytes(block.chunks[number, slab][field]), dtype, chunks.chunk_nbytes)
                .reshape(chunks.chunk_shape)
                for number in numbers
            ])
            for slab in range(chunks.slabs)
        ]
        for field in fields
    ]  # fmt: skip
    return [np.concatenate(of_field, axis=1)[:count, : shape[0]] for of_field in slabs]


def decode(codec: Codec, encoded: Any, dtype: np.dtype[Any], nbytes: int) -> NDArray[Any]:
    """Return the values [value] of a chunk, a bytes-like object whose decoded size is `nbytes`.

    Raises ValueError if the chunk is damaged or has another size. A small file can pretend to hold much data, so at
    most one byte beyond that size is decoded.
    """
    try:
        values = np.frombuffer(codec.decode(encoded, dtype.itemsize, nbytes), dtype)
        if values.nbytes != nbytes:
            raise ValueError(f"expected {nbytes} bytes, found {values.nbytes}")
    except Exception as error:  # each library raises its own
        raise ValueError(f"a chunk cannot be decoded: {error}") from None
    return values


def chunk_bytes(block: Block, number: int, slab: int, field: int) -> NDArray[np.uint8]:
    """Return the bytes [byte] of one field of a chunk in the order of its codec: a view where the block allows one."""
    layout = block.layout
    planes = layout.frame.dtype.itemsize if layout.frame.shuffle else 1  # the byte planes of all frames lie together
    frame, line = number * layout.chunks.frames_per_chunk, slab * layout.chunks.lines_per_chunk
    frames = block.data[frame : min(frame + layout.chunks.frames_per_chunk, block.count), field]
    lines = frames.reshape(len(frames), planes, layout.frame.shape[0], -1)[
        :, :, line : line + layout.chunks.lines_per_chunk
    ]
    found = lines.swapaxes(0, 1)
    if found.size < layout.chunks.chunk_nbytes:
        chunk = np.zeros((planes, *layout.chunks.chunk_shape[:2], found.shape[-1]), np.uint8)
        chunk[:, : len(frames), : found.shape[2]] = found
        found = chunk
    return found.reshape(-1)
