"""The metadata of OME-Zarr 0.5, https://ngff.openmicroscopy.org/0.5."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsio.draw.limits import contrast
from gsio.frames.content import Content
from gsio.frames.layout import BlockLayout
from gsio.frames.metadata import Attributes


def levels_of(content: Content) -> range:
    """Return the numbers of the smaller levels of the fields; level 0 is the field itself."""
    return range(1, content.pyramid + 1)


def level_path(name: str, level: int) -> str:
    """Return the path of a level of a field; all arrays of a group have one size, as xarray wants."""
    return f"pyramid/{level}/{name}" if level else name


def ome_attributes(
    content: Content,
    layout: BlockLayout,
    limits: Mapping[str, tuple[float, float]],
    times: Sequence[float] | NDArray[np.float64],
) -> dict[str, dict[str, Any]]:
    """Return the metadata of OME-Zarr 0.5 by which viewers find the fields; {} for frames of one axis, which it lacks.

    `limits` are the least and the largest value of each field; they save viewers a scan of the file for its contrast.
    `times` are those of the first frames, as far as there are frames.
    """
    *others, rows, cols = content.axes if len(content.axes) > 1 else (None, None)
    if rows is None or cols is None:
        return {}
    axes: list[Attributes] = [{"name": "time", "type": "time"}]
    axes += [{"name": axis.name} | ({"type": "space"} if axis.name == "z" else {}) for axis in others]
    axes += [{"name": axis.name, "type": "space"} for axis in (rows, cols)]
    step = content.interval or (float(times[1] - times[0]) if len(times) > 1 else 1.0)
    start = float(times[0]) if len(times) else step
    places = []
    for level in (0, *levels_of(content)):
        cells = 1 << level
        sizes = [cells if axis.spacing == 1 else cells * axis.spacing for axis in (rows, cols)]
        scale = {"type": "scale", "scale": [step, *(axis.spacing for axis in others), *sizes]}
        # The centre of the first cell.
        first = [axis.first + (cells - 1) / 2 * axis.spacing for axis in (rows, cols)]
        places.append([
            scale, {"type": "translation", "translation": [start, *(axis.first for axis in others), *first]}
        ])  # fmt: skip
    images = [
        {
            "name": name,
            "axes": axes,
            "datasets": [
                {"path": level_path(name, level), "coordinateTransformations": place}
                for level, place in enumerate(places)
            ],
        }
        for name in reversed(layout.frame.fields)  # v first: viewers open the first
    ]
    ome: Attributes = {"version": "0.5", "multiscales": images}
    if limits:
        shown = layout.frame.fields[-1]
        low, high = (limit * (layout.frame.stored_one or 1) for limit in limits[shown])  # viewers see stored integers
        ome["omero"] = {"channels": [ome_channel(shown, low, high)]}
    return {"ome": ome}


def ome_channel(name: str, low: float, high: float, color: str = "FFFFFF") -> Attributes:
    """Return a channel of OME-Zarr 0.5 whose contrast reaches from `low` to `high`."""
    low, high = contrast(low, high)
    window = {"min": low, "max": high, "start": low, "end": high}
    return {"label": name, "color": color, "active": True, "window": window}
