"""Staging of arrays on an NVIDIA GPU that a loop outside gsio owns: they are staged on the device before they change.

CuPy and PyTorch have a current stream. The kernel that stages a frame is queued there, after the work that makes the
frame and before all that changes it. JAX has none: it copies the arrays, and the stream of the link waits for the
copies, so that the arrays themselves can be donated at once. The host waits for nothing.
"""

import sys
import time
from collections import deque
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import cupy
import numpy as np
from cupy.cuda import Event, Stream, runtime
from numpy.typing import NDArray

from gsio.compute.cuda.link import BlockLink, needed_bytes
from gsio.compute.staging import Plane, copied_by_jax
from gsio.errors import UsageError
from gsio.frames.block import Block
from gsio.frames.layout import BlockLayout

KEPT_BYTES = 1 << 30  # of the copies by JAX that are not staged yet
STAGED_TOGETHER = 8  # copies by JAX: to ask for each at once would hold up the loop at every frame
PER_THREAD = 2  # the pointer of a stream that is another one in each thread, and a block can be submitted by any thread


class Kept(NamedTuple):
    """Copies that JAX has made, their bytes, and the event after which nobody reads them."""

    copies: list[Any]
    nbytes: int
    staged: Any


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
        self._used: dict[int, Any] = {}  # the streams that stage frames of this block, by their pointers
        self._copied: list[tuple[int, Any]] = []  # by JAX: the planes of this block that are not staged yet
        self._kept: deque[Kept] = deque()
        self._streams: dict[int, Any] = {}  # of PyTorch, which has few, by their pointers

    def allocate(self, nbytes: int) -> NDArray[np.uint8]:
        """Return pinned memory for a block."""
        return self._link.allocate(nbytes)

    def snapshot(self, block: Block, place: int, planes: Sequence[Plane]) -> None:
        """Stage the planes, one for each field, as frame `place` of `block`; whoever owns them may change them."""
        with self._device:
            if place == 0:
                _, self._memory = self._link.begin(block)
                self._free.record(self._link.compute)
                self._used.clear()
                self._copied.clear()
            for number, (plane, copy) in enumerate(
                zip(planes, copied_by_jax(planes), strict=True), place * len(planes)
            ):
                if copy is not None:
                    self._copied.append((number, copy))
                    continue
                stream = self._stream(plane)
                if stream.ptr not in self._used:
                    stream.wait_event(self._free)
                    self._used[stream.ptr] = stream
                with stream:
                    self._link.stage(self._contiguous(plane), self._memory, number)
                if stream.ptr == PER_THREAD:
                    self._order(stream)
            if len(self._copied) >= STAGED_TOGETHER:
                self._stage_copies()

    def submit(self, block: Block) -> None:
        """Queue the encoding of `block`, whose frames are staged, and its copy."""
        compute = self._link.compute
        with self._device, compute:
            for stream in self._used.values():
                self._order(stream)
            self._stage_copies()
            self._link.mark(block)
            before = time.perf_counter()
            self._link.finish(self._memory, block.count)
            self._link.send(block, (before + time.perf_counter()) / 2)

    def _stage_copies(self) -> None:
        """Queue the staging of the copies by JAX, and keep them until it is done."""
        compute, copied = self._link.compute, self._copied
        if not copied:
            return
        self._drop_copies()
        with compute:
            for number, copy in copied:
                if copy.dtype == self._link.dtype:
                    copy.__dlpack__(stream=compute.ptr)  # the stream waits until the copy is there
                    field = np.int64(copy.unsafe_buffer_pointer())
                else:
                    field = cupy.ascontiguousarray(cupy.from_dlpack(copy), self._link.dtype)
                self._link.stage(field, self._memory, number)
        copies = [copy for _, copy in copied]
        staged = compute.record(Event(disable_timing=True))
        self._kept.append(Kept(copies, sum(copy.nbytes for copy in copies), staged))
        self._copied = []

    def _order(self, stream: Any) -> None:
        """Let the stream of the link wait for all that a stream has been told."""
        self._staged.record(stream)
        self._link.compute.wait_event(self._staged)

    def _contiguous(self, plane: Plane) -> Any:
        """Return the address of an array, or a conversion, in memory of the current stream."""
        array, dtype = plane.array, self._link.dtype
        if plane.library == "torch":
            if plane.dtype == dtype and array.dtype.itemsize == dtype.itemsize and array.is_contiguous():
                return np.int64(array.data_ptr())
            with sys.modules["torch"].cuda.device(plane.device):
                array = cupy.from_dlpack(array)
        return cupy.ascontiguousarray(array, dtype)

    def _stream(self, plane: Plane) -> Any:
        """Return the stream on which the owner of a plane works now."""
        if plane.library != "torch":
            return cupy.cuda.get_current_stream()
        pointer = sys.modules["torch"].cuda.current_stream(plane.device).cuda_stream
        if pointer not in self._streams:
            self._streams[pointer] = _stream_at(pointer)
        return self._streams[pointer]

    def _drop_copies(self) -> None:
        """Drop the copies by JAX that are staged; wait for the oldest where there are too many."""
        while self._kept and (self._kept[0].staged.done or sum(kept.nbytes for kept in self._kept) > KEPT_BYTES):
            self._kept.popleft().staged.synchronize()

    def wait(self, block: Block) -> None:
        """Return when the copy of `block` is done."""
        self._link.wait(block)

    def close(self) -> None:
        """Give back the memory of the device once all copies are done."""
        with self._device:
            for stream in self._used.values():
                self._order(stream)
            self._link.synchronize()
        del self._link, self._memory
        self._kept.clear()
