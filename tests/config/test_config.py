"""Configurations: the order of the layers, what is refused and how, and the shipped files."""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gsio.config import Config, config_folder, describe_preset, load_config, parse_assignment, preset_names
from gsio.errors import UsageError
from gsio.model.gray_scott import check_stability
from gsio.run.initial import rates

DEFAULTS = msgspec.to_builtins(load_config(environ={}))
NUMERIC = [
    f"{section}.{name}"
    for section, values in DEFAULTS.items()
    for name, value in values.items()
    if isinstance(value, (int, float))
]
SHIPPED = sorted(config_folder().rglob("*.toml"))


def value_of(config: Config, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def write_toml(text: str) -> Path:
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return path

    return write_toml


@pytest.mark.parametrize(("layers", "rows"), list(enumerate([1080, 270, 300, 400, 500])))
def test_each_layer_overrides_the_one_before(layers: int, rows: int, write: Callable[[str], Path]) -> None:
    config = load_config(
        write("[grid]\nrows = 300") if layers >= 2 else None,
        preset="smoke" if layers >= 1 else None,
        environ={"GSIO_GRID_ROWS": "400"} if layers >= 3 else {},
        overrides={"grid.rows": 500} if layers >= 4 else None,
    )
    assert config.grid.rows == rows


def test_a_layer_changes_only_the_keys_it_names(write: Callable[[str], Path]) -> None:
    config = load_config(
        write("[model]\nfeed = 0.02"),
        preset="smoke",
        environ={"GSIO_MODEL_KILL": "0.06"},
        overrides={"model.dt": 0.5, "model.stencil": None},
    )
    expected = {section: dict(values) for section, values in DEFAULTS.items()}
    expected["grid"] |= {"rows": 270, "cols": 480}
    expected["run"] |= {"frames": 50}
    expected["model"] |= {"feed": 0.02, "kill": 0.06, "dt": 0.5}
    assert msgspec.to_builtins(config) == expected


def test_the_process_environment_is_read_unless_another_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSIO_RUN_FRAMES", "7")
    assert load_config().run.frames == 7
    assert load_config(environ={}).run.frames == DEFAULTS["run"]["frames"]


@pytest.mark.parametrize(
    ("name", "text", "key", "value"),
    [
        ("GSIO_OUTPUT_FIELDS", "u,v", "output.fields", "u,v"),
        ("GSIO_OUTPUT_FIELDS", '"u"', "output.fields", "u"),
        ("GSIO_MODEL_DIFFUSION_U", "0.2", "model.diffusion_u", 0.2),
        ("GSIO_RUN_STEPS_PER_FRAME", "1_000", "run.steps_per_frame", 1000),
        ("GSIO_OUTPUT_MEMORY", "2 GiB", "output.memory", "2 GiB"),
    ],
)
def test_environment_values_are_toml_or_plain_text(name: str, text: str, key: str, value: object) -> None:
    assert value_of(load_config(environ={name: text, "HOME": "/"}), key) == value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model.feed=0.03", ("model.feed", 0.03)),
        ("grid.rows=12", ("grid.rows", 12)),
        (" grid.rows = 12 ", ("grid.rows", 12)),
        ("model.stencil=ones", ("model.stencil", "ones")),
        ('model.stencil="ones"', ("model.stencil", "ones")),
        ("initial.path=/a=b.npz", ("initial.path", "/a=b.npz")),
        ("initial.path=", ("initial.path", "")),
    ],
)
def test_assignments_are_toml_or_plain_text(text: str, expected: tuple[str, object]) -> None:
    assert parse_assignment(text) == expected


@pytest.mark.parametrize("text", ["grid.rows", "", "grid.rows:3"])
def test_an_assignment_without_a_value_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"KEY=VALUE") as caught:
        parse_assignment(text)
    assert f"'{text}'" in str(caught.value)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_configuration_is_a_stable_preset(path: Path) -> None:
    assert path.stem in preset_names()
    config = load_config(preset=path.stem, environ={})
    check_stability(config.model, *rates(config))
    assert config == load_config(path, environ={})
    for section, values in tomllib.loads(path.read_text()).items():
        for name, value in values.items():
            beside = name == "path" and value  # a file that is shipped too
            assert value_of(config, f"{section}.{name}") == (str(path.parent / value) if beside else value)
            assert not beside or (path.parent / value).is_file()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_preset_says_in_half_a_line_what_it_makes(path: Path) -> None:
    description = describe_preset(path.stem)
    assert description.endswith(".")
    assert 10 < len(description) <= 56  # beside name, feed and kill in 80 columns


