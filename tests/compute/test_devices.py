"""Everything that a run makes on a GPU, and every use of it, has to happen while that GPU is the current one.

CUDA keeps a current device for each thread, at first device 0. A stand-in for CuPy with two devices keeps it too, and
fails where something of one device is used while another is the current one. Its kernels compute nothing.
"""

import ctypes
import importlib.machinery
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import gsio
import gsio.compute
from gsio.compute import open_solver, tune
from gsio.config import Config
from gsio.errors import UsageError
from gsio.frames.block import Block
from gsio.frames.layout import BlockLayout
from gsio.run.initial import initial_state
from gsio.run.plan import choose_backend, layout_of
from gsio.run.tunings import recall, remember
from gsio.trace import timeline

MakeConfig = Callable[..., Config]

# The modules that import CuPy.
MINE = tuple(
    f"gsio.compute.{name}"
    for name in (
        "cuda.bands",
        "cuda.cubins",
        "cuda.encoder",
        "cuda.graphs",
        "cuda.halos",
        "cuda.link",
        "cuda.ring",
        "cuda.solver",
        "peers.cupy_arrays",
    )
)


class Current(threading.local):
    """The current device of a thread, and its current stream."""

    device = 0
    stream: "Stream | None" = None


current = Current()
streams: list["Stream"] = []  # by handle, which CUDA's own functions take
pinned: list[tuple[int, int]] = []  # address, bytes
compiled: list[tuple[str, ...]] = []  # the options of each compilation
used: set[str] = set()  # kinds of things used on device 1


