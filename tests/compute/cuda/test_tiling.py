"""Tilings cover the grid and keep their promises; and the kernels compile for GPUs this machine does not have."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gsio.codec import CODECS
from gsio.codec.interface import Kernels
from gsio.compute.cuda.sources import ADVANCE, RUNGS, STAGE, encode_options, kernel_options, read, stage_options
from gsio.compute.cuda.tiling import (
    SHAPES,
    Device,
    Job,
    Shape,
    Tiling,
    choose,
    pitch_of,
    tilings,
)
from gsio.config import Config
from gsio.frames.format import FrameFormat
from gsio.model.gray_scott import coefficients
from gsio.run.tunings import recall, remember

MakeConfig = Callable[..., Config]

# Shared memory a block may have: NVIDIA, CUDA C++ Programming Guide, technical specifications by compute capability.
DEVICES = {"sm_80": Device(108, 163 << 10), "sm_90": Device(132, 227 << 10), "sm_100": Device(148, 227 << 10)}
H100 = DEVICES["sm_90"]
SPILLED = {"sm_80": 96, "sm_90": 112, "sm_100": 256}  # bytes at most, outside the loop over the steps
SPILLED_AT_EDGES = 256  # to tell where a zero boundary is
MAIN = {"grid.rows": 1080, "grid.cols": 1920, "run.steps_per_frame": 32}

jobs = st.builds(
    Job,
    members=st.integers(1, 70),
    rows=st.one_of(st.integers(1, 300), st.integers(1, 20_000)),
    cols=st.one_of(st.integers(1, 300), st.integers(1, 20_000)),
    itemsize=st.sampled_from([4, 8]),
    steps=st.integers(1, 200),
    by_cell=st.booleans(),
    periodic=st.booleans(),
)


def order(job: Job, tiling: Tiling, member: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return the places of tiles in the order of a pass, as the kernel has it."""
    down = tiling.tiles_y < tiling.tiles_x
    in_member = x * tiling.tiles_y + y if down else y * tiling.tiles_x + x
    return member * tiling.tiles_y * tiling.tiles_x + in_member


def lines(n: int, tiles: int) -> np.ndarray:
    """Return where the tiles of a line of `n` rows or lanes begin and end, as the kernel cuts it."""
    size, larger = divmod(n, tiles)
    return np.concatenate([[0], np.cumsum([size] * (tiles - larger) + [size + 1] * larger)])


@settings(deadline=None)
@given(job=jobs, device=st.sampled_from(list(DEVICES.values())))
def test_every_tile_and_its_halo_fit_a_block(job: Job, device: Device) -> None:
    possible = list(tilings(job, device))
    assert possible
    for tiling in possible:
        shape = tiling.shape
        assert pitch_of(job.cols) >= tiling.units(job) * shape.cols >= job.cols
        assert tiling.halo_x % shape.cols == pitch_of(job.cols) % shape.cols == 0
        assert 1 <= tiling.depth <= min(tiling.halo_x, job.steps)
        assert tiling.shared_nbytes(job) <= device.shared_nbytes
        rows, cols = lines(job.rows, tiling.tiles_y), lines(tiling.units(job), tiling.tiles_x) * shape.cols
        assert rows[-1] == job.rows
        assert job.cols <= cols[-1] < job.cols + shape.cols
        heights, widths = np.diff(rows), np.diff(cols)
        assert heights.min() >= 1
        assert widths.min() >= 1
        assert heights.max() + 2 * tiling.halo_y(job) <= shape.rows * shape.warps
        assert widths[:-1].max(initial=1) + 2 * tiling.halo_x <= 32 * shape.cols
        assert job.cols - cols[-2] + tiling.halo_x + tiling.depth <= 32 * shape.cols
        assert tiling.halo_y(job) == (0 if tiling.closed(job) else tiling.depth)
        if tiling.at_once:  # what it needs of others lies in the tiles right around
            assert tiling.tiles_y == 1 or heights.min() >= tiling.depth
            assert tiling.tiles_x == 1 or widths.min() - (cols[-1] - job.cols) >= tiling.halo_x


