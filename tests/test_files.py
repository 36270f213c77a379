"""Nothing is replaced that the user did not name for it: every option that names a file to write, and what is there."""

import json
import os
import socket
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import click
import h5py
import numpy as np
import psutil
import pytest
import structlog

import gsio
from gsio import export, files
from gsio.bench import tables
from gsio.bench.tables import Column, Results, Row, Table
from gsio.cli import cli, main
from gsio.cli.bench import TABLES
from gsio.config import Config
from gsio.draw.movie import FORMS
from gsio.errors import DataError, TakenError, UsageError
from gsio.look import frames
from gsio.reader import movie
from gsio.run import checkpoints
from gsio.run import simulate as running
from gsio.run.metrics import CONNECTIONS, metrics
from gsio.run.progress import Progress
from gsio.sweep import sheet
from gsio.testing import small_blocks
from gsio.writer.status_file import status_of

Captured = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch
Make = Callable[..., Config]

SMALL = ["-r", "12", "-c", "17", "-n", "3", "-e", "2", "--backend", "numpy", "-q"]


class Write(NamedTuple):
    """A command that writes `made`, and the options that make it replace what is there, if any do."""

    arguments: list[str]
    made: str
    overwrite: tuple[str, ...] = ()


RUN = ["run", *SMALL]
SWEEP = """\
grid = { rows = 12, cols = 17 }
run = { frames = 3, steps_per_frame = 2, backend = "numpy" }
[sweep]
model.feed = { values = [0.03, 0.04] }
"""
PROFILE = ["profile", *SMALL, "-o", "run.h5"]
# By command and parameter. An option that names a file to write and is not here fails the first test.
WRITES = {
    ("run", "output"): [Write([*RUN, "-o", name], name, ("--overwrite",)) for name in ("run.h5", "run.zarr")],
    ("run", "timeline"): [Write([*RUN, "-o", "run.h5", "--timeline", "run.json"], "run.json")],
    ("profile", "output"): [Write(PROFILE, "run.h5", ("--overwrite",))],
    ("profile", "timeline"): [Write([*PROFILE, "--timeline", "run.json"], "run.json")],
    ("profile", "plot"): [Write([*PROFILE, "--plot", "lanes.svg"], "lanes.svg")],
    ("profile", "report"): [Write([*PROFILE, "--report", "run.nsys-rep"], "run.nsys-rep")],
    ("export", "target"): [
        Write(["export", "source/run.h5", f"out{ending}", "-q"], f"out{ending}", ("--overwrite",))
        for ending in export.FORMATS
    ],
    ("frames", "output"): [
        Write(["frames", "source/run.h5", "-q", "-o", target], made, ("--overwrite",))
        for target, made in (
            ("last.png", "last.png"),
            ("last.tif", "last.tif"),
            ("f%d.png", "f2.png"),
            ("pictures", "pictures/frame_00001.png"),
        )
    ],
    ("movie", "output"): [
        Write(["movie", "source/run.h5", "-q", "-o", f"out{ending}"], f"out{ending}", ("--overwrite",))
        for ending in FORMS
    ],
    ("sweep sheet", "output"): [
        Write(["sweep", "sheet", "source/plane.zarr", "-o", "sheet.png"], "sheet.png", ("--overwrite",))
    ],
    ("presets", "preview"): [Write(["presets", "smoke", "--preview", "pictures"], "pictures/smoke.png")],
    **{
        (f"bench {name}", "json"): [Write(["bench", name, "--device", "cpu", "--json", "all.json"], "all.json")]
        for name in TABLES
    },
    **{
        (f"bench {name}", "plot"): [
            Write(["bench", name, "--device", "cpu", "--plot", "plots"], f"plots/{drawn}")
            for drawn in (f"{name}.png", *["roofline.svg"] * (name == "compute"))
        ]
        for name in TABLES
    },
}
# What names a path that is read, a folder for temporary files, or an output to put right or to go on with.
OTHERS = {
    *[(name, "config_path") for name in ("run", "profile", "bench tune", "config show", "sweep run")],
    *[(name, "path") for name in ("info", "verify", "repair", "frames", "movie")],
    *[(f"sweep {name}", "path") for name in ("task", "status", "sheet")],
    ("sweep run", "output"),
    ("view", "paths"),
    ("profile", "read"),
    ("export", "source"),
    *[(f"bench {name}", "folder") for name in TABLES],
}
ALL = [
    pytest.param(write, id=f"{command} {parameter} {write.made}")
    for (command, parameter), writes in WRITES.items()
    for write in writes
]
THINGS = ["file", "folder", "link", "dangling link", "pipe"]


