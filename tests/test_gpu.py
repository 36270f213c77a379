"""Whole runs on a GPU."""

import itertools
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest
import zarr
from numcodecs import blosc

import gsio
from gsio import codec
from gsio.compute import open_solver, tune
from gsio.compute.cuda.tiling import Device, Job, Tiling, tilings
from gsio.compute.peers import numpy as reference
from gsio.compute.solver import fields
from gsio.config import Config
from gsio.errors import UsageError
from gsio.frames.block import Block
from gsio.frames.layout import BlockLayout
from gsio.reader.verify import problems
from gsio.run.initial import initial_state
from gsio.run.plan import choose_backend, layout_of
from gsio.run.tunings import recall, remember
from gsio.trace import timeline

Make = Callable[..., Config]
pytestmark = pytest.mark.gpu
assert hdf5plugin.FILTERS["blosc"] == 32001  # its import is what lets h5py read lz4

RUN = {"grid.rows": 67, "grid.cols": 121, "run.frames": 300, "initial.kind": "spots", "output.fields": "u,v"}


def frames_of(config: Config, path: Path) -> tuple[np.ndarray, np.ndarray]:
    gsio.simulate(config, path)
    with h5py.File(path) as file:
        return file["u"][:], file["v"][:]


@pytest.mark.parametrize("compression", ["deflate", "none"])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_run_saves_the_frames_of_the_reference(
    compression: str, precision: str, make_config: Make, tmp_path: Path
) -> None:
    changes = {**RUN, "output.compression": compression, "model.precision": precision}
    found = frames_of(make_config({**changes, "run.backend": "cupy"}), tmp_path / "gpu.h5")
    expected = frames_of(make_config({**changes, "run.backend": "numpy"}), tmp_path / "numpy.h5")
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-3 if precision == "float32" else 1e-11)


