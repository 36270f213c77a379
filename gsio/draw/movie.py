"""Pictures as a movie: 8-bit indices become the planes of a video by look-up, and red, green and blue are never formed.

PyAV encodes, in threads of its codecs; it is the extra `movie`.
"""

from collections.abc import Callable, Iterable
from fractions import Fraction
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gsio.draw.picture import Canvas
from gsio.errors import GsioError, UsageError

Draw = Callable[[Canvas], Any]  # makes a frame of PyAV from the indices of a picture

BT709 = 1  # the number of this standard for the matrix, the primaries and the transfer, in ITU-T H.273
LIMITED = 1  # FFmpeg's number of the range 16 to 235
RED, GREEN, BLUE = 0.2126, 0.7152, 0.0722  # the share of each in the luma of BT.709
LEAST_FPS = 0.01
LONGEST = 16_383  # pixels, the most that a side can have in WebP, and about the most in H.264


class Form(NamedTuple):
    """A kind of movie.

    Attributes
    ----------
    container, codec, pixels
        FFmpeg's names of the format of the file, of the encoder, and of the pixels that the encoder takes.
    widest
        The most pixels of a side unless a size is asked for.
    most_crf
        The largest number for a lower quality and a smaller file; 0 where the quality cannot be chosen.
    encoding, muxing
        Options of the encoder and of the container.
    most_fps
        The most frames a second.
    """

    container: str
    codec: str
    pixels: str
    widest: int
    most_crf: int = 0
    encoding: dict[str, str] = {}  # noqa: RUF012 - nobody writes to it
    muxing: dict[str, str] = {}  # noqa: RUF012
    most_fps: int = 1000


# At the same mean colour error and size, superfast takes two thirds of the time of veryfast, and VP9 about as much
# as that. A colour is a value here, so chroma gets more bits than in a film.
_X264 = {"preset": "superfast", "crf": "20", "x264-params": "chroma-qp-offset=-4"}
_VP9 = {"deadline": "realtime", "cpu-used": "8", "row-mt": "1", "tile-columns": "2", "lag-in-frames": "0", "crf": "28"}
_WEBP = {"lossless": "1", "compression_level": "0"}
FORMS = {
    ".mp4": Form("mp4", "libx264", "yuv420p", 4096, 51, _X264, {"movflags": "+faststart"}),
    ".webm": Form("webm", "libvpx-vp9", "yuv420p", 4096, 63, _VP9 | {"b": "0"}),
    ".mkv": Form("matroska", "libx264", "yuv420p", 4096, 51, _X264),
    ".gif": Form("gif", "gif", "pal8", 640, most_fps=50),  # viewers slow down what is faster
    ".apng": Form("apng", "apng", "pal8", 640, 0, {"pred": "none", "compression_level": "1"}, {"plays": "0"}),
    ".webp": Form("webp", "libwebp_anim", "bgra", 640, 0, _WEBP, {"loop": "0"}),
}
LOSSLESS = {".mkv": Form("matroska", "ffv1", "bgr0", 1 << 15, 0, {"level": "3", "slices": "16"})}


def form_of(path: Path, fps: float, crf: int | None = None, *, lossless: bool = False) -> Form:
    """Return the form that the ending of `path` names, with its `crf` if that is given.

    Raises UsageError if the ending, or another option with it, cannot be used, or PyAV is not installed.
    """
    found = FORMS.get(path.suffix)
    if found is None:
        raise UsageError(f"--output: expected a name that ends in {', '.join(FORMS)}, got '{path}'")
    if lossless:
        if path.suffix not in LOSSLESS:
            raise UsageError(f"--lossless: expected a name that ends in .mkv, got '{path}'")
        found = LOSSLESS[path.suffix]
    if not LEAST_FPS <= fps <= found.most_fps:
        raise UsageError(f"--fps: expected {LEAST_FPS} to {found.most_fps} with {path.suffix}, got {fps:g}")
    if crf is not None:
        if not found.most_crf:
            every = "--lossless" if lossless else path.suffix
            raise UsageError(f"--crf: expected it with .mp4, .webm and .mkv only, got it with {every}")
        if not 1 <= crf <= found.most_crf:
            raise UsageError(f"--crf: expected 1 to {found.most_crf} with {path.suffix}, got {crf}")
        found = found._replace(encoding=found.encoding | {"crf": str(crf)})
    _av()
    return found


