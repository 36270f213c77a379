"""The contact sheet of a sweep: the last frame of each member, laid out along the axes of the sweep."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsio.draw.colours import DEFAULT
from gsio.draw.limits import limits_of, parse_limits
from gsio.draw.picture import PAPER, Bar, Canvas, caption, check_scale, index, matrix, palette, png, resize, sheet
from gsio.errors import DataError, UsageError
from gsio.files import is_file, new_file, require_new
from gsio.reader.stack import open_hdf5
from gsio.sweep.description import MEMBER, coordinate
from gsio.sweep.plan import Plan, read_plan, short
from gsio.sweep.result import read_states
from gsio.writer import format_of

SIDE = 2048  # pixels, about, of a sheet without a scale each way


def write_sheet(
    path: Path,
    output: Path,
    *,
    field: str = "",
    limits: str = "auto",
    cmap: str = DEFAULT,
    scale: float | None = None,
    overwrite: bool = False,
) -> int:
    """Write the sheet of the result at `path` to the PNG `output`, and return how many members it shows.

    The last axis lies across, and the one before rises upwards, as in a plot; a single axis fills lines of tiles.
    Raises UsageError for an option that cannot be used, and DataError if `path` is no result of a sweep.
    """
    plan = read_plan(path)
    replaces = is_file if overwrite else None
    require_new("--output", output, endings=(".png",), apart_from=[path], replaces=replaces)
    names = plan.layout.frame.fields
    if field and field not in names:
        raise UsageError(f"--field: expected {' or '.join(names)}, got '{field}'")
    palette(cmap)
    chosen, field = parse_limits(limits), field or names[-1]
    frames = read_states(path)["frames"]
    rows, cols = plan.layout.frame.shape
    across = plan.shape[-1] if len(plan.shape) > 1 else max(1, round(plan.count**0.5))
    down = -(-plan.count // across)
    if scale is None:
        fitting = SIDE / max(down * rows, across * cols)
        scale = fitting if fitting < 1 else float(int(min(fitting, 4)))
    check_scale(scale, (down * rows, across * cols))
    with _opened(path, field) as array:
        planes = _last_frames(plan, array, frames)
    if chosen == "auto":
        chosen = limits_of(np.array([limits_of(plane) for plane in planes if plane is not None] or [(0.0, 1.0)]))
    blank = np.full((rows, cols), PAPER + 2, np.uint8)
    tiles = [
        resize(blank if plane is None else index(plane, *(limits_of(plane) if chosen == "frame" else chosen)), scale)
        for plane in planes
    ]
    bars = [] if chosen == "frame" else [Bar(field, *chosen)]
    with new_file("--output", output, replaces=replaces) as file:
        file.write_bytes(png(_laid_out(plan, tiles, across, bars), cmap))
    return sum(plane is not None for plane in planes)


def _laid_out(plan: Plan, tiles: list[Canvas], across: int, bars: list[Bar]) -> Canvas:
    """Return the tiles along the axes, with labels."""
    labels = [[_label(plan, axis, place) for place in range(size)] for axis, size in enumerate(plan.shape)]
    if len(labels) == 1:
        name = plan.axes[0].name
        of_tiles = [(f"{name} {text}", text) for text in labels[0]]
        return caption(sheet(tiles, of_tiles), "", bars)
    left = labels[0]
    for more in labels[1:-1]:
        left = [f"{first}, {second}" for first in left for second in more]
    rows = [tiles[first : first + across] for first in range(0, len(tiles), across)]
    names = [axis.name for axis in plan.axes]
    text = f"{', '.join(names[:-1])} upwards, {names[-1]} to the right"
    return caption(matrix(rows[::-1], left[::-1], labels[-1]), text, bars)


def _label(plan: Plan, axis: int, place: int) -> str:
    """Return what tells a place along an axis: its value, or, where several keys vary together, all of them."""
    keys = plan.axes[axis].keys
    if plan.axes[axis].name != MEMBER:
        return short(next(iter(keys.values()))[place], 4)
    return ", ".join(f"{coordinate(key, plan.keys)} {short(values[place], 4)}" for key, values in keys.items())


def _last_frames(plan: Plan, array: Any, frames: NDArray[np.int32]) -> list[NDArray[Any] | None]:
    """Return the last frame of each member, as values, or None for a member without a frame."""
    frame = plan.layout.frame
    factor = frame.scale if frame.stored_one else 1
    return [
        np.asarray(array[(*plan.place(member), int(count) - 1)]) * factor if count else None
        for member, count in enumerate(frames)
    ]


@contextmanager
def _opened(path: Path, field: str) -> Iterator[Any]:
    """Give the stack of a field of a result."""
    try:
        if format_of(path).is_folder:
            import zarr

            yield zarr.open_group(path, mode="r")[field]
        else:
            with open_hdf5(path) as file:
                yield file[field]
    except (OSError, KeyError) as error:
        raise DataError(f"'{path}': cannot read the field {field}: {error}") from None
