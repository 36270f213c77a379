"""HDF5 arrays of an export, deflated after a byte shuffle."""

from typing import Any

import numpy as np
from isal import isal_zlib
from numcodecs import Shuffle
from numpy.typing import NDArray

from gsio.export.outputs import exported_dtype, lines_per_slab
from gsio.reader.selection import Selection


def create_array(group: Any, name: str, selection: Selection, shape: tuple[int, ...]) -> Any:
    """Return a new array with a chunk for each slab of a plane, deflated after a byte shuffle."""
    dtype = exported_dtype(selection)
    lines = lines_per_slab(shape[-2:], dtype)
    chunks = (*[1] * (len(shape) - 2), lines, shape[-1])
    return group.create_dataset(name, shape, dtype, chunks=chunks, shuffle=True, compression="gzip", compression_opts=1)


def write_planes(array: Any, place: tuple[int, ...], planes: NDArray[Any]) -> None:
    """Put planes [(member,) row, col] into an array of `create_array`; ISA-L is much faster than HDF5's own filter."""
    lines = array.chunks[-2]
    for member in np.ndindex(planes.shape[:-2]):
        for top in range(0, planes.shape[-2], lines):
            chunk = np.zeros(array.chunks[-2:], array.dtype)
            rows = planes[member][top : top + lines]
            chunk[: len(rows)] = rows
            encoded = isal_zlib.compress(Shuffle(chunk.itemsize).encode(chunk), 1)
            array.id.write_direct_chunk((*place, *member, top, 0), encoded)
