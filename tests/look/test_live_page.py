"""The page in a real browser while outputs change under it."""

import http.client
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from browsing import CELLS, COLS, ROWS, Open, check_values, http_server, shown, stored, wait_for
from patience import DEADLINE
from playwright.sync_api import expect

import gsio
from gsio.cli import main
from gsio.config import Config
from gsio.look.serve import Server, listen

Make = Callable[..., Config]
Serve = Callable[..., Server]

LIVELY = ["--feed", 0.037, "--kill", 0.06]  # a pattern that does not die out on so few cells
RUN = """
import sys
from gsio.cli import main
from gsio.testing import small_blocks
small_blocks()
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def running() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Return a function that starts a run without an end in a process of its own."""
    started: list[subprocess.Popen[bytes]] = []

    def start(output: Path, *more: str) -> subprocess.Popen[bytes]:
        options = ["-r", ROWS, "-c", COLS, "-e", 100, "-n", 10**7, "--backend", "numpy", *LIVELY]
        command = [sys.executable, "-c", RUN, "run", "--quiet", "-o", str(output), *map(str, options), *more]
        started.append(subprocess.Popen(command, stderr=subprocess.PIPE))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=DEADLINE)


# Outputs that change


@pytest.mark.parametrize("name", ["run.h5", "run.zarr"])
def test_a_running_output_grows_on_the_page_and_is_followed(
    name: str, running: Callable[..., subprocess.Popen[bytes]], opened: Open, tmp_path: Path
) -> None:
    path = tmp_path / name
    page = opened(path, wait=True)  # before the output exists
    expect(page.locator(".badge")).to_have_text("waiting")
    process = running(path)
    wait_for(page, "output.state === 'running' && state.follow && output.frame > 0")  # a page that waits follows
    page.keyboard.press("Home")
    wait_for(page, "!state.follow && output.frame === 0")
    page.keyboard.press("f")
    wait_for(page, "state.follow && output.frame > 0")
    before = shown(page)["frame"]
    wait_for(page, f"output.frame > {before + 20} && output.series > {before}")
    expect(page.locator("#lanes .lane")).to_have_count(5)
    expect(page.locator("#bottleneck")).to_have_text(re.compile("The bottleneck is (compute|encode|write)."))
    process.send_signal(signal.SIGTERM)
    assert process.wait(DEADLINE) == 75
    wait_for(page, "output.state === 'stopped' && output.frame === output.frames - 1")
    expect(page.locator(".badge")).to_have_text("stopped")
    expect(page.locator(".message")).to_contain_text("stopped early with a checkpoint")
    check_values(page, path, len(stored(path)) - 1)


def test_a_page_beside_a_run_draws_about_once_a_second(
    running: Callable[..., subprocess.Popen[bytes]], opened: Open, tmp_path: Path
) -> None:
    path = tmp_path / "run.h5"
    page = opened(path, wait=True)
    running(path)
    wait_for(page, "output.state === 'running' && state.follow && output.frame > 20")
    moments = page.evaluate(
        """() => new Promise((resolve) => {
          const moments = [];
          const { dataset } = document.documentElement;
          new MutationObserver(() => {
            if (dataset.drawn === "true") moments.push(performance.now());
            if (moments.length === 6) resolve(moments);
          }).observe(document.documentElement, { attributeFilter: ["data-drawn"] });
        })"""
    )
    assert moments[-1] - moments[0] > 3000, moments  # ms; two drawings for each event took 2 s


def test_a_killed_run_is_named_and_its_frames_stay(
    running: Callable[..., subprocess.Popen[bytes]], opened: Open, tmp_path: Path
) -> None:
    path = tmp_path / "run.h5"
    page = opened(path, wait=True)
    process = running(path)
    wait_for(page, "output.frames > 30")
    process.kill()
    wait_for(page, "output.state === 'killed'")
    expect(page.locator(".badge")).to_have_text("killed")
    expect(page.locator(".message")).to_contain_text("The run was killed.")
    frames = shown(page)["frames"]
    page.keyboard.press("End")
    wait_for(page, f"output.frame === {frames - 1} && output.kind === 'exact'")
    values = [page.evaluate("([row, col]) => gsio.value(row, col).value", cell) for cell in CELLS]
    assert main(["repair", str(path)]) == 0  # the kill can have torn the file, for HDF5
    assert values == [stored(path)[frames - 1][cell] for cell in CELLS]


