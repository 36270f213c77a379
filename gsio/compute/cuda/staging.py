"""Staging of arrays on an NVIDIA GPU that a loop outside gsio owns: they are staged on the device before they change.

CuPy and PyTorch have a current stream. The kernel that stages a frame is queued there, after the work that makes the
frame and before all that changes it. JAX has none: it copies the arrays, and the stream of the link waits for the
copies, so that the arrays themselves can be donated at once. The host waits for nothing.
"""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import cupy
import numpy as np
from cupy.cuda import Event, Stream, runtime
from numpy.typing import NDArray

from gsio.compute.cuda.link import BlockLink, needed_bytes
from gsio.compute.staging import Plane
from gsio.errors import UsageError
from gsio.frames.block import Block
from gsio.frames.layout import BlockLayout

KEPT_BYTES = 1 << 30  # of the copies by JAX that are not staged yet


@dataclass
class Kept:
    """Copies that JAX has made, their bytes, and the event after which nobody reads them; None until it is recorded."""

    copies: list[Any]
    nbytes: int
    staged: Any = None

    def is_staged(self) -> bool:
        """Return whether JAX may use the memory again."""
        return self.staged is not None and self.staged.done

    def wait(self) -> None:
        """Return when JAX may use the memory again."""
        if self.staged is not None:
            self.staged.synchronize()


def _copy_by_jax() -> Callable[[list[Any]], list[Any]]:
    """Return a function that copies arrays on their device, in dtypes that CuPy knows, and returns at once."""
    import jax
    import jax.numpy as jnp

    dtypes = {"bool": "uint8", "bfloat16": "float32"}

    def copy(arrays: list[Any]) -> list[Any]:
        return [jnp.copy(array).astype(dtypes.get(array.dtype.name, array.dtype)) for array in arrays]

    return cast(Callable[[list[Any]], list[Any]], jax.jit(copy))


def _stream_at(pointer: int) -> Any:
    """Return a stream of CUDA that another library has made."""
    if not hasattr(Stream, "from_external"):  # before CuPy 14
        return cupy.cuda.ExternalStream(pointer)
    return Stream.from_external(SimpleNamespace(__cuda_stream__=lambda: (0, pointer)))


class CudaStager:
    """Stages planes on one GPU, encodes them there if the layout says so, and copies them to the host."""

    nbytes_beside = 0  # bytes of host memory that the frames of a block take beside the block

    def __init__(self, layout: BlockLayout, number: int) -> None:
        """Allocate memory on GPU `number`; raise UsageError if the GPU has too little."""
        self._layout = layout
        self._device = cupy.cuda.Device(number)
        with self._device:
            available = int(runtime.memGetInfo()[0]) + cupy.get_default_memory_pool().free_bytes()
            if (needed := needed_bytes(layout)) > available:
                raise UsageError(
                    f"append: expected {needed / 1e9:.1f} GB of free memory on GPU {number}, got {available / 1e9:.1f} "
                    "GB; let the loop leave more (JAX takes most of a GPU unless XLA_PYTHON_CLIENT_PREALLOCATE=false)"
                )
            self.device = runtime.getDeviceProperties(number)["name"].decode()
            self._link = BlockLink(layout, self._device)
            self._free, self._staged = Event(disable_timing=True), Event(disable_timing=True)
        self._memory: Any = None  # of the block that is filled
        self._kept: deque[Kept] = deque()
        self._streams: dict[int, Any] = {}  # of PyTorch, which has few, by their pointers
        self._copy: Callable[[list[Any]], list[Any]] | None = None

    def allocate(self, nbytes: int) -> NDArray[np.uint8]:
        """Return pinned memory for a block."""
        return self._link.allocate(nbytes)

    def snapshot(self, block: Block, place: int, planes: Sequence[Plane]) -> None:
        """Stage the planes, one for each field, as frame `place` of `block`; whoever owns them may change them."""
        compute = self._link.compute
        with self._device:
            if place == 0:
                _, self._memory = self._link.begin(block)
                self._free.record(compute)
            copies = self._copies([plane.array for plane in planes if plane.library == "jax"])
            for field, plane in enumerate(planes):
                stream = compute if plane.library == "jax" else self._stream(plane)
                if stream is not compute:
                    stream.wait_event(self._free)
                with stream:
                    array = next(copies) if plane.library == "jax" else plane.array
                    self._stage(array, place * len(planes) + field)
                if stream is not compute:
                    self._staged.record(stream)
                    compute.wait_event(self._staged)
            if self._kept and self._kept[-1].staged is None:
                self._kept[-1].staged = compute.record()

    def _stage(self, array: Any, plane: int) -> None:
        """Queue the staging of an array as a plane of the block that is filled, on the current stream."""
        found = array if isinstance(array, cupy.ndarray) else cupy.from_dlpack(array)
        # A conversion takes memory of the current stream, which reuses it in the right order.
        self._link.stage(cupy.ascontiguousarray(found, self._link.dtype), self._memory, plane)

    def _stream(self, plane: Plane) -> Any:
        """Return the stream on which the owner of a plane works now."""
        if plane.library == "torch":
            pointer = sys.modules["torch"].cuda.current_stream(plane.device).cuda_stream
            if pointer not in self._streams:
                self._streams[pointer] = _stream_at(pointer)
            return self._streams[pointer]
        return cupy.cuda.get_current_stream()

    def _copies(self, arrays: list[Any]) -> Iterator[Any]:
        """Return copies that JAX makes on the device, and keep them until they are staged."""
        while self._kept and (self._kept[0].is_staged() or sum(kept.nbytes for kept in self._kept) > KEPT_BYTES):
            self._kept.popleft().wait()
        if not arrays:
            return iter(())
        if self._copy is None:
            self._copy = _copy_by_jax()
        copies = self._copy(arrays)
        self._kept.append(Kept(copies, sum(copy.nbytes for copy in copies)))
        return iter(copies)

    def submit(self, block: Block) -> None:
        """Queue the encoding of `block`, whose frames are staged, and its copy."""
        with self._device, self._link.compute:
            self._link.mark(block)
            before = time.perf_counter()
            self._link.finish(self._memory, block.count)
            self._link.send(block, (before + time.perf_counter()) / 2)

    def wait(self, block: Block) -> None:
        """Return when the copy of `block` is done."""
        self._link.wait(block)
