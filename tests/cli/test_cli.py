"""The command line: what it prints, what it refuses, and the exit codes."""

import io
import json
import os
import re
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import h5py
import numpy as np
import pytest
import structlog
from click.shell_completion import ShellComplete
from numcodecs import blosc
from patience import DEADLINE
from PIL import Image

import gsio
from gsio.cli import COMMANDS, cli, main
from gsio.config import load_config, preset_names
from gsio.reader import open_stack

SMALL = ["-r", "12", "-c", "17", "-n", "3", "-e", "2", "--set", "run.backend=numpy"]
HEAVY = ["numpy", "h5py", "numba", "cupy", "zarr", "trio", "matplotlib", "PIL", "jax", "torch"]
ESCAPE = "\x1b"
Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in an empty folder, with no GSIO_* variable and a log that is set up anew."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("GSIO_")]:
        monkeypatch.delenv(name)
    yield tmp_path
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def error_line(captured: Captured) -> str:
    """Return the one line on stderr, after checking that it is the only one and that stdout is empty."""
    out, err = captured.readouterr()
    assert out == ""
    assert err.startswith("gsio: error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    return err


def save_start(path: Path, value: float, shape: tuple[int, int] = (12, 17)) -> list[str]:
    """Save a start state that is `value` in one cell of v, and return the options that use it."""
    u, v = np.ones(shape), np.zeros(shape)
    v[3, 4] = value
    np.savez(path, u=u, v=v)
    return ["--set", "initial.kind=file", "--set", f"initial.path={path}"]


BESIDE = ["run.h5", "run.h5.checkpoint.npz", "run.h5.status.json"]  # what a complete run leaves


def test_run_makes_a_file_and_prints_a_short_summary(folder: Path, capsys: Captured) -> None:
    assert main(["run", *SMALL, "-o", "run.h5"]) == 0
    out = capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == BESIDE
    assert 0 < len(out.splitlines()) <= 12
    for fact in ("run.h5", "3 frames", "wall", "compute", "link", "encode", "write", "bottleneck"):
        assert fact in out
    with open_stack(Path("run.h5")) as stack:
        assert stack.frames == 3
        assert stack.frame("v", -1).shape == (12, 17)
        assert stack.attributes["status"] == "complete"


def test_a_quiet_run_prints_nothing(folder: Path, capsys: Captured) -> None:
    assert main(["run", *SMALL, "--quiet", "--output", "run.hdf5"]) == 0
    assert capsys.readouterr() == ("", "")
    assert Path("run.hdf5").is_file()


def test_events_go_to_stderr_as_asked(capsys: Captured) -> None:
    assert main(["run", *SMALL, "-o", "a.h5", "--log-format", "json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert {"run started", "run finished"} <= {event["event"] for event in events}
    assert len({event["run"] for event in events}) == 1
    assert main(["run", *SMALL, "-o", "b.h5", "--log-format", "text", "--debug"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("gsio: ") for line in lines)
    assert any("commit" in line for line in lines)


def test_events_on_a_terminal_are_text_and_the_summary_is_not_among_them(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", stream)
    for name, value in {"TERM": "xterm", "COLUMNS": "80", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    assert main(["run", *SMALL, "-o", "run.h5"]) == 0
    shown = stream.getvalue()
    assert "gsio: run started" in shown
    assert "gsio: run finished" in shown
    assert '"event"' not in shown
    assert "bottleneck" not in shown
    assert "bottleneck" in capsys.readouterr().out


def test_overwrite_replaces_the_output(folder: Path) -> None:
    Path("run.h5").write_text("something else")
    assert main(["run", *SMALL, "-q", "-o", "run.h5", "--overwrite"]) == 0
    with open_stack(Path("run.h5")) as stack:
        assert stack.frames == 3
    assert sorted(path.name for path in folder.iterdir()) == BESIDE


def test_every_option_reaches_the_configuration(capsys: Captured, folder: Path) -> None:
    short = "-n 7 -e 3 -r 20 -c 30 -f 0.02 -k 0.05 -t 0.5 --backend numpy --device 2 --compression none --fields u,v"
    assert main(["config", "show", *short.split(), "--set", "model.stencil=ones", "--set", "output.level=3"]) == 0
    path = folder / "shown.toml"
    path.write_text(capsys.readouterr().out)
    expected = {
        "run.frames": 7,
        "run.steps_per_frame": 3,
        "grid.rows": 20,
        "grid.cols": 30,
        "model.feed": 0.02,
        "model.kill": 0.05,
        "model.dt": 0.5,
        "run.backend": "numpy",
        "run.device": 2,
        "output.compression": "none",
        "output.fields": "u,v",
        "model.stencil": "ones",
        "output.level": 3,
    }
    assert load_config(path, environ={}) == load_config(overrides=expected, environ={})


def test_long_options_mean_the_same(capsys: Captured) -> None:
    short = "config show -n 7 -e 3 -r 20 -c 30 -f 0.02 -k 0.05 -t 0.5"
    assert main(short.split()) == 0
    shown = capsys.readouterr().out
    long = "config show --frames 7 --steps-per-frame 3 --rows 20 --cols 30 --feed 0.02 --kill 0.05 --dt 0.5"
    assert main(long.split()) == 0
    assert capsys.readouterr().out == shown


def test_short_options_win_over_set_and_file(capsys: Captured) -> None:
    Path("mine.toml").write_text("[grid]\nrows = 5\ncols = 6\n[run]\nframes = 2")
    assert main(["config", "show", "mine.toml", "--set", "grid.rows=7", "-r", "8", "--set", "grid.cols=9"]) == 0
    Path("shown.toml").write_text(capsys.readouterr().out)
    config = load_config(Path("shown.toml"), environ={})
    assert (config.grid.rows, config.grid.cols, config.run.frames) == (8, 9, 2)


def test_the_environment_reaches_the_configuration(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSIO_GRID_ROWS", "77")
    assert main(["config", "show"]) == 0
    assert "rows = 77\n" in capsys.readouterr().out


def test_the_school_preset(capsys: Captured) -> None:
    assert main(["config", "show", "--preset", "school"]) == 0
    Path("shown.toml").write_text(capsys.readouterr().out)
    config = load_config(Path("shown.toml"), environ={})
    assert config == load_config(preset="school", environ={})
    assert (config.grid.boundary, config.model.stencil, config.initial.kind) == ("zero", "oono-puri", "school")


def test_presets_lists_what_each_makes(capsys: Captured) -> None:
    assert main(["presets"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["preset", "feed", "kill"]
    assert [line.split()[0] for line in lines] == [name for name in preset_names() if name != "default"]
    assert "mitosis  0.0367 0.0649  Cells that divide until they fill the plane." in lines
    assert max(map(len, lines)) <= 80


@pytest.mark.numba
def test_presets_draws_the_last_frame_of_each_named(capsys: Captured) -> None:
    assert main(["presets", "alpha", "smoke", "--preview", "new/pictures", "--backend", "numba"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    sizes = {}
    for path in Path("new/pictures").iterdir():
        with Image.open(path) as picture:
            sizes[path.name] = picture.size
            assert len(picture.getcolors(1 << 16)) > 50
    assert sizes == {"alpha.png": (256, 256), "smoke.png": (256, 144)}


def test_tiles_can_be_tuned_only_on_a_gpu(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gsio.compute.cuda.solver", None)
    assert main(["bench", "tune"]) == 2
    assert "gsio: error: run.backend: cupy cannot be used here" in capsys.readouterr().err


def test_a_configuration_of_an_output_makes_the_same_frames() -> None:
    assert main(["run", *SMALL, "-q", "-o", "a.h5", "--set", "initial.kind=noise", "-t", "0.7"]) == 0
    with open_stack(Path("a.h5")) as first:
        Path("again.toml").write_text(first.attributes["config"])
        assert main(["run", "again.toml", "-q", "-o", "b.h5"]) == 0
        with open_stack(Path("b.h5")) as second:
            np.testing.assert_array_equal(first.frame("v", -1), second.frame("v", -1))


def test_info_prints_frames_and_status(capsys: Captured) -> None:
    assert main(["run", *SMALL, "-q", "-o", "run.h5", "--fields", "u,v"]) == 0
    assert main(["info", "run.h5"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for fact in ("3 frames", "12 × 17", "complete", "numpy", gsio.__version__, "steps_per_frame = 2"):
        assert fact in out
    assert re.search(r"^ *u +float32", out, re.MULTILINE)
    assert re.search(r"^ *v +float32", out, re.MULTILINE)


@pytest.mark.parametrize("kind", ["missing", "text", "hdf5", "folder", "cut"])
def test_info_on_what_is_no_output_exits_65(kind: str, folder: Path, capsys: Captured) -> None:
    path = folder / "foreign.h5"
    match kind:
        case "text":
            path.write_text("not HDF5")
        case "hdf5":
            with h5py.File(path, "w") as file:
                file["v"] = np.zeros((2, 3, 4))
        case "folder":
            path.mkdir()
        case "cut":
            assert main(["run", *SMALL, "-q", "-o", str(path)]) == 0
            path.write_bytes(path.read_bytes()[:1000])
    assert main(["info", str(path)]) == 65
    assert str(path) in error_line(capsys)


def test_doctor_names_what_the_machine_has(capsys: Captured) -> None:
    assert main(["doctor"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    found = [line.split()[0] for line in out.splitlines()]
    assert found[:5] == ["python", "cores", "memory", "disk", "gpu"]
    assert all(len(line.split()) > 1 for line in out.splitlines())


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (["-o", "run.tiff"], ["--output", ".h5", "run.tiff"]),
        (["-o", "run"], ["--output", ".h5"]),
        (["-o", "exists.h5"], ["--output", "exists.h5", "--overwrite"]),
        (["-o", "no/such/run.h5"], ["--output", "no/such"]),
        (["-o", "inner.h5"], ["--output", "inner.h5", "folder"]),
        (["-o", "inner.h5", "--overwrite"], ["--output", "inner.h5", "folder"]),
        ([], ["--output"]),
        (["-o", "run.h5", "-r", "0"], ["grid.rows", ">= 1", "got 0"]),
        (["-o", "run.h5", "-c", "0"], ["grid.cols", ">= 1", "got 0"]),
        (["-o", "run.h5", "-n", "0"], ["run.frames", ">= 1", "got 0"]),
        (["-o", "run.h5", "-n", "-3"], ["run.frames", ">= 1", "got -3"]),
        (["-o", "run.h5", "-e", "0"], ["run.steps_per_frame", ">= 1", "got 0"]),
        (["-o", "run.h5", "-r", "many"], ["--rows", "'many'"]),
        (["-o", "run.h5", "--preset", "scool"], ["'scool'", "'school'"]),
        (["-o", "run.h5", "--set", "model.stencil=nine"], ["model.stencil", "'nine'", "five-point"]),
        (["-o", "run.h5", "--set", "grid.boundary=wall"], ["grid.boundary", "'wall'", "neumann"]),
        (["-o", "run.h5", "--set", "grid.rowz=3"], ["'grid.rowz'", "'grid.rows'"]),
        (["-o", "run.h5", "--set", "grid.rows"], ["KEY=VALUE", "'grid.rows'"]),
        (["-o", "run.h5", "--backend", "cuda"], ["run.backend", "'cuda'", "cupy"]),
        (["-o", "run.h5", "--compression", "zip"], ["output.compression", "'zip'", "deflate"]),
        (["-o", "run.h5", "--fields", "w"], ["output.fields", "'w'", "u,v"]),
        (["-o", "run.h5", "--log-format", "xml"], ["--log-format", "'xml'", "json"]),
        (["-o", "run.h5", "-t", "6"], ["model.dt", "6", "unstable", "at most 4.83091"]),
        (["-o", "exists.h5", "--overwrite", "-t", "6"], ["model.dt", "unstable"]),
        (["-o", "exists.h5", "--overwrite", "-r", "0"], ["grid.rows"]),
        (["-o", "run.h5", "missing.toml"], ["missing.toml"]),
        (["-o", "run.h5", "wrong.toml"], ["wrong.toml", "TOML"]),
        (["-o", "run.h5", "--frobnicate"], ["--frobnicate", "--help"]),
        (["-o", "run.h5", "--set", "initial.kind=file"], ["initial.path"]),
        (["-o", "run.h5", "--set", "initial.kind=file", "--set", "initial.path=no.npz"], ["initial.path", "no.npz"]),
        (["-o", "run.h5", "--set", "initial.kind=file", "--set", "initial.path=exists.h5"], ["initial.path"]),
        (["-o", "run.h5", "--set", "initial.kind=image", "--set", "initial.path=wrong.toml"], ["initial.path"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_refused_run_touches_nothing(arguments: list[str], facts: list[str], folder: Path, capsys: Captured) -> None:
    (folder / "exists.h5").write_bytes(b"precious")
    (folder / "wrong.toml").write_text("rows: 3")
    (folder / "inner.h5").mkdir()
    before = contents(folder)
    assert main(["run", *SMALL, *arguments]) == 2
    line = error_line(capsys)
    assert [fact for fact in facts if fact not in line] == []
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("value", "shape", "facts"),
    [
        (0.5, (17, 12), ["12 × 17", "17 × 12"]),
        (0.5, (12, 18), ["12 × 17", "12 × 18"]),
        (float("nan"), (12, 17), ["finite", "NaN", " v"]),
        (float("inf"), (12, 17), ["finite", "infinity", " v"]),
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_start_that_does_not_fit_is_refused(
    value: float, shape: tuple[int, int], facts: list[str], overwrite: bool, folder: Path, capsys: Captured
) -> None:
    options = save_start(folder / "start.npz", value, shape)
    if overwrite:
        (folder / "run.h5").write_bytes(b"precious")
        options.append("--overwrite")
    before = contents(folder)
    assert main(["run", *SMALL, "-o", "run.h5", *options]) == 2
    line = error_line(capsys)
    assert [fact for fact in ["initial.path", "start.npz", *facts] if fact not in line] == []
    assert contents(folder) == before


@pytest.mark.parametrize("compression", ["deflate", "none"])
def test_a_grid_too_large_for_the_memory_is_refused(compression: str, folder: Path, capsys: Captured) -> None:
    huge = ["-r", "2000000", "-c", "2000000", "--compression", compression]
    assert main(["run", *SMALL, *huge, "-o", "run.h5"]) == 2
    line = error_line(capsys)
    assert "grid.rows" in line
    needed, available = (float(number) for number in re.findall(r"([\d.]+) GB", line))
    assert needed > 2e6 * 2e6 * 16 / 1e9  # u and v alone, float64
    assert 0 < available < needed
    assert contents(folder) == {}


def test_a_folder_that_is_not_writable_is_refused(
    folder: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = folder / "closed"
    closed.mkdir(mode=0o555)
    if os.geteuid() == 0:  # who may write everywhere
        monkeypatch.setattr(os, "access", lambda path, mode, **_: not mode & os.W_OK)
    assert main(["run", *SMALL, "-o", "closed/run.h5"]) == 2
    line = error_line(capsys)
    assert "--output" in line
    assert "'closed'" in line
    assert "writable" in line
    assert list(closed.iterdir()) == []


def test_the_cupy_backend_without_cupy_points_at_doctor(
    folder: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.delitem(sys.modules, "gsio.compute.cuda.solver", raising=False)
    assert main(["run", *SMALL, "--backend", "cupy", "-o", "run.h5"]) == 2
    line = error_line(capsys)
    assert "run.backend" in line
    assert "gsio doctor" in line
    assert contents(folder) == {}


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (["rum"], ["'rum'", "--help"]),
        (["info"], ["--help"]),
        (["--frobnicate"], ["--frobnicate"]),
        (["config", "shew"], ["'shew'"]),
        (["config", "show", "-r", "0"], ["grid.rows", ">= 1"]),
        (["config", "show", "-t", "6"], ["model.dt", "unstable"]),
        (["config", "show", "--preset", "scool"], ["'scool'", "'school'"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_other_refusals_exit_2_in_one_line(arguments: list[str], facts: list[str], capsys: Captured) -> None:
    assert main(arguments) == 2
    line = error_line(capsys)
    assert [fact for fact in facts if fact not in line] == []


def test_an_unknown_variable_is_refused(folder: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSIO_GRID_ROW", "3")
    assert main(["run", *SMALL, "-o", "run.h5"]) == 2
    line = error_line(capsys)
    assert "GSIO_GRID_ROW" in line
    assert "'GSIO_GRID_ROWS'" in line
    assert contents(folder) == {}


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_diverging_run_names_frame_and_step_and_keeps_the_frames_before(
    precision: str, folder: Path, capsys: Captured
) -> None:
    # v ← dt u v² gives 1e60, which float32 cannot hold, then −1e180, then what float64 cannot hold.
    safe = 0 if precision == "float32" else 2
    options = [*save_start(folder / "start.npz", 1e30), "-n", "9", "-e", "1", "--set", f"model.precision={precision}"]
    assert main(["run", *SMALL, *options, "--quiet", "-o", "run.h5"]) == 70
    out, err = capsys.readouterr()
    assert out == ""
    *warnings, line = err.splitlines()
    assert len(warnings) == (safe > 0)  # that values leave 0 to 1
    assert line.startswith("gsio: error: ")
    assert f"frame {safe}" in line
    assert f"step {safe + 1}" in line
    assert f"{safe} frames" in line
    with open_stack(folder / "run.h5") as stack:
        assert stack.frames == safe
        assert stack.attributes["status"] == "failed"
        assert all(np.isfinite(stack.frame("v", index)).all() for index in range(safe))
    assert main(["info", "run.h5"]) == 0
    assert f"{safe} frames" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("where", "arguments"),
    [
        ("gsio.run.simulate.simulate", ["run", *SMALL, "-q", "-o", "run.h5"]),
        ("gsio.run.status.open_committed", ["info", "run.h5"]),
        ("gsio.cli.doctor.findings", ["doctor"]),
        ("gsio.cli.options.load_config", ["config", "show"]),
    ],
)
def test_an_internal_error_is_one_line_and_70(
    where: str, arguments: list[str], capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(where, fail)
    assert main(arguments) == 70
    line = error_line(capsys)
    for fact in ("internal", "RuntimeError", "first line", "--debug"):
        assert fact in line
    assert "Traceback" not in line
    assert main([*arguments, "--debug"]) == 70
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "in fail" in err
    assert err.splitlines()[-1].startswith("gsio: error: ")


def test_debug_shows_the_traceback_of_a_refusal(capsys: Captured) -> None:
    assert main(["run", *SMALL, "-o", "run.tiff"]) == 2
    assert "Traceback" not in error_line(capsys)
    assert main(["run", *SMALL, "-o", "run.tiff", "--debug"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("gsio: error: --output")


def test_an_interrupt_before_the_run_exits_130(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gsio.run.simulate.simulate", interrupt)
    assert main(["run", *SMALL, "-q", "-o", "run.h5"]) == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert err.strip().startswith("gsio: error: ")
    assert err.strip().count("\n") == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["run", "--help"],
        ["run", *SMALL, "-o", "run.h5"],
        ["run", *SMALL, "-o", "run.h5", "--log-format", "text"],
        ["run", *SMALL, "-o", "run.tiff"],
        ["info", "run.h5"],
        ["doctor"],
        ["config", "show"],
    ],
    ids=lambda value: " ".join(value),
)
@pytest.mark.parametrize("no_color", [False, True])
def test_no_escape_codes_off_a_terminal(
    arguments: list[str], no_color: bool, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    main(arguments)
    out, err = capsys.readouterr()
    assert out + err != ""
    assert ESCAPE not in out + err


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["run", "--help"], ["info", "-h"], ["config", "--help"]])
def test_help_goes_to_stdout(arguments: list[str], capsys: Captured) -> None:
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert out.startswith("Usage: gsio")
    assert err == ""


def test_no_arguments_print_the_help_and_exit_2(capsys: Captured) -> None:
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Usage: gsio" in err


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["config", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str], folder: Path) -> None:
    program = (
        f"import sys; from gsio.cli import main; code = main({arguments!r});"
        f"print('loaded', *[name for name in {HEAVY!r} if name in sys.modules]); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=folder, timeout=DEADLINE)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "loaded"


def test_the_module_runs_as_a_program(folder: Path) -> None:
    command = [sys.executable, "-m", "gsio", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=DEADLINE)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"gsio {gsio.__version__}\n", "")


def test_the_exit_code_reaches_the_shell(folder: Path) -> None:
    command = [sys.executable, "-m", "gsio", "config", "show", "-r", "0"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=DEADLINE)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("gsio: error: grid.rows")


def test_a_link_to_nowhere_is_not_replaced(folder: Path) -> None:
    link = folder / "run.h5"
    link.symlink_to("nowhere.h5")
    main(["run", *SMALL, "-q", "-o", "run.h5"])
    assert link.is_symlink()


@pytest.mark.parametrize(
    "arguments",
    [["run", *SMALL, "-q", "-o", "\udcff.h5"], ["config", "show", "--set", "initial.path=\udcff"]],
    ids=["output", "value"],
)
def test_a_name_that_is_not_utf8_is_no_internal_error(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gsio", *arguments])
    assert main() in (0, 2)


def test_an_infinite_time_step_without_diffusion_is_refused(capsys: Captured) -> None:
    still = ["--set", "model.diffusion_u=0", "--set", "model.diffusion_v=0"]
    assert main(["config", "show", "-t", "inf", *still]) == 2
    assert "model.dt" in error_line(capsys)


def test_a_tilde_after_an_equals_sign_is_the_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    assert main(["run", *SMALL, "-q", "--output=~/run.h5", "--timeline=~/run.json"]) == 0
    assert {"run.h5", "run.json"} <= {path.name for path in folder.iterdir()}
    assert main(["info", "~/run.h5"]) == 0


def test_simulate_takes_a_path_as_text() -> None:
    gsio.simulate(
        load_config(overrides={"grid.rows": 12, "grid.cols": 17, "run.frames": 2, "run.backend": "numpy"}), "a.h5"
    )
    assert open_stack("a.h5").frames == 2


def test_what_others_wrote_does_nothing_to_a_terminal(folder: Path, capsys: Captured) -> None:
    assert main(["run", *SMALL, "-q", "-o", "run.h5"]) == 0
    with h5py.File("run.h5", "r+") as file:
        file.attrs["device"] = f"a{ESCAPE}[2Jb\x9b31mc\u202ed\nstarted fake"
    assert main(["info", "run.h5"]) == 0
    out = capsys.readouterr().out
    assert r"  device       a\x1b[2Jb\x9b31mc\u202ed started fake" in out.splitlines()
    assert main(["info", f"{ESCAPE}]0;title\x07.h5"]) == 65
    assert r"\x1b]0;title\x07.h5" in error_line(capsys)


DAMAGES: dict[str, Callable[[h5py.File], Any]] = {
    "no time": lambda file: file.pop("time"),
    "no config": lambda file: file.attrs.pop("config"),
    "a link to another file": lambda file: [file.pop("v"), file.update(v=h5py.ExternalLink("other.h5", "v"))],
    "a field of petabytes": lambda file: [
        file.pop("v"),
        file.create_dataset("v", (2**40, 12, 17), "f4", chunks=(1, 12, 17)),
    ],
    "no frames": lambda file: file.attrs.update(config=file.attrs["config"].replace("rows = 12", "rows = 0")),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("command", ["info", "verify", "export"])
def test_an_output_that_is_not_as_gsio_writes_it_is_refused(
    command: str, damage: str, folder: Path, capsys: Captured
) -> None:
    assert main(["run", *SMALL, "-q", "-o", "run.h5"]) == 0
    with h5py.File("run.h5", "r+") as file:
        DAMAGES[damage](file)
    assert main([command, "run.h5", *(["t.tif"] if command == "export" else [])]) == 65
    assert "cannot read run.h5" in error_line(capsys)


@pytest.mark.parametrize("name", ["zarr.json", "time/c.0", "v/c.0.0.0"])
def test_a_pipe_in_a_zarr_output_is_refused_at_once(name: str, folder: Path, capsys: Captured) -> None:
    assert main(["run", *SMALL, "-q", "-o", "run.zarr"]) == 0
    (folder / "run.zarr" / name).unlink()
    os.mkfifo(folder / "run.zarr" / name)
    assert main(["verify", "run.zarr"]) == 65
    assert "regular file" in "".join(capsys.readouterr())


@pytest.mark.parametrize("compression", ["deflate", "lz4"])
def test_a_chunk_decodes_to_no_more_than_its_size(compression: str, folder: Path, capsys: Captured) -> None:
    assert main(["run", *SMALL, "-q", "-o", "run.h5", "--compression", compression]) == 0
    zeros = bytes(12 << 20)
    bombs = {"deflate": zlib.compress(zeros), "lz4": bytes(blosc.compress(zeros, b"lz4", 5))}
    with h5py.File("run.h5", "r+") as file:
        file["v"].id.write_direct_chunk((0, 0, 0), bombs[compression])
    tracemalloc.start()
    try:
        assert main(["verify", "run.h5"]) == 65
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert "cannot be decoded" in capsys.readouterr().out


def test_help_of_a_run_has_headings_and_the_defaults_of_the_keys_in_80_columns(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["run", "--help"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    headings = re.findall(r"^(\S.*):$", shown, re.MULTILINE)
    assert headings == ["Model and grid", "Run", "What is saved", "Files", "Display", "General"]
    text = " ".join(shown.split())
    for default in ("Give the grid N rows. [default: 1080]", "Save N frames. [default: 1000]", "[default: 0.014]"):
        assert default in text


def commands(group: click.Group, name: str = "gsio") -> Iterator[tuple[str, click.Command]]:
    yield name, group
    context = click.Context(group)
    for command in filter(None, (group.get_command(context, each) for each in group.list_commands(context))):
        if isinstance(command, click.Group):
            yield from commands(command, f"{name} {command.name}")
        else:
            yield f"{name} {command.name}", command


def test_the_list_of_commands_has_the_first_sentence_of_each() -> None:
    for name, (_, text) in COMMANDS.items():
        command = cli.get_command(click.Context(cli), name)
        assert command is not None and (command.help or "").replace("\n", " ").startswith(text), name


def test_every_command_and_option_explains_itself_in_sentences() -> None:
    for name, command in commands(cli):
        assert re.match(r"[A-Z].*\.", command.help or ""), name
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert re.fullmatch(r"[A-Z].*\.", parameter.help or ""), (name, parameter.name)
                assert not re.match(r"(Of|That|Which|As)\b", parameter.help or ""), (name, parameter.name)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("gsio run --backend cup", ["cupy", "cupy-arrays", "cupynumeric"]),
        ("gsio run --compression lz", ["lz4"]),
        ("gsio run --resume --store uint", ["uint16", "uint8"]),
        ("gsio config show --preset al", ["alpha"]),
        ("gsio run --fields u", ["u", "u,v"]),
        ("gsio run --set output.keep", ["output.keep_bits="]),
        ("gsio presets mi", ["mitosis"]),
        ("gsio export --compression d", ["deflate"]),
        ("gsio frames --cmap cmocean:", ["cmocean:ice", "cmocean:deep_r", "cmocean:haline", "cmocean:thermal"]),
        ("gsio ver", ["verify"]),
    ],
)
def test_a_shell_completes_values(line: str, expected: list[str]) -> None:
    *before, start = line.removeprefix("gsio ").split(" ")
    found = ShellComplete(cli, {}, "gsio", "_GSIO_COMPLETE").get_completions(before, start)
    assert [item.value for item in found] == expected


@pytest.mark.parametrize("words", [["--resume"], ["--resume", "auto"], ["--resume=auto"], ["--resume", "mine.toml"]])
def test_resume_begins_or_continues_in_all_its_forms(words: list[str]) -> None:
    Path("mine.toml").write_text("[model]\nfeed = 0.02")
    for _ in range(2):
        assert main(["run", *SMALL, "-q", "-o", "run.h5", *words]) == 0
    with open_stack(Path("run.h5")) as stack:
        assert stack.frames == 3
        assert ("feed = 0.02" in stack.attributes["config"]) == ("mine.toml" in words)


@pytest.mark.parametrize("words", [["--resume", "must"], ["--resume=must"]])
def test_resume_can_require_the_output(words: list[str], capsys: Captured) -> None:
    assert main(["run", *SMALL, "-q", "-o", "run.h5", *words]) == 2
    assert "does not exist" in error_line(capsys)


def test_events_off_a_terminal_are_text(capsys: Captured) -> None:
    assert main(["run", *SMALL, "-o", "run.h5"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 1
    assert all(line.startswith("gsio: ") for line in lines)
