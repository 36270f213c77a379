"""Reads outputs by one stock reader, for `test_states`; a process of its own, which a reader can crash.

On stdin, a line each: an output and the complete output of the same frames. Every frame that is found has to be one of
those, in order. The answer to each is the number of frames, on stdout.
"""

import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Found = Iterator[tuple[np.ndarray, np.ndarray]]  # times, and frames of v


def by_h5py(path: str) -> Found:
    import h5py
    import hdf5plugin  # noqa: F401 - for lz4 and zstd

    with h5py.File(path) as file:
        yield file["time"][:], file["v"][:]


def by_xarray(path: str) -> Found:
    import hdf5plugin  # noqa: F401
    import xarray

    for engine in ("zarr",) if path.endswith(".zarr") else ("h5netcdf", "netcdf4"):
        with xarray.open_dataset(path, engine=engine) as data:  # type: ignore[call-overload]
            yield data["time"].values, data["v"].values


def by_zarr(path: str) -> Found:
    import zarr

    group: Any = zarr.open_group(path, mode="r")
    yield group["time"][:], group["v"][:]


def by_vtk(path: str) -> Found:
    from vtkmodules.util.numpy_support import vtk_to_numpy
    from vtkmodules.vtkIOHDF import vtkHDFReader

    reader = vtkHDFReader()
    reader.SetFileName(path)
    reader.UpdateInformation()
    times = reader.GetOutputInformation(0).Get(reader.GetExecutive().TIME_STEPS()) or ()
    frames = []
    for time in times:
        reader.UpdateTimeStep(time)
        image = reader.GetOutput()
        frames.append(vtk_to_numpy(image.GetPointData().GetArray("v")).reshape(image.GetDimensions()[1::-1]).copy())
    yield np.array(times), np.array(frames)


READERS: dict[str, Callable[[str], Found]] = {"h5py": by_h5py, "xarray": by_xarray, "zarr": by_zarr, "vtk": by_vtk}

warnings.simplefilter("ignore")
for line in sys.stdin:
    path, whole = line.split()
    sys.stderr.write(f"{path}\n")
    for found, expected in zip(READERS[sys.argv[1]](path), READERS[sys.argv[1]](whole), strict=True):
        count = len(found[0])
        for values, right in zip(found, expected, strict=True):
            assert len(values) == count
            np.testing.assert_array_equal(values, right[:count])
    sys.stdout.write(f"{count}\n")
