"""The file under HDF5: h5py hands every byte that HDF5 reads or writes to a `Disk`, which hands it to the system."""

import ctypes
import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from gsio.files import LIBC, UNSUPPORTED, changed, lacks, require_same
from gsio.writer.writeback import Writeback, begin_to_write

UNRESERVED = "a disk that becomes full can leave a file that 'gsio repair' has to restore"
RESERVE_STEP = 64 << 20  # bytes that are reserved at once
BUFFERS = 1024  # the most in one call: IOV_MAX of Linux
RESERVE_MARGIN = 1 << 20  # bytes for the metadata that HDF5 writes at a flush and at the end


class Disk:
    """An open file, in the form that h5py's `fileobj` driver takes.

    HDF5 cannot go on after a write that failed, and can crash when it closes such a file. HDF5 therefore never sees an
    error: the first one is kept, nothing is written after it, and `raising` raises it once HDF5 has returned.

    Attributes
    ----------
    fd
        The descriptor of the file.
    size
        Bytes of the file: those that it had when it was opened, and those that this object has written since.
    """

    def __init__(self, path: Path, *, new: bool) -> None:
        """Open a file, or create a `new` one; raises OSError."""
        self.fd = os.open(path, os.O_RDWR | (os.O_CREAT | os.O_EXCL if new else 0), 0o666)
        self.size = os.fstat(self.fd).st_size
        self._place = 0
        self._error: OSError | None = None
        self._reserved = 0
        self._chunk: NDArray[np.uint8] | None = None  # the chunk that HDF5 is about to write
        self._placed: list[tuple[int, NDArray[np.uint8]]] = []
        self._writeback = Writeback(partial(begin_to_write, self.fd))

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place; HDF5 does so before each call."""
        self._place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self.size}[whence]
        return self._place

    def tell(self) -> int:
        """Return the present place."""
        return self._place

    def read(self, nbytes: int) -> bytes:
        """Return up to `nbytes` bytes from the present place."""
        return os.pread(self.fd, nbytes, self._place)

    def readinto(self, buffer: Any) -> int:
        """Read bytes from the present place into a buffer, and return their number."""
        return os.preadv(self.fd, [buffer], self._place)

    def write(self, data: Any) -> int:
        """Write a bytes-like object; if it is the chunk of `place`, only remember the place that HDF5 chose."""
        chunk, found = self._chunk, np.frombuffer(data, np.uint8)
        if chunk is not None and (chunk.ctypes.data, len(chunk)) == (found.ctypes.data, len(found)):
            self._chunk = None
            self._placed.append((self._place, chunk))
            return len(data)
        self._write([memoryview(data).cast("B")], self._place)
        return len(data)

    def _write(self, buffers: list[memoryview], place: int) -> None:
        """Write buffers one behind the other."""
        try:
            if place + sum(map(len, buffers)) > self.size and self._error is None:
                self._require_whole()  # bytes that another program cut off would read as zeros
            while buffers and self._error is None:
                written = os.pwritev(self.fd, buffers[:BUFFERS], place)
                place += written
                while buffers and written >= len(buffers[0]):
                    written -= len(buffers.pop(0))
                if written:
                    buffers[0] = buffers[0][written:]
            self.size = max(self.size, place)
        except OSError as error:
            self._error = error

    def truncate(self, nbytes: int) -> int:
        """Set the size of the file. A call with the present size would give back reserved space, and is not made."""
        if nbytes != self.size and self._error is None:
            try:
                os.ftruncate(self.fd, nbytes)
                self.size = nbytes
            except OSError as error:
                self._error = error
        return nbytes

    def flush(self) -> None:
        """Do nothing: a commit hands bytes to the system, and `sync` waits for the disk."""

    def place(self, dataset: h5py.h5d.DatasetID, coordinates: tuple[int, ...], encoded: Any) -> int:
        """Let HDF5 find a place for an encoded chunk, and return the place; `write_placed` writes the chunk."""
        self._chunk = np.frombuffer(encoded, np.uint8)
        dataset.write_direct_chunk(coordinates, self._chunk)
        if self._chunk is not None:
            raise OSError(errno.EIO, "HDF5 has not written a chunk")
        return self._placed[-1][0]

    def write_placed(self) -> None:
        """Write the chunks that have a place, without HDF5; adjacent chunks are written in one call.

        HDF5 holds its lock while it writes, and a thread that returns from a write waits for the interpreter.
        """
        placed, self._placed = sorted(self._placed, key=lambda chunk: chunk[0]), []
        start, end, buffers = 0, -1, list[memoryview]()
        for place, chunk in placed:
            if place != end:
                self._write(buffers, start)
                start, buffers = place, []
            buffers.append(chunk.data)
            end = place + len(chunk)
        self._write(buffers, start)

    def reserve(self, nbytes: int) -> None:
        """Reserve space for the next `nbytes` and their metadata; raise OSError if they do not fit."""
        end = self.size + nbytes + RESERVE_MARGIN
        if end <= self._reserved:
            return
        self._writeback.start()
        try:
            _allocate(self.fd, end + RESERVE_STEP)
            self._reserved = end + RESERVE_STEP
        except OSError:  # there is no room for a whole step, but perhaps for these bytes
            _allocate(self.fd, end)
            self._reserved = end

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Raise the first error, if any, that a call of HDF5 has met by the end of the context."""
        try:
            yield
        finally:
            if self._error is not None:
                raise self._error

    def check(self, path: Path) -> None:
        """Raise StorageError if somebody else has cut the file, or it is no longer the one at `path`."""
        require_same(path, os.fstat(self.fd))
        try:
            self._require_whole()
        except OSError:
            raise changed(path, "truncated") from None

    def _require_whole(self) -> None:
        """Raise OSError if somebody else has cut the file."""
        if os.fstat(self.fd).st_size < self.size:
            raise OSError(errno.EIO, "the file was truncated by another program")

    def abandon(self) -> None:
        """Write nothing more."""
        self._error = self._error or OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))

    def sync(self) -> None:
        """Wait until the disk has the file."""
        os.fsync(self.fd)

    def close(self) -> None:
        """Give back what was reserved beyond the end, and close the file."""
        try:
            self._writeback.end()
            if self._reserved:
                os.ftruncate(self.fd, os.fstat(self.fd).st_size)
        finally:
            os.close(self.fd)


def _allocate(fd: int, end: int) -> None:
    """Reserve disk space up to `end` without changing the file's size; raise OSError if there is not enough."""
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit != resource.RLIM_INFINITY and end > limit:  # a reservation ignores this limit, but a write fails at it
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    free = os.fstatvfs(fd)
    needed = end - os.fstat(fd).st_blocks * 512
    if free.f_blocks and needed > free.f_bavail * free.f_frsize:  # fallocate would fill the disk, then fail
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    keep_size = 1  # FALLOC_FL_KEEP_SIZE, which os.posix_fallocate does not offer
    if not hasattr(LIBC, "fallocate"):
        lacks("fallocate", UNRESERVED)
    elif LIBC.fallocate(fd, keep_size, ctypes.c_int64(0), ctypes.c_int64(end)):
        code = ctypes.get_errno()
        if code not in UNSUPPORTED:
            raise OSError(code, os.strerror(code))
        lacks("fallocate", UNRESERVED)
