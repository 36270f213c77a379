"""The threads of the CPU solver: the same bits for any number of them, and in surroundings where others fail."""

import hashlib
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from numba import njit
from patience import DEADLINE

from gsio.compute.cpu import CpuSolver
from gsio.compute.cpu.team import Team
from gsio.compute.cpu.vectors import meet
from gsio.config import load_config
from gsio.frames.block import Block
from gsio.frames.format import FrameFormat
from gsio.frames.layout import BlockLayout
from gsio.machine import usable_cores
from gsio.run.initial import initial_state

pytestmark = pytest.mark.numba


SHAPE = 67, 200


def layout_of(shape: tuple[int, int]) -> BlockLayout:
    return BlockLayout.of_frames(FrameFormat.of(shape, "u,v", "float32", shuffle=True), 2)


def make_solver(threads: int, shape: tuple[int, int] = SHAPE) -> CpuSolver:
    grid = {"grid.rows": shape[0], "grid.cols": shape[1], "initial.kind": "noise", "run.threads": threads}
    config = load_config(overrides=grid, environ={})
    return CpuSolver(config, layout_of(shape), initial_state(config))


def digest(solver: CpuSolver, shape: tuple[int, int] = SHAPE) -> str:
    """Return a number of the bytes and statistics of the next two frames."""
    layout = layout_of(shape)
    block = Block(layout, solver.allocate(layout.block_nbytes))
    block.count = 2
    solver.fill(block)
    solver.wait(block)
    return hashlib.sha256(block.buffer).hexdigest()


@njit(nogil=True)
def meet_others(numbers, threads):  # type: ignore[no-untyped-def]
    meet(numbers, threads)


@pytest.mark.parametrize("shape", [(3, 61), (67, 200), (9, 700)], ids=str)
def test_frames_have_the_same_bits_for_any_number_of_threads(shape: tuple[int, int]) -> None:
    solvers = [make_solver(threads, shape) for threads in (1, 2, 3, 7)]
    assert [solver.device for solver in solvers] == [
        "CPU, 1 thread",
        *(f"CPU, {threads} threads" for threads in (2, 3, 7)),
    ]
    assert len({digest(solver, shape) for solver in solvers}) == 1


def test_a_small_grid_has_one_thread_and_a_large_one_all_cores() -> None:
    assert make_solver(0, (64, 64)).device == "CPU, 1 thread"
    assert make_solver(0, (64, 8192 // 64 * usable_cores())).device.startswith(f"CPU, {usable_cores()} ")


def test_solvers_in_threads_of_one_process_do_not_disturb_each_other() -> None:
    expected = digest(make_solver(1))
    with ThreadPoolExecutor(4) as threads:
        found = [threads.submit(lambda number: digest(make_solver(number)), 1 + number % 3) for number in range(8)]
        assert {each.result(DEADLINE) for each in found} == {expected}


def test_a_solver_can_go_from_thread_to_thread() -> None:
    solver, again = make_solver(3), make_solver(1)
    with ThreadPoolExecutor(1) as other:
        assert other.submit(digest, solver).result(DEADLINE) == digest(again)
    assert digest(solver) == digest(again)


def alone(code: str, *words: object, environment: dict[str, str] | None = None) -> str:
    """Run code in a process of its own, and return what it prints."""
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent), *sys.path])
    run = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        env={**os.environ, **(environment or {}), "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=True,
    )
    return run.stdout


FORKED = """
import multiprocessing
from test_threads import digest, make_solver
solver, again = make_solver(2), make_solver(1)
digest(solver)
digest(again)
expected, first = digest(again), digest(make_solver(1))
fork = multiprocessing.get_context("fork")
receive, send = fork.Pipe(duplex=False)
child = fork.Process(target=lambda: send.send((digest(solver), digest(make_solver(2)))))
child.start()
assert receive.poll(100)
assert receive.recv() == (expected, first)
child.join(100)
assert child.exitcode == 0
assert digest(solver) == expected
print("as expected")
"""


def test_a_forked_child_can_use_its_parents_solver_and_make_another() -> None:
    assert alone(FORKED).splitlines()[-1] == "as expected"


ALONE = """
import hashlib, os, sys
if sys.argv[1] == "one core":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from test_threads import digest, make_solver
print(digest(make_solver(int(sys.argv[2]))))
with open("/proc/self/maps") as maps:
    assert not any(name in line for line in maps for name in ("libgomp", "libtbb", "libomp", "pool.cpython"))
"""


@pytest.mark.parametrize(
    ("place", "threads", "environment"),
    [
        ("one core", 0, {}),
        ("one core", 3, {}),
        ("all cores", 2, {"NUMBA_THREADING_LAYER": "workqueue"}),
        ("all cores", 2, {"NUMBA_NUM_THREADS": "1"}),
    ],
    ids=str,
)
def test_no_threading_layer_is_loaded_and_the_bits_are_the_same(
    place: str, threads: int, environment: dict[str, str]
) -> None:
    printed = alone(ALONE, place, threads, environment=environment)
    assert printed.splitlines()[-1] == digest(make_solver(1))


def test_an_error_of_one_thread_ends_the_work_of_all() -> None:
    team = Team(3)
    team.run(lambda share: meet_others(team.meeting, 3))

    def work(share: int) -> None:
        if share == 1:
            raise ArithmeticError("of one thread")
        meet_others(team.meeting, 3)

    with pytest.raises(ArithmeticError, match="of one thread"):
        team.run(work)


def test_a_team_calls_with_each_number_in_a_thread_of_its_own() -> None:
    team, found, here = Team(3), {}, threading.Barrier(3)

    def work(share: int) -> None:
        found[share] = threading.current_thread()
        here.wait(DEADLINE)

    team.run(work)
    first = dict(found)
    team.run(work)
    assert sorted(found) == [0, 1, 2]
    assert found[0] is threading.current_thread()
    assert len(set(found.values())) == 3
    assert set(first.values()) == set(found.values())  # the threads are used again
