"""How the frames of a selection are drawn: which values get which colour, and what is written beside them."""

import base64
import dataclasses
import html
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsio.config import Map, Parameter
from gsio.draw.colours import DEFAULT
from gsio.draw.limits import Limits, limits_of, parse_limits
from gsio.draw.picture import Bar, Canvas, caption, check_scale, image, index, palette, png, resize, sheet
from gsio.errors import DataError
from gsio.inputs import printable
from gsio.log import configure_unless_done, log
from gsio.reader.selection import Frame, Selection, select
from gsio.reader.stack import Stack

WIDEST = np.array([1.23e-40, 2.34e-40])  # values that take as many characters as any from 0 to 1
THUMBNAILS, THUMBNAIL_PIXELS = 8, 120  # pictures in a notebook, and the pixels of their longest side


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A selection, and how its frames are drawn; several fields or members become tiles of one picture.

    Attributes
    ----------
    limits
        The values of the first and the last colour: a pair, "auto" for the range of each field in all frames of the
        selection, or "frame" for the range in each frame.
    scale
        Pixels for each cell along a side: a fraction of 1, or a whole number.
    colorbar, timestamp
        Whether a line below the picture has a colour bar for each field, and the model time.
    least_width
        The least width of a picture with such a line, in pixels: texts of other frames can be wider.
    """

    selection: Selection
    cmap: str = DEFAULT
    limits: Limits = "auto"
    scale: float = 1.0
    colorbar: bool = False
    timestamp: bool = False
    least_width: int = 0

    def image(self, number: int, frame: Frame) -> Any:
        """Return frame `number` of the stack, as the selection reads it, as an image of Pillow, mode P."""
        return image(self.canvas(number, frame), self.cmap)

    def canvas(self, number: int, frame: Frame) -> Canvas:
        """Return frame `number` of the stack, as the selection reads it, as a canvas: see `gsio.draw.picture`."""
        limits = [self._limits_of(place, planes) for place, planes in enumerate(frame)]
        planes = [plane.reshape(-1, *plane.shape[-2:]) for plane in frame]
        tiles = [
            resize(index(plane[member], *pair), self.scale)
            for member in range(len(planes[0]))
            for plane, pair in zip(planes, limits, strict=True)
        ]
        return self._whole(number, tiles, limits)

    @cached_property
    def shape(self) -> tuple[int, int]:
        """The rows and columns of a picture whose time and limits take the most characters."""
        rows, cols = self.selection.shape[-2:]
        blank = resize(np.zeros((rows, cols), np.uint8), self.scale)
        times = self.selection.stack.times
        number = max(self.selection.frames, key=lambda number: len(f"{times[number]:.10g}"))
        limits = [self._limits_of(place, WIDEST) for place in range(len(self.selection.fields))]
        rows, cols = self._whole(number, [blank] * len(self._labels), limits).shape
        return rows, cols

    def _whole(self, number: int, tiles: Sequence[Canvas], limits: Sequence[tuple[float, float]]) -> Canvas:
        """Return the picture of a frame from its tiles, and the limits of each field."""
        selection = self.selection
        bars = [Bar(name, *pair) for name, pair in zip(selection.fields, limits, strict=True)]
        time = f"time = {selection.stack.times[number]:.10g}" if self.timestamp else ""
        return caption(sheet(tiles, self._labels), time, bars if self.colorbar else (), self.least_width)

    def _limits_of(self, place: int, planes: NDArray[Any]) -> tuple[float, float]:
        if self.limits == "frame":
            return limits_of(planes)
        return self._limits[place] if self.limits == "auto" else self.limits

    @cached_property
    def _limits(self) -> list[tuple[float, float]]:
        return [self.selection.limits(name) for name in self.selection.fields]

    @cached_property
    def _labels(self) -> list[tuple[str, str, str]]:
        """The labels of each tile, from the longest to the shortest: its field and member, and the rates of that."""
        selection = self.selection
        lists = {name: rate for name, rate in _rates(selection.stack).items() if isinstance(rate, tuple)}
        labels = []
        for member in selection.members:
            number = f"{member}" if len(selection.members) > 1 else ""
            rates = ", ".join(f"{name} {rate[member]:g}" for name, rate in lists.items())
            for name in selection.fields if len(selection.fields) > 1 else ("",):
                long, short = (f"{name} {word}".strip() for word in (number and f"member {number}", number))
                labels.append((f"{long}: {rates}".removesuffix(": "), f"{short}: {rates}".removesuffix(": "), short))
        return labels


def drawing(
    stack: Stack,
    *,
    frames: str = "",
    crop: str = ":,:",
    fields: str = "",
    members: str = ":",
    limits: str | Limits = "auto",
    cmap: str = DEFAULT,
    scale: float = 1.0,
    colorbar: bool = False,
    timestamp: bool = False,
) -> Drawing:
    """Return how the part of a stack that the texts name is drawn; empty `fields` are the last one.

    Raises UsageError or DataError as `select` does, and UsageError for limits, a colour map or a scale that cannot be
    used.
    """
    selection = select(stack, frames=frames, crop=crop, fields=fields or list(stack.fields)[-1], members=members)
    rows, cols = selection.shape[-2:]
    check_scale(scale, (rows * len(selection.fields) * len(selection.members), cols))
    palette(cmap)
    text = limits if isinstance(limits, str) else ":".join(str(float(limit)) for limit in limits)
    return Drawing(selection, cmap, parse_limits(text), scale, colorbar, timestamp)


def warn_of(lost: Mapping[int, str]) -> None:
    """Name the frames that cannot be read on stderr, those of a chunk together: `lost` has the reason for each."""
    configure_unless_done()
    for why in dict.fromkeys(lost.values()):
        log.warning(f"a picture is left out: {why}")


def picture(stack: Stack, number: int, field: str | None, member: int | None, **options: Any) -> Any:
    """Do what `Stack.picture` does; `options` are those of `drawing`."""
    if not -stack.frames <= number < stack.frames:
        raise IndexError(f"expected a frame below {stack.frames}, got {number}")
    members = ":" if member is None else str(member)
    drawn = drawing(stack, fields=field or "", members=members, **options)
    number %= stack.frames
    return drawn.image(number, drawn.selection.read(number))


def html_of(stack: Stack) -> str:
    """Return a strip of thumbnails with their times, and the facts of a stack, as HTML for a notebook."""
    facts = f"<b>{html.escape(printable(str(stack.path)))}</b>: {html.escape(stack.facts)}{_rates_in_words(stack)}"
    if not stack.frames:
        return f"<div>{facts}</div>"
    longest = max(axis.size for axis in stack.content.volume[1:])
    scale = THUMBNAIL_PIXELS / longest if longest > THUMBNAIL_PIXELS else THUMBNAIL_PIXELS // longest
    drawn = drawing(stack, members="0", scale=scale)
    cells = []
    for number in sorted(set(np.linspace(0, stack.frames - 1, THUMBNAILS).round().astype(int).tolist())):
        times = f"time {stack.times[number]:.10g}"
        try:
            canvas = drawn.canvas(number, drawn.selection.read(number))
            data = base64.b64encode(png(canvas, drawn.cmap)).decode()
            shown = f'<img src="data:image/png;base64,{data}" alt="frame {number}">'
        except DataError:
            shown = "cannot be read"
        label = f'<figcaption style="font-size:85%">frame {number}<br>{times}</figcaption>'
        cells.append(f'<figure style="margin:0">{shown}{label}</figure>')
    return f'<div>{facts}<div style="display:flex;flex-wrap:wrap;gap:6px;margin-top:6px">{"".join(cells)}</div></div>'


def _rates(stack: Stack) -> dict[str, Parameter]:
    """Return the rates of a run by name; an output that no run made has none."""
    return {"feed": stack.config.model.feed, "kill": stack.config.model.kill} if stack.is_of_run else {}


def _rates_in_words(stack: Stack) -> str:
    """Return the rates in words, of a batch from the least to the largest; a rate of a map is left out."""
    words = ""
    for name, rate in _rates(stack).items():
        if not isinstance(rate, Map):
            numbers = np.unique(rate)
            words += f", {name} {numbers[0]:g}" + (f" to {numbers[-1]:g}" if len(numbers) > 1 else "")
    return words
