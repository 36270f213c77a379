"""Fields as pictures: each pixel is an index of a palette, from the field to the file, and never red, green and blue.

A canvas is such a picture as an array, uint8 [row, col]. The first `STEPS` indices are the colours of a map, and the
rest are greys from paper to ink, in which captions are written.
"""

import struct
import zlib
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from gsio.draw.colours import DEFAULT, table
from gsio.draw.limits import limits_of
from gsio.errors import UsageError

STEPS = 240
PAPER, INK = STEPS, 255
WHITE, BLACK = 255, 24  # paper and ink
STRIP = 1 << 22  # cells that are indexed at a time: with fewer, threads would wait for the interpreter lock
ASPECT = 1.6  # a sheet is about so much wider than high
WIDER = 1.25  # a label may be so much wider than its tile
MOST_PIXELS = 1 << 30  # a larger picture is refused

Canvas = NDArray[np.uint8]


class Bar(NamedTuple):
    """The colour bar of a field: its name, and the values of the first and the last colour."""

    name: str
    low: float
    high: float


@cache
def palette(cmap: str = DEFAULT) -> NDArray[np.uint8]:
    """Return the colours of a canvas, red, green and blue, uint8 [256, 3]; raise UsageError for an unknown map."""
    steps = table(cmap)[np.linspace(0, 255, STEPS).round().astype(int)]
    greys = np.linspace(WHITE, BLACK, 256 - STEPS).round().astype(np.uint8)
    return np.concatenate([steps, np.repeat(greys[:, np.newaxis], 3, axis=1)])


def image(canvas: Canvas, cmap: str = DEFAULT) -> Image.Image:
    """Return a canvas as an image of Pillow, mode P; raise UsageError for an unknown map."""
    picture = Image.fromarray(canvas)
    picture.putpalette(palette(cmap).tobytes())
    return picture


def png(canvas: Canvas, cmap: str = DEFAULT) -> bytes:
    """Return a canvas as a PNG, https://www.w3.org/TR/png-3; raise UsageError for an unknown map.

    ISA-L compresses it in a seventh of the time that Pillow takes, and to the same size.
    """
    rows, cols = canvas.shape
    lines = np.insert(canvas, 0, 0, axis=1)  # each row begins with the number of its filter; 0 is none
    pieces = (
        (b"IHDR", struct.pack(">IIBBBBB", cols, rows, 8, 3, 0, 0, 0)),  # 8 bits, an index of the palette
        (b"PLTE", palette(cmap).tobytes()),
        (b"IDAT", isal_zlib.compress(lines, 1)),
        (b"IEND", b""),
    )
    found = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))
        for kind, data in pieces
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(found)


