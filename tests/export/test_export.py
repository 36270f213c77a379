"""`gsio export`: every format reads back exactly in the tools it is for, and what fails leaves nothing behind."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
import zarr
from ome_zarr_models.v05 import Image

import gsio
import gsio.export
from gsio.cli import main
from gsio.config import Config
from gsio.testing import small_blocks

Make = Callable[..., Config]
Captured = pytest.CaptureFixture[str]
Arrays = dict[str, np.ndarray]

PLANE = 12 * 17 * 4
CHANGES = {"run.frames": 16, "output.fields": "u,v", "initial.kind": "noise"}
BATCH = {"model.feed": [0.03, 0.04, 0.05], "output.compression": "lz4", "output.shard_frames": 6}
SOURCES = {"run.h5": {}, "batch.zarr": BATCH}
PARTS = {
    "whole": ([], slice(None), slice(None), slice(None)),
    "part": (["--frames", "3:14:4", "--crop=-9:11,4:"], slice(3, 14, 4), slice(3, 11), slice(4, 17)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of outputs with three frames a chunk and six a block."""
    folder = tmp_path_factory.mktemp("outputs")
    small = {"grid.rows": 12, "grid.cols": 17, "run.steps_per_frame": 3, "run.backend": "numpy", **CHANGES}
    with small_blocks(block_bytes=12 * PLANE, chunk_bytes=3 * PLANE):
        for name, changes in SOURCES.items():
            gsio.simulate(gsio.load_config(overrides=small | changes, environ={}), folder / name)
        yield folder


@pytest.fixture
def source(folder: Path, tmp_path: Path) -> Path:
    shutil.copy(folder / "run.h5", tmp_path)
    return tmp_path / "run.h5"


def read_hdf5(path: Path) -> tuple[Arrays, np.ndarray]:
    with h5py.File(path) as file:
        return {name: file[name][:] for name in "uv"}, file["time"][:]


def read_zarr(path: Path) -> tuple[Arrays, np.ndarray]:
    root: Any = zarr.open_group(path, mode="r")
    return {name: root[name][:] for name in "uv"}, root["time"][:]


def read_tiff(path: Path) -> tuple[Arrays, np.ndarray]:
    with tifffile.TiffFile(path) as file:
        about = file.imagej_metadata
        assert about is not None
        assert file.series[0].axes in ("TCYX", "TZCYX")
        assert about["mode"] == "composite"
        stack = file.asarray().reshape(about["frames"], about.get("slices", 1), about["channels"], *file.pages[0].shape)
        first = 12 if about["frames"] < 16 else 3  # which ImageJ has no place for
        times = first + np.arange(len(stack)) * about["finterval"]
    return {name: np.squeeze(stack[:, :, channel]) for channel, name in enumerate("uv")}, times


def read_ome_tiff(path: Path) -> tuple[Arrays, np.ndarray]:
    with tifffile.TiffFile(path) as file:
        pixels = tifffile.xml2dict(file.ome_metadata or "")["OME"]["Image"]["Pixels"]
        assert [channel["Name"] for channel in pixels["Channel"]] == ["u", "v"]
        assert {pixels[f"PhysicalSize{axis}"] for axis in "XYZ"} == {1}
        assert {pixels[f"PhysicalSize{axis}Unit"] for axis in "XYZ"} == {"pixel"}
        stack = file.asarray().reshape(*(pixels[f"Size{axis}"] for axis in "TZCYX"))
        first = 12 if len(stack) < 16 else 3  # which OME has no place for
        times = first + np.arange(len(stack)) * pixels["TimeIncrement"]
    return {name: np.squeeze(stack[:, :, channel]) for channel, name in enumerate("uv")}, times


