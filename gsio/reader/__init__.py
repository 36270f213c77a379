"""One view of what gsio wrote, HDF5 or Zarr, for every command that reads."""

from gsio.reader.frames import Frames
from gsio.reader.stack import Stack, open_stack

__all__ = ["Frames", "Stack", "open_stack"]
