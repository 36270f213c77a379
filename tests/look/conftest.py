"""A real browser, and the server of the page that it opens."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from browsing import COLS, FOREIGN, ROWS, Open
from patience import DEADLINE
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

import gsio
from gsio.config import Config
from gsio.look.serve import Server, listen
from gsio.testing import small_blocks

CHROMIUM = shutil.which("chromium")

Make = Callable[..., Config]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs the program chromium")
    # A container has no user namespaces for Chromium's sandbox, and a small /dev/shm.
    options = ["--no-sandbox", "--disable-dev-shm-usage", f"--host-resolver-rules=MAP {FOREIGN} 127.0.0.1"]
    expect.set_options(timeout=1000 * DEADLINE)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield started
        started.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """Return a person's browser with no cookies yet."""
    with browser.new_context(viewport={"width": 1280, "height": 800}) as made:
        made.set_default_timeout(1000 * DEADLINE)
        yield made


@pytest.fixture
def served() -> Iterator[Callable[..., Server]]:
    """Return a function that serves the page of some outputs until the end of the test."""
    with ExitStack() as servers:
        yield lambda *paths, wait=False: servers.enter_context(Server(paths, listen(), wait=wait))


@pytest.fixture
def opened(context: BrowserContext, served: Callable[..., Server]) -> Iterator[Open]:
    """Return a function that opens the page of some outputs in a new tab; the page must not report an error."""
    errors: list[str] = []

    def open_page(*paths: Path, url: str = "", wait: bool = False, show: str = "") -> Page:
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url or served(*paths, wait=wait).url)
        page.wait_for_selector("html[data-ready=true]", state="attached")
        if show:
            page.evaluate("fragment => { location.hash = fragment; }", show)
        return page

    yield open_page
    assert errors == []


@pytest.fixture
def output(make_config: Make, tmp_path: Path) -> Path:
    """Return a complete output of 40 frames."""
    path = tmp_path / "run.h5"
    with small_blocks():
        gsio.simulate(make_config({"grid.rows": ROWS, "grid.cols": COLS, "run.frames": 40}), path)
    return path