class Owned:
    """Something that belongs to the device that is the current one when it is made."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.owner = current.device

    def use(self) -> None:
        if self.owner != current.device:
            raise RuntimeError(f"invalid resource handle: {type(self).__name__} of device {self.owner}")
        if self.owner == 1:
            used.add(type(self).__name__)


class Device:
    compute_capability = "90"

    def __init__(self, number: int | None = None) -> None:
        self.id = current.device if number is None else number
        self.before: list[int] = []

    def __enter__(self) -> "Device":
        self.before.append(current.device)
        current.device = self.id
        return self

    def __exit__(self, *_: object) -> None:
        current.device = self.before.pop()


class Stream(Owned):
    def __init__(self, **_: Any) -> None:
        super().__init__()
        streams.append(self)
        self.ptr = len(streams)  # 0 is the default stream
        self.before: list[Stream | None] = []

    def __enter__(self) -> "Stream":
        self.use()
        self.before.append(current.stream)
        current.stream = self
        return self

    def __exit__(self, *_: object) -> None:
        current.stream = self.before.pop()

    def wait_event(self, event: "Event") -> None:
        self.use()  # the event may be that of another device

    def begin_capture(self) -> None:
        self.use()

    def end_capture(self) -> "Graph":
        self.use()
        return Graph()


class Event(Owned):
    def record(self, stream: Stream | None = None) -> None:
        self.use()
        if stream := stream or current.stream:
            stream.use()

    def synchronize(self) -> None:
        self.use()


class Graph(Owned):
    def launch(self, stream: Stream) -> None:
        self.use()
        stream.use()


class Kernel(Owned):
    max_dynamic_shared_size_bytes = 0

    def __call__(self, grid: Any, block: Any, arguments: tuple[Any, ...], shared_mem: int = 0) -> None:
        self.use()
        assert current.stream is not None
        current.stream.use()
        assert any(isinstance(argument, Array) for argument in arguments)
        for argument in arguments:
            if isinstance(argument, Array):
                argument.use()


def compile_kernels(source: str, options: tuple[str, ...]) -> tuple[bytes, None]:
    compiled.append(options)
    return f"kernels of {len(source)} bytes, {options}".encode(), None


class Module(Owned):
    def __init__(self, *, path: str = "", code: str = "", **_: Any) -> None:
        super().__init__()
        self.path, self.code = path, code

    def get_function(self, name: str) -> Kernel:
        self.use()
        return Kernel()


class Array(np.ndarray):
    """Memory of a device, where the host can read it."""

    owner: int
    use = Owned.use

    def __array_finalize__(self, source: Any) -> None:
        self.owner = source.owner if isinstance(source, Array) else current.device

    def __setitem__(self, key: Any, value: Any) -> None:
        self.use()
        assert not isinstance(value, Array) or value.owner == self.owner
        super().__setitem__(key, value)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        for argument in inputs:
            if isinstance(argument, Array):
                argument.use()
        hosts = [np.asarray(argument) if isinstance(argument, Array) else argument for argument in inputs]
        return np.asarray(getattr(ufunc, method)(*hosts, **options)).view(Array)

    @property
    def data(self) -> Any:  # type: ignore[override]
        return SimpleNamespace(ptr=self.ctypes.data, memset_async=lambda value, nbytes: self.use())

    def get(self) -> np.ndarray:
        self.use()
        return np.array(self)

    def set(self, values: np.ndarray) -> None:
        self[...] = values


def allocate_pinned(nbytes: int, *_: int) -> np.ndarray:
    memory = np.zeros(nbytes, np.uint8)
    pinned.append((memory.ctypes.data, nbytes))
    return memory


def check_copy(address: int, stream: int) -> None:
    streams[stream - 1].use()
    if not any(begin <= address < begin + max(1, nbytes) for begin, nbytes in pinned):
        raise RuntimeError("expected pinned memory, which all devices share")


def copy(address: int, source: int, nbytes: int, kind: int, stream: int) -> None:
    if kind == 4:  # between devices
        streams[stream - 1].use()
    else:
        check_copy(address, stream)
    ctypes.memmove(address, source, nbytes)


def copy_pieces(address: int, pitch: int, source: int, step: int, width: int, pieces: int, kind: int, at: int) -> None:
    check_copy(address, at)
    for piece in range(pieces):
        ctypes.memmove(address + piece * pitch, source + piece * step, width)


def elapsed(before: Event, after: Event) -> float:
    before.use()
    after.use()
    return 1.0


def properties(device: int) -> dict[str, Any]:
    if device not in (0, 1):
        raise RuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
    return {
        "name": f"GPU {device}".encode(),
        "multiProcessorCount": 132,
        "sharedMemPerBlockOptin": 227 << 10,
        "major": 9 if device else 7,  # device 0 is too old
        "minor": 0,
    }


@pytest.fixture
def cupy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put the stand-in in the place of CuPy, and let the modules that import CuPy be imported anew."""
    fake: Any = ModuleType("cupy")
    fake.__spec__ = importlib.machinery.ModuleSpec("cupy", None)
    fake.__version__ = "14.0.0"
    fake.uint8 = np.uint8
    for name in ("zeros", "empty", "asarray"):
        make = getattr(np, name)
        setattr(fake, name, lambda *arguments, make=make: np.array(make(*arguments)).view(Array))
    fake.RawModule = Module
    fake.fuse = lambda: lambda function: function
    fake.cuda = ModuleType("cupy.cuda")
    fake.cuda.Device, fake.cuda.Stream, fake.cuda.Event = Device, Stream, Event
    fake.cuda.get_elapsed_time = elapsed
    fake.cuda.compiler = SimpleNamespace(compile_using_nvrtc=compile_kernels)
    compiled.clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fake.cuda.alloc_pinned_memory = fake.cuda.PinnedMemory = allocate_pinned
    fake.cuda.PinnedMemoryPointer = lambda memory, offset: memory
    fake.cuda.runtime = SimpleNamespace(
        getDeviceCount=lambda: 2,
        getDeviceProperties=properties,
        memGetInfo=lambda: (8 << 30 if current.device else 0, 8 << 30),  # device 0 is full
        memcpyAsync=copy,
        memcpy2DAsync=copy_pieces,
        memcpyDeviceToHost=2,
        memcpyDefault=4,
        deviceCanAccessPeer=lambda one, other: one == current.device != other,
        deviceEnablePeerAccess=lambda other: None,
        hostAllocPortable=1,
        runtimeGetVersion=lambda: 13000,
        driverGetVersion=lambda: 13000,
        deviceSynchronize=lambda: None,
    )
    before = {name: sys.modules.pop(name, None) for name in ("cupy", "cupy.cuda", *MINE)}
    sys.modules.update({"cupy": fake, "cupy.cuda": fake.cuda})
    for name in MINE:
        monkeypatch.delattr(gsio.compute, name.rpartition(".")[2], raising=False)
    used.clear()
    yield
    for name, module in before.items():
        if module is None:
            sys.modules.pop(name, None)
        else:
            sys.modules[name] = module
    for name in MINE:
        if before[name] is None:
            vars(gsio.compute).pop(name.rpartition(".")[2], None)


