"""HDF5 files: what stock readers find in them, and what is left when storage fails."""

import errno
import json
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import crc32c
import h5py
import hdf5plugin
import netCDF4
import numpy as np
import pytest
import xarray
from isal import isal_zlib
from vtkmodules.util.numpy_support import vtk_to_numpy
from vtkmodules.vtkIOHDF import vtkHDFReader

import gsio
from gsio import codec
from gsio.config import Config
from gsio.errors import StorageError, UsageError
from gsio.frames.block import Block
from gsio.frames.content import Content
from gsio.frames.layout import BlockLayout
from gsio.run.plan import layout_of
from gsio.testing import encode, random_block
from gsio.trace import Trace
from gsio.writer.hdf5 import disk, open_writer
from gsio.writer.journal import Journal
from gsio.writer.protocol import Target

Make = Callable[..., Config]
Expected = Callable[[Config], dict[str, np.ndarray]]
assert hdf5plugin.FILTERS["blosc"] == 32001  # its import is what lets h5py read lz4 and zstd
COMPRESSIONS = ("deflate", "lz4", "zstd", "none")


def one_frame_a_chunk(config: Config) -> BlockLayout:
    return layout_of(config, frames_per_chunk=1)


def staged_block(config: Config, first: int = 0, count: int = 1) -> Block:
    return random_block(one_frame_a_chunk(config), first, count)


def new_writer(path: Path, config: Config) -> Any:
    attributes = {"gsio_version": "test", "config": ""}
    content, layout = Content.of(config), one_frame_a_chunk(config)
    return open_writer(Target(path, content, layout, attributes, Journal(path), Trace()))


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("fields", ["v", "u", "u,v"])
def test_every_frame_reads_back_exactly(
    expected_frames: Expected, compression: str, precision: str, fields: str, make_config: Make, tmp_path: Path
) -> None:
    config = make_config(
        {
            "output.compression": compression,
            "model.precision": precision,
            "output.fields": fields,
            "initial.kind": "noise",
        }
    )
    gsio.simulate(config, tmp_path / "run.h5")
    with h5py.File(tmp_path / "run.h5") as file:
        for name, expected in expected_frames(config).items():
            assert (name in file) == (name in fields)
            if name in fields:
                assert file[name].dtype == precision
                np.testing.assert_array_equal(file[name], expected)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_coordinates_statistics_and_checksums_describe_the_frames(
    expected_frames: Expected, compression: str, make_config: Make, tmp_path: Path
) -> None:
    config = make_config({"output.compression": compression, "model.dt": 0.5, "initial.kind": "noise"})
    gsio.simulate(config, tmp_path / "run.h5")
    v = expected_frames(config)["v"]
    with h5py.File(tmp_path / "run.h5") as file:
        np.testing.assert_array_equal(file["step"], [3, 6, 9, 12, 15])
        np.testing.assert_array_equal(file["time"], [1.5, 3, 4.5, 6, 7.5])
        np.testing.assert_array_equal(file["y"], np.arange(12))
        np.testing.assert_array_equal(file["x"], np.arange(17))
        np.testing.assert_array_equal(file["stats/v_min"], v.min(axis=(1, 2)))
        np.testing.assert_array_equal(file["stats/v_max"], v.max(axis=(1, 2)))
        np.testing.assert_allclose(file["stats/v_mean"], v.mean(axis=(1, 2)), rtol=1e-6)
        for frame, checksum in zip(v, file["integrity/crc32c"], strict=True):
            raw = np.ascontiguousarray(frame).reshape(-1).view(np.uint8)
            staged = raw.reshape(-1, 4).T if compression == "deflate" else raw
            assert crc32c.crc32c(staged.tobytes()) == checksum


