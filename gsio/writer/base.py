"""What every writer offers: a place in memory is turned into a place in a file, in two steps."""

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from gsio.staging import Block


def temporary_beside(path: Path, ending: str = ".tmp") -> Path:
    """Return a new name in the folder of `path`, for what is renamed to it once it is whole."""
    return path.with_name(f".gsio-{secrets.token_hex(8)}{ending}")


class FrameWriter(Protocol):
    """Encodes blocks in any order and commits them in frame order.

    Both steps raise OSError where storage fails; what was committed before stays readable.
    """

    def encode(self, block: Block, slab: int = 0) -> None:
        """Encode one slab of the frames of `block`; called from several threads at once, for each slab once."""

    def commit(self, blocks: Sequence[Block]) -> None:
        """Make the frames of `blocks` part of the file; consecutive blocks, one call at a time."""

    def close(self, status: str) -> None:
        """Record how the run ended, make everything durable (fsync) and close; called once, whatever happened."""

    @property
    def nbytes(self) -> int:
        """Bytes the file held after the last commit."""
