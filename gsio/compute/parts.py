"""The parts of a frame that several bands have computed: their statistics and checksums are joined to those of a frame.

The result has the bits that one band would have had: see ``gsio.compute.statistics`` and ``gsio.codec.checksum``.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gsio.codec.checksum import joined
from gsio.compute.statistics import Node, join, nodes, tree
from gsio.frames.block import Block, Spent
from gsio.frames.layout import STATISTICS

MIN, MAX, MEAN, ERROR, NONFINITE = range(len(STATISTICS))


class Part(NamedTuple):
    """What a band knows of the frames of a block, when its chunks are encoded.

    Attributes
    ----------
    statistics
        As in `Block`, of the part alone, [frame, field, statistic].
    nodes
        The nodes that make the means; the sum of a node is [frame, field].
    pieces
        As in `Block`, [frame, field, byte plane].
    cells, itemsize
        Cells of the part, and bytes of a stored value.
    spent
        What the band took for these frames.
    """

    statistics: NDArray[np.float64]
    nodes: list[Node]
    pieces: NDArray[np.uint32]
    cells: int
    itemsize: int
    spent: Spent


def part_of(block: Block, lines: range) -> Part:
    """Return what a block knows of the parts of its frames, which are these `lines` of a frame."""
    count, frame = block.count, block.layout.frame
    first = lines.start * math.prod(frame.shape[1:-1])
    found = nodes(block.sums[:count], first)
    (spent,), size = block.spent, frame.dtype.itemsize
    return Part(block.statistics[:count].copy(), found, block.pieces[:count].copy(), frame.cells, size, spent)


def join_parts(parts: Sequence[Part], block: Block) -> None:
    """Set the statistics and checksums of the frames of `block` from all their parts, in the order of the bands."""
    sums = join(node for part in parts for node in part.nodes)
    cells = [part.cells for part in parts]
    _join_statistics(np.array([part.statistics for part in parts]), cells, sums, block)
    _join_checksums([part.pieces for part in parts], [part.cells * part.itemsize for part in parts], block)


def join_blocks(parts: Sequence[Block], block: Block) -> None:
    """Set the statistics of the frames of `block`, and checksums that a solver took, from blocks of their parts."""
    count = block.count
    sums = tree(np.concatenate([part.sums[:count] for part in parts], axis=-1))
    cells = [part.layout.frame.cells for part in parts]
    _join_statistics(np.array([part.statistics[:count] for part in parts]), cells, sums, block)
    if block.layout.encoded_nbytes:
        nbytes = [part.layout.frame.plane_nbytes for part in parts]
        _join_checksums([part.pieces[:count] for part in parts], nbytes, block)


def _join_statistics(of_parts: NDArray[np.float64], cells: Sequence[int], sums: Any, block: Block) -> None:
    """Set statistics from those of the parts, [part, frame, field, statistic], and the `sums` of all finite values."""
    finite = np.array(cells)[:, np.newaxis, np.newaxis] - of_parts[..., NONFINITE]
    statistics, total = block.statistics[: block.count], finite.sum(axis=0)
    statistics[..., NONFINITE] = of_parts[..., NONFINITE].sum(axis=0)
    statistics[..., MIN] = np.where(finite > 0, of_parts[..., MIN], np.inf).min(axis=0)
    statistics[..., MAX] = np.where(finite > 0, of_parts[..., MAX], -np.inf).max(axis=0)
    statistics[..., ERROR] = of_parts[..., ERROR].max(axis=0)
    statistics[..., MEAN] = sums / np.maximum(total, 1)
    statistics[total == 0, : ERROR + 1] = 0


def _join_checksums(of_parts: Sequence[NDArray[np.uint32]], nbytes: Sequence[int], block: Block) -> None:
    """Set checksums from those of pieces, [frame, field, byte plane]; `nbytes` are those of a plane of each part."""
    pieces = np.stack(of_parts, axis=-1)
    _, fields, planes, _ = pieces.shape
    sizes = tuple(size // planes for size in nbytes) * (fields * planes)
    block.checksums[: block.count] = joined(pieces.reshape(len(pieces), -1), sizes)
