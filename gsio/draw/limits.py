"""The limits of the contrast: which values get the first and the last colour of a map."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gsio.errors import UsageError

Limits = Literal["auto", "frame"] | tuple[float, float]


def parse_limits(text: str) -> Limits:
    """Return the value of `--limits`: LO:HI as two numbers, "auto" for the whole selection, "frame" for each frame.

    Raises UsageError for any other text.
    """
    if text == "auto":
        return "auto"
    if text == "frame":
        return "frame"
    try:
        low, high = map(float, text.split(":"))
        if low < high and high - low < float("inf"):
            return low, high
    except ValueError:
        pass
    raise UsageError(f"--limits: expected auto, frame, or LO:HI with LO below HI, got '{text}'")


def limits_of(values: NDArray[Any]) -> tuple[float, float]:
    """Return the limits of the contrast of an array: its least and largest finite value, or 0 and 1 if it has none."""
    finite = values[np.isfinite(values)]
    return contrast(float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)


def contrast(low: float, high: float) -> tuple[float, float]:
    """Return the limits of the contrast of values from `low` to `high`.

    Viewers refuse equal limits; those of a uniform field therefore end a little above its value.
    """
    return low, high if low < high else low + max(1.0, abs(low)) * 2**-10  # float32 tells this from `low`
