"""The page as docs/look.md shows it: a picture of the real page is compared with docs/page.png."""

import io
from pathlib import Path

import numpy as np
import pytest
from browsing import Open, wait_for
from PIL import Image
from playwright.sync_api import Page

import gsio

SHOWN = Path(__file__).parents[2] / "docs" / "page.png"
FRAMES, FRAME = 40, 33
CORAL = {
    "grid.rows": 240, "grid.cols": 320, "run.frames": FRAMES, "run.steps_per_frame": 250, "run.backend": "numba",
}  # fmt: skip
BOX = 16  # pixels; fonts and antialiasing hardly change the mean of a box
APART = 12  # levels of 256 between the means of two boxes that are not alike
SHARE = 0.02  # of the boxes may be so: six other fonts changed 1.6 % at most, a missing plot changes 2.8 %
PARTS = ["#histogram", "#stats-group", ".side", "#foot", "#top", ".canvas", "#panel"]


def unlike(page: Page, expected: Image.Image) -> float:
    """Return the share of boxes of the page that differ from those of a picture."""
    means = [
        np.asarray(image.convert("RGB"), float).reshape(image.height // BOX, BOX, -1, BOX, 3).mean((1, 3))
        for image in (Image.open(io.BytesIO(page.screenshot())), expected)
    ]
    return float((abs(means[0] - means[1]).max(2) > APART).mean())


@pytest.mark.numba
def test_the_page_looks_as_the_documentation_shows_it(
    opened: Open, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    output = tmp_path / "coral.h5"
    gsio.simulate(gsio.load_config(preset="coral", overrides=CORAL, environ={}), output)
    page = opened(output, show=f"frame={FRAME}&point=139,87,0")
    page.emulate_media(color_scheme="dark")
    wait_for(page, f"output.frame === {FRAME} && output.kind === 'exact' && output.previews === 3")
    page.wait_for_selector(f"html[data-points='{FRAMES}'][data-shade=dark][data-moving=false][data-drawn=true]")
    if folder := pytestconfig.getoption("--screenshots"):
        picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        picture.quantize(256, Image.Quantize.FASTOCTREE).save(Path(folder, SHOWN.name), optimize=True)
    with Image.open(SHOWN) as expected:
        assert unlike(page, expected) < SHARE
        for part in PARTS:  # the comparison sees that each of them is missing
            page.locator(part).evaluate("part => { part.hidden = true; }")
            assert unlike(page, expected) > SHARE, part
            page.locator(part).evaluate("part => { part.hidden = false; }")
        page.emulate_media(color_scheme="light")
        page.wait_for_selector("html[data-shade=light][data-drawn=true]")
        assert unlike(page, expected) > SHARE
