"""How large the pieces are that files and memory are cut into."""

from contextvars import ContextVar
from typing import NamedTuple

from gsio.frames.format import FrameFormat


class Sizes(NamedTuple):
    """How large blocks and chunks become.

    Attributes
    ----------
    block_bytes, block_work
        A block is full at so many bytes, or at so many cells times steps if these come first. Frames travel together
        so that each costs little Python: threads that take turns at the interpreter make every hop slow. The bound on
        the work lets a run stop soon: it takes 0.7 ms on a large GPU and 0.2 s on two cores.
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
        """Return how many frames, each after `steps` steps, fill a block; below 1 if one frame is more than a block."""
        return min(self.block_bytes / frame.frame_nbytes, self.block_work / (frame.cells * steps))


DEFAULT: ContextVar[Sizes | None] = ContextVar("sizes", default=None)  # set by `gsio.testing.small_blocks` only


def default_sizes() -> Sizes:
    """Return the sizes of a run that is given none."""
    return DEFAULT.get() or Sizes()
