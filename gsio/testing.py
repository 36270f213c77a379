"""Help for tests of gsio, and of programs that use it."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import numpy as np

from gsio.frames.block import Block, EncodedBlock, FilledBlock
from gsio.frames.layout import BlockLayout
from gsio.frames.sizes import DEFAULT, Sizes
from gsio.writer.protocol import Writer


def small_blocks(block_bytes: int = 4 * 2 * 3072, chunk_bytes: int = 2 * 3072, **sizes: int) -> ExitStack:
    """Make the blocks of this context's runs small, so that a short run has many.

    The sizes, in bytes, are those of `gsio.frames.sizes.Sizes`. They last until the end of a `with` statement, or to
    the end of the process where the call is a statement of its own.
    """
    until = ExitStack()
    until.callback(DEFAULT.reset, DEFAULT.set(Sizes(block_bytes=block_bytes, chunk_bytes=chunk_bytes, **sizes)))
    return until


def random_block(layout: BlockLayout, first: int = 0, count: int = 1) -> FilledBlock:
    """Return a block of random values in `count` frames, the first of which has the number `first`.

    A frame of a number has the same values in each block; its step is the next number, and its time half of that.
    """
    block, frame = Block(layout, np.zeros(layout.block_nbytes, np.uint8)), layout.frame
    block.first, block.count = first, count
    block.steps[:] = np.arange(first + 1, first + 1 + layout.frames_per_block)
    block.times[:] = block.steps / 2
    for number in range(count):
        planes = np.random.default_rng(first + number).random((len(frame.fields), *frame.shape))
        most = frame.stored_one or (1 if frame.dtype.kind == "f" else np.iinfo(frame.dtype).max // 2)
        for field, plane in enumerate(planes):
            block.put(number, field, plane * most)
    return FilledBlock(block)


def encode(writer: Writer, block: FilledBlock) -> EncodedBlock:
    """Let `writer` encode each task of `block`, the last one first, and return the block."""
    for task in reversed(range(block.layout.tasks)):
        writer.encode(block, task)
    return EncodedBlock(block)


class KeepingWriter:
    """A writer that keeps the numbers of the committed frames; it can wait or fail where a test says so.

    Attributes
    ----------
    committed, status
        The numbers of the committed frames, and how the run ended.
    before_encode, before_commit, before_close
        Functions that are called first; what they raise is what the writer raises.
    """

    nbytes = 0

    def __init__(self) -> None:
        self.committed: list[int] = []
        self.status = ""
        self.before_encode: Callable[[Block], object] = lambda block: None
        self.before_commit: Callable[[Sequence[EncodedBlock]], object] = lambda blocks: None
        self.before_close: Callable[[str], object] = lambda status: None

    def encode(self, block: FilledBlock, task: int) -> None:
        """Call `before_encode`."""
        self.before_encode(block)

    def commit(self, blocks: Sequence[EncodedBlock]) -> None:
        """Keep the numbers of the frames."""
        self.before_commit(blocks)
        for block in blocks:
            self.committed += range(block.first, block.first + block.count)

    def sync(self) -> None:
        """Do nothing."""

    def close(self, status: str) -> None:
        """Keep the status."""
        self.before_close(status)
        self.status = status
