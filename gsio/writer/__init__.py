"""Writers: they put encoded frames into files, and know nothing of GPUs."""

from pathlib import Path

from gsio.errors import UsageError
from gsio.inputs import METADATA_NBYTES, parse_json, read_regular
from gsio.writer.protocol import FrameWriter, Target

FORMATS = {".h5": "HDF5", ".hdf5": "HDF5", ".zarr": "Zarr"}


def format_of(output: Path) -> str:
    """Return the format that the ending of `output` names; raise UsageError if it names none."""
    if output.suffix not in FORMATS:
        raise UsageError(f"--output: expected a name that ends in .h5, .hdf5 or .zarr, got '{output}'")
    return FORMATS[output.suffix]


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

    return zarr.open_writer(target)
