"""What a summary says of bands that share a grid unevenly."""

import pytest

from gsio.frames.block import Spent
from gsio.run.balance import Balance


def spent(compute: float, exchange: float = 0.0) -> Spent:
    return Spent(5.0, compute, 0.0, 0.0, exchange)


@pytest.mark.parametrize(
    ("blocks", "text"),
    [
        ([], ""),
        ([[spent(2.0)]], ""),
        ([[spent(0.0), spent(0.0)]], ""),
        ([[spent(1.0), spent(3.0)], [spent(1.0), spent(3.0)]], "band 1 was the slowest, 50.0% above the mean"),
        (  # a band that waits for another computes for less time
            [[spent(4.0, 1.0), spent(4.0, 3.0)]],
            "band 0 was the slowest, 50.0% above the mean; exchanges took 25.0% of its time",
        ),
    ],
)
def test_the_slowest_band_is_named(blocks: list[list[Spent]], text: str) -> None:
    balance = Balance()
    for block in blocks:
        balance.add(block)
    assert str(balance) == text


def test_times_of_another_clock_are_moved_if_they_are_known() -> None:
    assert Spent(5.0, 1.0, 0.0, 2.0, 0.5).on_clock(-3.0) == Spent(2.0, 1.0, 0.0, 2.0, 0.5)