def test_frames_are_the_same_every_time_and_for_any_number_of_threads(make_config: Make, tmp_path: Path) -> None:
    once = frames_of(make_config({**RUN, "run.backend": "cupy", "output.threads": 1}), tmp_path / "once.h5")
    again = frames_of(make_config({**RUN, "run.backend": "cupy", "output.threads": 7}), tmp_path / "again.h5")
    for mine, theirs in zip(once, again, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_blocks_on_the_device_follow_one_another_within_the_loop(make_config: Make, tmp_path: Path) -> None:
    config = make_config({"grid.rows": 1080, "grid.cols": 1920, "run.frames": 200, "run.backend": "cupy"})
    summary = gsio.simulate(config, tmp_path / "run.h5", timeline=tmp_path / "run.json")
    recorded = timeline.read(tmp_path / "run.json")
    advanced = {interval.frame for interval in recorded.intervals if interval.name == "advance"}
    for name, seconds in (("compute", summary.compute_seconds), ("copy", summary.link_seconds)):
        blocks = [interval for interval in recorded.intervals if interval.name == name]
        frames = [block.frame for block in blocks]  # whichever thread is first sends the chunks of its block
        assert (frames if name == "compute" else sorted(frames)) == sorted(advanced)
        assert all(before.end <= after.begin + 2e-6 for before, after in itertools.pairwise(blocks))
        assert sum(block.end - block.begin for block in blocks) == pytest.approx(seconds, abs=1e-6 * len(blocks))
        assert -1e-4 < blocks[0].begin < blocks[-1].end < recorded.end + 1e-4
    begins = {(interval.name, interval.frame): interval.begin for interval in recorded.intervals}
    ends = {(interval.name, interval.frame): interval.end for interval in recorded.intervals}
    for name, frame in begins:
        if name == "compute":  # a block is computed after the host said so, copied when computed, encoded when copied
            assert begins["advance", frame] < begins["compute", frame] + 1e-4
            assert ends["compute", frame] < begins["copy", frame] + 2e-6
            assert ends["copy", frame] < begins["encode", frame] + 1e-4


def test_auto_is_the_gpu(make_config: Make) -> None:
    assert choose_backend(make_config({"run.backend": "auto"})) == "cupy"


def test_a_grid_too_large_for_the_gpu_is_refused(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gsio.compute.cuda.solver.free_bytes", lambda device: 1_000_000)
    config = make_config({"run.backend": "cupy", "grid.rows": 1000, "grid.cols": 1000})
    with pytest.raises(UsageError, match=r"device memory, 0\.0 GB are available"):
        open_solver(config.run.backend, config, layout_of(config), 3, initial_state)


def test_a_gpu_that_is_not_there_is_refused(make_config: Make) -> None:
    config = make_config({"run.backend": "cupy", "run.device": 999})
    with pytest.raises(UsageError, match=r"run\.device"):
        open_solver(config.run.backend, config, layout_of(config), 3, initial_state)


def some_tilings(job: Job, device: Device) -> list[Tiling]:
    """Return four tilings that go over their tiles in different ways: each is compiled anew, which takes a second."""
    possible = list(tilings(job, device))
    stays = [tiling for tiling in possible if tiling.at_once and tiling.tiles(job) <= device.multiprocessors]
    turns = [tiling for tiling in possible if tiling.at_once and tiling.tiles(job) > device.multiprocessors]
    launches = [tiling for tiling in possible if not tiling.at_once]
    return [*stays[:1], *stays[-1:], *turns[len(turns) // 2 :][:1], launches[len(launches) // 3]]


@pytest.mark.parametrize("boundary", ["periodic", "neumann", "zero"])
@pytest.mark.parametrize(
    ("shape", "precision", "rates"),
    [
        ((204, 324), "float32", {}),
        ((1079, 1925), "float32", {}),  # more tiles than multiprocessors; no lane's columns divide the grid
        ((540, 1924), "float64", {"model.dt": 0.5}),
        ((301, 128), "float32", {"model.feed": {"along": "x", "start": 0.01, "stop": 0.06}, "model.kill": 0.06}),
        ((3, 1000), "float32", {"model.stencil": "five-point"}),
        ((150, 152), "float32", {"model.feed": [0.014, 0.03, 0.04, 0.05, 0.06], "model.kill": 0.06}),
    ],
    ids=str,
)
def test_every_tiling_has_the_bits_of_every_other_and_the_answers_of_the_reference(
    shape: tuple[int, int], precision: str, rates: dict[str, object], boundary: str, make_config: Make
) -> None:
    import cupy

    from gsio.compute.cuda.solver import CudaSolver

    config = make_config(
        {
            "grid.rows": shape[0],
            "grid.cols": shape[1],
            "grid.boundary": boundary,
            "model.precision": precision,
            "run.steps_per_frame": 37,
            "run.backend": "cupy",
            **rates,
        }
    )
    layout, start = layout_of(config), initial_state(config)
    u, v = np.random.default_rng(5).random((2, *layout.frame.shape), np.float32).astype(np.float64)
    start = start._replace(u=u, v=v)
    oracle = reference.solver(config, layout, start)
    oracle.advance(37)
    chosen = CudaSolver(config, layout, start)
    chosen.advance(37)
    expected = fields(chosen)
    tolerance = 2e-6 if precision == "float32" else 1e-14
    for mine, theirs in zip(expected, fields(oracle), strict=True):
        assert np.linalg.norm(mine - theirs) < tolerance * np.linalg.norm(theirs)
    properties = cupy.cuda.runtime.getDeviceProperties(0)
    device = Device(properties["multiProcessorCount"], properties["sharedMemPerBlockOptin"])
    for tiling in some_tilings(chosen.job, device):
        solver = CudaSolver(config, layout, start, tiling)
        for steps in (30, 7):
            solver.advance(steps)
        for mine, theirs in zip(fields(solver), expected, strict=True):
            np.testing.assert_array_equal(mine, theirs, err_msg=str(tiling))


FIELDS: dict[str, Callable[[np.random.Generator, np.ndarray], np.ndarray]] = {
    "random": lambda rng, cell: rng.random(cell.shape),
    "constant": lambda rng, cell: np.full(cell.shape, 0.3),
    "zero": lambda rng, cell: np.zeros(cell.shape),
    "smooth": lambda rng, cell: 0.5 + 0.4 * np.sin(cell / 300),
    "noise": lambda rng, cell: 0.3 + 1e-4 * rng.random(cell.shape),
    "few": lambda rng, cell: rng.integers(0, 3, cell.shape) / 4,
    "runs": lambda rng, cell: rng.random(cell.size // 37 + 1)[cell // 37],
    "skewed": lambda rng, cell: rng.geometric(0.5, cell.shape) / 255,
    "not finite": lambda rng, cell: np.where(cell % 1000 == 7, np.nan, rng.random(cell.shape)),
}


SIZES: list[tuple[tuple[int, int], dict[str, object]]] = [
    ((1, 1), {}),
    ((1, 1), {"output.store": "uint8"}),
    ((2, 3), {"output.fields": "u,v", "run.frames": 7}),
    ((8, 64), {"output.fields": "u,v", "run.frames": 300}),
    ((64, 128), {}),
    ((67, 121), {"output.fields": "u,v", "run.frames": 90}),
    ((67, 121), {"output.store": "uint8", "output.fields": "u,v"}),
    ((300, 501), {"output.store": "uint8", "model.dt": 1e-30}),  # every byte is as it was made
    ((300, 501), {"output.store": "uint16"}),
    ((300, 501), {"output.store": "float16", "run.frames": 9}),
    ((300, 501), {"output.keep_bits": 7, "output.fields": "u,v"}),
    ((300, 501), {"model.precision": "float64", "output.fields": "u,v"}),
    ((301, 77), {"model.precision": "float64", "output.store": "float32", "output.shard_frames": 4}),
    ((40, 90), {"model.feed": [0.02, 0.03, 0.04], "output.fields": "u,v"}),
]
DECODERS = {"lz4": blosc.decompress, "deflate": zlib.decompress}
LARGE = [((1080, 1920), {}), ((3001, 2999), {})]  # the last in slabs


@pytest.mark.parametrize("compression", ["lz4", "deflate"])
@pytest.mark.parametrize(
    ("shape", "changes", "kind"),
    [*((*size, kind) for size in SIZES for kind in FIELDS), *((*size, "smooth") for size in LARGE)],
    ids=str,
)
def test_the_gpu_encodes_what_the_cpu_would(
    shape: tuple[int, int], changes: dict[str, object], kind: str, compression: str, make_config: Make
) -> None:
    from gsio.compute.cuda.solver import CudaSolver

    if compression == "deflate" and "output.shard_frames" in changes:
        pytest.skip("Zarr has no such codec")
    grid = {"grid.rows": shape[0], "grid.cols": shape[1], "run.steps_per_frame": 1, "run.backend": "cupy"}
    config = make_config({"run.frames": 3, **grid, "output.compression": compression, **changes})
    layout, start = layout_of(config, "cupy"), initial_state(config)
    together, encoded_nbytes = layout.chunks.frames_together, layout.encoded_nbytes
    assert encoded_nbytes > 0
    few = min(-(-config.run.frames // together) * together, layout.frames_per_block)
    layout, staged = (BlockLayout(layout.chunks, few, few, nbytes) for nbytes in (encoded_nbytes, 0))
    rng, cell = np.random.default_rng(3), np.arange(layout.frame.cells)
    u, v = (FIELDS[kind](rng, cell).reshape(layout.frame.shape) for _ in "uv")
    start = start._replace(u=u, v=v)
    solvers = [CudaSolver(config, some, start) for some in (layout, staged)]
    blocks = [Block(layout, solver.allocate(layout.block_nbytes)) for solver in solvers]
    for count in dict.fromkeys([min(layout.frames_per_block, config.run.frames), 1]):
        for solver, block in zip(solvers, blocks, strict=True):
            block.count, block.chunks = count, {}
            solver.fill(block)
            solver.wait(block)
        encoded, raw = blocks
        assert raw.chunks == {}
        for slab in range(layout.chunks.slabs):
            chunks = dict(encoded.chunks)
            for block in blocks:
                codec.encode(block, slab)
            assert encoded.chunks == chunks
        assert encoded.chunks.keys() == raw.chunks.keys()
        for place, chunks in raw.chunks.items():
            for mine, theirs in zip(encoded.chunks[place], chunks, strict=True):
                assert DECODERS[compression](mine) == DECODERS[compression](theirs)
                assert kind != "zero" or len(mine) < 200 + layout.chunks.chunk_nbytes / 50
        np.testing.assert_array_equal(encoded.checksums[:count], raw.checksums[:count])
        np.testing.assert_array_equal(encoded.statistics[:count], raw.statistics[:count])


def test_auto_lets_the_gpu_encode(make_config: Make, tmp_path: Path) -> None:
    chunks = []
    for backend in ("auto", "cupy"):
        path = tmp_path / f"{backend}.h5"
        gsio.simulate(make_config({**RUN, "run.backend": backend, "output.compression": "deflate"}), path)
        with h5py.File(path) as file:
            chunks.append(file["v"].id.read_direct_chunk((0, 0, 0))[1])
    assert chunks[0] == chunks[1]


@pytest.mark.parametrize("changes", [{}, {"output.store": "uint16"}, {"model.feed": [0.03, 0.05]}], ids=str)
def test_readers_find_the_frames_that_the_gpu_encoded(
    changes: dict[str, object], make_config: Make, tmp_path: Path
) -> None:
    config = make_config({**RUN, "run.backend": "cupy", **changes, "output.compression": "none"})
    encoded = make_config({**RUN, "run.backend": "cupy", **changes, "output.compression": "lz4"})
    deflated = make_config({**RUN, "run.backend": "cupy", **changes, "output.compression": "deflate"})
    expected = frames_of(config, tmp_path / "raw.h5")
    found = frames_of(encoded, tmp_path / "run.h5")
    plain = frames_of(deflated, tmp_path / "plain.h5")
    gsio.simulate(encoded, tmp_path / "run.zarr")
    group = zarr.open_group(tmp_path / "run.zarr", mode="r")
    for name, mine, other, theirs in zip("uv", found, plain, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)
        np.testing.assert_array_equal(other, theirs)
        np.testing.assert_array_equal(group[name], theirs)
    for path in ("run.h5", "plain.h5", "run.zarr"):
        assert list(problems(gsio.open_stack(tmp_path / path))) == []


# The second GPU; the stand-in of tests/compute/test_devices.py checks the same without any


@pytest.fixture
def second_gpu() -> str:
    """Return the name of the second GPU; skip the test where there is none."""
    from gsio.compute.cuda.solver import count_devices

    if count_devices() < 2:
        pytest.skip("needs two GPUs")
    import cupy

    return str(cupy.cuda.runtime.getDeviceProperties(1)["name"].decode())


@pytest.mark.parametrize(
    "changes",
    [
        {"output.compression": "deflate"},
        {"output.compression": "deflate", "output.level": 2},  # encoded by the CPU
        {"output.compression": "lz4"},
        {"output.compression": "none"},
        {"model.precision": "float64", "model.feed": [0.03, 0.05]},
    ],
    ids=str,
)
def test_the_second_gpu_makes_the_frames_of_the_first(
    changes: dict[str, object], second_gpu: str, make_config: Make, tmp_path: Path
) -> None:
    run = {**RUN, "run.backend": "cupy", "run.checkpoint_every": 40, **changes}
    expected = frames_of(make_config(run), tmp_path / "first.h5")
    config = make_config({**run, "run.device": 1})
    summary = gsio.simulate(config, tmp_path / "second.h5")
    assert summary.device == second_gpu
    with h5py.File(tmp_path / "second.h5") as file:
        for name, theirs in zip("uv", expected, strict=True):
            np.testing.assert_array_equal(file[name][:], theirs)


def test_a_run_goes_on_on_the_second_gpu(second_gpu: str, make_config: Make, tmp_path: Path) -> None:
    run = {**RUN, "run.backend": "cupy", "output.compression": "deflate"}
    expected = frames_of(make_config(run), tmp_path / "whole.h5")
    gsio.simulate(make_config({**run, "run.frames": 100}), tmp_path / "parts.h5")
    gsio.simulate(make_config({**run, "run.device": 1}), tmp_path / "parts.h5", resume="must")
    with h5py.File(tmp_path / "parts.h5") as file:
        for name, theirs in zip("uv", expected, strict=True):
            np.testing.assert_array_equal(file[name][:], theirs)


@pytest.mark.parametrize("backend", ["cupy-arrays", "jax", "torch"])
def test_array_code_runs_on_the_second_gpu(backend: str, second_gpu: str, make_config: Make, tmp_path: Path) -> None:
    pytest.importorskip(backend.removesuffix("-arrays"))
    changes = {**RUN, "run.frames": 20, "output.compression": "deflate"}
    found = frames_of(make_config({**changes, "run.backend": backend, "run.device": 1}), tmp_path / "gpu.h5")
    expected = frames_of(make_config({**changes, "run.backend": "numpy"}), tmp_path / "numpy.h5")
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-3)


def test_auto_is_the_second_gpu_and_its_tilings_are_measured(
    second_gpu: str, make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = make_config({**RUN, "run.backend": "auto", "run.device": 1})
    assert choose_backend(config) == "cupy"
    (_, speed), *_ = tune(config, layout_of(config), initial_state(config), recall, remember)
    assert speed > 0
