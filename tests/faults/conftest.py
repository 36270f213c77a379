"""Fixtures of the tests that kill and break, and the report of their rounds."""

import random
import shutil
import subprocess
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.register_assert_rewrite("harness")

from harness import HERE, LOOPS, OUTPUTS, Case, Launcher, Tally  # noqa: E402 - its assertions are rewritten first

ONE_EACH = {  # modules and tests
    "test_damage", "test_repair", "test_surroundings",
    "test_a_run_killed_again_before_it_reaches_its_frames_loses_none",
    "test_a_complete_run_that_is_extended_and_killed_keeps_its_frames",
}  # fmt: skip
LOOPS_IN_SHORT = {  # modules and tests that a loop outside gsio plays too
    "test_loops",
    "test_a_run_killed_at_random_goes_on_bit_for_bit",
    "test_a_complete_run_that_is_extended_or_cut_can_be_killed_at_once",
    "test_whichever_call_fails_no_frame_is_lost",
    "test_files_that_may_not_grow_end_a_run",
    "test_a_run_that_cannot_start_its_threads_ends_in_one_line",
}
LOOPS_IN_LONG = {
    "test_a_run_killed_again_before_it_reaches_its_frames_loses_none",
    "test_a_complete_run_that_is_extended_and_killed_keeps_its_frames",
    "test_a_run_that_cannot_start_again_can_do_so_later",
    "test_a_wreck_that_is_damaged_besides_goes_on",
    "test_a_repair_that_is_killed_loses_nothing",
    "test_the_output_that_is_replaced_stays_until_the_new_one_is_there",
    "test_an_output_that_vanishes_ends_the_run",
    "test_a_clock_that_runs_backwards_changes_nothing",
    "test_a_repair_leaves_as_many_frames_as_there_were",
}
ROWS: dict[tuple[str, str], Counter[str]] = {}


@pytest.fixture(scope="session")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("launcher").resolve()
    library = folder / "inject.so"
    subprocess.run(
        [compiler, "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, HERE / "inject.c", "-ldl"], check=True
    )
    launcher = Launcher(folder, library)
    yield launcher
    launcher.close()


@pytest.fixture(scope="session")
def cases(launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, Case] = {}

    def case_of(name: str) -> Case:
        if name not in made:
            made[name] = Case(name, launcher, tmp_path_factory.mktemp("case").resolve())
        return made[name]

    return case_of


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """In the short form random kills and sweeps meet every output of a run; everything else, and a loop, one each."""
    if "case" in metafunc.fixturenames:
        module, name = metafunc.module.__name__, metafunc.function.__name__
        short = metafunc.config.getoption("--rounds") == 1
        with_loops = LOOPS_IN_SHORT if short else LOOPS_IN_SHORT | LOOPS_IN_LONG
        names = [] if module == "test_loops" else list(OUTPUTS)
        loops = list(LOOPS) if {module, name} & with_loops else []
        if short:
            chosen = zlib.crc32(name.encode())
            loops = loops and [loops[chosen % len(loops)]]
            if names and ONE_EACH & {module, name}:
                names = [names[chosen % len(names)]]
        names += loops
        metafunc.parametrize("case", names, indirect=True)


@pytest.fixture
def case(request: pytest.FixtureRequest, cases: Any) -> Case:
    """One output, in an empty folder."""
    found: Case = cases(request.param)
    found.clear()
    return found


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> int:
    found: int = request.config.getoption("--rounds")
    return found


@pytest.fixture
def dice(request: pytest.FixtureRequest) -> random.Random:
    """Chance that is the same in every run of a test."""
    return random.Random(request.node.nodeid)


@pytest.fixture
def tally() -> Iterator[Tally]:
    """A `Tally` that fails the test if a round failed."""
    found = Tally(ROWS)
    yield found
    assert not found.failures, "\n".join(found.failures)


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = session.config.getoption("--report")
    if path is None:
        return
    columns = ("rounds", "killed", "stopped", "completed", "intact", "repaired", "identical", "failed")
    lines = [f"| output | fault | {' | '.join(columns)} |", "|---|---|" + "---:|" * len(columns)]
    total: Counter[str] = Counter()
    for (name, fault), row in ROWS.items():
        lines.append(f"| {name} | {fault} | {' | '.join(str(row[column]) for column in columns)} |")
        total += row
    lines.append(f"| all | | {' | '.join(str(total[column]) for column in columns)} |")
    Path(path).write_text("\n".join(lines) + "\n")
