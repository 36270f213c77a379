"""One selection for export and frames: what one takes the other takes, and both give the cells that NumPy gives."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray
from PIL import Image

import gsio
from gsio.cli import main
from gsio.draw.limits import limits_of
from gsio.draw.picture import image, index
from gsio.export import export
from gsio.look.frames import write_frames
from gsio.testing import small_blocks

Captured = pytest.CaptureFixture[str]
PLANE = 12 * 17 * 4
SOURCES = {
    "run.h5": {},
    "batch.zarr": {"model.feed": [0.03, 0.04, 0.05]},
    "batch.h5": {"model.kill": [0.06, 0.062, 0.064]},
}


class Case(NamedTuple):
    """What a text selects: an index for the frames, for the members (None for a single grid too), and for a crop."""

    options: dict[str, str]
    frames: Any = slice(None)
    fields: str = "uv"
    members: Any = slice(None)
    crop: Any = (slice(None), slice(None))


EVERY = [
    Case({}),
    Case({"frames": ":"}),
    Case({"frames": "2"}, [2]),
    Case({"frames": "-1"}, [-1]),
    Case({"frames": "1:8:3"}, slice(1, 8, 3)),
    Case({"frames": "-4:"}, slice(-4, None)),
    Case({"fields": "v"}, fields="v"),
    Case({"fields": "u"}, fields="u"),
    Case({"fields": "v,u"}),
    Case({"crop": "2:9,3:"}, crop=(slice(2, 9), slice(3, None))),
    Case({"crop": "-5:,:-4"}, crop=(slice(-5, None), slice(None, -4))),
    Case(
        {"frames": "::4", "fields": "u", "crop": "1:3,1:2"}, slice(None, None, 4), "u", crop=(slice(1, 3), slice(1, 2))
    ),
]
OF_BATCHES = [
    Case({"members": "1"}, members=1),
    Case({"members": "-1"}, members=-1),
    Case({"members": "0:3:2"}, members=slice(0, 3, 2)),
    Case(
        {"members": "1:", "fields": "v", "frames": "3", "crop": "4:,:"},
        [3],
        "v",
        slice(1, 3),
        (slice(4, 12), slice(17)),
    ),
]
CASES = [
    pytest.param(name, case, id=f"{name} {' '.join(case.options.values())}")
    for name in SOURCES
    for case in {"run.h5": EVERY, "batch.zarr": EVERY + OF_BATCHES, "batch.h5": OF_BATCHES}[name]
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of outputs of nine frames, three of them in a chunk."""
    folder = tmp_path_factory.mktemp("outputs")
    small = {"grid.rows": 12, "grid.cols": 17, "run.frames": 9, "run.steps_per_frame": 3, "run.backend": "numpy"}
    same = small | {"output.fields": "u,v", "initial.kind": "noise"}
    with small_blocks(block_bytes=36 * PLANE, chunk_bytes=3 * PLANE):
        for name, changes in SOURCES.items():
            chunk = 3 * PLANE * (3 if changes else 1)
            with small_blocks(block_bytes=12 * chunk, chunk_bytes=chunk):
                gsio.simulate(gsio.load_config(overrides=same | changes, environ={}), folder / name)
        yield folder


def expected(source: Path, case: Case) -> dict[str, NDArray[Any]]:
    """Return what a case selects of each field, [frame, (member,) row, col]."""
    with gsio.open_stack(source) as stack:
        arrays = {name: np.array(stack.fields[name]) for name in case.fields}
    if arrays[case.fields[0]].ndim > 3:
        arrays = {name: array[:, case.members] for name, array in arrays.items()}
    return {name: array[case.frames][..., *case.crop] for name, array in arrays.items()}


def read(path: Path, fields: str) -> dict[str, NDArray[Any]]:
    """Return the fields of any export, [frame, …], without axes of one member."""
    found: Any
    if path.name.endswith((".openpmd.h5", ".vtkhdf")):
        with h5py.File(path) as file:
            if "data" in file:
                steps = sorted(file["data"], key=int)
                return {name: np.array([file[f"data/{step}/meshes/{name}"][:] for step in steps]) for name in fields}
            return {name: file[f"VTKHDF/PointData/{name}"][:] for name in fields}
    if path.name.endswith(".ome.zarr"):
        found = zarr.open_group(path, mode="r")["0"][:]
    elif path.suffix in (".tif", ".tiff"):
        with tifffile.TiffFile(path) as file:
            found = file.series[0]
            sizes = dict(zip(found.axes, found.shape, strict=True))
            found = found.asarray().reshape([sizes.get(axis, 1) for axis in "TZCYX"]).swapaxes(1, 2)
    else:
        with gsio.open_stack(path) as stack:
            return {name: np.array(field) for name, field in stack.fields.items()}
    assert found.shape[1] == len(fields)
    return {name: found[:, place] for place, name in enumerate(fields)}


