"""A stack in Python: pictures of its frames, and what a notebook shows of it."""

import base64
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import gsio
from gsio.config import Config
from gsio.draw.picture import PAPER, index
from gsio.errors import DataError, UsageError
from gsio.reader import Frames, Stack

Make = Callable[..., Config]


@pytest.fixture
def stack(make_config: Make, tmp_path: Path) -> Iterator[Stack]:
    config = make_config({"run.frames": 9, "output.fields": "u,v", "initial.kind": "noise"})
    gsio.simulate(config, tmp_path / "run.h5")
    with gsio.open_stack(tmp_path / "run.h5") as stack:
        yield stack


@pytest.fixture
def batch(make_config: Make, tmp_path: Path) -> Iterator[Stack]:
    config = make_config({"run.frames": 3, "model.feed": [0.03, 0.04, 0.05], "initial.kind": "noise"})
    gsio.simulate(config, tmp_path / "batch.h5")
    with gsio.open_stack(tmp_path / "batch.h5") as stack:
        yield stack


def test_a_picture_of_a_frame(stack: Stack) -> None:
    u, v = np.array(stack.u), np.array(stack.v)
    np.testing.assert_array_equal(stack.picture(2), index(v[2], v.min(), v.max()))
    np.testing.assert_array_equal(stack.picture(-1, "u"), index(u[-1], u.min(), u.max()))
    np.testing.assert_array_equal(stack.picture(2, limits="frame"), index(v[2], v[2].min(), v[2].max()))
    np.testing.assert_array_equal(stack.picture(2, limits=(0.1, 0.2)), index(v[2], 0.1, 0.2))
    assert stack.picture(0, scale=3).size == (3 * v.shape[2], 3 * v.shape[1])
    assert stack.picture(0, cmap="magma").getpalette() != stack.picture(0).getpalette()
    assert stack.picture(0)._repr_png_().startswith(b"\x89PNG")


def test_members_are_tiles_unless_one_is_chosen(batch: Stack) -> None:
    v = np.array(batch.v)
    np.testing.assert_array_equal(batch.picture(1, member=2), index(v[1, 2], v.min(), v.max()))
    whole = np.asarray(batch.picture(1))
    windows = np.lib.stride_tricks.sliding_window_view(whole, v.shape[-2:])
    assert all((windows == index(tile, v.min(), v.max())).all(axis=(2, 3)).any() for tile in v[1])
    assert (whole >= PAPER).any()


def test_what_cannot_be_drawn_is_refused(stack: Stack) -> None:
    for number in (9, -10):
        with pytest.raises(IndexError, match=f"expected a frame below 9, got {number}"):
            stack.picture(number)
    for wrong in ({"field": "w"}, {"member": 1}, {"cmap": "nothing"}, {"limits": (1, 0)}, {"scale": 0.0}):
        with pytest.raises(UsageError, match="expected"):
            stack.picture(0, **wrong)


def thumbnails(page: str) -> list[Any]:
    data = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    return [Image.open(io.BytesIO(base64.b64decode(each))) for each in data]


def test_a_notebook_shows_eight_frames_with_their_times(stack: Stack) -> None:
    page = stack._repr_html_()
    shown = [0, 1, 2, 3, 5, 6, 7, 8]
    assert [int(number) for number in re.findall(r"frame (\d+)<br>", page)] == shown
    assert re.findall(r"time ([\d.]+)<", page) == [f"{stack.times[number]:g}" for number in shown]
    pictures = thumbnails(page)
    assert len(pictures) == 8
    np.testing.assert_array_equal(pictures[3], stack.picture(3, scale=120 // 17))
    assert f"<b>{stack.path}</b>: 9 frames of u, v, 12 × 17 float32, complete, feed 0.014, kill 0.054" in page
    assert len(page) < 100_000


def test_a_frame_that_cannot_be_read_does_not_hide_the_others(
    stack: Stack, batch: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(thumbnails(batch._repr_html_())) == 3
    assert ", feed 0.03 to 0.05, kill 0.054" in batch._repr_html_()
    read = Frames.__getitem__

    def damaged(field: Frames, key: Any) -> Any:
        if key == 5:
            raise ValueError("a chunk cannot be decoded")
        return read(field, key)

    monkeypatch.setattr(Frames, "__getitem__", damaged)
    assert len(thumbnails(stack._repr_html_())) == 7
    assert "cannot be read" in stack._repr_html_()
    with pytest.raises(DataError, match="frame 5: a chunk cannot be decoded"):
        stack.picture(5)


def test_thumbnails_of_a_large_grid_are_small(make_config: Make, tmp_path: Path) -> None:
    gsio.simulate(make_config({"grid.rows": 30, "grid.cols": 500, "run.frames": 1}), tmp_path / "run.h5")
    with gsio.open_stack(tmp_path / "run.h5") as stack:
        assert [picture.size for picture in thumbnails(stack._repr_html_())] == [(120, 7)]