def write_movie(
    path: Path, canvases: Iterable[Canvas], colours: NDArray[np.uint8], form: Form, fps: float, each: Any = map
) -> int:
    """Write pictures of equal shape as a movie, and return their number; without a picture there is no file.

    Parameters
    ----------
    canvases
        Indices of `colours`, each uint8 [row, col]. Where the form needs even sizes, the last row or column of an odd
        size is repeated.
    colours
        Red, green and blue, uint8 [256, 3].
    each
        A `map`, which may work in threads.

    Raises OSError if the file cannot be written, and GsioError if the encoder cannot be used here.
    """
    av, frames = _av(), iter(each(PIXELS[form.pixels](colours), canvases))
    first = next(frames, None)
    if first is None:
        return 0
    number, interval = 0, 1 / Fraction(fps).limit_denominator(1001)
    try:
        with av.open(str(path.absolute()), "w", format=form.container, options=form.muxing) as file:
            stream = _add_stream(file, form, first, interval)
            for number, frame in enumerate(chain([first], frames), 1):
                frame.pts, frame.duration, frame.time_base = number - 1, 1, interval
                file.mux(stream.encode(frame))
            file.mux(stream.encode(None))
    except av.error.FFmpegError as error:
        if isinstance(error, OSError):
            raise
        raise GsioError(
            f"the encoder {form.codec} fails ({error.strerror}); choose another ending or a smaller --size, or allow "
            "more threads or memory"
        ) from error
    return number


def _add_stream(file: Any, form: Form, like: Any, interval: Fraction) -> Any:
    """Add the stream of a movie whose frames have the size of the frame `like`, `interval` seconds apart."""
    stream = file.add_stream(form.codec, rate=1 / interval, options=form.encoding)
    stream.width, stream.height, stream.pix_fmt = like.width, like.height, form.pixels
    encoder = stream.codec_context
    encoder.time_base = interval
    if form.pixels == "yuv420p":
        encoder.gop_size = max(1, round(2 / interval))  # where a player can jump to
        encoder.color_range, encoder.colorspace = LIMITED, BT709
        encoder.color_primaries = encoder.color_trc = BT709
    return stream


def _draw_yuv420p(colours: NDArray[np.uint8]) -> Draw:
    """Return the function that draws with one luma for each pixel, and the mean chroma of each 2 × 2 of them.

    Two neighbours of a row are looked up together, as one number of 16 bits. To look up the mean of four indices is
    quicker, but at the edge of a letter that mean is the index of any colour. The picture gets even sizes.
    """
    red, green, blue = colours.T / 255
    luma = RED * red + GREEN * green + BLUE * blue
    lumas = np.round(16 + 219 * luma).astype(np.uint8)
    differences = [(blue - luma) / (2 - 2 * BLUE), (red - luma) / (2 - 2 * RED)]
    chromas = np.round(128 + 224 * np.stack(differences, axis=-1)).astype(np.uint16)
    pairs = np.arange(1 << 16, dtype=np.uint16).view(np.uint8).reshape(-1, 2)
    luma_of_pair = lumas[pairs].view(np.uint16)[:, 0]
    chroma_of_pair = chromas[pairs].sum(axis=1, dtype=np.uint16).view(np.uint32)[:, 0]
    frame_of = _av().VideoFrame.from_ndarray

    def draw(canvas: Canvas) -> Any:
        rows, cols = canvas.shape
        if rows % 2 or cols % 2:
            canvas = np.pad(canvas, ((0, rows % 2), (0, cols % 2)), "edge")
        found = np.ascontiguousarray(canvas).view(np.uint16)
        rows, cols = canvas.shape
        planes = np.empty((rows * 3 // 2, cols), np.uint8)
        np.take(luma_of_pair, found, out=planes[:rows].view(np.uint16), mode="clip")
        sums = np.take(chroma_of_pair, found, mode="clip").view(np.uint16).reshape(rows, -1, 2)
        means = (sums[::2] + sums[1::2] + 2) >> 2
        planes[rows:].reshape(2, rows // 2, -1)[...] = np.moveaxis(means, -1, 0)
        return frame_of(planes, "yuv420p")

    return draw


def _draw_pal8(colours: NDArray[np.uint8]) -> Draw:
    """Return the function that draws with the indices and the colours themselves."""
    opaque = np.insert(colours, 0, 255, axis=1)  # alpha, red, green, blue
    frame_of = _av().VideoFrame.from_ndarray
    return lambda canvas: frame_of((np.ascontiguousarray(canvas), opaque), "pal8")


def _draw_bgra(colours: NDArray[np.uint8]) -> Draw:
    """Return the function that draws with the exact colour of each pixel, looked up as one number of 32 bits."""
    opaque = np.insert(colours[:, ::-1], 3, 255, axis=1).view(np.uint32)[:, 0]
    frame_of = _av().VideoFrame.from_ndarray
    return lambda canvas: frame_of(opaque[canvas].view(np.uint8).reshape(*canvas.shape, 4), "bgra")


PIXELS = {"yuv420p": _draw_yuv420p, "pal8": _draw_pal8, "bgra": _draw_bgra, "bgr0": _draw_bgra}


def _av() -> Any:
    try:
        return import_module("av")
    except ImportError:
        raise UsageError("movies need the package av; run pip install 'gsio[movie]' first") from None
