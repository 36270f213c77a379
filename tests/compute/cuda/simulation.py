"""A simulated GPU, in the place of CuPy: streams, events and graphs without a device.

A stream does what it was told in order, and waits for events; which of several goes on is chance. Kernels are NumPy: a
time step adds 1, chunks are made by zlib.
"""

import ctypes
import errno
import random
import sys
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np
from crc32c import crc32c
from patience import DEADLINE

from gsio.compute.cuda.sources import PLANE
from gsio.compute.statistics import tree
from gsio.frames.layout import STATISTICS

Work = Callable[[], bool]  # returns whether it could be done


class Simulation:
    """A device; its attributes are those of the module cupy that the solver uses."""

    def __init__(self, seed: int, multiprocessors: int = 132, shared_nbytes: int = 232448) -> None:
        self.random, self.lock = random.Random(seed), threading.RLock()
        self.streams: list[deque[Work]] = []
        self.speeds: list[float] = []
        self.captured: dict[int, list[Any]] = {}  # what is captured, by stream
        self.staged: dict[int, np.ndarray] = {}
        self.memories: list[np.ndarray] = []
        self.uint8, self.float64 = np.uint8, np.float64
        device = self
        self.current = threading.local()

        class Device(nullcontext[None]):
            id, compute_capability = 0, "90"

        class Stream:
            def __init__(self, *_: Any, **__: Any) -> None:
                self.ptr = len(device.streams)
                device.streams.append(deque())
                device.speeds.append(50 ** -device.random.random())

            def __enter__(self) -> None:
                device.current.streams = [*entered(), self]

            def __exit__(self, *_: object) -> None:
                device.current.streams = entered()[:-1]

            def synchronize(self) -> None:
                device.go_on(lambda: not device.streams[self.ptr])

            def record(self, event: Any) -> Any:
                event.record(self)
                return event

            def wait_event(self, event: Any) -> None:
                record = event.record_
                if isinstance(record, Mark) and device.captured:
                    device.captured.setdefault(self.ptr, []).append(("wait", record))
                    record.joined = True
                    return
                assert self.ptr not in device.captured, "a stream that is captured waits for one that is not"
                device.order(self.ptr, lambda: record is None or record.done)

            def begin_capture(self) -> None:
                device.captured = {self.ptr: []}

            def end_capture(self) -> Any:
                captured, device.captured = device.captured, {}
                for ptr, orders in captured.items():
                    assert ptr == self.ptr or orders[-1][1].joined, "a stream is not joined at the end"
                return Graph(device, captured)

        class Event:
            def __init__(self, *_: Any, **__: Any) -> None:
                self.record_: Any = None

            def record(self, stream: Any = None) -> None:
                ptr = (entered()[-1] if stream is None else stream).ptr
                if ptr in device.captured:
                    self.record_ = mark = Mark()
                    device.captured[ptr].append(("record", mark))
                    return
                self.record_ = record = SimpleNamespace(done=False, at=0.0)

                def happen() -> None:
                    record.done, record.at = True, time.perf_counter()

                device.do(ptr, happen)

            def synchronize(self) -> None:
                device.go_on(lambda: self.record_.done)

        default = Stream()

        def entered() -> list[Stream]:
            return getattr(device.current, "streams", [default])

        def compile_nothing(*_: Any) -> Any:
            raise OSError(errno.EROFS, "there is no place for compiled kernels")

        self.__version__ = "14.0.0"
        self.cuda = SimpleNamespace(
            Device=Device,
            compiler=SimpleNamespace(compile_using_nvrtc=compile_nothing),
            Stream=Stream,
            Event=Event,
            get_current_stream=lambda: entered()[-1],
            PinnedMemory=lambda nbytes, flags: nbytes,
            PinnedMemoryPointer=lambda memory, offset: np.full(memory, 99, np.uint8),
            alloc_pinned_memory=lambda nbytes: np.zeros(nbytes, np.uint8),
            get_elapsed_time=lambda begin, end: 1e3 * (end.record_.at - begin.record_.at),
            runtime=SimpleNamespace(
                getDeviceProperties=lambda _: {
                    "name": b"simulated",
                    "multiProcessorCount": multiprocessors,
                    "sharedMemPerBlockOptin": shared_nbytes,
                    "major": 9,
                    "minor": 0,
                },
                memGetInfo=lambda: (8 << 30, 8 << 30),
                runtimeGetVersion=lambda: 13000,
                driverGetVersion=lambda: 13000,
                deviceSynchronize=lambda: self.go_on(lambda: not any(self.streams)),
                hostAllocPortable=1,
                memcpyHostToDevice=1,
                memcpyDeviceToHost=2,
                memcpyDefault=4,
                deviceCanAccessPeer=lambda one, other: True,
                deviceEnablePeerAccess=lambda other: None,
                memcpyAsync=lambda to, of, n, _, ptr: self.do(ptr, lambda: ctypes.memmove(to, of, n)),
                memcpy2DAsync=lambda to, to_pitch, of, pitch, width, height, _, ptr: [
                    self.do(ptr, lambda i=i: ctypes.memmove(to + i * to_pitch, of + i * pitch, width))
                    for i in range(height)
                ],
            ),
        )

    def zeros(self, shape: Any, dtype: Any) -> "Array":
        self.memories.append(np.full(shape, 77, dtype))  # nothing may rely on them
        return Array(self, self.memories[-1])

    def at(self, address: int) -> np.ndarray:
        """Return the bytes of the device from an address on."""
        (found,) = (m for m in self.memories if 0 <= address - m.ctypes.data < m.nbytes)
        return found.view(np.uint8).reshape(-1)[address - found.ctypes.data :]

    empty = zeros

    def asarray(self, values: np.ndarray) -> "Array":
        return Array(self, np.array(values))

    def ascontiguousarray(self, array: "Array", dtype: Any) -> "Array":
        assert array.dtype == dtype
        return array

    def get_default_memory_pool(self) -> Any:
        return SimpleNamespace(free_bytes=lambda: 0)

    def RawModule(self, options: tuple[str, ...] = (), **_: Any) -> Any:  # noqa: N802 - CuPy's name
        return SimpleNamespace(get_function=lambda name: Kernel(self, getattr(self, name), options))

    def do(self, stream: int, order: Callable[[], Any]) -> None:
        """Queue an order, or keep it for a graph."""
        if stream in self.captured:
            self.captured[stream].append(("do", order))
        else:
            self.order(stream, lambda: order() is None or True)

    def order(self, stream: int, work: Work) -> None:
        with self.lock:
            self.streams[stream].append(work)
        moment = self.random.choice((0, 0, 0, 0, 30))
        self.go_on(lambda: not moment, moment)

    def go_on(self, until: Callable[[], bool], most: int = sys.maxsize) -> None:
        """Let streams go on, one after another as chance will have it."""
        deadline = time.monotonic() + DEADLINE
        while most > 0:
            with self.lock:
                if until():
                    return
                waiting = [number for number, stream in enumerate(self.streams) if stream]
                if waiting:
                    stream = self.streams[self.random.choices(waiting, [self.speeds[i] for i in waiting])[0]]
                    if stream[0]():
                        stream.popleft()
            most -= 1
            assert time.monotonic() < deadline, "the streams wait for one another"

    # The kernels, with the arguments that the solver gives them.

    def advance(self, options: Any, grid: Any, *arguments: Any) -> None:
        (u, v, next_u, next_v), plan = (array.values for array in arguments[:4]), arguments[-2]
        passes = int(plan["passes"])
        to_u, to_v = (next_u, next_v) if passes % 2 else (u, v)
        to_u[...], to_v[...] = u + passes, v + passes

    def stage(self, options: Any, grid: Any, field: Any, data: Any, partial: Any, sums: Any, plane: Any) -> None:
        data, partial, sums = map(self.at, (data, partial, sums))
        rows, cols, pitch, pieces = (int(plane.view(PLANE)[name]) for name in ("rows", "cols", "pitch", "pieces"))
        cells = field.values.reshape(rows, pitch)[:, :cols]
        values = np.ascontiguousarray(cells).reshape(-1).view(np.uint8).reshape(rows * cols, -1)
        planes = values.T if "-DSHUFFLE=1" in options else values
        data[: planes.size] = planes.reshape(-1)
        found = np.array([cells.min(), cells.max(), 0, 0, 0])
        partial[: found.nbytes] = found.view(np.uint8)
        of_pieces = sums[: 8 * rows * pieces].view(np.float64).reshape(pieces, rows)
        of_pieces[0], of_pieces[1:] = cells.sum(axis=1, dtype=np.float64), 0

    def summarise(self, options: Any, grid: Any, partial: Any, *rest: Any) -> None:
        (sums, row_sums, statistics, plane, parts), nbytes = rest, 8 * len(STATISTICS)
        rows, cols, pieces, whole = (int(plane.view(PLANE)[name]) for name in ("rows", "cols", "pieces", "whole"))
        for number in range(grid[0]):
            found = partial.values[number * int(parts) * nbytes :][:nbytes].copy().view(np.float64)
            of_pieces = sums.values[8 * number * rows * pieces :][: 8 * rows * pieces].view(np.float64)
            of_rows = of_pieces.reshape(pieces, rows).sum(axis=0)
            if whole:
                found[2] = tree(of_rows) / (rows * cols)
            else:
                self.at(row_sums)[8 * number * rows :][: 8 * rows] = of_rows.view(np.uint8)
            statistics.values[number * nbytes :][:nbytes] = found.view(np.uint8)

    def receive(self, options: Any, grid: Any, halo: Any) -> None:
        for rows in halo["rows"][: grid[1]]:
            ctypes.memmove(int(rows["to"]), int(rows["from"]), int(rows["nbytes"]))

    def checksum(self, options: Any, grid: Any, data: Any, checksums: Any, nbytes: Any, pieces: Any) -> None:
        for frame in range(grid[0] // int(pieces)):
            found = np.uint32(crc32c(data.values[frame * nbytes : (frame + 1) * nbytes]))
            checksums.values[4 * frame : 4 * frame + 4] = np.array([found]).view(np.uint8)

    def encode(self, options: Any, grid: Any, frames: Any, streams: Any, sizes: Any, plan: Any) -> None:
        self.staged[streams.data.ptr] = frames.values.copy()

    def gather(self, options: Any, grid: Any, slot: Any, streams: Any, sizes: Any, ends: Any, plan: Any) -> None:
        plan = plan.view(import_module("gsio.compute.cuda.encoder").ENCODE_PLAN)
        frames, slabs, fields, planes = (int(plan[name]) for name in ("frames", "slabs", "fields", "itemsize"))
        cells, slab, count, pitch = (int(plan[name]) for name in ("cells", "slab", "count", "chunk_slot"))
        staged = self.staged[streams.data.ptr][: count * fields * planes * cells].reshape(count, fields, planes, cells)
        for number in range(-(-count // frames) * slabs * fields):
            first, place, field = number // fields // slabs * frames, number // fields % slabs, number % fields
            chunk = np.zeros((planes, frames, slab), np.uint8)
            found = staged[first : first + frames, field, :, place * slab : (place + 1) * slab]
            chunk[:, : len(found), : found.shape[2]] = found.swapaxes(0, 1)
            encoded = np.frombuffer(zlib.compress(chunk.tobytes(), 1), np.uint8)
            slot.values[number * pitch :][: len(encoded)] = encoded
            ends.values[4 * number : 4 * number + 4] = np.array([len(encoded)], np.uint32).view(np.uint8)


class Mark:
    """An event that was recorded while its stream was captured."""

    joined = False


class Graph:
    """The captured orders of some streams: a launch gives them to streams of its own, which begin and end together."""

    def __init__(self, device: Simulation, captured: dict[int, list[Any]]) -> None:
        self.device, self.captured = device, captured
        self.streams = {ptr: device.cuda.Stream().ptr for ptr in captured}

    def launch(self, stream: Any) -> None:
        begun, ended, marks = SimpleNamespace(done=False), [], dict[Mark, Any]()
        for orders in self.captured.values():
            marks |= {what: SimpleNamespace(done=False) for kind, what in orders if kind == "record"}

        def set_done(record: Any) -> bool:
            record.done = True
            return True

        self.device.order(stream.ptr, lambda: set_done(begun))
        for ptr, orders in self.captured.items():
            mine = self.streams[ptr]
            self.device.order(mine, lambda: begun.done)
            for kind, what in orders:
                if kind == "do":
                    self.device.order(mine, lambda what=what: what() is None or True)
                elif kind == "record":
                    self.device.order(mine, lambda mark=marks[what]: set_done(mark))
                else:
                    self.device.order(mine, lambda mark=marks[what]: mark.done)
            ended.append(end := SimpleNamespace(done=False))
            self.device.order(mine, lambda end=end: set_done(end))
        self.device.order(stream.ptr, lambda: all(end.done for end in ended))


class Array:
    """An array on the simulated device."""

    __module__ = "cupy"

    def __init__(self, device: Simulation, values: np.ndarray) -> None:
        self.device, self.values = device, values
        self.nbytes, self.size, self.dtype, self.shape = values.nbytes, values.size, values.dtype, values.shape
        self.data = SimpleNamespace(ptr=values.ctypes.data, memset_async=self.fill)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, key: Any) -> "Array":
        return Array(self.device, self.values[key])

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0  # memory of CUDA, on device 0

    def fill(self, value: int, nbytes: int) -> None:
        self.device.do(self.device.cuda.get_current_stream().ptr, lambda: self.values[:nbytes].fill(value))

    def add_one(self) -> None:
        self.device.do(self.device.cuda.get_current_stream().ptr, lambda: self.values.__iadd__(1))

    def set(self, values: np.ndarray) -> None:
        assert values.dtype == self.dtype
        assert values.shape == self.values.shape
        self.values[...] = values


class Kernel:
    """A kernel, launched like CuPy's."""

    def __init__(self, device: Simulation, function: Callable[..., None], options: tuple[str, ...]) -> None:
        self.device, self.function, self.options = device, function, options

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], arguments: Any, shared_mem: int = 0) -> None:
        assert grid[0] > 0
        stream = self.device.cuda.get_current_stream().ptr
        self.device.do(stream, lambda: self.function(self.options, grid, *arguments))


@contextmanager
def simulated(device: Simulation) -> Iterator[Any]:
    """Give the class of the solver, imported with `device` as cupy."""
    mine = (
        f"gsio.compute.cuda.{name}"
        for name in ("bands", "cubins", "encoder", "graphs", "halos", "link", "ring", "solver", "staging")
    )
    names = ("cupy", "cupy.cuda", *mine)
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.modules |= {"cupy": device, "cupy.cuda": device.cuda}  # type: ignore[dict-item]
    try:
        yield import_module("gsio.compute.cuda.solver").CudaSolver
    finally:
        for name in names:
            sys.modules.pop(name, None)
        sys.modules |= before