def read_ome_zarr(path: Path) -> tuple[Arrays, np.ndarray]:
    group = zarr.open_group(path, mode="r")
    (scales,) = Image.from_zarr(group).ome_attributes.multiscales
    assert [(axis.name, axis.type) for axis in scales.axes] == list(
        zip("tczyx", ["time", "channel", *["space"] * 3], strict=True)
    )
    (level,) = scales.datasets
    scale, first = (place.model_dump()[place.type] for place in level.coordinateTransformations)
    array: Any = group[level.path]
    stack = array[:]
    times = first[0] + np.arange(len(stack)) * scale[0]
    return {name: np.squeeze(stack[:, channel]) for channel, name in enumerate("uv")}, times


def read_vtkhdf(path: Path) -> tuple[Arrays, np.ndarray]:
    hdf = pytest.importorskip("vtkmodules.vtkIOHDF")
    support = pytest.importorskip("vtkmodules.util.numpy_support")
    reader = hdf.vtkHDFReader()
    reader.SetFileName(str(path))
    reader.UpdateInformation()
    times = reader.GetOutputInformation(0).Get(reader.GetExecutive().TIME_STEPS())
    found: dict[str, list[np.ndarray]] = {"u": [], "v": []}
    for time in times:
        reader.UpdateTimeStep(time)
        image = reader.GetOutput()
        for name, frames in found.items():
            values = support.vtk_to_numpy(image.GetPointData().GetArray(name))
            frames.append(np.squeeze(values.reshape(image.GetDimensions()[::-1])).copy())
    return {name: np.array(frames) for name, frames in found.items()}, np.array(times)


def read_openpmd(path: Path) -> tuple[Arrays, np.ndarray]:
    with h5py.File(path) as file:
        assert file.attrs["openPMD"] == b"1.1.0"
        assert file.attrs["iterationEncoding"] == b"groupBased"
        assert file.attrs["basePath"] == file.attrs["iterationFormat"] == b"/data/%T/"
        meshes = file.attrs["meshesPath"].decode().strip("/")
        steps = sorted(file["data"], key=int)
        times = np.array([file["data"][step].attrs["time"] for step in steps])
        np.testing.assert_array_equal(times, [float(step) for step in steps])  # dt is 1
        return {name: np.array([file[f"data/{step}/{meshes}/{name}"][:] for step in steps]) for name in "uv"}, times


READERS: dict[str, Callable[[Path], tuple[Arrays, np.ndarray]]] = {
    ".h5": read_hdf5,
    ".hdf5": read_hdf5,
    ".zarr": read_zarr,
    ".tif": read_tiff,
    ".tiff": read_tiff,
    ".ome.tif": read_ome_tiff,
    ".ome.tiff": read_ome_tiff,
    ".ome.zarr": read_ome_zarr,
    ".vtkhdf": read_vtkhdf,
    ".openpmd.h5": read_openpmd,
}


def expected(path: Path, part: str) -> tuple[Arrays, np.ndarray]:
    _, frames, rows, cols = PARTS[part]
    with gsio.open_stack(path) as stack:
        return {name: np.array(stack.fields[name])[frames, ..., rows, cols] for name in "uv"}, stack.times[frames]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("ending", READERS)
@pytest.mark.parametrize("name", SOURCES)
def test_it_reads_back_exactly(
    name: str, ending: str, part: str, folder: Path, tmp_path: Path, capsys: Captured
) -> None:
    arguments = ["export", str(folder / name), str(tmp_path / f"out{ending}"), *PARTS[part][0]]
    assert main([*arguments, "--compression=none"] if ending == ".hdf5" else arguments) == 0
    captured = capsys.readouterr()
    assert captured.out.endswith(f"out{ending}: {3 if part == 'part' else 16} frames\n")
    assert captured.err == ""
    arrays, times = expected(folder / name, part)
    found, found_times = READERS[ending](tmp_path / f"out{ending}")
    for field, array in arrays.items():
        np.testing.assert_array_equal(found[field], array)
        assert found[field].dtype == np.float32
    np.testing.assert_array_equal(found_times, times)
    assert [path.name for path in tmp_path.iterdir()] == [f"out{ending}"]


