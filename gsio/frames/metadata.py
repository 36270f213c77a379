"""The metadata of a file, whatever its format: coordinates, CF-1.12 attributes, series along time."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsio._version import __version__
from gsio.config import Config
from gsio.frames.block import Block
from gsio.frames.layout import STATISTICS, BlockLayout

Attributes = dict[str, Any]

LONG_NAMES = {"u": "concentration of U", "v": "concentration of V"}
COORDINATES: dict[str, Attributes] = {
    "time": {"long_name": "model time", "units": "1", "axis": "T"},
    "step": {"long_name": "time steps since the initial state", "units": "1"},
    "member": {"long_name": "member of the batch", "units": "1"},
    "y": {"long_name": "row, in grid spacings", "units": "1", "axis": "Y"},
    "x": {"long_name": "column, in grid spacings", "units": "1", "axis": "X"},
}
AXES = ("member", "y", "x")  # dimensions of a frame; only a batch has members
CELL_METHODS = {"min": "minimum", "max": "maximum", "mean": "mean"}
QUANTIZATION = "quantization_info"
DAMAGED = "damaged_frames"  # attribute of an output that 'gsio repair' made: frames whose values are missing
OF_ARRAYS = ("ome", "NX_class", "signal", "axes", "auxiliary_signals")  # attributes of a root that name its arrays
SERIES_CHUNK = 1024  # frames in a chunk of an array along time


def field_attributes(name: str, layout: BlockLayout) -> Attributes:
    """Return the CF attributes of a saved field."""
    attributes: Attributes = {"long_name": LONG_NAMES[name], "units": "1", "coordinates": "step"}
    if layout.frame.stored_one:  # packed data, CF 8.1
        attributes |= {"scale_factor": float(layout.frame.scale), "add_offset": 0.0}
    if layout.frame.keep_bits:
        attributes |= {"quantization": QUANTIZATION, "quantization_nsb": layout.frame.keep_bits}
    if layout.frame.lossy:
        attributes["comment"] = f"stored with a loss: stats/{name}_error is the largest error of each frame"
    return attributes


def quantization_attributes() -> Attributes:
    """Return the attributes of the variable `QUANTIZATION`: how the mantissa was rounded (CF-1.12, section 8.4)."""
    return {"algorithm": "bitround", "implementation": f"gsio version {__version__}"}


def damaged_frames(attributes: Mapping[str, Any]) -> list[int]:
    """Return the frames of an output whose values 'gsio repair' found missing; HDF5 has a single one as a number."""
    found = attributes.get(DAMAGED, [])
    return found if isinstance(found, list) else [found]


def frame_steps(config: Config, first: int, count: int) -> NDArray[np.int64]:
    """Return the number of time steps behind each of `count` frames; frame 0 is the state after `steps_per_frame`."""
    return np.arange(first + 1, first + count + 1, dtype=np.int64) * config.run.steps_per_frame


def frame_series(config: Config, layout: BlockLayout, blocks: Sequence[Block]) -> dict[str, NDArray[Any]]:
    """Return the series of the new frames of consecutive `blocks`, [frame] each, by the path of the array."""
    count = sum(block.count - block.kept for block in blocks)
    steps = frame_steps(config, blocks[0].first + blocks[0].kept if blocks else 0, count)
    series: dict[str, NDArray[Any]] = {"time": steps * config.model.dt, "step": steps}
    for field, name in enumerate(layout.frame.fields):
        for statistic, word in enumerate(STATISTICS[: 4 if layout.frame.lossy else 3]):
            values = [block.statistics[block.kept : block.count, field, statistic] for block in blocks]
            series[f"stats/{name}_{word}"] = np.concatenate([np.empty(0), *values])
    checksums = [block.checksums[block.kept : block.count] for block in blocks]
    series["integrity/crc32c"] = np.concatenate([np.empty(0, np.uint32), *checksums])
    return series


def series_attributes(path: str, layout: BlockLayout) -> Attributes:
    """Return the attributes of one array of `frame_series`."""
    if path in COORDINATES:
        return COORDINATES[path]
    if path == "integrity/crc32c":
        planes = "as byte planes (all first bytes, then all second bytes, …)" if layout.frame.shuffle else "in C order"
        return {
            "long_name": "CRC-32C (Castagnoli) of each frame before compression",
            "bytes": f"little-endian {layout.frame.dtype.name}, {planes}; {' then '.join(layout.frame.fields)}",
        }
    name, _, statistic = path.removeprefix("stats/").partition("_")
    if statistic == "error":
        return {"long_name": f"largest absolute error of the {LONG_NAMES[name]} as stored", "units": "1"}
    return {
        "long_name": f"{statistic} of the {LONG_NAMES[name]}, as computed",
        "units": "1",
        "cell_methods": f"area: {CELL_METHODS[statistic]}",
    }


def nexus_attributes(layout: BlockLayout) -> Attributes:
    """Return the attributes by which readers of NeXus (H5Web, silx) plot the fields over titled axes.

    The root group is the NXdata. The NeXus manual proposes a group of links, but netCDF-C takes each link for one more
    array: nccopy and ncks would copy the fields twice.
    """
    axes = ["time", *AXES[-len(layout.frame.shape) :]]
    others = {"auxiliary_signals": list(layout.frame.fields[:-1])} if len(layout.frame.fields) > 1 else {}
    return {"NX_class": "NXdata", "signal": layout.frame.fields[-1], "axes": axes, **others}
