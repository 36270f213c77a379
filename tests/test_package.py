"""What a checkout, an sdist and a wheel know of their source, and what a run leaves in a checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import gsio
from gsio.cli import main
from gsio.config import Config
from gsio.files import temporary_beside

ROOT = Path(__file__).parent.parent
RUN = (
    "import gsio, pathlib; small = {'grid.rows': 8, 'grid.cols': 8, 'run.frames': 1, 'run.backend': 'numpy'};"
    "gsio.simulate(gsio.load_config(overrides=small), pathlib.Path('run.h5'), overwrite=True);"
    "print(gsio.__file__, gsio.open_stack('run.h5').attributes['gsio_commit'], sep='\\n', end='')"
)
ME = {f"GIT_{who}_{what}": "test" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="no git")


def git(folder: Path, *words: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")} | ME
    return subprocess.check_output(["git", "-C", folder, *words], text=True, env=environment).strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the build needs of this checkout, committed in a repository of its own."""
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / "gsio", folder / "gsio", ignore=shutil.ignore_patterns("__pycache__", "_commit.txt"))
    shutil.copytree(ROOT / "config", folder / "config")
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, folder)
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "all of it")
    return folder


@pytest.fixture
def without_git(tmp_path: Path) -> dict[str, str]:
    """An environment in which a call of git leaves a file, and fails."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "git").write_text(f"#!/bin/sh\ntouch '{tmp_path}/asked'\nexit 1\n")
    (folder / "git").chmod(0o755)
    return {**os.environ, "PATH": str(folder)}


def recorded(source: Path, folder: Path, environment: dict[str, str]) -> str:
    """Return the commit in an output of the gsio in `source`."""
    folder.mkdir()
    command = [sys.executable, "-c", RUN]
    environment = {**environment, "PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1"}
    said = subprocess.check_output(command, text=True, cwd=folder, env=environment)
    file, commit = said.split("\n")
    assert Path(file).is_relative_to(source)
    return commit


def build(source: Path, target: Path, kind: str) -> Path:
    """Return the folder of a new sdist or wheel, unpacked."""
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", target], cwd=source, check=True)
    (archive,) = target.iterdir()
    if kind == "wheel":
        zipfile.ZipFile(archive).extractall(target)
        return target
    shutil.unpack_archive(archive, target, filter="data")
    return next(path for path in target.iterdir() if path.is_dir())


@needs_git
@pytest.mark.slow
def test_a_wheel_of_a_checkout_records_its_commit_and_asks_no_git(
    checkout: Path, without_git: dict[str, str], tmp_path: Path
) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    sdist = build(checkout, tmp_path / "sdist", "sdist")
    wheels = [build(checkout, tmp_path / "wheel", "wheel"), build(sdist, tmp_path / "wheel of the sdist", "wheel")]
    for number, source in enumerate([*wheels, sdist]):
        assert recorded(source, tmp_path / f"run {number}", without_git) == commit
    assert not (tmp_path / "asked").exists()
    assert git(checkout, "status", "--porcelain") == ""  # nothing is left of the build


@needs_git
@pytest.mark.slow
def test_a_checkout_says_what_it_is_at_the_moment(checkout: Path, without_git: dict[str, str], tmp_path: Path) -> None:
    environment = dict(os.environ)
    first = git(checkout, "rev-parse", "HEAD")
    assert recorded(checkout, tmp_path / "clean", environment) == first
    with (checkout / "gsio" / "__init__.py").open("a") as file:
        file.write("# changed\n")
    assert recorded(checkout, tmp_path / "changed", environment) == f"{first}-dirty"
    git(checkout, "commit", "--quiet", "--all", "--message", "changed")
    second = git(checkout, "rev-parse", "HEAD")
    for number, change in enumerate(["status", "pack-refs --all", "checkout --quiet --detach"]):
        git(checkout, *change.split())
        assert recorded(checkout, tmp_path / f"{number}", without_git) == second  # a container may have no git
    git(checkout, "worktree", "add", "--quiet", "-b", "other", str(tmp_path / "worktree"), first)
    assert recorded(tmp_path / "worktree", tmp_path / "of a worktree", without_git) == first


@pytest.mark.slow
def test_a_folder_without_a_repository_builds_and_records_nothing(
    checkout: Path, without_git: dict[str, str], tmp_path: Path
) -> None:
    shutil.rmtree(checkout / ".git")
    wheel = build(checkout, tmp_path / "wheel", "wheel")
    assert recorded(wheel, tmp_path / "run", without_git) == ""
    assert not (tmp_path / "asked").exists()


KILLED = """
import os, pathlib, sys, gsio
config = gsio.Config.from_toml(sys.argv[1])
gsio.simulate(config, pathlib.Path("killed.h5"), watch=lambda progress: os._exit(0))
"""


@needs_git
def test_git_ignores_what_runs_leave(
    make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    git(tmp_path, "init", "--quiet")
    shutil.copy(ROOT / ".gitignore", tmp_path)
    config = make_config({"run.checkpoint_every": 1})
    subprocess.run([sys.executable, "-c", KILLED, config.to_toml()], check=True)
    gsio.simulate(config, Path("run.h5"))
    gsio.simulate(make_config({"output.compression": "lz4", "run.checkpoint_every": 1}), Path("run.zarr"))
    for target in ("run.tif", "run.vtkhdf", "run.openpmd.h5"):
        assert main(["export", "run.h5", target]) == 0
    temporary_beside(Path("run.h5")).touch()
    assert {"killed.h5.journal", "run.h5.checkpoint.npz", "run.h5.status.json"} <= {
        path.name for path in tmp_path.iterdir()
    }
    assert git(tmp_path, "status", "--porcelain", "--untracked-files=all") == "?? .gitignore"


@pytest.mark.parametrize("name", gsio.__all__)
def test_every_exported_name_is_importable_and_has_a_docstring(name: str) -> None:
    exported = getattr(gsio, name)
    if name == "__version__":
        assert exported.count(".") == 2
    else:
        assert exported.__doc__
        assert exported.__doc__.strip().splitlines()[0].endswith(".")


def test_the_package_exports_what_it_promises_and_says_that_it_has_types() -> None:
    names = ["Config", "FrameWriter", "GsioError", "__version__", "load_config", "open_stack", "simulate", "view"]
    assert sorted(gsio.__all__) == names
    assert (Path(gsio.__file__).parent / "py.typed").is_file()


@pytest.mark.parametrize(
    ("arguments", "unused"),
    [
        (["--help"], ["gsio.config", "msgspec", "numpy", "structlog"]),
        (["-n", "1", "-o", "run.zarr"], ["cupy", "h5py", "numba", "psutil", "rich", "structlog", "zarr"]),
        (["-n", "1", "-o", "run.h5"], ["cupy", "numba", "numcodecs", "psutil", "rich", "structlog", "zarr"]),
    ],
    ids=" ".join,
)
def test_a_command_imports_no_library_that_it_does_not_use(
    arguments: list[str], unused: list[str], tmp_path: Path
) -> None:
    if len(arguments) > 1:
        arguments = ["run", "-r", "9", "-c", "9", "--backend", "numpy", *arguments]
    found = f"set({unused}) & set(sys.modules)"
    program = f"import sys; from gsio.cli import main; code = main({arguments}); print(code, {found})"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 set()"
