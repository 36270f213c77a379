"""The status file of a run, `PATH.status.json`: its name, what it has to say, and whether its run is alive."""

import socket
from pathlib import Path
from typing import Any

from gsio.inputs import parse_json, read_regular
from gsio.processes import exists, started_at

STATUS_NBYTES = 64 << 10  # at most
KINDS = {"state": str, "frame": int, "frames": int, "pid": int, "host": str}  # of what others rely on


def status_of(output: Path) -> Path:
    """Return the path of the status file of an output."""
    return Path(f"{output}.status.json")


def is_status(path: Path) -> bool:
    """Return whether `path` is the status of a run, or empty, as a power cut can leave one."""
    try:
        text = read_regular(path, STATUS_NBYTES, follow=False)
        return not text or {"state", "pid", "host"} <= parse_json(text).keys()
    except (OSError, ValueError, AttributeError):
        return False


def read_status(output: Path) -> dict[str, Any]:
    """Return what the status file of an output says, or nothing if there is none, or no whole one."""
    try:
        found = parse_json(read_regular(status_of(output), STATUS_NBYTES, follow=False))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    found = {"frame": 0, "frames": 0} | found
    whole = all(isinstance(found.get(name), kind) for name, kind in KINDS.items())
    return found if whole and 0 < found["pid"] < 2**31 else {}


def is_alive(status: dict[str, Any]) -> bool:
    """Return whether the process of a run is there; of one on another machine nobody knows, so it is taken for so."""
    if not is_here(status):
        return True
    pid, started = status.get("pid"), status.get("process_started")
    return isinstance(pid, int) and exists(pid) and started in (None, started_at(pid))


def is_here(status: dict[str, Any]) -> bool:
    """Return whether the run of a status file was, or is, on this machine."""
    return bool(status.get("host") == socket.gethostname())
