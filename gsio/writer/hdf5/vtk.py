"""Temporal ImageData of the VTKHDF format, 2.0 (docs.vtk.org), which ParaView opens."""

from collections.abc import Sequence
from typing import Any

import h5py
import numpy as np

from gsio.frames.content import Axis, Content

VTK = "VTKHDF"
OFFSETS = f"{VTK}/Steps/PointDataOffsets/"


def create_image(file: h5py.File, axes: Sequence[Axis]) -> h5py.Group:
    """Create the group of an image and return it: points, along the axes z, y and x, as `Content.volume` has them."""
    z, y, x = axes
    root = file.create_group(VTK)
    root.attrs["Version"] = np.array([2, 0], np.int64)
    root.attrs["Type"] = np.bytes_("ImageData")
    root.attrs["WholeExtent"] = np.array([0, x.size - 1, 0, y.size - 1, 0, z.size - 1], np.int64)
    root.attrs["Origin"] = np.array([x.first, y.first, z.first])
    root.attrs["Spacing"] = np.array([x.spacing, y.spacing, z.spacing])
    root.attrs["Direction"] = np.eye(3).reshape(-1)
    return root


def link_fields(file: h5py.File, content: Content, growing: dict[str, Any]) -> None:
    """Show the fields of an output as an image; `growing` are the arguments to create an array along time.

    VTK reads an image with one z as [time, y, x], as the fields are, so that links are enough.
    """
    root = create_image(file, content.volume)
    steps = root.create_group("Steps")
    steps.attrs["NSteps"] = np.int64(0)
    steps["Values"] = h5py.SoftLink("/time")
    first, *others = content.fields
    offsets = file.create_dataset(OFFSETS + first, (0,), np.int64, **growing)
    offsets.dims[0].attach_scale(file["time"])  # cf-python reads nothing of a file in which an array has no scale
    for name in content.fields:
        root[f"PointData/{name}"] = h5py.SoftLink(f"/{name}")
        if name in others:
            file[OFFSETS + name] = offsets
