"""The Zarr format: `open_writer` gives the writer of one output."""

from gsio.writer.protocol import FrameWriter, Target
from gsio.writer.zarr.writer import ZarrWriter


def open_writer(target: Target) -> FrameWriter:
    """Return the writer of `target`; raises as `gsio.writer.open_writer`."""
    return ZarrWriter(target)
