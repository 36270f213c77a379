"""The throughput of a run for Prometheus, at an endpoint that the run itself serves."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from gsio.errors import UsageError
from gsio.run.progress import Observe, Progress

CONNECTIONS, CONNECTION_SECONDS = 8, 1.0  # connections at once, and how long each may take
REQUEST_BYTES = 8192


@contextmanager
def metrics(port: int | None) -> Iterator[Observe]:
    """Observe a run: show its throughput to Prometheus, at `port` of this machine alone; None: do nothing."""
    if port is None:
        yield lambda progress: None
        return
    if not 0 < port < 65536:
        raise UsageError(f"--metrics-port: expected 1 to 65535, got {port}")
    try:
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
    except ImportError:
        raise UsageError("--metrics-port needs prometheus-client; get it with: pip install 'gsio[metrics]'") from None
    registry = CollectorRegistry()
    gauges: dict[str, Any] = {}
    try:
        listener = socket.create_server(("127.0.0.1", port), backlog=2 * CONNECTIONS)
    except OSError as error:
        raise UsageError(f"--metrics-port: {port} cannot be used: {error.strerror}; choose another") from None

    def observe(progress: Progress) -> None:
        for name, value in progress.throughput._asdict().items():
            if name not in gauges:
                gauges[name] = Gauge(f"gsio_{name}", name.replace("_", " "), registry=registry)
            gauges[name].set(float("nan") if value is None else value)

    def answer() -> bytes:
        page = generate_latest(registry)
        head = f"HTTP/1.0 200 OK\r\nContent-Type: {CONTENT_TYPE_LATEST}\r\nContent-Length: {len(page)}\r\n\r\n"
        return head.encode() + page

    ended = threading.Event()
    threads = [threading.Thread(target=_serve, args=(listener, answer, ended), daemon=True) for _ in range(CONNECTIONS)]
    with listener:
        try:
            for thread in threads:
                thread.start()
            yield observe
        finally:
            ended.set()
            listener.shutdown(socket.SHUT_RDWR)  # wakes the threads that wait for a connection
            for thread in threads:
                if thread.ident is not None:  # it was started
                    thread.join()


def _serve(listener: socket.socket, answer: Callable[[], bytes], ended: threading.Event) -> None:
    """Answer one connection after another, whatever it asks for, until `ended`.

    Each thread that does this has one connection at most, and for a limited time: other programs that connect never
    take the file descriptors that the run needs.
    """
    while not ended.is_set():
        try:
            connection, _ = listener.accept()
        except OSError:  # shut down, or a connection that was gone at once, or no descriptor is free
            ended.wait(0.1)
            continue
        with connection, suppress(OSError):
            until, request = time.monotonic() + CONNECTION_SECONDS, b""
            while b"\r\n\r\n" not in request and len(request) < REQUEST_BYTES:
                connection.settimeout(max(0.001, until - time.monotonic()))
                received = connection.recv(REQUEST_BYTES)
                if not received or time.monotonic() > until:
                    break
                request += received
            else:
                connection.settimeout(CONNECTION_SECONDS)  # for the whole answer
                connection.sendall(answer())