def put(path: Path, thing: str) -> None:
    """Put something that is not gsio's at `path`."""
    path.parent.mkdir(exist_ok=True)
    if thing == "file":
        path.write_text("precious")
    elif thing == "folder":
        path.mkdir()
        (path / "thesis.tex").write_text("precious")
    elif thing == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(path.parent.resolve() / ("precious.txt" if thing == "link" else "nothing"))
        if thing == "link":
            (path.parent / "precious.txt").write_text("precious")


def contents(path: Path) -> dict[str, str | bytes]:
    """Return what is at and below a path, by name: where a link leads, the bytes of a file."""
    found: dict[str, str | bytes] = {}
    for entry in [path, *path.rglob("*")] if path.is_dir() and not path.is_symlink() else [path]:
        if entry.is_symlink():
            found[str(entry)] = f"link to {entry.readlink()}"
        else:
            found[str(entry)] = entry.read_bytes() if entry.is_file() else f"mode {entry.lstat().st_mode}"
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "run.h5"
    assert main([*RUN, "-o", str(path), "--set", "initial.kind=noise"]) == 0
    (sweep := path.with_name("sweep.toml")).write_text(SWEEP)
    plane = str(path.with_name("plane.zarr"))
    assert main(["sweep", str(sweep), "-o", plane, "--engine", "print"]) == main(["sweep", "task", plane, "-q"]) == 0
    return path


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, source: Path, monkeypatch: Patch) -> Iterator[Path]:
    """Work in a folder with nothing but a link to an output, and without Nsight Systems but for `gsio profile`."""
    monkeypatch.chdir(tmp_path)
    Path("source").symlink_to(source.parent)
    monkeypatch.setattr("gsio.profile.nsys.find", lambda: None)
    yield tmp_path
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.fixture
def meanwhile(monkeypatch: Patch) -> Callable[[Write, Callable[[], None]], None]:
    """Return a function that lets something happen while a command works: after its first look, before it is done."""

    def install(write: Write, happen: Callable[[], None]) -> None:
        def after(work: Any) -> Any:
            def worked(*arguments: Any, **named: Any) -> Any:
                result = work(*arguments, **named)
                happen()
                return result

            return worked

        column = Column("s", "seconds", spread=True)
        measured = Results("storage", Table("", [Row("a", [])], [column], 1), {"a": [{"seconds": 1.0}]}, {})
        monkeypatch.setattr(tables, "measure_table", after(lambda name, *_: measured._replace(name=name)))
        roofs = {"operations": 1.0, "bandwidth": 1.0}
        monkeypatch.setattr(tables, "measure_row", lambda *_: roofs)
        monkeypatch.setattr(running, "last_frame", after(lambda config: np.eye(8)))
        if write.arguments[0] == "export":
            monkeypatch.setattr(export, "select", after(export.select))
        elif write.arguments[0] == "frames":
            monkeypatch.setattr(frames, "decoding_threads", after(frames.decoding_threads))
        elif write.arguments[0] == "sweep":
            monkeypatch.setattr(sheet, "read_states", after(sheet.read_states))
        elif write.arguments[0] == "movie":
            monkeypatch.setattr(movie, "drawing", after(movie.drawing))
        else:
            monkeypatch.setattr(running, "root_attributes", after(running.root_attributes))

    return install


