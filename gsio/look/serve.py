"""The server of the page: a socket of this machine, a token, and hypercorn in a nursery of trio."""

import secrets
import socket
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import trio

from gsio.look.app import App
from gsio.look.live import Live
from gsio.look.proxies import Proxies
from gsio.look.source import Source
from gsio.machine import usable_cores

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
        self._proxies = Proxies(lambda: any(source.is_computing for source in self.sources))
        self._live = Live(self.sources, self._proxies)
        self.app = App(self.sources, self._live, self._proxies, self.token, self.port, hosts)

    @property
    def url(self) -> str:
        """The address that opens the page."""
        return f"http://127.0.0.1:{self.port}/?token={self.token}"

    async def run(self, ready: Callable[[], object] = lambda: None) -> None:
        """Serve until cancelled; `ready` is called when requests are answered."""
        from hypercorn.config import Config
        from hypercorn.trio import serve

        config = Config()
        config.bind = [f"fd://{self._socket.detach()}"]
        config.errorlog = None
        config.keep_alive_timeout = IDLE_SECONDS
        config.include_server_header = False
        for source in self.sources:
            await trio.to_thread.run_sync(source.look)
        ahead = [
            Thread(target=self._proxies.work_ahead, daemon=True) for _ in range(max(1, min(4, usable_cores() // 2)))
        ]
        for thread in ahead:
            thread.start()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._live.watch)
                app: Any = self.app
                await nursery.start(partial(serve, app, config, mode="asgi"))
                ready()
        finally:
            self._proxies.stop()
            for thread in ahead:
                thread.join()
