"""Writers: they put encoded frames into files, and know nothing of GPUs."""

from gsio.writer.formats import FORMATS, Format, format_of, is_zarr, open_writer

__all__ = ["FORMATS", "Format", "format_of", "is_zarr", "open_writer"]