@pytest.mark.parametrize(("name", "case"), CASES)
def test_pictures_show_the_selected_cells(name: str, case: Case, folder: Path, tmp_path: Path) -> None:
    arrays = expected(folder / name, case)
    options = case.options if "fields" in case.options else case.options | {"fields": "u,v"}
    number = write_frames(folder / name, tmp_path / "pictures", **options, limits="frame")
    paths = sorted((tmp_path / "pictures").iterdir())
    frames = np.arange(9)[case.frames]
    assert number == len(paths) == len(frames)
    assert [path.name for path in paths] == [f"frame_{frame:05d}.png" for frame in frames]
    for place, path in enumerate(paths):
        planes = [array[place] for array in arrays.values()]
        indexed = [
            index(cells, *limits_of(plane)) for plane in planes for cells in plane.reshape(-1, *plane.shape[-2:])
        ]
        with Image.open(path) as picture:
            assert picture.mode == "P"
            pixels = np.asarray(picture)
            if len(indexed) == 1:
                np.testing.assert_array_equal(pixels, indexed[0])
            windows = np.lib.stride_tricks.sliding_window_view(pixels, indexed[0].shape)
            assert all((windows == tile).all(axis=(2, 3)).any() for tile in indexed)
            assert picture.getpalette() == image(pixels).getpalette()


@pytest.mark.parametrize("ending", [".h5", ".zarr", ".tif", ".ome.tif", ".ome.zarr", ".vtkhdf", ".openpmd.h5"])
@pytest.mark.parametrize(("name", "case"), CASES)
def test_every_export_has_the_selected_cells(
    name: str, case: Case, ending: str, folder: Path, tmp_path: Path, capsys: Captured
) -> None:
    arrays, target = expected(folder / name, case), tmp_path / f"out{ending}"
    assert export(folder / name, target, **case.options) == len(arrays[case.fields[0]])
    found = read(target, case.fields)
    assert list(found) == list(arrays)
    for field, array in arrays.items():
        np.testing.assert_array_equal(found[field].reshape(array.shape), array)
    if ending in (".h5", ".zarr"):
        assert main(["verify", str(target)]) == 0
        assert write_frames(target, tmp_path / "pictures") == len(arrays[case.fields[0]])
        with gsio.open_stack(folder / name) as stack, gsio.open_stack(target) as part:
            for rates in ("feed", "kill"):
                whole, kept = (np.ravel(getattr(each.config.model, rates)) for each in (stack, part))
                np.testing.assert_array_equal(kept, np.atleast_1d(whole[case.members]) if len(whole) > 1 else whole)
            assert ("selection" in part.attributes) == (case.options not in ({}, {"frames": ":"}, {"fields": "v,u"}))


def test_an_output_without_frames_is_refused_by_both(folder: Path, tmp_path: Path, capsys: Captured) -> None:
    empty = tmp_path / "empty.h5"
    shutil.copy(folder / "run.h5", empty)
    with h5py.File(empty, "r+") as file:
        for name in ("u", "v", "time", "step", "integrity/crc32c", *(f"stats/{name}" for name in file["stats"])):
            file[name].resize(0, axis=0)
    for command in (["export", str(empty), str(tmp_path / "out.h5")], ["frames", str(empty), f"-o{tmp_path}/a.png"]):
        assert main(command) == 65
        assert "empty.h5: expected committed frames, found none" in capsys.readouterr().err
    with gsio.open_stack(empty) as stack:
        assert "0 frames of u, v" in stack._repr_html_()
    assert [path.name for path in tmp_path.iterdir()] == ["empty.h5"]


@pytest.mark.parametrize(
    "options",
    [
        *(["--frames", text] for text in ("9", "-10", "3:3", "5:2", "::-1", "::0", "1.5", "last", "1:2:3:4")),
        *(["--fields", text] for text in ("w", "u,w", ",", "u,v,w", "V")),
        *(["--members", text] for text in ("3", "-4", "2:1", "none")),
        *(["--crop", text] for text in ("1", "1:2", "1:2:1,3:4", "5:2,:", ":,:18", "a:b,c:d", ":,:,:")),
    ],
    ids=" ".join,
)  # fmt: skip
def test_export_and_frames_refuse_the_same_in_the_same_words(
    options: list[str], folder: Path, tmp_path: Path, capsys: Captured
) -> None:
    source = str(folder / "batch.h5")
    assert main(["export", source, str(tmp_path / "out.h5"), *options]) == 2
    refused = capsys.readouterr().err
    assert main(["frames", source, "-o", str(tmp_path / "pictures"), *options]) == 2
    assert capsys.readouterr().err == refused
    assert refused.startswith(f"gsio: error: {options[0]}: expected ")
    assert refused.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
