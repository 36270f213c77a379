"""The Zarr format: `open_writer` gives the writer of one output."""

from gsio.writer.protocol import Target, Writer
from gsio.writer.zarr.writer import ZarrWriter


def open_writer(target: Target) -> Writer:
    """Return the writer of `target`; raises as `gsio.writer.open_writer`."""
    return ZarrWriter(target)
