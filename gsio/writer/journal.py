"""The journal of a run lies beside its output and has a record of each committed frame, whatever happens to the file.

A file whose own metadata are torn is rebuilt from the journal, and a watcher sees the progress of a run without opening
the file. The first line is JSON and its checksum: the attributes of the output, `output_id` among them, and the names
and types of a record. All records have one size, and each ends with a checksum, so that a torn record is seen. Whoever
writes an output holds the lock of its journal; the system releases the lock of a killed process.
"""

import errno
import fcntl
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from gsio.errors import DataError, UsageError
from gsio.files import UNSUPPORTED, lacks, publish, temporary_beside, write
from gsio.frames.chunking import PLACE
from gsio.frames.content import MOST_FIELDS
from gsio.frames.layout import BlockLayout
from gsio.inputs import METADATA_NBYTES, open_regular, parse_json, portable
from gsio.writer.status_file import is_alive, is_here, read_status

MOST_PARTS = 1 << 20  # the most slabs of a frame, or frames of a chunk
RANGE = ("min", "max")


class Records(NamedTuple):
    """The content of a journal: the attributes of the output, and a record for each frame with the values of series.

    `lines_per_chunk` is 0 in the journal of an older version, which chose the number from the sizes of a frame.
    """

    attributes: dict[str, Any]
    frames_per_chunk: int
    lines_per_chunk: int
    frames: NDArray[np.void]


class Journal:
    """The journal of one output, locked; a context manager that unlocks it.

    Raises UsageError, which begins with `option`, if another writer has it or something else has its name, and OSError
    where storage fails.
    """

    def __init__(self, output: Path, option: str = "--output") -> None:
        self._output = output
        self.path = journal_of(output)
        self._record = np.dtype([])
        self._start = 0  # the offset of the first record
        while True:
            self._fd = _open(self.path, option)
            try:
                if not _lock(self._fd) and _is_written(output):
                    raise BlockingIOError
                if self._is_at(self.path):
                    return
            except BlockingIOError:
                os.close(self._fd)
                raise UsageError(f"{option}: {_who(output)}, or choose another") from None
            os.close(self._fd)  # the process that had locked it has just removed it

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if os.fstat(self._fd).st_size == 0:
            self.remove()
        os.close(self._fd)

    def adopt(self, path: Path) -> None:
        """Replace this journal by the one at `path`, whose output has replaced the output of this one."""
        fd = os.open(path, os.O_RDWR)
        try:
            _lock(fd)
            publish("--output", path, self.path, replaces=self._is_at)  # the journal is locked all the time
        except BaseException:
            os.close(fd)
            raise
        os.close(self._fd)
        self._fd = fd

    def clear(self) -> None:
        """Delete the content, as in a new journal."""
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)

    def begin(
        self,
        attributes: Mapping[str, Any],
        series: Mapping[str, NDArray[Any]],
        layout: BlockLayout,
        places: NDArray[np.void],
    ) -> None:
        """Replace the content by `attributes` and the records of its frames: `series` and `places`, [frame]."""
        head = {
            "attributes": dict(attributes),
            "series": {name: values.dtype.str for name, values in series.items()},
            "fields": layout.frame.fields,
            "slabs": layout.chunks.slabs,
            "frames_per_chunk": layout.chunks.frames_per_chunk,
            "lines_per_chunk": layout.chunks.lines_per_chunk,
        }
        self._record = _record_of(head)
        temporary = temporary_beside(self._output)
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            _lock(fd)
            line = _with_checksum(json.dumps(head).encode())
            write(fd, line + self._records(0, series, places))
            os.fsync(fd)
            # The new journal is locked before it replaces the old one.
            publish("--output", temporary, self.path, replaces=self._is_at)
        except BaseException:
            os.close(fd)
            temporary.unlink(missing_ok=True)
            raise
        os.close(self._fd)
        self._fd, self._start = fd, len(line)

    def resume(self, output_id: str, frames: int, places: NDArray[np.void]) -> bool:
        """Truncate the journal after `frames` records.

        Returns False, and changes nothing, if it lacks some of them or has their chunks elsewhere than `places` [frame,
        field, slab]: a repair that was killed leaves such a journal.
        """
        if (found := _read(self.path)) is None or found[0]["attributes"].get("output_id") != output_id:
            return False
        _, self._start, records = found
        if len(records) < frames or not np.array_equal(records["places"][:frames], places):
            return False
        self._record = records.dtype
        os.ftruncate(self._fd, self._start + frames * self._record.itemsize)
        os.lseek(self._fd, 0, os.SEEK_END)
        return True

    def append(self, first: int, series: Mapping[str, NDArray[Any]], places: NDArray[np.void]) -> None:
        """Record the frames from `first` on: their `series`, each [frame], and `places`, [frame, field, slab]."""
        write(self._fd, self._records(first, series, places))

    def _records(self, first: int, series: Mapping[str, NDArray[Any]], places: NDArray[np.void]) -> bytes:
        records = np.zeros(len(places), self._record)
        records["frame"] = np.arange(first, first + len(places))
        for name, values in series.items():
            records[name] = values
        records["places"] = places
        return _sealed(records)

    def move(self, first: int, places: NDArray[np.void]) -> None:
        """Record that the chunks of the frames from `first` on are at `places` [frame, field, slab] now."""
        start, nbytes = self._start + first * self._record.itemsize, len(places) * self._record.itemsize
        records = np.frombuffer(bytearray(os.pread(self._fd, nbytes, start)), self._record)
        records["places"] = places
        os.pwrite(self._fd, _sealed(records), start)

    def sync(self) -> None:
        """Wait until the disk has the journal."""
        os.fsync(self._fd)

    def remove(self) -> None:
        """Delete the journal of an output that is complete."""
        if self._is_at(self.path):
            self.path.unlink()

    def _is_at(self, path: Path) -> bool:
        """Return whether `path` is the file of this journal."""
        try:
            return os.path.samestat(os.fstat(self._fd), path.lstat())
        except FileNotFoundError:
            return False


