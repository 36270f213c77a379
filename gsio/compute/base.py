"""What every solver offers, and the staging of a frame that lies in host memory."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gsio.staging import Block, FrameLayout

Field = NDArray[np.floating[Any]]


class Solver(Protocol):
    """Advances u and v on one device, and stages their frames.

    A solver is used by one thread at a time, but for `wait`, which encoding threads call for different blocks at once.
    """

    backend: str
    device: str

    def advance(self, steps: int) -> None:
        """Advance both fields by `steps` time steps; may return before they are done."""

    def fields(self) -> tuple[Field, Field]:
        """Return host copies of u and v, of the layout's shape."""

    def snapshot(self) -> Callable[[], tuple[Field, Field]]:
        """Keep u and v as they are now; return a function that waits for host copies of them and returns these."""

    def allocate(self, nbytes: int) -> NDArray[np.uint8]:
        """Return host memory for a block, of the kind the device copies to fastest."""

    def fill(self, block: Block) -> None:
        """Compute the next `block.count` frames and stage them into `block`; may return before they are there."""

    def wait(self, block: Block) -> None:
        """Return when the frames of `block` are there, with its statistics and seconds set."""


def stage(plane: Field, layout: FrameLayout, data: NDArray[np.uint8], statistics: NDArray[np.float64]) -> None:
    """Copy one field of one frame into `data`, shuffled if the layout says so, and set its `statistics`.

    Parameters
    ----------
    plane
        Of the layout's shape, any float dtype; stored as the layout's.
    data
        uint8 [plane_nbytes].
    statistics
        float64 [5]: minimum, maximum and mean of the finite values, the largest error of those as stored, number of
        non-finite ones.
    """
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is counted
        values = np.ascontiguousarray(plane, layout.computed).reshape(-1)
    stored, error = pack(values, layout)
    finite = values[np.isfinite(values)]
    statistics[:4] = (finite.min(), finite.max(), finite.mean(dtype=np.float64), error) if finite.size else 0
    statistics[4] = values.size - finite.size
    raw = stored.view(np.uint8)
    if layout.shuffle:
        data.reshape(layout.dtype.itemsize, -1)[:] = raw.reshape(-1, layout.dtype.itemsize).T
    else:
        data[:] = raw


def pack(values: Field, layout: FrameLayout) -> tuple[NDArray[Any], float]:
    """Return `values` as they are stored, and the largest error of a finite one; ``stage.cu`` does the same.

    Values outside 0 to 1 become 0 or 1 where integers are stored. Bits of the mantissa are rounded to the nearest, half
    to even: BitRound, Klöwer et al. 2021, doi:10.1038/s43588-021-00156-2.
    """
    if not layout.lossy:
        return values, 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        if layout.levels:
            stored = np.rint(np.clip(values, 0, 1, dtype=np.float64) * layout.levels).astype(layout.dtype)
            found = stored * (1 / layout.levels)
        else:
            stored = values.astype(layout.dtype)
            if layout.keep_bits:
                stored = round_mantissa(stored, layout.keep_bits)
            found = stored.astype(values.dtype)  # so close to the value that their difference is exact
        errors = np.abs(found - values)
    largest = errors.max()
    if not np.isfinite(largest):
        largest = np.max(errors, where=np.isfinite(errors), initial=0)
    return stored, float(largest)


def round_mantissa(values: NDArray[Any], keep_bits: int) -> NDArray[Any]:
    """Return floating-point `values` with `keep_bits` bits of their mantissa, the others 0."""
    words = values.view(f"u{values.itemsize}")
    dropped = words.dtype.type(np.finfo(values.dtype).nmant - keep_bits)
    one = words.dtype.type(1)
    half = (one << (dropped - one)) - one + ((words >> dropped) & one)
    rounded: NDArray[Any] = (words + half) & ~((one << dropped) - one)
    return rounded.view(values.dtype)
