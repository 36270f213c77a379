"""The pieces that a file is cut into: chunks, slabs and shards."""

import math
from dataclasses import dataclass

import numpy as np

from gsio.frames.format import FrameFormat
from gsio.frames.sizes import Sizes

PLACE = np.dtype([("offset", "<u8"), ("nbytes", "<u8")])  # a chunk in the file; both are 0 where each chunk is a file


@dataclass(frozen=True)
class Chunking:
    """How a file is cut into chunks, each with some frames of one field or a slab of them, and how these are encoded.

    Attributes
    ----------
    frame
        The frames.
    frames_per_chunk
        Frames that share a chunk: small frames do.
    lines_per_chunk
        Lines of a chunk along the first axis of a plane. A large plane is cut into slabs, each with this many lines.
    frames_per_shard
        Frames that share a shard; 0: the file has no shards.
    codec, level
        The name of the codec of the chunks, and its level of compression. The name is "" if nothing is encoded.
    """

    frame: FrameFormat
    frames_per_chunk: int
    lines_per_chunk: int
    frames_per_shard: int = 0
    codec: str = ""
    level: int = 1

    def __post_init__(self) -> None:
        if self.frames_per_chunk < 1 or self.lines_per_chunk < 1:
            raise ValueError(f"a chunk holds frames and lines; got {self.frames_per_chunk} and {self.lines_per_chunk}")
        if self.frames_per_shard % self.frames_per_chunk:
            raise ValueError(
                f"a shard holds whole chunks; got {self.frames_per_shard} frames and {self.frames_per_chunk} a chunk"
            )

    @classmethod
    def choose(
        cls,
        frame: FrameFormat,
        sizes: Sizes,
        *,
        frames: int = 1,
        steps: int = 1,
        frames_per_chunk: int = 0,
        lines_per_chunk: int = 0,
        frames_per_shard: int = 0,
        bands: int = 1,
        pyramid: int = 0,
        codec: str = "",
        level: int = 1,
    ) -> "Chunking":
        """Choose the chunks of `frames` frames, each after `steps` steps, with `pyramid` smaller levels.

        Both numbers are 0 where nobody knows them. An output that is extended keeps its `frames_per_chunk` and
        `lines_per_chunk`; 0: the number is chosen. Each of `bands` gets about the same number of slabs, and at least
        one if there are enough lines. A frame of one axis is never cut, so that readers can take it for a row.
        """
        plane, lines = frame.plane_nbytes, frame.shape[0]
        fitting = min(sizes.chunk_bytes / plane, sizes.frames_in_block(frame, steps), frames or math.inf)
        per_chunk = frames_per_chunk or max(1, round(fitting))
        if frames_per_shard:
            smaller = range(min(per_chunk, frames_per_shard), 0, -1)
            per_chunk = next(size for size in smaller if frames_per_shard % size == 0)
        if plane > sizes.large_bytes and len(frame.shape) > 1:
            lines = max(1, round(sizes.slab_bytes * frame.shape[0] / plane))
        if bands > 1 and len(frame.shape) > 1:
            slabs_of_band = max(1, round(frame.shape[0] / (lines * bands)))
            lines = -(-frame.shape[0] // (bands * slabs_of_band))
            lines = min(lines, max(1, (frame.shape[0] - 1) // (bands - 1)))  # with more lines, a band would have none
        lines = lines_per_chunk or lines
        if lines < frame.shape[0]:  # a slab of each level comes from one slab of the field
            lines = -(-lines >> pyramid) << pyramid
        return cls(frame, per_chunk, lines, frames_per_shard, codec, level)

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        """Cells of a chunk of one field, [frames, lines, …]."""
        return (self.frames_per_chunk, self.lines_per_chunk, *self.frame.shape[1:])

    @property
    def chunk_nbytes(self) -> int:
        """Bytes of a chunk before compression."""
        return math.prod(self.chunk_shape) * self.frame.dtype.itemsize

    @property
    def slabs(self) -> int:
        """The number of slabs that a frame is cut into, each with its own chunk; 1: frames are whole."""
        return -(-self.frame.shape[0] // self.lines_per_chunk)

    @property
    def frames_together(self) -> int:
        """Frames that a file takes as one piece: the frames of a shard, or else of a chunk."""
        return self.frames_per_shard or self.frames_per_chunk

    def chunks_of(self, frames: int) -> int:
        """Return the number of chunks, in all slabs and fields, of `frames` frames whose first begins a chunk."""
        return -(-frames // self.frames_per_chunk) * self.slabs * len(self.frame.fields)
