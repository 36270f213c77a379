"""The names, units, coordinates and attributes that a caller of FrameWriter gives, as readers see them."""

import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray
import zarr
from appending import ENDINGS, SHAPE, frame, verified

import gsio
from gsio.cli import main
from gsio.errors import UsageError

Captured = pytest.CaptureFixture[str]
FIELDS = {
    "temperature": {"long_name": "température of the plate", "units": "°C"},
    "flow": {"units": "W m-2"},
    "lambda": {},
    "self": {"long_name": "the field that is called self"},
}
ATTRS = {
    "title": "A plate that cools, à la carte",
    "author": "A. Person",
    "note": "two\nlines",
    "number": 3,
    "sweep": "a word that results of sweeps have too",
    "ratio": 0.25,
    "is_hot": True,
    "of_numpy": np.float32(0.5),
    "sizes": [1, 2, 3],
    "ratios": (0.5, 1),
    "array": np.arange(3),
    "words": ["a", "ü"],
}
READ = {**ATTRS, "is_hot": 1, "ratios": [0.5, 1.0], "array": [0, 1, 2]}


@pytest.fixture(params=[".h5", ".zarr"])
def output(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """An output with all that a caller can say."""
    path = tmp_path / f"plate{request.param}"
    coords = {
        "height": (np.linspace(2.0, 1.0, 12), {"long_name": "height of a row", "units": "m"}),
        "width": np.linspace(0.0, 4.0, 17),
    }
    with gsio.FrameWriter(
        path, SHAPE, fields=FIELDS, coords=coords, time={"long_name": "time of the clock", "units": "s"}, attrs=ATTRS
    ) as out:
        for number in range(5):
            planes = {name: frame(number) + place for place, name in enumerate(FIELDS)}
            out.append(**planes, time=0.5 * number, step=100 * number)
    return path


def check(name: str, found: dict[str, Any]) -> None:
    """Compare the attributes of an array with what the caller said."""
    expected: dict[str, dict[str, str]] = {
        **{field: {"long_name": field, "units": "1", **words} for field, words in FIELDS.items()},
        "height": {"long_name": "height of a row", "units": "m"},
        "width": {"long_name": "width", "units": "1"},
        "time": {"long_name": "time of the clock", "units": "s"},
    }
    assert {key: found[key] for key in ("long_name", "units")} == expected[name]


def plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def test_readers_see_the_words_of_the_caller(output: Path) -> None:
    root = zarr.open_group(output, mode="r") if output.is_dir() else h5py.File(output)
    for name in (*FIELDS, "height", "width", "time"):
        check(name, dict(root[name].attrs))
    assert {name: plain(root.attrs[name]) for name in ATTRS} == READ
    np.testing.assert_array_equal(root["height"], np.linspace(2.0, 1.0, 12))
    np.testing.assert_allclose(root["width"], np.linspace(0.0, 4.0, 17), rtol=0, atol=1e-14)
    np.testing.assert_array_equal(root["time"], [0, 0.5, 1, 1.5, 2])
    np.testing.assert_array_equal(root["step"], [0, 100, 200, 300, 400])
    if isinstance(root, h5py.File):
        root.close()


def test_xarray_sees_the_words_of_the_caller(output: Path) -> None:
    with gsio.open_stack(output) as stack, stack.to_xarray() as found:
        for name in (*FIELDS, "height", "width", "time"):
            check(name, found[name].attrs)
        assert found["flow"].dims == ("time", "height", "width")
        np.testing.assert_array_equal(found["self"].sel(time=1.0), frame(2) + 3)
        assert plain(found.attrs["sizes"]) == [1, 2, 3]
    if output.suffix == ".h5":  # as netCDF reads it
        with xarray.open_dataset(output, engine="netcdf4") as found:
            check("temperature", found["temperature"].attrs)
            assert found.attrs["title"] == ATTRS["title"]


def test_the_stack_and_gsio_info_see_the_words_of_the_caller(output: Path, capsys: Captured) -> None:
    with verified(output) as stack:
        assert {name: stack.attributes[name] for name in ATTRS} == READ
        assert [*stack.fields] == [*FIELDS]
        np.testing.assert_array_equal(stack.fields["lambda"][3], frame(3) + 2)
        assert stack.content.axes[0].first == 2.0
    assert main(["info", str(output)]) == 0
    said = capsys.readouterr().out
    for words in ("5 frames of 12 × 17, complete", "température of the plate", 'units = "W m-2"', "[fields.self]"):
        assert words in said


@ENDINGS
@pytest.mark.parametrize("units", ["seconds", "days", "seconds since 2000-01-01", "hours"])
def test_no_unit_of_time_is_a_surprise_to_xarray(tmp_path: Path, ending: str, units: str) -> None:
    path = tmp_path / f"run{ending}"
    with gsio.FrameWriter(path, SHAPE, fields={"age": {"units": "days"}}, time={"units": units}) as out:
        out.append(frame(0), time=1.0)
    with warnings.catch_warnings(action="error"), gsio.open_stack(path) as stack, stack.to_xarray() as found:
        np.testing.assert_array_equal(found["age"][0], frame(0))


def test_a_caller_that_says_nothing_gets_names_and_numbers(tmp_path: Path) -> None:
    with gsio.FrameWriter(tmp_path / "run.h5", (2, 3, 4), fields="u, v".replace(" ", "")) as out:
        for _ in range(3):
            out.append(np.zeros((2, 3, 4)), np.ones((2, 3, 4)))
    with h5py.File(tmp_path / "run.h5") as file:
        assert [dimension.label or file[dimension[0].name].name for dimension in file["u"].dims] == [
            "/time", "/z", "/y", "/x",
        ]  # fmt: skip
        assert dict(file["u"].attrs)["long_name"] == "u"
        np.testing.assert_array_equal(file["z"], [0, 1])
        assert plain(file.attrs["title"]) == "frames of u, v"
        assert (plain(file.attrs["backend"]), "config" in file.attrs) == ("numpy", False)


SAME = np.arange(12.0)
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"shape": ()}, r"shape: expected one to four numbers of cells, got \(\)"),
    ({"shape": (1, 2, 3, 4, 5)}, "shape: expected one to four numbers of cells"),
    ({"shape": (3, 0)}, r"shape: .* got \(3, 0\)"),
    ({"shape": (2.0, 3)}, r"shape: .* got \(2.0, 3\)"),
    ({"shape": 12}, "shape: .* got 12"),
    ({"shape": (2**40, 2**40)}, "expected frames of at most"),
    ({"fields": ""}, "fields: expected names of up to 64 letters, digits and _, with a letter first, got ''"),
    ({"fields": "u, v"}, "fields: .* got ' v'"),
    ({"fields": "1st"}, "fields: .* got '1st'"),
    ({"fields": "µ"}, "fields: .* got 'µ'"),
    ({"fields": ["v" * 65]}, "fields: "),
    ({"fields": "v,v"}, "fields: expected one or more names that differ, got 'v,v'"),
    ({"fields": []}, r"fields: expected one or more names that differ, got \[\]"),
    ({"fields": 5}, "fields: expected one or more names that differ, got 5"),
    ({"fields": "time"}, "expected names of fields and axes that differ, and none of .* time, found time$"),
    ({"fields": "x"}, "expected names of fields and axes that differ, .* time, found x twice$"),
    ({"fields": {"v": {"unit": "K"}}}, "v: expected texts for 'long_name' and 'units', got {'unit': 'K'}"),
    ({"fields": {"v": {"units": 3}}}, "v: expected texts for 'long_name' and 'units'"),
    ({"fields": {"v": "K"}}, "v: expected texts for 'long_name' and 'units', got 'K'"),
    ({"time": "s"}, "time: expected texts for 'long_name' and 'units', got 's'"),
    ({"coords": {"y": SAME}}, "coords: expected 2 axes by name, as `shape` has"),
    ({"coords": [SAME, SAME]}, "coords: expected 2 axes by name"),
    ({"coords": {"y": SAME, "x": SAME}}, r"coords: expected 17 numbers along x, got the shape \(12,\)"),
    ({"coords": {"y": SAME, "x": np.arange(17) ** 2}}, "coords: expected evenly spaced numbers along x, got others"),
    ({"coords": {"y": SAME, "x": np.zeros(17)}}, "coords: expected evenly spaced numbers along x"),
    ({"coords": {"y": SAME, "x": np.full(17, np.nan)}}, "coords: expected evenly spaced numbers along x"),
    ({"coords": {"y": SAME, "x": "abc"}}, "coords: expected numbers along x, got 'abc'"),
    ({"coords": {"y": SAME, "the x": np.arange(17)}}, "coords: expected names of up to 64 letters"),
    ({"coords": {"y": (SAME, {"unit": "m"}), "x": np.arange(17)}}, "y: expected texts for 'long_name' and 'units'"),
    ({"dtype": "complex64"}, "dtype: expected one of float16, float32, .*, got 'complex64'"),
    ({"dtype": "real"}, "dtype: expected one of .*, got 'real'"),
    ({"dtype": object}, "dtype: expected one of .*, got 'object'"),
    ({"dtype": "float16"}, "^dtype: float16 in HDF5 crashes netCDF readers; expected keep_bits=10"),
    ({"keep_bits": 23}, "keep_bits: expected 0 to 22 with float32, got 23"),
    ({"compression": "best"}, "compression: expected auto, deflate, lz4, zstd or none, found 'best'"),
    ({"level": 12}, "level"),
    ({"shard_frames": 4}, "shard_frames: HDF5 is one file already"),
    ({"pyramid": 1}, "pyramid: HDF5 has no such levels"),
    ({"memory": "much"}, "memory: expected a number and a unit, such as 512MiB or 2GB, got 'much'"),
    ({"memory": 5}, "memory: expected a number and a unit"),
    ({"threads": -1}, "threads: expected 0 or more, got -1"),
    ({"threads": "all"}, "threads: expected 0 or more, got 'all'"),
    ({"resume": True}, "resume: expected no, auto or must, got True"),
    ({"attrs": "title"}, "attrs: expected values by name, got 'title'"),
    *(({"attrs": {name: "mine"}}, f"attrs: '{name}' is an attribute that gsio sets; choose another name")
      for name in ("config", "content", "status", "history", "output_id", "damaged_frames", "signal", "ome")),
    *(({"attrs": {"a": value}}, "attrs: expected a text, a number, or a list of either, got a=")
      for value in (None, {}, [], [1, "x"], [[1]], 1j, 2**70, float("nan"), b"x", "a\0b", "\ud800", [1] * 5000)),
    ({"attrs": {"": 1}}, "attrs: expected a text"),
    ({"attrs": {3: 1}}, "attrs: expected a text"),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "message"), WRONG, ids=lambda value: str(value)[:50])
