"""Export to .openpmd.h5: a mesh for each field in each iteration."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import h5py
import numpy as np

from gsio._version import __version__
from gsio.export.deflated import create_array, write_planes
from gsio.export.provenance import attributes_of
from gsio.reader.selection import Frame, Selection


def write_openpmd(path: Path, selection: Selection, frames: Iterator[Frame]) -> None:
    """Write openPMD 1.1.0 (github.com/openPMD/openPMD-standard): a group for each iteration, a mesh for each field."""
    axes = selection.axes
    root = {
        "openPMD": "1.1.0",
        "basePath": "/data/%T/",
        "meshesPath": "meshes/",
        "iterationEncoding": "groupBased",
        "iterationFormat": "/data/%T/",
        "software": "gsio",
        "softwareVersion": __version__,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S +0000"),
    }
    stack = selection.stack
    dt = stack.config.model.dt if stack.is_of_run else selection.interval
    mesh = {
        "geometry": np.bytes_("cartesian"),
        "dataOrder": np.bytes_("C"),
        "axisLabels": np.array([axis.name for axis in axes], "S"),
        "gridSpacing": np.array([axis.spacing for axis in axes]),
        "gridGlobalOffset": np.array([axis.first for axis in axes]),
        "gridUnitSI": np.float64(1),
        "position": np.zeros(len(axes)),
        "unitSI": np.float64(1),
        "unitDimension": np.zeros(7),
        "timeOffset": np.float64(0),
    }
    with h5py.File(path, "x", locking=False) as file:
        file.attrs.update(attributes_of(selection) | {name: np.bytes_(value) for name, value in root.items()})
        file.attrs["openPMDextension"] = np.uint32(0)
        for step, time, frame in zip(selection.steps, selection.times, frames, strict=True):
            iteration = file.create_group(f"data/{step}")
            iteration.attrs.update({"time": time, "dt": np.float64(dt), "timeUnitSI": np.float64(1)})
            meshes = iteration.create_group("meshes")
            for name, plane in zip(selection.fields, frame, strict=True):
                record = create_array(meshes, name, selection, selection.shape)
                record.attrs.update(mesh)
                write_planes(record, (), plane)
