"""Nsight Systems: what is read of its exports, how a run is recorded with it, and how `gsio profile` ends."""

import os
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import structlog

from gsio.cli import main
from gsio.cli.doctor import findings
from gsio.errors import DataError, UsageError
from gsio.profile import nsys
from gsio.profile.overlap import overlap
from gsio.trace import timeline
from gsio.trace.timeline import DEVICE, Interval

SMALL = ["-r", "12", "-c", "17", "-n", "3", "-e", "2", "--set", "run.backend=numpy"]
STRINGS = ["loop", "advance", "wait_block", "encode", "write", "commit", "stage", "think", "gsio"]
MS = 1_000_000
PUSHED, DOMAIN_CREATED = 59, 75
Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in an empty folder, with no nsys but a test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("shutil.which", lambda name: None)
    yield tmp_path
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


class Export:
    """An export of Nsight Systems, with the columns it is read for among others it has."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._database = sqlite3.connect(path)

    def add(self, table: str, columns: str, *rows: tuple[object, ...]) -> "Export":
        self._database.execute(f"CREATE TABLE IF NOT EXISTS {table} ({columns})")
        places = ", ".join("?" * len(columns.split(",")))
        self._database.executemany(f"INSERT INTO {table} VALUES ({places})", rows)
        self._database.commit()
        return self

    def strings(self) -> "Export":
        return self.add("StringIds", "id INTEGER PRIMARY KEY, value TEXT", *enumerate(STRINGS))

    def kernels(self, *spans: tuple[int, int]) -> "Export":
        rows = [(start * MS, end * MS, 0, 7) for start, end in spans]
        return self.add("CUPTI_ACTIVITY_KIND_KERNEL", "start INT, end INT, deviceId INT, streamId INT", *rows)

    def graphs(self, *spans: tuple[int, int]) -> "Export":
        rows = [(start * MS, end * MS, 0, 3) for start, end in spans]
        return self.add("CUPTI_ACTIVITY_KIND_GRAPH_TRACE", "start INT, end INT, deviceId INT, graphId INT", *rows)

    def copies(self, *spans: tuple[int, int, int]) -> "Export":
        rows = [(start * MS, end * MS, kind, 4096) for start, end, kind in spans]
        return self.add("CUPTI_ACTIVITY_KIND_MEMCPY", "start INT, end INT, copyKind INT, bytes INT", *rows)

    def ranges(self, *spans: tuple[str, int, int, int], domain: int = 1, registered: bool = True) -> "Export":
        columns = "start INT, end INT, eventType INT, text TEXT, textId INT, domainId INT, globalTid INT"
        rows = []
        for name, thread, start, end in spans:
            text = (None, STRINGS.index(name)) if registered else (name, None)
            rows.append((start * MS, end * MS, PUSHED, *text, domain, (1 << 56) + (4321 << 24) + thread))
        return self.add("NVTX_EVENTS", columns, *rows)

    def domain(self, name: str, number: int) -> "Export":
        columns = "start INT, end INT, eventType INT, text TEXT, textId INT, domainId INT, globalTid INT"
        return self.add("NVTX_EVENTS", columns, (0, None, DOMAIN_CREATED, name, None, number, 1 << 56))


@pytest.fixture
def export(tmp_path: Path) -> Export:
    return Export(tmp_path / "report.sqlite")


def whole(export: Export) -> Export:
    """Add a run of one block: the loop from 100 to 110 ms."""
    export.strings().domain("gsio", 1).ranges(
        ("loop", 1, 100, 110), ("advance", 2, 100, 101), ("encode", 3, 106, 108), ("write", 4, 108, 109)
    )
    return export.copies((105, 106, 2))


def test_ranges_kernels_and_copies_are_read(export: Export) -> None:
    found = nsys.read(whole(export).kernels((101, 103), (103, 105)).path)
    assert (found.begin, found.end) == (0.1, 0.11)
    assert [interval[:3] for interval in found.intervals] == [
        ("advance", 2, 0),
        ("compute", DEVICE, 0),
        ("compute", DEVICE, 0),
        ("copy", DEVICE, 0),
        ("encode", 3, 0),
        ("write", 4, 0),
    ]
    report = overlap(found)
    assert report.lanes["compute"].busy == pytest.approx(0.004)
    assert report.lanes["copy"].busy == pytest.approx(0.001)
    assert (report.blocks, report.notes) == (1, [])


def test_graphs_traced_as_a_whole_are_computing_like_kernels_traced_one_by_one(export: Export, tmp_path: Path) -> None:
    nodes = overlap(nsys.read(whole(export).kernels((101, 103), (103, 105)).path))
    graph = overlap(nsys.read(whole(Export(tmp_path / "graph.sqlite")).graphs((101, 105)).path))
    mixed = overlap(nsys.read(whole(Export(tmp_path / "mixed.sqlite")).graphs((101, 103)).kernels((103, 105)).path))
    assert str(nodes) == str(graph) == str(mixed)


def test_only_copies_to_the_host_are_copies(export: Export) -> None:
    to_device, to_host, on_device = 1, 2, 8
    found = nsys.read(export.copies((0, 1, to_device), (1, 2, to_host), (2, 3, on_device)).path)
    assert found.intervals == [Interval("copy", DEVICE, 0, 0.001, 0.002)]


def test_ranges_of_other_domains_are_left_out(export: Export) -> None:
    export.strings().domain("gsio", 3).domain("other", 4).ranges(("encode", 2, 0, 1), domain=3)
    found = nsys.read(export.ranges(("write", 2, 1, 2), domain=4).path)
    assert [interval.name for interval in found.intervals] == ["encode"]


def test_where_no_domain_has_a_name_ranges_are_known_by_theirs(export: Export) -> None:
    found = nsys.read(export.strings().ranges(("encode", 2, 0, 1), ("think", 2, 1, 2), domain=7).path)
    assert [interval.name for interval in found.intervals] == ["encode"]


def test_names_that_are_not_registered_are_read_without_a_table_of_strings(export: Export) -> None:
    found = nsys.read(export.domain("gsio", 1).ranges(("encode", 2, 5, 6), registered=False).path)
    assert found.intervals == [Interval("encode", 2, 0, 0.005, 0.006)]


def test_without_a_loop_it_lasts_from_the_first_to_the_last_range(export: Export) -> None:
    export.strings().ranges(("advance", 2, 5, 6), ("encode", 2, 7, 9)).kernels((1, 2), (5, 8))
    found = nsys.read(export.path)
    assert (found.begin, found.end) == (0.005, 0.009)
    assert overlap(found).lanes["compute"].busy == pytest.approx(0.003)


def test_without_ranges_the_device_is_reported(export: Export) -> None:
    found = nsys.read(export.kernels((1, 2), (3, 5)).path)
    assert (found.begin, found.end) == (0.001, 0.005)
    assert "gsio doctor" in overlap(found).notes[0]


def test_without_tables_there_is_one_line(export: Export) -> None:
    with pytest.raises(DataError, match=r"got neither; record with nsys profile -t cuda,nvtx"):
        nsys.read(export.strings().path)


def test_a_table_without_its_columns_and_another_file_are_refused(export: Export, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected what 'nsys export"):
        nsys.read(export.add("CUPTI_ACTIVITY_KIND_MEMCPY", "began INT", (1,)).path)
    (tmp_path / "text").write_text("no database, but as long as one that begins with a header" * 9)
    with pytest.raises(DataError, match="expected what 'nsys export"):
        nsys.read(tmp_path / "text")
    with pytest.raises(UsageError, match="no such file"):
        nsys.read(tmp_path / "missing.sqlite")


def test_a_recording_that_was_made_before_is_reported(export: Export, tmp_path: Path, capsys: Captured) -> None:
    assert main(["profile", "--read", str(whole(export).kernels((101, 105)).path)]) == 0
    assert "1 blocks in 0.010 s (Nsight Systems)" in capsys.readouterr().out
    timeline.Timeline().write(tmp_path / "run.json")
    assert main(["profile", "--read", str(tmp_path / "run.json")]) == 0
    assert "0 blocks" in capsys.readouterr().out
    assert main(["profile", "--read", str(tmp_path / "missing.sqlite")]) == 2
    assert "no such file" in capsys.readouterr().err


# With a stand-in for nsys


NSYS = f"""#!{sys.executable}
import os, pathlib, subprocess, sys
command, *rest = sys.argv[1:]
output = [argument.partition("=")[2] for argument in rest if argument.startswith("--output=")]
if command == "--version":
    print("NVIDIA Nsight Systems version " + os.environ.get("FAKE_NSYS", "2025.3.1.90-253135822126v0"))
