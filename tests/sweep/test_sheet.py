"""The contact sheet: where each member lies, and with which colours."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray
from PIL import Image

from gsio.cli import main
from gsio.draw.picture import PAPER, index
from gsio.sweep.description import load_sweep
from gsio.sweep.result import begin
from gsio.sweep.tasks import run_tasks

pytestmark = pytest.mark.numba
Write = Callable[..., Path]


def pixels(path: Path) -> np.ndarray:
    with Image.open(path, formats=["PNG"]) as image:
        return np.asarray(image)


def found_at(sheet: np.ndarray, tile: np.ndarray) -> list[tuple[int, int]]:
    """Return the places, row and column, where `sheet` shows `tile`."""
    windows = np.lib.stride_tricks.sliding_window_view(sheet, tile.shape)
    candidates = np.argwhere(windows[:, :, 0, 0] == tile[0, 0])
    return [(int(row), int(col)) for row, col in candidates if (windows[row, col] == tile).all()]


@pytest.mark.parametrize("ending", [".zarr", ".h5"])
def test_the_last_axis_lies_across_and_the_one_before_rises(ending: str, write: Write, tmp_path: Path) -> None:
    path = write()
    output, picture = path.with_suffix(ending), tmp_path / "sheet.png"
    begin(load_sweep(path), output)
    run_tasks(output, [0, 1])  # members 0 to 5 of 8
    assert main(["sweep", "sheet", str(output), "-o", str(picture), "--scale", "1"]) == 0
    sheet = pixels(picture)
    with xarray.open_dataset(output, engine="zarr" if output.is_dir() else "h5netcdf") as result:
        last = result.v.values[..., -1, :, :]
    shown = last.reshape(8, 12, 17)[:6]
    places = [found_at(sheet, index(plane, float(shown.min()), float(shown.max()))) for plane in shown]
    (row, col), *_ = corners = [place[0] for place in places]
    assert all(len(place) == 1 for place in places)
    assert corners == [(row - 13 * (member // 2), col + 18 * (member % 2)) for member in range(6)]  # a gap of a pixel
    missing = sheet[row - 13 * 3 : row - 13 * 3 + 12, col : col + 17]
    assert (missing == PAPER + 2).all()


def test_members_along_one_axis_are_named_below(write: Write, tmp_path: Path) -> None:
    path = write(
        "[sweep]\ncombine = 'zip'\nmodel.feed = { values = [0.02, 0.03] }\nmodel.kill = { values = [0.05, 0.06] }"
    )
    output, pictures = path.with_suffix(".zarr"), [tmp_path / f"{name}.png" for name in ("pending", "complete")]
    begin(load_sweep(path), output)
    for picture in pictures:
        assert main(["sweep", "sheet", str(output), "-o", str(picture), "--limits", "frame", "--cmap", "viridis"]) == 0
        run_tasks(output)
    pending, complete = map(pixels, pictures)
    assert pending.shape == complete.shape
    assert (pending != complete).any()


def test_a_sheet_replaces_no_file_that_was_not_named(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write()
    output, picture = path.with_suffix(".zarr"), tmp_path / "sheet.png"
    begin(load_sweep(path), output)
    picture.write_text("mine")
    arguments = ["sweep", "sheet", str(output), "-o", str(picture)]
    for more, words in (
        ([], "exists; choose another name"),
        (["--field", "w", "--overwrite"], "--field: expected v, got 'w'"),
        (["--scale", "0", "--overwrite"], "--scale: expected a fraction of 1, or a whole number"),
        (["--limits", "1:0", "--overwrite"], "--limits: expected auto, frame, or LO:HI"),
    ):
        assert main([*arguments, *more]) == 2
        assert words in capsys.readouterr().err
        assert picture.read_text() == "mine"
    assert main([*arguments, "--overwrite"]) == 0
    assert pixels(picture).size
    assert main(["sweep", "sheet", str(tmp_path / "none.zarr"), "-o", str(tmp_path / "none.png")]) == 65


PEARSON = """
[grid]
rows = 48
cols = 48
[model]
diffusion_u = 0.2
diffusion_v = 0.1
[initial]
kind = "square"
[run]
frames = 4
steps_per_frame = 1000
backend = "numba"
[sweep]
model.feed = { values = [0.006, 0.037, 0.078] }
model.kill = { values = [0.03, 0.06, 0.07] }
"""


def test_pearsons_plane_has_patterns_between_its_two_uniform_states(write: Write) -> None:
    path = write(PEARSON, shared="")
    output = path.with_suffix(".zarr")
    begin(load_sweep(path), output)
    run_tasks(output)
    with xarray.open_dataset(output, engine="zarr") as plane:
        last = plane.v.isel(time=-1)
        spread, mean = last.std(("y", "x")), last.mean(("y", "x"))
        assert float(spread.sel(feed=0.037, kill=0.06)) > 0.05  # spots and stripes
        assert float(spread.sel(feed=0.078, kill=0.03)) < 1e-3 < 0.3 < float(mean.sel(feed=0.078, kill=0.03))  # blue
        assert float(mean.sel(feed=0.006, kill=0.07)) < 1e-3  # red: v has died out
