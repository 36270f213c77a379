"""The arrays and attributes of an HDF5 output, created before the first frame."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import h5py
import numpy as np

from gsio.codec import CODECS
from gsio.config import Config
from gsio.frames.layout import BlockLayout
from gsio.frames.metadata import (
    AXES,
    COORDINATES,
    DAMAGED,
    QUANTIZATION,
    SERIES_CHUNK,
    field_attributes,
    frame_series,
    nexus_attributes,
    quantization_attributes,
    series_attributes,
)

PLAIN = ("title", "coordinates", "cell_methods")  # which NCO and ncview take in ASCII of fixed length only
VTK = "VTKHDF"
OFFSETS = f"{VTK}/Steps/PointDataOffsets/"


def create_arrays(file: h5py.File, config: Config, layout: BlockLayout, attributes: Mapping[str, Any]) -> None:
    """Create every array and attribute, without a frame."""
    _describe(file, attributes)
    # Of fixed size, so that the end of a run overwrites them in place and never needs new space.
    file.attrs.create("status", b"running", dtype="S16")
    file.attrs.create("ended", b"", dtype="S32")
    growing: dict[str, Any] = {"chunks": (SERIES_CHUNK,), "maxshape": (None,)}
    axes = AXES[-len(layout.frame.shape) :]
    file.attrs.update(nexus_attributes(layout))
    for name, size in zip(axes, layout.frame.shape, strict=True):
        file.create_dataset(name, data=np.arange(size, dtype=np.float64))
        file[name].make_scale(name)
        file[name].attrs.update(COORDINATES[name])
    for name, values in frame_series(config, layout, []).items():
        series = file.create_dataset(name, (0,), values.dtype, **growing)
        _describe(series, series_attributes(name, layout))
        if name == "time":
            series.make_scale("time")
        else:
            series.dims[0].attach_scale(file["time"])
        group = name.rpartition("/")[0]
        if group and "time" not in file[group]:  # so that the group has its coordinate where read alone
            file[group]["time"] = h5py.SoftLink("/time")
    for name in layout.frame.fields:
        with _no_plugins():
            field = file.create_dataset(
                name,
                (0, *layout.frame.shape),
                layout.frame.dtype,
                chunks=layout.chunks.chunk_shape,
                maxshape=(None, *layout.frame.shape),
                **_filters(layout),
            )
        _describe(field, field_attributes(name, layout), layout.frame.computed)
        for axis, scale in enumerate(("time", *axes)):
            field.dims[axis].attach_scale(file[scale])
    if layout.frame.keep_bits:
        file.create_dataset(QUANTIZATION, (), np.int8).attrs.update(quantization_attributes())
    file["matrix"] = file[
        "v" if "v" in layout.frame.fields else layout.frame.fields[0]
    ]  # the Gray Scott School's readers
    _lay_out_for_vtk(file, layout, growing)


def _describe(of: Any, attributes: Mapping[str, Any], dtype: np.dtype[Any] | None = None) -> None:
    """Set attributes, floats as `dtype`: readers decode packed integers as the dtype of their scale."""
    for name, value in attributes.items():
        number = dtype is not None and isinstance(value, float)
        of.attrs[name] = np.bytes_(value) if name in PLAIN else np.asarray(value, dtype)[()] if number else value


def _lay_out_for_vtk(file: h5py.File, layout: BlockLayout, growing: dict[str, Any]) -> None:
    """Show the fields as temporal ImageData of the VTKHDF format, 2.0 (docs.vtk.org): points, members along z.

    VTK reads an image with one z as [time, y, x], as the fields are, so that links are enough.
    """
    members, rows, cols = (1, *layout.frame.shape)[-3:]
    root = file.create_group(VTK)
    root.attrs["Version"] = np.array([2, 0], np.int64)
    root.attrs["Type"] = np.bytes_("ImageData")
    root.attrs["WholeExtent"] = np.array([0, cols - 1, 0, rows - 1, 0, members - 1], np.int64)
    root.attrs["Origin"] = np.zeros(3)
    root.attrs["Spacing"] = np.ones(3)
    root.attrs["Direction"] = np.eye(3).reshape(-1)
    steps = root.create_group("Steps")
    steps.attrs["NSteps"] = np.int64(0)
    steps["Values"] = h5py.SoftLink("/time")
    offsets = file.create_dataset(OFFSETS + layout.frame.fields[0], (0,), np.int64, **growing)
    offsets.dims[0].attach_scale(file["time"])  # without which cf-python reads nothing of the file
    for name in layout.frame.fields:
        root[f"PointData/{name}"] = h5py.SoftLink(f"/{name}")
        if name != layout.frame.fields[0]:
            file[OFFSETS + name] = offsets


def _filters(layout: BlockLayout) -> dict[str, Any]:
    """Return what readers have to undo, as arguments of `create_dataset`."""
    how = CODECS[layout.chunks.codec].hdf5
    assert how is not None  # the plan chose a codec that HDF5 has
    return how.arguments(layout.frame.dtype.itemsize, layout.chunks.chunk_nbytes, layout.chunks.level)


@contextmanager
def _no_plugins() -> Iterator[None]:
    """Hide the plugins of HDF5_PLUGIN_PATH: encoding is done here, and a filter they bring can refuse to be set up."""
    paths = [h5py.h5pl.get(0)]
    while h5py.h5pl.size() > 1:
        paths.append(h5py.h5pl.get(1))
        h5py.h5pl.remove(1)
    h5py.h5pl.replace(b"/", 0)  # there has to be one
    try:
        yield
    finally:
        h5py.h5pl.replace(paths[0], 0)
        for path in paths[1:]:
            h5py.h5pl.append(path)


def reopen(file: h5py.File, attributes: Mapping[str, Any], frames: int) -> None:
    """Let the file say that the run goes on after so many frames, and with which configuration."""
    history = f"{file.attrs['history']}\n{attributes['history']}"
    file.attrs.update({"history": history} | {name: attributes[name] for name in ("config", "device", "backend")})
    file.attrs.modify("status", np.array(b"running", "S16"))
    file.attrs.modify("ended", np.array(b"", "S32"))
    if DAMAGED in file.attrs:
        file.attrs[DAMAGED] = np.array([frame for frame in file.attrs[DAMAGED] if frame < frames], np.int64)
