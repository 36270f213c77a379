"""Export to TIFF: an ImageJ hyperstack, or an OME-TIFF."""

import math
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from gsio.errors import UsageError
from gsio.export.provenance import attributes_of
from gsio.reader.selection import Frame, Selection

CLASSIC_TIFF_BYTES = 2**32
PAGE_ENTRY_BYTES = 512  # the most that a page of a TIFF takes beside its pixels


def write_tiff(path: Path, selection: Selection, frames: Iterator[Frame]) -> None:
    """Write pages in the order TZCYX: fields are channels, members of a batch slices, and a pixel is a grid spacing."""
    try:
        tifffile = import_module("tifffile")
    except ImportError:
        raise UsageError("TARGET: .tif needs the package tifffile; run pip install 'gsio[tiff]' first") from None
    members, rows, cols = (1, *selection.shape)[-3:]
    shape = (len(selection.frames), members, len(selection.fields), rows, cols)
    stacks = ([plane.reshape(shape[1], rows, cols) for plane in frame] for frame in frames)
    pages = (
        np.ascontiguousarray(plane[z], np.float32) for planes in stacks for z in range(members) for plane in planes
    )
    metadata: dict[str, Any] = {"axes": "TZCYX"}
    # A hyperstack of ImageJ cannot be larger than a classic TIFF. Larger stacks become an OME-TIFF in a BigTIFF, which
    # ImageJ opens through Bio-Formats.
    nbytes = math.prod(shape[:3]) * (rows * cols * 4 + PAGE_ENTRY_BYTES)
    large = nbytes > CLASSIC_TIFF_BYTES
    ome = large or path.name.endswith((".ome.tif", ".ome.tiff"))
    if ome:
        sizes = {f"PhysicalSize{axis}{word}": value for axis in "XYZ" for word, value in (("", 1.0), ("Unit", "pixel"))}
        metadata |= {"Channel": {"Name": list(selection.fields)}, "TimeIncrement": selection.interval, **sizes}
    else:
        times = selection.times
        labels = [f"{name}, time {time:g}" for time in times for _ in range(members) for name in selection.fields]
        limits = [limit for name in selection.fields for limit in selection.limits(name)]
        provenance = [f"{name}: {value}" for name, value in attributes_of(selection).items()]
        metadata |= {"finterval": selection.interval, "tunit": "model time", "unit": "pixel", "spacing": 1.0}
        metadata |= {"mode": "composite" if shape[2] > 1 else "grayscale", "Labels": labels, "Ranges": limits}
        metadata |= {"min": limits[-2], "max": limits[-1]}
        metadata["Info"] = "\n".join([f"channels: {', '.join(selection.fields)}", *provenance])
    with tifffile.TiffWriter(path, bigtiff=large, imagej=not ome, ome=ome) as file:
        form: dict[str, Any] = {"photometric": "minisblack", "resolution": (1, 1), "resolutionunit": "NONE"}
        file.write(pages, shape=shape, dtype=np.float32, metadata=metadata, **form)