def fake_nsys(monkeypatch: Patch) -> None:
    """Let there be an nsys that runs the command in this process, and makes a report that cannot be exported."""

    def record(tool: str, report: Path, command: list[str], environment: Any) -> int:
        report.write_bytes(b"report")
        return main(command[3:])

    monkeypatch.setattr("gsio.profile.nsys.find", lambda: "nsys")
    monkeypatch.setattr("gsio.profile.nsys.describe", lambda tool: ("", None))
    monkeypatch.setattr("gsio.profile.nsys.record", record)


def parameters(group: click.Group, prefix: str = "") -> Iterator[tuple[str, click.Parameter]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from parameters(command, f"{prefix}{name} ")
        else:
            yield from ((prefix + name, parameter) for parameter in command.params)


def test_every_parameter_that_names_a_path_is_known_to_these_tests() -> None:
    found = set()
    for command, parameter in parameters(cli):
        words = f"{parameter.metavar} {parameter.name}".lower()
        if isinstance(parameter.type, click.Path | click.File) or any(word in words for word in ("path", "folder")):
            found.add((command, parameter.name))
    assert found == WRITES.keys() | OTHERS


@pytest.mark.parametrize("thing", THINGS)
@pytest.mark.parametrize("write", ALL)
def test_what_is_there_is_refused_before_anything_begins(
    write: Write, thing: str, folder: Path, meanwhile: Any, monkeypatch: Patch, capsys: Captured
) -> None:
    def begun() -> None:
        raise AssertionError("it began")

    put(folder / write.made, thing)
    fake_nsys(monkeypatch)
    meanwhile(write, begun)
    before = contents(folder)
    assert main(write.arguments) == 2
    assert write.made in (error := capsys.readouterr().err)
    assert error.count("\n") == 1
    assert contents(folder) == before


@pytest.mark.parametrize("thing", THINGS)
@pytest.mark.parametrize("write", ALL)
def test_what_appears_meanwhile_is_not_replaced(
    write: Write, thing: str, folder: Path, meanwhile: Any, monkeypatch: Patch, capsys: Captured
) -> None:
    appeared: dict[str, str | bytes] = {}

    def appear() -> None:
        if not appeared:
            put(folder / write.made, thing)
            appeared.update(contents(folder / write.made))

    if "--report" in write.arguments:
        fake_nsys(monkeypatch)
    meanwhile(write, appear)
    assert main(write.arguments) == 2
    assert write.made in (error := capsys.readouterr().err)
    assert error.count("\n") == 1
    assert contents(folder / write.made) == appeared != {}
    left = {path.name for path in folder.rglob("*") if path.name.startswith(".") or path.name.endswith(".journal")}
    assert left == set()
    if write.made != "run.h5" and "run.h5" in write.arguments:  # the frames of the run stay
        assert main(["verify", "run.h5"]) == 0


@pytest.mark.parametrize("thing", ["folder", "pipe"])
@pytest.mark.parametrize("write", [case for case in ALL if case.values[0].overwrite])
def test_overwrite_replaces_outputs_and_nothing_else(
    write: Write, thing: str, folder: Path, meanwhile: Any, capsys: Captured
) -> None:
    assert main(write.arguments) == 0
    written = contents(folder / write.made)
    appeared: dict[str, str | bytes] = {}

    def appear() -> None:
        if not appeared:
            (folder / write.made).rename(folder / "moved")
            put(folder / write.made, thing)
            appeared.update(contents(folder / write.made))

    meanwhile(write, appear)
    assert main([*write.arguments, *write.overwrite]) == 2
    assert write.made in capsys.readouterr().err
    assert contents(folder / write.made) == appeared
    assert list(contents(folder / "moved").values()) == list(written.values())
    assert main([*write.arguments, *write.overwrite]) == 2  # and it is refused at once now
    assert contents(folder / write.made) == appeared


@pytest.mark.parametrize("output", ["run.h5", "run.zarr"])
def test_a_timeline_is_apart_from_all_that_the_run_makes(output: str, folder: Path, capsys: Captured) -> None:
    Path("again").symlink_to(folder)
    for name in (output, *running.beside(Path(output))):
        for timeline in (str(name), f"./{name}", f"again/{name}"):
            for command in (RUN, ["profile", *SMALL]):
                assert main([*command, "-o", output, "--timeline", timeline]) == 2
                assert f"expected a place apart from '{name}'" in capsys.readouterr().err
    assert {path.name for path in folder.iterdir()} == {"again", "source"}
    assert main([*RUN, "-o", output]) == 0
    before = contents(folder)
    for timeline in (
        str(name) for name in (output, f"{output}.status.json", *["run.zarr/t.json"] * (output[-1] == "r"))
    ):
        assert main([*RUN, "-n", "5", "-o", output, "--resume", "--timeline", timeline]) == 2
    assert contents(folder) == before


def test_two_options_cannot_name_one_file(folder: Path, capsys: Captured) -> None:
    assert main([*PROFILE, "--plot", "a.svg", "--timeline", "./a.svg"]) == 2
    assert main(["bench", "storage", "--json", "storage.png", "--plot", "."]) == 2
    assert capsys.readouterr().err.count("expected a place apart from") == 2
    assert {path.name for path in folder.iterdir()} == {"source"}


def test_a_folder_for_pictures_is_a_folder_or_free(folder: Path, capsys: Captured) -> None:
    Path("notes").write_text("precious")
    for place in ("notes", "notes/deeper"):
        for arguments in (["presets", "smoke", "--preview", place], ["bench", "storage", "--plot", place]):
            assert main(arguments) == 2
            assert "'notes' is a file; expected a folder" in capsys.readouterr().err.replace(f"{folder}/", "")


def test_a_name_too_long_for_what_is_made_first_is_refused(folder: Path, capsys: Captured) -> None:
    assert main([*RUN, "-o", "run.h5", "--timeline", "x" * 250]) == 2
    assert main([*RUN, "-o", f"{'x' * 238}.h5"]) == 2
    assert capsys.readouterr().err.count("File name too long") == 2
    assert {path.name for path in folder.iterdir()} == {"source"}


@pytest.mark.parametrize("kind", ["new", "--overwrite", "--resume"])
@pytest.mark.parametrize("thing", THINGS)
@pytest.mark.parametrize("output", ["run.h5", "run.zarr"])
def test_nothing_beside_an_output_is_opened_through_a_link_or_replaced(
    output: str, thing: str, kind: str, folder: Path, capsys: Captured
) -> None:
    arguments = [*RUN, "-n", "5", "-o", output, *[kind] * (kind != "new")]
    if kind != "new":
        assert main([*RUN, "-o", output]) == 0
    if kind == "--resume" and thing == "file":
        return  # a damaged one: others test that
    for path in running.beside(Path(output)):
        spared = path.read_bytes() if path.exists() else None
        path.unlink(missing_ok=True)
        put(path, thing)
        before = contents(folder)
        assert main(arguments) == 2
        assert str(path) in (error := capsys.readouterr().err)
        assert error.count("\n") == 1
        assert contents(folder) == before
        files.set_aside(path)
        if spared is not None:
            path.write_bytes(spared)
    assert main(arguments) == 0


@pytest.mark.parametrize("thing", THINGS)
def test_what_takes_a_name_beside_a_running_output_stays(
    thing: str, folder: Path, meanwhile: Any, capsys: Captured
) -> None:
    taken = [path for path in running.beside(Path("run.h5")) if path.suffix != ".journal"]

    def appear() -> None:
        for path in taken:
            put(path, thing)

    meanwhile(Write(RUN, ""), appear)
    assert main([*RUN, "-o", "run.h5", "--checkpoint-every", "1"]) == 0
    assert main(["verify", "run.h5"]) == 0
    assert len(checkpoints.load(Path("run.h5"))) >= 1
    for path in taken:
        names = [path] if path == status_of(Path("run.h5")) else folder.glob(f"{path.name}.????????")
        (kept,) = names
        put(folder / "like", thing)
        assert list(contents(kept).values()) == list(contents(folder / "like").values())
        files.set_aside(folder / "like")


@pytest.mark.parametrize("output", ["run.h5", "run.zarr"])
def test_export_does_not_replace_what_a_run_writes(output: str, source: Path, meanwhile: Any, capsys: Captured) -> None:
    assert main([*RUN, "-o", output]) == 0
    codes = []
    meanwhile(Write(RUN, ""), lambda: codes.append(main(["export", str(source), output, "--overwrite"])))
    assert main([*RUN, "-o", output, "--overwrite"]) == 0
    assert codes == [2]
    assert f"TARGET: another run writes '{output}'" in capsys.readouterr().err
    assert main(["verify", output]) == 0


@pytest.mark.parametrize("output", ["run.h5", "run.zarr"])
def test_export_removes_what_the_replaced_run_left(
    output: str, source: Path, make_config: Make, monkeypatch: Patch
) -> None:
    small_blocks(block_bytes=1, chunk_bytes=4 << 20)
    path = Path(output)
    compression = "lz4" if path.suffix == ".zarr" else "deflate"
    config = make_config({"run.frames": 10**5, "run.checkpoint_every": 1, "output.compression": compression})

    def fail_when_both_are_there(progress: Progress) -> None:
        if all(saved.exists() for saved in checkpoints.paths_of(path)):
            raise InterruptedError

    with pytest.raises(InterruptedError):
        gsio.simulate(config, path, watch=fail_when_both_are_there)
    assert [beside.exists() for beside in running.beside(path)] == [True] * 4
    gsio.export.export(source, path, overwrite=True)
    assert [beside.exists() for beside in running.beside(path)] == [False] * 4
    with pytest.raises(DataError, match="another configuration"):
        gsio.simulate(config, path, resume="must")
    with gsio.open_stack(path) as stack:
        assert stack.frames == 3


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "no exchange"])
@pytest.mark.parametrize("is_folder", [False, True], ids=["file", "folder"])
@pytest.mark.parametrize("there", [*THINGS, "empty folder", "nothing"])
def test_publish(there: str, is_folder: bool, exchange: bool, folder: Path, monkeypatch: Patch) -> None:
    """Also where the file system can neither exchange names nor refuse to replace."""
    if not exchange:
        monkeypatch.setattr(files, "LIBC", object())
    new, path, kept = folder / "new", folder / "path", folder / "kept"
    new.mkdir() if is_folder else new.write_text("new")
    if there == "nothing":
        files.publish("--it", new, path)
        assert path.is_dir() == is_folder
        assert not new.exists()
        return
    path.mkdir() if there == "empty folder" else put(path, there)
    before = contents(folder)
    for replaces in (None, lambda path: False):
        with pytest.raises(TakenError, match=r"--it: .*path' was taken by something else"):
            files.publish("--it", new, path, replaces=replaces)
        assert contents(folder) == before
    was = list(contents(path).values())
    files.publish("--it", new, path, replaces=lambda path: True, keep=kept)
    assert (path.is_dir(), list(contents(kept).values())) == (is_folder, was)
    assert not new.exists()
    if not is_folder and there in ("empty folder", "folder") and not exchange:
        return  # `is_file` never lets a file replace a folder
    kept.rename(new)
    path.rename(kept)
    new.rename(path)
    kept.rename(new)
    files.publish("--it", new, path, replaces=lambda path: True)
    assert path.is_dir() == is_folder
    names = {entry.name for entry in folder.iterdir()}
    assert names <= {"path", "source", "precious.txt"}  # what a link leads to stays


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "no exchange"])
@pytest.mark.parametrize("thing", ["file", "folder"])
def test_two_change_places(thing: str, exchange: bool, folder: Path, monkeypatch: Patch) -> None:
    if not exchange:
        monkeypatch.setattr(files, "LIBC", object())
    new, path = folder / "new", folder / "path"
    put(new, thing)
    put(path, thing)
    (new if thing == "file" else next(new.iterdir())).write_text("new")
    names, was, comes = contents(folder).keys(), [*contents(path).values()], [*contents(new).values()]
    files.publish("--it", new, path, replaces=lambda path: True, keep=new)
    assert contents(folder).keys() == names
    assert list(contents(path).values()) == comes
    assert list(contents(new).values()) == was


