"""Blocks: frames travel in them from the solver through the encoders to the writer."""

import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, NewType

import numpy as np
from numpy.typing import NDArray

from gsio.frames.layout import STATISTICS, BlockLayout


class Spent(NamedTuple):
    """What one device, or one rank, took for the frames of a block; see the attributes of `Block` of the same names."""

    compute_start: float
    compute_seconds: float
    link_start: float
    link_seconds: float
    exchange_seconds: float

    def on_clock(self, behind: float) -> "Spent":
        """Return the same on a clock that shows `behind` seconds more; a time that nobody knows stays 0."""
        compute, link = (start and start + behind for start in (self.compute_start, self.link_start))
        return self._replace(compute_start=compute, link_start=link)


class Block:
    """Host memory of up to `frames_per_block` consecutive frames, with their statistics, checksums and chunks.

    Attributes
    ----------
    buffer
        uint8, the whole block in one piece: statistics, sums, checksums, pieces, ends, frames. A solver may fill the
        buffer by one copy.
    statistics
        float64 [frame, field, statistic], a view of `buffer`; the statistics are `STATISTICS`.
    times, steps
        float64 and int64 [frame], the model time and the number of steps behind each frame; whoever fills a block sets
        them.
    data
        uint8 [frame, field, byte], a view of `buffer`: each field in C order, or its byte planes if the layout shuffles
        (all first bytes, then all second bytes, …).
    first, count
        The number of the first frame, and the number of frames that the block holds now.
    kept
        The number of frames, at the beginning, that the output holds already. They share a chunk or shard with the
        frames after them, so that all are encoded again together.
    checksums, chunks
        The results of the encoder: crc32c [frame] of `data`, a view of `buffer`; and by the number of a chunk, along
        the frames of the block and along the slabs, one encoded chunk of each field. A chunk in which the frames or
        lines end is filled up with zeros. A solver that encodes sets both itself, in the place of `data`.
    sums, pieces
        Of frames that are parts, views of `buffer`: float64 [frame, field, row], the sums of the rows, which the solver
        sets, and uint32 [frame, field, byte plane], the crc32c of the pieces of `data`. Otherwise both are empty.
    encoded
        uint8, a view of `buffer`, the place of `data`: a solver that encodes leaves the chunks there.
    nbytes_elsewhere, spent_elsewhere
        Bytes of the chunks that other ranks have stored of these frames, and what each of these ranks took.
    ends
        uint32 [chunk], a view of `buffer`: the bytes from the place of a chunk to its end, if the solver encodes.
    compute_seconds, link_seconds
        Seconds that the device spent to compute and to copy these frames; the solver sets them, unless `fill` does the
        work before it returns.
    compute_start, link_start
        The times at which that work began, in seconds of `time.perf_counter`; 0 where `fill` does the work before it
        returns.
    exchange_seconds
        Seconds of `compute_seconds` in which the device exchanged rows with other bands, or waited for these; 0 where
        nobody can tell.
    parts
        If several devices compute the frames: the blocks of their bands, each with its own times.
    """

    def __init__(self, layout: BlockLayout, buffer: NDArray[np.uint8], apart: NDArray[np.uint8] | None = None) -> None:
        """Lay out a buffer; the part of a band can have its `encoded`, or its `planes` as `data`, `apart` from it."""
        frames, fields = layout.frames_per_block, len(layout.frame.fields)
        parts = frames if layout.part else 0
        self.layout = layout
        self.buffer = buffer
        numbers = layout.statistics_nbytes
        self.statistics = buffer[:numbers].view(np.float64).reshape(frames, fields, len(STATISTICS))
        self.times, self.steps = np.zeros(frames), np.zeros(frames, np.int64)
        sums = buffer[numbers : layout.checksums_start].view(np.float64)
        self.sums = sums.reshape(parts, fields, layout.frame.cells // layout.frame.shape[-1])
        self.checksums = buffer[layout.checksums_start : layout.pieces_start].view(np.uint32)
        pieces = buffer[layout.pieces_start : layout.ends_start].view(np.uint32)
        self.pieces = pieces.reshape(parts, fields, layout.byte_planes)
        self.ends = buffer[layout.ends_start :][: 4 * layout.chunks.chunks_of(frames)].view(np.uint32)
        self.apart, self.encoded = apart is not None, buffer[layout.header_nbytes :] if apart is None else apart
        data = self.encoded[: frames * layout.frame.frame_nbytes]
        self.data = data.reshape(frames, fields, layout.frame.plane_nbytes) if apart is None else apart
        self.nbytes_elsewhere, self.spent_elsewhere = 0, list[Spent]()
        self.first = 0
        self.count = 0
        self.kept = 0
        self.chunks: dict[tuple[int, int], list[Any]] = {}
        self.compute_seconds = 0.0
        self.link_seconds = 0.0
        self.exchange_seconds = 0.0
        self.compute_start = 0.0
        self.link_start = 0.0
        self.parts: list[Block] = []
        self._tasks_done = 0
        self._counting = threading.Lock()

    @property
    def planes(self) -> NDArray[np.uint8]:
        """`data` as [frame, field, byte plane, byte]; there is one byte plane if the format does not shuffle."""
        return self.data.reshape(*self.data.shape[:2], self.layout.byte_planes, -1)

    @property
    def encoded_nbytes(self) -> int:
        """Bytes of the encoded chunks."""
        return sum(len(encoded) for chunk in self.chunks.values() for encoded in chunk)

    @property
    def spent(self) -> list[Spent]:
        """What each device, or each rank, took for these frames; the numbers in the list are those of the bands."""
        mine = [
            Spent(one.compute_start, one.compute_seconds, one.link_start, one.link_seconds, one.exchange_seconds)
            for one in self.parts or [self]
        ]
        return mine + self.spent_elsewhere

    def chunk_numbers(self, task: int) -> tuple[range, int]:
        """Return the chunks of a task: their numbers along the frames of the block, and their slab."""
        layout = self.layout
        piece, slab = divmod(task, layout.chunks.slabs)
        first = piece * layout.frames_per_task
        frames = first, min(first + layout.frames_per_task, self.count)
        return range(*(-(-frame // layout.chunks.frames_per_chunk) for frame in frames)), slab

    def put(self, frame: int, field: int, plane: NDArray[Any]) -> None:
        """Put a plane of stored values, of the layout's shape, into `data`, shuffled if the format shuffles."""
        raw = np.ascontiguousarray(plane, self.layout.frame.dtype).reshape(-1, 1).view(np.uint8)
        self.data[frame, field] = (raw.T if self.layout.frame.shuffle else raw).reshape(-1)

    def finish_task(self) -> bool:
        """Count one more task of the block as done, and return whether it was the last."""
        with self._counting:
            self._tasks_done = (self._tasks_done + 1) % self.layout.tasks
            return self._tasks_done == 0


# The phases of a block: the pool gives a Block, the caller puts frames there and submits a FilledBlock, and a
# writer commits an EncodedBlock.
FilledBlock = NewType("FilledBlock", Block)
EncodedBlock = NewType("EncodedBlock", Block)


class BlockPool:
    """A fixed number of blocks, the only bound in the system: a solver waits for a free block, and nowhere else."""

    def __init__(self, layout: BlockLayout, blocks: int, allocate: Callable[[int], NDArray[np.uint8]]) -> None:
        self.layout = layout
        self.blocks = blocks
        self._free: queue.SimpleQueue[Block | None] = queue.SimpleQueue()
        for _ in range(blocks):
            self._free.put(Block(layout, allocate(layout.block_nbytes)))
        self._closed = False

    @property
    def in_use(self) -> int:
        """The number of blocks that are acquired and not released."""
        return self.blocks + self._closed - self._free.qsize()

    def acquire(self) -> Block | None:
        """Wait for a free block and return it; None once the pool is closed."""
        block = self._free.get()
        if self._closed:
            self._free.put(block)  # for the next caller
            return None
        return block

    def release(self, block: Block) -> None:
        """Return a block to the pool; from now on its bytes may be overwritten."""
        block.chunks, block.kept, block.nbytes_elsewhere, block.spent_elsewhere = {}, 0, 0, []
        self._free.put(block)

    def empty(self) -> None:
        """Give back the memory of the free blocks, and close the pool, which has no blocks from now on."""
        with suppress(queue.Empty):
            while True:
                self._free.get_nowait()
        self.blocks, self._closed = 0, False
        self.close()

    def close(self) -> None:
        """Wake the callers that wait for a block."""
        if not self._closed:
            self._closed = True
            self._free.put(None)