def test_a_process_with_only_h5py_reads_frames_and_the_schools_matrix(make_config: Make, tmp_path: Path) -> None:
    gsio.simulate(make_config(), tmp_path / "run.h5")
    code = (
        "import sys, h5py, json; f = h5py.File(sys.argv[1])\n"
        "print(json.dumps([f['v'].shape, f['matrix'].id == f['v'].id, float(f['v'][4].max()), list(f['v'].chunks),"
        " f['v'].shuffle, f['v'].compression, 'gsio' in sys.modules]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run.h5")]
    shape, linked, top, chunks, shuffle, compression, imported = json.loads(subprocess.check_output(command))
    assert (shape, linked, chunks, shuffle, compression, imported) == (
        [5, 12, 17],
        True,
        [5, 12, 17],
        True,
        "gzip",
        False,
    )
    assert 0 < top <= 1


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_xarray_finds_named_dimensions_coordinates_and_units(
    compression: str, make_config: Make, tmp_path: Path
) -> None:
    gsio.simulate(make_config({"output.compression": compression}), tmp_path / "run.h5")
    with xarray.open_dataset(tmp_path / "run.h5", engine="h5netcdf") as data:
        assert data["v"].dims == ("time", "y", "x")
        assert set(data["v"].coords) == {"time", "step", "y", "x"}
        assert data["v"].attrs["units"] == "1"
        assert data["time"].attrs["units"] == "1"
        assert data["v"].shape == (5, 12, 17)
        assert data.attrs["Conventions"] == "CF-1.12"


def test_attributes_have_the_types_that_other_readers_take(make_config: Make, tmp_path: Path) -> None:
    gsio.simulate(make_config({"output.fields": "u,v", "output.store": "uint8"}), tmp_path / "run.h5")
    with h5py.File(tmp_path / "run.h5") as file:
        plain = [(file, "title"), (file["u"], "coordinates"), (file["v"], "coordinates")]
        for of, name in [
            *plain,
            *((array, "cell_methods") for array in file["stats"].values() if "cell_methods" in array.attrs),
        ]:
            kind = of.attrs.get_id(name).get_type()
            assert (kind.is_variable_str(), kind.get_cset()) == (False, h5py.h5t.CSET_ASCII)
        for name in "uv":
            assert {file[name].attrs[word].dtype for word in ("scale_factor", "add_offset")} == {np.dtype("float32")}
            (scale,) = file[f"VTKHDF/Steps/PointDataOffsets/{name}"].dims[0].values()
            assert scale == file["time"]


@pytest.mark.parametrize("group", ["stats", "integrity"])
@pytest.mark.parametrize("engine", ["h5netcdf", "netcdf4"])
def test_what_is_recorded_of_frames_has_their_time_when_read_alone(
    engine: str, group: str, make_config: Make, tmp_path: Path
) -> None:
    gsio.simulate(make_config(), tmp_path / "run.h5")
    with xarray.open_dataset(tmp_path / "run.h5", engine=engine, group=group) as data:
        np.testing.assert_array_equal(data["time"], np.arange(1, 6) * 3)
        assert all(array.dims == ("time",) for array in data.values())


@pytest.mark.parametrize("feed", [0.03, [0.03, 0.04]], ids=["alone", "batch"])
def test_the_file_is_the_default_plot_of_nexus(feed: Any, make_config: Make, tmp_path: Path) -> None:
    config = make_config({"output.fields": "u,v", "model.feed": feed})
    gsio.simulate(config, tmp_path / "run.h5")
    with h5py.File(tmp_path / "run.h5") as file:
        assert (file.attrs["NX_class"], file.attrs["signal"]) == ("NXdata", "v")
        assert list(file.attrs["auxiliary_signals"]) == ["u"]
        axes = [file[name] for name in file.attrs["axes"]]
        assert tuple(len(axis) for axis in axes) == file["v"].shape
        assert all(axis.attrs["long_name"] for axis in axes)


@pytest.mark.parametrize("compression", ["deflate", "none"])
def test_h5dump_reads_every_byte(
    expected_frames: Expected, compression: str, make_config: Make, tmp_path: Path
) -> None:
    if shutil.which("h5dump") is None:
        pytest.skip("needs h5dump, of Debian's hdf5-tools")
    config = make_config({"output.compression": compression, "initial.kind": "noise"})
    gsio.simulate(config, tmp_path / "run.h5")
    command = ["h5dump", "-d", "/v", "-b", "LE", "-o", tmp_path / "v.bin", tmp_path / "run.h5"]
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "v.bin").read_bytes() == expected_frames(config)["v"].tobytes()


