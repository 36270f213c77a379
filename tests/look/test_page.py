"""The page in a real browser: exact values, the slider, the keys, addresses, curves and pictures that are saved."""

import io
import shutil
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401 - reads Blosc
import numpy as np
import pytest
import zarr
from browsing import Open
from PIL import Image
from playwright.sync_api import Page

import gsio
from gsio.draw.colours import DEFAULT, table
from gsio.testing import small_blocks

ROWS, COLS, FRAMES = 24, 37, 40
COMMON = {
    "grid.rows": ROWS, "grid.cols": COLS, "run.frames": FRAMES, "run.steps_per_frame": 20, "run.backend": "numpy",
    "initial.kind": "noise",
}  # fmt: skip
FIELDS = {"output.fields": "u,v"}
OUTPUTS = {
    "deflate.h5": FIELDS,
    "none.h5": FIELDS | {"output.compression": "none"},
    "double.h5": FIELDS | {"model.precision": "float64", "output.store": "computed"},
    "uint8.h5": FIELDS | {"output.store": "uint8"},
    "zstd.h5": FIELDS | {"output.compression": "zstd"},
    "float16.zarr": FIELDS | {"output.store": "float16"},
    "batch.h5": FIELDS | {"model.feed": [0.02, 0.03, 0.04]},
    "slabs.h5": FIELDS,
    "slabs-batch.h5": FIELDS | {"model.feed": [0.02, 0.03, 0.04]},
    "slow.h5": FIELDS | {"run.frames": 20, "run.steps_per_frame": 40},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of outputs, most with three frames a chunk, so that the last chunk is not full."""
    folder = tmp_path_factory.mktemp("outputs")
    plane = ROWS * COLS * 4
    for name, changes in OUTPUTS.items():
        large = plane - 1 if name.startswith("slabs") else 10 * plane
        with small_blocks(block_bytes=12 * plane, chunk_bytes=3 * plane, large_bytes=large, slab_bytes=10 * COLS * 4):
            gsio.simulate(gsio.load_config(overrides=COMMON | changes, environ={}), folder / name)
    return folder


def open_exact(opened: Open, *paths: Path, frame: int, more: str = "") -> Page:
    """Open outputs at a frame, with `more` in the fragment of the address, and wait for its exact values."""
    page = opened(*paths, show=f"frame={frame}{more}")
    wait_exact(page, frame)
    return page


def wait_for(page: Page, **state: object) -> None:
    """Wait until the page has drawn a state, by the data of its root element."""
    page.wait_for_selector(
        "html[data-ready=true][data-drawn=true]" + "".join(f'[data-{name}="{value}"]' for name, value in state.items())
    )


def wait_exact(page: Page, frame: int) -> None:
    wait_for(page, frame=frame, kind="exact", wanted=frame, moving="false")


def stored(path: Path, field: str) -> np.ndarray:
    """Return a field of an output as h5py or zarr reads it, scaled."""
    if path.suffix == ".zarr":
        return np.asarray(zarr.open_group(path, mode="r")[field][:])
    with h5py.File(path) as file:
        scale = file[field].attrs.get("scale_factor")
        return file[field][:] if scale is None else file[field][:] * scale


def state(page: Page) -> Any:
    return page.evaluate("gsio.state()")


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize(("field", "frame"), [("v", 7), ("u", -1)])
def test_ten_values_are_those_of_the_file(opened: Open, folder: Path, name: str, field: str, frame: int) -> None:
    values = stored(folder / name, field)
    frame %= len(values)
    batch = values.ndim > 3
    page = open_exact(opened, folder / name, frame=frame, more=f"&field={field}" + "&member=2" * batch)
    expected = values[frame, 2] if batch else values[frame]
    rng = np.random.default_rng(frame)
    for row, col in zip(rng.integers(ROWS, size=10), rng.integers(COLS, size=10), strict=True):
        found = page.evaluate(f"gsio.value({row}, {col})")
        assert found == {"row": row, "col": col, "value": float(expected[row, col]), "exact": True}
    assert state(page)["outputs"][0]["frame"] == frame


def middle_of(page: Page, row: int, col: int) -> tuple[float, float]:
    """Return the middle of a cell of a picture that fits, in pixels of the page."""
    box = page.locator(".stage").bounding_box()
    scale = min(box["width"] / COLS, box["height"] / ROWS)
    left, top = (box["width"] - COLS * scale) / 2, (box["height"] - ROWS * scale) / 2
    return box["x"] + left + (col + 0.5) * scale, box["y"] + top + (row + 0.5) * scale


@pytest.mark.parametrize(
    ("name", "kind"), [("deflate.h5", np.float32), ("float16.zarr", np.float16), ("double.h5", np.float64)]
)
def test_hovering_shows_the_shortest_decimal(opened: Open, folder: Path, name: str, kind: type) -> None:
    values = stored(folder / name, "v")[5]
    page = open_exact(opened, folder / name, frame=5)
    for row, col in ((0, 0), (11, 20), (ROWS - 1, COLS - 1)):
        page.mouse.move(*middle_of(page, row, col))
        page.wait_for_selector(f".readout:has-text('row {row}, col {col}')")
        shown = page.locator(".readout b").inner_text()
        assert kind(shown.replace("−", "-")) == values[row, col]
        assert len(shown) <= len(str(values[row, col])) + 6  # NumPy may write an exponent


def test_a_value_that_is_not_a_number_is_said_and_drawn(opened: Open, folder: Path, tmp_path: Path) -> None:
    path = shutil.copy(folder / "none.h5", tmp_path / "nan.h5")
    with h5py.File(path, "r+") as file:
        file["v"][4, 11, 20] = np.nan
    page = open_exact(opened, path, frame=4)
    page.mouse.move(*middle_of(page, 11, 20))
    page.wait_for_selector(".readout:has-text('not a number')")


def test_a_damaged_frame_is_named_and_the_last_picture_stays(opened: Open, folder: Path, tmp_path: Path) -> None:
    path = shutil.copy(folder / "deflate.h5", tmp_path / "damaged.h5")
    with h5py.File(path) as file:
        place = file["v"].id.get_chunk_info(2)  # frames 6 to 8
    with path.open("r+b") as damaged:
        damaged.seek(place.byte_offset + place.size // 2)
        damaged.write(bytes(place.size // 4))
    page = open_exact(opened, path, frame=5)
    page.keyboard.press("ArrowRight")
    page.wait_for_selector(".message:has-text('Frame 6: The stored bytes cannot be decoded')")
    assert page.locator(".message").inner_text().endswith("The picture still shows frame 5.")
    page.keyboard.press("End")
    wait_exact(page, FRAMES - 1)
    page.wait_for_selector(".message", state="hidden")


def test_the_slider_and_the_number_choose_the_frame(opened: Open, folder: Path) -> None:
    page = open_exact(opened, folder / "deflate.h5", frame=0)
    box = page.locator("#slider").bounding_box()
    page.mouse.move(box["x"] + 8, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 2, box["y"] + box["height"] / 2, steps=12)
    page.mouse.up()
    wait_exact(page, FRAMES - 1)
    for text, frame in (("12", 12), ("9999", FRAMES - 1), ("-2", FRAMES - 2), ("no number", FRAMES - 2)):
        page.fill("#frame", text)
        page.press("#frame", "Enter")
        wait_exact(page, frame)
    assert page.input_value("#frame") == str(FRAMES - 2)


def test_the_page_says_that_it_does_not_yet_show_the_newest_state(opened: Open, folder: Path) -> None:
    page = open_exact(opened, folder / "batch.h5", frame=8)
    drawn = page.get_by_role("slider", name="member").evaluate(
        """member => {
            member.value = "1";
            member.dispatchEvent(new Event("input"));
            return document.documentElement.dataset.drawn;
        }"""
    )
    assert drawn == "false"
    wait_exact(page, 8)


def test_previews_are_drawn_while_the_slider_moves(opened: Open, folder: Path) -> None:
    page = open_exact(opened, folder / "deflate.h5", frame=0)
    wait_for(page, previews=-(-FRAMES // 16))
    kinds = page.evaluate(
        """async () => {
            const kinds = [];
            for (let frame = 1; frame < 30; frame++) {
                document.querySelector("#slider").value = frame;
                document.querySelector("#slider").dispatchEvent(new Event("input"));
                await new Promise(requestAnimationFrame);
                const {frame: shown, kind} = gsio.state().outputs[0];
                kinds.push([shown, kind !== "none"]);
            }
            return kinds;
        }"""
    )
    assert kinds == [[frame, True] for frame in range(1, 30)]
    wait_exact(page, 29)


def test_every_key(opened: Open, folder: Path) -> None:
    page = open_exact(opened, folder / "deflate.h5", frame=5)
    for key, frame in (
        ("ArrowRight", 6), ("ArrowLeft", 5), ("Shift+ArrowRight", 15), ("Shift+ArrowLeft", 5), ("End", FRAMES - 1),
        ("Home", 0), ("ArrowLeft", 0),
    ):  # fmt: skip
        page.keyboard.press(key)
        wait_exact(page, frame)
    page.keyboard.press("+")
    page.keyboard.press("+")
    page.keyboard.press("-")
    assert state(page)["zoom"]["factor"] == pytest.approx(1.25)
    page.keyboard.press("0")
    assert state(page)["zoom"]["factor"] == 1
    page.keyboard.press("f")
    wait_for(page, follow="true", frame=FRAMES - 1)
    page.keyboard.press("f")
    wait_for(page, follow="false")
    page.keyboard.press("p")
    wait_for(page, panel="closed")
    page.keyboard.press("?")
    page.wait_for_selector("#help[open]")
    page.keyboard.press("Escape")
    page.wait_for_selector("#help", state="hidden")
    page.click("#loop")  # playing ends only when it is told to
    page.keyboard.press(" ")
    wait_for(page, playing="true")
    page.keyboard.press(" ")
    wait_for(page, playing="false")


def test_playing_ends_at_the_last_frame_or_begins_again(opened: Open, folder: Path) -> None:
    page = open_exact(opened, folder / "slow.h5", frame=15)
    page.select_option("#speed", "30")
    page.click("#play")
    wait_for(page, playing="false", frame=19)
    page.click("#loop")
    page.locator(".stage").focus()
    page.keyboard.press("ArrowLeft")
    wait_exact(page, 18)
    page.click("#play")
    page.wait_for_selector("html[data-playing=true]:not([data-wanted='18']):not([data-wanted='19'])")
    page.click("#play")
    wait_for(page, playing="false")


def test_the_address_names_what_is_shown(opened: Open, folder: Path) -> None:
    address = "&field=u&limits=0.25:0.75&map=viridis&zoom=2,0.4,0.6&point=3,4,0"
    page = open_exact(opened, folder / "deflate.h5", frame=9, more=address)
    found = state(page)
    assert (found["frame"], found["field"], found["limits"], found["map"]) == (9, "u", [0.25, 0.75], "viridis")
    assert found["zoom"] == {"factor": 2, "x": 0.4, "y": 0.6}
    assert found["point"] == {"row": 3, "col": 4, "member": 0}
    page.keyboard.press("ArrowRight")
    wait_for(page, address=f"#frame=10{address}")
    page.reload()
    wait_exact(page, 10)
    again = state(page)
    assert again == found | {"frame": 10, "outputs": again["outputs"]}  # previews arrive meanwhile


@pytest.mark.parametrize(
    "address",
    [
        "frame=-1&field=../x&limits=5:1&map=no&zoom=9", "frame=99999999", "member=7&output=4", "%ff=%zz&&=",
        "frame=%e0%a4%a", "constructor=1&__proto__=2",
    ],
)  # fmt: skip
def test_a_malformed_address_shows_the_output(opened: Open, folder: Path, address: str) -> None:
    page = opened(folder / "deflate.h5", show=address)
    page.reload()
    wait_for(page, kind="exact", moving="false")
    assert state(page)["limits"] == "auto"
    assert state(page)["map"] == DEFAULT


@pytest.mark.parametrize("name", ["deflate.h5", "uint8.h5"])
def test_a_saved_picture_has_the_colours_of_the_map(opened: Open, folder: Path, name: str) -> None:
    page = open_exact(opened, folder / name, frame=12, more="&limits=0:0.25&map=viridis")
    with page.expect_download() as waiting:
        page.keyboard.press("s")
    assert waiting.value.suggested_filename == f"{Path(name).stem}-v-00012.png"
    picture = np.asarray(Image.open(waiting.value.path()).convert("RGB"))
    place = np.clip(stored(folder / name, "v")[12] / 0.25 * 256, 0, 255).astype(int)
    np.testing.assert_array_equal(picture, table("viridis")[place])


def test_all_members_are_tiles(opened: Open, folder: Path) -> None:
    values = stored(folder / "batch.h5", "v")
    page = open_exact(opened, folder / "batch.h5", frame=8, more="&member=all")
    for member in range(3):
        found = page.evaluate(f"gsio.value(5, 6, {{ member: {member} }})")
        assert found["value"] == float(values[8, member, 5, 6])
    page.get_by_role("button", name="all", exact=True).click()
    page.get_by_role("slider", name="member").press("ArrowRight")
    wait_exact(page, 8)
    assert page.evaluate("gsio.value(5, 6)")["value"] == float(values[8, 1, 5, 6])


def test_a_click_plots_a_point_and_a_drag_a_profile(opened: Open, folder: Path) -> None:
    values = stored(folder / "deflate.h5", "v")
    page = open_exact(opened, folder / "deflate.h5", frame=6)
    page.mouse.click(*middle_of(page, 10, 20))
    wait_for(page, points=FRAMES)
    curve = dict(page.evaluate("gsio.curves().point"))
    assert curve == {frame: float(values[frame, 10, 20]) for frame in range(FRAMES)}
    page.keyboard.down("Shift")
    page.mouse.move(*middle_of(page, 2, 3))
    page.mouse.down()
    page.mouse.move(*middle_of(page, 2, 13), steps=4)
    page.mouse.up()
    page.keyboard.up("Shift")
    page.wait_for_selector("#line canvas", state="attached")
    places, along = page.evaluate("gsio.curves().line")
    assert places == list(range(11))
    assert along == [float(value) for value in values[6, 2, 3:14]]
    page.keyboard.press("Escape")
    page.wait_for_selector("#line", state="hidden")
    assert state(page)["point"] is None


def test_limits_are_those_of_all_frames_of_one_or_two_numbers(opened: Open, folder: Path) -> None:
    values = stored(folder / "deflate.h5", "v")
    page = open_exact(opened, folder / "deflate.h5", frame=6)
    assert state(page)["outputs"][0]["limits"] == [float(values.min()), float(values.max())]
    page.locator("[name=limits][value=frame]").check(force=True)
    page.keyboard.press("ArrowRight")
    wait_exact(page, 6)  # an arrow chooses among the buttons when one of them has the focus
    page.locator("[name=limits][value=frame]").check(force=True)
    page.locator(".stage").focus()
    page.keyboard.press("ArrowRight")
    wait_exact(page, 7)
    assert state(page)["outputs"][0]["limits"] == [float(values[7].min()), float(values[7].max())]
    page.fill("#high", "0.5")
    page.press("#high", "Enter")
    page.fill("#low", "0.75")  # above the upper limit: the old one stays
    page.press("#low", "Enter")
    assert state(page)["limits"] == [pytest.approx(float(values[7].min())), 0.5]


def test_outputs_are_linked_by_model_time(opened: Open, folder: Path) -> None:
    page = open_exact(opened, folder / "deflate.h5", folder / "slow.h5", frame=21)
    wait_exact(page, 21)
    page.wait_for_selector(".pane:nth-child(2)[data-kind=exact]")
    frames = [output["frame"] for output in state(page)["outputs"]]
    assert frames == [21, 10]  # 22 × 20 steps and 11 × 40 steps
    page.locator(".stage").nth(1).focus()
    page.keyboard.press("ArrowRight")
    wait_exact(page, 11)
    assert [output["frame"] for output in state(page)["outputs"]] == [23, 11]


def test_light_and_dark(opened: Open, folder: Path) -> None:
    page = open_exact(opened, folder / "deflate.h5", frame=20)
    page.emulate_media(color_scheme="dark")
    shades = []
    for theme in ("auto", "light", "dark"):
        wait_for(page, theme=theme)
        shot = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB")).astype(int)
        shades.append((shot[20, 640].mean(), shot[300:500, 200:700]))
        page.click("#theme")
    assert shades[0][0] == shades[2][0] < 60 < 200 < shades[1][0]
    assert abs(shades[0][1] - shades[1][1]).mean() < 1  # the picture has the same colours on both


def test_a_large_grid_is_read_where_it_is_seen(opened: Open, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gsio.look.source.WHOLE_CELLS", ROWS * COLS - 1)
    values = stored(folder / "deflate.h5", "v")
    page = open_exact(opened, folder / "deflate.h5", frame=11, more="&zoom=4,0.3,0.7")
    found = page.evaluate("gsio.value(17, 11)")
    assert found == {"row": 17, "col": 11, "value": float(values[11, 17, 11]), "exact": True}
    assert not page.evaluate("gsio.value(0, 36)")["exact"]
    page.keyboard.press("0")
    page.wait_for_function("() => gsio.value(0, 36)?.exact")  # the old part stays until the whole frame is here
    assert page.evaluate("gsio.value(0, 36)") == {"row": 0, "col": 36, "value": float(values[11, 0, 36]), "exact": True}