@pytest.mark.parametrize("compression", ["auto", "deflate", "lz4", "zstd", "none"])
@pytest.mark.parametrize("ending", [".h5", ".zarr"])
@pytest.mark.parametrize("name", SOURCES)
def test_what_is_exported_as_an_output_is_one(
    name: str, ending: str, compression: str, folder: Path, tmp_path: Path, capsys: Captured
) -> None:
    if (ending, compression) == (".zarr", "deflate"):
        pytest.skip("Zarr has none")
    target = tmp_path / f"out{ending}"
    assert main(["export", str(folder / name), str(target), "--compression", compression]) == 0
    assert main(["verify", str(target)]) == 0
    assert main(["info", str(target)]) == 0
    assert "16 frames" in capsys.readouterr().out
    with gsio.open_stack(folder / name) as run, gsio.open_stack(target) as found:
        for series in ("step", "time", "stats/u_min", "stats/v_mean"):
            np.testing.assert_array_equal(found.series(series), run.series(series))
        for attribute in ("started", "ended", "status", "argv", "device", "versions"):
            assert found.attributes[attribute] == run.attributes[attribute]
        assert found.attributes["history"].startswith(run.attributes["history"])
        assert "selection" not in found.attributes
        assert found.config.model == run.config.model
        if compression != "auto":
            assert found.config.output.compression == compression
        if name.endswith(ending):
            assert found.attributes.get("ome") == run.attributes.get("ome")


@pytest.mark.parametrize("ending", [".h5", ".zarr"])
def test_a_part_of_a_part_says_where_it_was(ending: str, source: Path, tmp_path: Path) -> None:
    first, second = tmp_path / f"first{ending}", tmp_path / f"second{ending}"
    assert main(["export", str(source), str(first), "--frames", "2::4", "--crop", "1:11,4:"]) == 0
    assert main(["export", str(first), str(second), "--frames", "1:", "--crop=-5:,:-3"]) == 0
    with gsio.open_stack(second) as stack:
        np.testing.assert_array_equal(stack.v, expected(source, "whole")[0]["v"][6::4, 6:11, 4:14])
        np.testing.assert_array_equal(stack.series("step"), [21, 33, 45])
        np.testing.assert_array_equal(stack.times, [21, 33, 45])
        np.testing.assert_array_equal(stack.series("stats/v_max"), np.array(stack.v).max(axis=(1, 2)))
        assert stack.attributes["selection"] == (
            "frames 2:16:4, rows 1:11:1, columns 4:17:1; then frames 1:4:1, rows 5:10:1, columns 0:10:1"
        )
        data = stack.to_xarray()
        np.testing.assert_array_equal(data["y"], np.arange(6, 11))
        np.testing.assert_array_equal(data["x"], np.arange(4, 14))
        data.close()
        if ending == ".zarr":
            places = stack.attributes["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"]
            assert places[0]["scale"] == [12, 1, 1]
            assert places[1]["translation"] == [21, 6, 4]


@pytest.mark.parametrize("ending", [".h5", ".zarr"])
def test_what_is_zero_in_every_frame_is_there(ending: str, make_config: Make, tmp_path: Path) -> None:
    target = tmp_path / f"out{ending}"
    gsio.simulate(
        make_config(
            {"initial.kind": "square", "grid.rows": 64, "grid.cols": 64, "run.steps_per_frame": 1, "run.frames": 2}
        ),
        tmp_path / "run.h5",
    )
    gsio.export.export(tmp_path / "run.h5", target, crop=":1,:")  # a single row has the coordinate 0
    with gsio.open_stack(target) as stack:
        np.testing.assert_array_equal(stack.axis("y"), [0])
    gsio.export.export(tmp_path / "run.h5", target, overwrite=True)
    with gsio.open_stack(target) as stack:
        np.testing.assert_array_equal(stack.series("stats/v_min"), [0, 0])
    assert main(["verify", str(target)]) == 0