def _open(path: Path, option: str) -> int:
    """Open a journal, or make an empty one; raise UsageError if something else has its name."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise UsageError(f"{option}: '{path}' is no file; expected the journal of gsio, or nothing") from None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise UsageError(f"{option}: '{path}' is no file; expected the journal of gsio, or nothing")
    return fd


def _lock(fd: int) -> bool:
    """Lock a file; raise BlockingIOError if another process has it, and return False where there are no locks."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        lacks("flock", "a second run on another machine can write the same output unnoticed")
        return False
    return True


def _is_written(output: Path) -> bool:
    """Return whether another process of this machine writes an output, as far as its status file says."""
    status = read_status(output)
    running = status.get("state") == "running" and is_here(status) and status.get("pid") != os.getpid()
    return running and is_alive(status)


def _who(output: Path) -> str:
    """Return that an output is written, by which process if the status file says so, and what to do."""
    status = read_status(output)
    if status.get("state") != "running":
        return f"another run writes '{output}'; wait for it, or close it"
    if status.get("pid") == os.getpid() and is_here(status):
        return f"this process writes '{output}' already; close that writer"
    return f"another run writes '{output}' (process {status['pid']} on {status['host']}); wait for it"


def journal_of(output: Path) -> Path:
    """Return the path of the journal of an output."""
    return Path(f"{output}.journal")


def is_journal(path: Path) -> bool:
    """Return whether `path` is a journal; it can be damaged, or empty like a new one."""
    try:
        with open_regular(path, follow=False) as file:
            head = file.readline(1 << 20)
    except OSError:
        return False
    return not head or (head.startswith(b'{"') and b'"series"' in head)


