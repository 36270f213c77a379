"""The server of the page: a socket, a token, and hypercorn in a thread of its own."""

import ipaddress
import secrets
import socket
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import trio

from gsio.errors import UsageError
from gsio.look.app import App
from gsio.look.live import Live
from gsio.look.proxies import Proxies
from gsio.look.source import Source
from gsio.machine import usable_cores

HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})  # the names of this machine for itself
IDLE_SECONDS = 15.0  # a connection without a request, or whose client takes no bytes, is closed after that
PIECE = 64 << 10  # bytes that a client takes in that time
CONNECTIONS = 64
END_SECONDS = 2.0  # the time that a server waits for its connections to end
ANY = ("0.0.0.0", "::")


def is_here(host: str) -> bool:
    """Return whether an address is one that only this machine can reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    """Return a listening socket; port 0 is a free one. Raises UsageError if the port or the address cannot be used."""
    if not 0 <= port <= 65535:
        raise UsageError(f"--port: expected 0 to 65535, got {port}")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=64)
    except OSError as error:
        where = f"--port: {port}" if is_here(host) else f"--host, --port: {host}, {port}"
        raise UsageError(f"{where} cannot be used: {error.strerror}; choose another") from None


class Server:
    """The page of some outputs; a context manager that serves it.

    Parameters
    ----------
    paths
        The outputs, in the order in which the page shows them.
    sock
        The listening socket, which the server closes.
    names
        More names under which the page may be asked for, besides those of this machine for itself.
    any_name
        Whether every name is one of them.
    wait
        Whether outputs that cannot be read yet are waited for; else DataError is raised.

    Attributes
    ----------
    url
        The address that opens the page, with the token.
    opened
        Is set when somebody has opened that address.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        sock: socket.socket,
        names: Iterable[str] = (),
        *,
        any_name: bool = False,
        wait: bool = False,
    ) -> None:
        self.sources = [Source(number, path) for number, path in enumerate(paths)]
        self._socket = sock
        try:
            for source in self.sources:
                source.look()
                if source.now is None and not wait:
                    source.require()
        except BaseException:
            sock.close()
            raise
        host, self.port = sock.getsockname()[:2]
        self.token = secrets.token_urlsafe(24)
        shown = f"[{host}]" if ":" in host else host
        if host in ANY:
            shown = socket.gethostname()
        self.url = f"http://{shown}:{self.port}/?token={self.token}"
        self._proxies = Proxies(lambda: any(source.is_computing for source in self.sources))
        self._live = Live(self.sources, self._proxies)
        hosts = None if any_name else HOSTS | {shown.lower(), *(name.lower() for name in names)}
        self.opened = threading.Event()
        self._app = App(self.sources, self._live, self._proxies, self.token, self.port, hosts, self.opened.set)
        self._ready, self._ended = threading.Event(), threading.Event()
        self._cancel: Callable[[], object] = lambda: None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> "Server":
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            raise self._error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._proxies.stop()
        with suppress(trio.RunFinishedError):
            self._cancel()
        self._thread.join(END_SECONDS)  # a slow disk can hold it; the thread ends with the process

    def wait(self) -> None:
        """Wait until the server has failed, and raise its error; a signal can end this before."""
        self._ended.wait()
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            trio.run(self._serve)
        except BaseException as error:
            self._error = error
        finally:
            self._proxies.stop()
            self._ended.set()
            self._ready.set()

    async def _serve(self) -> None:
        ahead = [
            threading.Thread(target=self._proxies.work_ahead, daemon=True)
            for _ in range(max(1, min(4, usable_cores() // 2)))
        ]
        for thread in ahead:
            thread.start()
        self._socket.setblocking(False)
        listener = _Bounded(trio.SocketListener(trio.socket.from_stdlib_socket(self._socket)))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._live.watch)
            await nursery.start(trio.serve_listeners, partial(listener.answer, _protocol(self._app)), [listener])
            self._cancel = partial(trio.lowlevel.current_trio_token().run_sync_soon, nursery.cancel_scope.cancel)
            self._ready.set()


class _Bounded(trio.abc.Listener[trio.SocketStream]):
    """A listener that has `CONNECTIONS` connections at most; others wait."""

    def __init__(self, listener: trio.SocketListener) -> None:
        self._listener, self._free = listener, trio.Semaphore(CONNECTIONS)

    async def accept(self) -> trio.SocketStream:
        """Wait for the next connection, and for room for it."""
        await self._free.acquire()
        try:
            return await self._listener.accept()
        except BaseException:
            self._free.release()
            raise

    async def answer(self, protocol: Callable[[Any], Awaitable[None]], stream: trio.SocketStream) -> None:
        """Speak a protocol on a connection; an error of one connection, which strangers can cause, ends no other."""
        try:
            with suppress(Exception):
                await protocol(stream)
        finally:
            self._free.release()

    async def aclose(self) -> None:
        """Close the socket."""
        await self._listener.aclose()


def _protocol(app: Any) -> Callable[[Any], Awaitable[None]]:
    """Return the function by which hypercorn speaks HTTP on a connection.

    `hypercorn.trio.serve` has no bound on connections, and ends the whole server where one of them breaks the protocol
    in some ways.
    """
    from hypercorn.config import Config
    from hypercorn.events import RawData
    from hypercorn.trio.tcp_server import TCPServer
    from hypercorn.trio.worker_context import WorkerContext
    from hypercorn.typing import ConnectionState, LifespanState
    from hypercorn.utils import wrap_app

    config, context, state = Config(), WorkerContext(None), LifespanState()
    config.errorlog = None
    config.keep_alive_timeout = IDLE_SECONDS
    config.include_server_header = False
    wrapped = wrap_app(app, 0, "asgi")

    class Connection(TCPServer):
        """A connection that ends when either side has closed it, or the client takes nothing for `IDLE_SECONDS`."""

        async def run(self) -> None:
            with trio.CancelScope() as self.whole:
                await super().run()

        async def protocol_send(self, event: Any) -> None:
            if not isinstance(event, RawData):
                await super().protocol_send(event)
                return
            try:
                async with self.send_lock:
                    for start in range(0, len(event.data), PIECE):
                        with trio.fail_after(IDLE_SECONDS):
                            await self.stream.send_all(event.data[start : start + PIECE])
            except (trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError):
                self.whole.cancel()  # the part that reads can wait for the part that sends

        async def _read_data(self) -> None:
            # Within HTTP/2, to which the outer protocol can change, a client can make an answer wait for ever.
            self.protocol: Any = self.protocol.protocol
            await super()._read_data()
            await self.idle_task.stop()

    async def speak(stream: Any) -> None:
        await Connection(wrapped, config, context, ConnectionState(state), stream)

    return speak
