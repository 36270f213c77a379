"""Export: the frames of an output, or some of them, are written in the format of another tool."""

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from msgspec.structs import replace

from gsio.errors import DataError, StorageError, UsageError, reason_of
from gsio.export.ome_zarr import write_ome_zarr
from gsio.export.openpmd import write_openpmd
from gsio.export.outputs import write_output
from gsio.export.selection import Frame, Selection, select
from gsio.export.tiff import write_tiff
from gsio.export.vtkhdf import write_vtkhdf
from gsio.files import is_file, publish, remove_temporaries, require_new, temporary_beside
from gsio.processes import terminable
from gsio.run.plan import with_codec
from gsio.run.progress import frame_progress
from gsio.run.simulate import beside
from gsio.run.status import open_committed
from gsio.writer import format_of, is_zarr
from gsio.writer.journal import Journal

FORMATS: dict[str, Callable[[Path, Selection, Iterator[Frame]], None]] = {
    ".openpmd.h5": write_openpmd,
    ".h5": write_output,
    ".hdf5": write_output,
    ".ome.zarr": write_ome_zarr,
    ".zarr": write_output,
    ".ome.tif": write_tiff,
    ".ome.tiff": write_tiff,
    ".tif": write_tiff,
    ".tiff": write_tiff,
    ".vtkhdf": write_vtkhdf,
}


def export(
    source: Path,
    target: Path,
    *,
    frames: str = ":",
    crop: str = ":,:",
    compression: str = "auto",
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
    frames, crop
        START:STOP or START:STOP:STEP, and TOP:BOTTOM,LEFT:RIGHT; as in Python, but out of range is an error.
    compression
        Of .h5 and .zarr.
    overwrite
        Replace what is at `target`, which else is an error: a file, or a Zarr group that gsio wrote. The checkpoint,
        the status and the journal of a run that made it go too.
    quiet
        Show no progress, which else is on stderr if that is a terminal.

    Raises
    ------
    UsageError, DataError, StorageError
        Options that cannot be used, a target that a run writes, a frame that cannot be read, no space. What was at
        `target` before is still there.
    """
    ending, write = next(((end, FORMATS[end]) for end in FORMATS if target.name.endswith(end)), ("", None))
    if write is None:
        raise UsageError(f"TARGET: expected a name that ends in {', '.join(FORMATS)}, got '{target}'")
    if write is not write_output and compression != "auto":
        raise UsageError(f"--compression: expected it with .h5 and .zarr only, got it with {ending}")
    _check_target(source, target, overwrite=overwrite)
    temporary = temporary_beside(target, ending)
    with terminable(), Journal(target, "TARGET") as journal, open_committed(source) as stack:
        _check_target(source, target, overwrite=overwrite)  # again: from here on no run makes it
        remove_temporaries(target)
        selection = select(stack, frames, crop)
        if write is write_output:
            shards = selection.config.output.shard_frames if target.suffix == ".zarr" else 0
            # Levels differ between codecs.
            output = replace(selection.config.output, compression=compression, level=1, shard_frames=shards, pyramid=0)
            if (
                selection.config.stored == "float16" and format_of(target) == "HDF5"
            ):  # refused there; these are the same bits
                output = replace(output, store="float32", keep_bits=10)
            selection = dataclasses.replace(
                selection, config=with_codec(replace(selection.config, output=output), target)
            )
        try:
            with frame_progress(len(selection.frames), quiet=quiet) as advance:
                write(temporary, selection, selection.read(target.parent, advance))
            if temporary.is_file():  # a folder is on the disk
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
            replaces = is_zarr if target.suffix == ".zarr" else is_file
            publish("TARGET", temporary, target, replaces=replaces if overwrite else None)
            for path in (path for path, is_of_run in beside(target).items() if is_of_run(path)):
                path.unlink()
            journal.remove()
        except MemoryError:
            raise DataError(f"{source}: expected frames and shards that fit into memory, found larger ones") from None
        except (OSError, RuntimeError) as error:  # h5py raises either
            raise StorageError(f"storage failed: {reason_of(error)}; make space or choose another place") from error
        finally:
            if temporary.is_dir():
                shutil.rmtree(temporary)
            temporary.unlink(missing_ok=True)
        return len(selection.frames)


def _check_target(source: Path, target: Path, *, overwrite: bool) -> None:
    here, there = (Path(os.path.realpath(path)) for path in (source, target))  # `resolve` fails in a loop of links
    if here in (there, *there.parents) or there in here.parents:
        raise UsageError(f"TARGET: expected a place apart from '{source}', got '{target}'; choose another name")
    replaces = is_zarr if target.suffix == ".zarr" else is_file
    instead = "choose another name, or replace it with --overwrite"
    require_new("TARGET", target, replaces=replaces if overwrite else None, instead=instead)
    for path, is_of_run in beside(target).items():
        require_new("TARGET", path, replaces=is_of_run)
