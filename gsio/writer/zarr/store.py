"""A folder that stores values by key: a reader finds a value whole, or not at all."""

import ctypes
import errno
import os
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from gsio.files import LIBC, UNSUPPORTED, Writeback, begin_to_write, write

METADATA = "zarr.json"
O_TMPFILE = getattr(os, "O_TMPFILE", 0)
MOST_OPEN = 64  # files
NAMES_ONLY = *UNSUPPORTED, errno.EISDIR, errno.ENOENT  # errors of file systems and kernels without nameless files


class Folder:
    """A store of values by key, as an object store would be."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._nameless = O_TMPFILE != 0  # False once the file system has refused a nameless file
        self._writeback, self._written = Writeback(), deque[int]()  # files that are whole, and still open

    def get(self, key: str) -> bytes:
        """Return a value."""
        return (self.path / key).read_bytes()

    def put(self, key: str, value: Any, *, sync: bool = False) -> None:
        """Set or replace a value, any bytes-like object; with `sync`, the disk has it before it replaces another."""
        place = self.path / key
        temporary = place.with_name(f".{place.name}-{secrets.token_hex(4)}.tmp")
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
        except BaseException:
            os.close(fd)
            raise
        self._written.append(fd)
        if len(self._written) > MOST_OPEN:  # the disk is slow
            self._close_written()

    def begin_to_write(self) -> None:
        """Let the disk begin to write the new values."""
        self._writeback.start(lambda: self._close_written(begin_to_write))

    def _close_written(self, first: Callable[[int], None] = lambda fd: None) -> None:
        """Close the files that are whole, after a call for each."""
        with suppress(IndexError):
            while True:
                fd = self._written.popleft()
                first(fd)
                os.close(fd)

    def close(self) -> None:
        """Close all files."""
        self._writeback.end()
        self._close_written()

    def sync(self) -> None:
        """Wait until the disk has all values."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            if not hasattr(LIBC, "syncfs"):
                os.sync()
            elif LIBC.syncfs(fd):  # one call for the thousands of files of a run
                code = ctypes.get_errno()
                if code not in UNSUPPORTED:
                    raise OSError(code, os.strerror(code))
                os.sync()
        finally:
            os.close(fd)