def test_what_came_between_the_look_and_the_exchange_is_put_back(folder: Path) -> None:
    new, path = folder / "new", folder / "path"
    new.write_text("new")
    put(path, "file")

    def replaced(found: Path) -> bool:
        if found == path:  # after this look somebody puts a folder there
            path.unlink()
            put(path, "folder")
            return True
        return found.is_file()

    with pytest.raises(TakenError):
        files.publish("--it", new, path, replaces=replaced)
    assert (path / "thesis.tex").read_text() == "precious"
    assert new.read_text() == "new"


@pytest.mark.parametrize("port", [-2, 0, 65536])
def test_a_port_that_there_cannot_be_is_refused(port: int, folder: Path, capsys: Captured) -> None:
    assert main([*RUN, "-o", "run.h5", "--metrics-port", str(port)]) == 2
    assert "--metrics-port: expected 1 to 65535" in capsys.readouterr().err
    assert {path.name for path in folder.iterdir()} == {"source"}


def test_connections_to_the_endpoint_are_few_and_short() -> None:
    """Clients that say nothing cost a run neither its descriptors nor its endpoint."""
    pytest.importorskip("prometheus_client")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with metrics(port):
        process, clients = psutil.Process(), [socket.socket() for _ in range(100)]
        before = process.num_fds()
        try:
            for client in clients:
                client.setblocking(False)
                with suppress(BlockingIOError):
                    client.connect(("127.0.0.1", port))
            clients[0].settimeout(60)
            assert clients[0].recv(1) == b""  # closed by the run, which has answered nothing
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as page:
                assert page.status == 200
                assert page.headers["Content-Type"].startswith("text/plain")
                assert process.num_fds() - before <= CONNECTIONS + 2  # the page itself, and a file of it
        finally:
            for client in clients:
                client.close()