def test_a_deleted_output_is_named_and_its_picture_stays(opened: Open, output: Path) -> None:
    page = opened(output, show="frame=7")
    check_values(page, output, 7)
    output.unlink()
    wait_for(page, "output.state === 'gone'")
    expect(page.locator(".badge")).to_have_text("deleted")
    expect(page.locator(".message")).to_be_visible()
    assert page.evaluate("gsio.value(24, 32)") is not None
    assert shown(page)["frame"] == 7


def test_an_output_that_another_run_replaces_is_shown_anew(
    running: Callable[..., subprocess.Popen[bytes]], opened: Open, output: Path
) -> None:
    page = opened(output, show="frame=39")
    check_values(page, output, 39)
    process = running(output, "--overwrite", "--set", "initial.seed=77")
    wait_for(page, "output.state === 'running' && output.frames > 0")
    expect(page.locator(".message")).to_have_text("Another run has replaced this output.")
    wait_for(page, "output.frames > 60")
    page.locator("#frame").fill("50")
    page.locator("#frame").press("Enter")
    wait_for(page, "output.frame === 50 && output.kind === 'exact'")
    process.send_signal(signal.SIGTERM)
    assert process.wait(DEADLINE) == 75
    wait_for(page, "output.state === 'stopped'")
    check_values(page, output, 50)


def test_ten_thousand_frames(make_config: Make, opened: Open, tmp_path: Path) -> None:
    path = tmp_path / "long.h5"
    config = make_config({"grid.rows": ROWS, "grid.cols": COLS, "run.frames": 10_000, "run.steps_per_frame": 1})
    gsio.simulate(config, path)
    page = opened(path)
    page.locator("#slider").press("End")
    wait_for(page, "output.series === 10000")
    check_values(page, path, 9999)
    page.locator("#frame").fill("5000")
    page.locator("#frame").press("Enter")
    check_values(page, path, 5000)
    expect(page.locator("#frames")).to_have_text(re.compile("/ 9.?999"))


def test_two_tabs_show_what_each_was_asked_for(
    running: Callable[..., subprocess.Popen[bytes]], opened: Open, served: Serve, tmp_path: Path
) -> None:
    path = tmp_path / "run.h5"
    url = served(path, wait=True).url
    first, second = opened(url=url), opened(url=url)
    running(path)
    for page in (first, second):
        wait_for(page, "output.frames > 5")
    first.keyboard.press("Home")
    second.bring_to_front()
    seen = shown(second)["frames"]
    wait_for(second, f"state.follow && output.frame > {seen + 5}")
    assert first.evaluate("gsio.state().frame") == 0
    second.close()
    first.bring_to_front()
    seen = shown(first)["frames"]
    wait_for(first, f"output.frames > {seen + 5} && output.frame === 0")


def test_a_server_that_ends_is_one_plain_line(opened: Open, output: Path) -> None:
    with Server([output], listen()) as server:
        page = opened(url=server.url)
        check_values(page, output, 0)
        expect(page.locator("#connection")).to_be_hidden()
    expect(page.locator("#connection")).to_have_text("The server does not answer. The page tries again by itself.")
    expect(page.locator("#connection")).to_be_visible()
    assert page.evaluate("gsio.value(24, 32).exact")


# Other ways to the page


PREFIX = "/user/x/proxy/1234"


def test_the_page_works_behind_a_prefix(opened: Open, served: Serve, output: Path) -> None:
    server, outside = served(output), []

    def forward(request: BaseHTTPRequestHandler) -> None:
        if not request.path.startswith(f"{PREFIX}/"):
            outside.append(request.path)
            request.send_error(404)
            return
        back = http.client.HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE)
        with closing(back), suppress(OSError, ValueError):  # the stream of events ends in its midst
            back.request("GET", request.path.removeprefix(PREFIX), headers=dict(request.headers))
            answer = back.getresponse()
            request.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "server", "date"):
                    request.send_header(name, value)
            request.end_headers()
            while piece := answer.read1():
                request.wfile.write(piece)
                request.wfile.flush()

    with http_server(forward) as port:
        page = opened(url=f"http://127.0.0.1:{port}{PREFIX}/?token={server.token}", show="frame=11")
        check_values(page, output, 11)
        wait_for(page, "output.previews === 3 && output.series === 40 && state.connection === 'open'")
        page.close()
    assert set(outside) <= {"/favicon.ico"}  # browsers ask for that one by themselves
