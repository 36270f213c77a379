"""Outputs of every compression and store, complete, running, stopped and killed, opened by the stock readers.

No reader crashes, and none sees a frame that was not committed.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hdf5plugin
import pytest

HERE = Path(__file__).parent
FRAMES, FEW = 60, 8
READERS = {"h5py": ".h5", "xarray": "", "zarr": ".zarr", "vtk": ".h5"}  # and which outputs they read


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, "subprocess.Popen[str]"]]:
    """A folder of folders by state, and the process that keeps the runs that go on."""
    folder = tmp_path_factory.mktemp("states")
    command = [sys.executable, HERE / "make_states.py", folder]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as maker:
        assert maker.stdout is not None
        assert maker.stdin is not None
        assert maker.stdout.readline() == "made\n"
        yield folder, maker
        maker.stdin.close()


def look(reader: str, folder: Path, states: list[str]) -> None:
    """Let `reader` read what it can of each state, in one process."""
    paths = [path for state in states for path in sorted((folder / state).glob(f"*-*{READERS[reader] or '.*'}"))]
    paths = [path for path in paths if path.suffix in (".h5", ".zarr")]
    lines = "".join(f"{path} {folder / 'complete' / path.name}\n" for path in paths)
    environment = os.environ | {"HDF5_PLUGIN_PATH": hdf5plugin.PLUGIN_PATH}  # for VTK, which has no Blosc of its own
    command = [sys.executable, HERE / "look.py", reader]
    found = subprocess.run(command, input=lines, capture_output=True, text=True, env=environment)
    assert found.returncode == 0, found.stderr[-2000:]
    counts = dict(zip(paths, map(int, found.stdout.split()), strict=True))
    for path, count in counts.items():
        if path.parent.name == "complete":
            assert count == FRAMES, path
        else:
            assert FEW <= count < FRAMES, path


@pytest.mark.parametrize("reader", READERS)
def test_a_run_that_goes_on_ends_or_was_stopped(reader: str, outputs: tuple[Path, "subprocess.Popen[str]"]) -> None:
    look(reader, outputs[0], ["complete", "running", "stopped"])


def test_a_run_that_was_killed(outputs: tuple[Path, "subprocess.Popen[str]"]) -> None:
    folder, maker = outputs
    assert maker.stdin is not None
    assert maker.stdout is not None
    maker.stdin.write("kill\n")
    maker.stdin.flush()
    assert maker.stdout.readline() == "killed\n"
    for reader in READERS:
        look(reader, folder, ["running"])
