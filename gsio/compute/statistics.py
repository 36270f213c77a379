"""The sum of a plane: the same bits for any number of bands, threads, ranks and devices that share the plane.

A row of a plane is its last axis, and all leading axes are flattened to rows. The sum of a row is a function of the row
alone. The sum of the plane is that of a binary tree over its rows: neighbours are added, level by level, as if zeros
made the rows a power of two. A band that has some consecutive rows reduces them to `nodes`, the few complete nodes of
the tree that cover the band. `join` makes the sum of the plane from the nodes of all bands.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

LANES = 64  # partial sums of a row, which vector instructions add side by side; cell j belongs to sum j % LANES


class Node(NamedTuple):
    """A complete node of the tree: the sum of the rows [number 2^level, (number + 1) 2^level)."""

    level: int
    number: int
    sum: float


def row_sums(rows: NDArray[Any]) -> NDArray[np.float64]:
    """Return the float64 sums of `rows` [row, cell] of finite values; the CPU solver adds in the same order."""
    cols = rows.shape[1]
    lanes = min(LANES, 1 << (cols - 1).bit_length())
    whole = cols // lanes * lanes
    sums: NDArray[np.float64] = rows[:, :whole].reshape(len(rows), -1, lanes).sum(axis=1, dtype=np.float64)
    sums[:, : cols - whole] += rows[:, whole:]
    return fold(sums)


def fold(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return [row], the sums of `sums` [row, lane] over a power of two of lanes: one half is added to the other."""
    while (half := sums.shape[1] // 2) > 0:
        sums = sums[:, :half] + sums[:, half:]
    return sums[:, 0] + 0.0  # A negative zero becomes a zero, which is what a sum with zeros is.


def tree(sums: NDArray[np.float64]) -> NDArray[np.float64] | np.float64:
    """Return the sums of planes from the sums of all their rows, [..., row]."""
    while (rows := sums.shape[-1]) > 1:
        pairs = sums[..., 0 : rows - 1 : 2] + sums[..., 1::2]
        sums = np.append(pairs, sums[..., -1:], axis=-1) if rows % 2 else pairs
    return sums[..., 0]


def nodes(sums: NDArray[np.float64], first: int) -> list[Node]:
    """Return the largest complete nodes that cover the rows from `first` on, of which `sums` are the sums."""
    found, start, last = [], first, first + len(sums)
    while start < last:
        level = (last - start).bit_length() - 1
        if start:
            level = min(level, (start & -start).bit_length() - 1)
        end = start + (1 << level)
        found.append(Node(level, start >> level, float(tree(sums[start - first : end - first]))))
        start = end
    return found


def join(found: Iterable[Node]) -> float:
    """Return the sum of a plane from nodes that cover each of its rows once, in any order."""
    known = {node[:2]: node.sum for node in found}
    level, highest = 0, max(level for level, _ in known)
    while len(known) > 1 or level < highest:
        for index in {index // 2 for at, index in known if at == level}:
            even, odd = (known.pop((level, 2 * index + side), 0.0) for side in (0, 1))
            known[level + 1, index] = even + odd
        level += 1
    return next(iter(known.values()))
