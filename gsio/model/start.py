"""The start of a run."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float64]


class Start(NamedTuple):
    """The fields and rates at the start of a run, float64.

    `u` and `v` at time 0 are [rows, cols], the same for every member of a batch, or [members, rows, cols]; the rates
    `feed` and `kill`, per unit time, broadcast to [members, rows, cols]: a constant has no axis.
    """

    u: Field
    v: Field
    feed: Field
    kill: Field
