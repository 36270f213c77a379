"""What bands and one GPU are compared by: all that the blocks of a run have."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from gsio.codec import CODECS
from gsio.compute.cuda.segments import encoded_nbytes
from gsio.config import Config
from gsio.frames.block import Block
from gsio.frames.chunking import Chunking
from gsio.frames.content import Content
from gsio.frames.layout import BlockLayout
from gsio.frames.sizes import Sizes

FRAMES, BLOCKS = 3, 7  # of a block; more blocks than slots


def layout_for(
    config: Config, bands: int, compression: str, *, per_chunk: int = FRAMES, encodes: bool = True
) -> BlockLayout:
    """Return a layout in which each band has a slab; if no GPU `encodes`, the slabs are as high as the frames."""
    codec = CODECS[compression]
    frame = Content.of(config).frame(shuffle=codec.byte_planes)
    lines = 0 if encodes else frame.shape[0]
    chunks = Chunking.choose(
        frame, Sizes(), frames=FRAMES, frames_per_chunk=per_chunk, lines_per_chunk=lines, bands=bands, codec=compression
    )
    return BlockLayout(chunks, FRAMES, FRAMES, encoded_nbytes(chunks, compression) if encodes else 0)


def blocks_of(solver: Any, layout: BlockLayout, number: int = BLOCKS) -> list[list[bytes]]:
    """Return what each of a number of blocks has, the last of which is not full; threads wait for them meanwhile."""
    blocks = [Block(layout, solver.allocate(layout.block_nbytes)) for _ in range(number)]
    with ThreadPoolExecutor(3) as threads:
        waits = []
        for block in blocks:
            block.count = FRAMES - (block is blocks[-1])
            solver.fill(block)
            waits += [threads.submit(solver.wait, block) for _ in range(2)]
        for wait in waits:
            wait.result()
    return [[part.tobytes() for part in parts_of(block)] for block in blocks]


def parts_of(block: Block) -> list[Any]:
    """Return the statistics and, as it has them, the checksums and chunks, or the frames of a block."""
    statistics = block.statistics[: block.count]
    if not block.layout.encoded_nbytes:
        return [statistics, block.data[: block.count]]
    chunks = [np.asarray(chunk) for place in sorted(block.chunks) for chunk in block.chunks[place]]
    return [statistics, block.checksums[: block.count], *chunks]
