"""What the page keeps from those who may not see it: other pages of the browser, and other users of the machine."""

import http.client
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from browsing import FOREIGN, Open, check_values, http_server
from patience import DEADLINE
from playwright.sync_api import BrowserContext

from gsio.look.serve import Server

Serve = Callable[..., Server]

ROUTES = [
    "/", "/page/index.html", "/page/main.js", "/outputs", "/colours", "/events", "/outputs/0/series",
    "/outputs/0/chunk/v/0/0", "/outputs/0/window/v/0/0/0:4:1/0:4:1", "/outputs/0/proxies/v/0/0",
    "/outputs/0/proxy/v/0/0", "/outputs/0/point/v/0/1/1", "/nothing",
]  # fmt: skip


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
