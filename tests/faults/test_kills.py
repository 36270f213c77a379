"""SIGKILL at any moment: what is committed can be read, and the run goes on as if it had never been killed."""

import random
from collections.abc import Iterator

import pytest
from harness import Case, Tally

pytestmark = pytest.mark.faults


def test_a_run_killed_at_random_goes_on_bit_for_bit(case: Case, tally: Tally, dice: random.Random, rounds: int) -> None:
    for number in range(rounds):
        delays = [dice.uniform(0, 1.1) * case.seconds for _ in range(dice.randint(1, 3))]

        def play(delays: list[float] = delays) -> Iterator[str]:
            for delay in delays:  # the first run, then those that go on with it
                ended = case.resume(kill_after=delay)
                assert ended.code in (0, -9), ended.text
                yield "completed" if ended.code == 0 else "killed"
                yield case.check_prefix()
            case.check_resume()
            yield "identical"

        tally.play(case, "killed 1 to 3 times", f"round {number}, after {delays} s", play)
