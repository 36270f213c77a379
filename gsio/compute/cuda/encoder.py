"""The encoding of chunks on an NVIDIA GPU, by the kernels of ``chunks.cu`` and of one more file for each codec."""

import math
from typing import Any

import cupy
import numpy as np
from numpy.typing import NDArray

from gsio.codec import CODECS
from gsio.codec.interface import Kernels
from gsio.compute.cuda.cubins import load_module
from gsio.compute.cuda.segments import blocks_of
from gsio.compute.cuda.sources import CHECKSUM_THREADS, CHECKSUM_WORDS, encode_options
from gsio.frames.block import Block
from gsio.frames.layout import BlockLayout

CHECKSUM_NBYTES = 4 * CHECKSUM_THREADS * CHECKSUM_WORDS  # bytes that a block of threads reads
GATHER_THREADS = 128

ENCODE_PLAN = np.dtype([
    ("cells", np.int64), ("chunk_slot", np.int64),
    *((name, np.int32) for name in (
        "itemsize", "count", "fields", "frames", "slabs", "slab", "blocks", "block", "slot",
    )),
], align=True)  # fmt: skip


def kernels_of(codec: str) -> Kernels:
    """Return the kernels of a codec that the plan gives to a GPU."""
    kernels = CODECS[codec].kernels
    assert kernels is not None  # The plan lets a GPU encode only if there are kernels.
    return kernels


def needed_bytes(layout: BlockLayout, codec: str) -> int:
    """Return the bytes of device memory for encoding: the frames of a block and their streams."""
    return layout.block_nbytes + math.prod(streams_of(layout, codec, layout.frames_per_block))


def streams_of(layout: BlockLayout, codec: str, frames: int) -> tuple[int, int]:
    """Return the number of streams in the chunks of `frames` frames, and the bytes of the slot of each stream."""
    blocks, block = blocks_of(layout.chunks, codec)
    slot = -(-(block + kernels_of(codec).around) // 16) * 16
    return layout.chunks.chunks_of(frames) * blocks * layout.frame.dtype.itemsize, slot


def encode_plan(layout: BlockLayout, codec: str) -> NDArray[np.void]:
    """Return the struct Plan of ``chunks.cu``, without its count of frames."""
    plan, frame, chunks = np.zeros((), ENCODE_PLAN), layout.frame, layout.chunks
    plan["cells"], plan["chunk_slot"], plan["itemsize"] = frame.cells, layout.encoded_nbytes, frame.dtype.itemsize
    plan["fields"], plan["frames"], plan["slabs"] = len(frame.fields), chunks.frames_per_chunk, chunks.slabs
    plan["slab"] = math.prod(chunks.chunk_shape[1:])
    plan["blocks"], plan["block"] = blocks_of(chunks, codec)
    _, plan["slot"] = streams_of(layout, codec, 1)
    return plan


class ChunkEncoder:
    """Encodes the frames of one block after another; all orders go to the current stream.

    Attributes
    ----------
    memory
        uint8, laid out as a block. Staging writes its frames, and encoding writes the part before them.
    """

    def __init__(self, layout: BlockLayout, codec: str) -> None:
        """Allocate device memory for a block of `layout`."""
        self._layout = layout
        self._codec = codec
        kernels = kernels_of(codec)
        module = load_module(("chunks.cu", kernels.source), encode_options(kernels))
        self._checksum, self._encode, self._gather = map(module.get_function, ("checksum", "encode", "gather"))
        self._plans: dict[int, tuple[int, NDArray[np.void]]] = {}
        self._threads = kernels.threads
        streams, slot = streams_of(layout, codec, layout.frames_per_block)
        self._sizes = cupy.empty(streams, np.int32)
        self._streams = cupy.empty(streams * slot, np.uint8)
        self.memory = cupy.zeros(layout.block_nbytes, cupy.uint8)
        self._ends = self.memory[layout.ends_start :]

    def encode(self, count: int) -> None:
        """Compute the checksums of `count` frames, or of the pieces of parts, and the streams of their chunks."""
        layout = self._layout
        frames, checksums = self.memory[layout.header_nbytes :], self.memory[layout.checksums_start :]
        number, nbytes = count, layout.frame.frame_nbytes
        if layout.part:
            checksums, of_frame = self.memory[layout.pieces_start :], len(layout.frame.fields) * layout.byte_planes
            number, nbytes = count * of_frame, nbytes // of_frame
        checksums.data.memset_async(0, 4 * number)
        blocks = -(-nbytes // CHECKSUM_NBYTES)
        arguments: Any = (frames, checksums, np.int64(nbytes), np.int32(blocks))
        self._checksum((number * blocks,), (CHECKSUM_THREADS,), arguments)
        streams, plan = self._of(count)
        self._encode((streams,), (self._threads,), (frames, self._streams, self._sizes, plan))

    def gather(self, count: int, chunks: Any) -> None:
        """Join the streams of `count` frames into `chunks`, one every `encoded_nbytes` bytes, and store their ends."""
        streams, plan = self._of(count)
        self._gather((streams,), (GATHER_THREADS,), (chunks, self._streams, self._sizes, self._ends, plan))

    def _of(self, count: int) -> tuple[int, NDArray[np.void]]:
        """Return the number of streams of `count` frames, and their plan; CuPy passes it faster as bytes."""
        if count not in self._plans:
            streams, _ = streams_of(self._layout, self._codec, count)
            plan = encode_plan(self._layout, self._codec)
            plan["count"] = count
            self._plans[count] = streams, plan.view(f"V{plan.itemsize}")
        return self._plans[count]


def chunks_in(block: Block) -> dict[tuple[int, int], list[Any]]:
    """Return the encoded chunks in `block`, of each field, by the numbers of chunk and slab."""
    layout = block.layout
    numbers, nbytes = -(-block.count // layout.chunks.frames_per_chunk), layout.encoded_nbytes
    chunks = layout.chunks.chunks_of(block.count)
    found = [block.encoded[i * nbytes :][:end] for i, end in enumerate(block.ends[:chunks].tolist())]
    fields, places = len(layout.frame.fields), np.ndindex(numbers, layout.chunks.slabs)
    return {place: found[i * fields : (i + 1) * fields] for i, place in enumerate(places)}
