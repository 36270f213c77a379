"""Solvers made of array code, and the staging of a frame that lies in host memory."""

from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any, Generic, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from gsio.compute.statistics import row_sums, tree
from gsio.config import Config
from gsio.errors import UsageError
from gsio.frames.block import Block
from gsio.frames.format import FrameFormat
from gsio.frames.layout import BlockLayout
from gsio.model.gray_scott import OF_MEMBERS, Coefficients, Field, coefficients
from gsio.model.start import Start

State = TypeVar("State")
Item = TypeVar("Item")


class ArraySolver(Generic[State]):
    """A solver made of array code.

    The fields that are saved are copied to the host, where the threads that wait for a block stage its frames.

    Parameters
    ----------
    state
        The fields, in arrays of a library.
    advance
        Returns the state after a number of steps; it may return early, and reuse the memory of the old state.
    copy
        Waits for u (0) or v (1) of a state, and returns it as a NumPy array of the layout's cells. Later steps do not
        change the array.
    own
        Of a band, the rows of the arrays that the layout has; the others are the halo. None: the arrays have no others.
    """

    def __init__(
        self,
        backend: str,
        device: str,
        config: Config,
        layout: BlockLayout,
        state: State,
        advance: Callable[[State, int], State],
        copy: Callable[[State, int], Field],
        own: slice | None = None,
    ) -> None:
        self.backend = backend
        self.device = device
        self._steps = config.run.steps_per_frame
        self._layout = layout
        self._state = state
        self._advance = advance
        self._copy = copy if own is None else lambda state, i: copy(state, i)[..., own, :]
        self._copied: dict[int, tuple[Lock, list[Field]]] = {}  # by the address of a block

    def advance(self, steps: int) -> None:
        """Advance both fields by `steps` time steps; may return before they are done."""
        self._state = self._advance(self._state, steps)

    def field(self, name: str) -> Field:
        """Return a host copy of u or v, of the layout's shape."""
        return np.array(self._copy(self._state, "uv".index(name))).reshape(self._layout.frame.shape)

    def snapshot(self) -> Callable[[], tuple[Field, Field]]:
        """Copy u and v at once, and return a function that returns the copies."""
        copies = self.field("u"), self.field("v")
        return lambda: copies

    def allocate(self, nbytes: int) -> NDArray[np.uint8]:
        """Return ordinary memory."""
        return np.zeros(nbytes, np.uint8)

    def fill(self, block: Block) -> None:
        """Compute the next `block.count` frames and copy them to the host."""
        for frame in range(block.count):
            self.advance(self._steps)
            self.stage(block, frame)

    def stage(self, block: Block, frame: int) -> None:
        """Copy the present fields to the host, as a frame of `block`; frame 0 is the first."""
        place = block.buffer.ctypes.data
        if frame == 0:
            self._copied[place] = Lock(), []
        self._copied[place][1].extend(self._copy(self._state, "uv".index(name)) for name in self._layout.frame.fields)

    def rows(self, where: slice) -> NDArray[Any]:
        """Return a copy of rows of both fields, [field, …, row, col], of arrays in host memory."""
        return np.stack([field[..., where, :] for field in self._fields()])

    def set_rows(self, where: slice, rows: NDArray[Any]) -> None:
        """Replace rows of both fields by `rows`, [field, …, row, col], of arrays in host memory."""
        for field, values in zip(self._fields(), rows, strict=True):
            field[..., where, :] = values

    def _fields(self) -> tuple[Field, Field]:
        return cast(tuple[Field, Field], self._state)

    def wait(self, block: Block) -> None:
        """Stage the frames of `block`, or wait for the thread that does."""
        lock, planes = self._copied[block.buffer.ctypes.data]
        with lock:
            for number, plane in enumerate(planes):
                place = divmod(number, len(self._layout.frame.fields))
                sums = block.sums[place] if self._layout.part else None
                stage(plane, self._layout.frame, block.data[place], block.statistics[place], sums)
            planes.clear()


def grid_shape(config: Config, layout: BlockLayout) -> tuple[int, ...]:
    """Return the cells of the fields of a solver: those of a frame, and in a band of rows also the halo."""
    return (*layout.frame.shape[:-2], config.grid.rows, config.grid.cols)


