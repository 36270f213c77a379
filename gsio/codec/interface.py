"""The type of a codec: each file of this folder makes one or two values of it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Hdf5Filter(NamedTuple):
    """The filters by which HDF5 decodes the chunks of a codec.

    Attributes
    ----------
    numbers
        The registered numbers of the filters, in the order in which a writer applies them.
    arguments
        A function from the bytes of a value, the bytes of a chunk, and the level, to arguments of h5py's
        `create_dataset`.
    plugin
        The package that readers with h5py need; "" if h5py has the filters.
    """

    numbers: tuple[int, ...]
    arguments: Callable[[int, int, int], dict[str, Any]]
    plugin: str = ""


class Kernels(NamedTuple):
    """The CUDA kernels of a codec: they cut a chunk into blocks of cells, and encode each byte plane of a block apart.

    Attributes
    ----------
    source
        A file in gsio/compute/cuda/kernels.
    threads
        The threads that encode one segment, the bytes of one plane of a block.
    segment
        The largest number of bytes in a segment.
    around
        The bytes by which the slot of a segment is longer than the segment before compression.
    levels
        The levels of the codec at which a GPU may encode.
    blocks
        A function from the cells of a chunk and the bytes of a cell, to the number of blocks and the cells of a block.
        The last block can be shorter.
    headers
        A function from the numbers of blocks and of segments, to the bytes that are added to a chunk in which nothing
        shrinks.
    """

    source: str
    threads: int
    segment: int
    around: int
    levels: range
    blocks: Callable[[int, int], tuple[int, int]]
    headers: Callable[[int, int], int]


class Codec(NamedTuple):
    """All that gsio knows of a codec: whatever differs between codecs is asked here, and no name is compared.

    Attributes
    ----------
    name
        The value of `output.compression`.
    family
        The name that `gsio info` shows, which is enough for a reader.
    encode
        A function from the bytes of a chunk (uint8 [byte]), the bytes of a value, and the level, to a bytes-like
        object. The function releases the interpreter lock.
    decode
        A function from the result of `encode`, the bytes of a value, and the size of the chunk, to a bytes-like object
        in C order. The function allocates at most one byte more than that size; a damaged chunk raises any exception.
    levels
        The values that `output.level` may have.
    hdf5, zarr
        The filters of HDF5; and the function from the bytes of a value, and the level, to the metadata of the codecs
        of Zarr. None where the format cannot hold such chunks.
    byte_planes
        Whether `encode` gets all first bytes of the values, then all second bytes, …; else it gets C order.
    raw
        Whether chunks are stored as they are.
    kernels
        The kernels by which a GPU encodes, if there are any.
    """

    name: str
    family: str
    encode: Callable[[NDArray[np.uint8], int, int], Any]
    decode: Callable[[Any, int, int], Any]
    levels: range
    hdf5: Hdf5Filter | None
    zarr: Callable[[int, int], list[dict[str, Any]]] | None
    byte_planes: bool = False
    raw: bool = False
    kernels: Kernels | None = None
