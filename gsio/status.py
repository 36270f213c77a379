"""What others see of a run: `PATH.status.json`, replaced as a whole, and if asked for an endpoint for Prometheus."""

import datetime
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from gsio.errors import DataError, UsageError
from gsio.processes import exists, started_at
from gsio.progress import rates
from gsio.reader import Stack, open_stack
from gsio.writer.base import temporary_beside
from gsio.writer.journal import journal_of, read_journal

if TYPE_CHECKING:
    from gsio.pipeline import Pipeline

STATUS_SECONDS = 1.0  # between two versions, at least
FOLLOW_SECONDS = 0.5
LOOKS, LOOK_SECONDS = 5, 0.1  # at a file that is being written, and between two of them so much more each time


class Status:
    """The status file of one run; `update` it as often as is convenient."""

    def __init__(self, output: Path) -> None:
        self._path = status_of(output)
        self._written = 0.0

    def update(self, pipeline: "Pipeline", state: str = "running") -> None:
        """Replace the file if that is due, or the `state` is another one; a full disk is not its business."""
        if state == "running" and time.monotonic() - self._written < STATUS_SECONDS:
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
            temporary.write_text(text)
            temporary.replace(self._path)
        except OSError:
            temporary.unlink(missing_ok=True)
        self._written = time.monotonic()


def status_of(output: Path) -> Path:
    """Return the path of the status file of an output."""
    return Path(f"{output}.status.json")


def read_status(output: Path) -> dict[str, Any]:
    """Return what the status file of an output says, or nothing if there is none."""
    try:
        found = json.loads(status_of(output).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def lines_of(output: Path) -> Iterator[str]:
    """Yield a line for the frames committed since the last, until the run of `output` has ended; opens no HDF5 file.

    Raises DataError if no run has left a status there.
    """
    shown = 0
    while True:
        status, records = read_status(output), read_journal(output, last=1)
        if not status:
            raise DataError(f"no run has left '{status_of(output)}'; expected the output of 'gsio run'")
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


def is_alive(status: dict[str, Any]) -> bool:
    """Return whether the process of a run is there; of one on another machine nobody knows, so it is taken for so."""
    if not is_here(status):
        return True
    pid, started = status.get("pid"), status.get("process_started")
    return isinstance(pid, int) and exists(pid) and started in (None, started_at(pid))


def is_here(status: dict[str, Any]) -> bool:
    """Return whether the run of a status file was, or is, on this machine."""
    return bool(status.get("host") == socket.gethostname())


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
            if stack.attributes["status"] == "running" and (stack.frames == committed or output.is_dir()):
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
    try:
        from prometheus_client import CollectorRegistry, Gauge, start_http_server
    except ImportError:
        raise UsageError("--metrics-port needs prometheus-client; get it with: pip install 'gsio[metrics]'") from None
    registry = CollectorRegistry()
    gauges: dict[str, Any] = {}
    try:
        server, thread = start_http_server(port, addr="127.0.0.1", registry=registry)
    except OSError as error:
        raise UsageError(f"--metrics-port: {port} cannot be used: {error.strerror}; choose another") from None

    def show(pipeline: "Pipeline") -> None:
        for name, value in rates(pipeline)._asdict().items():
            if name not in gauges:
                gauges[name] = Gauge(f"gsio_{name}", name.replace("_", " "), registry=registry)
            gauges[name].set(float("nan") if value is None else value)

    try:
        yield show
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
