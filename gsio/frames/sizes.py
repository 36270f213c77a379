"""The sizes of the pieces that files and memory are cut into."""

from contextvars import ContextVar
from typing import NamedTuple

from gsio.frames.format import FrameFormat


class Sizes(NamedTuple):
    """The sizes of blocks and chunks.

    Attributes
    ----------
    block_bytes, block_work
        A block is full at `block_bytes` bytes, or at `block_work` cells times steps if that comes first. Frames travel
        together so that each costs little Python: threads that take turns at the interpreter make every hop slow. The
        bound on the work lets a run stop soon: the work takes 0.7 ms on a large GPU and 0.2 s on two cores.
    chunk_bytes
        Bytes of one field that share a chunk. A reader decodes a whole chunk to see one frame.
    large_bytes, slab_bytes
        A plane of more than `large_bytes` is cut into slabs of about `slab_bytes`, so that several threads encode one
        frame.
    """

    block_bytes: int = 64 << 20
    block_work: int = 550_000_000
    chunk_bytes: int = 4 << 20
    large_bytes: int = 32 << 20
    slab_bytes: int = 8 << 20

    def frames_in_block(self, frame: FrameFormat, steps: int) -> float:
        """Return the number of frames, each after `steps` steps, that fill a block; below 1 if one frame is larger.

        The work does not count if `steps` is 0, because nobody knows it.
        """
        fitting = self.block_bytes / frame.frame_nbytes
        return min(fitting, self.block_work / (frame.cells * steps)) if steps else fitting


DEFAULT: ContextVar[Sizes | None] = ContextVar("sizes", default=None)  # set by `gsio.testing.small_blocks` only


def default_sizes() -> Sizes:
    """Return the sizes of a run whose caller gives none."""
    return DEFAULT.get() or Sizes()
