"""Storage that fails: the run ends with one line that says how many frames are safe, these are, and it goes on."""

import errno
import os
import random
import signal
from collections.abc import Iterator
from functools import partial
from itertools import zip_longest

import pytest
from harness import (
    ALLOCATE,
    ANY,
    FRAMES,
    KILL_AFTER,
    KILL_BEFORE,
    RENAME,
    SHORT,
    SLOW,
    SYNC,
    TORN,
    TRUNCATE,
    WRITE,
    Case,
    Tally,
    check_stop,
    fault,
    wait_until,
)  # fmt: skip

pytestmark = pytest.mark.faults

# By name: which calls, what happens to one, and whether it goes on to happen to all that follow.
FAULTS = {
    "write: EIO": (WRITE, errno.EIO, False),
    "write: ENOSPC": (WRITE, errno.ENOSPC, True),
    "write: EDQUOT": (WRITE, errno.EDQUOT, True),
    "write: short": (WRITE, SHORT, False),
    "write: torn, killed": (WRITE, TORN, False),
    "reservation: ENOSPC": (ALLOCATE, errno.ENOSPC, True),
    "rename: EIO": (RENAME, errno.EIO, False),
    "truncation: EIO": (TRUNCATE, errno.EIO, False),
    "fsync: EIO": (SYNC, errno.EIO, False),
    "all: EROFS": (ANY, errno.EROFS, True),
    "any: killed before": (ANY, KILL_BEFORE, False),
    "any: killed after": (ANY, KILL_AFTER, False),
}


@pytest.fixture
def faults(request: pytest.FixtureRequest) -> list[str]:
    """Those that are asked for."""
    return [name for name in FAULTS if request.config.getoption("--fault") in name]


def test_whichever_call_fails_no_frame_is_lost(
    case: Case, tally: Tally, dice: random.Random, rounds: int, faults: list[str]
) -> None:
    whole = case.run(fault=fault(case, ANY, 0))
    # All calls in an order that takes the faults in turn: of some there are hundreds, of others two.
    calls = {name: whole.calls_of(kinds) for name, (kinds, _, _) in FAULTS.items()}
    names = dice.sample(faults, len(faults))
    turns = zip_longest(*([(name, nth + 1) for nth in dice.sample(range(calls[name]), calls[name])] for name in names))
    for name, nth in [point for turn in turns for point in turn if point][:rounds]:

        def play(name: str = name, nth: int = nth) -> Iterator[str]:
            kinds, action, lasts = FAULTS[name]
            if dice.random() < 0.3:  # then it meets a run that goes on
                case.run(kill_after=dice.random() * case.seconds)
            ended = case.resume(fault=fault(case, kinds, nth, action, lasts=lasts))
            safe = 0
            if ended.code == 0:
                yield "completed"
                safe = FRAMES
            elif ended.code == -9:
                yield "killed"
            else:
                safe = check_stop(ended)
                yield "stopped"
            yield case.check_prefix(safe)
            case.check_resume()
            yield "identical"

        tally.play(case, name, f"call {nth}", play)


def test_a_run_that_cannot_start_again_can_do_so_later(case: Case) -> None:
    assert case.run(fault=fault(case, WRITE, 1, SLOW, lasts=True), meanwhile=partial(kill_once_there, case)).code == -9
    for nth in (1, 4, 16):
        ended = case.resume(fault=fault(case, WRITE, nth, errno.ENOSPC, lasts=True))
        check_stop(ended)
    case.check_resume()


def kill_once_there(case: Case, pid: int) -> None:
    wait_until(case.output.exists)
    os.kill(pid, signal.SIGKILL)
