"""Frames of a stack as a movie: threads read and draw ahead, and the frames are encoded in their order."""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gsio.draw.movie import LONGEST, form_of, write_movie
from gsio.draw.picture import PAPER, Canvas, palette
from gsio.errors import DataError, UsageError, storage_errors
from gsio.files import OR_OVERWRITE, is_file, new_file, require_new
from gsio.reader.frames import decoding_threads
from gsio.reader.pictures import Drawing, drawing, warn_of
from gsio.reader.selection import Frame, Selection
from gsio.reader.stack import Stack

MOST_NBYTES = 128 << 20  # memory of the threads that decode; what waits for the encoder, and the encoder, take more


def movie(
    stack: Stack,
    path: Path,
    *,
    fps: float,
    every: int,
    size: str,
    crf: int | None,
    lossless: bool,
    overwrite: bool,
    progress: Callable[[int], AbstractContextManager[Callable[[int], object]]],
    **options: Any,
) -> int:
    """Do what `Stack.movie` does; `options` are those of `gsio.reader.pictures.drawing`.

    `progress` gets the number of frames, and gives the function that is told of each that is done.
    """
    replaces = is_file if overwrite else None
    form = form_of(path, fps, crf, lossless=lossless)
    require_new("--output", path, apart_from=[stack.path], replaces=replaces, instead=OR_OVERWRITE)
    most = _parse_size(size) if size else (form.widest, form.widest)
    if every < 1:
        raise UsageError(f"--every: expected 1 or more, got {every}")
    drawn = drawing(stack, **options)
    drawn = replace(drawn, selection=replace(drawn.selection, frames=drawn.selection.frames[::every]))
    drawn = _fitting(drawn, *most, larger=bool(size))
    lost: dict[int, str] = {}
    with storage_errors(stack.path, "pictures"), new_file("--output", path, replaces=replaces) as temporary:
        # The threads have ended when the stack is closed, whatever happens.
        with progress(len(drawn.selection.frames)) as advance, _threads(drawn.selection) as each:
            canvases = _canvases(drawn, lost, advance, each)
            written = write_movie(temporary, canvases, palette(drawn.cmap), form, fps, each)
        warn_of(lost)
        if not written:
            raise DataError(f"{stack.path}: none of {len(lost)} frames can be read; nothing was written")
    if lost:
        whole = len(lost) + written
        raise DataError(f"{stack.path}: {len(lost)} of {whole} frames cannot be read; '{path}' has the others")
    return written


def _threads(selection: Selection) -> AbstractContextManager[Any]:
    return decoding_threads(selection.apart, MOST_NBYTES)


def _canvases(drawn: Drawing, lost: dict[int, str], advance: Callable[[int], object], each: Any) -> Iterator[Canvas]:
    """Yield the pictures, all of one shape; put the frames that cannot be read into `lost`, with the reason."""
    selection, shape = drawn.selection, drawn.shape

    def read(numbers: range) -> list[Frame] | str:
        try:
            return selection.read_chunk(numbers)
        except DataError as error:
            return str(error)

    def draw(numbered: tuple[int, Frame]) -> Canvas:
        return _fitted(drawn.canvas(*numbered), shape)

    def frames() -> Iterator[tuple[int, Frame]]:
        for numbers, found in zip(selection.chunks, each(read, selection.chunks), strict=True):
            if isinstance(found, str):
                lost.update(dict.fromkeys(numbers, found))
                advance(len(numbers))
            else:
                yield from zip(numbers, found, strict=True)

    for canvas in each(draw, frames()):
        yield canvas
        advance(1)


def _fitting(drawn: Drawing, width: int, height: int, *, larger: bool) -> Drawing:
    """Return a drawing with the largest scale at which a picture is not wider or higher than this.

    A scale above 1, which `larger` allows, is a whole number. What is written has a size of its own, so that a few
    scales are tried. Raises UsageError if none fits.
    """

    def room(scale: float) -> float:
        rows, cols = replace(drawn, scale=scale).shape
        return min(height / rows, width / cols)

    scale = 1.0
    for _ in range(8):
        if (factor := room(scale)) >= 1:
            break
        scale *= factor
    else:
        raise UsageError(
            f"--size: expected room for what is written beside the pictures, got {width}x{height}; choose a larger size"
        )
    if larger and scale == 1:
        rows, cols = drawn.selection.shape[-2:]
        wholes = range(2, min(height // rows, width // cols) + 1)
        scale += bisect_left(wholes, True, key=lambda whole: room(whole) < 1)
    fitting = replace(drawn, scale=scale)
    return replace(fitting, least_width=fitting.shape[1])


def _fitted(canvas: Canvas, shape: tuple[int, int]) -> Canvas:
    """Return a canvas in the shape that all have; a colour bar of other limits can make one wider."""
    if canvas.shape == shape:
        return canvas
    fitted = np.full(shape, PAPER, np.uint8)
    rows, cols = map(min, shape, canvas.shape)
    fitted[:rows, :cols] = canvas[:rows, :cols]
    return fitted


def _parse_size(text: str) -> tuple[int, int]:
    """Return the width and the height that `--size` names."""
    width, _, height = text.partition("x")
    if width.isdecimal() and height.isdecimal() and all(2 <= int(side) <= LONGEST for side in (width, height)):
        return int(width), int(height)
    raise UsageError(f"--size: expected WxH, two numbers from 2 to {LONGEST}, got '{text}'")
