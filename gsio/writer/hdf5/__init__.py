"""The HDF5 format: `open_writer` gives the writer of one output."""

import os
from contextlib import suppress
from pathlib import Path

import h5py

from gsio.errors import UsageError
from gsio.files import temporary_beside
from gsio.writer.hdf5.chunked import ChunkWriter
from gsio.writer.protocol import Target, Writer

LARGEST_CHUNK = 2**32 - 1  # bytes, a limit of HDF5


def open_writer(target: Target) -> Writer:
    """Return the writer of `target`; raises as `gsio.writer.open_writer`."""
    if (nbytes := target.layout.chunks.chunk_nbytes) > LARGEST_CHUNK:
        raise UsageError(
            f"grid.cols: expected rows of at most 4 GiB, HDF5's largest chunk, got {nbytes / 2**30:.1f} GiB; "
            "choose an output that ends in .zarr"
        )
    if target.series is not None:
        return ChunkWriter(target, target.path)
    temporary = temporary_beside(target.path)
    try:
        return ChunkWriter(target, temporary)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def is_open_here(path: Path) -> bool:
    """Return whether h5py has a file, or an object of it, open in this process; it cannot be extended then."""
    if not path.exists():
        return False
    kinds = h5py.h5f.OBJ_ALL & ~h5py.h5f.OBJ_DATATYPE  # a type in memory belongs to no file, but counts as open
    for opened in h5py.h5f.get_obj_ids(h5py.h5f.OBJ_ALL, kinds):
        with suppress(OSError, RuntimeError, ValueError):  # another thread has closed it meanwhile
            file = h5py.h5i.get_file_id(opened)
            on_disk = file.get_access_plist().get_driver() == h5py.h5fd.SEC2  # only this driver has a file descriptor
            if on_disk and os.path.samestat(os.fstat(file.get_vfd_handle()), path.stat()):
                return True
    return False
