"""Pictures show every field, whatever its values."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gsio.draw.picture import write_picture


def test_brightness_rises_with_the_value(tmp_path: Path) -> None:
    write_picture(tmp_path / "ramp.png", np.linspace(-3, 5, 200, dtype=np.float32)[np.newaxis, :] * np.ones((2, 1)))
    with Image.open(tmp_path / "ramp.png") as picture:
        assert picture.size == (200, 2)
        grey = np.asarray(picture.convert("L"), np.int64)
    assert (np.diff(grey) >= 0).all()
    assert grey.min() < 20
    assert grey.max() > 245


@pytest.mark.parametrize("value", [0.0, 0.7, np.nan, np.inf])
def test_a_field_without_a_range_is_a_picture_too(value: float, tmp_path: Path) -> None:
    write_picture(tmp_path / "flat.png", np.full((3, 4), value))
    with Image.open(tmp_path / "flat.png") as picture:
        assert picture.getcolors() == [(12, picture.getpixel((0, 0)))]


def test_non_finite_values_do_not_hide_the_others(tmp_path: Path) -> None:
    write_picture(tmp_path / "holes.png", np.array([[0.0, 1.0], [np.nan, np.inf]]))
    with Image.open(tmp_path / "holes.png") as picture:
        assert picture.getpixel((1, 0)) != picture.getpixel((0, 0)) == picture.getpixel((0, 1))


def test_a_large_field_is_made_smaller(tmp_path: Path) -> None:
    write_picture(tmp_path / "large.png", np.random.default_rng(1).random((300, 1200)), longest=100)
    with Image.open(tmp_path / "large.png") as picture:
        assert picture.size == (100, 25)
