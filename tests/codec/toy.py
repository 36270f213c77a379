"""A toy codec, as a new one would be written: one file that makes a `Codec`; `test_toy.py` adds it to the table."""

import zlib
from typing import Any

from gsio.codec.interface import Codec, Hdf5Filter


def encode(chunk: Any, itemsize: int, level: int) -> bytes:
    return zlib.compress(chunk, level)


def decode(encoded: Any, itemsize: int, nbytes: int) -> bytes:
    stream = zlib.decompressobj()
    raw = stream.decompress(encoded, nbytes + 1)
    if not stream.eof or stream.unused_data:
        raise ValueError("the stream does not end where the chunk does")
    return raw


def hdf5(itemsize: int, nbytes: int, level: int) -> dict[str, Any]:
    return {"compression": "gzip", "compression_opts": level}


def zarr(itemsize: int, level: int) -> list[dict[str, Any]]:
    return [{"name": "numcodecs.zlib", "configuration": {"level": level}}]


TOY = Codec("toy", "toy", encode, decode, range(1, 10), Hdf5Filter((1,), hdf5), zarr)
