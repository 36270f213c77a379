"""The pieces that memory is cut into: blocks, the tasks of a block, and the places of all data in a block."""

from dataclasses import dataclass

from gsio.frames.chunking import Chunking
from gsio.frames.format import FrameFormat
from gsio.frames.sizes import Sizes

# Threads that encode take half a block at a time, so that they end together. With single frames, more would be lost by
# the hops between threads.
TASKS = 2
PAGE = 4096
STATISTICS = ("min", "max", "mean", "error", "nonfinite")  # error: the largest change of a value by storing it


@dataclass(frozen=True)
class BlockLayout:
    """How the memory of a block is cut: a header, then frames, or chunks if the solver encodes.

    Attributes
    ----------
    chunks
        How the file is cut; a block holds whole chunks and shards.
    frames_per_block, frames_per_task
        Frames in a block, and in the share of a block that one thread encodes at once: whole chunks and shards.
    encoded_nbytes
        Bytes that one encoded chunk may take in a block; 0: the solver leaves frames there, and threads encode them.
    part
        Whether the frames are parts of the frames of the output: the lines of a band. The blocks then have what joins
        the statistics and checksums of parts.
    """

    chunks: Chunking
    frames_per_block: int
    frames_per_task: int
    encoded_nbytes: int = 0
    part: bool = False

    def __post_init__(self) -> None:
        together = self.chunks.frames_together
        for name, frames in (("block", self.frames_per_block), ("task", self.frames_per_task)):
            if frames < 1 or frames % together:
                raise ValueError(f"a {name} holds whole pieces of {together} frames; got {frames} frames")
        if self.frames_per_task > self.frames_per_block:
            raise ValueError(f"a block of {self.frames_per_block} frames has no task of {self.frames_per_task}")

    @classmethod
    def choose(
        cls, chunks: Chunking, sizes: Sizes, *, steps: int = 1, halve: bool = True, encoded_nbytes: int = 0
    ) -> "BlockLayout":
        """Choose the blocks of a run with `steps` steps a frame; if not `halve`, a block is one task."""
        piece = chunks.frames_together
        per_block = piece * max(1, round(sizes.frames_in_block(chunks.frame, steps) / piece))
        per_task = piece * max(1, round(per_block / piece / TASKS)) if halve else per_block
        return cls(chunks, per_block, per_task, encoded_nbytes)

    @classmethod
    def of_frames(cls, frame: FrameFormat, frames_per_block: int) -> "BlockLayout":
        """Return the layout of blocks of `frames_per_block` frames, with a chunk for each frame, and one task."""
        return cls(Chunking(frame, 1, frame.shape[0]), frames_per_block, frames_per_block)

    @property
    def frame(self) -> FrameFormat:
        """The format of a frame."""
        return self.chunks.frame

    @property
    def tasks(self) -> int:
        """Tasks of a block: each is a slab of `frames_per_task` frames."""
        return self.chunks.slabs * -(-self.frames_per_block // self.frames_per_task)

    def end_of(self, first: int) -> int:
        """Return where a block from frame `first` on ends at most: with its chunk or shard, if it begins inside one."""
        behind = first % self.chunks.frames_together
        return first - behind + (self.chunks.frames_together if behind else self.frames_per_block)

    @property
    def statistics_nbytes(self) -> int:
        """Bytes of the statistics of a block."""
        return self.frames_per_block * len(self.frame.fields) * len(STATISTICS) * 8

    @property
    def checksums_start(self) -> int:
        """Bytes before the checksums: the statistics and, of parts, the sums of their rows."""
        rows = self.frame.cells // self.frame.shape[-1]
        return self.statistics_nbytes + self.part * self.frames_per_block * len(self.frame.fields) * rows * 8

    @property
    def pieces_start(self) -> int:
        """Bytes before the checksums of the pieces of parts: all before them, and the checksums."""
        return self.checksums_start + 4 * self.frames_per_block

    @property
    def ends_start(self) -> int:
        """Bytes before the ends of the chunks: the statistics, sums and checksums."""
        return self.pieces_start + 4 * self.part * self.frames_per_block * len(self.frame.fields) * self.byte_planes

    @property
    def byte_planes(self) -> int:
        """The pieces in which the bytes of a plane lie in a block: its byte planes, or 1 if they are not shuffled."""
        return self.frame.dtype.itemsize if self.frame.shuffle else 1

    @property
    def header_nbytes(self) -> int:
        """Bytes before the frames of a block: statistics, sums, checksums and ends, padded to whole pages."""
        return -(-(self.ends_start + 4 * self.chunks.chunks_of(self.frames_per_block)) // PAGE) * PAGE

    @property
    def block_nbytes(self) -> int:
        """Bytes of a full block."""
        encoded = self.chunks.chunks_of(self.frames_per_block) * self.encoded_nbytes
        return self.header_nbytes + max(self.frames_per_block * self.frame.frame_nbytes, encoded)
