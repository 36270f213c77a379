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
from gsio.frames.content import Content
from gsio.frames.layout import BlockLayout
from gsio.frames.metadata import QUANTIZATION, SERIES_CHUNK, quantization_attributes
from gsio.writer.arrays import arrays_of
from gsio.writer.ome import ome_attributes
from gsio.writer.zarr.store import Folder

NO_CHUNK = 2**64 - 1  # offset and size, in the index of a shard, of a chunk that is not there


def chunk_key(name: str, number: int, slab: int, layout: BlockLayout) -> str:
    """Return the key of a chunk, or a shard, of an array in the store."""
    return f"{name}/c.{number}.{slab}" + ".0" * len(layout.frame.shape[1:])


def halved(values: NDArray[Any]) -> NDArray[Any]:
    """Return the means of 2 × 2 cells of [frame, …, row, col], of the same dtype, without an odd last row or column."""
    rows, cols = (size - size % 2 for size in values.shape[-2:])
    whole = values[..., :rows, :cols]
    if whole.dtype.kind in "iu" and whole.dtype.itemsize >= 4:  # no float holds the sum
        corners = np.stack([whole[..., row::2, col::2] for row, col in np.ndindex(2, 2)])
        quarters: NDArray[Any] = (corners >> 2).sum(0, whole.dtype) + (((corners & 3).sum(0, whole.dtype) + 2) >> 2)
        return quarters
    if whole.dtype.itemsize < 4:  # float16, or an integer
        whole = whole.astype(np.float32)
    pairs = whole[..., ::2, :] + whole[..., 1::2, :]
    means = (pairs[..., ::2] + pairs[..., 1::2]) * pairs.dtype.type(0.25)
    found: NDArray[Any] = (np.rint(means) if values.dtype.kind in "iu" else means).astype(values.dtype)
    return found


def shard_pieces(chunks: Sequence[Any], most: int) -> list[Any]:
    """Return the pieces of a shard of up to `most` chunks: the codec `sharding_indexed` of the core specification."""
    index = np.full((most, 2), NO_CHUNK, "<u8")
    offset = 0
    for place, chunk in enumerate(chunks):
        index[place] = offset, len(chunk)
        offset += len(chunk)
    tail = index.tobytes()
    return [*chunks, tail + crc32c(tail).to_bytes(4, "little")]


def create_store(path: Path, content: Content, layout: BlockLayout, attributes: Mapping[str, Any]) -> None:
    """Create every array and attribute, without a frame."""
    root = zarr.open_group(path, mode="w-", zarr_format=3)
    root.attrs.update({**attributes, "status": "running", "ended": "", **ome_attributes(content, layout, {}, ())})
    how = CODECS[layout.chunks.codec].zarr
    assert how is not None  # the plan chose a codec that Zarr has
    compressors: Any = how(layout.chunks.level) or None
    for spec in arrays_of(content, layout):
        if group := spec.path.rpartition("/")[0]:
            root.require_group(group)
        array = root.create_array(
            spec.path,
            shape=spec.shape,
            dtype=spec.dtype,
            chunks=spec.chunks,
            shards=spec.shards,
            compressors=compressors if spec.compressed else None,
            dimension_names=spec.dimensions,
            chunk_key_encoding={"name": "default", "separator": "."},  # all chunks of an array are in one folder
        )
        array.attrs.update(spec.attributes)
        if spec.values is not None:
            put_values(Folder(path), spec.path, spec.values, len(spec.values))
    if layout.frame.keep_bits:
        root.create_array(QUANTIZATION, shape=(), dtype=np.int8).attrs.update(quantization_attributes())
    # zarr-python warns that consolidated metadata are an extension.
    with warnings.catch_warnings(category=UserWarning, action="ignore"):
        zarr.consolidate_metadata(root.store)


def put_values(store: Folder, name: str, values: NDArray[Any], per_chunk: int = SERIES_CHUNK) -> None:
    """Store the values of a 1-D array that is not compressed.

    zarr-python stores no chunk whose values are all 0, but `gsio.reader` expects a file for every chunk.
    """
    for number, chunk in enumerate(padded_chunks(values, per_chunk)):
        store.put(f"{name}/c.{number}", chunk)


def padded_chunks(values: NDArray[Any], per_chunk: int = SERIES_CHUNK) -> list[NDArray[Any]]:
    """Return the chunks of a 1-D array; zeros fill the last."""
    chunks = np.zeros((-(-len(values) // per_chunk), per_chunk), values.dtype)
    chunks.reshape(-1)[: len(values)] = values
    return list(chunks)


def json_bytes(value: Any) -> bytes:
    """Return a value as the JSON of a metadata file."""
    return json.dumps(value, indent=2).encode()
