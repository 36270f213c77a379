"""A writer that keeps the frames of a run in memory, and a solver that hands them out again."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsio.frames.block import Block

# The bytes and statistics of a block, and the chunks that the solver has encoded.
Recorded = tuple[NDArray[Any], NDArray[Any], dict[tuple[int, int], list[bytes]]]


class RecordingWriter:
    """A writer that keeps every block in memory."""

    nbytes = 0

    def __init__(self) -> None:
        self.blocks: dict[int, Recorded] = {}

    def encode(self, block: Block, task: int) -> None:
        """Keep a copy of `block`."""
        if task:
            return
        chunks = {place: [bytes(chunk) for chunk in chunks] for place, chunks in block.chunks.items()}
        self.blocks[block.first] = block.data.copy(), block.statistics.copy(), chunks

    def commit(self, blocks: Sequence[Block]) -> None:
        """Do nothing."""

    def sync(self) -> None:
        """Do nothing."""

    def close(self, status: str) -> None:
        """Do nothing."""


class ReplaySolver:
    """A solver that hands out recorded blocks at once."""

    backend = device = "replay"

    def __init__(self, blocks: dict[int, Recorded]) -> None:
        self._blocks = blocks

    def fill(self, block: Block) -> None:
        """Point `block` at the recorded frames."""
        block.data, recorded, chunks = self._blocks[block.first]
        block.statistics[:] = recorded
        block.chunks = dict(chunks)

    def wait(self, block: Block) -> None:
        """Return at once."""

    def allocate(self, nbytes: int) -> NDArray[Any]:
        """Return ordinary memory."""
        return np.zeros(nbytes, np.uint8)
