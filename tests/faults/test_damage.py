"""Wrecks that are damaged besides, disks that are full, two runs at once, signals: all end well or are refused."""

import errno
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from harness import (
    ANY,
    FRAMES,
    KILL_AFTER,
    KILL_BEFORE,
    SLOW,
    WRITE,
    Case,
    Tally,
    check_stop,
    fault,
    newest_state,
    wait_until,
)
from patience import DEADLINE

from gsio.run import checkpoints
from gsio.writer.journal import journal_of

pytestmark = pytest.mark.faults


ENDS = {-9: "killed", 74: "stopped", 0: "completed"}


def kill_in_the_middle(case: Case, dice: random.Random) -> None:
    """Leave a wreck with a checkpoint, the one before it, and a journal."""
    case.clear()
    calls = case.run(fault=fault(case, ANY, 0)).calls_of(ANY)
    wanted = *checkpoints.paths_of(case.output), journal_of(case.output)

    def kill(pid: int) -> None:
        wait_until(lambda: all(path.exists() for path in wanted) or not Path(f"/proc/{pid}").exists())
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    for attempt in range(20):
        case.clear()
        if attempt < 3:
            ended = case.run(fault=fault(case, ANY, dice.randint(calls // 2, calls * 9 // 10), KILL_BEFORE))
        else:  # where the disk has much to do, checkpoints come late
            ended = case.run(fault=fault(case, WRITE, calls // 4, SLOW, lasts=True), meanwhile=kill)
        if ended.code == -9 and all(path.exists() for path in wanted):
            return
    raise AssertionError("no kill left both checkpoints and a journal")


def flip(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        old = file.read(8)
        file.seek(place)
        file.write(bytes(byte ^ 0xFF for byte in old))


def zero_superblock(case: Case) -> None:
    with case.output.open("r+b") as file:
        file.write(bytes(96))


def damage_index(case: Case) -> None:
    for found in re.finditer(rb"TREE\x01", case.output.read_bytes()):
        flip(case.output, found.start() + 24)


def tear_metadata(case: Case) -> None:
    for path in (case.output / "zarr.json", case.output / "v" / "zarr.json"):
        path.write_bytes(path.read_bytes()[:100])


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES: dict[str, Callable[[Case], object]] = {
    "superblock zeroed": zero_superblock,
    "chunk index damaged": damage_index,
    "metadata torn": tear_metadata,
    "checkpoint torn": lambda case: tear(checkpoints.paths_of(case.output)[0]),
    "checkpoint deleted": lambda case: checkpoints.paths_of(case.output)[0].unlink(),
    "both checkpoints deleted": lambda case: [path.unlink() for path in checkpoints.paths_of(case.output)],
    "both checkpoints torn": lambda case: [tear(path) for path in checkpoints.paths_of(case.output)],
    "checkpoint emptied": lambda case: os.truncate(checkpoints.paths_of(case.output)[0], 0),
    "checkpoint torn, the one before deleted": lambda case: [
        tear(checkpoints.paths_of(case.output)[0]),
        checkpoints.paths_of(case.output)[1].unlink(),
    ],
    "checkpoint deleted, the one before torn": lambda case: [
        checkpoints.paths_of(case.output)[0].unlink(),
        tear(checkpoints.paths_of(case.output)[1]),
    ],
    "checkpoints and journal deleted": lambda case: [
        path.unlink() for path in (*checkpoints.paths_of(case.output), journal_of(case.output))
    ],
    "checkpoints deleted, journal torn": lambda case: [
        *(path.unlink() for path in checkpoints.paths_of(case.output)),
        tear(journal_of(case.output)),
    ],
    "journal emptied": lambda case: os.truncate(journal_of(case.output), 0),
    "journal deleted": lambda case: journal_of(case.output).unlink(),
    "journal torn": lambda case: tear(journal_of(case.output)),
    "journal damaged": lambda case: flip(journal_of(case.output), journal_of(case.output).stat().st_size // 2),
}


def everything(path: Path) -> dict[str, bytes]:
    """Return all bytes of a file or folder, by name."""
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    return {str(file.relative_to(path)): file.read_bytes() for file in files if file.is_file()}


def is_whole(path: Path) -> bool:
    """Return whether the archive that a checkpoint is can be read to its end."""
    with suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        return archive.testzip() is None
    return False


def damages_of(case: Case) -> list[str]:
    hdf5, zarr = case.output.suffix == ".h5", case.output.suffix == ".zarr"
    others = {"superblock zeroed": hdf5, "chunk index damaged": hdf5 and "none" not in case.name, "metadata torn": zarr}
    return [damage for damage in DAMAGES if others.get(damage, True)]


def test_a_wreck_that_is_damaged_besides_goes_on(case: Case, tally: Tally, dice: random.Random, rounds: int) -> None:
    possible = damages_of(case)
    for damage in dice.sample(possible, min(len(possible), rounds)):

        def play(damage: str = damage) -> Iterator[str]:
            kill_in_the_middle(case, dice)
            yield "killed"
            case.check_prefix()  # without a journal nothing can be made of a file that was killed in a flush
            known = max(case.frames, case.journalled)
            DAMAGES[damage](case)
            torn = [path for path in checkpoints.paths_of(case.output) if path.exists() and not is_whole(path)]
            if torn and len(torn) == sum(path.exists() for path in checkpoints.paths_of(case.output)):
                before = case.decodable(case.output)
                ended = case.resume()
                assert ended.code == 65, ended.text
                assert "delete them" in ended.error
                assert case.decodable(case.output) == before
                for path in torn:
                    path.unlink()
            if "checkpoint" in damage and "journal" not in damage:
                yield case.check_prefix(known)
            if "journal" not in damage:
                yield case.check_prefix(1)
            case.check_resume()
            yield "identical"

        tally.play(case, damage, "", play)


def test_a_repair_that_is_killed_loses_nothing(case: Case, tally: Tally, dice: random.Random, rounds: int) -> None:
    for _ in range(rounds):

        def play() -> Iterator[str]:
            kill_in_the_middle(case, dice)
            case.check_prefix()
            known = newest_state(case.output).frames
            (tear_metadata if case.output.is_dir() else zero_superblock)(case)
            wreck = everything(case.output)
            for action in (KILL_BEFORE, KILL_AFTER, errno.ENOSPC):
                ended = case.launcher.run("repair", case.output, fault=fault(case, ANY, dice.randint(1, 300), action))
                assert ended.code in ENDS, ended.text
                yield ENDS[ended.code]
                assert os.path.lexists(case.output)
                # Never under a temporary name, under which the next run would delete it.
                assert wreck in [everything(path) for path in case.folder.iterdir() if not path.name.startswith(".")]
            yield case.check_prefix(known)
            case.check_resume()
            yield "identical"

        tally.play(case, "killed while it is repaired", "", play)


def test_the_output_that_is_replaced_stays_until_the_new_one_is_there(
    case: Case, tally: Tally, dice: random.Random, rounds: int
) -> None:
    for nth in dice.sample(range(1, 80), min(79, rounds)):  # most of these while the new one is laid out

        def play(nth: int = nth) -> Iterator[str]:
            assert case.run().code == 0
            ended = case.run("--overwrite", fault=fault(case, ANY, nth, KILL_BEFORE))
            assert ended.code == -9
            yield "killed"
            assert os.path.lexists(case.output)
            yield case.check_prefix()
            case.check_resume()
            yield "identical"

        tally.play(case, "killed while an output is replaced", f"call {nth}", play)


def test_files_that_may_not_grow_end_a_run(case: Case, tally: Tally, dice: random.Random, rounds: int) -> None:
    for _ in range(rounds):
        largest = dice.choice([4 << 10, 16 << 10, dice.randint(1 << 20, 2 << 20)])

        def play(largest: int = largest) -> Iterator[str]:
            ended = case.run(largest=largest)
            safe = check_stop(ended) if ended.code else FRAMES
            yield "stopped" if ended.code else "completed"
            yield case.check_prefix(safe)
            case.check_resume()
            yield "identical"

        tally.play(case, "RLIMIT_FSIZE", f"{largest} bytes", play)


@pytest.mark.parametrize("name", ["HDF5, deflate", "HDF5, none", "Zarr, lz4", "FrameWriter, HDF5, lz4"])
@pytest.mark.parametrize("kilobytes", [60, 1300])
def test_a_full_disk_ends_a_run(name: str, kilobytes: int, cases: Callable[[str], Case], tally: Tally) -> None:
    case = cases(name)
    size = f"size={kilobytes // (8 if name.startswith('Zarr') and kilobytes > 60 else 1)}k"
    case.clear()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", case.folder], capture_output=True).returncode:
        pytest.skip("only root can mount a small tmpfs")

    def play() -> Iterator[str]:
        ended = case.run()
        safe = check_stop(ended)
        yield "stopped"
        subprocess.run(["mount", "-o", "remount,size=64m", case.folder], check=True)
        yield case.check_prefix(safe)
        case.check_resume()
        yield "identical"

    try:
        tally.play(case, "disk full (tmpfs)", size, play, clear=False)
    finally:
        subprocess.run(["umount", case.folder], check=True)


def test_two_runs_never_write_one_output(case: Case, tally: Tally) -> None:
    def another(pid: int) -> None:
        wait_until(case.output.exists)
        os.kill(pid, signal.SIGSTOP)  # else a busy machine can end this run before the second one has started
        command = [sys.executable, "-m", "gsio", "run", *map(str, case.options), "--resume=auto"]
        second = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
        assert second.returncode == 2, second.stderr
        assert "another run writes" in second.stderr
        os.kill(pid, signal.SIGKILL)

    def play() -> Iterator[str]:
        assert case.run(fault=fault(case, WRITE, 1, SLOW, lasts=True), meanwhile=another).code == -9
        yield case.check_prefix()
        case.check_resume()
        yield "identical"

    tally.play(case, "two runs at once, one killed", "", play)


def test_an_output_that_vanishes_ends_the_run(case: Case, tally: Tally) -> None:
    def vanish(pid: int) -> None:
        wait_until(Path(f"{case.output}.status.json").exists)
        gone = case.output.rename(case.folder.parent / "gone")
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()

    def play() -> Iterator[str]:
        ended = case.run(fault=fault(case, WRITE, 1, SLOW, lasts=True), meanwhile=vanish)
        assert ended.code == 74, ended.text
        assert "and resume, or run again" in ended.error or "go on with" in ended.error
        yield "stopped"
        case.check_resume()
        yield "identical"

    tally.play(case, "output deleted under the run", "", play)


@pytest.mark.parametrize("times", [1, 2, 3])
def test_signals_stop_a_run(case: Case, times: int, tally: Tally) -> None:
    said = ("stopping when the frames", "stopping after the block")

    def signals(pid: int) -> None:
        wait_until(Path(f"{case.output}.status.json").exists)
        for number in range(times):
            if number:
                wait_until(partial(case.launcher.has_said, said[number - 1]))
            os.kill(pid, signal.SIGTERM)

    def play() -> Iterator[str]:
        ended = case.run(fault=fault(case, WRITE, 1, SLOW, lasts=True), meanwhile=signals)
        assert ended.code == (143 if times == 3 else 75), (ended.code, ended.text)
        yield "stopped"
        yield case.check_prefix()
        if times == 1:
            assert case.frames == newest_state(case.output).frames < FRAMES
        case.check_resume()
        yield "identical"

    tally.play(case, f"SIGTERM × {times}", "", play)


def test_a_clock_that_runs_backwards_changes_nothing(case: Case, tally: Tally, dice: random.Random) -> None:
    def play() -> Iterator[str]:
        case.run(seconds_back=3600, kill_after=dice.uniform(0.3, 0.8) * case.seconds)
        yield case.check_prefix()
        case.check_resume(seconds_back=3600)
        yield "identical"

    tally.play(case, "killed, clock running backwards", "", play)