def on_device_1(make_config: MakeConfig, changes: Mapping[str, object] = {}) -> Config:
    config = {"run.backend": "cupy", "run.device": 1, "output.fields": "u,v", "initial.kind": "noise"}
    return make_config({**config, **changes})


@pytest.mark.usefixtures("cupy")
@pytest.mark.parametrize("changes", [{"output.level": 2}, {"output.compression": "none"}], ids=str)
def test_a_run_makes_and_uses_everything_on_its_own_device(
    changes: dict[str, object], make_config: MakeConfig, tmp_path: Path
) -> None:
    config = on_device_1(make_config, {"run.checkpoint_every": 1, **changes})
    summary = gsio.simulate(config, tmp_path / "run.h5")
    assert summary is not None
    assert (summary.frames, summary.device) == (5, "GPU 1")
    assert used == {"Stream", "Event", "Graph", "Kernel", "Module", "Array"}


@pytest.mark.usefixtures("cupy")
@pytest.mark.parametrize("compression", ["lz4", "deflate"])
def test_threads_that_wait_for_encoded_chunks_use_the_device_of_the_run(
    compression: str, make_config: MakeConfig
) -> None:
    config = on_device_1(make_config, {"output.compression": compression})
    chosen = layout_of(config, "cupy")
    assert chosen.encoded_nbytes > 0
    layout = BlockLayout(chosen.chunks, *[chosen.chunks.frames_together] * 2, chosen.encoded_nbytes)
    solver = open_solver(config.run.backend, config, layout, 1, initial_state)
    blocks = [Block(layout, solver.allocate(layout.block_nbytes)) for _ in range(7)]  # more than slots
    with ThreadPoolExecutor(2) as threads:
        for block in blocks:
            block.count = 2
            solver.fill(block)
        list(threads.map(solver.wait, [block for block in blocks for _ in range(2)]))
    assert "Event" in used


