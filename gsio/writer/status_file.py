"""The status file of a run, `PATH.status.json`: its name, its contents, and whether its run is alive."""

import socket
from pathlib import Path
from typing import Any

from gsio.inputs import parse_json, read_regular
from gsio.processes import exists, started_at

MAX_STATUS_NBYTES = 64 << 10
KINDS = {"state": str, "frame": int, "frames": int, "pid": int, "host": str}  # types of the values that readers use


def status_of(output: Path) -> Path:
    """Return the path of the status file of an output."""
    return Path(f"{output}.status.json")


def is_status(path: Path) -> bool:
    """Return whether `path` is the status of a run, or an empty file, which a power cut can leave."""
    try:
        text = read_regular(path, MAX_STATUS_NBYTES, follow=False)
        return not text or {"state", "pid", "host"} <= parse_json(text).keys()
    except (OSError, ValueError, AttributeError):
        return False


def read_status(output: Path) -> dict[str, Any]:
    """Return the values of the status file of an output; {} if it does not exist or is damaged."""
    try:
        found = parse_json(read_regular(status_of(output), MAX_STATUS_NBYTES, follow=False))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    found = {"frame": 0, "frames": 0} | found
    whole = all(isinstance(found.get(name), kind) for name, kind in KINDS.items())
    return found if whole and 0 < found["pid"] < 2**31 else {}


def is_alive(status: dict[str, Any]) -> bool:
    """Return whether the process of a run exists; a run on another machine counts as alive, because nobody knows."""
    if not is_here(status):
        return True
    pid, started = status.get("pid"), status.get("process_started")
    return isinstance(pid, int) and exists(pid) and started in (None, started_at(pid))


def is_here(status: dict[str, Any]) -> bool:
    """Return whether the run of a status file is, or was, on this machine."""
    return bool(status.get("host") == socket.gethostname())
