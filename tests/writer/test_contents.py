"""Outputs of any content, not only of runs: every format and codec writes them, and all readers and commands work."""

import itertools
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
import zarr
from crc32c import crc32c
from msgspec.structs import replace

from gsio import open_stack
from gsio.cli import main
from gsio.compute.host import stage
from gsio.errors import DataError, UsageError
from gsio.export import FORMATS as EXPORTS
from gsio.frames.block import Block
from gsio.frames.content import Axis, Content, Quantity
from gsio.look.proxies import make_proxies
from gsio.look.source import from_journal, from_stack, values_at, window
from gsio.reader.verify import problems
from gsio.run.plan import content_layout, content_with_codec
from gsio.run.repair import repair
from gsio.run.status import follow
from gsio.testing import encode
from gsio.trace import Trace
from gsio.writer.formats import FORMATS, open_writer
from gsio.writer.journal import Journal, journal_of, read_journal
from gsio.writer.protocol import Target
from gsio.writer.provenance import root_attributes
from gsio.writer.status_file import status_of

assert hdf5plugin.FILTERS["blosc"] == 32001  # its import is what lets h5py read lz4 and zstd
FRAMES, CHUNK = 5, 2
X, Y = Axis("x", 20, "length", "m", -1.0, 0.5), Axis("y", 14, "height", "m")
DTYPES = ("float16", "float32", "float64", *(f"{u}int{bits}" for u in ("", "u") for bits in (8, 16, 32, 64)))


def content(*axes: Axis, dtype: str = "float32", fields: str = "density", **more: Any) -> Content:
    named = {name: Quantity(f"the {name}", "m s-1") for name in fields.split(",")}
    return Content(fields=named, axes=axes, precision=dtype, store=more.pop("store", dtype), **more)  # type: ignore[arg-type]


CONTENTS = {
    "line": content(X, dtype="float64", interval=0.25, time=Quantity("time", "s")),
    "plane": content(Axis("lat", 14, "latitude", "degrees_north", 60, -0.5), Axis("lon", 20), fields="wind_u,wind_v"),
    "volume": content(Axis("z", 3, "depth", "m", 10, 2), Y, X, dtype="int16", fields="a,b,c"),
    "thin": content(Axis("z", 1), Y, X, dtype="uint32"),
    "four": content(Axis("c", 2), Axis("z", 3), Y, X, dtype="uint8"),
    "packed": content(Y, X, store="uint16"),
    "rounded": content(Y, X, dtype="float64", store="float32", keep_bits=9),
    **{dtype: content(Y, X, dtype=dtype) for dtype in DTYPES},
}
OUTPUTS = [
    (name, form.endings[0], codec.name)
    for name, form, codec in itertools.product(CONTENTS, FORMATS, [codec for form in FORMATS for codec in form.codecs])
    if codec in form.codecs and (form.float16 or name != "float16")
]
every_output = pytest.mark.parametrize(("name", "ending", "codec"), sorted(set(OUTPUTS)))
every_content = pytest.mark.parametrize("name", [name for name in CONTENTS if name not in DTYPES])
every_format = pytest.mark.parametrize("ending", [form.endings[0] for form in FORMATS])


def planes_of(content: Content, frame: int) -> list[np.ndarray]:
    """Return the fields of a frame: every value that the dtype has can occur, and floats are from 0 to 1."""
    dtype, random = np.dtype(content.precision), np.random.default_rng(frame)
    if dtype.kind == "f":
        return [random.random(content.shape).astype(dtype) for _ in content.fields]
    least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
    return [random.integers(least, most, content.shape, dtype, endpoint=True) for _ in content.fields]


def time_of(frame: int) -> float:
    return 1.5 + 0.25 * frame


