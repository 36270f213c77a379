"""The checksum of a frame: crc32c (Castagnoli) of all its fields, as the solver stages them, before compression."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from gsio.frames.block import Block

POLYNOMIAL = 0x82F63B78  # of crc32c, the coefficient of x⁰ in the highest bit
ONE = 1 << 31


def set_checksums(block: Block, first: int, last: int) -> None:
    """Set the checksums of the frames [first, last) of `block`, or those of its pieces if the frames are parts."""
    for frame in range(first, min(last, block.count)):
        if block.layout.part:
            for place in np.ndindex(block.pieces.shape[1:]):
                block.pieces[frame, *place] = crc32c(block.planes[frame, *place])
        else:
            block.checksums[frame] = crc32c(block.data[frame])


def frame_checksum(planes: Sequence[NDArray[Any]], byte_planes: bool) -> int:
    """Return the checksum of a frame from its fields, stored values in C order; `byte_planes` is that of its codec."""
    from numcodecs import Shuffle

    checksum = 0
    for plane in map(np.ascontiguousarray, planes):
        checksum = crc32c(Shuffle(plane.itemsize).encode(plane) if byte_planes else plane.data, checksum)
    return checksum


def joined(pieces: NDArray[np.uint32], nbytes: tuple[int, ...]) -> NDArray[np.uint32]:
    """Return the crc32c [...] of pieces that follow one another, from the crc32c [..., piece] and the size of each.

    A checksum is a polynomial over GF(2) modulo that of the code, and bytes that follow multiply it by x⁸ each: the
    method of ``crc32_combine`` in zlib.
    """
    tables, places = _tables(nbytes), np.arange(len(nbytes))
    found = [tables[places, byte, pieces >> np.uint32(8 * byte) & np.uint32(255)] for byte in range(4)]
    whole: NDArray[np.uint32] = np.bitwise_xor.reduce(np.bitwise_xor.reduce(found), axis=-1)
    return whole


@cache
def _tables(nbytes: tuple[int, ...]) -> NDArray[np.uint32]:
    """Return by what each byte of the checksum of each piece is replaced, uint32 [piece, byte, 256]."""
    values = np.arange(256, dtype=np.uint32) << np.arange(0, 32, 8, dtype=np.uint32)[:, np.newaxis]
    return np.array([_product(_power(8 * sum(nbytes[piece + 1 :])), values) for piece in range(len(nbytes))])


@cache
def _power(exponent: int) -> int:
    """Return x to a power, modulo the polynomial of the code."""
    power, square = ONE, ONE >> 1
    while exponent:
        if exponent & 1:
            power = int(_product(square, np.uint32(power)))
        exponent, square = exponent >> 1, int(_product(square, np.uint32(square)))
    return power


def _product(factor: int, others: Any) -> Any:
    """Return the products of a polynomial with others, uint32, modulo the polynomial of the code."""
    found, others = np.zeros_like(others), others.copy()
    for bit in range(31, -1, -1):
        if factor >> bit & 1:
            found = found ^ others
        others = others >> np.uint32(1) ^ (others & np.uint32(1)) * np.uint32(POLYNOMIAL)
    return found