def test_an_export_is_new_for_the_file_system(source: Path, folder: Path) -> None:
    """A leftover of an export that was killed is removed by the next one, and nothing else is."""
    left = folder / ".out.h5-0123456789abcdef.h5"
    left.symlink_to(folder / "source")
    (folder / ".out.h5-mine.h5").write_text("precious")
    gsio.export.export(source, folder / "out.h5")
    assert not left.is_symlink()
    assert source.exists()
    assert (folder / ".out.h5-mine.h5").read_text() == "precious"
    with h5py.File(folder / "out.h5") as file:
        assert len(file["v"]) == 3


def test_a_timeline_that_was_taken_does_not_hide_why_a_run_ended(make_config: Make, folder: Path) -> None:
    np.savez("start.npz", u=np.ones((12, 17)), v=np.full((12, 17), 1e30))
    config = make_config({"run.frames": 50, "initial.kind": "file", "initial.path": "start.npz"})

    def take(progress: Progress) -> None:
        with suppress(FileExistsError):
            Path("run.json").touch(exist_ok=False)

    with pytest.raises(gsio.errors.DivergenceError):
        gsio.simulate(config, folder / "run.h5", timeline=folder / "run.json", watch=take)
    assert Path("run.json").read_text() == ""
    with pytest.raises(UsageError, match=r"--timeline: .* exists"):
        gsio.simulate(config, folder / "again.h5", timeline=folder / "run.json")
    assert json.loads(status_of(folder / "run.h5").read_text())["state"] == "failed"
