"""The pieces of a result: the outputs of the runs of tasks, and how the frames in them become those of the members.

In Zarr a chunk of a run holds one member, so that its file is, byte for byte, a chunk of the result too: the file gets
a second name. In HDF5 the result is a virtual dataset over one file for each task.
"""

import errno
import itertools
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gsio.files import UNSUPPORTED, publish, remove, sync_folder, temporary_beside
from gsio.reader.stack import open_hdf5
from gsio.sweep.plan import Plan, Task, folder_of
from gsio.writer import format_of
from gsio.writer.status_file import status_of
from gsio.writer.zarr.store import Folder

NO_LINKS = *UNSUPPORTED, errno.EPERM, errno.EMLINK, errno.EXDEV, errno.EACCES


class Piece(NamedTuple):
    """A run: its output, the members of the batch that it has computed, and the frames that these have."""

    output: Path
    members: tuple[int, ...]
    frames: int


def run_path(output: Path, task: Task, part: str = "") -> Path:
    """Return the output of the run of a task, or of a part of its members."""
    return folder_of(output) / f"run{task.number:06}{part}{output.suffix}"


def file_of_task(output: Path, task: Task) -> Path:
    """Return the file of a task that the virtual dataset of HDF5 shows. It appears when its members are whole."""
    return folder_of(output) / f"task{task.number:06}{output.suffix}"


def keep(plan: Plan, output: Path, task: Task, pieces: Sequence[Piece]) -> None:
    """Let the result show the frames of a task; done twice, it changes nothing."""
    if format_of(output).is_folder:
        for piece in pieces:
            _link_chunks(plan, output, task, piece)
        Folder(output).sync()
    else:
        _keep_file(plan, output, task, pieces)
        sync_folder(folder_of(output))


def clean(output: Path, task: Task) -> None:
    """Delete what the runs of a task have left, apart from the files that the result shows."""
    shown = set() if format_of(output).is_folder else _sources(file_of_task(output, task))
    for left in folder_of(output).glob(f"*run{task.number:06}*"):
        if left.name not in shown:
            remove(left)


def left_behind(output: Path) -> set[int]:
    """Return the numbers of the tasks whose runs have left something, by a look at the names in the folder only."""
    names = (entry.name.removeprefix(".") for entry in os.scandir(folder_of(output)))
    return {number for name in names if (number := _number(name)) is not None}


def _number(name: str) -> int | None:
    """Return the number of the task whose run made a file of this name; None if none did."""
    return int(name[3:9]) if name.startswith("run") and name[3:9].isdecimal() else None


def _sources(path: Path) -> set[str]:
    """Return the names of the files whose frames the file of a task shows; none if it has its own."""
    import h5py

    with open_hdf5(path) as file:
        arrays = [array for array in file.values() if isinstance(array, h5py.Dataset) and array.is_virtual]
        return {source.file_name for array in arrays for source in array.virtual_sources()}


def hdf5_of(output: Path, task: Task, member: int) -> tuple[Path, int]:
    """Return the HDF5 file that has the frames of a member, and the place of the member in the batch of that file."""
    for name in _sources(file_of_task(output, task)):
        members = task.members
        for half in name[len(run_path(output, task).stem) + 1 : -len(output.suffix)]:
            members = halves(members)[int(half)]
        if member in members:
            return folder_of(output) / Path(name).name, members.index(member)
    return file_of_task(output, task), task.members.index(member)


