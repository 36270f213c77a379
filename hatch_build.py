"""The build records the git commit in the package, since an installed package has no repository to ask."""

import runpy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class RecordCommit(BuildHookInterface[Any]):
    """Adds a file with the commit to a wheel and to an sdist; a wheel from an sdist keeps what that says.

    An editable installation gets none: its checkout moves on, and gsio asks git.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write the record, and have it packed."""
        package = Path(self.root, "gsio")
        known = runpy.run_path(str(package / "_version.py"))
        name = known["RECORD"]
        if version == "editable" or (package / name).exists():
            return
        self._folder = TemporaryDirectory()
        record = Path(self._folder.name, name)
        record.write_text(known["commit"]() + "\n")
        build_data["force_include"][str(record)] = f"gsio/{name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the record that has been packed."""
        if hasattr(self, "_folder"):
            self._folder.cleanup()
