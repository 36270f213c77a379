"""A new output that one thread writes, block after block."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsio.frames.block import Block
from gsio.frames.content import Content
from gsio.frames.layout import BlockLayout
from gsio.trace import Trace
from gsio.writer.formats import open_writer
from gsio.writer.journal import Journal
from gsio.writer.protocol import Target


@contextmanager
def new_output(
    path: Path,
    content: Content,
    layout: BlockLayout,
    attributes: Mapping[str, Any],
    status: str,
    *,
    checksums: NDArray[np.uint32] | None = None,
    keep_journal: bool = False,
) -> Iterator[Callable[[Block], None]]:
    """Give a function that encodes and commits the next block of a new output at `path`.

    At the end the output is closed with `status`, or with "failed" where an exception ended the context. `checksums`
    are those of the frames, uint32 [frame], where they are known; else they are taken of the frames as they are.
    The journal stays, synced, if `keep_journal` is True. Raises as `gsio.writer.open_writer`.
    """

    def append(block: Block) -> None:
        for task in range(layout.tasks):
            writer.encode(block, task)
        if checksums is not None:
            block.checksums[: block.count] = checksums[block.first : block.first + block.count]
        writer.commit([block])
        block.chunks = {}

    with Journal(path) as journal:
        writer = open_writer(Target(path, content, layout, attributes, journal, Trace()))
        ended = "failed"
        try:
            yield append
            ended = status
        finally:
            if not keep_journal:
                journal.remove()
            writer.close(ended)
        if keep_journal:
            journal.sync()
