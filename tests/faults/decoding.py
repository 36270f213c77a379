"""Readers that are not gsio's count the frames of a run that can be decoded from a file or folder, in any way."""

import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zarr
from numcodecs import Shuffle, blosc

Values = dict[str, np.ndarray]


def decodable(path: Path, how: str, whole: Path) -> list[int]:
    """Return the frames that `path` gives by "stock" readers, or "raw", as they are in the .npz of the whole run."""
    with np.load(whole) as found:
        right = {name: found[name] for name in ("u", "v")}
    values = _by_stock_readers(path, len(right["v"])) if how == "stock" else _raw(path, right)
    return sorted(
        {frame for frame, planes in values if all((planes[name] == right[name][frame]).all() for name in right)}
    )


def _by_stock_readers(path: Path, most: int) -> Iterator[tuple[int, Values]]:
    import hdf5plugin  # noqa: F401 - for lz4 and zstd in HDF5

    try:
        if path.is_dir():
            arrays: dict[str, Any] = {name: zarr.open_array(path / name, mode="r") for name in ("u", "v")}
        else:
            file = h5py.File(path, "r")
            arrays = {name: file[name] for name in ("u", "v")}
        frames = min(most, *(array.shape[0] for array in arrays.values()))
    except Exception:  # a damaged file is told of in many ways
        return
    for frame in range(frames):
        with suppress(Exception):
            yield frame, {name: array[frame] for name, array in arrays.items()}


def _raw(path: Path, right: Values) -> Iterator[tuple[int, Values]]:
    shape = right["v"].shape[1:]
    chunks = _from_chunk_files(path) if path.is_dir() else _from_places(path)
    for first, encoded in chunks:
        planes = {}
        with suppress(ValueError, RuntimeError, zlib.error):
            for name, chunk in encoded.items():
                planes[name] = _decoded(chunk).reshape(-1, *shape)
        if len(planes) == len(right):
            for place in range(min(map(len, planes.values()))):
                if first + place < len(right["v"]):
                    yield first + place, {name: plane[place] for name, plane in planes.items()}


def _decoded(chunk: bytes) -> np.ndarray:
    """Return the values of a chunk of which nobody says how it is encoded; raises what the decoders do."""
    ways: list[Callable[[bytes], bytes]] = [
        lambda data: Shuffle(4).decode(zlib.decompress(data)),
        blosc.decompress,
    ]
    for decode in ways:
        with suppress(ValueError, RuntimeError, zlib.error):
            return np.frombuffer(decode(chunk), np.float32)
    return np.frombuffer(chunk, np.float32)


def _from_places(path: Path) -> Iterator[tuple[int, dict[str, bytes]]]:
    """Yield the chunks of an HDF5 file that any journal in its folder places: their first frame, and of each field."""
    data = path.read_bytes()
    for journal in path.parent.glob("*.journal"):
        line, _, records = journal.read_bytes().partition(b"\n")
        try:
            head = json.loads(line.rpartition(b" ")[0])
            places = (len(head["fields"]), head["slabs"], 2)
            kind = np.dtype([("frame", "<u8"), *head["series"].items(), ("places", "<u8", places), ("checksum", "<u4")])
        except (ValueError, LookupError, TypeError):
            continue
        for record in np.frombuffer(records[: len(records) // kind.itemsize * kind.itemsize], kind):
            first = int(record["frame"]) // head["frames_per_chunk"] * head["frames_per_chunk"]
            encoded = {}
            for name, slabs in zip(head["fields"], record["places"], strict=True):
                (offset, nbytes), *others = slabs.tolist()
                assert not others
                encoded[name] = data[offset : offset + nbytes]
            yield first, encoded


def _from_chunk_files(path: Path, per_chunk: int = 2, per_shard: int = 4) -> Iterator[tuple[int, dict[str, bytes]]]:
    """Yield the chunks of a Zarr group, by the names of their files alone; each may be a shard of several."""
    for file in (path / "v").glob("c.*"):
        number = int(file.name.split(".")[1])
        try:
            values = {name: (path / name / file.name).read_bytes() for name in ("u", "v")}
        except OSError:
            continue
        yield number * per_chunk, values
        count = per_shard // per_chunk
        for place in range(count):
            encoded = {}
            for name, data in values.items():
                index = np.frombuffer(data[-16 * count - 4 : -4].rjust(16 * count), "<u8").reshape(-1, 2)
                offset, nbytes = index[place].tolist()
                encoded[name] = data[offset : offset + nbytes]
            yield number * per_shard + place * per_chunk, encoded
