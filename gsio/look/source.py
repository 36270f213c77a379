"""The outputs that a page shows: what is known of each at one moment, and the bytes of its chunks.

While a run writes an output, its journal says which frames are committed and where their chunks are, and HDF5 is not
opened. Once nobody writes the output, it is opened once for the places of its chunks. Every read after that is one of a
plain file, so that many threads can read at once. The result of a sweep in HDF5 is opened at each look, because its
metadata stay as they are while tasks write.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsio.codec import CODECS
from gsio.config import Config
from gsio.errors import DataError, GsioError, reason_of
from gsio.frames.content import Content, content_of
from gsio.frames.metadata import damaged_frames, frame_steps
from gsio.inputs import printable
from gsio.reader import Frames, open_stack
from gsio.reader.frames import ArrayLayout, Places
from gsio.run.plan import content_layout
from gsio.run.status import is_written, state_of
from gsio.sweep.members import Members
from gsio.sweep.pieces import runs_of
from gsio.sweep.plan import Plan, file_of, has_plan, read_plan
from gsio.writer.journal import Records, journal_of, read_journal
from gsio.writer.status_file import is_here, read_status

PROXY_SIDE = 480  # cells of the longest side of a proxy
GROUP = 16  # frames whose proxies travel together
WINDOW_CELLS = 4 << 20  # the most cells of a window
WHOLE_CELLS = 4096 * 4096  # a larger grid is shown by windows
IDENTITY = ("pid", "process_started", "host", "run")  # values of a status file that say nothing to a viewer
DAMAGED = OSError, RuntimeError, ValueError, LookupError, ArithmeticError  # errors of data that make no sense
GAP_SECONDS = 5.0  # a sweep counts as running that long after a run, because the next task can begin
FACTS = ("device", "backend", "started", "ended", "gsio_version")


@dataclass(frozen=True)
class Snapshot:
    """What is known of an output at one moment; each request is answered from one such value.

    Attributes
    ----------
    state
        "running", "complete", "stopped", "failed" or "killed"; of a sweep that no task has begun, "waiting".
    output_id
        The identity of the output, "group" for the page: it changes when another output takes the place of this one.
    identity
        The device and inode of the file or folder, which change when a file takes its place, as in a repair.
    frames
        Number of committed frames.
    fields
        The saved fields by name; they can be read by many threads at once.
    series
        Time, step and statistics by name, [frame] each.
    swept
        The members of the result of a sweep, each of which has frames of its own; `fields` then hold none.
    """

    state: str
    output_id: str
    identity: tuple[int, int]
    content: Content
    attributes: Mapping[str, Any]
    frames: int
    fields: dict[str, Frames]
    series: dict[str, NDArray[Any]]
    swept: Members | None = None

    def of(self, field: str, member: int) -> tuple[Frames, int]:
        """Return the frames of a field that have a member, and its place among the members there; raises as `chunk`."""
        return (self.fields[field], member) if self.swept is None else self.swept.of(field, member)

    def frames_of(self, member: int) -> int:
        """Return the number of committed frames of a member."""
        return self.frames if self.swept is None else int(self.swept.frames[member])

    @property
    def axes(self) -> list[dict[str, Any]]:
        """The axes along which members differ, as `Members.axes` has them."""
        if self.swept is not None:
            return self.swept.axes()
        (name, size), config, keys = (self.content.volume[0].name, self.shape[0]), self.config, {}
        if config is not None:
            keys = {"feed": config.model.feed, "kill": config.model.kill, "seed": config.initial.seed}
        many = {key: values for key, values in keys.items() if isinstance(values, tuple) and len(values) == size}
        return [{"name": name, "size": size, "keys": many}] if size > 1 else []

    @property
    def shape(self) -> tuple[int, int, int]:
        """Members, rows and columns of a frame."""
        members, rows, cols = self.content.volume
        return members.size if self.swept is None else self.swept.plan.count, rows.size, cols.size

    @property
    def config(self) -> Config | None:
        """The configuration of a run; None where no run made the output."""
        return Config.from_toml(self.attributes["config"]) if "config" in self.attributes else None

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
        field, config = next(iter(self.fields.values())), self.config
        members, rows, cols = self.shape
        return {
            "state": self.state,
            "frames": self.frames,
            "frames_total": max(config.run.frames if config and "selection" not in self.attributes else 0, self.frames),
            "fields": list(self.fields),
            "members": members,
            "rows": rows,
            "cols": cols,
            "dtype": str(field.dtype),
            "kind": field.dtype.newbyteorder("<").str,
            "steps_per_frame": config.run.steps_per_frame if config else None,
            "dt": config.model.dt if config else None,
            "interval": self.content.interval,
            "facts": self._facts(config),
            "damaged": damaged_frames(self.attributes),
            "chunk": {
                "frames": field.frames_per_chunk,
                "rows": field.lines_per_slab * (rows if field.ndim > 3 and members == 1 else 1),
                "slabs": field.slabs,
                "dtype": field.stored.newbyteorder("<").str,
                "scale": None if field.scale is None else float(field.scale),
                "layout": "planes" if CODECS[self.content.compression].byte_planes else "values",
            },
            "proxy": {"rows": self.proxy_shape[0], "cols": self.proxy_shape[1], "group": GROUP},
            "exact": "window" if rows * cols > WHOLE_CELLS or self.swept is not None else "chunk",
            "group": self.output_id,
            **(self.swept.describe() if self.swept is not None else {}),
        }

    def _facts(self, config: Config | None) -> list[tuple[str, str]]:
        axes = self.content.axes
        facts = [(" × ".join(axis.name for axis in axes), " × ".join(str(axis.size) for axis in axes))]
        if config is not None:
            model, grid = config.model, config.grid
            facts = [
                ("feed", _short(model.feed)),
                ("kill", _short(model.kill)),
                ("grid", f"{grid.rows} × {grid.cols}, {grid.boundary}"),
                ("stencil", model.stencil),
            ]
        facts += [("precision", self.content.precision), ("compression", self.content.compression)]
        return facts + [(name, str(self.attributes[name])) for name in FACTS if self.attributes.get(name)]


class Source:
    """One output, named on the command line, which can change, be replaced, vanish, or not exist yet."""

    def __init__(self, number: int, path: Path) -> None:
        self.number, self.path = number, path
        self.now: Snapshot | None = None
        self.progress: dict[str, Any] = {}
        self.is_computing = False  # whether a run on this machine writes the output
        self._mark: object = None
        self._session: object = None  # the journal and the process whose records these are
        self._records: Records | None = None
        self._plan: tuple[object, Plan] | None = None  # what marks its file, and the plan of a sweep
        self._ran = -math.inf  # when a run of a sweep went on

    def look(self) -> bool:
        """Look at the files again; return whether anything has changed. Only one thread calls this."""
        if has_plan(self.path):
            return self._look_at_sweep()
        status = read_status(self.path)
        written = is_written(self.path, status)
        mark = (_mark(self.path), _mark(journal_of(self.path)), written, status)
        if mark == self._mark:
            return False
        self._mark, self.progress, self.is_computing = mark, _progress(status), written and is_here(status)
        if _mark(self.path) is None:
            self.now = None
        elif written:
            self.now = self._from_journal("running", status) or self.now
        else:
            self.now = self._closed(status) or self.now
        return True

    def describe(self) -> dict[str, Any]:
        """Return the values that the page gets of this output."""
        now = self.now
        name = {"number": self.number, "name": printable(self.path.name or self.path.resolve().name)}
        return name | ({"state": "waiting", "frames": 0} if now is None else now.describe())

    def require(self) -> None:
        """Raise DataError, with the reason, if the output cannot be read."""
        if has_plan(self.path):
            Members(read_plan(self.path), self.path)
        else:
            from_stack(self.path)

    def _look_at_sweep(self) -> bool:
        try:
            runs = [(path, read_status(path)) for paths in runs_of(self.path).values() for path in paths]
            computing = [status for path, status in runs if is_written(path, status)]
            self.is_computing = any(map(is_here, computing))
            self._ran = time.monotonic() if computing else self._ran
            if self._plan is None or self._plan[0] != _mark(file_of(self.path)):
                self._plan = _mark(file_of(self.path)), read_plan(self.path)
            members = Members(self._plan[1], self.path)
            goes_on = time.monotonic() < self._ran + GAP_SECONDS
            state = members.state([status.get("state") for _, status in runs], goes_on=goes_on)
            mark: object = (self._plan[0], state, members.states.tobytes(), members.frames.tobytes())
            if mark != self._mark:
                self.now = from_members(members, state)
        except (GsioError, *DAMAGED):  # the plan or the result is damaged, or somebody deletes it
            mark, self.now, self.is_computing = None, None, False
        changed, self._mark, self.progress = mark != self._mark, mark, {}
        return changed

    def _closed(self, status: Mapping[str, Any]) -> Snapshot | None:
        """Return what is known of an output that nobody writes: where a kill tore HDF5, the journal knows it.

        A kill can also leave frames in the file that were not committed. The journal has only those that were.
        """
        try:
            now = from_stack(self.path)
        except DataError:
            state = str(status.get("state", "killed"))
            return self._from_journal("killed" if state == "running" else state, status)
        journal = self._from_journal(now.state, status)
        if journal is None or journal.output_id != now.output_id:
            return now
        return replace(now, frames=min(now.frames, journal.frames))

    def _from_journal(self, state: str, status: Mapping[str, Any]) -> Snapshot | None:
        """Return what the journal knows of the output, or None if there is none, or one of another output."""
        journal = _mark(journal_of(self.path))
        session = (journal and journal[:2], status.get("pid"), status.get("process_started"))
        kept = self._records if session == self._session else None
        try:
            self._records, self._session = _read(self.path, kept), session
            return None if self._records is None else from_journal(self.path, self._records, state)
        except (GsioError, *DAMAGED):  # one that is damaged, or not of gsio
            return None


def _read(path: Path, kept: Records | None) -> Records | None:
    """Return the records of a journal; the chunks of those in `kept` that are full do not change.

    The last of these is read again: a journal that lacks it was cut, and is read as a whole.
    """
    full = len(kept.frames) // kept.frames_per_chunk * kept.frames_per_chunk if kept is not None else 0
    first = max(0, full - 1)
    new = read_journal(path, first)
    if not full or kept is None or new is None:
        return new
    same = (kept.frames.dtype, kept.attributes, kept.frames_per_chunk)
    if same != (new.frames.dtype, new.attributes, new.frames_per_chunk) or set(new.frames["frame"][:1]) != {first}:
        return read_journal(path)
    return new._replace(frames=np.concatenate([kept.frames[:first], new.frames]))


def from_stack(path: Path) -> Snapshot:
    """Return what is known of an output that nobody writes; raises DataError if it cannot be read."""
    try:
        with open_stack(path) as stack:
            found = path.stat()
            return Snapshot(
                state=state_of(path, stack.attributes["status"]),
                output_id=stack.attributes.get("output_id") or f"{found.st_dev}-{found.st_ino}",
                identity=(found.st_dev, found.st_ino),
                content=stack.content,
                attributes=stack.attributes,
                frames=stack.frames,
                fields={name: frames.apart(path) for name, frames in stack.fields.items()},
                series={name: stack.series(name) for name in stack.recorded},
            )
    except (OSError, RuntimeError, ValueError, LookupError) as error:  # h5py raises any of them
        raise DataError(f"cannot read {path}: {reason_of(error)}; see 'gsio verify'") from None


def from_journal(path: Path, records: Records, state: str) -> Snapshot | None:
    """Return what `records` know of an output; None if the output has other chunks."""
    content, found = content_of(records.attributes), path.stat()
    identity = found.st_dev, found.st_ino
    if (fields := _fields(path, identity, content, records)) is None:
        return None
    names = [name for name in records.frames.dtype.names or () if name not in ("frame", "places", "checksum")]
    series = {name: records.frames[name] for name in names}
    output_id = str(records.attributes.get("output_id"))
    return Snapshot(state, output_id, identity, content, records.attributes, len(records.frames), fields, series)


def from_members(members: Members, state: str) -> Snapshot:
    """Return what is known of the result of a sweep."""
    config, found = members.plan.config, file_of(members.output).stat()
    steps = frame_steps(config, 0, config.run.frames)
    return Snapshot(
        state=state,
        output_id=f"{found.st_dev}-{found.st_ino}-{found.st_mtime_ns}",
        identity=(found.st_dev, found.st_ino),
        content=members.content,
        attributes={"config": config.to_toml()},
        frames=config.run.frames,
        fields=members.fields,
        series={"time": steps * config.model.dt, "step": steps},
        swept=members,
    )


def _fields(path: Path, identity: tuple[int, int], content: Content, records: Records) -> dict[str, Frames] | None:
    layout = content_layout(content, frames_per_chunk=records.frames_per_chunk, lines_per_chunk=records.lines_per_chunk)
    frame, chunks, count = layout.frame, layout.chunks, len(records.frames)
    places = records.frames["places"]
    if places.shape[1:] != (len(frame.fields), chunks.slabs) or chunks.frames_per_chunk != records.frames_per_chunk:
        return None
    fields = {}
    for name in frame.fields:
        array = ArrayLayout.of(name, content, layout, count)
        table = places[:: records.frames_per_chunk, frame.fields.index(name)]
        folder = path / name if path.is_dir() else None
        at = None if folder else Places(path, identity, table)
        fields[name] = Frames(array, count, folder, CODECS[content.compression], at)
    return fields


def window(now: Snapshot, field: str, member: int, frame: int, rows: range, cols: range) -> NDArray[Any]:
    """Return the values of a frame in some rows and columns, [row, col]; raises as `Frames.chunk`."""
    source, member = now.of(field, member)
    number, place = divmod(frame, source.frames_per_chunk)
    found = np.empty((len(rows), len(cols)), source.dtype)
    for first, piece in source.pieces(number, member, range(rows[0], rows[-1] + 1)):
        skipped = (rows.start - first) % rows.step
        part = piece[place, skipped :: rows.step, cols.start : cols.stop : cols.step]
        line = (first + skipped - rows.start) // rows.step
        found[line : line + len(part)] = part if source.scale is None else part * source.scale
    return found


def values_at(now: Snapshot, field: str, cell: tuple[int, int, int], number: int) -> tuple[range, list[Any]]:
    """Return the committed frames of chunk `number`, and their values in a `cell`, member, row and column.

    None stands for a value that is not finite, or cannot be read.
    """
    (member, row, col), each = cell, now.fields[field].frames_per_chunk
    frames = range(number * each, min((number + 1) * each, now.frames_of(member)))
    try:
        source, place = now.of(field, member)
        ((_, piece),) = source.pieces(number, place, range(row, row + 1))
    except (OSError, ValueError):
        return frames, [None] * len(frames)
    values = piece[: len(frames), 0, col]
    return frames, finite((values if source.scale is None else values * source.scale).tolist())


def finite(values: list[Any]) -> list[Any]:
    """Return values as JSON can hold them: None stands for those that are not finite."""
    return [value if abs(value) < math.inf else None for value in values]


def _mark(path: Path) -> tuple[int, ...] | None:
    """Return what changes whenever somebody writes a file, or the metadata of a Zarr folder; None if it is missing."""
    try:
        found = (path / "zarr.json" if path.is_dir() else path).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _progress(status: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a status file says of the progress of a run: numbers, words, and tables of numbers."""

    def plain(value: Any) -> bool:
        return value is None or isinstance(value, str) or (isinstance(value, int | float) and abs(value) < math.inf)

    return {
        name: value
        for name, value in status.items()
        if name not in IDENTITY and (all(map(plain, value.values())) if isinstance(value, dict) else plain(value))
    }


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(f"{number:g}" for number in value[:4]) + (", …" if len(value) > 4 else "")
    return f"{value:g}" if isinstance(value, int | float) else "a map"
