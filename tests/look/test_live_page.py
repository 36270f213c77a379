"""The page in a real browser while outputs change under it, and what it keeps from those who may not see it."""

import http.client
import os
import re
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from playwright.sync_api import BrowserContext, Page, expect

import gsio
from gsio.cli import main
from gsio.config import Config
from gsio.look.serve import Server, listen
from gsio.testing import small_blocks
from tests.look.conftest import FOREIGN, Open
from tests.patience import DEADLINE

Make = Callable[..., Config]
Serve = Callable[..., Server]

SHAPE = ROWS, COLS = 48, 64
LIVELY = ["--feed", 0.037, "--kill", 0.06]  # a pattern that does not die out on so few cells
CELLS = [(0, 0), (5, 60), (24, 32), (25, 33), (47, 63)]
RUN = """
import sys
from gsio.cli import main
from gsio.testing import small_blocks
small_blocks()
sys.exit(main(sys.argv[1:]))
"""
ROUTES = [
    "/", "/page/index.html", "/page/main.js", "/outputs", "/colours", "/events", "/outputs/0/series",
    "/outputs/0/chunk/v/0/0", "/outputs/0/window/v/0/0/0:4:1/0:4:1", "/outputs/0/proxies/v/0/0",
    "/outputs/0/proxy/v/0/0", "/outputs/0/point/v/0/1/1", "/nothing",
]  # fmt: skip


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


@pytest.fixture
def output(make_config: Make, tmp_path: Path) -> Path:
    """Return a complete output of 40 frames."""
    path = tmp_path / "run.h5"
    with small_blocks():
        gsio.simulate(make_config({"grid.rows": ROWS, "grid.cols": COLS, "run.frames": 40}), path)
    return path


def wait_for(page: Page, condition: str) -> None:
    """Wait until a condition of the first output holds; `output` and `state` are what the page shows."""
    page.wait_for_function(f"() => {{ const state = gsio.state(), [output] = state.outputs; return {condition}; }}")


def shown(page: Page) -> dict[str, Any]:
    return dict(page.evaluate("gsio.state().outputs[0]"))


def check_values(page: Page, path: Path, frame: int) -> None:
    """Wait until the page shows this frame, and compare its exact values with those of h5py or zarr."""
    wait_for(page, f"output.frame === {frame} && output.kind === 'exact'")
    expected = stored(path)[frame]
    for row, col in CELLS:
        cell = page.evaluate("([row, col]) => gsio.value(row, col)", [row, col])
        assert cell == {"row": row, "col": col, "value": expected[row, col], "exact": True}


def stored(path: Path) -> np.ndarray:
    if path.is_dir():
        return np.asarray(zarr.open_group(path, mode="r")["v"])
    with h5py.File(path) as file:
        return np.asarray(file["v"])


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