@pytest.mark.parametrize("compression", ["deflate", "none"])
def test_netcdf4_reads_every_frame_exactly(
    expected_frames: Expected, compression: str, make_config: Make, tmp_path: Path
) -> None:
    config = make_config({"output.compression": compression, "initial.kind": "noise"})
    gsio.simulate(config, tmp_path / "run.h5")
    with netCDF4.Dataset(tmp_path / "run.h5") as data:
        assert data["v"].dimensions == ("time", "y", "x")
        np.testing.assert_array_equal(data["v"][:], expected_frames(config)["v"])
        np.testing.assert_array_equal(data["time"][:], [3, 6, 9, 12, 15])


@pytest.mark.parametrize("compression", ["deflate", "none"])
@pytest.mark.parametrize("feed", [0.03, [0.03, 0.04, 0.05]], ids=["alone", "batch"])
def test_vtk_reads_every_frame_exactly(
    expected_frames: Expected, compression: str, feed: Any, make_config: Make, tmp_path: Path
) -> None:
    config = make_config(
        {
            "output.compression": compression,
            "output.fields": "u,v",
            "initial.kind": "noise",
            "model.feed": feed,
        }
    )
    gsio.simulate(config, tmp_path / "run.h5")
    reader = vtkHDFReader()
    reader.SetFileName(str(tmp_path / "run.h5"))
    reader.UpdateInformation()
    assert reader.GetNumberOfSteps() == 5
    for frame, (u, v) in enumerate(zip(*expected_frames(config).values(), strict=True)):
        reader.SetStep(frame)
        reader.Update()
        image = reader.GetOutput()
        assert image.GetDimensions() == (17, 12, 1 if u.ndim == 2 else 3)
        for name, expected in (("u", u), ("v", v)):
            found = vtk_to_numpy(image.GetPointData().GetArray(name)).reshape(expected.shape)
            np.testing.assert_array_equal(found, expected)


def test_the_file_says_where_it_comes_from(make_config: Make, tmp_path: Path) -> None:
    config = make_config()
    gsio.simulate(config, tmp_path / "run.h5")
    with h5py.File(tmp_path / "run.h5") as file:
        attributes = dict(file.attrs)
    (tmp_path / "again.toml").write_text(attributes["config"])
    assert gsio.load_config(tmp_path / "again.toml", environ={}) == config
    assert attributes["gsio_version"] == gsio.__version__
    assert attributes["status"] == b"complete"
    assert attributes["started"] <= attributes["ended"].decode()
    assert "numpy " in attributes["versions"]
    assert {"argv", "host", "device", "backend", "gsio_commit"} <= attributes.keys()


def test_the_time_axis_is_as_long_as_the_committed_frames(make_config: Make, tmp_path: Path) -> None:
    config = make_config()
    writer = new_writer(tmp_path / "run.h5", config)
    code = (
        "import sys, h5py; f = h5py.File(sys.argv[1]); print(len(f['v']), len(f['time']), len(f['integrity/crc32c']))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run.h5")]
    for committed in range(4):
        assert subprocess.check_output(command).split() == [str(committed).encode()] * 3
        block = staged_block(config, committed)
        encode(writer, block)
        writer.commit([block])
    writer.close("complete")


def test_raw_chunks_begin_at_a_page_and_appear_when_they_are_committed(make_config: Make, tmp_path: Path) -> None:
    config = make_config({"output.compression": "none", "grid.rows": 64, "grid.cols": 64})
    writer = new_writer(tmp_path / "run.h5", config)
    first, second = staged_block(config, 0, 2), staged_block(config, 2, 1)
    encode(writer, second)
    encode(writer, first)
    with h5py.File(tmp_path / "run.h5") as file:
        assert len(file["v"]) == 0
    writer.commit([first, second])
    with h5py.File(tmp_path / "run.h5") as file:
        assert len(file["v"]) == len(file["time"]) == file["VTKHDF/Steps"].attrs["NSteps"] == 3
        assert file["v"].id.get_chunk_info(2).byte_offset % 4096 == 0
        np.testing.assert_array_equal(np.ascontiguousarray(file["v"][2]).reshape(-1).view(np.uint8), second.data[0, 0])
    writer.close("stopped")