def write(path: Path, content: Content, *, keep_journal: bool = False) -> Content:
    """Write an output of `FRAMES` frames, two of which share a chunk, and return its content."""
    content = content_with_codec(content, path)
    layout = content_layout(content, frames_per_chunk=CHUNK)
    attributes = root_attributes(content, "test", "test")
    block = Block(layout, np.zeros(layout.block_nbytes, np.uint8))
    block.count = FRAMES
    for frame in range(FRAMES):
        block.times[frame], block.steps[frame] = time_of(frame), 10 * frame
        for field, plane in enumerate(planes_of(content, frame)):
            stage(plane, layout.frame, block.data[frame, field], block.statistics[frame, field])
    with Journal(path) as journal:
        writer = open_writer(Target(path, content, layout, attributes, journal, Trace()))
        writer.commit([encode(writer, block)])
        writer.close("complete")
        if not keep_journal:
            journal.remove()
    return content


def read(path: Path) -> dict[str, Any]:
    """Return all arrays of an output, as the usual reader of its format has them."""
    if path.is_dir():
        group: Any = zarr.open_group(path, mode="r")
        return {name: group[name][:] for name in ("time", "step", *CONTENT_NAMES) if name in group}
    with h5py.File(path) as file:
        return {name: file[name][:] for name in ("time", "step", *CONTENT_NAMES) if name in file}


CONTENT_NAMES = {name for one in CONTENTS.values() for name in (*one.fields, *(axis.name for axis in one.axes))}


def tolerance(content: Content) -> float:
    """Return by how much a stored value may differ from the computed one."""
    return (
        {"uint16": 1 / 65535, "float32": 2.0**-9}.get(content.store, 0.0) if content.store != content.precision else 0
    )


@every_output
def test_an_output_of_any_content_is_read_by_every_reader(name: str, ending: str, codec: str, tmp_path: Path) -> None:
    path = tmp_path / f"run{ending}"
    expected = write(path, replace(CONTENTS[name], compression=codec))
    arrays = read(path)
    with open_stack(path) as stack:
        assert stack.content == expected
        assert (stack.frames, list(stack.fields), list(problems(stack))) == (FRAMES, list(expected.fields), [])
        np.testing.assert_array_equal(stack.series("step"), np.arange(FRAMES) * 10)
        for axis in expected.axes:
            np.testing.assert_array_equal(stack.axis(axis.name), axis.values)
            np.testing.assert_array_equal(arrays[axis.name], axis.values)
        np.testing.assert_array_equal(arrays["time"], [time_of(frame) for frame in range(FRAMES)])
        for frame in range(FRAMES):
            for field, plane in zip(expected.fields, planes_of(expected, frame), strict=True):
                found = stack.frame(field, frame)
                np.testing.assert_allclose(found, plane, rtol=0, atol=tolerance(expected))
                assert found.dtype == plane.dtype or expected.store != expected.precision
                if expected.store != "uint16":
                    np.testing.assert_array_equal(arrays[field][frame], found)
                least = stack.series(f"stats/{field}_min")[frame]
                assert least == float(plane.min())
        with pytest.raises(DataError, match="expected an output of 'gsio run'"):
            stack.config  # noqa: B018 - the property raises


@every_content
@every_format
def test_xarray_finds_names_units_and_coordinates(name: str, ending: str, tmp_path: Path) -> None:
    pytest.importorskip("xarray")
    path = tmp_path / f"run{ending}"
    expected = write(path, CONTENTS[name])
    with open_stack(path) as stack:
        found = stack.to_xarray()
        for field, quantity in expected.fields.items():
            assert found[field].dims == ("time", *(axis.name for axis in expected.axes))
            assert (found[field].long_name, found[field].units) == (quantity.long_name, quantity.units)
            np.testing.assert_allclose(found[field][-1], stack.frame(field, -1), rtol=1e-6)  # Zarr has no float32 scale
        for axis in expected.axes:
            assert (found[axis.name].long_name, found[axis.name].units) == (axis.long_name, axis.units)
        assert found["time"].long_name == expected.time.long_name
        found.close()


