"""Other people's readers: each finds the frames, or what it can show of them. A missing reader is skipped.

Readers run in processes of their own: they warn, set things up for their process, and can crash. No extra brings
napari-ome-zarr, for napari is large, and its plugins of pytest warn: where it is installed, run pytest with
`-p no:napari -p no:npe2`.
"""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hdf5plugin
import numpy as np
import pytest

import gsio
from gsio.export import export

ROWS, COLS, FRAMES = 12, 17, 6
OUTPUTS: dict[str, dict[str, Any]] = {
    "run.h5": {},
    "lz4.h5": {"output.compression": "lz4"},
    "none.h5": {"output.compression": "none"},
    "uint8.h5": {"output.store": "uint8"},
    "uint16.h5": {"output.store": "uint16"},
    "batch.h5": {"model.feed": [0.03, 0.04, 0.05]},
    "run.zarr": {},
    "shards.zarr": {"output.shard_frames": 2},
    "float16.zarr": {"output.store": "float16"},
}
PLAIN = ["run.h5", "none.h5", "uint8.h5", "uint16.h5", "batch.h5"]  # which need no plugin
TIMES = [3.0 * frame for frame in range(1, FRAMES + 1)]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small outputs with u and v."""
    folder = tmp_path_factory.mktemp("readers")
    small = {"grid.rows": ROWS, "grid.cols": COLS, "run.frames": FRAMES, "run.steps_per_frame": 3}
    kind = {"run.backend": "numpy", "initial.kind": "noise", "output.fields": "u,v"}
    for name, changes in OUTPUTS.items():
        gsio.simulate(gsio.load_config(overrides=small | kind | changes, environ={}), folder / name)
    return folder


def frames_of(path: Path, field: str = "v") -> np.ndarray:
    with gsio.open_stack(path) as stack:
        return np.asarray(stack.fields[field], np.float64)


def by_python(package: str, script: str, *paths: Path | str) -> dict[str, Any]:
    """Return what the function `read` of `script` returns for each path, by name; in one process."""
    if find_spec(package) is None:
        pytest.skip(f"needs {package}: pip install 'gsio[readers]'")
    first = "import json, sys, warnings\nwarnings.simplefilter('ignore')"
    last = "print('\\n' + json.dumps([read(path) for path in sys.argv[1:]]))"
    command = [sys.executable, "-c", f"{first}\n{script}\n{last}", *map(str, paths)]
    environment = os.environ | {"HDF5_PLUGIN_PATH": hdf5plugin.PLUGIN_PATH, "PYVISTA_OFF_SCREEN": "true"}
    found = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert found.returncode == 0, found.stderr[-2000:]
    answers = json.loads(found.stdout.splitlines()[-1])
    return dict(zip((Path(path).name for path in paths), answers, strict=True))


def by_tool(*command: Path | str) -> str:
    """Return what a program says, which has to end well."""
    if shutil.which(str(command[0])) is None:
        pytest.skip(f"needs {command[0]}, of Debian's netcdf-bin, nco or cdo")
    environment = os.environ | {"HDF5_PLUGIN_PATH": hdf5plugin.PLUGIN_PATH}
    found = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert found.returncode == 0, found.stderr[-2000:]
    return found.stdout + found.stderr


def test_cf_python_finds_every_field(outputs: Path) -> None:
    script = """
import cf
def read(path):
    fields = {field.nc_get_variable(): field for field in cf.read(path)}
    return {name: [fields[name].array.tolist(), fields[name].construct('ncvar%time').array.tolist()] for name in 'uv'}
