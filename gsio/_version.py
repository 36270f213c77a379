"""The version of gsio, and the commit of its source. The build (hatch_build.py) uses this file alone."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__version__ = "0.1.0"

RECORD = "_commit.txt"  # made by the build, beside this file; a checkout has none


def commit() -> str:
    """Return the git commit of this source in full, with "-dirty" behind it if tracked files had been changed.

    A package that was built knows the commit from its build; a checkout asks git. Where neither knows, returns "".
    """
    from pathlib import Path

    here = Path(__file__).parent
    try:
        return (here / RECORD).read_text("ascii").strip()
    except OSError:
        return _described_by_git(here) or _read_from_repository(here.parent)


def _described_by_git(folder: "Path") -> str:
    """Return the commit of the repository in which `folder` is tracked, or "" where git is missing or refuses."""
    import subprocess  # a packaged gsio never needs it

    # A build as root in a user's checkout is common, and git refuses it by default. Where a git hook calls us, its
    # environment names a repository that need not be ours.
    git = ["git", "--no-optional-locks", "-c", "safe.directory=*", "-C", os.fspath(folder)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    tracked = [*git, "ls-files", "--error-unmatch", "_version.py"]
    described = [*git, "describe", "--always", "--abbrev=64", "--exclude=*", "--dirty"]
    try:
        subprocess.run(tracked, check=True, capture_output=True, env=environment)
        return subprocess.run(described, check=True, capture_output=True, env=environment).stdout.decode().strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _read_from_repository(root: "Path") -> str:
    """Return what HEAD of a repository at `root` names, without git, which small containers do not have; or ""."""
    try:
        folder = root / ".git"
        if folder.is_file():  # of a worktree or a submodule
            folder = root / folder.read_text().removeprefix("gitdir:").strip()
        name = (folder / "HEAD").read_text().strip()
        if not name.startswith("ref: "):
            return name
        name = name.removeprefix("ref: ")
        shared = folder / "commondir"
        common = folder / shared.read_text().strip() if shared.exists() else folder
        if (common / name).exists():
            return (common / name).read_text().strip()
        packed = (line.split() for line in (common / "packed-refs").read_text().splitlines())
        return next((line[0] for line in packed if line[1:] == [name]), "")
    except (OSError, UnicodeError):
        return ""
