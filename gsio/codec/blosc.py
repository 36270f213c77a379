"""Blosc, version 1, with a byte shuffle of its own: lz4 and zstd."""

import itertools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gsio.codec.interface import Codec, Hdf5Filter, Kernels

FILTER = 32001  # the registered number of Blosc among the filters of HDF5
FILTER_VERSIONS = 2, 2  # the versions of the filter and of Blosc's format
SHUFFLE = 1  # Blosc shuffles bytes
CODES = {"lz4": 1, "zstd": 5}  # the numbers of Blosc's compressors in the filter
HEADER_BYTES, FORMAT = 16, 2  # each chunk begins with a header, whose first byte is the format
SEGMENT_BYTES = 8 << 10  # a GPU encodes a segment in one piece; many fit into its shared memory side by side


class Blosc(NamedTuple):
    """The parameters of Blosc, by Blosc's own names."""

    cname: Literal["lz4", "zstd"]
    clevel: int
    blocksize: int


def lz4_parameters(level: int) -> Blosc:
    """Return the parameters of lz4, which ignore `level`: higher levels and larger blocks made the encoder slower.

    The kernels of a GPU make blocks of about the same size.
    """
    return Blosc("lz4", 3, 32 << 10)


def zstd_parameters(level: int) -> Blosc:
    """Return the parameters of zstd: with blocks larger than Blosc's choice, it is 1.8 times as fast and packs more."""
    return Blosc("zstd", max(1, level), 1 << 20)


def decode(encoded: Any, itemsize: int, nbytes: int) -> Any:
    """Return the bytes of a chunk; raise ValueError unless its header, which Blosc believes, has the expected sizes."""
    header = bytes(encoded[:HEADER_BYTES])
    if len(header) < HEADER_BYTES or header[0] != FORMAT:
        raise ValueError("expected the header of Blosc, found another")
    decoded, size = (int.from_bytes(header[start : start + 4], "little") for start in (4, 12))
    if (size, decoded) != (len(encoded), nbytes):
        raise ValueError(f"expected {len(encoded)} bytes that become {nbytes}, found {size} that become {decoded}")
    from numcodecs import blosc

    return blosc.decompress(encoded)


def _gpu_blocks(cells: int, itemsize: int) -> tuple[int, int]:
    """Return how many blocks a GPU makes of a chunk, and the cells of a block.

    Blosc puts all byte planes of a shorter last block into one segment, which must not be longer than the others.
    """
    for whole in itertools.count(-(-cells // SEGMENT_BYTES)):
        block, rest = divmod(cells, whole)
        if rest * itemsize <= block:
            break
    return whole + (rest > 0), block


def _codec(parameters: Callable[[int], Blosc], kernels: Kernels | None = None) -> Codec:
    name = parameters(1).cname
    cname, code = name.encode(), CODES[name]

    def encode(chunk: NDArray[np.uint8], itemsize: int, level: int) -> Any:
        from numcodecs import blosc  # takes as long as all codecs together, and a GPU does not need it

        _, clevel, blocksize = parameters(level)
        return blosc.compress(chunk, cname, clevel, SHUFFLE, blocksize, itemsize)

    def hdf5(itemsize: int, nbytes: int, level: int) -> dict[str, Any]:
        options = (*FILTER_VERSIONS, itemsize, nbytes, parameters(level).clevel, SHUFFLE, code)
        return {"compression": FILTER, "compression_opts": options, "allow_unknown_filter": True}

    def zarr(itemsize: int, level: int) -> list[dict[str, Any]]:
        _, clevel, blocksize = parameters(level)
        how = {"typesize": itemsize, "cname": name, "clevel": clevel, "shuffle": "shuffle", "blocksize": blocksize}
        return [{"name": "blosc", "configuration": how}]

    return Codec(
        name=name,
        family="blosc",
        encode=encode,
        decode=decode,
        levels=range(10),
        hdf5=Hdf5Filter((FILTER,), hdf5, plugin="hdf5plugin"),
        zarr=zarr,
        kernels=kernels,
    )


KERNELS = Kernels(
    source="blosc.cu",
    threads=32,
    segment=SEGMENT_BYTES,
    around=8,  # a segment follows its size, and the kernels can read a word after the segment
    levels=range(10),
    blocks=_gpu_blocks,
    headers=lambda blocks, segments: HEADER_BYTES + 4 * (blocks + segments),
)
LZ4 = _codec(lz4_parameters, KERNELS)
ZSTD = _codec(zstd_parameters)
