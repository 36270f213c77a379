"""Staging of arrays that a loop outside gsio owns: they are copied at once, and made ready for the file by threads."""

import sys
import threading
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple, Protocol, cast, get_args

import numpy as np
from numpy.typing import NDArray

from gsio.compute import why_too_old
from gsio.compute.host import stage
from gsio.errors import UsageError
from gsio.frames.block import Block
from gsio.frames.content import Dtype
from gsio.frames.layout import BlockLayout
from gsio.log import log
from gsio.machine import one_line

DTYPES = {*get_args(Dtype), "bool"}  # bool as 0 and 1
CUDA = 2, 13  # device types of DLPack: memory of a GPU, and memory that it shares with the host


class Plane(NamedTuple):
    """An array of a loop, where its memory is.

    Attributes
    ----------
    array
        An array of NumPy that shares the memory of the caller's array, or an array of `library` that is on a GPU, or of
        JAX, whose work may not be done. Where NumPy lacks the dtype, the array is a copy.
    library
        The name of the caller's library.
    device
        The number of a GPU that CuPy can use; None: host memory.
    shape, dtype
        What the array is as one of NumPy.
    """

    array: Any
    library: str
    device: int | None
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def where(self) -> str:
        """Where the array is, in words."""
        return "host memory" if self.device is None else f"memory of GPU {self.device}"

    @property
    def is_of_jax(self) -> bool:
        """Whether JAX copies the array, on its device and without a wait."""
        return self.library == "jax" and not isinstance(self.array, np.ndarray)


def plane_of(array: Any) -> Plane:
    """Return an array of any library; raise UsageError if `array` has no numbers that a file can hold."""
    library = _library_of(array)
    device = _gpu_of(array, library)
    if device is None and not _can_copy_by_jax(array):
        found = _host_array(array)
        return Plane(found, library, None, found.shape, found.dtype)
    if library == "torch":
        array = _tensor(array)
    elif library != "jax" and device is not None:
        array = _cupy_array(array, library, device)
    if (dtype := _dtype_of(array.dtype)) is None:
        raise UsageError(f"append: expected an array of numbers, got {type(array).__name__} of {array.dtype}")
    return Plane(array, library, device, array.shape, dtype)


def copied_by_jax(planes: Sequence[Plane]) -> list[Any]:
    """Return a copy of each plane of JAX on its device, in a dtype that NumPy has, and None for each other plane.

    The call waits for nothing.
    """
    arrays = [plane.array for plane in planes if plane.is_of_jax]
    if not arrays:
        return [None] * len(planes)
    found = _jax_copy()(*arrays)
    copies = iter(found if len(arrays) > 1 else [found])
    return [next(copies) if plane.is_of_jax else None for plane in planes]


@cache
def _jax_copy() -> Callable[..., Any]:
    import jax
    import jax.numpy as jnp

    def copy(*arrays: Any) -> Any:
        copies = [jnp.copy(array).astype(_dtype_of(array.dtype)) for array in arrays]
        return copies if len(copies) > 1 else copies[0]  # JAX takes twice as long to return a list

    return cast(Callable[..., Any], jax.jit(copy))


def _can_copy_by_jax(array: Any) -> bool:
    """Return whether JAX can copy an array on its device."""
    try:
        return _library_of(array) == "jax" and len(array.devices()) == 1 and not array.is_deleted()
    except Exception:  # an array that stands for one while JAX compiles has no device
        return False


def _library_of(array: Any) -> str:
    """Return the name of the library of an array."""
    return type(array).__module__.partition(".")[0].removesuffix("lib")  # the arrays of JAX are those of jaxlib


@cache
def _dtype_of(dtype: Any) -> np.dtype[Any] | None:
    """Return the dtype in which a frame of a library's dtype is handed on; None if a file cannot hold such values."""
    name = str(dtype).removeprefix("torch.")
    name = {"bool": "uint8", "bfloat16": "float32"}.get(name, name)
    return np.dtype(name) if name in DTYPES else None


def _host_array(array: Any) -> NDArray[Any]:
    """Return an array of any library as a NumPy array, which shares its memory where that is host memory.

    bfloat16, which NumPy lacks, becomes float32, which has all its values. Raises as `plane_of`.
    """
    try:
        if _library_of(array) == "torch":
            array = _tensor(array).cpu()
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


def _tensor(array: Any) -> Any:
    """Return a tensor of PyTorch without what other libraries cannot read: a gradient, a negative bit, bfloat16."""
    if array.requires_grad or array.is_neg():
        array = array.detach().resolve_neg()
    return array.float() if array.dtype == sys.modules["torch"].bfloat16 else array


