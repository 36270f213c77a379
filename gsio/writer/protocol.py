"""The protocol of writers: threads encode the tasks of a block, and a commit then makes its frames part of the file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray

from gsio.frames.block import EncodedBlock, FilledBlock
from gsio.frames.content import Content
from gsio.frames.layout import BlockLayout
from gsio.trace import Trace
from gsio.writer.journal import Journal


class Target(NamedTuple):
    """The output that a writer is opened for: a new one, or one that is extended after the frames that it keeps.

    Attributes
    ----------
    attributes
        The attributes of the output as a whole.
    journal
        The locked journal of the output.
    series
        The series of the frames that are kept, [frame], by name as in `metadata.frame_series`; None for a new output.
    overwrite
        Whether a new output may replace what is at `path`. If not, it replaces nothing, even if something appears there
        while the output is laid out.
    """

    path: Path
    content: Content
    layout: BlockLayout
    attributes: Mapping[str, Any]
    journal: Journal
    trace: Trace
    series: Mapping[str, NDArray[Any]] | None = None
    overwrite: bool = False


class Writer(Protocol):
    """Encodes blocks in any order and commits them in frame order.

    Both steps raise OSError where storage fails; what was committed before stays readable.
    """

    def encode(self, block: FilledBlock, task: int) -> None:
        """Encode one task of `block`; called from several threads at once, for each task once."""

    def commit(self, blocks: Sequence[EncodedBlock]) -> None:
        """Make the frames of `blocks` part of the file; consecutive blocks, one call at a time."""

    def sync(self) -> None:
        """Make the committed frames durable (fsync); may be called while another thread commits."""

    def close(self, status: str) -> None:
        """Record how the run ended, make everything durable (fsync) and close; called once, whatever happened."""

    @property
    def nbytes(self) -> int:
        """Bytes the file held after the last commit."""