"""
    for name, found in by_python("cf", script, *(outputs / name for name in PLAIN)).items():
        for field in "uv":
            np.testing.assert_allclose(found[field][0], frames_of(outputs / name, field), rtol=1e-6, err_msg=name)
            assert found[field][1] == TIMES


@pytest.mark.parametrize("name", [*PLAIN, "lz4.h5"])
def test_ncdump_reads_every_value(name: str, outputs: Path) -> None:
    text = by_tool("ncdump", "-p", "9,17", "-v", "v", outputs / name)
    values = text.partition("\n v =")[2].partition(";")[0].split(",")
    with gsio.open_stack(outputs / name) as stack:
        np.testing.assert_array_equal(np.array(values, np.float32).reshape(stack.v.shape), stack.root["v"][:])
    assert ':title = "Gray-Scott' in text


@pytest.mark.parametrize("name", [*PLAIN, "lz4.h5"])
def test_nccopy_copies_all_of_it(name: str, outputs: Path, tmp_path: Path) -> None:
    import h5py

    by_tool("nccopy", outputs / name, tmp_path / "copy.nc")
    with h5py.File(tmp_path / "copy.nc") as copy, gsio.open_stack(outputs / name) as stack:
        # Each link is one more array to netCDF-C, as the README says.
        for array in ("v", "matrix", "VTKHDF/PointData/v"):
            np.testing.assert_array_equal(copy[array], stack.root["v"])


@pytest.mark.parametrize("name", PLAIN)
def test_nco_means_over_the_frames_without_a_complaint(name: str, outputs: Path, tmp_path: Path) -> None:
    import netCDF4

    assert "NC_STRING" not in by_tool("ncra", "-O", outputs / name, tmp_path / "mean.nc")
    by_tool("ncks", "-O", "-v", "v", outputs / name, tmp_path / "v.nc")
    by_tool("ncwa", "-O", "-v", "v", "-a", "y,x", outputs / name, tmp_path / "series.nc")
    with netCDF4.Dataset(tmp_path / "mean.nc") as mean, netCDF4.Dataset(tmp_path / "v.nc") as alone:
        expected = frames_of(outputs / name)
        np.testing.assert_allclose(
            np.squeeze(mean["v"][:]), expected.mean(axis=0), atol=0.003 if "uint" in name else 1e-6
        )
        np.testing.assert_allclose(alone["v"][:], expected, rtol=1e-6)
        assert "matrix" not in alone.variables


@pytest.mark.parametrize("name", [*PLAIN[:-1], "lz4.h5"])
def test_cdo_selects_a_field(name: str, outputs: Path, tmp_path: Path) -> None:
    import netCDF4

    by_tool("cdo", "-s", "selname,v", outputs / name, tmp_path / "v.nc")
    with netCDF4.Dataset(tmp_path / "v.nc") as alone:
        np.testing.assert_allclose(alone["v"][:], frames_of(outputs / name), rtol=1e-6)


VTK = """
from vtkmodules.util.numpy_support import vtk_to_numpy
from vtkmodules.vtkIOHDF import vtkHDFReader
def read(path):
    reader = vtkHDFReader()
    reader.SetFileName(path)
    reader.UpdateInformation()
    found = {}
    for time in reader.GetOutputInformation(0).Get(reader.GetExecutive().TIME_STEPS()):
        reader.UpdateTimeStep(time)
        points = reader.GetOutput().GetPointData()
        found[time] = {name: vtk_to_numpy(points.GetArray(name)).tolist() for name in 'uv'}
    return found
"""
PYVISTA = """
import pyvista
def read(path):
    reader = pyvista.HDFReader(path)
    times = reader.reader.GetOutputInformation(0).Get(reader.reader.GetExecutive().TIME_STEPS())
    found = {}
    for time in times:
        reader.reader.UpdateTimeStep(time)
        image = pyvista.wrap(reader.reader.GetOutput())
        found[time] = {name: image[name].tolist() for name in 'uv'}
    return found
"""


@pytest.mark.parametrize(("package", "script"), [("vtkmodules", VTK), ("pyvista", PYVISTA)])
def test_vtk_and_pyvista_read_every_frame(package: str, script: str, outputs: Path, tmp_path: Path) -> None:
    export(outputs / "run.h5", tmp_path / "run.vtkhdf")
    names = [*PLAIN, "lz4.h5"]
    for name, found in by_python(package, script, tmp_path / "run.vtkhdf", *(outputs / name for name in names)).items():
        assert [float(time) for time in found] == TIMES, name
        with gsio.open_stack((outputs / name).with_suffix(".h5")) as stack:
            for field in "uv":
                stored = stack.root[field][:].reshape(FRAMES, -1)
                np.testing.assert_array_equal([image[field] for image in found.values()], stored, err_msg=name)


@pytest.mark.parametrize("engine", ["h5netcdf", "netcdf4", "zarr"])
def test_xarray_reads_by_every_engine(engine: str, outputs: Path) -> None:
    script = f"""
import hdf5plugin, xarray
def read(path):
    tree = xarray.open_datatree(path, engine='{engine}')
    v, top = tree['v'], tree['stats'].to_dataset()['v_max']
    return [str(v.dtype), *(array.values.tolist() for array in (v, v['time'], top, top['time']))]