elif command == "profile":
    assert not [name for name in os.environ if name.startswith("GSIO_")]
    program = rest[rest.index(sys.executable):]
    code = subprocess.run(program).returncode
    if "FAKE_NO_REPORT" not in os.environ:
        pathlib.Path(output[0]).write_text("a report")
    sys.exit(code)
elif command == "export":
    if "FAKE_NO_EXPORT" in os.environ:
        sys.exit("the importer failed")
    pathlib.Path(output[0]).write_bytes(pathlib.Path(os.environ["FAKE_EXPORT"]).read_bytes())
"""


@pytest.fixture
def fake_nsys(export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put an nsys in place that runs what it is given, and exports a run of one block."""
    tool = tmp_path / "tools" / "nsys"
    tool.parent.mkdir()
    tool.write_text(NSYS)
    tool.chmod(0o755)
    monkeypatch.setattr("shutil.which", lambda name: str(tool))
    monkeypatch.setenv("FAKE_EXPORT", str(whole(export).kernels((101, 105)).path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    return tool


BESIDE = {"run.h5.checkpoint.npz", "run.h5.status.json"}  # what a complete run leaves


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"tools", "report.sqlite"}


def test_profile_without_nsys_reports_what_gsio_saw_and_leaves_nothing(folder: Path, capsys: Captured) -> None:
    assert main(["profile", *SMALL, "--quiet"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("1 blocks in ")
    assert "bound by" in out
    assert "Nsight" not in out
    assert left(folder) == set()


def test_profile_keeps_what_it_is_asked_to(folder: Path, capsys: Captured) -> None:
    options = ["--quiet", "-o", "run.h5", "--timeline", "run.json", "--plot", "lanes.svg"]
    assert main(["profile", *SMALL, *options]) == 0
    assert left(folder) - BESIDE == {"run.h5", "run.json", "lanes.svg"}
    assert main(["profile", *SMALL, "--quiet", "-o", "run.h5"]) == 2
    assert main(["profile", *SMALL, "--quiet", "-o", "run.h5", "--overwrite"]) == 0


def test_profile_under_nsys_reports_of_both(
    fake_nsys: Path, folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GSIO_RUN_FRAMES", "99")  # the options come before it, under nsys too
    assert main(["profile", *SMALL, "--quiet", "-o", "run.h5", "--report", "kept.nsys-rep"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert "1 blocks in 0.010 s (Nsight Systems)" in out
    assert out.index("spans and device events") < out.index("Nsight Systems")
    assert "The two results differ by at most " in out.splitlines()[-1]
    assert left(folder) - BESIDE == {"run.h5", "kept.nsys-rep"}


def test_profile_warns_of_an_nsys_that_records_no_ranges(
    fake_nsys: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_NSYS", "2023.4.4.54-234433681190v0")
    monkeypatch.setattr("gsio.profile.nsys.installed", lambda name: "0.2.12")
    assert main(["profile", *SMALL, "--quiet"]) == 0
    assert "nsys 2023.4.4.54 records no ranges of nvtx 0.2.12" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("variable", "told"), [("FAKE_NO_REPORT", "got nothing"), ("FAKE_NO_EXPORT", "the importer failed")]
)
def test_profile_goes_on_without_the_report_of_an_nsys_that_fails(
    variable: str, told: str, fake_nsys: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "1")
    assert main(["profile", *SMALL, "--quiet"]) == 0
    out, err = capfd.readouterr()
    assert told in err
    assert "spans and device events" in out
    assert "Nsight Systems" not in out


def test_a_run_that_fails_under_nsys_ends_profile_with_its_code(
    fake_nsys: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    np.savez("start.npz", u=np.ones((12, 17)), v=np.full((12, 17), 1e30))
    start = ["--set", "initial.kind=file", "--set", "initial.path=start.npz"]
    assert main(["profile", *SMALL, *start, "--quiet"]) == 70
    first, second = capfd.readouterr().err.splitlines()
    assert "non-finite" in first
    assert "ended with exit code 70" in second


def test_a_run_that_does_not_begin_under_nsys_ends_profile_with_its_code(
    fake_nsys: Path, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    unusable = ["--set", "initial.kind=file", "--set", "initial.path=missing.npz"]
    assert main(["profile", *SMALL, *unusable, "--quiet", "--timeline", "run.json"]) == 2
    first, second = capfd.readouterr().err.splitlines()
    assert first.startswith("gsio: error: initial.path")
    assert "ended with exit code 2" in second
    assert not Path("run.json").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--plot", "lanes.jpeg"], "ends in .png or .svg"),
        (["--plot", "missing/lanes.png"], "'missing' does not exist"),
        (["--timeline", "missing/run.json"], "--timeline"),
        (["--report", "run.nsys-rep"], "expected nsys on PATH"),
    ],
)
def test_a_file_that_cannot_be_made_is_refused_before_the_run(
    options: list[str], told: str, folder: Path, capsys: Captured
) -> None:
    assert main(["profile", *SMALL, "-o", "run.h5", *options]) == 2
    assert told in capsys.readouterr().err
    assert left(folder) == set()


@pytest.mark.parametrize(
    ("report", "told"), [("run.txt", "ends in .nsys-rep"), ("missing/run.nsys-rep", "'missing' does not exist")]
)
def test_a_report_needs_its_ending_and_a_folder(report: str, told: str, fake_nsys: Path, capsys: Captured) -> None:
    assert main(["profile", *SMALL, "--report", report]) == 2
    assert told in capsys.readouterr().err


def test_a_plot_without_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["profile", *SMALL, "--plot", "lanes.png"]) == 2
    assert "pip install 'gsio[plots]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("version", "binding", "deaf"),
    [
        ("2023.4.4.54-234433681190v0", "0.2.12", True),
        ("2022.1.3.3-1c7b5f7", "0.2.17", True),
        ("2023.4.4.54-234433681190v0", "0.2.11", False),
        ("2024.1.1.59-241133802077v0", "0.2.12", False),
        ("2025.3.1.90-253135822126v0", "0.3", False),
        ("of tomorrow", "0.2.17", False),
    ],
)
def test_doctor_warns_of_an_nsys_that_records_no_ranges(
    version: str, binding: str, deaf: bool, fake_nsys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_NSYS", version)
    monkeypatch.setattr("gsio.profile.nsys.installed", lambda name: binding)
    found = dict(findings())["nsys"]
    assert ("pip install 'nvtx<0.2.12'" in found) == deaf
    assert (str(fake_nsys) in found) != deaf
    if version[0] == "2":
        assert version.partition("-")[0] in found


def test_doctor_without_nsys_says_nothing_of_it() -> None:
    assert "nsys" not in dict(findings())