def index(field: NDArray[Any], low: float, high: float) -> Canvas:
    """Return the canvas of a field [row, col].

    Values up to `low` and NaN get the first colour, and values from `high` on the last.
    Memory beside the result holds `STRIP` cells. NumPy releases the interpreter lock.
    """
    canvas = np.empty(field.shape, np.uint8)
    dtype = np.result_type(field, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        factor = dtype.type(STEPS / (high - low))  # infinite where the range is near 0
        rows = max(1, STRIP // field.shape[1])
        for top in range(0, len(field), rows):
            strip = np.subtract(field[top : top + rows], dtype.type(low), dtype=dtype)
            strip *= factor
            np.fmax(strip, 0, out=strip)
            np.minimum(strip, STEPS - 1, out=strip)
            np.copyto(canvas[top : top + rows], strip, casting="unsafe")
    return canvas


def check_scale(scale: float, shape: tuple[int, int]) -> None:
    """Raise UsageError unless a picture of `shape` can be made `scale` times as wide and high."""
    if not (0 < scale <= 1 or (scale > 1 and float(scale).is_integer())):
        raise UsageError(f"--scale: expected a fraction of 1, or a whole number, got {scale:g}")
    if shape[0] * shape[1] * scale**2 > MOST_PIXELS:
        raise UsageError(
            f"--scale: expected a picture of at most {MOST_PIXELS} pixels, got {shape[0]} × {shape[1]}, {scale:g} "
            "times as wide and high; choose a smaller scale, or a part by --crop"
        )


def resize(canvas: Canvas, scale: float) -> Canvas:
    """Return a canvas without captions `scale` times as wide and high.

    A smaller one holds the means of the values that a pixel covers, and a larger one repeats each pixel.
    """
    if scale == 1:
        return canvas
    if scale > 1:
        return canvas.repeat(int(scale), axis=0).repeat(int(scale), axis=1)
    rows, cols = (max(1, round(size * scale)) for size in canvas.shape)
    return np.asarray(Image.fromarray(canvas).resize((cols, rows), Image.Resampling.BOX))


def thumbnail(field: NDArray[Any], longest: int) -> Image.Image:
    """Return a picture of a field [row, col] with at most `longest` rows and columns; colours span its own range."""
    return image(resize(index(field, *limits_of(field)), min(1.0, longest / max(field.shape))))


def sheet(tiles: Sequence[Canvas], labels: Sequence[Sequence[str]]) -> Canvas:
    """Return a contact sheet of canvases of equal shape, each with its label below; a single one stays as it is.

    Each tile has equally many labels, from the longest to the shortest: all tiles get the first that fits below them.
    """
    if len(tiles) == 1:
        return tiles[0]
    rows, cols = tiles[0].shape
    size = min(max(cols // 20, 11), 40)
    texts = [[_text(label, size) for label in alike] for alike in zip(*labels, strict=True)]
    chosen = next((row for row in texts if max(text.shape[1] for text in row) <= WIDER * cols), texts[-1])
    width = max(cols, *(text.shape[1] for text in chosen))
    gap, height = max(size // 2, 4), rows + chosen[0].shape[0]
    across = _columns(len(tiles), width + gap, height + gap)
    down = -(-len(tiles) // across)
    canvas = np.full((down * (height + gap) + gap, across * (width + gap) + gap), PAPER, np.uint8)
    for place, (tile, text) in enumerate(zip(tiles, chosen, strict=True)):
        row, col = divmod(place, across)
        top, left = gap + row * (height + gap), gap + col * (width + gap)
        _put(canvas, tile, top, left + (width - cols) // 2)
        _put(canvas, text, top + rows, left + (width - text.shape[1]) // 2)
    return canvas


def matrix(tiles: Sequence[Sequence[Canvas]], left: Sequence[str], below: Sequence[str]) -> Canvas:
    """Return rows of canvases of equal shape, with a label on the left of each row, and below each column.

    Labels that would overlap the next ones are left out.
    """
    rows, cols = tiles[0][0].shape
    size = min(max(cols // 8, 11), 40)
    gap = max(min(rows, cols) // 32, 1)
    of_rows, of_cols = ([_text(text, size) for text in labels] for labels in (left, below))
    margin = max(text.shape[1] for text in of_rows) + size
    high, wide = len(tiles) * (rows + gap), len(tiles[0]) * (cols + gap)
    widest = max(text.shape[1] for text in of_cols) + size
    canvas = np.full((gap + high + of_cols[0].shape[0] + size // 2, margin + wide + widest // 2), PAPER, np.uint8)
    for row, of_row in enumerate(tiles):
        for col, tile in enumerate(of_row):
            _put(canvas, tile, gap + row * (rows + gap), margin + col * (cols + gap))
    for row in range(0, len(tiles), -(-of_rows[0].shape[0] // (rows + gap))):
        text = of_rows[row]
        top = gap + row * (rows + gap) + (rows - text.shape[0]) // 2
        if 0 <= top <= canvas.shape[0] - text.shape[0]:
            _put(canvas, text, top, margin - size // 2 - text.shape[1])
    for col in range(0, len(tiles[0]), -(-widest // (cols + gap))):
        text = of_cols[col]
        _put(canvas, text, gap + high, max(0, margin + col * (cols + gap) + (cols - text.shape[1]) // 2))
    return canvas


def caption(canvas: Canvas, text: str, bars: Sequence[Bar] = (), least_width: int = 0) -> Canvas:
    """Return a canvas with a line below it: `text` on the left, and colour bars on the right.

    A canvas that is narrower than this line, or than `least_width`, gets paper around it.
    """
    if not text and not bars:
        return canvas
    size = min(max(canvas.shape[1] // 48, 13), 48)
    written = [_text(text, size)] if text else []
    length = max(5 * size, min(16 * size, canvas.shape[1] // 4))
    drawn = [_bar(bar, length, size) for bar in bars]
    pieces, gap = written + drawn, size
    width = max(least_width, canvas.shape[1], gap + sum(piece.shape[1] + gap for piece in pieces))
    margin = size // 2
    top = margin if width > canvas.shape[1] else 0
    line = top + len(canvas) + margin
    whole = np.full((line + pieces[0].shape[0] + margin, width), PAPER, np.uint8)
    _put(whole, canvas, top, (width - canvas.shape[1]) // 2)
    for piece in written:
        _put(whole, piece, line, gap)
    for piece in reversed(drawn):
        width -= piece.shape[1] + gap
        _put(whole, piece, line, width)
    return whole


def _bar(bar: Bar, length: int, size: int) -> Canvas:
    """Return a colour bar with its name and lowest value on the left, and its highest value on the right."""
    low = 0.0 if abs(bar.low) < bar.high / 10_000 else bar.low  # a person reads 0 for 1e-19
    left, right = _text(f"{bar.name}  {low:.3g}", size), _text(f"{bar.high:.3g}", size)
    gap, height = size // 2, left.shape[0]
    piece = np.full((height, left.shape[1] + length + right.shape[1] + 2 * gap), PAPER, np.uint8)
    start = left.shape[1] + gap
    _put(piece, left, 0, 0)
    piece[height // 5 : height - height // 5, start : start + length] = np.arange(length) * STEPS // length
    _put(piece, right, 0, start + length + gap)
    return piece


def _columns(tiles: int, width: int, height: int) -> int:
    """Return the tiles of a row, so that the sheet has about the shape of a screen and few empty places."""

    def unlike(across: int) -> float:
        down = -(-tiles // across)
        return abs(float(np.log(across * width / (down * height) / ASPECT))) + (across * down - tiles) / tiles

    return min(range(1, tiles + 1), key=unlike)


def _put(canvas: Canvas, part: Canvas, top: int, left: int) -> None:
    canvas[top : top + part.shape[0], left : left + part.shape[1]] = part


@lru_cache(maxsize=1024)
def _text(text: str, size: int) -> Canvas:
    """Return a line of text in ink on paper; all lines of a size are equally high."""
    font: Any = _font(size)
    ascent, descent = font.getmetrics()
    mask = Image.new("L", (max(1, round(font.getlength(text))), ascent + descent))
    ImageDraw.Draw(mask).text((0, ascent), text, 255, font, anchor="ls")
    greys = np.asarray(mask).astype(np.uint16) * (INK - PAPER) // 255
    return (PAPER + greys).astype(np.uint8)


@cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size)