def test_the_default_is_the_main_job() -> None:
    config = load_config(environ={})
    assert (config.grid.rows, config.grid.cols) == (1080, 1920)
    assert (config.run.frames, config.run.steps_per_frame, config.run.backend) == (1000, 32, "auto")
    assert (config.model.precision, config.output.fields) == ("float32", "v")


def test_default_toml_names_and_explains_every_key() -> None:
    text = (config_folder() / "default.toml").read_text()
    assert tomllib.loads(text) == DEFAULTS
    assignments = [line for line in text.splitlines() if re.match(r"\w+ *=", line)]
    assert len(assignments) == sum(map(len, DEFAULTS.values()))
    assert [line for line in assignments if not re.search(r"  # \S", line)] == []


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"initial.kind": "file", "initial.path": '/a "b"\\c\n\té\x7f'},
        {"model.feed": 5e-324, "model.kill": 0.1 + 0.2, "model.diffusion_u": 1e-22},
        {"grid.rows": 2**31 - 1, "initial.frame": -1, "output.fields": "u,v"},
    ],
)
def test_toml_of_a_configuration_loads_unchanged(
    overrides: dict[str, Any], make_config: Callable[..., Config], write: Callable[[str], Path]
) -> None:
    config = make_config(overrides)
    assert load_config(write(config.to_toml()), environ={}) == config


@pytest.mark.parametrize(
    ("key", "found", "facts"),
    [
        # unknown: the nearest known key
        ("grid.rowz", 3, ["'grid.rowz'", "'grid.rows'"]),
        ("model.feeed", 3, ["'model.feeed'", "'model.feed'"]),
        ("grid.feed", 3, ["'grid.feed'", "'model.feed'"]),
        ("feed", 3, ["'feed'", "'model.feed'"]),
        ("grid", 3, ["'grid'", "'grid.rows'"]),
        ("grid.rows.x", 3, ["'grid.rows.x'", "'grid.rows'"]),
        ("gird.rows", 3, ["'gird.rows'", "'grid.rows'"]),
        ("zzzzzz", 3, ["'zzzzzz'", *DEFAULTS]),
        # wrong type
        ("grid.rows", "many", ["grid.rows", "whole number", "got 'many'"]),
        ("grid.rows", True, ["grid.rows", "whole number", "got True"]),
        ("grid.rows", 3.5, ["grid.rows", "whole number", "got 3.5"]),
        ("grid.rows", {"a": 1}, ["grid.rows", "whole number", "got {'a': 1}"]),
        ("model.feed", "0.5", ["model.feed", "number", "got '0.5'"]),
        ("initial.path", 5, ["initial.path", "text", "got 5"]),
        ("model.stencil", 9, ["model.stencil", "oono-puri", "got 9"]),
        # out of range
        ("grid.rows", 0, ["grid.rows", ">= 1", "got 0"]),
        ("grid.cols", -4, ["grid.cols", ">= 1", "got -4"]),
        ("grid.cols", 2**31, ["grid.cols", "2147483647", "got 2147483648"]),
        ("run.frames", 0, ["run.frames", ">= 1", "got 0"]),
        ("run.steps_per_frame", 0, ["run.steps_per_frame", ">= 1", "got 0"]),
        ("model.feed", 1.5, ["model.feed", ">= 0", "<= 1", "got 1.5"]),
        ("model.kill", -0.1, ["model.kill", ">= 0", "got -0.1"]),
        ("model.diffusion_v", -1, ["model.diffusion_v", ">= 0", "got -1"]),
        ("model.dt", 0, ["model.dt", "> 0", "got 0"]),
        ("model.dt", float("nan"), ["model.dt", "got nan"]),
        ("initial.frame", -2, ["initial.frame", ">= -1", "got -2"]),
        ("output.level", 10, ["output.level", "<= 9", "got 10"]),
        # not a choice
        ("grid.boundary", "wall", ["grid.boundary", "periodic", "neumann", "zero", "got 'wall'"]),
        (
            "model.stencil",
            "nine",
            ["model.stencil", "oono-puri", "five-point", "patra-karttunen", "got 'nine'"],
        ),
        ("model.precision", "float16", ["model.precision", "float32", "float64", "got 'float16'"]),
        ("run.backend", "cuda", ["run.backend", "auto", "cupy", "numba", "numpy", "got 'cuda'"]),
        ("output.fields", "w", ["output.fields", "u,v", "got 'w'"]),
    ],
)
def test_a_refused_value_names_key_found_and_allowed(key: str, found: object, facts: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        load_config(overrides={key: found}, environ={})
    message = str(caught.value)
    assert [fact for fact in facts if fact not in message] == []
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("[grid]\nrowz = 3", ["'grid.rowz'", "'grid.rows'"]),
        ("[gird]\nrows = 3", ["'gird.rows'", "'grid.rows'"]),
        ("[gird]", ["'gird'", "grid"]),
        ("rows = 3", ["'rows'", "'grid.rows'"]),
        ("[[grid]]\nrows = 3", ["'grid'"]),
        ("[model]\nfeed = 2.0", ["model.feed", "<= 1", "2.0"]),
        ("[grid]\nrows = \n", ["mine.toml", "TOML", "line 2"]),
        ("rows: 3", ["mine.toml", "TOML", "line 1"]),
    ],
)
def test_a_refused_file_says_what_is_wrong_with_it(text: str, facts: list[str], write: Callable[[str], Path]) -> None:
    path = write(text)
    with pytest.raises(UsageError) as caught:
        load_config(path, environ={})
    assert [fact for fact in facts if fact not in str(caught.value)] == []


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    not_text = tmp_path / "binary.toml"
    not_text.write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "missing.toml", tmp_path, not_text):
        with pytest.raises(UsageError, match=re.escape(str(path))):
            load_config(path, environ={})


