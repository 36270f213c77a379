"""How evenly the bands of a grid share the work of a run."""

import numpy as np

from gsio.frames.block import Spent


class Balance:
    """What each band has taken for the blocks of a run."""

    def __init__(self) -> None:
        self._seconds = np.zeros((0, 2))  # [band, computing or exchanging]

    def add(self, of_block: list[Spent]) -> None:
        """Add what the bands took for one more block."""
        found = np.array([(one.compute_seconds - one.exchange_seconds, one.exchange_seconds) for one in of_block])
        self._seconds = found + (self._seconds if len(self._seconds) else 0.0)

    def __str__(self) -> str:
        """Name the slowest band, how far it is from the mean, and what exchanges cost it; "" without several bands."""
        work, exchange = self._seconds.T
        if len(work) < 2 or not work.any():
            return ""
        slowest = int(work.argmax())
        text = f"band {slowest} was the slowest, {work[slowest] / work.mean() - 1:.1%} above the mean"
        if exchange.any():
            text += f"; exchanges took {exchange[slowest] / self._seconds[slowest].sum():.1%} of its time"
        return text
