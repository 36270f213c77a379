"""The journal of a run, beside its output: a record of each committed frame, whatever becomes of the file.

From it a file whose own metadata are torn is rebuilt, and a watcher sees how far a run is without opening the file. Its
first line is JSON: what the output is, and what a record holds. All records have one size, and each ends with a
checksum, so that a torn one is seen. Whoever writes an output holds the lock of its journal; a killed process lets go.
"""

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from gsio.errors import UsageError
from gsio.inputs import METADATA_NBYTES, open_regular, parse_json
from gsio.staging import FrameLayout
from gsio.writer.base import temporary_beside, write

PLACE = np.dtype([("offset", "<u8"), ("nbytes", "<u8")])  # of the chunk that holds a frame; both 0 where it is a file

MOST_PARTS = 1 << 20  # slabs of a frame, or frames of a chunk
RANGE = ("min", "max")


class Records(NamedTuple):
    """What a journal holds: the attributes of the output, and [frame] what is recorded of each, by name."""

    attributes: dict[str, Any]
    frames_per_chunk: int
    frames: NDArray[np.void]


class Journal:
    """The journal of one output, locked; a context manager that unlocks it.

    Raises UsageError if another process has it, and OSError where storage fails.
    """

    def __init__(self, output: Path) -> None:
        self._output = output
        self.path = journal_of(output)
        self._record = np.dtype([])
        while True:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self.path.exists() and os.path.samestat(os.fstat(self._fd), self.path.stat()):
                    return
            except BlockingIOError:
                raise UsageError(
                    f"--output: another run writes '{output}'{_who(output)}; wait for it, or choose another"
                ) from None
            os.close(self._fd)  # the one who had it has just removed it

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if os.fstat(self._fd).st_size == 0:
            self.remove()
        os.close(self._fd)

    def begin(self, attributes: Mapping[str, Any], series: Mapping[str, NDArray[Any]], layout: FrameLayout) -> None:
        """Make it that of a new output, of whose frames `series` are recorded."""
        head = {
            "attributes": dict(attributes),
            "series": {name: values.dtype.str for name, values in series.items()},
            "fields": layout.fields,
            "slabs": layout.slabs,
            "frames_per_chunk": layout.frames_per_chunk,
        }
        self._record = _record_of(head)
        temporary = temporary_beside(self._output)
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            write(fd, json.dumps(head).encode() + b"\n")
            os.fsync(fd)
            temporary.replace(self.path)  # locked all the time; until then the journal is what it was
        except BaseException:
            os.close(fd)
            temporary.unlink(missing_ok=True)
            raise
        os.close(self._fd)
        self._fd = fd

    def resume(self, frames: int, places: NDArray[np.void]) -> bool:
        """Forget what lies past so many frames, and return whether it holds them all, in `places` [frame, field, slab].

        After a repair that was killed it is still that of the file before, and has them elsewhere.
        """
        try:
            _, nbytes, records = _read(self.path)
        except (ValueError, LookupError, TypeError):  # new
            return False
        if len(records) < frames or not np.array_equal(records["places"][:frames], places):
            return False
        self._record = records.dtype
        os.ftruncate(self._fd, nbytes + frames * self._record.itemsize)
        os.lseek(self._fd, 0, os.SEEK_END)
        return True

    def append(self, first: int, series: Mapping[str, NDArray[Any]], places: NDArray[np.void]) -> None:
        """Record the frames from `first` on: their `series`, each [frame], and `places`, [frame, field, slab]."""
        records = np.zeros(len(places), self._record)
        records["frame"] = np.arange(first, first + len(places))
        for name, values in series.items():
            records[name] = values
        records["places"] = places
        raw = records.view(np.uint8).reshape(len(places), self._record.itemsize)
        records["checksum"] = [crc32c(record[:-4].data) for record in raw]
        write(self._fd, records.tobytes())

    def sync(self) -> None:
        """Wait until the disk has it."""
        os.fsync(self._fd)

    def remove(self) -> None:
        """Delete it: the output is complete."""
        self.path.unlink(missing_ok=True)


def _who(output: Path) -> str:
    """Return which process writes an output, if the status file says so."""
    from gsio.status import read_status  # which reads journals

    status = read_status(output)
    return f" (process {status['pid']} on {status['host']})" if status.get("state") == "running" else ""


def journal_of(output: Path) -> Path:
    """Return the path of the journal of an output."""
    return Path(f"{output}.journal")


def read_journal(output: Path, last: int = 0) -> Records | None:
    """Return what the journal of an output holds, up to a torn record, or None if there is none.

    If `last` is not 0, only so many records are read, the last ones: a watcher need not read what it has seen.
    """
    try:
        head, _, frames = _read(journal_of(output), last)
    except (OSError, ValueError, LookupError, TypeError):  # none, or it is new
        return None
    return Records(head["attributes"], head["frames_per_chunk"], frames)


def _read(path: Path, last: int = 0) -> tuple[dict[str, Any], int, NDArray[np.void]]:
    """Return the head of a journal, its bytes, and the whole records after it, or the `last` ones."""
    with open_regular(path) as file:
        line = file.readline(METADATA_NBYTES)
        head = parse_json(line)
        record = _record_of(head)
        count = (os.fstat(file.fileno()).st_size - len(line)) // record.itemsize
        first = max(0, count - last) if last else 0
        file.seek(len(line) + first * record.itemsize)
        records = np.frombuffer(file.read((count - first) * record.itemsize), record)
    raw = records.view(np.uint8).reshape(len(records), record.itemsize)
    for number, found in enumerate(raw):
        if records["frame"][number] != first + number or records["checksum"][number] != crc32c(found[:-4].data):
            return head, len(line), records[:number]
    return head, len(line), records


def _record_of(head: Mapping[str, Any]) -> np.dtype[np.void]:
    """Return the type of a record; raises ValueError, LookupError or TypeError if `head` is not that of a journal."""
    series, fields, slabs, per_chunk = (head[name] for name in ("series", "fields", "slabs", "frames_per_chunk"))
    known = isinstance(head["attributes"], dict) and isinstance(series, dict) and isinstance(fields, (list, tuple))
    if not known or not fields or not set(fields) <= {"u", "v"} or len(set(fields)) < len(fields):
        raise ValueError("expected attributes, series and fields")
    if not all(isinstance(number, int) and 0 < number <= MOST_PARTS for number in (slabs, per_chunk)):
        raise ValueError(f"expected 1 to {MOST_PARTS} slabs and frames in a chunk")
    needed = {"time", "step", "integrity/crc32c", *(f"stats/{name}_{word}" for name in fields for word in RANGE)}
    types = [np.dtype(kind) for kind in series.values()]
    if not needed <= series.keys() or any(kind.kind not in "fiu" or kind.itemsize > 8 for kind in types):
        raise ValueError(f"expected numbers named {', '.join(sorted(needed))}")
    return np.dtype([("frame", "<u8"), *series.items(), ("places", PLACE, (len(fields), slabs)), ("checksum", "<u4")])
