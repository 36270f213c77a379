"""The checksum of a frame: crc32c (Castagnoli) of all its fields, as the solver stages them, before compression."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from crc32c import crc32c
from numcodecs import Shuffle
from numpy.typing import NDArray

from gsio.frames.block import Block


def set_checksums(block: Block, first: int, last: int) -> None:
    """Set the checksums of the frames [first, last) of `block`."""
    for frame in range(first, min(last, block.count)):
        block.checksums[frame] = crc32c(block.data[frame])


def frame_checksum(planes: Sequence[NDArray[Any]], byte_planes: bool) -> int:
    """Return the checksum of a frame from its fields, stored values in C order; `byte_planes` is that of its codec."""
    checksum = 0
    for plane in map(np.ascontiguousarray, planes):
        checksum = crc32c(Shuffle(plane.itemsize).encode(plane) if byte_planes else plane.data, checksum)
    return checksum
