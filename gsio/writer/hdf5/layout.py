"""The arrays and attributes of an HDF5 output, created before the first frame."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import h5py
import numpy as np

from gsio.codec import CODECS
from gsio.frames.content import Content
from gsio.frames.layout import BlockLayout
from gsio.frames.metadata import (
    DAMAGED,
    OF_SESSION,
    QUANTIZATION,
    SERIES_CHUNK,
    nexus_attributes,
    quantization_attributes,
)
from gsio.writer.arrays import ArraySpec, arrays_of
from gsio.writer.hdf5.vtk import link_fields

PLAIN = ("title", "coordinates", "cell_methods")  # NCO and ncview read these only as ASCII of fixed length
GROWING = {"chunks": (SERIES_CHUNK,), "maxshape": (None,)}


def create_arrays(file: h5py.File, content: Content, layout: BlockLayout, attributes: Mapping[str, Any]) -> None:
    """Create every array and attribute, without a frame."""
    _describe(file, attributes)
    # These have a fixed size, so that the end of a run overwrites them in place and never needs new space.
    file.attrs.create("status", b"running", dtype="S16")
    file.attrs.create("ended", b"", dtype="S32")
    file.attrs.update(nexus_attributes(content))
    with _no_plugins():
        for spec in arrays_of(content, layout):
            _create_array(file, spec, layout, _filters(layout) if spec.compressed else {})
    if layout.frame.keep_bits:
        file.create_dataset(QUANTIZATION, (), np.int8).attrs.update(quantization_attributes())
    file["matrix"] = file[layout.frame.fields[-1]]  # the readers of the Gray Scott School look for this name
    if len(content.axes) in (2, 3):  # an image of VTK has no others
        link_fields(file, content, GROWING)


def _create_array(file: h5py.File, spec: ArraySpec, layout: BlockLayout, filters: Mapping[str, Any]) -> None:
    if spec.values is not None:
        array = file.create_dataset(spec.path, data=spec.values)
        array.make_scale(spec.path)
    else:
        growing = {"chunks": spec.chunks, "maxshape": (None, *spec.shape[1:])}
        array = file.create_dataset(spec.path, spec.shape, spec.dtype, **growing, **filters)
    _describe(array, spec.attributes, layout.frame.computed)
    for axis, name in enumerate(spec.dimensions):
        if name != spec.path:
            array.dims[axis].attach_scale(file[name])
        elif spec.values is None:
            array.make_scale(name)
    group = spec.path.rpartition("/")[0]
    if group and "time" not in file[group]:  # so that a reader of this group alone finds its coordinate
        file[group]["time"] = h5py.SoftLink("/time")


def _describe(of: Any, attributes: Mapping[str, Any], dtype: np.dtype[Any] | None = None) -> None:
    """Set attributes; floats become `dtype`, because readers decode packed integers as the dtype of their scale."""
    for name, value in attributes.items():
        number = dtype is not None and isinstance(value, float)
        plain = name in PLAIN and isinstance(value, str) and value.isascii()
        of.attrs[name] = np.bytes_(value) if plain else np.asarray(value, dtype)[()] if number else value


def _filters(layout: BlockLayout) -> dict[str, Any]:
    """Return the filters of the fields as arguments of `create_dataset`."""
    how = CODECS[layout.chunks.codec].hdf5
    assert how is not None  # the plan chose a codec that HDF5 has
    return how.arguments(layout.frame.dtype.itemsize, layout.chunks.chunk_nbytes, layout.chunks.level)


@contextmanager
def _no_plugins() -> Iterator[None]:
    """Hide the plugins of HDF5_PLUGIN_PATH: gsio encodes chunks itself, and a plugin can refuse to be set up."""
    paths = [h5py.h5pl.get(0)]
    while h5py.h5pl.size() > 1:
        paths.append(h5py.h5pl.get(1))
        h5py.h5pl.remove(1)
    h5py.h5pl.replace(b"/", 0)  # HDF5 needs one path at least
    try:
        yield
    finally:
        h5py.h5pl.replace(paths[0], 0)
        for path in paths[1:]:
            h5py.h5pl.append(path)


def reopen(file: h5py.File, attributes: Mapping[str, Any], frames: int) -> None:
    """Record that the run goes on after `frames` frames, and the configuration with which it does."""
    history = f"{file.attrs['history']}\n{attributes['history']}"
    file.attrs.update({"history": history} | {name: attributes[name] for name in OF_SESSION if name in attributes})
    file.attrs.modify("status", np.array(b"running", "S16"))
    file.attrs.modify("ended", np.array(b"", "S32"))
    if DAMAGED in file.attrs:
        file.attrs[DAMAGED] = np.array([frame for frame in file.attrs[DAMAGED] if frame < frames], np.int64)
