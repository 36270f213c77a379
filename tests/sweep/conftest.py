"""Small sweeps for the tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_sweeps import NOISE, SHARED

PLANE = """
[sweep]
batch = 3
model.feed = { from = 0.02, to = 0.05, count = 4 }
model.kill = { values = [0.05, 0.06] }
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Return a function from the text of a table [sweep] to the file of a small sweep."""

    def write(text: str = PLANE, shared: str = SHARED + NOISE, name: str = "sweep.toml") -> Path:
        path = tmp_path / name
        path.write_text(shared + text)
        return path

    return write


@pytest.fixture
def bytes_of() -> Callable[[Path], Any]:
    """Return a function from a file or folder to all that it holds, by name."""

    def bytes_of(path: Path) -> Any:
        if path.is_file():
            return path.read_bytes()
        return {
            str(found.relative_to(path)): found.read_bytes() for found in sorted(path.rglob("*")) if found.is_file()
        }

    return bytes_of