def use_two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make device 0 as good as device 1."""
    for name, answer in (("getDeviceProperties", lambda _: properties(1)), ("memGetInfo", lambda: (8 << 30, 8 << 30))):
        monkeypatch.setattr(sys.modules["cupy"].cuda.runtime, name, answer)


@pytest.mark.usefixtures("cupy")
@pytest.mark.parametrize(("compression", "devices"), [("none", "1,0"), ("deflate", "all")])
def test_bands_use_everything_on_the_device_that_has_it(
    compression: str, devices: str, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_two_gpus(monkeypatch)
    config = on_device_1(make_config, {"output.compression": compression, "run.devices": devices})
    layout = layout_of(config, "cupy", bands=2)
    assert bool(layout.encoded_nbytes) == (compression == "deflate")
    solver = open_solver(config.run.backend, config, layout, 1, initial_state)
    assert solver.device == "2 × GPU 1"
    blocks = [Block(layout, solver.allocate(layout.block_nbytes)) for _ in range(7)]
    with ThreadPoolExecutor(2) as threads:
        for block in blocks:
            block.count = 2
            solver.fill(block)
        list(threads.map(solver.wait, blocks))
    solver.advance(5)
    np.testing.assert_array_equal(solver.field("v"), initial_state(config).v.astype(np.float32))


@pytest.mark.usefixtures("cupy")
def test_a_run_on_two_gpus_says_how_they_share_the_grid(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use_two_gpus(monkeypatch)
    config = on_device_1(make_config, {"output.compression": "none", "run.devices": "all"})
    summary = gsio.simulate(config, tmp_path / "run.h5", timeline=tmp_path / "run.json")
    assert summary is not None
    assert summary.device == "2 × GPU 1"
    assert "bands       2 of 6 rows, with halos of 3; an estimated 0." in str(summary)
    threads_seen = {interval.thread for interval in timeline.read(tmp_path / "run.json").intervals}
    assert {0, -1} <= threads_seen
    assert "3.8 times as long on 2 GPUs as on one" in capsys.readouterr().err


@pytest.mark.usefixtures("cupy")
def test_a_grid_too_large_for_a_gpu_is_told_how_many_would_do(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["cupy"].cuda.runtime, "memGetInfo", lambda: (60 << 20, 8 << 30))
    config = on_device_1(make_config, {"grid.rows": 512, "grid.cols": 512, "output.fields": "v"})
    with pytest.raises(UsageError, match=r"or \d+ GPUs with as much memory \(--devices\)"):
        open_solver("cupy", config, layout_of(config), 1, initial_state)


@pytest.mark.usefixtures("cupy")
def test_a_snapshot_is_waited_for_in_another_thread(make_config: MakeConfig) -> None:
    config = on_device_1(make_config)
    solver, start = open_solver(config.run.backend, config, layout_of(config), 1, initial_state), initial_state(config)
    with ThreadPoolExecutor(1) as thread:
        u, v = thread.submit(solver.snapshot()).result()
        np.testing.assert_array_equal(thread.submit(solver.field, "v").result(), v)
    np.testing.assert_array_equal(u, start.u.astype(np.float32))
    np.testing.assert_array_equal(v, start.v.astype(np.float32))


@pytest.mark.usefixtures("cupy")
def test_tilings_are_measured_on_the_device_of_the_run(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = on_device_1(make_config)
    assert all(speed > 0 for _, speed in tune(config, layout_of(config), initial_state(config), recall, remember))


@pytest.mark.usefixtures("cupy")
def test_array_code_runs_on_the_device_of_the_run(make_config: MakeConfig, tmp_path: Path) -> None:
    config = on_device_1(make_config, {"run.backend": "cupy-arrays", "run.checkpoint_every": 1})
    summary = gsio.simulate(config, tmp_path / "run.h5")
    assert summary is not None
    assert summary.device.startswith("GPU 1")
    assert used == {"Array"}


@pytest.mark.usefixtures("cupy")
def test_auto_asks_the_device_of_the_run(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = SimpleNamespace(cuda=(13, 0), gpus=("GPU 0", "GPU 1"))
    monkeypatch.setattr("gsio.run.plan.find_driver", lambda: driver)
    assert choose_backend(on_device_1(make_config, {"run.backend": "auto"})) == "cupy"
    assert choose_backend(on_device_1(make_config, {"run.backend": "auto", "run.device": 0})) == "numba"
    config = on_device_1(make_config, {"run.backend": "auto", "run.device": 2})
    with pytest.raises(UsageError, match=r"run\.device: expected a GPU below 2, got 2"):
        open_solver(choose_backend(config), config, layout_of(config), 1, initial_state)


@pytest.mark.usefixtures("cupy")
def test_the_memory_that_counts_is_that_of_the_device_of_the_run(make_config: MakeConfig) -> None:
    config = on_device_1(make_config, {"run.device": 0, "run.backend": "cupy-arrays"})
    with pytest.raises(UsageError, match=r"run\.device: expected a GPU of compute capability"):
        open_solver(config.run.backend, config, layout_of(config), 1, initial_state)
    config = on_device_1(make_config)
    open_solver(config.run.backend, config, layout_of(config), 1, initial_state)  # although device 0 is full


@pytest.mark.usefixtures("cupy")
def test_kernels_are_compiled_once_for_each_set_of_options_and_again_where_their_file_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gsio.compute.cuda.cubins import load_module

    first, again, other = (load_module(("stage.cu",), (f"-DA={number}",)) for number in (1, 1, 2))
    assert first.path == again.path != other.path
    assert compiled == [("-DA=1", "-ftz=true"), ("-DA=2", "-ftz=true")]
    Path(first.path).write_bytes(b"")
    assert load_module(("stage.cu",), ("-DA=1",)).path == first.path
    assert Path(first.path).read_bytes() and len(compiled) == 3
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert not load_module(("stage.cu",), ("-DA=1",)).path
    assert load_module(("stage.cu",), ("-DA=1",)).code
