"""What others see of a run: `PATH.status.json`, replaced as a whole, and if asked for an endpoint for Prometheus."""

import datetime
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from gsio.errors import DataError, TakenError, UsageError
from gsio.files import publish, temporary_beside
from gsio.processes import started_at
from gsio.reader import Stack, open_stack
from gsio.reader.verify import LOOK_SECONDS, LOOKS
from gsio.run.progress import rates
from gsio.writer.journal import journal_of, read_journal
from gsio.writer.status_file import is_alive, is_status, read_status, status_of

if TYPE_CHECKING:
    from gsio.run.pipeline import Pipeline

STATUS_SECONDS = 1.0  # between two versions, at least
FOLLOW_SECONDS = 0.5
CONNECTIONS, CONNECTION_SECONDS = 8, 1.0  # to Prometheus at once, and how long each may take
REQUEST_BYTES = 8192

log = structlog.get_logger()


class Status:
    """The status file of one run; `update` it as often as is convenient.

    Where something else gets its name, that stays, and the rest of the run has no status.
    """

    def __init__(self, output: Path) -> None:
        self._path = status_of(output)
        self._written = 0.0
        self._taken = False

    def update(self, pipeline: "Pipeline", state: str = "running") -> None:
        """Replace the file if that is due, or the `state` is another one; a full disk is not its business."""
        if self._taken or (state == "running" and time.monotonic() - self._written < STATUS_SECONDS):
            return
        now = rates(pipeline)
        temporary = temporary_beside(self._path)
        text = (
            json.dumps(
                {
                    "state": state,
                    **structlog.contextvars.get_contextvars(),  # the id of the run
                    "frame": now.frames,
                    "frames": pipeline.config.run.frames,
                    **{key: value and round(value, 3) for key, value in now._asdict().items() if key != "frames"},
                    "pid": os.getpid(),
                    "process_started": started_at(os.getpid()),
                    "host": socket.gethostname(),
                    "updated": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                }
            )
            + "\n"
        )
        try:
            with temporary.open("x") as file:
                file.write(text)
            publish("--output", temporary, self._path, replaces=is_status)
        except (OSError, TakenError) as error:
            temporary.unlink(missing_ok=True)
            self._taken = isinstance(error, TakenError)
            if self._taken:
                log.warning(
                    f"'{self._path}' was taken by something else, which stays: the run goes on without a status"
                )
        self._written = time.monotonic()


def lines_of(output: Path) -> Iterator[str]:
    """Yield a line for the frames committed since the last, until the run of `output` has ended; opens no HDF5 file.

    Raises DataError if no run has left a status there.
    """
    shown = 0
    while True:
        status, records = read_status(output), read_journal(output, last=1)
        if not status:
            raise DataError(f"no run has left a whole '{status_of(output)}'; expected the output of 'gsio run'")
        running = status["state"] == "running" and is_alive(status)
        last = records.frames[-1] if records is not None and len(records.frames) else None
        if last is not None and last["frame"] >= shown:
            ranges = [
                f"{name.removeprefix('stats/').removesuffix('_min')} {last[name]:.4g} to {last[name[:-3] + 'max']:.4g}"
                for name in last.dtype.names
                if name.endswith("_min")
            ]
            shown = int(last["frame"]) + 1
            yield f"frame {shown} of {status['frames']}, step {last['step']}, {', '.join(ranges)}"
        if not running:
            state = "killed" if status["state"] == "running" else status["state"]
            yield f"{state} after {status['frame']} of {status['frames']} frames"
            return
        time.sleep(FOLLOW_SECONDS)


def state_of(output: Path, recorded: str) -> str:
    """Return what became of a run whose output has `recorded` it: a killed one could no longer say so."""
    status = read_status(output)
    if recorded != "running" or status.get("state") != "running":
        return recorded
    return "running" if is_alive(status) else "killed"


def is_written(output: Path) -> bool:
    """Return whether a run is writing an output now, or may be, on another machine."""
    status = read_status(output)
    return status.get("state") == "running" and is_alive(status) and journal_of(output).exists()


def open_committed(output: Path) -> Stack:
    """Open an output with its committed frames, as the journal has them where a run is writing it.

    HDF5 flushes several parts of a file one after the other; who opens it meanwhile can find some of them older than
    others, and looks again. Raises DataError if it is no output.
    """
    for look in range(LOOKS):
        records = read_journal(output, last=1) if is_written(output) else None
        if records is None:
            break
        committed = int(records.frames[-1]["frame"]) + 1 if len(records.frames) else 0
        with suppress(DataError, OSError, RuntimeError, LookupError, ValueError):
            stack = open_stack(output, committed)
            # Zarr tells readers of new frames once a second.
            known = records.attributes.get("output_id") == stack.attributes.get("output_id")
            if known and stack.attributes["status"] == "running" and (stack.frames == committed or output.is_dir()):
                return stack
            stack.close()
        time.sleep(LOOK_SECONDS * look)
    return open_stack(output)


@contextmanager
def metrics(port: int | None) -> "Iterator[Any]":
    """Give a function of a pipeline that shows its rates to Prometheus, at `port` of this machine alone, if any."""
    if port is None:
        yield lambda pipeline: None
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

    def show(pipeline: "Pipeline") -> None:
        for name, value in rates(pipeline)._asdict().items():
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
            yield show
        finally:
            ended.set()
            listener.shutdown(socket.SHUT_RDWR)  # wakes those that wait for a connection
            for thread in threads:
                if thread.ident is not None:  # it was started
                    thread.join()


def _serve(listener: socket.socket, answer: Callable[[], bytes], ended: threading.Event) -> None:
    """Answer one connection after another, whatever it asks for, until `ended`.

    So there are no more connections than threads that do this, and none holds one for longer than its time: what others
    connect to a run never costs it the descriptors that it needs for its files.
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
                part = connection.recv(REQUEST_BYTES)
                if not part or time.monotonic() > until:
                    break
                request += part
            else:
                connection.settimeout(CONNECTION_SECONDS)  # of all, not of each part
                connection.sendall(answer())
