"""What others see of a run: `PATH.status.json`, replaced as a whole, and if asked for an endpoint for Prometheus."""

import datetime
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import structlog

from gsio.errors import DataError, UsageError
from gsio.inputs import parse_json, read_regular
from gsio.progress import rates
from gsio.writer.base import temporary_beside
from gsio.writer.journal import read_journal

if TYPE_CHECKING:
    from gsio.pipeline import Pipeline

STATUS_SECONDS = 1.0  # between two versions, at least
FOLLOW_SECONDS = 0.5
STATUS_NBYTES = 64 << 10  # at most
KINDS = {"state": str, "frame": int, "frames": int, "pid": int, "host": str}  # of what others rely on


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
    """Return what the status file of an output says, or nothing if there is none, or no whole one."""
    try:
        found = parse_json(read_regular(status_of(output), STATUS_NBYTES))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    found = {"frame": 0, "frames": 0} | found
    whole = all(isinstance(found.get(name), kind) for name, kind in KINDS.items())
    return found if whole and 0 < found["pid"] < 2**31 else {}


def lines_of(output: Path) -> Iterator[str]:
    """Yield a line for the frames committed since the last, until the run of `output` has ended; opens no HDF5 file.

    Raises DataError if no run has left a status there.
    """
    shown = 0
    while True:
        status, records = read_status(output), read_journal(output, last=1)
        if not status:
            raise DataError(f"no run has left a whole '{status_of(output)}'; expected the output of 'gsio run'")
        running = status["state"] == "running" and _is_alive(status)
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


def _is_alive(status: dict[str, Any]) -> bool:
    """Return whether the process of a run is there; of one on another machine nobody knows, so it is taken for so."""
    return bool(status["host"] != socket.gethostname() or psutil.pid_exists(status["pid"]))


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