def _cupy_array(array: Any, library: str, device: int) -> Any:
    """Return an array on a GPU as one of CuPy; an array of a library whose streams nobody knows is copied."""
    import cupy

    with cupy.cuda.Device(device):
        if library != "cupy":
            array = cupy.from_dlpack(array).copy()
            cupy.cuda.get_current_stream().synchronize()
        return array.view(np.uint8) if array.dtype == bool else array


def _gpu_of(array: Any, library: str) -> int | None:
    """Return the number of the GPU that has an array; None if none has it, or CuPy cannot use that GPU."""
    try:
        if library == "torch":  # these ways are faster than DLPack's
            number = array.get_device() if array.is_cuda else None
        elif library == "jax":
            if array.is_deleted():
                return None
            (device,) = array.devices()
            number = device.local_hardware_id if device.platform in ("gpu", "cuda") else None
        else:
            kind, number = array.__dlpack_device__()
            number = number if kind in CUDA else None
    except Exception:  # the array has no such method, lies on several devices, or was donated
        return None
    return int(number) if number is not None and _can_stage(int(number)) else None


@cache
def _can_stage(device: int) -> bool:
    """Return whether frames can be staged on a GPU; a warning says why not."""
    try:
        reason = why_too_old(device)
    except Exception as error:  # CuPy reports a missing driver or library in many ways
        reason = f"CuPy cannot be used ({one_line(error)}); see 'gsio doctor'"
    if reason:
        log.warning(f"frames on GPU {device} are copied into host memory one by one, and compressed there: {reason}")
    return not reason


def can_hold(dtype: np.dtype[Any], other: np.dtype[Any]) -> bool:
    """Return whether a dtype has each value of another one; NumPy also casts int64 to float64, but rounds some."""
    rounds = other.kind in "iu" and other.itemsize == 8 and dtype.kind == "f"
    return np.can_cast(other, dtype, "safe") and not rounds


class Stager(Protocol):
    """Keeps the frames of a foreign loop as they are now, and brings them into the memory of blocks.

    Attributes
    ----------
    device
        The name of the device where frames are kept.
    """

    device: str

    @property
    def nbytes_beside(self) -> int:
        """Bytes of host memory that the frames of a block take beside the block."""

    def allocate(self, nbytes: int) -> NDArray[np.uint8]:
        """Return host memory for a block."""

    def snapshot(self, block: Block, place: int, planes: Sequence[Plane]) -> None:
        """Keep the planes, one for each field, as frame `place` of `block`; the caller may change them afterwards."""

    def submit(self, block: Block) -> None:
        """Begin to bring the frames of `block` into its memory; a second call repeats the first."""

    def wait(self, block: Block) -> None:
        """Return when the frames of `block` are in its memory; several threads may wait."""

    def close(self) -> None:
        """Give back all memory; nothing is staged any more."""


def open_stager(layout: BlockLayout, device: int | None) -> Stager:
    """Return what stages the frames of GPU number `device`, or those in host memory."""
    if device is None:
        return HostStager(layout)
    from gsio.compute.cuda.staging import CudaStager

    return CudaStager(layout, device)


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
        """Return ordinary memory; the system provides it when it is used first."""
        return np.empty(nbytes, np.uint8)

    def snapshot(self, block: Block, place: int, planes: Sequence[Plane]) -> None:
        """Copy the planes; a GPU is waited for, unless JAX makes the copy."""
        if block not in self._frames:
            self._frames[block] = _Frames(self._layout)
        frames = self._frames[block]
        if place == 0:
            frames.begin()
        for field, (plane, copy) in enumerate(zip(planes, copied_by_jax(planes), strict=True)):
            if copy is not None:
                frames.copies[place, field] = copy
                continue
            frames.copies.pop((place, field), None)
            found = plane.array if plane.device is None else _host_array(plane.array)
            np.copyto(frames.values[place, field], found, casting="safe")

    def submit(self, block: Block) -> None:
        """Do nothing: the threads that wait do the work."""

    def wait(self, block: Block) -> None:
        """Stage the frames of `block`: each thread that waits takes one frame at a time."""
        self._frames[block].stage(block)

    def close(self) -> None:
        """Give back all memory."""
        self._frames.clear()


class _Frames:
    """The values of the frames of one block, in the computed dtype, and copies by JAX that may not be done yet."""

    def __init__(self, layout: BlockLayout) -> None:
        frame = layout.frame
        self.values = np.empty((layout.frames_per_block, len(frame.fields), *frame.shape), frame.computed)
        self.copies: dict[tuple[int, int], Any] = {}
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
                for field, values in enumerate(self.values[number]):
                    copy = self.copies.pop((number, field), None)
                    plane = values if copy is None else np.asarray(copy)
                    stage(plane, block.layout.frame, block.data[number, field], block.statistics[number, field])
            finally:
                with self._changed:
                    self._staged += 1
                    self._changed.notify_all()
