"""What a file says of itself, whatever its format: coordinates, CF-1.12 attributes, provenance."""

import datetime
import platform
import secrets
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import gsio
from gsio.config import Config
from gsio.staging import STATISTICS, Block, FrameLayout

Attributes = dict[str, Any]

LONG_NAMES = {"u": "concentration of U", "v": "concentration of V"}
COORDINATES: dict[str, Attributes] = {
    "time": {"long_name": "model time", "units": "1", "axis": "T"},
    "step": {"long_name": "time steps since the initial state", "units": "1"},
    "member": {"long_name": "member of the batch", "units": "1"},
    "y": {"long_name": "row, in grid spacings", "units": "1", "axis": "Y"},
    "x": {"long_name": "column, in grid spacings", "units": "1", "axis": "X"},
}
AXES = ("member", "y", "x")  # of a frame; only a batch has members
CELL_METHODS = {"min": "minimum", "max": "maximum", "mean": "mean"}
QUANTIZATION = "quantization_info"
DAMAGED = "damaged_frames"  # attribute of an output that 'gsio repair' made: frames whose values are missing
SERIES_CHUNK = 1024  # frames in a chunk of an array along time
PACKAGES = ("numpy", "numba", "h5py", "zarr", "isal", "cupy-cuda12x", "cupy-cuda13x")


def now() -> str:
    """Return the present UTC time in ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def field_attributes(name: str, layout: FrameLayout) -> Attributes:
    """Return the CF attributes of a saved field."""
    attributes: Attributes = {"long_name": LONG_NAMES[name], "units": "1", "coordinates": "step"}
    if layout.levels:  # packed data, CF 8.1
        attributes |= {"scale_factor": 1 / layout.levels, "add_offset": 0.0}
    if layout.keep_bits:
        attributes |= {"quantization": QUANTIZATION, "quantization_nsb": layout.keep_bits}
    if layout.lossy:
        attributes["comment"] = f"stored with a loss: stats/{name}_error is the largest error of each frame"
    return attributes


def quantization_attributes() -> Attributes:
    """Return how bits of the mantissa were rounded, CF-1.12, section 8.4: those of the variable `QUANTIZATION`."""
    return {"algorithm": "bitround", "implementation": f"gsio version {gsio.__version__}"}


def frame_steps(config: Config, first: int, count: int) -> NDArray[np.int64]:
    """Return the number of time steps behind each of `count` frames; frame 0 is the state after `steps_per_frame`."""
    return np.arange(first + 1, first + count + 1, dtype=np.int64) * config.run.steps_per_frame


def frame_series(config: Config, layout: FrameLayout, blocks: Sequence[Block]) -> dict[str, NDArray[Any]]:
    """Return what is recorded of each new frame of consecutive `blocks`, by the path of its array; each is [frame]."""
    count = sum(block.count - block.kept for block in blocks)
    steps = frame_steps(config, blocks[0].first + blocks[0].kept if blocks else 0, count)
    series: dict[str, NDArray[Any]] = {"time": steps * config.model.dt, "step": steps}
    for field, name in enumerate(layout.fields):
        for statistic, word in enumerate(STATISTICS[: 4 if layout.lossy else 3]):
            values = [block.statistics[block.kept : block.count, field, statistic] for block in blocks]
            series[f"stats/{name}_{word}"] = np.concatenate([np.empty(0), *values])
    checksums = [block.checksums[block.kept : block.count] for block in blocks]
    series["integrity/crc32c"] = np.concatenate([np.empty(0, np.uint32), *checksums])
    return series


def series_attributes(path: str, layout: FrameLayout) -> Attributes:
    """Return the attributes of one array of `frame_series`."""
    if path in COORDINATES:
        return COORDINATES[path]
    if path == "integrity/crc32c":
        planes = "as byte planes (all first bytes, then all second bytes, …)" if layout.shuffle else "in C order"
        return {
            "long_name": "CRC-32C (Castagnoli) of each frame before compression",
            "bytes": f"little-endian {layout.dtype.name}, {planes}; {' then '.join(layout.fields)}",
        }
    name, _, statistic = path.removeprefix("stats/").partition("_")
    if statistic == "error":
        return {"long_name": f"largest absolute error of the {LONG_NAMES[name]} as stored", "units": "1"}
    return {
        "long_name": f"{statistic} of the {LONG_NAMES[name]}, as computed",
        "units": "1",
        "cell_methods": f"area: {CELL_METHODS[statistic]}",
    }


def levels_of(config: Config) -> range:
    """Return the numbers of the smaller levels of the fields; level 0 is the field itself."""
    return range(1, config.output.pyramid + 1)


def level_path(name: str, level: int) -> str:
    """Return the path of the array of a level of a field."""
    return f"pyramid/{name}/{level}" if level else name


def ome_attributes(
    config: Config, layout: FrameLayout, limits: Mapping[str, tuple[float, float]]
) -> dict[str, dict[str, Any]]:
    """Return the metadata of OME-Zarr 0.5, https://ngff.openmicroscopy.org/0.5, by which viewers find the fields.

    `limits` are the least and the largest value of each field: with them no viewer scans the file for its contrast.
    """
    axes: list[Attributes] = [{"name": "time", "type": "time"}]
    axes += [{"name": name} | ({"type": "space"} if name in "yx" else {}) for name in AXES[-len(layout.shape) :]]
    step = config.run.steps_per_frame * config.model.dt
    members = [1.0] * len(layout.shape[:-2])
    places = []
    for level in (0, *levels_of(config)):
        cells = 1 << level
        scale = {"type": "scale", "scale": [step, *members, cells, cells]}
        middle = [(cells - 1) / 2] * 2  # of the first cell
        places.append([scale, {"type": "translation", "translation": [step, *[0.0] * len(members), *middle]}])
    images = [
        {
            "name": name,
            "axes": axes,
            "datasets": [
                {"path": level_path(name, level), "coordinateTransformations": place}
                for level, place in enumerate(places)
            ],
        }
        for name in reversed(layout.fields)  # v first: viewers open the first
    ]
    ome: Attributes = {"version": "0.5", "multiscales": images}
    if limits:
        low, high = (limit * (layout.levels or 1) for limit in limits[layout.fields[-1]])  # of what is stored
        window = {"min": low, "max": high, "start": low, "end": high}
        ome["omero"] = {"channels": [{"label": layout.fields[-1], "color": "FFFFFF", "active": True, "window": window}]}
    return {"ome": ome}


def root_attributes(config: Config, backend: str, device: str) -> Attributes:
    """Return the attributes of the file as a whole: conventions and provenance."""
    return {
        "Conventions": "CF-1.12",
        "title": "Gray-Scott reaction-diffusion simulation",
        "source": f"gsio {gsio.__version__}",
        "history": f"{now()} {' '.join(sys.argv)}",
        "output_id": secrets.token_hex(16),
        "gsio_version": gsio.__version__,
        "gsio_commit": _commit(),
        "config": config.to_toml(),
        "argv": " ".join(sys.argv),
        "versions": ", ".join([f"python {platform.python_version()}", *_versions()]),
        "backend": backend,
        "device": device,
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "started": now(),
    }


def _versions() -> list[str]:
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return found


def _commit() -> str:
    """Return the git commit of the source, or "" where gsio does not run from its own checkout."""
    here = Path(__file__)
    git = ["git", "-C", str(here.parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", here.name], check=True, capture_output=True)
        return subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
