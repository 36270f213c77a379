"""The limits of the contrast: from a text, and from values."""

import numpy as np
import pytest

from gsio.draw.limits import limits_of, parse_limits
from gsio.errors import UsageError


def test_limits_are_a_word_or_two_numbers() -> None:
    assert [parse_limits(text) for text in ("auto", "frame", "-1:2.5e-1")] == ["auto", "frame", (-1, 0.25)]


@pytest.mark.parametrize("text", ["", "1", "1:", ":1", "1:1", "2:1", "0:1:2", "nan:1", "0:inf", "-inf:0", "low:high"])
def test_other_limits_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=f"^--limits: expected auto, frame, or LO:HI with LO below HI, got '{text}'$"):
        parse_limits(text)


def test_limits_of_values_are_those_of_the_finite_ones() -> None:
    assert limits_of(np.array([[3.0, np.nan], [-np.inf, 1.0]])) == (1, 3)
    assert limits_of(np.array([np.nan, np.inf])) == limits_of(np.empty(0)) == (0, 1)
    low, high = limits_of(np.array([0.5, 0.5], np.float32))
    assert low == 0.5 < np.float32(high)