@contextmanager
def http_server(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[int]:
    """Serve GET requests at a free port of this machine, whose number is given."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads, server.block_on_close = True, False
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


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


# Those who may not see it

ATTEMPTS = """async (base) => {
  const text = (frame) => frame.contentDocument?.body?.innerText ?? "";
  const added = (name, attributes, read) => new Promise((resolve) => {
    const element = Object.assign(document.createElement(name), attributes);
    element.onload = () => resolve(read(element));
    element.onerror = () => resolve("");
    document.body.append(element);
  });
  const attempts = {
    fetch: async () => (await fetch(base + "outputs", { credentials: "include" })).text(),
    opaque: async () => (await fetch(base + "outputs", { credentials: "include", mode: "no-cors" })).text(),
    image: () => added("img", { src: base + "page/favicon.svg" }, (image) => `${image.naturalWidth} pixels`),
    script: () => added("script", { type: "module", src: base + "page/format.js" }, () => "a script"),
    module: async () => Object.keys(await import(base + "page/format.js")).join(),
    style: () => added("link", { rel: "stylesheet", href: base + "page/style.css" }, (link) => link.sheet.cssRules),
    frame: () => added("iframe", { src: base + "outputs" }, text),
    page: () => added("iframe", { src: base }, (frame) => frame.contentDocument?.title ?? ""),
    events: () => new Promise((resolve) => {
      const events = new EventSource(base + "events", { withCredentials: true });
      const end = (read) => { events.close(); resolve(read); };
      events.addEventListener("output", (event) => end(event.data));
      events.onerror = () => end("");
    }),
    form: () => new Promise((resolve) => {
      const frame = Object.assign(document.createElement("iframe"), { name: "answer" });
      const to = { method: "post", action: base + "outputs", target: "answer" };
      const form = Object.assign(document.createElement("form"), to);
      document.body.append(frame, form);
      frame.onload = () => resolve(text(frame));
      form.submit();
    }),
    popup: () => new Promise((resolve) => {
      const popup = window.open(base + "outputs");
      const look = () => {
        let read = "";
        try {
          const there = popup.location.href !== "about:blank" && popup.document.readyState === "complete";
          if (!there) return setTimeout(look, 10);
          read = popup.document.body.innerText;
        } catch {}
        popup.close();
        return resolve(read);
      };
      look();
    }),
    socket: () => new Promise((resolve) => {
      const socket = new WebSocket(base.replace("http", "ws") + "events");
      socket.onopen = socket.onmessage = () => resolve("a socket");
      socket.onerror = () => resolve("");
    }),
  };
  const read = {};
  for (const [name, attempt] of Object.entries(attempts)) read[name] = await attempt().catch(() => "");
  return read;
}"""


@pytest.mark.parametrize("name", ["127.0.0.1", FOREIGN])
def test_a_hostile_page_in_the_same_browser_reads_nothing(
    name: str, context: BrowserContext, opened: Open, served: Serve, output: Path
) -> None:
    server = served(output)
    page, base = opened(url=server.url), f"http://127.0.0.1:{server.port}/"

    def hostile(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "text/html")
        request.end_headers()
        request.wfile.write(b"<!doctype html><title>hostile</title><body>")

    with http_server(hostile) as port:
        other = context.new_page()
        other.goto(f"http://{name}:{port}/")
        stolen = other.evaluate(ATTEMPTS, base)
        other.close()
    own = page.evaluate(ATTEMPTS, base)
    assert [attempt for attempt, read in stolen.items() if read] == []
    # The page itself gets something by each of these ways, but for a socket, which nobody gets.
    assert [attempt for attempt, read in own.items() if not read] == ["socket"]
    assert own["form"].strip() == "expected GET"
    check_values(page, output, 0)


def test_a_name_that_leads_to_this_machine_opens_nothing(context: BrowserContext, served: Serve, output: Path) -> None:
    server = served(output)
    page = context.new_page()
    for address in ("/", "/outputs", f"/?token={server.token}"):
        answer = page.goto(f"http://{FOREIGN}:{server.port}{address}")
        assert answer is not None
        assert answer.status == 421
        assert "run.h5" not in answer.text()
    assert context.cookies() == []
    for route in ROUTES:
        assert ask(server, route, Host=f"evil.example:{server.port}", Cookie=cookie_of(server)) == 421


def ask(server: Server, route: str, **headers: str) -> int:
    """Return the status of the answer to a request."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE)
    connection.request("GET", route, headers=headers)
    status = connection.getresponse().status
    connection.close()
    return status


def cookie_of(server: Server) -> str:
    return f"gsio-{server.port}={server.token}"


def test_another_user_of_the_machine_gets_nothing(served: Serve, output: Path) -> None:
    server, other = served(output), served(output)
    for route in ROUTES:
        assert ask(server, route) == 403
        assert ask(server, f"{route}?token={server.token[:-1]}") == 403
        assert ask(server, route, Cookie=f"gsio-{server.port}={other.token}") == 403
    assert ask(server, "/outputs", Cookie=cookie_of(server)) == 200


def test_no_process_shows_the_token_and_the_browser_is_led_to_the_page(
    opened: Open, output: Path, tmp_path: Path
) -> None:
    browser, told = tmp_path / "browser", tmp_path / "told"
    os.mkfifo(told)
    browser.write_text(f'#!/bin/sh\necho "$1" >{told}\n')
    browser.chmod(0o700)
    environment = {**os.environ, "DISPLAY": ":1234", "BROWSER": f"{browser} %s &"}
    environment.pop("SSH_CONNECTION", None)
    command = [sys.executable, "-m", "gsio", "view", str(output)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as view:
        assert view.stdout is not None
        try:
            token = view.stdout.readline().strip().partition("token=")[2]
            address = told.read_text().strip()
            leading = Path(address.removeprefix("file://"))
            shown_to_all = [read(process / "cmdline") for process in Path("/proc").glob("[0-9]*")]
            assert any(str(output).encode() in text for text in shown_to_all)
            assert len(token) >= 32
            assert not any(token.encode() in text for text in shown_to_all)
            assert token not in address
            assert stat.S_IMODE(leading.stat().st_mode) == 0o600
            assert stat.S_IMODE(leading.parent.stat().st_mode) == 0o700
            page = opened(url=address)
            check_values(page, output, 0)
            page.wait_for_function("() => !location.href.includes('token')")
        finally:
            view.send_signal(signal.SIGINT)
            view.communicate(timeout=DEADLINE)
    assert not leading.exists()


def read(path: Path) -> bytes:
    """Return the bytes of a file, or none if its process has ended."""
    try:
        return path.read_bytes()
    except OSError:
        return b""
