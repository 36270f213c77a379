"""What every writer offers: a place in memory is turned into a place in a file, in two steps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray

from gsio.config import Config
from gsio.frames.block import Block
from gsio.frames.layout import BlockLayout
from gsio.trace import Trace
from gsio.writer.journal import Journal


class Target(NamedTuple):
    """What a writer is opened for: a new output, or one there that goes on after the frames that it keeps.

    `attributes` are those of the output as a whole; `journal` is locked; `series`, [frame] by name as in
    `metadata.frame_series`, are recorded of the frames that are kept, and None for a new output. Where `overwrite` is
    False, nothing that is at `path` is replaced, even if it appears while the output is laid out.
    """

    path: Path
    config: Config
    layout: BlockLayout
    attributes: Mapping[str, Any]
    journal: Journal
    trace: Trace
    series: Mapping[str, NDArray[Any]] | None = None
    overwrite: bool = False


class FrameWriter(Protocol):
    """Encodes blocks in any order and commits them in frame order.

    Both steps raise OSError where storage fails; what was committed before stays readable.
    """

    def encode(self, block: Block, task: int) -> None:
        """Encode one task of `block`; called from several threads at once, for each task once."""

    def commit(self, blocks: Sequence[Block]) -> None:
        """Make the frames of `blocks` part of the file; consecutive blocks, one call at a time."""

    def sync(self) -> None:
        """Make what is committed durable (fsync); may be called while another thread commits."""

    def close(self, status: str) -> None:
        """Record how the run ended, make everything durable (fsync) and close; called once, whatever happened."""

    @property
    def nbytes(self) -> int:
        """Bytes the file held after the last commit."""
