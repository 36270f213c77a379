"""A loop outside gsio that is killed at the moments of its own: its first commit, its states, and its end."""

import random
from collections.abc import Iterator

import pytest
from harness import ANY, KILL_AFTER, KILL_BEFORE, RENAME, TORN, WRITE, Case, Tally, fault

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("moment", ["first commit", "state", "end"])
def test_a_loop_killed_at_a_moment_that_matters_goes_on_bit_for_bit(
    case: Case, moment: str, tally: Tally, dice: random.Random, rounds: int
) -> None:
    whole = case.run(fault=fault(case, ANY, 0))
    for number in range(rounds):
        if moment == "first commit":
            kinds, nth = ANY, dice.randint(1, 60)
        elif moment == "state":  # it gets its name, as others: the journal, chunks of Zarr
            kinds, nth = RENAME, dice.randint(1, whole.calls_of(RENAME))
        else:
            kinds, nth = ANY, whole.calls_of(ANY) - dice.randint(0, 20)
        action = dice.choice([KILL_BEFORE, KILL_AFTER])

        def play(kinds: int = kinds, nth: int = nth, action: int = action) -> Iterator[str]:
            ended = case.run(fault=fault(case, kinds, nth, action))
            assert ended.code in (0, -9), ended.text
            yield "completed" if ended.code == 0 else "killed"
            yield case.check_prefix()
            before = max(case.frames, case.journalled)
            ended = case.resume(fault=fault(case, WRITE, dice.randint(1, 80), dice.choice([KILL_BEFORE, TORN])))
            assert ended.code in (0, -9), ended.text
            yield "completed" if ended.code == 0 else "killed"
            yield case.check_prefix(before)
            case.check_resume()
            yield "identical"

        tally.play(case, f"killed at its {moment}, and again", f"round {number}, call {nth}", play)
