"""Export to .vtkhdf: temporal ImageData for ParaView."""

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from gsio.errors import UsageError
from gsio.export.deflated import create_array, write_planes
from gsio.export.selection import Frame, Selection


def write_vtkhdf(path: Path, selection: Selection, frames: Iterator[Frame]) -> None:
    """As temporal ImageData of the VTKHDF format specification (docs.vtk.org), 2.0: points, [time, z, y, x].

    VTK 9.3 to 9.7 read an image with one z as [time, y, x], and no image with one y.
    """
    members, rows, cols = (1, *selection.shape)[-3:]
    if rows == 1:
        raise UsageError("--crop: expected two rows or more, got one, which VTK cannot read; choose another format")
    count, at = len(selection.frames), selection.coordinates
    with h5py.File(path, "x", locking=False) as file:
        file.attrs.update(selection.attributes)
        root = file.create_group("VTKHDF")
        root.attrs["Version"] = np.array([2, 0], np.int64)
        root.attrs["Type"] = np.bytes_("ImageData")
        root.attrs["WholeExtent"] = np.array([0, cols - 1, 0, rows - 1, 0, members - 1], np.int64)
        root.attrs["Origin"] = np.array([at["x"][0], at["y"][0], 0], np.float64)
        root.attrs["Spacing"] = np.ones(3)
        root.attrs["Direction"] = np.eye(3).reshape(-1)
        points, steps = root.create_group("PointData"), root.create_group("Steps")
        steps.attrs["NSteps"] = np.int64(count)
        steps["Values"] = at["time"]
        for name in selection.fields:
            steps[f"PointDataOffsets/{name}"] = np.arange(count, dtype=np.int64)
            create_array(points, name, selection, (count, *selection.shape))
        points[selection.fields[-1]].attrs["Attribute"] = np.bytes_("Scalars")  # what is shown first; known since 2.6
        for number, frame in enumerate(frames):
            for name, plane in zip(selection.fields, frame, strict=True):
                write_planes(points[name], (number,), plane)
