"""Checks, made once when an output is opened, that gsio wrote it; all other readers rely on them.

A damaged or foreign file can claim to hold anything: arrays of other shapes, petabytes, or values in other files. Only
metadata are read here. All functions raise ValueError, or the exceptions of h5py and zarr.
"""

import math
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace

from gsio.codec import CODECS
from gsio.frames.content import Content, content_of
from gsio.frames.metadata import DAMAGED, SERIES_CHUNK, damaged_frames
from gsio.inputs import METADATA_NBYTES, characters, open_regular, parse_json, read_regular

TEXTS = ("history", "argv", "gsio_version", "gsio_commit", "backend", "device", "host", "started", "ended")
NO_OUTPUT = "it is not an output of gsio"
OF_SWEEP = "it is the result of a sweep, which 'gsio sweep' and 'gsio view' show if its folder '.tasks' is beside it"
STATES = ("running", "complete", "stopped", "failed")
SERIES = {"time": "<f8", "step": "<i8", "integrity/crc32c": "<u4"}  # the statistics are checked too
CHUNK_NBYTES = 64 << 20  # the largest chunk, unless one frame is larger
ATTRIBUTE_NBYTES = 1 << 20  # the largest attribute that is read
OBJECTS = 10_000  # the most objects, or attributes, in a file
STATISTICS = 500  # the most statistics in a file
UNRECORDED = 1 << 16  # the most frames by which two arrays of a torn file may differ in length


def check(path: Path, root: Any, attributes: Mapping[str, Any]) -> Content:
    """Return the content of an open output, a group of h5py or zarr; raise unless all is as gsio writes it."""
    _expect("gsio_version" in attributes, OF_SWEEP if "sweep" in attributes else NO_OUTPUT)
    content = content_of(attributes)
    fields = [name for name in content.fields if name in root]
    _expect(fields, NO_OUTPUT)  # an export for another tool has no fields of these names
    for name in TEXTS:
        _expect(isinstance(attributes.get(name), str), f"expected the attribute '{name}', a text")
    found = attributes.get("status")
    _expect(found in STATES, f"status: expected {', '.join(STATES)}, found {str(found)[:40]!r}")
    _expect(isinstance(attributes.get("output_id", ""), str), "output_id: expected a text, found another value")
    kind = _Zarr(path, root) if path.is_dir() else _HDF5(path, root)
    if "selection" in attributes and "config" in attributes:  # the configuration is that of the whole run
        content = _part_of(content, kind)
    frame, shape = content.frame(), content.shape
    for axis in content.axes:
        kind.values(axis.name, "<f8", axis.size)
    _expect(
        len(fields) == len(content.fields),
        f"expected the fields {', '.join(content.fields)}, found {', '.join(fields)}",
    )
    statistics = {f"stats/{name}_{word}": "<f8" for name in fields for word in ("min", "max", "mean")}
    found = [name for name in root["stats"] if name != "time"] if "stats" in root else []  # `time` is a link
    _expect(len(found) <= STATISTICS, f"stats: expected at most {STATISTICS} arrays, found {len(found)}")
    statistics |= {f"stats/{name}": "<f8" for name in found}
    lengths = [kind.values(name, types) for name, types in (SERIES | statistics).items()]
    for name in fields:
        array = kind.array(name)
        _expect(array.dtype == frame.dtype, f"{name}: expected {frame.dtype}, found {array.dtype}")
        found = array.shape
        _expect(found[1:] == shape, f"{name}: expected frames of {shape}, found {found[1:]}")
        lengths.append(found[0])
        _expect(array.chunks is not None, f"{name}: expected chunks, found frames in one piece")
        chunks = array.chunks
        whole = chunks[0] > 0 and 0 < chunks[1] <= shape[0] and chunks[2:] == shape[1:]
        most = max(CHUNK_NBYTES, frame.plane_nbytes)
        fits = math.prod(chunks) * frame.dtype.itemsize <= most
        _expect(whole and fits, f"{name}: expected chunks of whole rows, {most} bytes at most, found {chunks}")
        kind.check_codec(name, array, content)
        scale = array.attrs.get("scale_factor")
        scaled = scale is not None and np.ndim(scale) == 0 and math.isfinite(scale) and scale > 0
        right = scaled if frame.stored_one else scale is None
        _expect(right, f"{name}: expected a scale where values are stored as integers, and none else, found {scale!r}")
    _expect(max(lengths) - min(lengths) <= UNRECORDED, f"expected arrays of the same length, found {lengths}")
    known = all(isinstance(frame, int) and 0 <= frame < max(lengths) for frame in damaged_frames(attributes))
    _expect(known, f"{DAMAGED}: expected the numbers of frames, found others")
    return content


