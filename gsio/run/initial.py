"""The start of a run: feed and kill, and the initial state, u = 1 and v = 0 wherever its kind sets nothing else."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from gsio.config import Config, Grid, Initial, Parameter
from gsio.errors import UsageError, reason_of
from gsio.inputs import open_regular, read_npy, read_npz
from gsio.model.start import Start
from gsio.reader import open_stack
from gsio.writer import is_zarr

# Formats that Pillow decodes itself, without other programs.
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM", "JPEG2000", "TGA")
MAX_PIXELS = 48 << 20  # of a picture, unless the grid has more cells
ORIENTATION = 0x0112  # the tag of EXIF

RANDOM = ("spots", "noise")  # kinds of the initial state that a seed decides

Field = NDArray[np.float64]


def initial_state(config: Config) -> Start:
    """Return the initial state, feed and kill of a run of `config`.

    Raises
    ------
    UsageError
        A picture or file cannot be read, has another shape, or holds values that are not allowed.
    """
    feed, kill = rates(config)  # first: they are refused soonest
    return Start(*_fields(config), feed, kill)


def rates(config: Config) -> tuple[Field, Field]:
    """Return feed and kill, per unit time, as in `Start`; of all files, only those of maps are read.

    Raises
    ------
    UsageError
        A file cannot be read or has another shape, or a rate is not from 0 to 1.
    """
    model = config.model
    return _rates(config.grid, "model.feed", model.feed), _rates(config.grid, "model.kill", model.kill)


def _rates(grid: Grid, key: str, parameter: Parameter) -> Field:
    """Return a rate, with as many axes as it varies along."""
    if isinstance(parameter, float):
        return np.array(parameter)
    if isinstance(parameter, tuple):
        return np.array(parameter)[:, np.newaxis, np.newaxis]
    if parameter.along:
        line = np.linspace(parameter.start, parameter.stop, grid.cols if parameter.along == "x" else grid.rows)
        rates = line if parameter.along == "x" else line[:, np.newaxis]
    else:
        rates = parameter.start + (parameter.stop - parameter.start) * _map(grid, key, Path(parameter.path))
    if not ((rates >= 0) & (rates <= 1)).all():
        raise UsageError(f"{key}: expected a map from 0 to 1, got {rates.min():g} to {rates.max():g}")
    return rates


def _map(grid: Grid, key: str, path: Path) -> Field:
    """Return the array, or the brightness of the picture, that a file holds, [rows, cols]."""

    def check(name: str, shape: tuple[int, ...], dtype: Any = None) -> None:
        if shape != (grid.rows, grid.cols):
            raise UsageError(f"{key}: expected a map of {grid.rows} × {grid.cols} in '{path}', got {_words(shape)}")

    try:
        if path.suffix == ".npy":
            return read_npy(path, check).astype(np.float64)
        return _brightness(path, grid, check)
    except UsageError:
        raise
    except Exception as error:  # Pillow reports a damaged file in many ways
        raise UsageError(f"{key}: expected an .npy array or a picture at '{path}': {_why(error)}") from None


def _words(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape)) or "a single number"


def _why(error: Exception) -> str:
    return reason_of(error) if isinstance(error, OSError) and error.errno else str(error) or type(error).__name__


def _fields(config: Config) -> tuple[Field, Field]:
    grid, initial = config.grid, config.initial
    if isinstance(initial.seed, tuple) and initial.kind in RANDOM:
        alone = [_fields(replace(config, initial=replace(initial, seed=seed))) for seed in initial.seed]
        u, v = (np.stack(fields) if len(fields) > 1 else fields[0] for fields in zip(*alone, strict=True))
        return u, v
    u, v = np.ones((grid.rows, grid.cols)), np.zeros((grid.rows, grid.cols))
    match initial.kind:
        case "school":
            _school(grid, u, v)
        case "square":
            _square(grid, initial, u, v)
        case "spots":
            _spots(grid, initial, u, v)
        case "noise":
            random = np.random.default_rng(initial.seed)
            for field, middle in ((u, initial.u), (v, initial.v)):
                field[:] = middle + random.uniform(-initial.amplitude, initial.amplitude, field.shape)
        case "image":
            v[:] = _image(grid, initial)
            u[:] = 1 - v
        case "file":
            u, v = _file(config)
    return u, v


def _school(grid: Grid, u: Field, v: Field) -> None:
    """Set the rectangle of the Gray Scott School's courses, which is not centred."""
    rows = slice(max(0, 7 * grid.rows // 16 - 4), max(0, 8 * grid.rows // 16 - 4))
    cols = slice(7 * grid.cols // 16, 8 * grid.cols // 16)
    u[rows, cols] = 0
    v[rows, cols] = 1


def _square(grid: Grid, initial: Initial, u: Field, v: Field) -> None:
    top, left = (max(0, (n - initial.size) // 2) for n in (grid.rows, grid.cols))
    square = np.s_[top : top + initial.size, left : left + initial.size]
    u[square] = initial.u
    v[square] = initial.v


def _spots(grid: Grid, initial: Initial, u: Field, v: Field) -> None:
    random = np.random.default_rng(initial.seed)
    for _ in range(initial.count):
        row, col = random.integers(grid.rows), random.integers(grid.cols)
        # Only the rows and columns the disc reaches: many spots on a large grid stay cheap.
        reach = np.s_[
            max(0, row - initial.radius) : row + initial.radius + 1,
            max(0, col - initial.radius) : col + initial.radius + 1,
        ]
        y, x = np.ogrid[reach[0].start : min(reach[0].stop, grid.rows), reach[1].start : min(reach[1].stop, grid.cols)]
        disc = (y - row) ** 2 + (x - col) ** 2 <= initial.radius**2
        u[reach][disc] = initial.u
        v[reach][disc] = initial.v


def _image(grid: Grid, initial: Initial) -> Field:
    try:
        values = _brightness(Path(initial.path), grid)
    except Exception as error:  # Pillow reports a damaged picture in many ways
        raise UsageError(f"initial.path: expected a picture at '{initial.path}': {_why(error)}") from None
    if not (np.isfinite(values) & (values >= 0) & (values <= 1)).all():
        raise UsageError(f"initial.path: expected brightness from 0 to 1 in '{initial.path}', got values outside")
    return values


def _brightness(path: Path, grid: Grid, check: Callable[[str, tuple[int, ...]], object] | None = None) -> Field:
    """Return the brightness of a picture as viewers show it, [rows, cols]; white is 1.

    Transparent pixels are black, or white if the whole picture would be black. The picture is resized to the grid;
    with `check`, which gets its shape before it is decoded, it keeps its shape.
    """
    from PIL import Image, ImageOps

    with open_regular(path) as file, warnings.catch_warnings(action="ignore"), _any_size():
        picture: Image.Image = Image.open(file, formats=FORMATS)
        cols, rows = picture.size
        most = max(MAX_PIXELS, grid.rows * grid.cols)
        if rows * cols > most:
            raise ValueError(f"expected at most {most} pixels, got {rows} × {cols}; make the picture smaller")
        if check is not None:
            turned = picture.getexif().get(ORIENTATION, 1) in range(5, 9)
            check("", (cols, rows) if turned else (rows, cols))
        ImageOps.exif_transpose(picture, in_place=True)
        # The value of white: floating-point pictures hold 0 to 1, integer pictures 16 bits, others become 8-bit grey.
        white = 1 if picture.mode == "F" else 65535 if picture.mode.startswith("I") else 255
        if white == 255:
            picture = _opaque(picture)  # frees the memory of the old one
        grey = picture.convert("F")
        if check is None and grey.size != (grid.cols, grid.rows):
            grey = grey.resize((grid.cols, grid.rows), Image.Resampling.BILINEAR)
        return np.asarray(grey, np.float64) / white


@contextmanager
def _any_size() -> Iterator[None]:
    """Let Pillow open pictures of any size: its own limit is below large grids. Opening a picture decodes nothing."""
    from PIL import Image

    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _opaque(picture: Any) -> Any:
    """Return a picture in 8-bit grey; transparent pixels are black, or white if all pixels would be black."""
    from PIL import Image

    if not picture.has_transparency_data:
        return picture.convert("L")
    if picture.mode not in ("LA", "RGBA"):
        picture = picture.convert("RGBA")
    grey, alpha = picture.convert("L"), picture.getchannel("A")
    seen = Image.composite(grey, Image.new("L", grey.size, 0), alpha)
    if seen.getextrema() == (0, 0) and alpha.getextrema() != (0, 0):
        return Image.composite(grey, Image.new("L", grey.size, 255), alpha)
    return seen


def _file(config: Config) -> tuple[Field, Field]:
    grid, initial, members = config.grid, config.initial, config.members
    path = Path(initial.path)

    def check(name: str, shape: tuple[int, ...], dtype: Any = None) -> None:
        if shape not in ((grid.rows, grid.cols), (members, grid.rows, grid.cols)[members == 1 :]):
            raise UsageError(
                f"initial.path: expected {name} of {grid.rows} × {grid.cols} in '{path}', got {_words(shape)}"
            )

    if "\0" in initial.path or not (path.is_file() or is_zarr(path)):
        raise UsageError(f"initial.path: expected an .npz or a gsio output, got '{initial.path}', which is no file")
    try:
        if path.suffix == ".npz":
            u, v = (values.astype(np.float64) for values in read_npz(path, ("u", "v"), check).values())
        else:
            u, v = _from_output(path, initial.frame, check)
    except UsageError:
        raise
    except KeyError as error:
        raise UsageError(
            f"initial.path: expected u and v in '{path}': {error.args[0]}; save both with fields=u,v"
        ) from None
    except Exception as error:  # h5py and zarr report a damaged file in many ways
        raise UsageError(f"initial.path: cannot read '{path}': {_why(error)}") from None
    for name, field in (("u", u), ("v", v)):
        if not np.isfinite(field).all():
            raise UsageError(f"initial.path: expected finite values in '{path}', got NaN or infinity in {name}")
    return u, v


def _from_output(path: Path, frame: int, check: Callable[[str, tuple[int, ...]], object]) -> tuple[Field, Field]:
    with open_stack(path) as stack:
        for name, field in stack.fields.items():
            check(name, field.shape[1:])
        return stack.frame("u", frame).astype(np.float64), stack.frame("v", frame).astype(np.float64)