@pytest.mark.parametrize("ending", [".h5", ".zarr"])
@pytest.mark.parametrize("lossy", [{"output.store": "uint8"}, {"output.store": "float16"}, {"output.keep_bits": 6}])
def test_what_was_rounded_is_not_rounded_again(
    lossy: dict[str, Any], ending: str, make_config: Make, tmp_path: Path
) -> None:
    source = tmp_path / ("run.zarr" if "float16" in lossy.values() else "run.h5")
    gsio.simulate(make_config(CHANGES | lossy | {"output.compression": "auto"}), source)
    for name, crop in (("whole", ":,:"), ("part", "2:,:")):
        assert main(["export", str(source), str(tmp_path / f"{name}{ending}"), "--crop", crop]) == 0
    assert main(["verify", str(tmp_path / f"whole{ending}")]) == 0
    with (
        gsio.open_stack(source) as run,
        gsio.open_stack(tmp_path / f"whole{ending}") as whole,
        gsio.open_stack(tmp_path / f"part{ending}") as part,
    ):
        np.testing.assert_array_equal(whole.v, np.array(run.v))
        np.testing.assert_array_equal(part.v, np.array(run.v)[:, 2:])
        for found in (whole, part):
            np.testing.assert_array_equal(found.series("stats/v_error"), run.series("stats/v_error"))
        np.testing.assert_array_equal(whole.series("stats/v_max"), run.series("stats/v_max"))


