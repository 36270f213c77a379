"""The way of frames from fields on an NVIDIA GPU into the memory of a block, for the solver and for foreign arrays.

Frames are staged in device memory, and encoded there if the layout says so. The link stream copies them, or their
chunks from a slot of a small ring, into the pinned memory of a block. Events order the streams, so that none waits for
the host. The sizes of encoded chunks are known only on the device, so that a host thread that waits for the block reads
the sizes and queues the copy.
"""

import math
import threading
import time
from typing import Any

import cupy
import numpy as np
from cupy.cuda import Stream, runtime
from numpy.typing import NDArray

from gsio.compute.cuda import encoder
from gsio.compute.cuda.cubins import load_module
from gsio.compute.cuda.encoder import ChunkEncoder, chunks_in
from gsio.compute.cuda.ring import (
    ANCHOR_SECONDS,
    MAX_PADDING_RATIO,
    BlockTimes,
    Slot,
    copy_to_host,
    new_anchor,
    slots_of,
)
from gsio.compute.cuda.sources import (
    STAGE,
    STAGE_THREADS,
    SUMMARY_THREADS,
    stage_blocks,
    stage_dtype,
    stage_options,
    stage_plane,
)
from gsio.frames.block import Block
from gsio.frames.layout import STATISTICS, BlockLayout

STATISTICS_NBYTES = 8 * len(STATISTICS)  # of a plane
MOST_WIDTH = 1 << 20  # bytes of pieces that one order copies together; CUDA limits their distance to 2 GiB


def needed_bytes(layout: BlockLayout) -> int:
    """Return the bytes of device memory of a `BlockLink`: slots, partial statistics, encoding."""
    encoding = encoder.needed_bytes(layout, layout.chunks.codec) if layout.encoded_nbytes else 0
    return math.prod(slots_of(layout)) + _planes(layout) * sum(_nbytes_of_plane(layout)) + encoding


def _planes(layout: BlockLayout) -> int:
    return layout.frames_per_block * len(layout.frame.fields)


def _nbytes_of_plane(layout: BlockLayout) -> tuple[int, int, int]:
    """Return the bytes, for a plane, of the partial statistics, of the sums of pieces of rows, and of those of rows."""
    plane = stage_plane(layout.frame, whole=True)
    rows = 8 * int(plane["rows"])
    return stage_blocks(layout.frame) * STATISTICS_NBYTES, rows * int(plane["pieces"]), rows


