"""Staging of arrays that a loop outside gsio owns: they are copied at once, and made ready for the file by threads."""

import threading
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from gsio.compute.host import stage
from gsio.errors import UsageError
from gsio.frames.block import Block
from gsio.frames.content import Dtype
from gsio.frames.layout import BlockLayout

DTYPES = {*get_args(Dtype), "bool"}  # bool as 0 and 1


def host_plane(array: Any) -> NDArray[Any]:
    """Return an array of any library as a NumPy array, which shares its memory where that is host memory.

    bfloat16, which NumPy lacks, becomes float32, which has all its values. Raises UsageError if `array` has no numbers
    that a file can hold.
    """
    try:
        if type(array).__module__.split(".")[0] == "torch":
            array = array.detach().resolve_neg()
            array = (array.float() if str(array.dtype) == "torch.bfloat16" else array).cpu()
        elif hasattr(array, "get") and hasattr(array, "__cuda_array_interface__"):  # CuPy refuses an implicit copy
            array = array.get()
        if isinstance(array, np.ma.MaskedArray):
            raise TypeError("a file has no mask; fill it")
        has_dlpack_only = hasattr(array, "__dlpack__") and not hasattr(array, "__array__")
        found = np.from_dlpack(array) if has_dlpack_only else np.asarray(array)
        if found.dtype.name == "bfloat16":  # JAX's, by ml_dtypes
            found = found.astype(np.float32)
        if found.dtype.name not in DTYPES:
            raise TypeError(f"an array of {found.dtype}")
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        raise UsageError(f"append: expected an array of numbers, got {type(array).__name__} ({error})") from None
    return found.view(np.uint8) if found.dtype.kind == "b" else found


def can_hold(dtype: np.dtype[Any], other: np.dtype[Any]) -> bool:
    """Return whether a dtype has each value of another one; NumPy also casts int64 to float64, but rounds some."""
    rounds = other.kind in "iu" and other.itemsize == 8 and dtype.kind == "f"
    return np.can_cast(other, dtype, "safe") and not rounds


class HostStager:
    """Copies planes into host memory of its own; the threads that encode bring them into the form of the file."""

    device = "host memory"

    def __init__(self, layout: BlockLayout) -> None:
        self._layout = layout
        self._frames: dict[Block, _Frames] = {}

    @property
    def nbytes_beside(self) -> int:
        """Bytes that the frames of a block take here, beside the block."""
        frame = self._layout.frame
        return self._layout.frames_per_block * len(frame.fields) * frame.cells * frame.computed.itemsize

    def allocate(self, nbytes: int) -> NDArray[np.uint8]:
        """Return memory for a block; the system provides it when it is used first."""
        return np.empty(nbytes, np.uint8)

    def snapshot(self, block: Block, place: int, planes: Sequence[NDArray[Any]]) -> None:
        """Keep the planes, one for each field, as frame `place` of `block`; the caller may change them afterwards."""
        if block not in self._frames:
            self._frames[block] = _Frames(self._layout)
        frames = self._frames[block]
        if place == 0:
            frames.begin()
        for field, plane in enumerate(planes):
            np.copyto(frames.values[place, field], plane, casting="safe")

    def wait(self, block: Block) -> None:
        """Return when all frames of `block` are staged; the threads that wait stage them, one frame each at a time."""
        self._frames[block].stage(block)


class _Frames:
    """The values of the frames of one block: as appended, in the computed dtype."""

    def __init__(self, layout: BlockLayout) -> None:
        frame = layout.frame
        self.values = np.empty((layout.frames_per_block, len(frame.fields), *frame.shape), frame.computed)
        self._changed = threading.Condition()
        self._begun = self._staged = 0

    def begin(self) -> None:
        self._begun = self._staged = 0

    def stage(self, block: Block) -> None:
        while True:
            with self._changed:
                number = self._begun
                if number >= block.count:
                    self._changed.wait_for(lambda: self._staged >= block.count)
                    return
                self._begun += 1
            try:
                for field, plane in enumerate(self.values[number]):
                    stage(plane, block.layout.frame, block.data[number, field], block.statistics[number, field])
            finally:
                with self._changed:
                    self._staged += 1
                    self._changed.notify_all()
