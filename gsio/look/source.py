"""The outputs that a page shows: what is known of each at one moment, and the bytes of its chunks.

While a run writes an output, its journal says which frames are committed and where their chunks are, and HDF5 is not
opened. Once nobody writes the output, it is opened once for the places of its chunks. Every read after that is one of a
plain file, so that many threads can read at once.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsio.codec import CODECS
from gsio.config import Config
from gsio.errors import DataError
from gsio.frames.metadata import DAMAGED, field_attributes
from gsio.reader import Frames, open_stack
from gsio.reader.frames import ArrayLayout, Places
from gsio.run.plan import layout_of
from gsio.run.status import is_written, state_of
from gsio.writer.journal import Records, journal_of, read_journal
from gsio.writer.status_file import is_alive, read_status

PROXY_SIDE = 480  # cells of the longest side of a proxy
GROUP = 16  # frames whose proxies travel together
WINDOW_CELLS = 4 << 20  # the most cells of a window
WHOLE_CELLS = 4096 * 4096  # a larger grid is shown by windows
FACTS = ("device", "backend", "started", "ended", "gsio_version")


@dataclass(frozen=True)
class Snapshot:
    """What is known of an output at one moment; each request is answered from one such value.

    Attributes
    ----------
    state
        "running", "complete", "stopped", "failed" or "killed".
    group
        The identity of the output: it changes when another output takes the place of this one.
    frames
        Number of committed frames.
    fields
        The saved fields by name, v first; they can be read by many threads at once.
    series
        Time, step and statistics by name, [frame] each.
    """

    state: str
    group: str
    config: Config
    attributes: Mapping[str, Any]
    frames: int
    fields: dict[str, Frames]
    series: dict[str, NDArray[Any]]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Members, rows and columns of a frame."""
        shape = next(iter(self.fields.values())).shape
        return (shape[1] if len(shape) > 3 else 1, shape[-2], shape[-1])

    @property
    def factor(self) -> int:
        """Cells of the grid along each side of a cell of a proxy."""
        return -(-max(self.shape[1:]) // PROXY_SIDE)

    @property
    def proxy_shape(self) -> tuple[int, int]:
        """Rows and columns of a proxy."""
        _, rows, cols = self.shape
        return -(-rows // self.factor), -(-cols // self.factor)

    def describe(self) -> dict[str, Any]:
        """Return the values that the page gets of an output, without its number and name."""
        field, run, model = next(iter(self.fields.values())), self.config.run, self.config.model
        members, rows, cols = self.shape
        return {
            "state": self.state,
            "frames": self.frames,
            "frames_total": self.frames if "selection" in self.attributes else max(run.frames, self.frames),
            "fields": list(self.fields),
            "members": members,
            "rows": rows,
            "cols": cols,
            "dtype": str(field.dtype),
            "steps_per_frame": run.steps_per_frame,
            "dt": model.dt,
            "facts": self._facts(),
            "damaged": self.attributes.get(DAMAGED, []),
            "chunk": {
                "frames": field.frames_per_chunk,
                "rows": field.lines_per_chunk,
                "slabs": field.slabs,
                "dtype": field.stored.newbyteorder("<").str,
                "scale": field.scale,
                "layout": "planes" if CODECS[self.config.output.compression].byte_planes else "values",
            },
            "proxy": {"rows": self.proxy_shape[0], "cols": self.proxy_shape[1], "group": GROUP},
            "exact": "window" if rows * cols > WHOLE_CELLS else "chunk",
            "group": self.group,
        }

    def _facts(self) -> list[tuple[str, str]]:
        model, grid = self.config.model, self.config.grid
        facts = [
            ("feed", _short(model.feed)),
            ("kill", _short(model.kill)),
            ("grid", f"{grid.rows} × {grid.cols}, {grid.boundary}"),
            ("stencil", model.stencil),
            ("precision", model.precision),
            ("compression", self.config.output.compression),
        ]
        return facts + [(name, str(self.attributes[name])) for name in FACTS if self.attributes.get(name)]


class Source:
    """One output, named on the command line, which can change, be replaced, vanish, or not exist yet."""

    def __init__(self, number: int, path: Path) -> None:
        self.number, self.path = number, path
        self.now: Snapshot | None = None
        self.progress: dict[str, Any] = {}
        self._mark: object = None

    def look(self) -> bool:
        """Look at the files again; return whether anything has changed. Only one thread calls this."""
        status = read_status(self.path)
        written = is_written(self.path)
        mark = (_mark(self.path), _mark(journal_of(self.path)), written, status)
        if mark == self._mark:
            return False
        self._mark, self.progress = mark, status
        if _mark(self.path) is None:
            self.now = None
        elif written:
            self.now = from_journal(self.path, "running") or self.now
        else:
            self.now = _closed(self.path, status) or self.now
        return True

    def describe(self) -> dict[str, Any]:
        """Return the values that the page gets of this output."""
        now = self.now
        name = {"number": self.number, "name": self.path.name}
        return name | ({"state": "waiting", "frames": 0} if now is None else now.describe())


def _closed(path: Path, status: Mapping[str, Any]) -> Snapshot | None:
    """Return what is known of an output that nobody writes; a kill can tear HDF5's metadata, and the journal stays."""
    try:
        return from_stack(path)
    except DataError:
        state = str(status.get("state", "killed"))
        return from_journal(path, "killed" if state == "running" and not is_alive(dict(status)) else state)


def from_stack(path: Path) -> Snapshot:
    """Return what is known of an output that nobody writes; raises DataError if it cannot be read."""
    found = path.stat()
    with open_stack(path) as stack:
        series = {name: stack.series(name) for name in stack.recorded}
        return Snapshot(
            state=state_of(path, stack.attributes["status"]),
            group=stack.attributes.get("output_id") or f"{found.st_dev}-{found.st_ino}",
            config=stack.config,
            attributes=stack.attributes,
            frames=stack.frames,
            fields={name: frames.apart(path) for name, frames in stack.fields.items()},
            series=series,
        )


def from_journal(path: Path, state: str) -> Snapshot | None:
    """Return what the journal knows of an output; None if there is none, or it does not belong to such an output."""
    try:
        records = read_journal(path)
        found = path.stat()
        if records is None:
            return None
        config = Config.from_toml(records.attributes["config"])
    except (DataError, OSError):
        return None
    fields = _fields(path, found, config, records)
    if fields is None:
        return None
    series = {
        name: records.frames[name]
        for name in records.frames.dtype.names or ()
        if name not in ("frame", "places", "checksum")
    }
    return Snapshot(
        state, str(records.attributes.get("output_id")), config, records.attributes, len(records.frames), fields, series
    )


def _fields(path: Path, found: os.stat_result, config: Config, records: Records) -> dict[str, Frames] | None:
    layout = layout_of(config, frames_per_chunk=records.frames_per_chunk)
    frame, chunks, count = layout.frame, layout.chunks, len(records.frames)
    places = records.frames["places"]
    if places.shape[1:] != (len(frame.fields), chunks.slabs) or chunks.frames_per_chunk != records.frames_per_chunk:
        return None
    shards = (chunks.frames_per_shard, *chunks.chunk_shape[1:]) if chunks.frames_per_shard else None
    fields = {}
    for name in sorted(frame.fields, reverse=True):  # v first
        array = ArrayLayout(
            (count, *frame.shape), chunks.chunk_shape, frame.dtype, field_attributes(name, layout), shards
        )
        table = places[:: records.frames_per_chunk, frame.fields.index(name)]
        folder = path / name if path.is_dir() else None
        at = None if folder else Places(path, (found.st_dev, found.st_ino), table)
        fields[name] = Frames(array, count, folder, CODECS[config.output.compression], at)
    return fields


def _mark(path: Path) -> tuple[int, ...] | None:
    """Return what changes whenever somebody writes a file, or the metadata of a Zarr folder; None if it is missing."""
    try:
        found = (path / "zarr.json" if path.is_dir() else path).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(f"{number:g}" for number in value[:4]) + (", …" if len(value) > 4 else "")
    return f"{value:g}" if isinstance(value, int | float) else "a map"