@settings(deadline=None, max_examples=30)
@given(
    job=st.builds(
        Job,
        members=st.integers(1, 5),
        rows=st.integers(1, 3000),
        cols=st.integers(1, 2000),
        itemsize=st.just(4),
        steps=st.just(64),
        by_cell=st.just(False),
        periodic=st.booleans(),
    )
)
def test_no_block_waits_for_one_that_waits_for_it(job: Job) -> None:
    device = Device(10, H100.shared_nbytes)
    for tiling in tilings(job, device):
        tiles = tiling.tiles(job)
        if not tiling.at_once or tiles <= device.multiprocessors:
            continue
        # Blocks take the tiles of all passes one after another. Before a block computes the one numbered n, it waits
        # for what the next it will take, n + blocks, needs: that has to come before n.
        number = np.arange(tiles)
        member, y, x = np.unravel_index(number, (job.members, tiling.tiles_y, tiling.tiles_x))
        nearest = tiles
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                near_y, near_x = y + dy, x + dx
                if job.periodic:
                    near_y, near_x = near_y % tiling.tiles_y, near_x % tiling.tiles_x
                inside = (near_y >= 0) & (near_y < tiling.tiles_y) & (near_x >= 0) & (near_x < tiling.tiles_x)
                position = (order(job, tiling, member, y, x) - 5 * tiling.reach(job)) % tiles  # in pass 5
                before = (order(job, tiling, member, near_y, near_x) - 4 * tiling.reach(job)) % tiles  # in pass 4
                nearest = min(nearest, int(np.where(inside, tiles + position - before, tiles).min()))
        assert nearest >= 2 * device.multiprocessors


def test_a_batch_takes_all_passes_at_once() -> None:
    tiling = choose(Job(64, 256, 256, 4, 32), H100)
    assert tiling.at_once
    assert tiling.tiles(Job(64, 256, 256, 4, 32)) > H100.multiprocessors


def test_the_main_job_stays_on_the_multiprocessors() -> None:
    job = Job(1, 1080, 1920, 4, 32)
    tiling = choose(job, H100)
    assert tiling.at_once
    assert tiling.tiles(job) <= H100.multiprocessors


def test_a_tile_as_high_as_a_periodic_grid_has_no_halo_above_and_below() -> None:
    job = Job(64, 256, 256, 4, 32, periodic=True)
    closed = [tiling for tiling in tilings(job, H100) if tiling.closed(job)]
    assert closed
    assert {(tiling.tiles_y, tiling.halo_y(job)) for tiling in closed} == {(1, 0)}
    mirrored = job._replace(periodic=False)
    assert not any(tiling.closed(mirrored) for tiling in tilings(mirrored, H100))


def test_a_measured_choice_is_kept_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    job = Job(1, 500, 600, 4, 32)
    other = max(tilings(job, H100), key=lambda tiling: tiling.estimate(job, H100))
    assert choose(job, H100, recall("mine")) != other
    path = remember("mine", other.record())
    assert path.is_relative_to(tmp_path)
    assert choose(job, H100, recall("mine")) == other
    assert choose(job, H100, recall("another")) != other
    path.write_text("damaged")
    assert choose(job, H100, recall("mine")) != other


def test_a_choice_that_is_no_longer_possible_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    remember("mine", Tiling(Shape(3, 3, 3), 5, 1, 1, at_once=True).record())
    job = Job(1, 500, 600, 4, 32)
    assert choose(job, H100, recall("mine")) == choose(job, H100)


# Compiling, without a GPU


def compile_for(architecture: str, sources: tuple[str, ...], options: tuple[str, ...]) -> str:
    """Compile with NVRTC and return what the assembler says of registers and memory; fail with what is wrong."""
    nvrtc = pytest.importorskip("cuda.bindings.nvrtc")
    status, program = nvrtc.nvrtcCreateProgram(read(*sources).encode(), " ".join(sources).encode(), 0, [], [])
    assert status == 0
    options = (*options, f"--gpu-architecture={architecture}", "--ptxas-options=-v")
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
    _, size = nvrtc.nvrtcGetProgramLogSize(program)
    log = b" " * size
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(program)
    assert status == 0, log.decode()
    return log.decode()


def assert_in_registers(log: str, threads: int, spilled: int) -> None:
    """Check that the registers of any kernel's block fit a multiprocessor, and that next to nothing is spilled."""
    found = re.findall(r"(\d+) bytes spill (?:stores|loads)", log)
    used = re.findall(r"Used (\d+) registers", log)
    assert found
    assert used
    assert max(map(int, used)) * threads <= 65536
    assert max(map(int, found)) <= spilled


