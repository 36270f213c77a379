"""Blocks: the unit in which frames travel from the solver through the encoders to the writer."""

import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from gsio.config import Config

# Frames travel together, so that each costs little Python: many threads that take turns at the interpreter make every
# hop slow. A block is full at so many bytes, or sooner where that much work would keep a run from stopping soon.
BLOCK_BYTES = 64 << 20
BLOCK_WORK = 550_000_000  # cells times steps: 0.7 ms on a large GPU, 0.2 s on two cores
# What threads still have to encode is handed out in halves of blocks, so that they end together; frame by frame, the
# hops cost more than that gains.
PARTS = 2
# Of one field: small frames share a chunk, which a reader decodes to see one; large ones are cut into slabs, so that
# several threads encode one frame.
CHUNK_BYTES = 4 << 20
LARGE_BYTES = 32 << 20
SLAB_BYTES = 8 << 20
PAGE = 4096
# Of what a GPU encodes in one piece: many fit beside another into its shared memory.
STREAM_BYTES = 8 << 10  # of a byte plane of a block of Blosc
SEGMENT_BYTES = 16 << 10  # of deflate, of one byte plane
ENCODED_BYTES = 1 << 30  # of the largest chunk that a GPU encodes
STATISTICS = ("min", "max", "mean", "error", "nonfinite")  # error: the largest of storing a value in fewer bits


