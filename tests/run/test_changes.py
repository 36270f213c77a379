"""An output that somebody else changes under its run: the run ends with one line, and is never called complete."""

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from patience import DEADLINE

import gsio
from gsio.compute.host import ArraySolver
from gsio.config import Config
from gsio.errors import DataError, StorageError
from gsio.reader import open_stack
from gsio.run.progress import Progress
from gsio.testing import small_blocks
from gsio.writer.status_file import read_status

FRAMES, GATE = 60, 32
CONFIG = {
    "run.frames": FRAMES,
    "run.backend": "numpy",
    "run.checkpoint_every": "1h",
    "initial.kind": "noise",
    "output.fields": "u,v",
}


def replace(path: Path) -> None:
    """Put a copy in its place, which differs in nothing but in being another file or folder."""
    copy = path.with_name(f"copy of {path.name}")
    (shutil.copytree if path.is_dir() else shutil.copy2)(path, copy)
    path.rename(path.with_name(f"gone.{path.name}"))
    copy.rename(path)


def delete(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def of_another_run(path: Path) -> None:
    """Replace metadata by others, as a tool that copies files does."""
    other = path.with_name("other")
    other.write_text(path.read_text().replace('"running"', '"changed"').replace('"shape"', '"shape" '))
    other.replace(path)


ANY: dict[str, Callable[[Path], object]] = {
    "deleted": delete,
    "replaced": replace,
    "renamed": lambda path: path.rename(path.with_name(f"moved.{path.name}")),
    "its folder renamed": lambda path: path.parent.rename(path.parent.with_name("moved")),
}
OF_HDF5: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: os.truncate(path, path.stat().st_size * 2 // 3),
    "emptied": lambda path: os.truncate(path, 0),
}
OF_ZARR: dict[str, Callable[[Path], object]] = {
    "a chunk deleted": lambda path: (path / "v" / "c.0.0.0").unlink(),
    "a chunk of a level deleted": lambda path: next((path / "pyramid").rglob("c.0.0.0")).unlink(),
    "a field deleted": lambda path: shutil.rmtree(path / "u"),
    "metadata deleted": lambda path: (path / "zarr.json").unlink(),
    "metadata cut": lambda path: os.truncate(path / "zarr.json", 100),
    "metadata replaced": lambda path: of_another_run(path / "zarr.json"),
    "a field's metadata replaced": lambda path: of_another_run(path / "v" / "zarr.json"),
    "an axis's metadata replaced": lambda path: of_another_run(path / "x" / "zarr.json"),
}
CASES = [
    *(("run.h5", "deflate", name, change) for name, change in (ANY | OF_HDF5).items()),
    *(("run.h5", "none", name, change) for name, change in OF_HDF5.items()),
    *(("run.zarr", "lz4", name, change) for name, change in (ANY | OF_ZARR).items()),
]


@pytest.mark.parametrize("last", [False, True], ids=["computing", "before it is closed"])
@pytest.mark.parametrize(
    ("name", "compression", "change"),
    [case[:2] + case[3:] for case in CASES],
    ids=[", ".join(case[:3]) for case in CASES],
)
def test_an_output_that_is_changed_under_its_run_is_never_complete(
    name: str,
    compression: str,
    change: Callable[[Path], object],
    last: bool,
    make_config: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small_blocks(block_bytes=8 * 12 * 17 * 4 * 2, chunk_bytes=4 * 12 * 17 * 4)
    monkeypatch.setattr("gsio.run.pipeline.OBSERVE_SECONDS", 0.01)
    changed = threading.Event()
    fill, snapshot = ArraySolver.fill, ArraySolver.snapshot
    folder = tmp_path / "runs"
    folder.mkdir()
    path = folder / name

    def filling(solver: Any, block: Any) -> None:
        if block.first >= GATE and not last:
            assert changed.wait(DEADLINE)
        fill(solver, block)

    def keeping(solver: Any) -> Any:  # once, when all frames are computed
        assert changed.wait(DEADLINE)
        return snapshot(solver)

    def watch(progress: Progress) -> None:
        if not changed.is_set() and progress.frames_committed == (FRAMES if last else GATE):
            change(path)
            changed.set()

    monkeypatch.setattr(ArraySolver, "fill", filling)
    monkeypatch.setattr(ArraySolver, "snapshot", keeping)
    options = {"output.compression": compression, "output.pyramid": int(name == "run.zarr")}
    with pytest.raises(StorageError):
        gsio.simulate(make_config({**CONFIG, **options}), path, watch=watch)
    assert changed.is_set()
    for left in [path, *tmp_path.glob("*/*run.*")]:
        assert read_status(left).get("state") != "complete"
        try:
            with open_stack(left) as stack:
                assert stack.attributes["status"] != "complete"
        except DataError:  # no output, or one that was damaged
            continue
