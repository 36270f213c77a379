"""The page of a sweep in a real browser: its sliders, and members that become visible while the sweep goes on."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import xarray
from browsing import Open, wait_for
from patience import DEADLINE
from playwright.sync_api import Page, expect
from small_sweeps import NOISE, SHARED, begun

from gsio.processes import python_module
from gsio.sweep.tasks import run_tasks

pytestmark = pytest.mark.numba
PLANE = """
[sweep]
batch = 2
model.feed = { values = [0.0252, 0.03, 0.04] }
grid.boundary = { values = ["periodic", "zero"] }
"""


@pytest.fixture
def result(tmp_path: Path) -> Path:
    """Return the result of a sweep of 3 × 2 members in 4 tasks, none of which is computed yet."""
    output = tmp_path / "plane.zarr"
    begun(SHARED + NOISE + PLANE, output)
    return output


def check_member(page: Page, result: Path, places: tuple[int, int], frame: int) -> None:
    """Wait until the page shows a frame of a member exactly, and compare a value with that of xarray."""
    wait_for(
        page, f"output.frame === {frame} && output.kind === 'exact' && state.member === {2 * places[0] + places[1]}"
    )
    with xarray.open_zarr(result) as found:
        expected = float(found.v[(*places, frame, 5, 6)])
    assert page.evaluate("gsio.value(5, 6)") == {"row": 5, "col": 6, "value": expected, "exact": True}


def test_a_slider_for_each_axis_chooses_the_member(result: Path, opened: Open) -> None:
    run_tasks(result)
    page = opened(result, show="frame=4&point=5,6,0")
    check_member(page, result, (0, 0), 4)
    feed, boundary = (page.get_by_role("slider", name=name) for name in ("feed", "boundary"))
    expect(feed).to_have_attribute("aria-valuetext", "0.0252")
    expect(boundary).to_have_attribute("aria-valuetext", "periodic")
    feed.press("End")
    check_member(page, result, (2, 0), 4)
    boundary.press("ArrowRight")  # the frame stays
    check_member(page, result, (2, 1), 4)
    expect(page.locator(".axis").nth(1)).to_contain_text("zero")
    assert page.evaluate("gsio.state().point") == {"row": 5, "col": 6, "member": 5}
    page.locator("#facts-group summary").click()
    expect(page.locator("#facts")).to_contain_text("feed0.04boundaryzero")
    page.wait_for_function("() => location.hash.includes('member=5')")
    page.reload()
    page.wait_for_selector("html[data-ready=true]", state="attached")
    check_member(page, result, (2, 1), 4)
    expect(page.get_by_role("slider", name="feed")).to_have_value("2")
    page.keyboard.press("Home")  # no slider has the focus
    check_member(page, result, (2, 1), 0)


def test_members_appear_without_a_reload(result: Path, opened: Open) -> None:
    page = opened(result, show="frame=3&member=4")
    expect(page.locator(".badge")).to_have_text("waiting")
    expect(page.locator(".veil")).to_have_text("This member is pending: it is not in the result yet.")
    assert page.locator(".canvas").evaluate("canvas => getComputedStyle(canvas).visibility") == "hidden"
    run_tasks(result, [0])
    expect(page.locator(".rates")).to_have_text("2 of 6 members complete")
    page.get_by_role("slider", name="feed").press("Home")
    check_member(page, result, (0, 0), 3)
    page.get_by_role("slider", name="feed").press("End")
    expect(page.locator(".veil")).to_be_visible()  # and not the picture of another member
    assert page.evaluate("gsio.value(5, 6)") is None
    run_tasks(result)
    check_member(page, result, (2, 0), 3)
    expect(page.locator(".badge")).to_have_text("complete")


def test_members_that_vary_together_have_one_slider_and_times_of_their_own(tmp_path: Path, opened: Open) -> None:
    values = "model.feed = { values = [0.02, 0.03, 0.04] }\nmodel.dt = { values = [1.0, 0.5, 0.25] }"
    result = tmp_path / "zip.h5"
    begun(f"{SHARED}{NOISE}[sweep]\ncombine = 'zip'\n{values}", result)
    run_tasks(result)
    page = opened(result, show="frame=1")
    slider = page.get_by_role("slider", name="member")
    slider.press("ArrowRight")
    expect(slider).to_have_attribute("aria-valuetext", "1, feed 0.03, dt 0.5")
    expect(page.locator(".where")).to_have_text("frame 1 of 5   t = 3")
    with xarray.open_dataset(result, engine="h5netcdf") as found:
        expected = float(found.v[1, 1, 5, 6])
    wait_for(page, "output.kind === 'exact' && state.member === 1")
    assert page.evaluate("gsio.value(5, 6).value") == expected


@pytest.fixture
def sweeping() -> Iterator[Callable[[Path], "subprocess.Popen[bytes]"]]:
    """Return a function that starts the tasks of a result in a process, which ends with the test."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(result: Path) -> "subprocess.Popen[bytes]":
        processes.append(subprocess.Popen(python_module("gsio", "sweep", "task", str(result), "--quiet")))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait(DEADLINE)


@pytest.mark.slow
def test_the_page_follows_a_sweep_that_is_killed_and_goes_on(
    tmp_path: Path, opened: Open, sweeping: Callable[[Path], "subprocess.Popen[bytes]"]
) -> None:
    text = "[sweep]\nrun.steps_per_frame = { values = [3, 100_000_000] }"  # the second task lasts until it is killed
    result = tmp_path / "plane.zarr"
    begun(SHARED + NOISE + text, result)
    page = opened(result, show="frame=2")
    page.wait_for_selector(".veil:has-text('This member is pending: it is not in the result yet.')")
    process = sweeping(result)
    page.wait_for_selector(".badge:text-is('running')")
    page.wait_for_selector(".veil", state="hidden")  # the first member is there
    process.kill()
    process.wait(DEADLINE)
    page.wait_for_selector(".badge:text-is('killed'), .badge:text-is('stopped')")  # the latter between two tasks
    expect(page.locator(".message")).to_contain_text("the same gsio sweep goes on")
    page.get_by_role("slider", name="steps_per_frame").press("End")
    page.wait_for_selector(".veil")
    sweeping(result)
    page.wait_for_selector(".badge:text-is('running')")
