"""The segments of a chunk that a GPU encodes, without CuPy: the plan asks how many bytes an encoded chunk may take."""

import itertools
import math

from gsio.frames.chunking import Chunking

# Bytes of a segment at most, of one byte plane: many fit beside one another into the shared memory of a GPU.
STREAM_BYTES = 8 << 10  # of a block of Blosc
SEGMENT_BYTES = 16 << 10  # of deflate
ENCODED_BYTES = 1 << 30  # bytes of the largest chunk that a GPU encodes


def blocks_of(chunks: Chunking, codec: str) -> tuple[int, int]:
    """Return how many blocks a GPU makes of a chunk, and the cells of a block; each byte plane of it is a segment.

    The last block may be shorter. Blosc then puts all its byte planes into one segment, which must not be longer than
    the others.
    """
    cells = math.prod(chunks.chunk_shape)
    if codec == "deflate":
        return -(-cells // SEGMENT_BYTES), min(cells, SEGMENT_BYTES)
    for whole in itertools.count(-(-cells // STREAM_BYTES)):
        block, rest = divmod(cells, whole)
        if rest * chunks.frame.dtype.itemsize <= block:
            break
    return whole + (rest > 0), block


def encoded_nbytes(chunks: Chunking, codec: str) -> int:
    """Return how many bytes a chunk takes at most when a GPU has encoded it, a multiple of 16; 0 if it is too large.

    In the worst case nothing shrinks, and only headers are added.
    """
    if chunks.chunk_nbytes > ENCODED_BYTES:
        return 0
    blocks, _ = blocks_of(chunks, codec)
    segments = blocks * chunks.frame.dtype.itemsize
    headers = 2 + 5 * segments + 6 if codec == "deflate" else 16 + 4 * (blocks + segments)
    return -(-(headers + chunks.chunk_nbytes) // 16) * 16
