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
OF_LOOPS_TOO = {"test_kills", "test_storage"}  # modules
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
    """In the short form random kills and sweeps meet every output there is, everything else one each."""
    if "case" in metafunc.fixturenames:
        names = [*OUTPUTS, *(LOOPS if metafunc.module.__name__ in OF_LOOPS_TOO else ())]
        meant = {metafunc.module.__name__, metafunc.function.__name__}
        if metafunc.config.getoption("--rounds") == 1 and ONE_EACH & meant:
            names = [names[zlib.crc32(metafunc.function.__name__.encode()) % len(names)]]
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
