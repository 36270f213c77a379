"""What every solver offers, and the staging of a frame that lies in host memory."""

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
        float64 [4]: minimum, maximum and mean of the finite values, number of non-finite ones.
    """
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is counted
        values = np.ascontiguousarray(plane, layout.dtype).reshape(-1)
    finite = values[np.isfinite(values)]
    statistics[:] = (finite.min(), finite.max(), finite.mean(dtype=np.float64), 0) if finite.size else (0, 0, 0, 0)
    statistics[3] = values.size - finite.size
    raw = values.view(np.uint8)
    if layout.shuffle:
        data.reshape(layout.dtype.itemsize, -1)[:] = raw.reshape(-1, layout.dtype.itemsize).T
    else:
        data[:] = raw
