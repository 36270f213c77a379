"""The metadata of OME-Zarr 0.5, https://ngff.openmicroscopy.org/0.5."""

from collections.abc import Mapping
from typing import Any

from gsio.config import Config
from gsio.draw.limits import contrast
from gsio.frames.layout import BlockLayout
from gsio.frames.metadata import AXES, Attributes


def levels_of(config: Config) -> range:
    """Return the numbers of the smaller levels of the fields; level 0 is the field itself."""
    return range(1, config.output.pyramid + 1)


def level_path(name: str, level: int) -> str:
    """Return the path of a level of a field; all arrays of a group have one size, as xarray wants."""
    return f"pyramid/{level}/{name}" if level else name


def ome_attributes(
    config: Config, layout: BlockLayout, limits: Mapping[str, tuple[float, float]]
) -> dict[str, dict[str, Any]]:
    """Return the metadata of OME-Zarr 0.5 by which viewers find the fields.

    `limits` are the least and the largest value of each field; they save viewers a scan of the file for its contrast.
    """
    axes: list[Attributes] = [{"name": "time", "type": "time"}]
    axes += [{"name": name} | ({"type": "space"} if name in "yx" else {}) for name in AXES[-len(layout.frame.shape) :]]
    step = config.run.steps_per_frame * config.model.dt
    members = [1.0] * len(layout.frame.shape[:-2])
    places = []
    for level in (0, *levels_of(config)):
        cells = 1 << level
        scale = {"type": "scale", "scale": [step, *members, cells, cells]}
        middle = [(cells - 1) / 2] * 2  # the centre of the first cell, in cells of the field
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
