"""The metadata of a file, whatever its format: coordinates, CF-1.12 attributes, series along time."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsio._version import __version__
from gsio.config import Config
from gsio.config.units import shortened
from gsio.errors import UsageError
from gsio.frames.block import Block
from gsio.frames.content import Axis, Content, Quantity
from gsio.frames.layout import STATISTICS, BlockLayout

Attributes = dict[str, Any]

CF_AXES = {"time": "T", "z": "Z", "y": "Y", "x": "X"}
CELL_METHODS = {"min": "minimum", "max": "maximum", "mean": "mean"}
QUANTIZATION = "quantization_info"
DAMAGED = "damaged_frames"  # attribute of an output that 'gsio repair' made: frames whose values are missing
OF_ARRAYS = ("ome", "NX_class", "signal", "axes", "auxiliary_signals")  # attributes of a root that name its arrays
OF_SESSION = ("config", "content", "device", "backend")  # attributes of a root that the last session sets
OF_OUTPUT = {  # attributes of a root that gsio sets
    "Conventions", "source", "history", "output_id", "argv", "versions", "host", "platform", "started", "ended",
    "status", "gsio_version", "gsio_commit", "selection", DAMAGED, *OF_ARRAYS, *OF_SESSION,
}  # fmt: skip
MOST_VALUES, MOST_NBYTES = 1 << 12, 1 << 20  # of an attribute of the caller; as an array in memory
SERIES_CHUNK = 1024  # frames in a chunk of an array along time


def attributes_of_caller(given: Any) -> Attributes:
    """Return the attributes that a caller gives a file as a whole: texts, numbers, and lists of either.

    Truth values become 0 and 1. Raises UsageError for an attribute of gsio, and for any that not all formats can hold.
    """
    if not isinstance(given, Mapping):
        raise UsageError(f"attrs: expected values by name, got {shortened(given)}")
    found = {}
    for name, value in given.items():
        if name in OF_OUTPUT:
            raise UsageError(f"attrs: '{name}' is an attribute that gsio sets; choose another name")
        try:
            array = np.asarray(value)
            texts = [value] if array.ndim == 0 else list(value)
        except (TypeError, ValueError):  # of lists that differ in length
            array, texts = np.empty(0), []
        kind, fits = array.dtype.kind, array.ndim <= 1 and 0 < array.size <= MOST_VALUES and array.nbytes <= MOST_NBYTES
        plain = (
            kind in "biu" or (kind == "f" and np.isfinite(array).all()) or (kind == "U" and all(map(_is_text, texts)))
        )
        if not (_is_text(name) and name and fits and plain):
            raise UsageError(f"attrs: expected a text, a number, or a list of either, got {name}={shortened(value)}")
        found[name] = array.astype({"b": int, "f": float}.get(kind, array.dtype)).tolist()
    return found


def _is_text(value: Any) -> bool:
    """Return whether a value is a text that a file can hold."""
    return isinstance(value, str) and "\0" not in value and value.encode(errors="ignore").decode() == value


def coordinate_attributes(name: str, of: Quantity | Axis) -> Attributes:
    """Return the CF attributes of a coordinate: time, the steps, or an axis of a frame."""
    axis = {"axis": CF_AXES[name]} if name in CF_AXES else {}
    return {"long_name": of.long_name, "units": of.units, **axis}


def field_attributes(name: str, content: Content, layout: BlockLayout) -> Attributes:
    """Return the CF attributes of a saved field."""
    quantity = content.fields[name]
    attributes: Attributes = {"long_name": quantity.long_name, "units": quantity.units, "coordinates": "step"}
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


def frame_series(layout: BlockLayout, blocks: Sequence[Block]) -> dict[str, NDArray[Any]]:
    """Return the series of the new frames of consecutive `blocks`, [frame] each, by the path of the array."""
    new = [(block, slice(block.kept, block.count)) for block in blocks]
    series = {
        "time": np.concatenate([np.empty(0), *(block.times[here] for block, here in new)]),
        "step": np.concatenate([np.empty(0, np.int64), *(block.steps[here] for block, here in new)]),
    }
    for field, name in enumerate(layout.frame.fields):
        for statistic, word in enumerate(STATISTICS[: 4 if layout.frame.lossy else 3]):
            values = [block.statistics[here, field, statistic] for block, here in new]
            series[f"stats/{name}_{word}"] = np.concatenate([np.empty(0), *values])
    checksums = [block.checksums[here] for block, here in new]
    series["integrity/crc32c"] = np.concatenate([np.empty(0, np.uint32), *checksums])
    return series


def series_attributes(path: str, content: Content, layout: BlockLayout) -> Attributes:
    """Return the attributes of one array of `frame_series`."""
    if path in ("time", "step"):
        return coordinate_attributes(path, content.time if path == "time" else content.step)
    if path == "integrity/crc32c":
        planes = "as byte planes (all first bytes, then all second bytes, …)" if layout.frame.shuffle else "in C order"
        return {
            "long_name": "CRC-32C (Castagnoli) of each frame before compression",
            "bytes": f"little-endian {layout.frame.dtype.name}, {planes}; {' then '.join(layout.frame.fields)}",
        }
    name, _, statistic = path.removeprefix("stats/").rpartition("_")
    field = content.fields[name]
    if statistic == "error":
        return {"long_name": f"largest absolute error of the {field.long_name} as stored", "units": field.units}
    return {
        "long_name": f"{statistic} of the {field.long_name}, as computed",
        "units": field.units,
        "cell_methods": f"area: {CELL_METHODS[statistic]}",
    }


def nexus_attributes(content: Content) -> Attributes:
    """Return the attributes by which readers of NeXus (H5Web, silx) plot the fields over titled axes.

    The root group is the NXdata. The NeXus manual proposes a group of links, but netCDF-C takes each link for one more
    array: nccopy and ncks would copy the fields twice.
    """
    *others, shown = content.fields
    axes = ["time", *(axis.name for axis in content.axes)]
    auxiliary = {"auxiliary_signals": others} if others else {}
    return {"NX_class": "NXdata", "signal": shown, "axes": axes, **auxiliary}