CHANGES: list[dict[str, Any]] = [
    {},
    {"grid.boundary": "neumann"},
    {"grid.boundary": "zero"},
    {"model.stencil": "five-point"},
    {"model.stencil": "patra-karttunen", "model.dt": 0.5},
    {"model.stencil": "ones", "grid.boundary": "zero", "grid.cols": 1919},
    {"grid.cols": 1918, "grid.boundary": "neumann"},
    {"model.feed": [0.01, 0.02, 0.03]},
    {"model.feed": {"along": "x", "start": 0.01, "stop": 0.06}},
    {"model.kill": {"along": "y", "start": 0.01, "stop": 0.06}, "model.feed": [0.01, 0.02], "grid.boundary": "zero"},
    {"model.precision": "float64"},
    {"model.precision": "float64", "grid.boundary": "zero", "model.dt": 0.5},
]


@pytest.mark.parametrize("architecture", DEVICES)
@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_the_kernel_of_a_run_compiles(changes: dict[str, Any], architecture: str, make_config: MakeConfig) -> None:
    config = make_config({**MAIN, **changes})
    model, grid = config.model, config.grid
    by_cell, by_member = "along" in str(changes), "[" in str(changes)
    itemsize = np.dtype(model.precision).itemsize
    job = Job(config.members, grid.rows, grid.cols, itemsize, config.run.steps_per_frame, by_cell)
    centre = coefficients(model, np.array(0.01), np.array(0.05)).centre
    tiling = choose(job, DEVICES[architecture])
    rates = 2 if by_cell else int(by_member)
    options = kernel_options(config, tiling, job, DEVICES[architecture], centre, rates)
    spilled = SPILLED_AT_EDGES if grid.boundary == "zero" else SPILLED[architecture]
    assert_in_registers(compile_for(architecture, ADVANCE, options), 32 * tiling.shape.warps, spilled)


@pytest.mark.parametrize("architecture", DEVICES)
@pytest.mark.parametrize("rung", RUNGS)
def test_every_rung_of_the_ladder_compiles(rung: str, architecture: str) -> None:
    assert_in_registers(compile_for(architecture, (f"{rung}.cu",), RUNGS[rung]), 256, spilled=0)


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("tiles", [1, H100.multiprocessors + 1])
@pytest.mark.parametrize(("itemsize", "shape"), [(size, shape) for size in SHAPES for shape in SHAPES[size]], ids=str)
def test_every_shape_fits_the_registers(
    itemsize: int, shape: Shape, tiles: int, at_once: bool, make_config: MakeConfig
) -> None:
    config = make_config({**MAIN, "model.precision": {4: "float32", 8: "float64"}[itemsize]})
    job = Job(1, 1080, 1920, itemsize, 32)
    options = kernel_options(config, Tiling(shape, 4, tiles, 1, at_once), job, H100, 2, 0)
    assert_in_registers(compile_for("sm_90", ADVANCE, options), 32 * shape.warps, SPILLED["sm_90"])


@pytest.mark.parametrize("architecture", DEVICES)
@pytest.mark.parametrize("computed", ["float32", "float64"])
@pytest.mark.parametrize(
    ("store", "keep_bits"),
    [("computed", 0), ("computed", 10), ("float32", 7), ("float16", 0), ("uint16", 0), ("uint8", 0)],
)
@pytest.mark.parametrize("shuffle", [False, True])
def test_the_staging_of_frames_compiles(
    shuffle: bool, store: str, keep_bits: int, computed: str, architecture: str
) -> None:
    stored = computed if store == "computed" else store
    frame = FrameFormat.of((9, 9), "v", computed, shuffle=shuffle, store=stored, keep_bits=keep_bits)
    assert_in_registers(compile_for(architecture, STAGE, stage_options(frame)), 256, spilled=0)


@pytest.mark.parametrize("architecture", DEVICES)
@pytest.mark.parametrize("kernels", [codec.kernels for codec in CODECS.values() if codec.kernels])
def test_the_encoding_of_frames_compiles(kernels: Kernels, architecture: str) -> None:
    sources, options = ("chunks.cu", kernels.source), encode_options(kernels)
    assert_in_registers(compile_for(architecture, sources, options), 256, spilled=0)
