"""Systems that lack what others have: threads, locks, nameless files, `/proc`. A run ends in one line, or goes on."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from harness import ANY, KILL_BEFORE, SLOW, WRITE, Case, Tally, contents, fault, wait_until

pytestmark = pytest.mark.faults

# As `enum lack` in inject.c has them.
LOCKS, FOLDER_SYNC, RESERVATION, NAMELESS, LINKS, SYNC_ALL = range(6)
NOT_SUPPORTED = 524  # ENOTSUPP, the kernel's own
# By name: which calls fail, with what, what else is missing, and of what a run that may meet it warns.
LACKING: dict[str, tuple[dict[int, int], list[str], str]] = {
    "flock: ENOSYS": ({LOCKS: errno.ENOSYS}, [], "flock"),
    "flock: ENOLCK": ({LOCKS: errno.ENOLCK}, [], "flock"),
    "flock: EOPNOTSUPP": ({LOCKS: errno.EOPNOTSUPP}, [], "flock"),
    "flock: 524": ({LOCKS: NOT_SUPPORTED}, [], "flock"),
    "fsync of a folder: EINVAL": ({FOLDER_SYNC: errno.EINVAL}, [], "fsync of a folder"),
    "fsync of a folder: EBADF": ({FOLDER_SYNC: errno.EBADF}, [], "fsync of a folder"),
    "fallocate: EOPNOTSUPP": ({RESERVATION: errno.EOPNOTSUPP}, [], "fallocate"),
    "O_TMPFILE: EOPNOTSUPP": ({NAMELESS: errno.EOPNOTSUPP}, [], ""),
    "O_TMPFILE: EINVAL": ({NAMELESS: errno.EINVAL}, [], ""),
    "link: EPERM": ({LINKS: errno.EPERM}, [], ""),
    "syncfs: ENOSYS": ({SYNC_ALL: errno.ENOSYS}, [], ""),
    "statvfs: no blocks": ({}, ["no_space_told"], ""),
    "no /proc": ({}, ["no_proc"], ""),
    "all of these": (
        dict.fromkeys((LOCKS, FOLDER_SYNC, RESERVATION, NAMELESS, LINKS, SYNC_ALL), errno.ENOSYS),
        ["no_space_told", "no_proc"],
        "flock",
    ),
}


def how(name: str) -> dict[str, Any]:
    """Return what the launcher wants to know of a system that lacks something."""
    lacking, more, _ = LACKING[name]
    return {"lacking": lacking, **dict.fromkeys(more, True)}


@pytest.mark.parametrize("output", ["HDF5, deflate", "Zarr, lz4"])
@pytest.mark.parametrize("name", LACKING)
def test_a_file_system_that_lacks_something_is_warned_of_once(
    name: str, output: str, cases: Callable[[str], Case], tally: Tally
) -> None:
    case = cases(output)

    def play() -> Iterator[str]:
        ended = case.run(**how(name))
        assert ended.code == 0, ended.text
        assert contents(case.output) == case.whole
        call = LACKING[name][2]
        if call and (call != "fallocate" or case.output.is_file()):  # only HDF5 reserves
            assert ended.text.count(f"offers no {call}:") == 1, ended.text
        case.clear()
        case.run(kill_after=0.5 * case.seconds, **how(name))
        case.check_resume(**how(name))
        yield "identical"
        for command in (["verify"], ["info"]):
            looked = case.launcher.run(*command, case.output, **how(name))
            assert looked.code == 0, looked.text

    tally.play(case, name, "", play)


def test_without_locks_a_second_run_is_still_refused(case: Case, tally: Tally) -> None:
    """By the status file, which names the process, if that is one of this machine."""

    def another(pid: int) -> None:
        wait_until(lambda: Path(f"{case.output}.status.json").exists())
        os.kill(pid, signal.SIGSTOP)  # else a busy machine can end this run before the second one has started
        program = (
            "import fcntl, errno, os, sys\n"
            "def flock(*arguments): raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))\n"
            "fcntl.flock = flock\n"
            "from gsio.cli import main\n"
            "sys.exit(main())"
        )
        command = [sys.executable, "-c", program, "run", *map(str, case.options), "--resume=auto"]
        second = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert second.returncode == 2, second.stderr
        assert "another run writes" in second.stderr
        os.kill(pid, signal.SIGKILL)

    def play() -> Iterator[str]:
        slow = fault(case, WRITE, 1, SLOW, lasts=True)
        assert case.run(fault=slow, meanwhile=another, **how("flock: ENOSYS")).code == -9
        case.check_resume(**how("flock: ENOSYS"))
        yield "identical"

    tally.play(case, "two runs at once without locks, one killed", "", play)


def test_a_run_that_cannot_start_its_threads_ends_in_one_line(case: Case, tally: Tally) -> None:
    def play() -> Iterator[str]:
        calls = case.run(fault=fault(case, ANY, 0)).calls_of(ANY)
        case.clear()
        assert case.run(fault=fault(case, ANY, calls // 2, KILL_BEFORE)).code == -9
        for number in count():
            ended = case.run("--resume=auto", threads=number)
            if ended.code == 0:
                break
            assert ended.code in (70, 74), (ended.code, ended.text)
            assert "thread" in ended.error, ended.text
            assert ended.seconds < 20
            yield "stopped"
        assert number >= 4  # that compute, encode, commit and save checkpoints
        assert contents(case.output) == case.whole
        yield "identical"

    tally.play(case, "too few threads", "", play)
