"""How a person gets to the page: a browser that is opened, or a line that says what to do."""

import html
import os
import tempfile
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gsio.look.serve import Server
from gsio.streams import say

PATIENCE_SECONDS = 60.0  # the time that a browser has to open the page


def has_display() -> bool:
    """Return whether a browser that is started here is one that the person can see."""
    here = "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    return here and "SSH_CONNECTION" not in os.environ


@contextmanager
def opened_browser(server: Server) -> Iterator[None]:
    """Open the page in the browser.

    Other users can see the arguments of every process. The browser therefore gets the name of a file that only this
    user can read, which leads to the page, and which goes when the page has been opened.
    """
    with tempfile.TemporaryDirectory(prefix="gsio-") as folder:  # only this user can open it
        leading = Path(folder) / "page.html"
        text = f'<!doctype html><meta http-equiv="refresh" content="0; url={html.escape(server.url)}">\n'
        with open(leading, "x", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(text)

        def lead() -> None:
            if not webbrowser.open(leading.as_uri()):
                say("No browser could be started; open the address above in one.", err=True)
            server.opened.wait(PATIENCE_SECONDS)
            leading.unlink(missing_ok=True)

        threading.Thread(target=lead, daemon=True).start()  # a browser can hold the thread that starts it
        yield


def how_to_forward(port: int) -> str:
    """Return the sentence that says how to see the page from another machine."""
    return (
        f"This machine shows no browser. Where yours is, run: ssh -L {port}:127.0.0.1:{port} {os.uname().nodename}  "
        "and open the address above there."
    )