class BlockLink:
    """Stages frames on the current device, encodes them if the layout says so, and copies them into blocks.

    For each block the calls are `begin`, `stage` for each plane, `finish` and `send`. One thread at a time makes them;
    several threads may `wait`.

    Attributes
    ----------
    compute
        The stream of all work between `begin` and the copies; the memory of a block is free for what this stream does
        after `begin`.
    dtype
        The dtype of the planes that `stage` takes.
    """

    def __init__(self, layout: BlockLayout, device: Any, pitch: int = 0) -> None:
        """Allocate memory on `device`, a `cupy.cuda.Device`, which is the current one.

        `pitch` is the distance of the rows of the planes that `stage` takes, in cells; 0: they are contiguous.
        """
        self._layout = layout
        self._device = device
        self.compute, self._link = Stream(non_blocking=True), Stream(non_blocking=True)
        module = load_module(STAGE, stage_options(layout.frame))
        self._stage, self._summarise = map(module.get_function, ("stage", "summarise"))
        self.dtype = stage_dtype(layout.frame)
        self._blocks = stage_blocks(layout.frame)
        plane = stage_plane(layout.frame, whole=not layout.part, pitch=pitch)
        self._plane = plane.view(f"V{plane.itemsize}")  # CuPy passes it faster as bytes
        self._of_plane = _nbytes_of_plane(layout)
        self._partial, self._sums, self._row_sums = (
            cupy.empty(_planes(layout) * nbytes, np.uint8) for nbytes in self._of_plane
        )
        slots, nbytes = slots_of(layout)
        self._slots = [Slot(nbytes) for _ in range(slots)]
        self._encoder = ChunkEncoder(layout, layout.chunks.codec) if layout.encoded_nbytes else None
        self._begun = 0
        self._times: dict[int, BlockTimes] = {}
        self._sending = threading.Lock()  # keeps the orders of one copy together on the link stream
        self._clock = Stream(non_blocking=True)
        self._anchor = new_anchor(self._clock)

    def allocate(self, nbytes: int) -> NDArray[np.uint8]:
        """Return pinned memory, to which the GPU copies at full speed and without the host.

        CuPy's pool would round the size up to a power of two, to nearly twice a block.
        """
        with self._device:
            memory = cupy.cuda.PinnedMemory(nbytes, runtime.hostAllocPortable)
        return np.frombuffer(cupy.cuda.PinnedMemoryPointer(memory, 0), np.uint8, nbytes)

    def begin(self, block: Block) -> tuple[int, Any]:
        """Return memory of the device for the frames of `block`, and its number; `compute` waits until it is free.

        The memory is uint8 and laid out as a block.
        """
        number = self._begun % len(self._slots)
        self._begun += 1
        address = block.buffer.ctypes.data
        if address not in self._times:
            self._times[address] = BlockTimes()
        times = self._times[address]
        if time.perf_counter() - self._anchor.seconds > ANCHOR_SECONDS:
            self._anchor = new_anchor(self._clock)
        times.anchor, times.slot, times.arrived = self._anchor, self._slots[number], False
        if self._encoder is not None:
            return 0, self._encoder.memory
        self.compute.wait_event(times.slot.copied)
        return number, times.slot.memory

    def stage(self, field: Any, memory: Any, plane: int) -> None:
        """Queue the staging of a plane of a block, on the current stream.

        `field` is an array of `dtype` on the device, or the address of one.
        """
        layout, (partial, sums, _) = self._layout, self._of_plane
        addresses = (
            memory.data.ptr + layout.header_nbytes + plane * layout.frame.plane_nbytes,
            self._partial.data.ptr + plane * partial,
            self._sums.data.ptr + plane * sums,
        )
        self._stage((self._blocks,), (STAGE_THREADS,), (field, *map(np.int64, addresses), self._plane))

    def finish(self, memory: Any, count: int) -> None:
        """Queue what `count` staged frames still lack, on the current stream: their statistics, and encoding."""
        layout = self._layout
        row_sums = memory.data.ptr + layout.statistics_nbytes if layout.part else self._row_sums.data.ptr
        arguments = self._partial, self._sums, np.int64(row_sums), memory, self._plane, np.int32(self._blocks)
        self._summarise((count * len(layout.frame.fields),), (SUMMARY_THREADS,), arguments)
        if self._encoder is not None:
            self._encoder.encode(count)

    def mark(self, block: Block) -> None:
        """Let the device's time for `block` begin here on the stream `compute`."""
        self._times[block.buffer.ctypes.data].computing.record(self.compute)

    def send(self, block: Block, launched: float) -> None:
        """Queue the copy of `block`, whose frames `compute` has finished.

        `launched` is the time of the first launch of that work, in seconds of `time.perf_counter`.
        """
        times = self._times[block.buffer.ctypes.data]
        times.launched = launched
        times.staged.record(self.compute)
        if self._encoder is not None:
            with self.compute:
                self._gather(block, times, self._encoder)
            return
        self._link.wait_event(times.staged)
        times.copying.record(self._link)
        times.copy_issued = time.perf_counter()
        self._send_frames(block, times.slot.memory.data.ptr)
        times.copied.record(self._link)
        times.slot.copied.record(self._link)

    def _send_frames(self, block: Block, source: int) -> None:
        """Queue the copy of staged frames; the byte planes of a band lie apart in the block of all bands."""
        address, header = block.buffer.ctypes.data, self._layout.header_nbytes
        nbytes = block.count * self._layout.frame.frame_nbytes
        if not block.apart:
            copy_to_host(address, source, header + nbytes, self._link)
            return
        copy_to_host(address, source, header, self._link)
        address, (*_, pitch, _), width = block.data.ctypes.data, block.data.strides, block.data.shape[-1]
        source, pieces = source + header, nbytes // width
        if width < MOST_WIDTH:
            copy_to_host(address, source, width, self._link, pieces, pitch, width)
            return
        for piece in range(pieces):
            copy_to_host(address + piece * pitch, source + piece * width, width, self._link)

    def _gather(self, block: Block, times: BlockTimes, encoder: ChunkEncoder) -> None:
        """Put encoded chunks into the slot of the block. The block itself gets their ends and the rest of its header.

        This is not a part of the graph: every slot would need a graph of its own, and to make one takes milliseconds.
        """
        if (pending := times.slot.pending_copy) is not None:  # no thread has waited for that block yet
            self._send_chunks(pending)
        self.compute.wait_event(times.slot.copied)
        before = time.perf_counter()
        encoder.gather(block.count, times.slot.memory)
        times.gathered = (before + time.perf_counter()) / 2
        times.computed.record()
        copy_to_host(block.buffer.ctypes.data, encoder.memory.data.ptr, self._layout.header_nbytes, self.compute)
        times.sizes_known.record()
        times.slot.pending_copy = block

    def start(self, block: Block) -> None:
        """Return when the copy of `block` is queued, which takes a host thread if chunks are encoded."""
        if self._encoder is not None:
            with self._device:
                self._send_chunks(block)

    def _send_chunks(self, block: Block) -> None:
        """Queue the copy of encoded chunks once their sizes are known. The first thread that comes does it."""
        times, pitch = self._times[block.buffer.ctypes.data], self._layout.encoded_nbytes
        times.sizes_known.synchronize()
        ends = block.ends[: self._layout.chunks.chunks_of(block.count)]
        longest = int(ends.max())
        orders = [(chunk * pitch, nbytes, 1) for chunk, nbytes in enumerate(ends.tolist())]
        # Several copies may make the link wait for this thread.
        if longest * len(ends) < MAX_PADDING_RATIO * ends.sum(dtype=np.int64):
            orders = [(0, longest, len(ends))]
        source, address = times.slot.memory.data.ptr, block.encoded.ctypes.data
        with self._sending:
            if times.slot.pending_copy is not block:
                return
            times.copying.record(self._link)
            before = time.perf_counter()
            for number, (place, nbytes, pieces) in enumerate(orders):
                copy_to_host(address + place, source + place, nbytes, self._link, pieces, pitch, pitch)
                if number == 0:
                    times.copy_issued = (before + time.perf_counter()) / 2
            times.copied.record(self._link)
            times.slot.copied.record(self._link)
            times.slot.pending_copy = None  # This comes last, because the slot may be filled again from here on.

    def wait(self, block: Block) -> None:
        """Return when the copy of `block` is done."""
        times = self._times[block.buffer.ctypes.data]
        with times.lock, self._device:  # A thread comes for each slab, and the first one does the work.
            if times.arrived:
                return
            if self._encoder is not None:
                self._send_chunks(block)
            times.copied.synchronize()
            if self._encoder is not None:
                block.chunks = chunks_in(block)
            block.compute_start, block.compute_seconds = times.interval(times.computing, times.launched, times.staged)
            if self._encoder is not None:  # without the time that the device waited for these orders
                block.compute_seconds += times.interval(times.staged, times.gathered, times.computed)[1]
            block.link_start, block.link_seconds = times.interval(times.copying, times.copy_issued, times.copied)
            times.arrived = True

    def synchronize(self) -> None:
        """Return when all that was queued is done."""
        self.compute.synchronize()
        self._link.synchronize()
