"""Ranks that are killed at any moment, one or all: no committed frame is lost, and any number of ranks goes on."""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from mpirun import FRAMES, OPTIONS, Launch, committed, contents, needs_mpi, run, undisturbed, wait_for

pytestmark = [pytest.mark.faults, needs_mpi]


def test_ranks_killed_at_random_go_on_on_any_number_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, dice: random.Random, rounds: int
) -> None:
    whole, folder = undisturbed(tmp_path_factory.mktemp("whole")), tmp_path_factory.mktemp("runs")
    for _ in range(2 if rounds == 1 else rounds):
        play(folder / "run.zarr", whole, dice)
        shutil.rmtree(folder)
        folder.mkdir()


def play(output: Path, whole: dict[str, bytes], dice: random.Random) -> None:
    """Kill one rank, or all, one to three times, and complete the run."""
    for _ in range(dice.randint(1, 3)):
        safe = committed(output)
        with Launch(dice.choice([2, 3]), "run", "--mpi", *OPTIONS, "-o", output, "--resume") as launch:
            wait_for(output, min(FRAMES, safe + dice.randint(0, 40)), launch)
            time.sleep(dice.uniform(0, 0.3))
            there = launch.ranks()
            for rank in dice.choice([list(there), list(there)[:1], list(there)[-1:]]):
                os.kill(there[rank], signal.SIGKILL)
            launch.wait()
        assert committed(output) >= safe
    ended = run(dice.choice([1, 2]), "--mpi", *OPTIONS, "-o", output, "--resume")
    assert ended.code == 0, ended.text
    assert contents(output) == whole
