"""Writers: they put encoded frames into files, and know nothing of GPUs."""

from pathlib import Path

import msgspec
import numpy as np

from gsio.config import Config
from gsio.errors import UsageError
from gsio.inputs import METADATA_NBYTES, parse_json, read_regular
from gsio.writer.protocol import FrameWriter, Target

FORMATS = {".h5": "HDF5", ".hdf5": "HDF5", ".zarr": "Zarr"}


def format_of(output: Path) -> str:
    """Return the format that the ending of `output` names; raise UsageError if it names none."""
    if output.suffix not in FORMATS:
        raise UsageError(f"--output: expected a name that ends in .h5, .hdf5 or .zarr, got '{output}'")
    return FORMATS[output.suffix]


def with_codec(config: Config, output: Path) -> Config:
    """Return `config` with the compression that `output` gets; raise UsageError if its format does not have it."""
    what, compression = format_of(output), config.output.compression
    if compression == "auto":
        compression = "deflate" if what == "HDF5" else "lz4"
    if compression == "deflate" and what == "Zarr":
        raise UsageError("output.compression: Zarr has no deflate with shuffled bytes; expected lz4, zstd or none")
    if config.output.shard_frames and what == "HDF5":
        raise UsageError("output.shard_frames: HDF5 is one file already; expected 0, or an output that ends in .zarr")
    if (levels := config.output.pyramid) and what == "HDF5":
        raise UsageError("output.pyramid: HDF5 has no such levels; expected 0, or an output that ends in .zarr")
    if min(config.grid.rows, config.grid.cols) >> levels == 0:
        least = min(config.grid.rows, config.grid.cols)
        raise UsageError(f"output.pyramid: expected at most {least.bit_length() - 1} with {least} cells, got {levels}")
    if compression == "deflate" and config.output.level > 3:
        raise UsageError(f"output.level: expected 0 to 3 with deflate, got {config.output.level}")
    dtype = np.dtype(config.stored)
    most = np.finfo(dtype).nmant - 1 if dtype.kind == "f" and dtype.itemsize >= 4 else 0
    if config.output.keep_bits > most:
        raise UsageError(f"output.keep_bits: expected 0 to {most} with {dtype}, got {config.output.keep_bits}")
    if config.stored == "float16" and what == "HDF5":
        raise UsageError(
            "output.store: float16 in HDF5 crashes netCDF readers; expected output.keep_bits=10, which keeps as many "
            "bits in float32, or an output that ends in .zarr"
        )
    return msgspec.structs.replace(config, output=msgspec.structs.replace(config.output, compression=compression))


def is_zarr(path: Path) -> bool:
    """Return whether `path` is a Zarr group that gsio wrote."""
    try:
        return "gsio_version" in parse_json(read_regular(path / "zarr.json", METADATA_NBYTES))["attributes"]
    except (OSError, ValueError, LookupError, TypeError):
        return False


def open_writer(target: Target) -> FrameWriter:
    """Create an output with no frame in it, or go on with one, and return its writer.

    A new output is laid out under a temporary name and renamed into place: what was there before stays whole until the
    new one is. Raises OSError where storage fails, and UsageError where the format cannot hold such frames.
    """
    if format_of(target.path) == "HDF5":
        from gsio.writer import hdf5

        return hdf5.open_writer(target)
    from gsio.writer import zarr

    return zarr.ZarrWriter(target)
