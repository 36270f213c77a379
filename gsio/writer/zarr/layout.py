"""The arrays and attributes of a Zarr output, and the form and place of its chunks."""

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from crc32c import crc32c
from numpy.typing import NDArray

from gsio.codec import CODECS
from gsio.config import Config
from gsio.frames.layout import BlockLayout
from gsio.frames.metadata import (
    AXES,
    COORDINATES,
    QUANTIZATION,
    SERIES_CHUNK,
    field_attributes,
    frame_series,
    quantization_attributes,
    series_attributes,
)
from gsio.writer.ome import level_path, levels_of, ome_attributes

NO_CHUNK = 2**64 - 1  # its offset and size in the index of a shard


def chunk_key(name: str, number: int, slab: int, layout: BlockLayout) -> str:
    """Return where a chunk, or a shard, of an array is in the store."""
    return f"{name}/c.{number}.{slab}" + ".0" * len(layout.frame.shape[1:])


def halved(values: NDArray[Any]) -> NDArray[Any]:
    """Return the means of 2 × 2 cells of [frame, …, row, col], of the same dtype; an odd last row or column is left."""
    rows, cols = (size - size % 2 for size in values.shape[-2:])
    whole = values[..., :rows, :cols]
    if whole.dtype.itemsize < 4:  # float16, or an integer
        whole = whole.astype(np.float32)
    pairs = whole[..., ::2, :] + whole[..., 1::2, :]
    means = (pairs[..., ::2] + pairs[..., 1::2]) * pairs.dtype.type(0.25)
    found: NDArray[Any] = (np.rint(means) if values.dtype.kind == "u" else means).astype(values.dtype)
    return found


def shard_pieces(chunks: Sequence[Any], most: int) -> list[Any]:
    """Return the parts of a value of up to `most` chunks, by the codec `sharding_indexed` of the core specification."""
    index = np.full((most, 2), NO_CHUNK, "<u8")
    offset = 0
    for place, chunk in enumerate(chunks):
        index[place] = offset, len(chunk)
        offset += len(chunk)
    tail = index.tobytes()
    return [*chunks, tail + crc32c(tail).to_bytes(4, "little")]


def create_store(path: Path, config: Config, layout: BlockLayout, attributes: Mapping[str, Any]) -> None:
    """Create every array and attribute, without a frame."""
    root = zarr.open_group(path, mode="w-", zarr_format=3)
    root.attrs.update({**attributes, "status": "running", "ended": "", **ome_attributes(config, layout, {})})
    keys: Any = {"name": "default", "separator": "."}  # all chunks of an array in one folder
    axes = AXES[-len(layout.frame.shape) :]
    for name, size in zip(axes, layout.frame.shape, strict=True):
        axis = root.create_array(
            name,
            data=np.arange(size, dtype=np.float64),
            chunks=(size,),
            compressors=None,
            dimension_names=(name,),
            chunk_key_encoding=keys,
        )
        axis.attrs.update(COORDINATES[name])
    for name, values in frame_series(config, layout, []).items():
        if "/" in name:
            root.require_group(name.partition("/")[0])
        series = root.create_array(
            name,
            shape=(0,),
            dtype=values.dtype,
            chunks=(SERIES_CHUNK,),
            compressors=None,
            dimension_names=("time",),
            chunk_key_encoding=keys,
        )
        series.attrs.update(series_attributes(name, layout))
    how = CODECS[layout.chunks.codec].zarr
    assert how is not None  # the plan chose a codec that Zarr has
    compressors = how(layout.chunks.level) or None
    for name in layout.frame.fields:
        field = root.create_array(
            name,
            shape=(0, *layout.frame.shape),
            dtype=layout.frame.dtype,
            chunks=layout.chunks.chunk_shape,
            shards=(layout.chunks.frames_per_shard, *layout.chunks.chunk_shape[1:])
            if layout.chunks.frames_per_shard
            else None,
            compressors=compressors,
            dimension_names=("time", *axes),
            chunk_key_encoding=keys,
        )
        field.attrs.update(field_attributes(name, layout))
        for level in levels_of(config):
            smaller = tuple(size >> level for size in layout.frame.shape[-2:])
            lines = (
                layout.chunks.lines_per_chunk >> level
                if len(layout.frame.shape) == 2
                else layout.chunks.lines_per_chunk
            )
            key = level_path(name, level)
            root.require_group(key.rpartition("/")[0])
            array = root.create_array(
                key,
                shape=(0, *layout.frame.shape[:-2], *smaller),
                dtype=layout.frame.dtype,
                chunks=(layout.chunks.frames_per_chunk, lines, *(*layout.frame.shape[:-2], *smaller)[1:]),
                compressors=compressors,
                dimension_names=("time", *axes),
                chunk_key_encoding=keys,
            )
            array.attrs.update(field_attributes(name, layout))
    if layout.frame.keep_bits:
        root.create_array(QUANTIZATION, shape=(), dtype=np.int8).attrs.update(quantization_attributes())
    with warnings.catch_warnings(category=UserWarning, action="ignore"):  # it is an extension; all arrays say the same
        zarr.consolidate_metadata(root.store)


def json_bytes(value: Any) -> bytes:
    """Return a value as the JSON of a metadata file."""
    return json.dumps(value, indent=2).encode()
