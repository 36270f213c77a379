"""The segments of a chunk that a GPU encodes, without CuPy: the plan asks how many bytes an encoded chunk may take."""

import math

from gsio.codec import CODECS
from gsio.frames.chunking import Chunking

ENCODED_BYTES = 1 << 30  # bytes of the largest chunk that a GPU encodes


def blocks_of(chunks: Chunking, codec: str) -> tuple[int, int]:
    """Return how many blocks a GPU makes of a chunk, and the cells of a block; each byte plane of it is a segment."""
    kernels = CODECS[codec].kernels
    assert kernels is not None  # else a GPU would encode nothing
    return kernels.blocks(math.prod(chunks.chunk_shape), chunks.frame.dtype.itemsize)


def encoded_nbytes(chunks: Chunking, codec: str) -> int:
    """Return how many bytes a chunk takes at most when a GPU has encoded it, a multiple of 16.

    In the worst case nothing shrinks, and only headers are added. 0 means that no GPU can encode the chunk: it is too
    large, or the codec has no kernels.
    """
    kernels = CODECS[codec].kernels
    if kernels is None or chunks.chunk_nbytes > ENCODED_BYTES:
        return 0
    blocks, _ = blocks_of(chunks, codec)
    headers = kernels.headers(blocks, blocks * chunks.frame.dtype.itemsize)
    return -(-(headers + chunks.chunk_nbytes) // 16) * 16
