"""The statistics of the rows of a plane, and the order of its bytes in a block, compiled by Numba."""

import numpy as np
from numba import njit

from gsio.compute.cpu.vectors import inner
from gsio.compute.statistics import LANES


@inner
def _add_lanes(row, first, last, total, low, high, count):  # type: ignore[no-untyped-def]
    """Add the cells [first, last) of a row, at most one for each lane, to the lanes; only finite values count."""
    largest, none = np.finfo(row.dtype).max, row.dtype.type(0)
    for lane in range(last - first):
        x = row[first + lane]
        finite = abs(x) <= largest
        low[lane] = min(low[lane], x if finite else largest)
        high[lane] = max(high[lane], x if finite else -largest)
        total[lane] += x if finite else none
        count[lane] += np.int32(1) if finite else np.int32(0)


@njit(nogil=True, cache=True)
def stage_rows(field, words, planes, values, shuffle, first, last, sums):  # type: ignore[no-untyped-def]
    """Stage the rows [first, last) of `field` [row, cell], whose stored values are `words` [row - first, cell].

    Copies `words`, unsigned integers, to `planes` [byte, cell] if `shuffle`, else to `values` [cell]; both are the same
    memory, of the whole plane. Sets the `sums` of the rows as `row_sums` does, and returns the minimum, the maximum and
    the number of finite values.
    """
    cols, lanes, largest = np.uintp(field.shape[1]), np.uintp(LANES), np.finfo(field.dtype).max
    low, high = np.full(LANES, largest, field.dtype), np.full(LANES, -largest, field.dtype)
    total, count = np.empty(LANES, np.float64), np.zeros(LANES, np.int32)
    whole, finite = cols // lanes * lanes, 0
    for i in range(first, last):
        row, bits = field[i], words[i - first]
        total[:], count[:] = 0, 0
        for j in range(np.uintp(0), whole, lanes):
            _add_lanes(row, j, j + lanes, total, low, high, count)
        _add_lanes(row, whole, cols, total, low, high, count)
        half = LANES // 2
        while half:
            for lane in range(half):
                total[lane] += total[lane + half]
            half //= 2
        sums[i] = total[0]
        finite += count.sum()
        if shuffle:
            for plane in range(planes.shape[0]):
                out = planes[plane, i * cols : (i + 1) * cols]
                for j in range(cols):
                    out[j] = bits[j] >> (8 * plane)
        else:
            out = values[i * cols : (i + 1) * cols]
            for j in range(cols):
                out[j] = bits[j]
    return low.min(), high.max(), finite
