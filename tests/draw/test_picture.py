"""Fields become indices of a palette, and captions are written in its greys."""

from typing import Any

import numpy as np
import pytest

from gsio.draw.colours import table
from gsio.draw.picture import (
    INK,
    PAPER,
    STEPS,
    STRIP,
    Bar,
    caption,
    check_scale,
    image,
    index,
    palette,
    resize,
    sheet,
    thumbnail,
)
from gsio.errors import UsageError


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "uint8"])
def test_equal_parts_of_the_range_have_equal_steps(dtype: str) -> None:
    values = np.linspace(0, 240, STRIP + 3).astype(dtype).reshape(-1, 1)
    canvas = index(values, 0, 240)
    np.testing.assert_array_equal(canvas, np.minimum(values.astype(int), STEPS - 1))
    assert canvas.dtype == np.uint8


def test_values_beyond_the_limits_have_the_first_and_the_last_colour() -> None:
    field = np.array([[np.nan, -np.inf, -1e30, 0.2], [np.inf, 1e30, 0.8, 0.5]], np.float32)
    np.testing.assert_array_equal(index(field, 0.2, 0.8), [[0, 0, 0, 0], [STEPS - 1] * 3 + [STEPS // 2]])


def test_a_narrow_range_far_from_zero_has_all_colours() -> None:
    field = 1e6 + np.linspace(0, 1e-3, 500)
    assert set(index(field.reshape(1, -1), field[0], field[-1]).flat) == set(range(STEPS))


def test_a_range_near_zero_has_the_first_and_the_last_colour() -> None:
    assert index(np.array([[0, 2e-45]], np.float32), 0.0, 2e-45).tolist() == [[0, STEPS - 1]]


def test_a_palette_has_a_map_and_then_greys_from_paper_to_ink() -> None:
    colours = palette("viridis")
    np.testing.assert_array_equal(colours[[0, STEPS - 1]], table("viridis")[[0, 255]])
    greys = colours[STEPS:].astype(int)
    assert (greys == greys[:, :1]).all()
    assert (np.diff(greys[:, 0]) < 0).all()
    assert greys[0, 0] == 255
    with pytest.raises(UsageError, match=r"--cmap: expected navia, .* got 'nothing'"):
        palette("nothing")


def test_an_image_has_a_palette_and_a_notebook_shows_it() -> None:
    canvas = np.arange(256, dtype=np.uint8).reshape(2, 128)
    picture = image(canvas, "magma")
    assert picture.mode == "P"
    np.testing.assert_array_equal(np.asarray(picture), canvas)
    np.testing.assert_array_equal(np.asarray(picture.convert("RGB")).reshape(-1, 3), palette("magma"))
    assert picture._repr_png_().startswith(b"\x89PNG")


def test_smaller_is_the_mean_and_larger_repeats() -> None:
    canvas = np.array([[0, 20, 100, 100], [40, 60, 100, 100]], np.uint8)
    np.testing.assert_array_equal(resize(canvas, 0.5), [[30, 100]])
    np.testing.assert_array_equal(resize(canvas, 3), np.kron(canvas, np.ones((3, 3), np.uint8)))
    assert resize(canvas, 1e-9).shape == (1, 1)


@pytest.mark.parametrize("scale", [0.0, -1.0, 1.5, np.nan, np.inf, 40_000.0])
def test_a_scale_that_cannot_be_used_is_refused(scale: float) -> None:
    check_scale(0.3, (8, 8))
    check_scale(3.0, (8, 8))
    with pytest.raises(UsageError, match=r"^--scale: expected .*, got "):
        check_scale(scale, (8, 8))


@pytest.mark.parametrize("longest", [50, 1000])
def test_a_thumbnail_shows_the_whole_range_of_a_field(longest: int) -> None:
    ramp = np.linspace(-3, 5, 200, dtype=np.float32)[np.newaxis, :] * np.ones((4, 1))
    picture = thumbnail(ramp, longest)
    assert picture.size == ((50, 1) if longest == 50 else (200, 4))
    grey = np.asarray(picture.convert("L"), np.int64)
    assert (np.diff(grey) >= 0).all()
    assert grey.min() < 20
    assert grey.max() > 230


@pytest.mark.parametrize("value", [0.0, 0.7, np.nan, np.inf])
def test_a_field_without_a_range_is_a_picture_too(value: float) -> None:
    assert thumbnail(np.full((3, 4), value), 256).getcolors() == [(12, STEPS - 1 if value == np.inf else 0)]


def places(canvas: Any, tile: Any) -> list[tuple[int, int]]:
    """Return where a tile is found on a canvas."""
    windows = np.lib.stride_tricks.sliding_window_view(canvas, tile.shape)
    return [(int(row), int(col)) for row, col in np.argwhere((windows == tile).all(axis=(2, 3)))]


def tiles_of(number: int, rows: int, cols: int) -> list[Any]:
    return [np.full((rows, cols), 10 * (1 + place), np.uint8) for place in range(number)]


def test_a_sheet_has_every_tile_in_order_and_a_label_below() -> None:
    tiles = tiles_of(7, 60, 90)
    canvas = sheet(tiles, [(f"member {place}",) for place in range(7)])
    found = [places(canvas, tile) for tile in tiles]
    assert all(len(there) == 1 for there in found)
    assert sorted(found) == found
    for ((top, left),) in found:
        below = canvas[top + 60 : top + 74, left : left + 90]
        assert below.min() == PAPER
        assert below.max() == INK
    assert 1 < canvas.shape[1] / canvas.shape[0] < 2.5


def test_a_label_that_is_wider_than_its_tile_is_shortened() -> None:
    labels = [(f"member {place}: feed 0.0{place}", f"feed 0.0{place}", str(place)) for place in range(4)]
    whole, rates, number = ((sheet(tiles_of(4, 60, cols), labels) > PAPER).sum() for cols in (150, 70, 30))
    assert whole > rates > number > 0
    tiny = sheet(tiles_of(4, 2, 3), labels)
    assert all(len(places(tiny, tile)) == 1 for tile in tiles_of(4, 2, 3))
    assert (tiny > PAPER).sum() == number


def test_a_single_tile_is_no_sheet() -> None:
    tile = tiles_of(1, 5, 6)[0]
    assert sheet([tile], [("v",)]) is tile


@pytest.mark.parametrize("cols", [1, 17, 640, 4096])
@pytest.mark.parametrize("text", ["", "time = 12800"])
def test_a_caption_is_below_a_picture_and_changes_none_of_its_pixels(text: str, cols: int) -> None:
    canvas = np.arange(8 * cols).reshape(8, cols).astype(np.uint8) % STEPS
    whole = caption(canvas, text, [Bar("u", 0, 1), Bar("v", -0.25, 1e-7)])
    left = (whole.shape[1] - cols) // 2
    top = 0 if left == 0 else int(np.argmax((whole < PAPER).any(axis=1)))
    np.testing.assert_array_equal(whole[top : top + 8, left : left + cols], canvas)
    line = whole[top + 8 :]
    bars = [row for row in line if set(range(STEPS)) <= set(row.tolist())] if cols > 4000 else [line[len(line) // 2]]
    assert bars
    assert (np.diff(bars[0][bars[0] < PAPER].astype(int)) < 0).sum() == 1  # two bars, each from low to high
    assert INK in line


def test_a_picture_without_a_caption_stays_as_it_is() -> None:
    canvas = np.zeros((3, 4), np.uint8)
    assert caption(canvas, "") is canvas


def test_a_sheet_of_many_members_is_wider_than_high() -> None:
    canvas = sheet(tiles_of(24, 8, 8), [(str(place),) for place in range(24)])
    assert canvas.shape[0] < canvas.shape[1] < 4 * canvas.shape[0]


def test_a_colour_bar_says_0_for_a_limit_that_is_nothing_beside_the_other() -> None:
    canvas = np.zeros((40, 400), np.uint8)
    nearly, nothing, little = (caption(canvas, "", [Bar("v", low, 0.42)]) for low in (1.24e-19, 0.0, 0.001))
    assert np.array_equal(nearly, nothing)
    assert not np.array_equal(little, nothing)
