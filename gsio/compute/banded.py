"""The solver of a band: the solver of its rows and halo, and an exchange of halos before each few steps."""

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gsio.compute.bands import Band, Message
from gsio.compute.solver import Solver
from gsio.frames.block import Block
from gsio.model.gray_scott import Field


class RowsSolver(Solver, Protocol):
    """A solver that also advances a band: its fields have the halo, and its frames only the rows of the band."""

    def stage(self, block: Block, frame: int) -> None:
        """Stage the present fields as a frame of `block`; the first frame of a block is staged first."""

    def rows(self, where: slice) -> NDArray[Any]:
        """Return a copy of rows of both fields, [field, …, row, col]."""

    def set_rows(self, where: slice, rows: NDArray[Any]) -> None:
        """Replace rows of both fields by `rows`, [field, …, row, col]."""


# Sends rows to each neighbour, and returns the rows that each has sent, in the order of the messages.
Exchange = Callable[[Sequence[tuple[Message, NDArray[Any]]]], Sequence[NDArray[Any]]]


class BandSolver:
    """Advances the band of a grid whose other bands are elsewhere; `advance` waits for those of the neighbours.

    `note` says how the bands share the grid.
    """

    note = ""

    def __init__(self, solver: RowsSolver, band: Band, exchange: Exchange, steps_per_frame: int) -> None:
        self._solver, self._band, self._exchange, self._steps = solver, band, exchange, steps_per_frame
        self._exchanged = 0.0  # seconds
        self.backend = solver.backend
        self.device = f"{solver.device}, on each of {band.bands} ranks" if band.bands > 1 else solver.device
        self.snapshot, self.field, self.allocate, self.wait = (
            solver.snapshot,
            solver.field,
            solver.allocate,
            solver.wait,
        )

    snapshot: Callable[[], Callable[[], tuple[Field, Field]]]
    field: Callable[[str], Field]
    allocate: Callable[[int], NDArray[np.uint8]]
    wait: Callable[[Block], None]

    def advance(self, steps: int) -> None:
        """Advance both fields by `steps` time steps, as all other bands do at the same time."""
        messages = self._band.messages
        for part in self._band.rounds(steps):
            before = time.perf_counter()
            if messages:
                received = self._exchange([(message, self._solver.rows(message.sent)) for message in messages])
                for message, rows in zip(messages, received, strict=True):
                    self._solver.set_rows(message.received, rows)
            self._exchanged += time.perf_counter() - before
            self._solver.advance(part)

    def fill(self, block: Block) -> None:
        """Compute and stage the next `block.count` frames."""
        begin, self._exchanged = time.perf_counter(), 0.0
        for frame in range(block.count):
            self.advance(self._steps)
            self._solver.stage(block, frame)
        block.compute_start, block.compute_seconds = begin, time.perf_counter() - begin
        block.exchange_seconds = self._exchanged