def initial_arrays(
    config: Config, layout: BlockLayout, start: Start, array: Callable[[Field], Any]
) -> tuple[Any, Any, Coefficients]:
    """Return u and v at the start, of the layout's shape, and the constants of a step, made arrays by `array`.

    All are of the precision of the run. Rates that do not vary are numbers, which libraries compile in or broadcast.
    """
    dtype, ndim = np.dtype(config.model.precision), len(layout.frame.shape)

    def to_array(rate: Field) -> Any:  # drops the axis of members if the fields have none
        return rate.item() if rate.size == 1 else array(rate.reshape(rate.shape[-ndim:]).astype(dtype))

    c = coefficients(config.model, start.feed, start.kill)
    u, v = (array(np.broadcast_to(field, layout.frame.shape).astype(dtype)) for field in start[:2])
    return u, v, c._replace(**{name: to_array(getattr(c, name)) for name in OF_MEMBERS})


def set_outside(p: Any, boundary: str) -> None:
    """Set the outermost cells of `p` [..., rows + 2, cols + 2] in place, except for a zero boundary."""
    if boundary != "zero":
        before, after = (-2, 1) if boundary == "periodic" else (1, -2)
        p[..., 0, :], p[..., -1, :] = p[..., before, :], p[..., after, :]
        p[..., 0], p[..., -1] = p[..., before], p[..., after]


def nth_device(devices: Sequence[Item], number: int) -> Item:
    """Return device `number` of a library; raise UsageError if the library has fewer."""
    if number >= len(devices):
        raise UsageError(f"run.device: expected a device below {len(devices)}, got {number}")
    return devices[number]


def stage(
    plane: Field,
    frame: FrameFormat,
    data: NDArray[np.uint8],
    statistics: NDArray[np.float64],
    sums: NDArray[np.float64] | None = None,
) -> None:
    """Copy one field of one frame into `data`, shuffled if the format says so, and set its `statistics`.

    Parameters
    ----------
    plane
        A plane of the format's shape and of any float dtype; its values are stored in the format's dtype.
    data
        uint8 [plane_nbytes].
    statistics
        float64 [5]: minimum, maximum and mean of the finite values, the largest error of a stored finite value, and the
        number of non-finite values. ``gsio.compute.statistics`` defines the sum that the mean is made of.
    sums
        float64 [row], which get the sums of the finite values of the rows; None: nobody needs these.
    """
    with np.errstate(over="ignore"):  # A value that does not fit becomes infinite, and is counted.
        values = np.ascontiguousarray(plane, frame.computed).reshape(-1)
    stored, error = pack(values, frame)
    finite, zeroed = values, values
    if not (good := np.isfinite(values)).all():
        finite, zeroed = values[good], np.where(good, values, 0)
    of_rows = row_sums(zeroed.reshape(-1, frame.shape[-1]))
    if sums is not None:
        sums[:] = of_rows
    statistics[:4] = (finite.min(), finite.max(), tree(of_rows) / finite.size, error) if finite.size else 0
    statistics[4] = values.size - finite.size
    raw = stored.view(np.uint8)
    if frame.shuffle:
        data.reshape(frame.dtype.itemsize, -1)[:] = raw.reshape(-1, frame.dtype.itemsize).T
    else:
        data[:] = raw


def pack(values: Field, frame: FrameFormat) -> tuple[NDArray[Any], float]:
    """Return the stored form of `values`, and the largest error of a finite value; ``stage.cu`` does the same.

    Values outside 0 to 1 become 0 or 1 where integers are stored. Bits of the mantissa are rounded to the nearest, half
    to even: BitRound, Klöwer et al. 2021, doi:10.1038/s43588-021-00156-2.
    """
    if not frame.lossy:
        return values, 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        if frame.stored_one:
            stored = np.rint(np.clip(values, 0, 1, dtype=np.float64) * frame.stored_one).astype(frame.dtype)
            found = (stored * frame.scale).astype(np.float64)  # A reader rounds in the same way.
        else:
            stored = values.astype(frame.dtype)
            if frame.keep_bits:
                stored = round_mantissa(stored, frame.keep_bits)
            found = stored.astype(values.dtype)  # The stored value is so close that the difference is exact.
        errors = np.abs(found - values)
    largest = errors.max()
    if not np.isfinite(largest):
        largest = np.max(errors, where=np.isfinite(errors), initial=0)
    return stored, float(largest)


def round_mantissa(values: NDArray[Any], keep_bits: int) -> NDArray[Any]:
    """Return floating-point `values` with `keep_bits` bits of their mantissa, the others 0."""
    words = values.view(f"u{values.itemsize}")
    dropped = words.dtype.type(np.finfo(values.dtype).nmant - keep_bits)
    one = words.dtype.type(1)
    half = (one << (dropped - one)) - one + ((words >> dropped) & one)
    rounded: NDArray[Any] = (words + half) & ~((one << dropped) - one)
    return rounded.view(values.dtype)