@pytest.mark.parametrize(
    ("name", "facts"),
    [("scool", ["'scool'", "'school'"]), ("zzz", ["'zzz'", "school", "smoke"]), ("../default", []), ("", ["school"])],
)
def test_an_unknown_preset_is_refused(name: str, facts: list[str]) -> None:
    with pytest.raises(UsageError, match=re.escape(f"'{name}'")) as caught:
        load_config(preset=name, environ={})
    assert [fact for fact in facts if fact not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("GSIO_MODEL_FED", "GSIO_MODEL_FEED"), ("GSIO_GRID_ROW", "GSIO_GRID_ROWS"), ("GSIO_ROWS", "GSIO_GRID_ROWS")],
)
def test_an_unknown_variable_is_refused(name: str, nearest: str) -> None:
    with pytest.raises(UsageError, match=rf"{name}\b.*'{nearest}'"):
        load_config(environ={name: "3"})


def test_a_refused_variable_names_its_key() -> None:
    with pytest.raises(UsageError, match=r"model\.feed.*'high'"):
        load_config(environ={"GSIO_MODEL_FEED": "high"})


def test_an_empty_name_in_a_section_is_refused() -> None:
    with pytest.raises(UsageError, match=r"grid\."):
        load_config(overrides={"grid.": 3}, environ={})


def test_an_assignment_with_too_many_digits_is_refused_or_text() -> None:
    key, number = parse_assignment("grid.rows=" + "9" * 5000)
    with pytest.raises(UsageError, match=r"grid\.rows"):
        load_config(overrides={key: number}, environ={})


@settings(deadline=None)
@given(key=st.sampled_from(NUMERIC), value=st.integers() | st.floats())
@example("model.feed", 10**400)
@example("grid.rows", 10**400)
@example("grid.rows", 1e300)
@example("model.diffusion_u", 2**70)
@example("model.dt", float("inf"))
@example("initial.frame", -1)
def test_a_number_loads_as_given_or_is_refused_by_name(key: str, value: float) -> None:
    try:
        config = load_config(overrides={key: value}, environ={})
    except UsageError as error:
        assert key in str(error)
        assert repr(value)[:40] in str(error)
    else:
        kind = type(DEFAULTS[key.split(".")[0]][key.split(".")[1]])
        assert value_of(config, key) == kind(value)
        assert type(value_of(config, key)) is kind