def read_journal(output: Path, first: int = 0) -> Records | None:
    """Return the records of the journal of an output up to a torn one, or None if there is no journal or it is new.

    Only the records from `first` on are read, or with a negative number, the last ones: a watcher has seen the others.
    Raises DataError if the head is damaged.
    """
    try:
        found = _read(journal_of(output), first)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(
            f"cannot read '{journal_of(output)}': {error.strerror}; expected the journal of a run"
        ) from None
    if found is None:
        return None
    head, _, frames = found
    return Records(portable(head["attributes"]), head["frames_per_chunk"], head.get("lines_per_chunk", 0), frames)


def _read(path: Path, first: int = 0) -> tuple[dict[str, Any], int, NDArray[np.void]] | None:
    """Return the head of a journal, the bytes of its line, and the whole records from `first` on; None if new."""
    with open_regular(path, follow=False) as file:
        line = file.readline(METADATA_NBYTES)
        if not line:
            return None
        try:
            text = line.rpartition(b" ")[0]
            if line != _with_checksum(text):
                raise ValueError("its first line does not match its checksum")
            head = parse_json(text)
            record = _record_of(head)
            if not any(isinstance(head["attributes"].get(name), str) for name in ("config", "content")):
                raise TypeError("expected the configuration of a run, or the content of an output")
        except (ValueError, LookupError, TypeError) as error:
            raise DataError(
                f"'{path}' is damaged or not the journal of a run ({type(error).__name__}: {error}); "
                "run 'gsio repair', or move the journal away"
            ) from None
        count = max(0, (os.fstat(file.fileno()).st_size - len(line)) // record.itemsize)
        first = min(first, count) if first >= 0 else max(0, count + first)
        file.seek(len(line) + first * record.itemsize)
        records = np.frombuffer(file.read((count - first) * record.itemsize), record)
    raw = records.view(np.uint8).reshape(len(records), record.itemsize)
    for number, found in enumerate(raw):
        if records["frame"][number] != first + number or records["checksum"][number] != crc32c(found[:-4].data):
            return head, len(line), records[:number]
    return head, len(line), records


def _with_checksum(text: bytes) -> bytes:
    return b"%b %08x\n" % (text, crc32c(text))


def _sealed(records: NDArray[np.void]) -> bytes:
    """Return the bytes of records [frame], each with its checksum set."""
    raw = records.view(np.uint8).reshape(len(records), records.dtype.itemsize)
    records["checksum"] = [crc32c(record[:-4].data) for record in raw]
    return records.tobytes()


def _record_of(head: Mapping[str, Any]) -> np.dtype[np.void]:
    """Return the type of a record; raises ValueError, LookupError or TypeError if no journal has this `head`."""
    series, fields, slabs, per_chunk = (head[name] for name in ("series", "fields", "slabs", "frames_per_chunk"))
    lines = head.get("lines_per_chunk", 0)
    known = isinstance(series, dict) and isinstance(fields, (list, tuple)) and isinstance(head["attributes"], dict)
    if not known or not 0 < len(fields) <= MOST_FIELDS or len(set(fields)) < len(fields):
        raise ValueError("expected attributes, series and fields")
    if not all(isinstance(number, int) and 0 < number <= MOST_PARTS for number in (slabs, per_chunk)):
        raise ValueError(f"expected 1 to {MOST_PARTS} slabs and frames in a chunk")
    if not isinstance(lines, int) or lines < 0:
        raise ValueError("expected a number of lines in a chunk")
    needed = {"time", "step", "integrity/crc32c", *(f"stats/{name}_{word}" for name in fields for word in RANGE)}
    types = [np.dtype(kind) for kind in series.values()]
    if not needed <= series.keys() or any(kind.kind not in "fiu" or kind.itemsize > 8 for kind in types):
        raise ValueError(f"expected numbers named {', '.join(sorted(needed))}")
    return np.dtype([("frame", "<u8"), *series.items(), ("places", PLACE, (len(fields), slabs)), ("checksum", "<u4")])