@dataclass(frozen=True)
class FrameLayout:
    """How a frame lies in memory: one plane per saved field, byte-shuffled if the codec wants it so.

    The `shape` of a plane is [rows, cols], or [members, rows, cols] for a batch. Values are computed as `computed` and
    stored as `dtype`, with `keep_bits` bits of their mantissa if that is not 0; unsigned integers stand for 0 to 1.
    With a `gpu_codec`, "lz4" (in Blosc frames) or "deflate", a block has room for encoded chunks: a GPU leaves these
    there, no planes.
    """

    shape: tuple[int, ...]
    computed: np.dtype[Any]
    dtype: np.dtype[Any]
    keep_bits: int
    fields: tuple[str, ...]
    shuffle: bool
    frames_per_block: int
    frames_per_chunk: int  # a block holds whole chunks
    lines_per_chunk: int  # along the first axis of a plane
    frames_per_shard: int  # of which a block holds whole ones; 0: a chunk has a place of its own
    frames_per_part: int  # that a thread encodes at once: whole chunks and shards
    gpu_codec: str

    @classmethod
    def of(
        cls,
        shape: tuple[int, ...],
        computed: str,
        fields: str,
        *,
        shuffle: bool,
        steps: int = 1,
        frames: int = 1,
        store: str = "",
        keep_bits: int = 0,
        shard_frames: int = 0,
        frames_per_chunk: int = 0,
        pyramid: int = 0,
        gpu_codec: str = "",
        raw: bool = False,
    ) -> "FrameLayout":
        """Choose the frames per block, and per chunk if 0, for a run of `frames` frames, each after `steps` steps.

        Blocks that are `raw`, or encoded by a GPU, are left whole: they cost a thread little.
        """
        names, cells = tuple(fields.split(",")), math.prod(shape)
        dtype = np.dtype(store or computed).newbyteorder("<")
        plane = cells * dtype.itemsize
        most = min(BLOCK_BYTES / (plane * len(names)), BLOCK_WORK / (cells * steps))
        per_chunk = frames_per_chunk or max(1, round(min(CHUNK_BYTES / plane, most, frames)))
        if shard_frames:
            per_chunk = next(size for size in range(min(per_chunk, shard_frames), 0, -1) if shard_frames % size == 0)
        whole = shard_frames or per_chunk
        per_block = whole * max(1, round(most / whole))
        lines = shape[0] if plane <= LARGE_BYTES else max(1, round(SLAB_BYTES * shape[0] / plane))
        if lines < shape[0]:  # so that a slab of every level comes from one slab of the field
            lines = -(-lines >> pyramid) << pyramid
        stored = np.dtype(computed), dtype, keep_bits
        if per_chunk * plane // shape[0] * lines > ENCODED_BYTES:
            gpu_codec = ""
        per_part = per_block if raw or gpu_codec else whole * max(1, round(per_block / whole / PARTS))
        return cls(shape, *stored, names, shuffle, per_block, per_chunk, lines, shard_frames, per_part, gpu_codec)

    @property
    def cells(self) -> int:
        """Cells of a plane."""
        return math.prod(self.shape)

    @property
    def plane_nbytes(self) -> int:
        """Bytes of one field of one frame."""
        return self.cells * self.dtype.itemsize

    @property
    def frame_nbytes(self) -> int:
        """Bytes of one frame, all saved fields."""
        return self.plane_nbytes * len(self.fields)

    @property
    def levels(self) -> int:
        """The unsigned integer that stands for 1; 0 where values are stored as they are."""
        return int(np.iinfo(self.dtype).max) if self.dtype.kind == "u" else 0

    @property
    def scale(self) -> np.floating[Any]:
        """The value of the integer 1 where integers are stored, of the dtype that is computed: readers take it over."""
        dtype: type[np.floating[Any]] = self.computed.type
        return dtype(1 / (self.levels or 1))

    @property
    def lossy(self) -> bool:
        """Whether stored values differ from computed ones."""
        return self.dtype != self.computed or self.keep_bits > 0

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        """Cells of a chunk of one field, [frames, lines, …]."""
        return (self.frames_per_chunk, self.lines_per_chunk, *self.shape[1:])

    @property
    def chunk_nbytes(self) -> int:
        """Bytes of a chunk before compression."""
        return math.prod(self.chunk_shape) * self.dtype.itemsize

    @property
    def slab_nbytes(self) -> int:
        """Bytes of a slab of one field of one frame; the last can be smaller."""
        return self.lines_per_chunk * math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def slabs(self) -> int:
        """Chunks that a frame is cut into."""
        return -(-self.shape[0] // self.lines_per_chunk)

    @property
    def parts(self) -> int:
        """Parts of a block, each to be encoded by one thread."""
        return self.slabs * -(-self.frames_per_block // self.frames_per_part)

    @property
    def frames_together(self) -> int:
        """Frames that a file takes as one piece: those of a shard, else of a chunk."""
        return self.frames_per_shard or self.frames_per_chunk

    @property
    def statistics_nbytes(self) -> int:
        """Bytes of the statistics of a block."""
        return self.frames_per_block * len(self.fields) * len(STATISTICS) * 8

    @property
    def header_nbytes(self) -> int:
        """Bytes before the frames of a block: statistics, checksums and ends, padded to whole pages."""
        return -(-(self.ends_start + 4 * self.chunks_of(self.frames_per_block)) // PAGE) * PAGE

    @property
    def ends_start(self) -> int:
        """Bytes before the ends of the chunks: the statistics and checksums."""
        return self.statistics_nbytes + 4 * self.frames_per_block

    @cached_property
    def gpu_blocks(self) -> tuple[int, int]:
        """Blocks that a GPU makes of a chunk, each of its bytes a stream of its own, and cells of a block.

        The last is shorter. All its planes are one stream with Blosc, which has to be no longer than the others.
        """
        cells = math.prod(self.chunk_shape)
        if self.gpu_codec == "deflate":
            return -(-cells // SEGMENT_BYTES), min(cells, SEGMENT_BYTES)
        for whole in itertools.count(-(-cells // STREAM_BYTES)):
            block, left = divmod(cells, whole)
            if left * self.dtype.itemsize <= block:
                break
        return whole + (left > 0), block

    @property
    def encoded_nbytes(self) -> int:
        """Bytes such a chunk takes at most, in whole 16: if nothing shrinks, only headers are added."""
        blocks, _ = self.gpu_blocks
        streams = blocks * self.dtype.itemsize
        headers = 2 + 5 * streams + 6 if self.gpu_codec == "deflate" else 16 + 4 * (blocks + streams)
        return -(-(headers + self.chunk_nbytes) // 16) * 16

    def chunks_of(self, frames: int) -> int:
        """Return the number of chunks of the first `frames` of a block, all slabs and fields."""
        return -(-frames // self.frames_per_chunk) * self.slabs * len(self.fields)

    @property
    def block_nbytes(self) -> int:
        """Bytes of a full block."""
        encoded = self.chunks_of(self.frames_per_block) * self.encoded_nbytes if self.gpu_codec else 0
        return self.header_nbytes + max(self.frames_per_block * self.frame_nbytes, encoded)


def layout_of(config: Config, frames_per_chunk: int = 0) -> FrameLayout:
    """Return how the frames of a run lie in memory; only a codec gains from byte planes.

    Only the backend `cupy` encodes; what `auto` is has to be known before. An output that is extended keeps the
    `frames_per_chunk` it was made with.
    """
    members, grid, output = config.model.members, config.grid, config.output
    shape = (grid.rows, grid.cols) if members == 1 else (members, grid.rows, grid.cols)
    compression = output.compression
    by_gpu = (compression == "lz4" and not output.pyramid) or (compression == "deflate" and output.level == 1)
    by_gpu &= config.run.backend == "cupy"
    return FrameLayout.of(
        shape,
        config.model.precision,
        output.fields,
        shuffle=compression == "deflate",
        steps=config.run.steps_per_frame,
        frames=config.run.frames,
        store=config.stored,
        keep_bits=output.keep_bits,
        shard_frames=output.shard_frames,
        frames_per_chunk=frames_per_chunk,
        pyramid=output.pyramid,
        gpu_codec=compression if by_gpu else "",  # levels of a pyramid are made of the frames on the host
        raw=compression == "none",
    )
