"""What tests of the page in a browser share."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zarr
from playwright.sync_api import Page

Open = Callable[..., Page]  # opens the page of some outputs

FOREIGN = "foreign.example"  # a name that the browser takes for this machine
SHAPE = ROWS, COLS = 48, 64
CELLS = [(0, 0), (5, 60), (24, 32), (25, 33), (47, 63)]


def wait_for(page: Page, condition: str) -> None:
    """Wait until the page has drawn a state that meets a condition on `state`, and on `output`, the first output."""
    drawn = "document.documentElement.dataset.drawn === 'true'"
    page.wait_for_function(
        f"() => {{ const state = gsio.state(), [output] = state.outputs; return {drawn} && ({condition}); }}"
    )


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
