"""Export to .vtkhdf: temporal ImageData for ParaView."""

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from gsio.errors import UsageError
from gsio.export.deflated import create_array, write_planes
from gsio.export.provenance import attributes_of
from gsio.reader.selection import Frame, Selection
from gsio.writer.hdf5.vtk import create_image


def write_vtkhdf(path: Path, selection: Selection, frames: Iterator[Frame]) -> None:
    """Write temporal ImageData of the VTKHDF format, 2.0 (docs.vtk.org): points, [time, z, y, x].

    VTK 9.3 to 9.7 read an image with one z as [time, y, x], and no image with one y.
    """
    if selection.shape[-2] == 1:
        raise UsageError("--crop: expected two rows or more, got one, which VTK cannot read; choose another format")
    count = len(selection.frames)
    with h5py.File(path, "x", locking=False) as file:
        file.attrs.update(attributes_of(selection))
        root = create_image(file, selection.content.volume)
        points, steps = root.create_group("PointData"), root.create_group("Steps")
        steps.attrs["NSteps"] = np.int64(count)
        steps["Values"] = selection.times
        for name in selection.fields:
            steps[f"PointDataOffsets/{name}"] = np.arange(count, dtype=np.int64)
            create_array(points, name, selection, (count, *selection.shape))
        # VTK shows the field with this attribute first, since version 2.6 of the format.
        points[selection.fields[-1]].attrs["Attribute"] = np.bytes_("Scalars")
        for number, frame in enumerate(frames):
            for name, plane in zip(selection.fields, frame, strict=True):
                write_planes(points[name], (number,), plane)
