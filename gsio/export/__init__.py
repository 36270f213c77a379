"""Export: the frames of an output, or some of them, are written in the format of another tool.

To add a format, write a file with a function as `ExportFormat.write`, and add its row to `FORMATS`.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from gsio.config import AUTO
from gsio.errors import StorageError, UsageError, storage_errors
from gsio.export.ome_zarr import write_ome_zarr
from gsio.export.openpmd import write_openpmd
from gsio.export.outputs import as_output, write_output
from gsio.export.tiff import write_tiff
from gsio.export.vtkhdf import write_vtkhdf
from gsio.files import (
    OR_OVERWRITE,
    Replaces,
    is_file,
    publish,
    remove,
    remove_temporaries,
    require_new,
    temporary_beside,
)
from gsio.machine import free_space
from gsio.processes import terminable
from gsio.reader.selection import Frame, Selection, select
from gsio.run.output import beside
from gsio.run.progress import frame_progress
from gsio.run.status import open_committed
from gsio.writer.formats import FORMATS as OUTPUTS
from gsio.writer.formats import is_zarr
from gsio.writer.journal import Journal

SPARE_BYTES = 16 << 20  # these stay free: HDF5 must never meet a full disk


class ExportFormat(NamedTuple):
    """A format of an export.

    Attributes
    ----------
    write
        Writes frames to a path that is free.
    is_output
        Whether `--overwrite` may replace the file or folder at a path.
    prepare
        From a selection, the target and the value of `--compression`, to the selection that `write` gets. None where
        the format offers no choice of the compression.
    """

    write: Callable[[Path, Selection, Iterator[Frame]], None]
    is_output: Replaces = is_file
    prepare: Callable[[Selection, Path, str], Selection] | None = None


# By ending; where a name ends in several of them, the longest counts.
FORMATS = {
    **{ending: ExportFormat(write_output, form.is_output, as_output) for form in OUTPUTS for ending in form.endings},
    ".openpmd.h5": ExportFormat(write_openpmd),
    ".ome.zarr": ExportFormat(write_ome_zarr, is_zarr),
    ".ome.tif": ExportFormat(write_tiff),
    ".ome.tiff": ExportFormat(write_tiff),
    ".tif": ExportFormat(write_tiff),
    ".tiff": ExportFormat(write_tiff),
    ".vtkhdf": ExportFormat(write_vtkhdf),
}


def export(
    source: Path,
    target: Path,
    *,
    frames: str = "",
    crop: str = ":,:",
    fields: str = "",
    members: str = ":",
    compression: str = AUTO,
    overwrite: bool = False,
    quiet: bool = True,
) -> int:
    """Write what the output `source` holds to `target`, and return the number of frames.

    Parameters
    ----------
    target
        Its ending names the format: .h5, .hdf5 or .zarr (an output again), .tif or .tiff (an ImageJ hyperstack,
        float32, fields as channels), .ome.tif or .ome.tiff (an OME-TIFF), .ome.zarr (an image, fields as channels),
        .vtkhdf, .openpmd.h5. In TIFF, .ome.zarr and .vtkhdf the members of a batch lie along z.
    frames, crop, members
        One number, START:STOP or START:STOP:STEP, and TOP:BOTTOM,LEFT:RIGHT; as in Python, but out of range is an
        error. Empty `frames` are all frames.
    fields
        Names of saved fields, "v" or "u,v"; empty for all.
    compression
        The codec of .h5, .hdf5 and .zarr; "auto" suits the format.
    overwrite
        Replace a file, or a Zarr group that gsio wrote, at `target`; without `overwrite` that is an error. The
        checkpoint, the status and the journal of the run that made it are deleted too.
    quiet
        Show no progress. Else progress is shown on stderr if that is a terminal.

    Raises
    ------
    UsageError, DataError, StorageError
        An option cannot be used, a run writes the target, a frame cannot be read, or there is no space. What was at
        `target` before is still there.
    """
    form = FORMATS[ending := _ending_of(target, compression)]
    replaces = form.is_output if overwrite else None
    _check_target(source, target, replaces)
    temporary = temporary_beside(target, ending)
    with terminable(), Journal(target, "TARGET") as journal, open_committed(source) as stack:
        _check_target(source, target, replaces)  # again: no run can create the target while its journal is locked
        remove_temporaries(target)
        selection = select(stack, frames=frames, crop=crop, fields=fields, members=members)
        if form.prepare is not None:
            selection = form.prepare(selection, target, compression)
        with _storage_errors(source, temporary):
            with frame_progress(len(selection.frames), quiet=quiet) as advance:
                form.write(temporary, selection, _frames(selection, target.parent, advance))
            if temporary.is_file():  # `write` has synced a folder itself
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
            publish("TARGET", temporary, target, replaces=replaces)
            for path in (path for path, is_of_run in beside(target).items() if is_of_run(path)):
                path.unlink()
            journal.remove()
        return len(selection.frames)


def _ending_of(target: Path, compression: str) -> str:
    """Return the ending that names the format of `target`; raise UsageError if it has none of this compression."""
    ending = max((end for end in FORMATS if target.name.endswith(end)), key=len, default="")
    if not ending:
        raise UsageError(f"TARGET: expected a name that ends in {', '.join(FORMATS)}, got '{target}'")
    if FORMATS[ending].prepare is None and compression != AUTO:
        raise UsageError(f"--compression: expected it with .h5 and .zarr only, got it with {ending}")
    return ending


def _frames(selection: Selection, folder: Path, advance: Callable[[int], object]) -> Iterator[Frame]:
    """Yield the frames; raise StorageError if the disk of `folder` has no room for the next."""
    for number in selection.frames:
        frame = selection.read(number)
        free = free_space(folder)
        if free < sum(plane.nbytes for plane in frame) + SPARE_BYTES:
            raise StorageError(f"'{folder}' is full: {free >> 20} MiB are left; make space; nothing was exported")
        yield frame
        advance(1)


@contextmanager
def _storage_errors(source: Path, temporary: Path) -> Iterator[None]:
    """Raise errors of the storage and of memory as errors of gsio, and delete what is left at `temporary`."""
    try:
        with storage_errors(source, "frames and shards", (OSError, RuntimeError)):  # h5py raises either
            yield
    finally:
        if os.path.lexists(temporary):
            remove(temporary)


def _check_target(source: Path, target: Path, replaces: Replaces | None) -> None:
    here, there = (Path(os.path.realpath(path)) for path in (source, target))  # `resolve` fails in a loop of links
    if here in (there, *there.parents) or there in here.parents:
        raise UsageError(f"TARGET: expected a place apart from '{source}', got '{target}'; choose another name")
    require_new("TARGET", target, replaces=replaces, instead=OR_OVERWRITE)
    for path, is_of_run in beside(target).items():
        require_new("TARGET", path, replaces=is_of_run)
