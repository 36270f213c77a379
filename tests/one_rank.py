"""The program of a rank: gsio with small blocks, and ranks that give signs of life each RANK_LIFE seconds.

The disk of the rank RANK_WITH_FULL_DISK is full after some chunks.
"""

import errno
import itertools
import os
import sys
from typing import Any

from gsio.cli import main
from gsio.run import ranks
from gsio.testing import small_blocks
from gsio.writer.zarr.store import Folder

CHUNKS = 20
put_new, calls = Folder.put_new, itertools.count()


def put(self: Folder, key: str, parts: Any) -> None:
    if next(calls) >= CHUNKS:
        raise OSError(errno.ENOSPC, "No space left on device")
    put_new(self, key, parts)


if os.environ.get("RANK_WITH_FULL_DISK", "") == os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMI_RANK")):
    Folder.put_new = put  # type: ignore[method-assign]
ranks.LIFE_SECONDS = float(os.environ.get("RANK_LIFE", ranks.LIFE_SECONDS))
small_blocks(block_bytes=2 * 2 * 24 * 32 * 4, chunk_bytes=24 * 32 * 4)
sys.exit(main())
