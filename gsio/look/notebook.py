"""The page in a notebook: `gsio.view`."""

import os
from pathlib import Path

from gsio.look.serve import Server, listen

FRAME = """\
<iframe id="{name}" src="{address}" style="width: 100%; height: {height}px; border: 0"
 allow="fullscreen; clipboard-write"></iframe>
<script>
  // The cookie of the page reaches a frame of the same host only: localhost and 127.0.0.1 are two.
  if (location.hostname === "127.0.0.1") {{
    const frame = document.getElementById("{name}");
    frame.src = frame.src.replace("//localhost:", "//127.0.0.1:");
  }}
</script>
"""
_pages: dict[tuple[Path, ...], "Page"] = {}


class Page:
    """The page of some outputs in a notebook, which shows it as the value of a cell.

    Attributes
    ----------
    url
        The address that opens the page in a tab of a browser on this machine.
    """

    def __init__(self, paths: tuple[Path, ...], height: int) -> None:
        self._paths, self._height = paths, height
        self._prefix = os.environ.get("JUPYTERHUB_SERVICE_PREFIX", "")
        # A hub decides who may ask, and passes requests on under its own name.
        self._server = Server(paths, listen(), any_name=bool(self._prefix)).__enter__()
        self.url = self._server.url

    def __enter__(self) -> "Page":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<gsio.view of {', '.join(path.name for path in self._paths)}>"

    def _repr_html_(self) -> str:
        """Return a frame with the page in it; jupyter-server-proxy passes requests on where there is a hub."""
        port, query = self._server.port, f"?token={self._server.token}"
        address = f"{self._prefix}proxy/{port}/{query}" if self._prefix else f"http://localhost:{port}/{query}"
        return FRAME.format(name=f"gsio-{port}", address=address, height=self._height)

    def close(self) -> None:
        """End the page."""
        if _pages.get(self._paths) is self:
            del _pages[self._paths]
        self._server.__exit__(None, None, None)


def view(*paths: Path | str, height: int = 720) -> Page:
    """Show outputs in a notebook, also while a run writes them: the value of a cell is a frame with the page in it.

    A thread serves the page on this machine until `close`, or the end of the process. The same outputs have one page.
    With a hub, jupyter-server-proxy is needed.

    Parameters
    ----------
    paths
        The outputs, which the page shows side by side.
    height
        The height of the frame in pixels.

    Raises
    ------
    DataError
        A path is no output, or not as gsio writes it.
    """
    found = tuple(Path(path).absolute() for path in paths)
    if found not in _pages:
        _pages[found] = Page(found, height)
    return _pages[found]
