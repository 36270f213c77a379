"""Deflate of byte planes in zlib streams (RFC 1950): every HDF5 has the filters `shuffle` and `gzip`."""

import itertools
from typing import Any

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from gsio.codec.interface import Codec, Hdf5Filter, Kernels

STORED_BYTES = 65535  # the most bytes of a block of the kind `stored`: RFC 1951, 3.2.4
SEGMENT_BYTES = 16 << 10  # a GPU encodes a segment in one piece; many fit into its shared memory side by side
STORED_HEADER = np.frombuffer(b"\0\xff\xff\0\0", np.uint8)  # before a full block that is not the last


def encode(chunk: NDArray[np.uint8], itemsize: int, level: int) -> Any:
    """Return a zlib stream of byte planes: noise is stored as it is, and ISA-L compresses the rest.

    In a dense pattern three of four byte planes are noise. ISA-L would spend half its time on them and save nothing.
    """
    few = _is_noise(chunk, every=4)
    if 4 * few.sum() <= len(few):  # cutting the stream would cost more than it gains
        return isal_zlib.compress(chunk, level)
    noise = _is_noise(chunk, every=1)
    pieces: list[Any] = [b"\x78\x01"]
    edges = [0, *(np.flatnonzero(np.diff(noise)) + 1).tolist(), len(noise)]
    for first, last in itertools.pairwise(edges):
        piece = chunk[first * STORED_BYTES : last * STORED_BYTES]
        if noise[first]:
            pieces.append(piece.reshape(-1, STORED_BYTES))
        else:
            compressor = isal_zlib.compressobj(level, wbits=-15)
            pieces += [compressor.compress(piece), compressor.flush(isal_zlib.Z_SYNC_FLUSH)]
    compressor = isal_zlib.compressobj(level, wbits=-15)
    pieces += [compressor.compress(chunk[len(noise) * STORED_BYTES :]), compressor.flush()]
    pieces.append(isal_zlib.adler32(chunk).to_bytes(4, "big"))
    return _joined(pieces)


def _joined(pieces: list[Any]) -> NDArray[np.uint8]:
    """Return the bytes of a stream: bytes as they are, arrays [block, byte] as stored blocks; NumPy frees the GIL."""
    whole = len(STORED_HEADER) + STORED_BYTES
    sizes = [len(piece) if isinstance(piece, bytes) else len(piece) * whole for piece in pieces]
    stream = np.empty(sum(sizes), np.uint8)
    for piece, end, size in zip(pieces, itertools.accumulate(sizes), sizes, strict=True):
        place = stream[end - size : end]
        if isinstance(piece, bytes):
            place[:] = np.frombuffer(piece, np.uint8)
        else:
            blocks = place.reshape(-1, whole)
            blocks[:, : len(STORED_HEADER)] = STORED_HEADER
            blocks[:, len(STORED_HEADER) :] = piece
    return stream


def _is_noise(chunk: NDArray[np.uint8], every: int) -> NDArray[np.bool_]:
    """Return for each piece of `STORED_BYTES` bytes whether it is noise, judged by 256 bytes: 32 windows of 8.

    256 random bytes have 162 different values, give or take 5, and one byte equals the byte before. Two windows in a
    flat part of the picture are enough to change these numbers.
    """
    pieces = -(-(len(chunk) // STORED_BYTES) // every)
    shape, strides = (pieces, 32, 8), (STORED_BYTES * every, STORED_BYTES // 32, 1)
    sample = np.lib.stride_tricks.as_strided(chunk, shape, strides, writeable=False).reshape(pieces, 256)
    ordered = np.sort(sample, axis=1)
    different = (ordered[:, 1:] != ordered[:, :-1]).sum(axis=1)
    repeated = (sample[:, 1:] == sample[:, :-1]).sum(axis=1)
    return np.asarray((different > 148) & (repeated < 8))


def decode(encoded: Any, itemsize: int, nbytes: int) -> Any:
    """Return the bytes of a chunk in C order; NumPy releases the interpreter lock, which numcodecs' Shuffle holds."""
    stream = isal_zlib.decompressobj()
    planes = np.frombuffer(stream.decompress(encoded, nbytes + 1), np.uint8)
    if not stream.eof or stream.unused_data:
        raise ValueError("the stream does not end where the chunk does")
    if len(planes) != nbytes:
        return planes
    values = np.empty((nbytes // itemsize, itemsize), np.uint8)
    for place, plane in enumerate(planes.reshape(itemsize, -1)):
        values[:, place] = plane
    return values


def _hdf5(itemsize: int, nbytes: int, level: int) -> dict[str, Any]:
    return {"shuffle": True, "compression": "gzip", "compression_opts": level}


DEFLATE = Codec(
    name="deflate",
    family="deflate",
    encode=encode,
    decode=decode,
    levels=range(4),  # the levels of ISA-L
    hdf5=Hdf5Filter((2, 1), _hdf5),
    zarr=None,  # the core specification has no byte shuffle before gzip
    byte_planes=True,
    kernels=Kernels(
        source="deflate.cu",
        threads=256,
        segment=SEGMENT_BYTES,
        around=32,  # a segment follows its Adler-32, aligned, and the kernels can read a word after the segment
        levels=range(1, 2),
        blocks=lambda cells, itemsize: (-(-cells // SEGMENT_BYTES), min(cells, SEGMENT_BYTES)),
        headers=lambda blocks, segments: 2 + 5 * segments + 6,
    ),
)