def _part_of(content: Content, kind: "_HDF5 | _Zarr") -> Content:
    """Return the content of an export that has a part of the rows and columns of a run."""
    *members, rows, cols = content.axes
    kept = []
    for axis in (rows, cols):
        size = math.prod(kind.array(axis.name).shape)
        _expect(0 < size <= axis.size, f"{axis.name}: expected a part of {axis.size}, found {size}")
        kind.values(axis.name, "<f8", size)
        kept.append(replace(axis, size=size, first=float(kind.array(axis.name)[0])))
    return replace(content, axes=(*members, *kept))


class _HDF5:
    """The arrays of a file of HDF5, all of whose values lie in the file itself."""

    def __init__(self, path: Path, file: Any) -> None:
        from h5py import h5d, h5l, h5o

        self._file: Any = file
        self._hard: set[str] = set()
        self._nbytes = path.stat().st_size

        def look(name: bytes, link: Any) -> None:
            here = link.type in (h5l.TYPE_HARD, h5l.TYPE_SOFT)
            _expect(here, f"{name.decode(errors='replace')}: expected no links to other files, found one")
            if link.type == h5l.TYPE_HARD:
                self._hard.add(name.decode(errors="surrogateescape"))
            _expect(len(self._hard) <= OBJECTS, f"expected at most {OBJECTS} objects in the file, found more")

        file.id.links.visit(look, info=True)
        for name in self._hard:
            if isinstance(place := h5o.open(file.id, name.encode(errors="surrogateescape")), h5d.DatasetID):
                made = place.get_create_plist()
                here = made.get_layout() != h5d.VIRTUAL and made.get_external_count() == 0
                _expect(here, f"{name}: expected values in the file itself, found a reference to other files")

    def array(self, name: str) -> Any:
        _expect(name in self._hard, f"expected the array '{name}', found none")
        found = self._file[name]
        _expect(hasattr(found, "shape") and found.shape is not None, f"{name}: expected an array, found another object")
        return found

    def values(self, name: str, types: str, length: int | None = None) -> int:
        """Return the length of an array [value] after checking that the file is large enough for its values."""
        array = self.array(name)
        _check_values(name, array, types, length)
        _expect(self._filters(array) == (), f"{name}: expected values that are not compressed, found others")
        there = array.id.get_storage_size()
        enough = array.shape[0] * array.dtype.itemsize <= min(there, self._nbytes) + UNRECORDED * array.dtype.itemsize
        _expect(enough, f"{name}: expected {array.shape[0]} values, found {there} bytes of them")
        return int(array.shape[0])

    def check_codec(self, name: str, array: Any, content: Content) -> None:
        codec, found = CODECS.get(content.compression), self._filters(array)
        expected = codec.hdf5.numbers if codec and codec.hdf5 else None
        _expect(found == expected, f"{name}: expected the filters {expected} of {content.compression}, found {found}")

    def _filters(self, array: Any) -> tuple[int, ...]:
        made = array.id.get_create_plist()
        return tuple(made.get_filter(place)[0] for place in range(made.get_nfilters()))


