"""Export to .ome.zarr: one image of OME-Zarr 0.5."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from gsio.export.outputs import exported_dtype, lines_per_slab
from gsio.export.provenance import attributes_of
from gsio.reader.selection import Frame, Selection
from gsio.writer.ome import ome_channel
from gsio.writer.zarr.layout import halved
from gsio.writer.zarr.store import Folder

LEVEL_CELLS = 1024  # rows and columns of an image from which on viewers want a smaller level
CHANNEL_COLORS = ("0072B2", "FFFFFF")  # of u and v; viewers add the colours, and a single field has the last


def write_ome_zarr(path: Path, selection: Selection, frames: Iterator[Frame]) -> None:
    """Write an image of OME-Zarr 0.5 (ngff.openmicroscopy.org), [t, c, z, y, x]: fields are channels, members slices.

    A large grid gets smaller levels, each with half the rows and columns.
    """
    members, rows, cols = (1, *selection.shape)[-3:]
    dtype, fields, (z, y, x) = exported_dtype(selection), selection.fields, selection.content.volume
    lines = lines_per_slab((rows, cols), dtype)
    root: Any = zarr.open_group(path, mode="w-", zarr_format=3)
    levels, datasets = [], []
    for level in range(1 + (min(rows, cols) // LEVEL_CELLS).bit_length()):
        size, cells = (rows >> level, cols >> level), 1 << level
        levels.append(
            root.create_array(
                str(level),
                shape=(len(selection.frames), len(fields), members, *size),
                chunks=(1, 1, 1, min(lines, size[0]), size[1]),
                dtype=dtype,
                compressors=zarr.codecs.BloscCodec(cname="lz4", clevel=3, shuffle="shuffle"),
                dimension_names=tuple("tczyx"),
            )
        )
        middle = (cells - 1) / 2  # the centre of the first cell, in cells of the grid
        scale = [selection.interval or 1.0, 1.0, z.spacing, *(cells * axis.spacing for axis in (y, x))]
        first = [selection.times[0], 0.0, z.first, *(axis.first + middle * axis.spacing for axis in (y, x))]
        places = [
            {"type": "scale", "scale": [float(number) for number in scale]},
            {"type": "translation", "translation": [float(number) for number in first]},
        ]
        datasets.append({"path": str(level), "coordinateTransformations": places})
    kinds = zip("tczyx", ("time", "channel", "space", "space", "space"), strict=True)
    axes = [{"name": name, "type": kind} for name, kind in kinds]
    colors = zip(fields, itertools.cycle(CHANNEL_COLORS[-len(fields) :]), strict=False)
    channels = [ome_channel(name, *selection.limits(name), color) for name, color in colors]
    image = {"name": selection.stack.path.stem, "axes": axes, "datasets": datasets}
    ome = {"version": "0.5", "multiscales": [image], "omero": {"channels": channels}}
    root.attrs.update(attributes_of(selection) | {"ome": ome})
    for number, frame in enumerate(frames):
        planes = np.stack([plane.reshape(members, rows, cols) for plane in frame]).astype(dtype)
        for array in levels:
            array[number] = planes
            planes = halved(planes)
    Folder(path).sync()