@settings(deadline=None)
@given(key=st.sampled_from(NUMERIC), text=st.text("0123456789.eE+-_naif #'\"\n[]{}\\", max_size=12))
def test_any_text_of_a_variable_loads_or_is_refused(key: str, text: str) -> None:
    name = "GSIO_" + key.replace(".", "_").upper()
    try:
        config = load_config(environ={name: text})
    except UsageError as error:
        assert key in str(error)
    else:
        assert isinstance(value_of(config, key), (int, float))


def test_a_file_of_windows_begins_with_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "marked.toml"
    path.write_bytes(b"\xef\xbb\xbf[run]\nframes = 3\n")
    assert load_config(path, environ={}).run.frames == 3


def test_toml_is_utf8_in_any_locale(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes("[initial]\nkind = 'file'\npath = '/größe.npz'".encode())
    code = "import pathlib; from gsio.config import *; [describe_preset(name) for name in preset_names()]"
    code += f"; print(ascii(load_config(pathlib.Path({str(path)!r})).initial.path))"
    names = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=names, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == (ascii("/größe.npz") + "\n", "")


def test_a_path_in_a_file_is_relative_to_that_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    (tmp_path / "sub").mkdir()
    text = "[initial]\nkind = 'file'\npath = 'a.npz'\n[model]\nfeed = {path = '~/b.npy'}\nkill = {path = '/c.npy'}"
    (tmp_path / "sub" / "mine.toml").write_text(text)
    for folder, mine in ((Path.cwd(), tmp_path / "sub" / "mine.toml"), (tmp_path, Path("sub/mine.toml"))):
        monkeypatch.chdir(folder)
        config = load_config(mine, environ={})
        assert config.initial.path == str(mine.parent / "a.npz")
        assert (config.model.feed.path, config.model.kill.path) == ("/home/someone/b.npy", "/c.npy")
    overrides = {"initial.kind": "file", "initial.path": "a.npz", "model.kill": {"path": "~/d.npy"}}
    config = load_config(overrides=overrides, environ={"GSIO_MODEL_FEED": '{path = "~/e.npy"}'})
    assert config.initial.path == "a.npz"
    assert (config.model.feed.path, config.model.kill.path) == ("/home/someone/e.npy", "/home/someone/d.npy")


@pytest.mark.parametrize(
    ("kind", "path", "words"),
    [
        ("image", "", "got none"),
        ("file", "", "got none"),
        ("school", "a.npz", "'a.npz'"),
        ("noise", "a.png", "'a.png'"),
    ],
)
def test_a_path_and_a_kind_that_uses_it_need_each_other(kind: str, path: str, words: str) -> None:
    with pytest.raises(UsageError, match=rf"initial\.path: .*initial\.kind={kind}.*{words}"):
        load_config(overrides={"initial.kind": kind, "initial.path": path}, environ={})


def test_overrides_take_what_numpy_and_pathlib_have() -> None:
    overrides = {
        "grid.rows": np.int64(7), "model.feed": np.array([0.03, 0.04]), "model.kill": np.float32(0.0625),
        "initial.kind": np.str_("file"), "initial.path": Path("a.npz"),
    }  # fmt: skip
    config = load_config(overrides=overrides, environ={})
    assert (config.grid.rows, config.model.feed, config.model.kill) == (7, (0.03, 0.04), 0.0625)
    assert (config.initial.kind, config.initial.path) == ("file", "a.npz")


@pytest.mark.parametrize(
    "text",
    ["[model]\nfeed = " + "[" * 5000, "a." * 100_000 + "b = 1", "#" * (2 << 20), "[grid]\nrows = 0x" + "f" * 5000],
    ids=["nested", "long key", "large", "long number"],
)
def test_toml_that_would_take_long_or_much_is_refused(text: str, write: Callable[[str], Path]) -> None:
    with pytest.raises(UsageError) as refused:
        load_config(write(text), environ={})
    assert len(str(refused.value)) < 500
