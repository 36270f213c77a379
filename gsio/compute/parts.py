"""The parts of a frame that several bands have computed: their statistics and checksums are joined to those of a frame.

The result has the bits that one band would have had: see ``gsio.compute.statistics`` and ``gsio.codec.checksum``.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gsio.codec.checksum import joined
from gsio.compute.statistics import Node, join, nodes
from gsio.frames.block import Block
from gsio.frames.layout import STATISTICS

MIN, MAX, MEAN, ERROR, NONFINITE = range(len(STATISTICS))


class Part(NamedTuple):
    """What a band knows of the frames of a block, when its chunks are encoded.

    Attributes
    ----------
    statistics
        As in `Block`, of the part alone, [frame, field, statistic].
    nodes
        The nodes that make the means, for each frame and each field.
    pieces
        As in `Block`, [frame, field, byte plane].
    cells, itemsize
        Cells of the part, and bytes of a stored value.
    """

    statistics: NDArray[np.float64]
    nodes: list[list[list[Node]]]
    pieces: NDArray[np.uint32]
    cells: int
    itemsize: int


def part_of(block: Block, lines: range) -> Part:
    """Return what a block knows of the parts of its frames, which are these `lines` of a frame."""
    count, frame = block.count, block.layout.frame
    first = lines.start * math.prod(frame.shape[1:-1])
    of_frames = [[nodes(sums, first) for sums in fields] for fields in block.sums[:count]]
    return Part(
        block.statistics[:count].copy(), of_frames, block.pieces[:count].copy(), frame.cells, frame.dtype.itemsize
    )


def join_parts(parts: Sequence[Part], block: Block) -> None:
    """Set the statistics and checksums of the frames of `block` from all their parts, in the order of the bands."""
    of_parts = np.array([part.statistics for part in parts])  # [part, frame, field, statistic]
    finite = np.array([part.cells for part in parts])[:, np.newaxis, np.newaxis] - of_parts[..., NONFINITE]
    statistics = block.statistics[: block.count]
    statistics[..., NONFINITE] = of_parts[..., NONFINITE].sum(axis=0)
    statistics[..., MIN] = np.where(finite > 0, of_parts[..., MIN], np.inf).min(axis=0)
    statistics[..., MAX] = np.where(finite > 0, of_parts[..., MAX], -np.inf).max(axis=0)
    statistics[..., ERROR] = of_parts[..., ERROR].max(axis=0)
    total = finite.sum(axis=0)
    for place in np.ndindex(total.shape):
        frame, field = place
        found = join(node for part in parts for node in part.nodes[frame][field])
        statistics[frame, field, MEAN] = found / total[place] if total[place] else 0
    statistics[total == 0, : ERROR + 1] = 0
    checksums: NDArray[Any] = np.zeros(block.count, np.uint32)
    for field, plane in np.ndindex(parts[0].pieces.shape[1:]):
        for part in parts:
            nbytes = part.cells * part.itemsize // part.pieces.shape[2]
            checksums = joined(checksums, part.pieces[:, field, plane], nbytes)
    block.checksums[: block.count] = checksums