"""
    names = [name for name in OUTPUTS if name.endswith(".zarr") == (engine == "zarr")]
    for name, found in by_python("xarray", script, *(outputs / name for name in names)).items():
        dtype, values, times, highest, times_too = found
        with gsio.open_stack(outputs / name) as stack:
            assert times == times_too == TIMES, name
            assert dtype == str(stack.v.dtype), name
            np.testing.assert_array_equal(np.array(values, dtype), stack.v, err_msg=name)
            np.testing.assert_array_equal(highest, stack.series("stats/v_max"), err_msg=name)


def test_silx_plots_the_fields_at_once(outputs: Path) -> None:
    script = """
import silx.io
from silx.io import nxdata
def read(path):
    with silx.io.open(path) as file:
        plot = nxdata.get_default(file)
        return [plot.is_valid, plot.signal_dataset_name, plot.axes_dataset_names, plot.axes_names]
"""
    for name, found in by_python("silx", script, *(outputs / name for name in PLAIN)).items():
        valid, signal, axes, titles = found
        assert (valid, signal) == (True, "v")
        assert axes == ["time", *["member"] * (name == "batch.h5"), "y", "x"]
        assert titles[0] == "model time"


IMAGES = {
    "bioio": """
from bioio import BioImage
def read(path):
    image = BioImage(path)
    return [image.data.tolist(), list(image.channel_names), [image.scale.T, image.scale.Y, image.scale.X]]
""",
    "ngff_zarr": """
import ngff_zarr
def read(path):
    scales = ngff_zarr.from_ngff_zarr(path, validate=True)
    image = scales.images[0]
    assert tuple(image.dims) == ('t', 'c', 'z', 'y', 'x')
    names = [channel.label for channel in scales.metadata.omero.channels]
    return [image.data.compute().tolist(), names, [image.scale[axis] for axis in 'tyx']]
""",
    "napari_ome_zarr": """
from napari_ome_zarr import napari_get_reader
def read(path):
    (data, about, *_), = napari_get_reader(path)(path)
    assert about['axis_labels'] == ('t', 'z', 'y', 'x')
    names = [name.rpartition(' ')[2] for name in about['name']]
    assert all(low < high for low, high in about['contrast_limits'])
    return [data[0].compute().tolist(), names, [about['scale'][axis] for axis in (0, 2, 3)]]
""",
}


@pytest.mark.parametrize("package", IMAGES)
def test_readers_of_images_find_channels_and_scale(package: str, outputs: Path, tmp_path: Path) -> None:
    endings = [".ome.zarr", ".ome.tif", ".tif"] if package == "bioio" else [".ome.zarr"]
    sources = {f"{name}{ending}": name for name in ("run.h5", "batch.h5", "float16.zarr") for ending in endings}
    for name, source in sources.items():
        export(outputs / source, tmp_path / name)
    for name, found in by_python(package, IMAGES[package], *(tmp_path / name for name in sources)).items():
        values, names, scale = found
        source = sources[name]
        for channel, field in enumerate("uv"):
            expected = frames_of(outputs / source, field).reshape(FRAMES, -1, ROWS, COLS)
            np.testing.assert_array_equal(np.array(values)[:, channel], expected, err_msg=name)
        if name != f"{source}.tif":  # whose channels are named by the labels of pages, which bioio does not read
            assert names == ["u", "v"]
        assert scale == [None if name.endswith(".tif") else 3, 1, 1]  # bioio takes the time from OME-Zarr only


def test_openpmd_viewer_finds_every_iteration(outputs: Path, tmp_path: Path) -> None:
    for name in ("run", "batch"):  # it takes a folder of files
        (tmp_path / name).mkdir()
        export(outputs / f"{name}.h5", tmp_path / name / "out.openpmd.h5")
    script = """
from openpmd_viewer import OpenPMDTimeSeries
def read(path):
    series = OpenPMDTimeSeries(path, check_all_files=True)
    fields = [series.get_field('v', iteration=number) for number in series.iterations]
    geometry, axes = series.fields_metadata['v']['geometry'], list(fields[0][1].axes.values())
    return [series.t.tolist(), geometry, axes, [field.tolist() for field, _ in fields]]
"""
    for name, found in by_python("openpmd_viewer", script, tmp_path / "run", tmp_path / "batch").items():
        times, geometry, axes, values = found
        assert times == TIMES
        labels = ["member", "y", "x"][-len(axes) :]
        assert (geometry, axes) == (f"{2 + (name == 'batch')}dcartesian", labels)
        np.testing.assert_array_equal(values, frames_of(outputs / f"{name}.h5"))
