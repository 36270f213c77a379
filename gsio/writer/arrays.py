"""The arrays of an output, the same in every format; each format creates them in its own way."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gsio.frames.content import Content
from gsio.frames.layout import BlockLayout
from gsio.frames.metadata import (
    SERIES_CHUNK,
    Attributes,
    coordinate_attributes,
    field_attributes,
    frame_series,
    series_attributes,
)
from gsio.writer.ome import level_path, levels_of


class ArraySpec(NamedTuple):
    """One array of an output, before the first frame.

    Attributes
    ----------
    path
        The path in the file.
    dtype, shape, chunks
        As NumPy has them. An array whose first dimension is "time" has no frame yet, and grows.
    dimensions
        The name of each dimension.
    attributes
        The attributes of CF.
    values
        The values of a coordinate of a frame, which never change; None for an array along time.
    shards
        The shape of a shard; None if the array has no shards.
    compressed
        Whether the codec of the output encodes the chunks; else they are stored as they are.
    """

    path: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dimensions: tuple[str, ...]
    attributes: Attributes
    values: NDArray[Any] | None = None
    shards: tuple[int, ...] | None = None
    compressed: bool = False


def arrays_of(content: Content, layout: BlockLayout) -> Iterator[ArraySpec]:
    """Yield the arrays of an output in the order of creation: coordinates, series along time, fields and their levels.

    The scalar `metadata.QUANTIZATION`, which has attributes only, is not among them.
    """
    shape, chunks = layout.frame.shape, layout.chunks
    for axis in content.axes:
        values, size, attributes = axis.values, (axis.size,), coordinate_attributes(axis.name, axis)
        yield ArraySpec(axis.name, values.dtype, size, size, (axis.name,), attributes, values)
    for name, values in frame_series(layout, []).items():
        yield ArraySpec(name, values.dtype, (0,), (SERIES_CHUNK,), ("time",), series_attributes(name, content, layout))
    for name in layout.frame.fields:
        for level in (0, *levels_of(content)):
            cells = (*shape[:-2], *(size >> level for size in shape[-2:]))
            lines = chunks.lines_per_chunk >> (level if len(shape) == 2 else 0)  # a slab of a batch holds whole members
            yield ArraySpec(
                level_path(name, level),
                layout.frame.dtype,
                (0, *cells),
                (chunks.frames_per_chunk, lines, *cells[1:]),
                ("time", *(axis.name for axis in content.axes)),
                field_attributes(name, content, layout),
                shards=(chunks.frames_per_shard, *chunks.chunk_shape[1:])
                if chunks.frames_per_shard and not level
                else None,
                compressed=True,
            )