def no_space(*arguments: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_met_before_hdf5_sees_it(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config({"grid.rows": 256, "grid.cols": 256, "run.frames": 2000})
    writer = new_writer(tmp_path / "run.h5", config)
    first, second = staged_block(config, 0, 8), staged_block(config, 8, 8)
    for block in (first, second):
        encode(writer, block)
    writer.commit([first])
    monkeypatch.setattr(disk, "RESERVE_MARGIN", 1 << 40)  # more than any disk has
    with pytest.raises(OSError, match=r"No space left|too large"):
        writer.commit([second])
    writer.close("failed")
    with h5py.File(tmp_path / "run.h5") as file:
        assert len(file["v"]) == 8
        assert file.attrs["status"] == b"failed"
        raw = np.ascontiguousarray(file["v"][7]).reshape(-1).view(np.uint8).reshape(-1, 4)
        np.testing.assert_array_equal(raw.T.reshape(-1), first.data[7, 0])


def test_reserved_space_is_given_back_at_the_end(make_config: Make, tmp_path: Path) -> None:
    gsio.simulate(make_config(), tmp_path / "run.h5")
    status = (tmp_path / "run.h5").stat()
    assert status.st_blocks * 512 < status.st_size + 65536 < disk.RESERVE_STEP


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_file_that_cannot_be_laid_out_leaves_the_old_one_and_no_other(
    compression: str, make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run.h5").write_bytes(b"old")
    monkeypatch.setattr(disk, "_allocate", no_space)
    monkeypatch.setattr(os, "posix_fallocate", no_space)
    with pytest.raises(StorageError, match="No space left"):
        gsio.simulate(make_config({"output.compression": compression}), tmp_path / "run.h5", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run.h5"]
    assert (tmp_path / "run.h5").read_bytes() == b"old"


def test_a_row_too_large_for_a_chunk_is_refused(make_config: Make, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at most 4 GiB"):
        new_writer(tmp_path / "run.h5", make_config({"grid.rows": 1, "grid.cols": 2**31 - 1}))
    assert [path.name for path in tmp_path.iterdir()] == ["run.h5.journal"]  # the test's own


@pytest.mark.parametrize("noisy", ["all", "some", "none", "the end"])
@pytest.mark.parametrize("cells", [1, 2**14 - 1, 2**14, 3 * 2**14 + 5, 200_000])
def test_noise_is_stored_as_it_is_in_a_plain_zlib_stream(noisy: str, cells: int, make_config: Make) -> None:
    config = make_config({"grid.rows": 1, "grid.cols": cells})
    block, random = staged_block(config), np.random.default_rng(cells)
    staged = block.data[0, 0]
    staged[:] = np.repeat(random.integers(0, 256, len(staged) // 50 + 1, np.uint8), 50)[: len(staged)]
    third, half = len(staged) // 3, len(staged) // 2
    noise = {"all": slice(None), "some": slice(third, 2 * third), "none": slice(0), "the end": slice(half, None)}[noisy]
    staged[noise] = random.integers(0, 256, len(staged[noise]), np.uint8)
    codec.encode(block, 0)
    (encoded,) = block.chunks[0, 0]
    assert zlib.decompress(encoded) == staged.tobytes()
    assert len(encoded) < 1.03 * len(isal_zlib.compress(staged, config.output.level)) + 100


def test_a_plugin_that_readers_need_does_not_disturb_the_writer(tmp_path: Path) -> None:
    options = ["-n", "3", "-r", "12", "-c", "17", "--backend", "numpy", "--compression", "lz4", "-q"]
    environ = {**os.environ, "HDF5_PLUGIN_PATH": hdf5plugin.PLUGIN_PATH}
    run = [sys.executable, "-m", "gsio", "run", *options, "-o", str(tmp_path / "run.h5")]
    assert subprocess.run(run, env=environ, check=False).returncode == 0
    with h5py.File(tmp_path / "run.h5") as file:
        assert file["v"][:].shape == (3, 12, 17)
