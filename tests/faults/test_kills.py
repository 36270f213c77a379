"""SIGKILL at any moment: what is committed can be read, and the run goes on as if it had never been killed."""

import random
from collections.abc import Callable, Iterator

import pytest
from harness import ANY, FRAMES, KILL_AFTER, KILL_BEFORE, SYNC, TRUNCATE, WRITE, Case, Tally, WreckError, fault

from gsio.run import checkpoints

pytestmark = pytest.mark.faults

# By name: what is done to the checkpoints of the first part, so that the second computes long what is there.
CHECKPOINTS: dict[str, Callable[[Case], object]] = {
    "none": lambda case: [path.unlink(missing_ok=True) for path in checkpoints.paths_of(case.output)],
    "an old one": lambda case: checkpoints.paths_of(case.output)[0].unlink(missing_ok=True),
    "the newest": lambda case: None,
}


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


def kill(case: Case, dice: random.Random, most: int, seconds: float) -> str:
    """Run, or go on, until it is killed: at one of the first `most` calls, or after up to so many seconds."""
    if dice.random() < 0.3:
        ended = case.resume(kill_after=dice.uniform(0, seconds))
    else:
        # Some calls come hundreds of times, others rarely: each kind is drawn alone, so that kills meet the rare ones.
        kinds = dice.choice([ANY, ANY, WRITE, TRUNCATE | SYNC])
        nth = dice.randint(1, max(2, most if kinds in (ANY, WRITE) else most // 20))
        ended = case.resume(fault=fault(case, kinds, nth, dice.choice([KILL_BEFORE, KILL_AFTER])))
    assert ended.code in (0, -9), ended.text
    return "completed" if ended.code == 0 else "killed"


def test_a_run_killed_again_before_it_reaches_its_frames_loses_none(
    case: Case, tally: Tally, dice: random.Random, rounds: int
) -> None:
    calls = case.run(fault=fault(case, ANY, 0)).calls_of(ANY)
    for number in range(rounds):
        kept = dice.choice([*CHECKPOINTS])

        def play(kept: str = kept) -> Iterator[str]:
            known = readable = 0  # committed frames, and those that stock readers found
            while (ended := kill(case, dice, calls, case.seconds)) == "completed":
                case.clear()
            yield ended
            for _ in range(dice.randint(2, 5)):
                try:
                    case.look()
                except WreckError:  # killed in the middle of a flush: the next part or a repair puts it right
                    if dice.random() < 0.5:
                        yield case.check_prefix(known)
                    else:
                        case.frames = -1
                if case.frames >= 0:
                    assert case.frames >= readable, f"{readable} frames could be read, {case.frames} can now"
                    readable = case.frames
                frames = max(case.frames, case.journalled)
                assert frames >= known, f"{known} frames were committed, {frames} are"
                known = frames
                if known == FRAMES:  # its last checkpoint is part of it
                    break
                CHECKPOINTS[kept](case)
                ended = kill(case, dice, calls // 4, 0.7 * case.seconds)
                yield ended
                if ended == "completed":
                    known = FRAMES
                    break
            yield case.check_prefix(known)
            case.check_resume()
            yield "identical"

        tally.play(case, "killed again before its frames", f"round {number}, checkpoint: {kept}", play)


def test_a_complete_run_that_is_extended_and_killed_keeps_its_frames(
    case: Case, tally: Tally, dice: random.Random, rounds: int
) -> None:
    for number in range(rounds):
        first = dice.randint(1, FRAMES - 1)

        def play(first: int = first) -> Iterator[str]:
            assert case.run("-n", str(first)).code == 0
            if dice.random() < 0.5:  # else it goes on where it was, and the first commit replaces a chunk
                CHECKPOINTS["none"](case)
            for _ in range(2):
                yield kill(case, dice, 60, 0.7 * case.seconds)
                yield case.check_prefix(first)
            case.check_resume()
            yield "identical"

        tally.play(case, "complete, extended, killed", f"round {number}, {first} frames", play)


def test_a_complete_run_that_is_extended_or_cut_can_be_killed_at_once(
    case: Case, tally: Tally, dice: random.Random, rounds: int
) -> None:
    for number in range(rounds):
        keep = dice.choice([31, 30, 13, 8])  # of 31 frames, whose last chunk is not full
        cut = ["--resume=must", "--discard-after", str(keep)] if keep < 31 else ["--resume=must"]
        nth = number + 1 if rounds > 1 else dice.randint(1, 40)

        def play(keep: int = keep, cut: list[str] = cut, nth: int = nth) -> Iterator[str]:
            assert case.run("-n", "31").code == 0
            ended = case.run(*cut, fault=fault(case, ANY, nth, KILL_BEFORE))
            yield "killed" if ended.code == -9 else "completed"
            yield case.check_prefix(keep)
            case.check_resume()
            yield "identical"

        tally.play(case, "killed while it is extended or cut", f"{keep} frames, call {nth}", play)
