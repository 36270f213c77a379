"""The picture of the lanes of a run."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from gsio.profile.lanes import draw_lanes
from gsio.trace.timeline import DEVICE, Interval, Recording


def recording(blocks: int, *, device: bool = True) -> Recording:
    """Return a recording of blocks that take 10 ms each."""
    intervals = []
    for block in range(blocks):
        start = block / 100
        intervals.append(Interval("advance", 1, block, start, start + 0.009))
        if device:
            intervals.append(Interval("compute", DEVICE, block, start, start + 0.009))
            intervals.append(Interval("copy", DEVICE, block, start + 0.009, start + 0.01))
        intervals.append(Interval("stage", 2 + block % 2, block, start, start + 0.01))
        intervals.append(Interval("encode", 2 + block % 2, block, start + 0.01, start + 0.02))
        intervals.append(Interval("write", 4, block, start + 0.02, start + 0.025))
    return Recording("test", 0.0, blocks / 100 + 0.03, intervals)


def texts(path: Path) -> list[str]:
    """Return the words of a picture: matplotlib leaves them in the comments of a SVG, one for each text."""
    parser = ElementTree.XMLParser(target=ElementTree.TreeBuilder(insert_comments=True))
    elements = ElementTree.parse(path, parser).iter()
    return [element.text.strip() for element in elements if element.tag is ElementTree.Comment and element.text]


@pytest.mark.parametrize(("blocks", "zoomed"), [(400, 20), (7, 7), (1, 1)])
def test_a_picture_has_the_loop_and_blocks_from_its_middle(blocks: int, zoomed: int, tmp_path: Path) -> None:
    draw_lanes(tmp_path / "lanes.svg", recording(blocks), "a run")
    words = texts(tmp_path / "lanes.svg")
    assert {"a run", "the whole loop", f"{zoomed} blocks from its middle", "ms since the loop began"} <= set(words)
    rows = [word for word in words if word in {"compute", "copy", "solver", "encode 1", "encode 2", "writer"}]
    expected = ["compute", "copy", "solver", "encode 1", *["encode 2"] * (blocks > 1), "writer"]
    assert rows[: len(expected)] == expected


def test_on_a_cpu_the_solver_computes(tmp_path: Path) -> None:
    draw_lanes(tmp_path / "lanes.svg", recording(5, device=False), "a run")
    words = texts(tmp_path / "lanes.svg")
    assert "copy" not in words
    assert {"solver", "compute"} <= set(words)  # a row, and what is done in it


def test_a_picture_in_pixels(tmp_path: Path) -> None:
    draw_lanes(tmp_path / "lanes.png", recording(400), "a run")
    with Image.open(tmp_path / "lanes.png") as picture:
        colours = {tuple(colour) for colour in np.asarray(picture.convert("RGB")).reshape(-1, 3)[::7].tolist()}
    assert {(0x00, 0x72, 0xB2), (0x00, 0x9E, 0x73), (0xD5, 0x5E, 0x00)} <= colours  # compute, encode, write


def test_of_nothing_there_is_a_picture(tmp_path: Path) -> None:
    draw_lanes(tmp_path / "lanes.svg", Recording("test", 0.0, 1.0, []), "a run of nothing")
    assert "a run of nothing" in texts(tmp_path / "lanes.svg")
