"""What every writer offers: a place in memory is turned into a place in a file, in two steps."""

import ctypes
import glob
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from numpy.typing import NDArray

from gsio.config import Config
from gsio.staging import Block, FrameLayout
from gsio.trace import Trace

if TYPE_CHECKING:
    from gsio.writer.journal import Journal  # which takes names from here

LIBC = ctypes.CDLL(None, use_errno=True)


def temporary_beside(path: Path, ending: str = ".tmp") -> Path:
    """Return a new name in the folder of `path`, for what is renamed to it once it is whole."""
    return path.with_name(f".{path.name}-{secrets.token_hex(8)}{ending}")


def remove_temporaries(path: Path) -> None:
    """Delete what a killed process left of `path` under temporary names, and under temporary names of those."""
    for dots in (".", ".."):
        for left in path.parent.glob(f"{dots}{glob.escape(path.name)}-{'[0-9a-f]' * 16}.*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()


def write(fd: int, data: Any) -> None:
    """Write all of a bytes-like object."""
    rest = memoryview(data).cast("B")
    while rest:
        rest = rest[os.write(fd, rest) :]


def sync_folder(path: Path) -> None:
    """Wait until the disk has the names in a folder."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def move_into_place(path: Path, new: Path) -> None:
    """Rename `new`, a file or folder, to `path`; what is there goes once it is."""
    if not new.is_dir() or not os.path.lexists(path):
        new.replace(path)
        return
    if _exchange(path, new):
        old = new
    else:
        old = temporary_beside(path)
        path.rename(old)
        try:
            new.rename(path)
        except BaseException:
            old.rename(path)
            raise
    if old.is_dir() and not old.is_symlink():
        shutil.rmtree(old)
    else:
        old.unlink()


def _exchange(path: Path, other: Path) -> bool:
    """Swap two names at once, so that a kill finds something at both, and say whether it can be done here."""
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return hasattr(LIBC, "renameat2") and not LIBC.renameat2(
        here, os.fsencode(other), here, os.fsencode(path), exchange
    )


class Target(NamedTuple):
    """What a writer is opened for: a new output, or one there that goes on after the frames that it keeps.

    `attributes` are those of the output as a whole; `journal` is locked; `series`, [frame] by name as in
    `metadata.frame_series`, are recorded of the frames that are kept, and None for a new output.
    """

    path: Path
    config: Config
    layout: FrameLayout
    attributes: Mapping[str, Any]
    journal: "Journal"
    trace: Trace
    series: Mapping[str, NDArray[Any]] | None = None


class FrameWriter(Protocol):
    """Encodes blocks in any order and commits them in frame order.

    Both steps raise OSError where storage fails; what was committed before stays readable.
    """

    def encode(self, block: Block, part: int) -> None:
        """Encode one part of `block`; called from several threads at once, for each part once."""

    def commit(self, blocks: Sequence[Block]) -> None:
        """Make the frames of `blocks` part of the file; consecutive blocks, one call at a time."""

    def sync(self) -> None:
        """Make what is committed durable (fsync); may be called while another thread commits."""

    def close(self, status: str) -> None:
        """Record how the run ended, make everything durable (fsync) and close; called once, whatever happened."""

    @property
    def nbytes(self) -> int:
        """Bytes the file held after the last commit."""
