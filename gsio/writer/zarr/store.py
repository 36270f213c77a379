"""A folder that stores values by key: a reader finds a value whole, or not at all."""

import ctypes
import errno
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gsio.files import LIBC, UNSUPPORTED, temporary_beside, write
from gsio.writer.writeback import Writeback

METADATA = "zarr.json"
O_TMPFILE = getattr(os, "O_TMPFILE", 0)
NAMES_ONLY = *UNSUPPORTED, errno.EISDIR, errno.ENOENT  # errors of file systems and kernels without nameless files


class Folder:
    """A store of values by key, as an object store would be."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._nameless = O_TMPFILE != 0  # False once the file system has refused a nameless file
        self._writeback = Writeback(self._begin)
        self._fd: int | None = None
        self._syncing = threading.Lock()
        self._error: OSError | None = None

    def get(self, key: str) -> bytes:
        """Return a value."""
        return (self.path / key).read_bytes()

    def put(self, key: str, value: Any, *, sync: bool = False) -> None:
        """Set or replace a value, any bytes-like object; with `sync`, the disk has it before it replaces another."""
        place = self.path / key
        temporary = temporary_beside(place)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            try:
                write(fd, value)
                if sync:
                    os.fsync(fd)
            finally:
                os.close(fd)
            temporary.rename(place)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def put_new(self, key: str, parts: Sequence[Any]) -> None:
        """Set a value of several bytes-like parts, in a nameless file that is linked to its name last.

        Threads that create files by name would queue for the lock of the folder. Where the name is taken, or the file
        system has no nameless files, the value is `put`.
        """
        place = f"{self.path}/{key}"
        try:
            fd = os.open(place.rpartition("/")[0], os.O_WRONLY | O_TMPFILE, 0o666) if self._nameless else None
        except OSError as error:
            if error.errno not in NAMES_ONLY:
                raise
            fd = None
        if fd is None:
            self._nameless = False
            self.put(key, b"".join(parts), sync=os.path.lexists(place))
            return
        try:
            for part in parts:  # joining them would hold the interpreter lock
                write(fd, part)
            try:
                # Python follows the link only if a folder is given, though the path is absolute.
                os.link(f"/proc/self/fd/{fd}", place, src_dir_fd=fd, follow_symlinks=True)
            except OSError as error:
                taken = isinstance(error, FileExistsError)  # by a chunk with frames that may be safe on the disk
                self._nameless = taken  # else there is no /proc, or there are no links
                self.put(key, b"".join(parts), sync=taken)  # this raises the error of the storage, if there is one
        finally:
            os.close(fd)

    def open(self) -> None:
        """Notice the errors of the disk from now on: the system tells them to those only who have a file open."""
        self._fd = os.open(self.path, os.O_RDONLY)

    def begin_to_write(self) -> None:
        """Let the disk begin to write the new values, unless that began a moment ago."""
        self._writeback.start()

    def _begin(self) -> None:
        with self._syncing:
            try:
                self._wait_for_disk()
            except OSError as error:  # the system tells it once
                self._error = error

    def sync(self) -> None:
        """Wait until the disk has all values."""
        with self._syncing:
            error, self._error = self._error, None
            if error is not None:
                raise error
            self._wait_for_disk()

    def _wait_for_disk(self) -> None:
        fd = os.open(self.path, os.O_RDONLY) if self._fd is None else self._fd
        try:
            if not hasattr(LIBC, "syncfs"):
                os.sync()
            elif LIBC.syncfs(fd):  # one call for the thousands of files of a run
                code = ctypes.get_errno()
                if code not in UNSUPPORTED:
                    raise OSError(code, os.strerror(code))
                os.sync()
        finally:
            if fd != self._fd:
                os.close(fd)

    def close(self) -> None:
        """End what `begin_to_write` has begun."""
        self._writeback.end()
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
