"""What every solver offers."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gsio.frames.block import Block
from gsio.model.gray_scott import Field


class Solver(Protocol):
    """Advances u and v on one device, and stages their frames.

    A solver is used by one thread at a time, but for `wait`, which several encoding threads call, for one block too.
    """

    backend: str
    device: str

    def advance(self, steps: int) -> None:
        """Advance both fields by `steps` time steps; may return before they are done."""

    def snapshot(self) -> Callable[[], tuple[Field, Field]]:
        """Keep u and v as they are now; return a function that waits for host copies of them and returns these."""

    def field(self, name: str) -> Field:
        """Return a host copy of u or v, of the layout's shape."""

    def allocate(self, nbytes: int) -> NDArray[np.uint8]:
        """Return host memory for a block, of the kind the device copies to fastest."""

    def fill(self, block: Block) -> None:
        """Compute the next `block.count` frames and stage them into `block`; may return before they are there."""

    def wait(self, block: Block) -> None:
        """Return when the frames of `block` are there, with its statistics and seconds set."""


def fields(solver: Solver) -> tuple[Field, Field]:
    """Return host copies of u and v as they are now, of the layout's shape."""
    return solver.snapshot()()
