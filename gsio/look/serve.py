"""The server of the page: a socket of this machine, a token, and hypercorn in a nursery of trio."""

import secrets
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import trio

from gsio.look.app import App
from gsio.look.live import Live
from gsio.look.source import Source

HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})
IDLE_SECONDS = 15.0


def listen(host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    """Return a listening socket; port 0 is a free one."""
    found = socket.create_server((host, port), backlog=64)
    found.setblocking(False)
    return found


class Server:
    """The page of some outputs at one socket."""

    def __init__(self, paths: Sequence[Path], sock: socket.socket, hosts: frozenset[str] = HOSTS) -> None:
        self._socket = sock
        self.port: int = sock.getsockname()[1]
        self.token = secrets.token_urlsafe(24)
        self.sources = [Source(number, path) for number, path in enumerate(paths)]
        self._live = Live(self.sources)
        self.app = App(self.sources, self._live, self.token, self.port, hosts)

    @property
    def url(self) -> str:
        """The address that opens the page."""
        return f"http://127.0.0.1:{self.port}/?token={self.token}"

    async def run(self, ready: Callable[[], object] = lambda: None) -> None:
        """Serve until cancelled; `ready` is called when requests are answered."""
        from hypercorn.config import Config
        from hypercorn.trio import serve

        config = Config()
        config.bind = [f"fd://{self._socket.fileno()}"]
        config.errorlog = None
        config.keep_alive_timeout = IDLE_SECONDS
        config.include_server_header = False
        for source in self.sources:
            await trio.to_thread.run_sync(source.look)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._live.watch)
            await nursery.start(lambda task_status: serve(self.app, config, task_status=task_status, mode="asgi"))
            ready()