def test_what_cannot_be_is_refused_in_a_line_before_anything_is_made(
    tmp_path: Path, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=f"^{message}") as refused:
        gsio.FrameWriter(tmp_path / "run.h5", **{"shape": SHAPE, **wrong})
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["run.txt", "nowhere/run.h5"])
def test_a_place_that_cannot_be_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(UsageError, match=r"expected a name that ends in|does not exist; create it first"):
        gsio.FrameWriter(tmp_path / path, SHAPE)
    assert list(tmp_path.iterdir()) == []


@ENDINGS
def test_an_output_is_replaced_only_where_the_caller_says_so(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"run{ending}"
    with gsio.FrameWriter(path, SHAPE) as out:
        out.append(frame(0))
    with pytest.raises(UsageError, match="exists"):
        gsio.FrameWriter(path, SHAPE)
    with gsio.FrameWriter(path, SHAPE, overwrite=True) as out:
        with gsio.open_stack(path) as stack:  # until the first frame
            np.testing.assert_array_equal(stack.v[:], [frame(0)])
        out.append(frame(1))
    with verified(path) as stack:
        np.testing.assert_array_equal(stack.v[:], [frame(1)])


@ENDINGS
def test_errors_about_the_output_name_the_arguments_of_python(tmp_path: Path, ending: str) -> None:
    known = tmp_path / f"run{ending}"
    with gsio.FrameWriter(known, SHAPE) as out:
        out.append(frame(0))
    cases: list[tuple[Path, dict[str, Any], str]] = [
        (tmp_path / "run.npy", {}, "path: expected a name that ends in .h5, .hdf5 or .zarr, got"),
        (tmp_path / "none" / known.name, {}, "path: the folder .* does not exist; create it first"),
        (known, {}, "path: .* exists; choose another name, or pass resume='auto' or overwrite=True"),
        (known, {"resume": "auto", "overwrite": True}, "overwrite, resume: expected one of them, got both"),
        (known, {"overwrite": True, "discard_after": 1}, "discard_after: expected it with resume='must' only"),
        (known, {"resume": "must", "discard_after": 2}, "discard_after: expected 0 to 1, the committed frames, got 2"),
        (tmp_path / f"gone{ending}", {"resume": "must"}, "resume='must': .* does not exist; expected an output"),
    ]
    for path, how, message in cases:
        with pytest.raises(UsageError, match=f"^{message}") as told:
            gsio.FrameWriter(path, SHAPE, **how)
        assert "--" not in str(told.value).replace(str(tmp_path), "")
    with gsio.open_stack(known) as stack:
        assert stack.frames == 1
