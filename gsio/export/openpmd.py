"""Export to .openpmd.h5: a mesh for each field in each iteration."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import h5py
import numpy as np

from gsio._version import __version__
from gsio.export.deflated import create_array, write_planes
from gsio.export.provenance import attributes_of
from gsio.frames.metadata import AXES
from gsio.reader.selection import Frame, Selection


def write_openpmd(path: Path, selection: Selection, frames: Iterator[Frame]) -> None:
    """Write openPMD 1.1.0 (github.com/openPMD/openPMD-standard): a group for each iteration, a mesh for each field."""
    axes, at = AXES[-len(selection.shape) :], selection.coordinates
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
    mesh = {
        "geometry": np.bytes_("cartesian"),
        "dataOrder": np.bytes_("C"),
        "axisLabels": np.array(axes, "S"),
        "gridSpacing": np.ones(len(axes)),
        "gridGlobalOffset": np.array([0.0, at["y"][0], at["x"][0]])[-len(axes) :],
        "gridUnitSI": np.float64(1),
        "position": np.zeros(len(axes)),
        "unitSI": np.float64(1),
        "unitDimension": np.zeros(7),
        "timeOffset": np.float64(0),
    }
    with h5py.File(path, "x", locking=False) as file:
        file.attrs.update(attributes_of(selection) | {name: np.bytes_(value) for name, value in root.items()})
        file.attrs["openPMDextension"] = np.uint32(0)
        for step, time, frame in zip(at["step"], at["time"], frames, strict=True):
            iteration = file.create_group(f"data/{step}")
            iteration.attrs.update(
                {"time": time, "dt": np.float64(selection.config.model.dt), "timeUnitSI": np.float64(1)}
            )
            meshes = iteration.create_group("meshes")
            for name, plane in zip(selection.fields, frame, strict=True):
                record = create_array(meshes, name, selection, selection.shape)
                record.attrs.update(mesh)
                write_planes(record, (), plane)
