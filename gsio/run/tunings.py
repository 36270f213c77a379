"""What gsio has measured for this user, in one file: tilings of jobs on a GPU, and the time to compile for a CPU."""

import json
from pathlib import Path
from typing import Any

from gsio.files import temporary_beside
from gsio.machine import cache_folder


def recall(name: str) -> Any:
    """Return the record kept under `name`, or None if there is none."""
    return _records().get(name)


def remember(name: str, record: Any) -> Path:
    """Keep `record` under `name` for every later run of this user; return the path of the file."""
    path = _path()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    with temporary.open("x") as file:
        file.write(json.dumps({**_records(), name: record}, indent=1))
    temporary.replace(path)
    return path


def _path() -> Path:
    return cache_folder() / "tilings.json"


def _records() -> dict[str, Any]:
    try:
        records = json.loads(_path().read_text())
    except (OSError, ValueError):  # The file does not exist or is damaged; solvers then use their estimate.
        return {}
    return records if isinstance(records, dict) else {}
