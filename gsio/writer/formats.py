"""The formats of an output: one row for each, which holds all that differs between formats outside their folders.

To add a format, write a package with a function `open_writer`, and add its row to `FORMATS`.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from gsio.codec import CODECS, Codec
from gsio.config import one_of
from gsio.errors import UsageError
from gsio.files import Replaces, is_file
from gsio.inputs import METADATA_NBYTES, parse_json, read_regular
from gsio.writer.protocol import Target, Writer


def is_zarr(path: Path) -> bool:
    """Return whether `path` is a Zarr group that gsio wrote."""
    try:
        return "gsio_version" in parse_json(read_regular(path / "zarr.json", METADATA_NBYTES))["attributes"]
    except (OSError, ValueError, LookupError, TypeError):
        return False


class Format(NamedTuple):
    """All that gsio knows of a format: whatever differs between formats is asked here, and no name is compared.

    Attributes
    ----------
    name
        The name in messages.
    endings
        The endings of the names of its outputs.
    package
        The package whose `open_writer` writes it. It is imported when a writer is opened.
    is_output
        Whether `--overwrite` may replace the file or folder at a path.
    encoding
        From a codec, to what this format needs to store its chunks; None if the format cannot store them.
    is_folder
        Whether an output is a folder with a file for each chunk or shard; else an output is one file.
    shards, pyramid, float16
        Whether an output can have shards, levels of a pyramid, and values in half precision.
    """

    name: str
    endings: tuple[str, ...]
    package: str
    is_output: Replaces
    encoding: Callable[[Codec], object]
    is_folder: bool = False
    shards: bool = False
    pyramid: bool = False
    float16: bool = False

    @property
    def codecs(self) -> list[Codec]:
        """The codecs whose chunks this format can store; the first is its default."""
        return [codec for codec in CODECS.values() if self.encoding(codec) is not None]


HDF5 = Format("HDF5", (".h5", ".hdf5"), "gsio.writer.hdf5", is_file, lambda codec: codec.hdf5)
ZARR = Format(
    "Zarr", (".zarr",), "gsio.writer.zarr", is_zarr, lambda codec: codec.zarr,
    is_folder=True, shards=True, pyramid=True, float16=True,
)  # fmt: skip
FORMATS = (HDF5, ZARR)


def format_of(output: Path, option: str = "--output") -> Format:
    """Return the format that the ending of `output` names; raise UsageError, which begins with `option`, if none."""
    for form in FORMATS:
        if output.suffix in form.endings:
            return form
    endings = one_of([ending for form in FORMATS for ending in form.endings])
    raise UsageError(f"{option}: expected a name that ends in {endings}, got '{output}'")


def open_writer(target: Target) -> Writer:
    """Create an output without frames, or open one to extend it, and return its writer.

    A new output is laid out under a temporary name and renamed into place, so that an output that it replaces stays
    whole until then. Raises OSError where storage fails, and UsageError where the format cannot hold such frames.
    """
    writer: Writer = import_module(format_of(target.path).package).open_writer(target)
    return writer
