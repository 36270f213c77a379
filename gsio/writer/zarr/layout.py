"""The arrays and attributes of a Zarr output, and the form and place of its chunks."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from gsio.codec import CODECS
from gsio.frames.content import Content
from gsio.frames.layout import BlockLayout
from gsio.frames.metadata import QUANTIZATION, SERIES_CHUNK, quantization_attributes
from gsio.writer.arrays import ArraySpec, arrays_of
from gsio.writer.ome import ome_attributes
from gsio.writer.zarr.store import METADATA, Folder

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
    """Create every array and attribute, without a frame.

    The metadata are written here as the core specification has them: zarr-python takes longer to start than a GPU.
    """
    how = CODECS[layout.chunks.codec].zarr
    assert how is not None  # the plan chose a codec that Zarr has
    compressors = how(layout.frame.dtype.itemsize, layout.chunks.level)
    store, nodes = Folder(path), dict[str, dict[str, Any]]()
    specs = list(arrays_of(content, layout))
    for spec in specs:
        for group in reversed(PurePosixPath(spec.path).parents[:-1]):
            nodes[str(group)] = _group({})
        nodes[spec.path] = _array(spec, compressors if spec.compressed else [])
    if layout.frame.keep_bits:
        nodes[QUANTIZATION] = _scalar(quantization_attributes())
    path.mkdir()
    for name, node in nodes.items():
        (path / name).mkdir()
        store.put(f"{name}/{METADATA}", json_bytes(node))
    for spec in specs:
        if spec.values is not None:
            put_values(store, spec.path, spec.values, len(spec.values))
    ordered = sorted(nodes, key=lambda name: (name.count("/"), name))
    together = {name: nodes[name] if "shape" in nodes[name] else _group({}, {}) for name in ordered}
    found = {**attributes, "status": "running", "ended": "", **ome_attributes(content, layout, {}, ())}
    store.put(METADATA, json_bytes(_group(found, together)))


def _group(attributes: Mapping[str, Any], together: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the metadata of a group; with those of all nodes in it, `together`, a reader opens one file."""
    inline = {"kind": "inline", "must_understand": False, "metadata": together}
    consolidated = {"consolidated_metadata": inline} if together is not None else {}
    return {"attributes": attributes, "zarr_format": 3, **consolidated, "node_type": "group"}


def _array(spec: ArraySpec, compressors: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the metadata of an array."""
    endian = {"name": "bytes", "configuration": {"endian": "little"}}
    codecs = [endian if spec.dtype.itemsize > 1 else {"name": "bytes"}, *compressors]
    if spec.shards is not None:
        inner = {"chunk_shape": spec.chunks, "codecs": codecs}
        index = {"index_codecs": [endian, {"name": "crc32c"}], "index_location": "end"}
        codecs = [{"name": "sharding_indexed", "configuration": inner | index}]
    return {
        "shape": list(spec.shape),
        "data_type": spec.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": spec.shards or spec.chunks}},
        # All chunks of an array are in one folder.
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": spec.dtype.type(0).item(),
        "codecs": codecs,
        "attributes": spec.attributes,
        "dimension_names": spec.dimensions,
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }


def _scalar(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of an int8 without axes, which has attributes only."""
    spec = ArraySpec("", np.dtype(np.int8), (), (), (), dict(attributes))
    node = _array(spec, [{"name": "zstd", "configuration": {"level": 0, "checksum": False}}])
    node["chunk_key_encoding"] = {"name": "default", "configuration": {"separator": "/"}}
    del node["dimension_names"]
    return node


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