class _Zarr:
    """The arrays of a group of Zarr, whose metadata are all in one file."""

    def __init__(self, path: Path, group: Any) -> None:
        self._path, self._group = path, group

    def array(self, name: str) -> Any:
        found = self._group.get(name)
        _expect(hasattr(found, "shape"), f"expected the array '{name}', found none")
        keys = found.metadata.chunk_key_encoding
        named = (getattr(keys, "name", ""), getattr(keys, "separator", "")) == ("default", ".")
        _expect(named, f"{name}: expected chunks with names as c.0, found others")
        return found

    def values(self, name: str, types: str, length: int | None = None) -> int:
        """Return the length of an array [value] after checking that the files of its values exist."""
        from zarr.codecs import BytesCodec

        array = self.array(name)
        _check_values(name, array, types, length)
        plain = _kinds(array.metadata.codecs) == [BytesCodec] and array.shards is None
        _expect(plain, f"{name}: expected values that are not compressed, found others")
        together = array.chunks[0]
        _expect(together == (length or SERIES_CHUNK), f"{name}: expected {SERIES_CHUNK} values a chunk, not {together}")
        nbytes = together * array.dtype.itemsize
        for number in range(-(-array.shape[0] // together)):
            place = self._path / name / f"c.{number}"
            found = place.stat()
            whole = stat.S_ISREG(found.st_mode) and found.st_size == nbytes
            _expect(whole, f"{name}: expected a regular file of {nbytes} bytes, c.{number}, found another")
        return int(array.shape[0])

    def check_codec(self, name: str, array: Any, content: Content) -> None:
        from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec

        codecs = list(array.metadata.codecs)
        if array.shards is not None:
            (outer,) = codecs
            cut = array.shards[0] % array.chunks[0] == 0 and array.shards[1:] == array.chunks[1:]
            known = isinstance(outer, ShardingCodec) and _kinds(outer.index_codecs) == [BytesCodec, Crc32cCodec]
            at_end = known and outer.to_dict()["configuration"]["index_location"] == "end"
            _expect(cut and at_end, f"{name}: expected shards of gsio, not others")
            codecs = list(outer.codecs)
        codec = CODECS.get(content.compression)
        same = codec and codec.zarr and [kind.to_dict()["name"] for kind in codecs] == [
            "bytes", *(how["name"] for how in codec.zarr(array.dtype.itemsize, content.level))
        ]  # fmt: skip
        _expect(same, f"{name}: expected the codecs of {content.compression}, found {', '.join(map(str, codecs))}")


def _kinds(codecs: Iterable[Any]) -> list[type]:
    return [type(codec) for codec in codecs]


def _check_values(name: str, array: Any, types: str, length: int | None) -> None:
    _expect(array.dtype == np.dtype(types), f"{name}: expected values of {types}, found {array.dtype}")
    _expect(len(array.shape) == 1, f"{name}: expected one axis, found the shape {array.shape}")
    _expect(length in (None, array.shape[0]), f"{name}: expected {length} values, found {array.shape[0]}")
    small = array.chunks is None or array.chunks[0] * array.dtype.itemsize <= max(CHUNK_NBYTES, 8 * (length or 0))
    _expect(small, f"{name}: expected small chunks, found {array.chunks}")


def attributes_of(root: Any) -> dict[str, Any]:
    """Return the attributes of an open group that are texts, numbers, or lists of these, without all others."""
    if not hasattr(root, "id"):
        return {name: _plain(value) for name, value in root.attrs.items()}
    from h5py import h5a, h5t

    found: dict[str, Any] = {}
    _expect(h5a.get_num_attrs(root.id) <= OBJECTS, f"expected at most {OBJECTS} attributes, found more")
    for name in list(root.attrs):
        kind = h5a.open(root.id, name.encode(errors="surrogateescape"))
        known = kind.get_type().get_class() in (h5t.INTEGER, h5t.FLOAT, h5t.STRING)
        nbytes = kind.get_space().get_simple_extent_npoints() * kind.get_type().get_size()
        if known and nbytes <= ATTRIBUTE_NBYTES:
            found[name] = _plain(root.attrs[name])
    return found


def _plain(value: Any) -> Any:
    """Return the value of an attribute as a value of Python; bytes that are no characters are replaced."""
    if isinstance(value, (np.generic, np.ndarray)) and not isinstance(value, bytes):
        value = value.tolist()
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    return characters(value) if isinstance(value, str) else value


def check_place(path: Path) -> None:
    """Raise OSError or ValueError unless `path` can be opened by h5py or zarr without waiting, and is not huge."""
    if not path.is_dir():
        open_regular(path).close()
        return
    group = parse_json(read_regular(path / "zarr.json", METADATA_NBYTES))
    together = isinstance(group, dict) and isinstance(group.get("consolidated_metadata"), dict)
    _expect(together, "expected the metadata of all arrays in zarr.json, found none")


def _expect(true: object, message: str) -> None:
    if not true:
        raise ValueError(message)