@every_content
@every_format
def test_commands_know_an_output_of_any_content(
    name: str, ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"run{ending}"
    expected = write(path, CONTENTS[name])
    assert main(["info", str(path)]) == 0
    said = capsys.readouterr().out
    assert f"5 frames of {' × '.join(map(str, expected.shape))}, complete" in said
    assert expected.to_toml().rstrip() in said
    assert main(["verify", str(path)]) == 0
    assert "5 frames, all intact" in capsys.readouterr().out
    with open_stack(path) as stack:
        assert stack.picture(-1).size[0] >= expected.volume[2].size
        assert len(stack._repr_html_().split("<img")) == FRAMES + 1


def test_a_run_does_not_go_on_with_the_output_of_another_program(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.h5"
    write(path, CONTENTS["plane"])
    before = path.read_bytes()
    assert main(["run", "-o", str(path), "--resume", "-n", "9", "-r", "14", "-c", "20", "--backend", "numpy"]) == 65
    assert "expected an output of 'gsio run', found one that another program made" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_a_movie_of_an_output_of_four_axes(tmp_path: Path) -> None:
    write(tmp_path / "run.h5", CONTENTS["four"])
    with open_stack(tmp_path / "run.h5") as stack:
        assert stack.movie(tmp_path / "movie.gif") == FRAMES


def damage(path: Path, field: str) -> None:
    """Change a byte of the second chunk of a field."""
    if path.is_dir():
        (chunk,) = (path / field).glob("c.1.*")
        data = bytearray(chunk.read_bytes())
        data[len(data) // 2] ^= 255
        chunk.write_bytes(data)
        return
    with h5py.File(path) as file:
        array = file[field].id
        place = next(chunk for number in range(9) if (chunk := array.get_chunk_info(number)).chunk_offset[0] == CHUNK)
    with path.open("r+b") as raw:
        raw.seek(place.byte_offset + place.size // 2)
        byte = raw.read(1)
        raw.seek(-1, 1)
        raw.write(bytes([byte[0] ^ 255]))


@every_content
@every_format
def test_repair_keeps_the_content_and_all_sound_frames(name: str, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"run{ending}"
    expected = write(path, CONTENTS[name])
    damage(path, next(iter(expected.fields)))
    with open_stack(path) as stack:
        assert len(list(problems(stack))) > 0
    assert "rebuilt with 5 of 5 frames, of which damaged: " in repair(path)
    with open_stack(path) as stack:
        assert stack.content == expected
        np.testing.assert_array_equal(stack.times, [time_of(frame) for frame in range(FRAMES)])
        last = planes_of(expected, FRAMES - 1)
        for field, plane in zip(expected.fields, last, strict=True):
            np.testing.assert_allclose(stack.frame(field, -1), plane, rtol=0, atol=tolerance(expected))
        assert all("found this frame damaged" in problem for problem in problems(stack))


@pytest.mark.parametrize("name", ["line", "plane", "four", "packed"])
def test_a_torn_file_is_rebuilt_from_its_journal(name: str, tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    expected = write(path, CONTENTS[name], keep_journal=True)
    with path.open("r+b") as file:
        file.write(bytes(64))  # of the superblock, without which HDF5 opens nothing
    assert journal_of(path).exists()
    assert "rebuilt with 5 of 5 frames" in repair(path)
    with open_stack(path) as stack:
        assert (stack.content, list(problems(stack))) == (expected, [])
        np.testing.assert_array_equal(stack.times, [time_of(frame) for frame in range(FRAMES)])


def test_a_journal_that_contradicts_itself_is_an_error_of_the_data(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    write(path, CONTENTS["volume"], keep_journal=True)
    line, _, records = journal_of(path).read_bytes().partition(b"\n")
    text = line.rpartition(b" ")[0].replace(b"fields.b]", b"fields.e]")
    assert b"fields.e]" in text
    journal_of(path).write_bytes(b"%b %08x\n" % (text, crc32c(text)) + records)
    path.write_bytes(bytes(100))
    with pytest.raises(DataError, match="has records of other frames than its head says"):
        repair(path)


@every_content
@pytest.mark.parametrize("ending", EXPORTS)
def test_every_export_of_any_content(name: str, ending: str, tmp_path: Path) -> None:
    if ending.startswith((".tif", ".ome.tif")):
        pytest.importorskip("tifffile")
    path, target = tmp_path / "run.h5", tmp_path / f"export{ending}"
    expected = write(path, CONTENTS[name])
    code = main(["export", str(path), str(target)])
    if ending == ".vtkhdf" and len(expected.axes) == 1:
        assert code == 2  # VTK knows no image of one row
        return
    assert code == 0
    if ending not in (".h5", ".hdf5", ".zarr"):
        found = first_array(target, ending, expected)
        planes = planes_of(expected, 0)
        wanted = np.stack(planes) if ending not in (".openpmd.h5", ".vtkhdf") else planes[0]
        atol = tolerance(expected) or (0 if np.dtype(expected.precision).itemsize < 4 else np.abs(wanted).max() * 1e-7)
        np.testing.assert_allclose(
            found.reshape(wanted.shape).astype(float), wanted.astype(float), rtol=0, atol=float(atol)
        )
        return
    with open_stack(path) as source, open_stack(target) as stack:
        same = replace(stack.content, compression=expected.compression, keep_bits=expected.keep_bits)
        assert (same, list(problems(stack))) == (expected, [])
        for field in expected.fields:
            np.testing.assert_array_equal(stack.fields[field][:], source.fields[field][:])
        np.testing.assert_array_equal(stack.times, source.times)


def first_array(target: Path, ending: str, expected: Content) -> np.ndarray:
    """Return the first frame of an export for another tool: [field, …], or the first field alone."""
    if target.is_dir():
        group: Any = zarr.open_group(target, mode="r")
        return np.asarray(group["0"][0])
    if ending in (".openpmd.h5", ".vtkhdf"):
        with h5py.File(target) as file:
            if ending == ".vtkhdf":
                fields = file["VTKHDF/PointData"]
                return np.asarray(fields[sorted(fields)[0]][0])
            meshes = file["data/0/meshes"]
            return np.asarray(meshes[sorted(meshes)[0]][()])
    import tifffile

    members, rows, cols = (axis.size for axis in expected.volume)
    array = tifffile.imread(target).reshape(FRAMES, members, len(expected.fields), rows, cols)  # TZCYX
    return np.moveaxis(array[0], 1, 0)


def test_a_part_of_any_output_keeps_its_coordinates(tmp_path: Path) -> None:
    path, part = tmp_path / "run.h5", tmp_path / "part.zarr"
    write(path, CONTENTS["volume"])
    options = ["--frames", "1::2", "--crop", "3:9,5:", "--fields", "b", "--members", "0::2"]
    assert main(["export", str(path), str(part), *options]) == 0
    with open_stack(part) as stack:
        assert stack.content.shape == (2, 6, 15)
        assert [axis.name for axis in stack.content.axes] == ["z", "y", "x"]
        np.testing.assert_array_equal(stack.axis("z"), [10, 14])
        np.testing.assert_array_equal(stack.axis("x"), -1.0 + 0.5 * np.arange(5, 20))
        np.testing.assert_array_equal(stack.times, [time_of(1), time_of(3)])
        np.testing.assert_array_equal(stack.frame("b", 0), planes_of(CONTENTS["volume"], 1)[1][::2, 3:9, 5:])
        assert list(problems(stack)) == []


@pytest.mark.parametrize("name", ["plane", "volume", "four", "int8", "uint64", "int64"])
def test_smaller_levels_have_the_means_of_any_content(name: str, tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    expected = write(path, replace(CONTENTS[name], pyramid=1))
    field = next(iter(expected.fields))
    group: Any = zarr.open_group(path, mode="r")
    plane = planes_of(expected, 0)[0]
    exact = sum(plane[..., y::2, x::2].astype(object) for y in (0, 1) for x in (0, 1))
    found = group[f"pyramid/1/{field}"][0].astype(object)
    assert np.abs(4 * found - exact).max() <= (2 if np.dtype(expected.precision).kind != "f" else 1e-6)
    images = group.attrs["ome"]["multiscales"]
    assert [image["name"] for image in images] == list(reversed(expected.fields))
    scale, first = images[0]["datasets"][1]["coordinateTransformations"]
    rows, cols = expected.axes[-2:]
    assert scale["scale"][0] == 0.25
    assert scale["scale"][-2:] == [2 * rows.spacing, 2 * cols.spacing]
    assert first["translation"][-2:] == [rows.first + rows.spacing / 2, cols.first + cols.spacing / 2]
    assert first["translation"][0] == time_of(0)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("float16", {}, "dtype: float16 in HDF5 crashes netCDF readers; expected keep_bits=10"),
        ("plane", {"pyramid": 1}, "pyramid: HDF5 has no such levels"),
        ("plane", {"keep_bits": 30}, "keep_bits: expected 0 to 22 with float32, got 30"),
        ("int16", {"keep_bits": 3}, "keep_bits: expected 0 to 0 with int16, got 3"),
        ("plane", {"shard_frames": 4}, "shard_frames: HDF5 is one file already"),
        ("plane", {"level": 9, "compression": "deflate"}, "level: expected 0 to 3 with deflate, got 9"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(name: str, change: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as error:
        content_with_codec(replace(CONTENTS[name], **change), Path("run.h5"))
    assert str(error.value).startswith(words)


def test_a_frame_of_one_axis_has_no_smaller_levels() -> None:
    with pytest.raises(UsageError, match="pyramid: expected at most 0 with 1 cells, got 1"):
        content_with_codec(replace(CONTENTS["line"], pyramid=1), Path("run.zarr"))


def test_small_frames_share_chunks_where_nobody_knows_their_number() -> None:
    layout = content_layout(replace(CONTENTS["plane"], compression="lz4"))
    assert 1000 < layout.chunks.frames_per_chunk <= layout.frames_per_block
    assert layout.chunks.chunk_nbytes == pytest.approx(4 << 20, abs=layout.frame.plane_nbytes)


@every_content
@every_format
def test_the_page_shows_every_member_of_any_content(name: str, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"run{ending}"
    expected = write(path, CONTENTS[name], keep_journal=True)
    records = read_journal(path)
    assert records is not None
    shape = tuple(axis.size for axis in expected.volume)
    for now in (from_stack(path), from_journal(path, records, "running")):
        assert now is not None
        assert (now.shape, list(now.fields)) == (shape, list(expected.fields))
        described = now.describe()
        assert (described["frames"], described["frames_total"], described["dt"]) == (FRAMES, FRAMES, None)
        chunk = described["chunk"]
        all_lines, line = (shape[0], shape[1] * shape[2]) if shape[0] > 1 else shape[1:]
        values = np.empty((chunk["frames"], chunk["slabs"] * chunk["rows"], line), chunk["dtype"])
        assert values.nbytes == CHUNK * all_lines * line * values.itemsize  # the page decodes so many
        for field, plane in zip(expected.fields, planes_of(expected, 3), strict=True):
            volume = plane.reshape(shape)
            for member in range(shape[0]):
                found = window(now, field, member, 3, range(shape[1]), range(1, shape[2], 2))
                np.testing.assert_allclose(found, volume[member, :, 1::2], rtol=0, atol=tolerance(expected))
                _, [_, at] = values_at(now, field, (member, shape[1] - 1, 4), 1)
                assert at == pytest.approx(volume[member, -1, 4], abs=tolerance(expected))
            (proxy,) = make_proxies(now, field, 0, range(3, 4))
            low, high = np.frombuffer(proxy[:8], "<f4")
            assert low <= volume[0].astype(float).mean() <= high


def test_following_an_output_whose_length_nobody_knows_names_no_total(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    write(path, CONTENTS["plane"], keep_journal=True)
    status_of(path).write_text('{"state": "complete", "frame": 5, "frames": 0, "pid": 1, "host": "here"}')
    first, last = follow(path)
    assert first.startswith("frame 5, step 40, wind_u 0.")
    assert last == "complete after 5 frames"