def halves(members: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return each half of the members of a run that failed; the numbers of the halves end the names of their runs."""
    return members[: len(members) // 2], members[len(members) // 2 :]


def _link_chunks(plan: Plan, output: Path, task: Task, piece: Piece) -> None:
    """Give the chunk files of a run their names in the result."""
    chunks = plan.layout.chunks
    numbers = range(-(-piece.frames // chunks.frames_together))
    batch = len(piece.members) > 1
    slabs = range(len(piece.members) if batch else chunks.slabs)
    for field, number, slab in itertools.product(plan.layout.frame.fields, numbers, slabs):
        place = plan.place(piece.members[slab if batch else 0])
        source = piece.output / field / f"c.{number}.{slab}{'.0.0' if batch else '.0'}"
        name = ".".join(map(str, ("c", *place, number, 0 if batch else slab, 0)))
        _link(source, output / field / name, _temporary(output, task), apart=piece.frames < plan.config.run.frames)
    last = piece.frames % chunks.frames_together
    if last and piece.frames < plan.config.run.frames and plan.layout.frame.dtype.kind == "f":
        import zarr

        root: Any = zarr.open_group(output, mode="r+")
        frames = slice(piece.frames, piece.frames - last + chunks.frames_together)
        for field, member in itertools.product(plan.layout.frame.fields, piece.members):
            root[field][(*plan.place(member), frames)] = np.nan  # the run has filled its last chunk with zeros


def _temporary(output: Path, task: Task) -> Path:
    """Return a new name that `clean` deletes if a kill leaves a file there."""
    return temporary_beside(run_path(output, task), output.suffix)


def _link(source: Path, target: Path, temporary: Path, *, apart: bool) -> None:
    """Give a file a second name, or, if it is changed later, copy it; a kill leaves at most `temporary`."""
    try:
        try:
            if apart:
                shutil.copyfile(source, temporary)
            else:
                os.link(source, target)
                return
        except FileExistsError:  # from before a kill
            os.link(source, temporary)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            shutil.copyfile(source, temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _keep_file(plan: Plan, output: Path, task: Task, pieces: Sequence[Piece]) -> None:
    """Give the file of a task its name: that of its only run, or else a virtual dataset over the files of its runs.

    A reader of a virtual dataset never returns where a source is shorter than the dataset says. So a file gets this
    name only when it has all frames, and the frames that a member lacks belong to no source.
    """
    temporary = _temporary(output, task)
    try:
        if len(pieces) == 1 and pieces[0].frames == plan.config.run.frames:
            _link(pieces[0].output, temporary, _temporary(output, task), apart=False)
        else:
            _virtual_task(plan, temporary, task, pieces)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        publish("--output", temporary, file_of_task(output, task), replaces=Path.is_file)
    finally:
        temporary.unlink(missing_ok=True)


def _virtual_task(plan: Plan, path: Path, task: Task, pieces: Sequence[Piece]) -> None:
    import h5py

    frame, frames = plan.layout.frame, plan.config.run.frames
    batch = len(task.members) > 1
    shape = (frames, *(len(task.members),) * batch, *frame.shape)
    with h5py.File(path, "w", libver="v110") as file:
        for field in frame.fields:
            layout = h5py.VirtualLayout(shape, frame.dtype)
            for piece in pieces:
                if not piece.frames:
                    continue
                several = len(piece.members) > 1
                size = (piece.frames, *(len(piece.members),) * several, *frame.shape)
                source = h5py.VirtualSource(piece.output.name, field, shape=size)
                for number, member in enumerate(piece.members):
                    part = source[:, number] if several else source
                    there = np.s_[: piece.frames, task.members.index(member)] if batch else np.s_[: piece.frames]
                    layout[there] = part
            file.create_virtual_dataset(field, layout, fillvalue=fill_of(plan))


def fill_of(plan: Plan) -> Any:
    """Return the value of a cell that is not there."""
    return np.nan if plan.layout.frame.dtype.kind == "f" else 0


def virtual_field(plan: Plan, output: Path, field: str, shape: tuple[int, ...]) -> Any:
    """Return the layout of a virtual dataset of h5py over the files of all tasks."""
    import h5py

    frame, frames = plan.layout.frame, plan.config.run.frames
    layout = h5py.VirtualLayout(shape, frame.dtype)
    folder = folder_of(output).name
    for task in plan.tasks:
        batch = len(task.members) > 1
        size = (frames, *(len(task.members),) * batch, *frame.shape)
        source = h5py.VirtualSource(f"{folder}/{file_of_task(output, task).name}", field, shape=size)
        for number, member in enumerate(task.members):
            layout[plan.place(member)] = source[:, number] if batch else source
    return layout


def runs_of(output: Path) -> dict[int, list[Path]]:
    """Return the runs that each task has begun, by its number, by a look at the names in the folder only."""
    ending = status_of(Path(output.suffix)).name
    begun: dict[int, list[Path]] = {}
    with os.scandir(folder_of(output)) as found:
        for entry in found:
            if entry.name.endswith(ending) and (number := _number(entry.name)) is not None:
                path = Path(entry.path[: len(entry.path) - len(ending)] + output.suffix)
                begun.setdefault(number, []).append(path)
    return {number: sorted(paths) for number, paths in begun.items()}
