"""What a run starts from: the initial state, u = 1, v = 0 everywhere, then what its kind sets; and feed and kill."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gsio.config import Config, Grid, Initial, Parameter
from gsio.errors import UsageError
from gsio.reader import open_stack

Field = NDArray[np.float64]


class Start(NamedTuple):
    """What a run starts from, float64.

    `u` and `v` at time 0 are [rows, cols], the same for every member of a batch, or [members, rows, cols]; the rates
    `feed` and `kill`, per unit time, broadcast to [members, rows, cols]: a constant has no axis.
    """

    u: Field
    v: Field
    feed: Field
    kill: Field


def initial_state(config: Config) -> Start:
    """Return what a run of `config` starts from.

    Raises
    ------
    UsageError
        A picture or file that cannot be read, has another shape, or holds values that are not allowed.
    """
    feed, kill = rates(config)  # first: they are what is refused soonest
    return Start(*_fields(config), feed, kill)


def rates(config: Config) -> tuple[Field, Field]:
    """Return feed and kill, per unit time, as they are in `Start`; reads the files of maps, nothing else.

    Raises
    ------
    UsageError
        A file that cannot be read or has another shape, or a rate that is not from 0 to 1.
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
    """Return what a file holds, [rows, cols]: an array as it is, of a picture the brightness."""
    try:
        if path.suffix == ".npy":
            values = np.load(path)
            if values.dtype.kind not in "fiub":
                raise TypeError(f"expected real numbers, got {values.dtype}")
        else:
            values = _brightness(path)
    except Exception as error:  # NumPy and Pillow tell of a damaged file in many ways
        raise UsageError(f"{key}: expected an .npy array or a picture at '{path}': {error}") from None
    if values.shape != (grid.rows, grid.cols):
        found = " × ".join(map(str, values.shape)) or "a single number"
        raise UsageError(f"{key}: expected a map of {grid.rows} × {grid.cols} in '{path}', got {found}")
    return np.asarray(values, np.float64)


def _fields(config: Config) -> tuple[Field, Field]:
    grid, initial = config.grid, config.initial
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
        values = _brightness(Path(initial.path), (grid.cols, grid.rows))
    except Exception as error:  # Pillow tells of a damaged picture in many ways
        raise UsageError(f"initial.path: expected a picture at '{initial.path}': {error}") from None
    if not (np.isfinite(values) & (values >= 0) & (values <= 1)).all():
        raise UsageError(f"initial.path: expected brightness from 0 to 1 in '{initial.path}', got values outside")
    return values


def _brightness(path: Path, size: tuple[int, int] | None = None) -> Field:
    """Return the brightness of a picture, [rows, cols], white being 1; resized to `size`, (columns, rows), if given."""
    from PIL import Image

    with Image.open(path) as picture:
        # The value of white: floating-point pictures hold 0 to 1, integer ones 16 bits, others become 8-bit grey.
        white = 1 if picture.mode == "F" else 65535 if picture.mode.startswith("I") else 255
        grey = (picture if white != 255 else picture.convert("L")).convert("F")
        return np.asarray(grey.resize(size, Image.Resampling.BILINEAR) if size else grey, np.float64) / white


def _file(config: Config) -> tuple[Field, Field]:
    grid, initial, members = config.grid, config.initial, config.model.members
    path = Path(initial.path)
    if "\0" in initial.path or not path.is_file():
        raise UsageError(f"initial.path: expected an .npz or a gsio output, got '{initial.path}', which is no file")
    try:
        u, v = _from_npz(path) if path.suffix == ".npz" else _from_output(path, initial.frame)
    except KeyError as error:
        raise UsageError(
            f"initial.path: expected u and v in '{path}': {error.args[0]}; save both with fields=u,v"
        ) from None
    except Exception as error:  # NumPy and HDF5 tell of a damaged file in many ways
        raise UsageError(f"initial.path: cannot read '{path}': {error}") from None
    for name, field in (("u", u), ("v", v)):
        if field.shape not in ((grid.rows, grid.cols), (members, grid.rows, grid.cols)[members == 1 :]):
            found = " × ".join(map(str, field.shape)) or "a single number"
            raise UsageError(f"initial.path: expected {name} of {grid.rows} × {grid.cols} in '{path}', got {found}")
        if not np.isfinite(field).all():
            raise UsageError(f"initial.path: expected finite values in '{path}', got NaN or infinity in {name}")
    return u, v


def _from_npz(path: Path) -> tuple[Field, Field]:
    with path.open("rb") as file, np.load(file) as arrays:
        u, v = arrays["u"], arrays["v"]
    for array in (u, v):
        if array.dtype.kind not in "fiub":
            raise TypeError(f"expected real numbers, got {array.dtype}")
    return u.astype(np.float64), v.astype(np.float64)


def _from_output(path: Path, frame: int) -> tuple[Field, Field]:
    with open_stack(path) as stack:
        return stack.frame("u", frame).astype(np.float64), stack.frame("v", frame).astype(np.float64)
