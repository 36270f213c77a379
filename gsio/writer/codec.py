"""What becomes of a chunk: its checksum, and its encoded bytes."""

from crc32c import crc32c
from isal import isal_zlib

from gsio.staging import Block


def checksum(block: Block) -> None:
    """Set the crc32c (Castagnoli) of each frame of `block`: all its fields, as staged."""
    for frame in range(block.count):
        block.checksums[frame] = crc32c(block.data[frame])


def deflate(block: Block, level: int) -> None:
    """Set the chunks of `block`: each plane as a zlib stream, which HDF5's own deflate filter reads.

    ISA-L releases the GIL while it compresses; its levels run from 0 (fastest) to 3.
    """
    block.chunks = [[isal_zlib.compress(plane, level) for plane in frame] for frame in block.data[: block.count]]
