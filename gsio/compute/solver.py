"""The protocol of solvers."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gsio.frames.block import Block
from gsio.model.gray_scott import Field


class Solver(Protocol):
    """Advances u and v on one device, and stages their frames.

    One thread at a time uses a solver. Only `wait` is called by several encoding threads, also for the same block.
    """

    backend: str
    device: str

    def advance(self, steps: int) -> None:
        """Advance both fields by `steps` time steps; may return early."""

    def snapshot(self) -> Callable[[], tuple[Field, Field]]:
        """Keep the present u and v; return a function that waits for their host copies and returns them."""

    def field(self, name: str) -> Field:
        """Return a host copy of u or v, of the layout's shape."""

    def allocate(self, nbytes: int) -> NDArray[np.uint8]:
        """Return host memory for a block, of the kind to which the device copies fastest."""

    def fill(self, block: Block) -> None:
        """Compute the next `block.count` frames and stage them into `block`; may return early."""

    def wait(self, block: Block) -> None:
        """Return when the frames, the statistics and the seconds of `block` are complete."""


def fields(solver: Solver) -> tuple[Field, Field]:
    """Return host copies of u and v as they are now, of the layout's shape."""
    return solver.snapshot()()