@pytest.mark.parametrize("ending", [".h5", ".vtkhdf", ".openpmd.h5"])
def test_large_frames_are_cut_into_slabs(ending: str, source: Path, tmp_path: Path) -> None:
    small_blocks(large_bytes=PLANE - 1, slab_bytes=PLANE * 5 // 12)  # of five rows: the last is shorter
    assert main(["export", str(source), str(tmp_path / f"out{ending}")]) == 0
    arrays, _ = expected(source, "whole")
    for field, array in READERS[ending](tmp_path / f"out{ending}")[0].items():
        np.testing.assert_array_equal(array, arrays[field])
    places = {".h5": "v", ".vtkhdf": "VTKHDF/PointData/v", ".openpmd.h5": "data/3/meshes/v"}
    with h5py.File(tmp_path / f"out{ending}") as file:
        assert file[places[ending]].chunks[-2:] == (5, 17)


def test_a_tiff_says_what_its_axes_and_values_are(source: Path, tmp_path: Path) -> None:
    assert main(["export", str(source), str(tmp_path / "out.tif"), "--frames", "::4"]) == 0
    arrays, _ = expected(source, "whole")
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        about = file.imagej_metadata or {}
        assert (about["unit"], about["spacing"], about["finterval"], about["tunit"]) == ("pixel", 1, 12, "model time")
        assert about["Labels"][:4] == ["u, time 3", "v, time 3", "u, time 15", "v, time 15"]
        limits = [limit for name in "uv" for limit in (arrays[name][::4].min(), arrays[name][::4].max())]
        assert list(about["Ranges"]) == limits
        page: Any = file.pages[0]
        assert [page.tags[name].value for name in ("XResolution", "YResolution")] == [(1, 1)] * 2


def test_a_large_image_has_smaller_levels(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gsio.export.ome_zarr.LEVEL_CELLS", 4)
    assert main(["export", str(source), str(tmp_path / "out.ome.zarr"), "--crop", "1:,2:"]) == 0
    group: Any = zarr.open_group(tmp_path / "out.ome.zarr", mode="r")
    attributes = Image.from_zarr(group).ome_attributes
    (scales,) = attributes.multiscales
    assert [group[level.path].shape for level in scales.datasets] == [(16, 2, 1, 11 >> n, 15 >> n) for n in range(3)]
    places = [
        [place.model_dump()[place.type] for place in level.coordinateTransformations] for level in scales.datasets
    ]
    assert [place[0] for place in places] == [[3, 1, 1, size, size] for size in (1, 2, 4)]
    assert [place[1][3:] for place in places] == [[1, 2], [1.5, 2.5], [2.5, 3.5]]  # the middle of the first cell
    whole = group["0"][..., :10, :14]
    means = whole.reshape(16, 2, 1, 5, 2, 7, 2).mean(axis=(4, 6), dtype=np.float64)
    np.testing.assert_allclose(group["1"], means, rtol=1e-6)
    for channel, window in zip((0, 1), (found["window"] for found in attributes.omero["channels"]), strict=True):
        assert window["start"] <= group["0"][:, channel].min()
        assert window["end"] >= group["0"][:, channel].max()


@pytest.mark.parametrize("ending", [".ome.zarr", ".vtkhdf", ".openpmd.h5"])
def test_what_is_for_other_tools_is_no_output(ending: str, source: Path, tmp_path: Path, capsys: Captured) -> None:
    target = tmp_path / f"out{ending}"
    assert main(["export", str(source), str(target)]) == 0
    assert main(["info", str(target)]) == 65
    assert "expected an output of 'gsio run'" in capsys.readouterr().err
    assert main(["export", str(source), str(target), "--overwrite"]) == 0


def test_a_large_tiff_is_an_ome_tiff(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gsio.export.tiff.CLASSIC_TIFF_BYTES", 1000)
    assert main(["export", str(source), str(tmp_path / "out.tif"), "--frames", "::3"]) == 0
    arrays, _ = expected(source, "whole")
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        assert file.is_bigtiff
        assert file.is_ome
        assert file.series[0].axes == "TCYX"
        np.testing.assert_array_equal(file.asarray(), np.stack([arrays["u"], arrays["v"]], axis=1)[::3])
        pixels = tifffile.xml2dict(file.ome_metadata or "")["OME"]["Image"]["Pixels"]
    assert [channel["Name"] for channel in pixels["Channel"]] == ["u", "v"]
    assert pixels["TimeIncrement"] == 9


def test_double_precision_becomes_single_in_a_tiff_only(make_config: Make, tmp_path: Path) -> None:
    gsio.simulate(make_config({**CHANGES, "model.precision": "float64"}), tmp_path / "run.h5")
    arrays, _ = expected(tmp_path / "run.h5", "whole")
    for ending, dtype in ((".tif", np.float32), (".h5", np.float64), (".vtkhdf", np.float64), (".zarr", np.float64)):
        assert main(["export", str(tmp_path / "run.h5"), str(tmp_path / f"out{ending}")]) == 0
        found = READERS[ending](tmp_path / f"out{ending}")[0]["v"]
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, arrays["v"].astype(dtype))


def test_a_vtk_image_lies_where_it_was(source: Path, tmp_path: Path) -> None:
    hdf = pytest.importorskip("vtkmodules.vtkIOHDF")
    assert main(["export", str(source), str(tmp_path / "out.vtkhdf"), "--crop", "3:10,5:9"]) == 0
    reader = hdf.vtkHDFReader()
    reader.SetFileName(str(tmp_path / "out.vtkhdf"))
    reader.Update()
    assert reader.GetOutput().GetBounds() == (5, 8, 3, 9, 0, 0)
    assert reader.GetOutput().GetPointData().GetScalars().GetName() == "v"


def test_an_openpmd_mesh_has_every_required_attribute(source: Path, tmp_path: Path) -> None:
    assert main(["export", str(source), str(tmp_path / "out.openpmd.h5"), "--crop", "3:,5:"]) == 0
    with h5py.File(tmp_path / "out.openpmd.h5") as file:
        assert file.attrs["selection"] == "frames 0:16:1, rows 3:12:1, columns 5:17:1"
        iteration = file["data/48"]
        assert (iteration.attrs["time"], iteration.attrs["dt"], iteration.attrs["timeUnitSI"]) == (48, 1, 1)
        mesh = dict(iteration["meshes/u"].attrs)
    assert (mesh["geometry"], mesh["dataOrder"], mesh["axisLabels"].tolist()) == (b"cartesian", b"C", [b"y", b"x"])
    assert (mesh["gridSpacing"].tolist(), mesh["gridGlobalOffset"].tolist()) == ([1, 1], [3, 5])
    assert (mesh["position"].tolist(), mesh["unitDimension"].tolist()) == ([0, 0], [0] * 7)
    assert (mesh["gridUnitSI"], mesh["unitSI"], mesh["timeOffset"]) == (1, 1, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["out.png"], "expected a name that ends in .h5, .hdf5, .zarr,"),
        (["out.tif", "--frames", "17"], "--frames: expected START:STOP:STEP that selects some of 0:16, got '17'"),
        (["out.tif", "--frames", "0:17"], "got '0:17'"),
        (["out.tif", "--frames=-17:"], "got '-17:'"),
        (["out.h5", "--frames", "5:5"], "got '5:5'"),
        (["out.h5", "--frames", "::0"], "got '::0'"),
        (["out.h5", "--frames", "::-1"], "got '::-1'"),
        (["out.zarr", "--frames", "a:b"], "got 'a:b'"),
        (["out.zarr", "--frames", "1:2:1:1"], "got '1:2:1:1'"),
        (["out.vtkhdf", "--crop", "1:2"], "--crop: expected TOP:BOTTOM,LEFT:RIGHT, got '1:2'"),
        (["out.vtkhdf", "--crop", "4:5,:"], "--crop: expected two rows or more, got one"),
        (["out.vtkhdf", "--crop", ":13,:"], "--crop: expected TOP:BOTTOM that selects some of 0:12, got ':13'"),
        (["out.openpmd.h5", "--crop", ":,4:4"], "--crop: expected LEFT:RIGHT that selects some of 0:17, got '4:4'"),
        (["out.openpmd.h5", "--crop", "::2,:"], "got '::2'"),
        (["out.h5", "--compression", "gzip"], "--compression"),
        (["out.zarr", "--compression", "deflate"], "Zarr has no deflate"),
        (["out.tif", "--compression", "zstd"], "expected it with .h5 and .zarr only, got it with .tif"),
        (["missing/out.h5"], "missing' does not exist; create it first"),
        (["old.tif"], "exists; choose another name, or replace it with --overwrite"),
        (["run.h5", "--overwrite"], "expected a place apart from"),
        (["other.zarr", "--overwrite"], "is a folder that gsio did not write"),
        (["other.zarr/..", "--overwrite"], "expected a name that ends in"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_line(
    arguments: list[str], message: str, source: Path, capsys: Captured
) -> None:
    folder = source.parent
    (folder / "old.tif").write_bytes(b"mine")
    (folder / "other.zarr").mkdir()
    before = contents(folder)
    target, *options = arguments
    assert main(["export", str(source), f"{folder}/{target}", *options]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert contents(folder) == before


def test_a_target_inside_its_source_is_refused(folder: Path, capsys: Captured) -> None:
    before = contents(folder)
    assert main(["export", str(folder / "batch.zarr"), str(folder / "batch.zarr" / "out.h5")]) == 2
    assert "expected a place apart from" in capsys.readouterr().err
    assert contents(folder) == before


def test_a_missing_field_is_refused(source: Path, capsys: Captured) -> None:
    with h5py.File(source, "r+") as file:
        del file["u"]
    assert main(["export", str(source), str(source.with_name("out.h5"))]) == 65
    assert "expected the fields u, v, found v" in capsys.readouterr().err


def test_a_missing_package_is_named(source: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setitem(sys.modules, "tifffile", None)
    before = contents(source.parent)
    assert main(["export", str(source), str(source.with_name("out.tif"))]) == 2
    assert "pip install 'gsio[tiff]'" in capsys.readouterr().err
    assert contents(source.parent) == before


@pytest.mark.parametrize("ending", READERS)
def test_what_was_there_is_replaced_when_asked(ending: str, source: Path, tmp_path: Path, capsys: Captured) -> None:
    target = tmp_path / f"out{ending}"
    assert main(["export", str(source), str(target), "--frames", ":2", "--quiet"]) == 0
    assert main(["export", str(source), str(target), "--quiet"]) == 2
    assert main(["export", str(source), str(target), "--quiet", "--overwrite"]) == 0
    assert capsys.readouterr().out == ""
    assert len(READERS[ending](target)[0]["v"]) == 16
    assert sorted(path.name for path in tmp_path.iterdir()) == [target.name, "run.h5"]


@pytest.mark.parametrize("ending", READERS)
@pytest.mark.parametrize("what", ["a damaged chunk", "a full disk", "a failing disk", "SIGTERM", "Ctrl-C"])
def test_what_fails_leaves_nothing_behind(
    what: str, ending: str, source: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    folder = source.parent
    target = folder / f"old{ending}"
    assert main(["export", str(source), str(target), "--frames", ":1"]) == 0
    usage = shutil.disk_usage(folder)
    asked = 0

    def disk_usage(path: Path) -> Any:  # asked before each frame
        nonlocal asked
        asked += 1
        if asked == 9:
            if what == "a full disk":
                return usage._replace(free=1 << 20)
            if what == "a failing disk":
                raise OSError(5, "Input/output error")
            if what in ("SIGTERM", "Ctrl-C"):
                os.kill(os.getpid(), signal.SIGTERM if what == "SIGTERM" else signal.SIGINT)
        return usage

    if what == "a damaged chunk":
        with h5py.File(source, "r+") as file:
            file["v"].id.write_direct_chunk((9, 0, 0), b"no zlib stream")
    monkeypatch.setattr("shutil.disk_usage", disk_usage)
    before, handler = contents(folder), signal.getsignal(signal.SIGTERM)
    code = main(["export", str(source), str(target), "--overwrite"])
    captured = capsys.readouterr()
    codes = {"a damaged chunk": 65, "a full disk": 74, "a failing disk": 74, "SIGTERM": 143, "Ctrl-C": 130}
    assert code == codes[what]
    assert captured.err.strip().count("\n") == 0
    said = {"a damaged chunk": "frame 9: ", "a full disk": "1 MiB are left", "a failing disk": "Input/output error"}
    assert said.get(what, "nothing was written") in captured.err
    assert contents(folder) == before
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_run_that_did_not_end_is_exported_as_far_as_it_went(make_config: Make, tmp_path: Path) -> None:
    gsio.simulate(make_config(CHANGES), tmp_path / "run.h5")
    with h5py.File(tmp_path / "run.h5", "r+") as file:
        growing = [f"stats/{name}" for name in file["stats"]] + ["time", "step", "integrity/crc32c", "v", "u"]
        for name in growing:
            if name in file:
                file[name].resize(5, axis=0)
        file.attrs.modify("status", np.array(b"running", "S16"))
    assert main(["export", str(tmp_path / "run.h5"), str(tmp_path / "out.zarr")]) == 0
    assert main(["verify", str(tmp_path / "out.zarr")]) == 0
    with gsio.open_stack(tmp_path / "out.zarr") as stack:
        assert stack.frames == 5
        assert stack.attributes["status"] == "stopped"
        assert stack.config.run.frames == 16
    assert json.loads((tmp_path / "out.zarr" / "zarr.json").read_bytes())["attributes"]["status"] == "stopped"


def test_a_terminal_sees_a_bar(source: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert main(["export", str(source), str(source.with_name("out.zarr"))]) == 0
    captured = capsys.readouterr()
    assert "frames" in captured.err
    assert captured.out.count("\n") == 1
