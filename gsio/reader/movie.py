"""Frames of a stack as a movie: threads read and draw ahead, and the frames are encoded in their order."""

import time
from bisect import bisect_left
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from gsio.draw.movie import LONGEST, form_of, write_movie
from gsio.draw.picture import PAPER, Canvas, palette
from gsio.errors import DataError, StorageError, UsageError, reason_of
from gsio.files import is_file, new_file, require_new
from gsio.log import configure
from gsio.reader.frames import decoding_threads
from gsio.reader.pictures import Drawing, drawing
from gsio.reader.selection import Frame, Selection
from gsio.reader.stack import Stack
from gsio.reader.verify import LOOK_SECONDS, LOOKS

MOST_NBYTES = 128 << 20  # memory of the threads that decode; what waits for the encoder, and the encoder, take more

log = structlog.get_logger()


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
    instead = "choose another name, or replace it with --overwrite"
    require_new("--output", path, apart_from=[stack.path], replaces=replaces, instead=instead)
    most = _parse_size(size) if size else (form.widest, form.widest)
    if every < 1:
        raise UsageError(f"--every: expected 1 or more, got {every}")
    drawn = drawing(stack, **options)
    drawn = replace(drawn, selection=replace(drawn.selection, frames=drawn.selection.frames[::every]))
    drawn = _fitting(drawn, *most, larger=bool(size))
    lost: dict[int, str] = {}
    try:
        with new_file("--output", path, replaces=replaces) as temporary:
            # The threads have ended when the stack is closed, whatever happens.
            with progress(len(drawn.selection.frames)) as advance, closing(_canvases(drawn, lost, advance)) as canvases:
                written = write_movie(temporary, canvases, palette(drawn.cmap), form, fps)
            _warn_of(lost)
            if not written:
                raise DataError(f"{stack.path}: none of {len(lost)} frames can be read; nothing was written")
    except MemoryError:
        raise DataError(f"{stack.path}: expected pictures that fit into memory, found larger ones") from None
    except OSError as error:
        raise StorageError(f"storage failed: {reason_of(error)}; make space or choose another place") from error
    if lost:
        whole = len(lost) + written
        raise DataError(f"{stack.path}: {len(lost)} of {whole} frames cannot be read; '{path}' has the others")
    return written


def _warn_of(lost: dict[int, str]) -> None:
    """Name the frames that are left out, on stderr."""
    if not structlog.is_configured():  # called from a program that has said nothing about logging
        configure("text")
    for number, why in lost.items():
        log.warning(f"frame {number} is left out: {why}")


def _canvases(drawn: Drawing, lost: dict[int, str], advance: Callable[[int], object]) -> Generator[Canvas]:
    """Yield the pictures, all of one shape; put the frames that cannot be read into `lost`, with the reason."""
    selection, shape = drawn.selection, drawn.shape

    def read(numbers: range) -> list[Frame] | str:
        try:
            return _read(selection, numbers)
        except DataError as error:
            return str(error)

    def draw(numbered: tuple[int, Frame]) -> Canvas:
        return _fitted(drawn.canvas(*numbered), shape)

    def frames(each: Any) -> Iterator[tuple[int, Frame]]:
        for numbers, found in zip(selection.chunks, each(read, selection.chunks), strict=True):
            if isinstance(found, str):
                lost.update(dict.fromkeys(numbers, found))
                advance(len(numbers))
            else:
                yield from zip(numbers, found, strict=True)

    with decoding_threads([selection.stack.fields[name] for name in selection.fields], MOST_NBYTES) as each:
        for canvas in each(draw, frames(each)):
            yield canvas
            advance(1)


def _read(selection: Selection, numbers: range) -> list[Frame]:
    """Return the frames of a chunk; look again where a run may be in the middle of a flush."""
    for look in range(1, LOOKS if selection.stack.attributes["status"] == "running" else 0):
        with suppress(DataError):
            return selection.read_chunk(numbers)
        time.sleep(LOOK_SECONDS * look)
    return selection.read_chunk(numbers)


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
