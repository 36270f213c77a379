"""What every backend in the table promises: how it steps, what it stages into blocks, and what a snapshot keeps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from solvers import (
    BESIDES_NUMPY,
    EVERY,
    PEERS,
    SLOW,
    assert_same_bits,
    backend_param,
    make_solver,
    need_library,
    random_start,
)

import gsio
from gsio.compute.host import pack
from gsio.compute.solver import Solver, fields
from gsio.config import Config
from gsio.frames.block import Block
from gsio.frames.format import FrameFormat
from gsio.frames.layout import BlockLayout
from gsio.model.gray_scott import Field
from gsio.run.plan import layout_of

MakeConfig = Callable[..., Config]

# Relative L2 against the float64 reference after 32 steps. Measured: 7e-7 and 3e-15.
TOLERANCE = {"float32": 2e-6, "float64": 1e-13}
GRID = {"grid.rows": 23, "grid.cols": 34}
RAMP_X = {"along": "x", "start": 0.05, "stop": 0.07}
RAMP_Y = {"along": "y", "start": 0.01, "stop": 0.06}
WEAK = {"model.diffusion_u": 0.05, "model.diffusion_v": 0.025}  # stable with every stencil
CASES: list[dict[str, Any]] = [
    *(
        {"grid.rows": rows, "grid.cols": cols, "grid.boundary": boundary}
        for rows, cols in ((1, 1), (13, 2), (3, 17))
        for boundary in ("periodic", "neumann", "zero")
    ),
    *({"model.stencil": stencil, **WEAK} for stencil in ("five-point", "patra-karttunen", "ones")),
    {"model.feed": [0.01, 0.03, 0.05]},
    {"model.feed": [0.03]},
    {"model.feed": RAMP_Y, "model.kill": RAMP_X},
    {"model.feed": [0.01, 0.03], "model.kill": RAMP_X, "grid.boundary": "neumann"},
]
FEW: list[dict[str, Any]] = [{"model.feed": [0.01, 0.03], "model.kill": RAMP_X, "model.stencil": "five-point"}]
RATES: dict[str, dict[str, Any]] = {
    "numbers": {},
    "members": {"model.feed": [0.01, 0.03, 0.05]},
    "maps": {"model.feed": RAMP_Y, "model.kill": RAMP_X},
}
LOSSY = [("", 5), ("float32", 0), ("float32", 12), ("float16", 0), ("uint16", 0), ("uint8", 0)]


def record(solver: Solver, layout: BlockLayout, frames: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return data and statistics of `frames` frames, all blocks filled before the first is waited for."""
    blocks = []
    for first in range(0, frames, layout.frames_per_block):
        block = Block(layout, solver.allocate(layout.block_nbytes))
        block.count = min(layout.frames_per_block, frames - first)
        solver.fill(block)
        blocks.append(block)
    for block in reversed(blocks):
        solver.wait(block)
    data, statistics = zip(
        *((block.data[: block.count], block.statistics[: block.count]) for block in blocks), strict=True
    )
    return np.concatenate(data), np.concatenate(statistics)


def staged_field(layout: BlockLayout, data: NDArray[np.uint8]) -> Field:
    """Return the field, of the layout's shape, that lies in `data` as its byte planes or as it is."""
    raw = data.reshape(layout.frame.dtype.itemsize, -1).T.copy() if layout.frame.shuffle else data.copy()
    return raw.reshape(-1).view(layout.frame.dtype).reshape(layout.frame.shape)


def assert_statistics(found: NDArray[np.float64], field: Field) -> None:
    finite = field[np.isfinite(field)]
    assert found[0] == finite.min()
    assert found[1] == finite.max()
    assert found[2] == pytest.approx(finite.mean(dtype=np.float64), rel=1e-6)
    assert found[3] == 0  # the error, of what is stored as it is
    assert found[4] == field.size - finite.size


# Steps


def after_32(solver: Solver) -> tuple[Field, Field]:
    for steps in (30, 2):
        solver.advance(steps)
    return fields(solver)


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("backend", BESIDES_NUMPY)
def test_answers_are_those_of_the_reference(backend: str, precision: str, make_config: MakeConfig) -> None:
    for changes in FEW if backend in SLOW else CASES:
        config = make_config({"model.precision": precision, **changes})
        layout = layout_of(config)
        start = random_start(*layout.frame.shape)
        expected = after_32(make_solver("numpy", config, layout, start))
        found = after_32(make_solver(backend, config, layout, start))
        for mine, theirs in zip(found, expected, strict=True):
            assert (mine.dtype, mine.shape) == (precision, layout.frame.shape)
            assert np.linalg.norm(mine - theirs) < TOLERANCE[precision] * np.linalg.norm(theirs), changes


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("pieces", [[1] * 40, [7, 0, 33], [32, 8]], ids=["single steps", "odd", "even"])
@pytest.mark.parametrize("backend", EVERY)
def test_steps_in_pieces_have_the_bits_of_one_go(
    backend: str, pieces: list[int], precision: str, make_config: MakeConfig
) -> None:
    config = make_config({**GRID, "model.precision": precision})
    whole, apart = (make_solver(backend, config, layout_of(config), random_start(23, 34)) for _ in range(2))
    whole.advance(40)
    for steps in pieces:
        apart.advance(steps)
    assert_same_bits(fields(apart), fields(whole))


@pytest.mark.parametrize("rates", RATES.values(), ids=RATES)
@pytest.mark.parametrize("backend", EVERY)
def test_later_steps_and_blocks_leave_a_snapshot_as_it_is(
    backend: str, rates: dict[str, Any], make_config: MakeConfig
) -> None:
    config = make_config({**GRID, **rates})
    layout = layout_of(config)
    solver = make_solver(backend, config, layout, random_start(*layout.frame.shape))
    solver.advance(3)
    before, snapshot = fields(solver), solver.snapshot()
    kept = tuple(field.copy() for field in before)
    assert_same_bits((solver.field("u"), solver.field("v")), before)
    solver.advance(2)
    block = Block(layout, solver.allocate(layout.block_nbytes))
    block.count = 1
    solver.fill(block)
    assert_same_bits(snapshot(), kept)
    solver.wait(block)
    assert_same_bits(snapshot(), kept)
    assert_same_bits(before, kept)  # `fields` are copies too
    assert solver.field("v").tobytes() != kept[1].tobytes()


# Staging


@pytest.mark.parametrize(("fields", "shuffle"), [("v", True), ("u", False), ("u,v", True), ("u,v", False)])
@pytest.mark.parametrize("shape", [(1, 1), (13, 9), (16, 20)], ids=str)
@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("backend", EVERY)
def test_blocks_hold_the_fields_and_their_statistics(
    backend: str, precision: str, shape: tuple[int, int], fields: str, shuffle: bool, make_config: MakeConfig
) -> None:
    config = make_config({"grid.rows": shape[0], "grid.cols": shape[1], "model.precision": precision})
    check_blocks(backend, config, FrameFormat.of(shape, fields, precision, shuffle=shuffle))


@pytest.mark.parametrize("rates", [RATES["members"], RATES["maps"]], ids=["members", "maps"])
@pytest.mark.parametrize("shuffle", [True, False], ids=["shuffled", "plain"])
@pytest.mark.parametrize("backend", EVERY)
def test_blocks_hold_batches_and_runs_with_maps(
    backend: str, shuffle: bool, rates: dict[str, Any], make_config: MakeConfig
) -> None:
    config = make_config({**GRID, **rates})
    check_blocks(backend, config, FrameFormat.of(layout_of(config).frame.shape, "u,v", "float32", shuffle=shuffle))


def check_blocks(backend: str, config: Config, frame: FrameFormat) -> None:
    """Check that blocks hold what a second solver that only steps has at the same time."""
    layout = BlockLayout.of_frames(frame, 3)
    solver, twin = (make_solver(backend, config, layout, random_start(*frame.shape)) for _ in range(2))
    block = Block(layout, solver.allocate(layout.block_nbytes))
    for count in (3, 3, 2):  # the last block of a run is not full
        block.count = count
        solver.fill(block)
        solver.wait(block)
        for number in range(count):
            twin.advance(config.run.steps_per_frame)
            now = dict(zip("uv", fields(twin), strict=True))
            for i, name in enumerate(frame.fields):
                expected = now[name].astype(frame.dtype)
                assert_same_bits((staged_field(layout, block.data[number, i]),), (expected,))
                assert_statistics(block.statistics[number, i], expected)
        assert_same_bits(fields(solver), fields(twin))


@pytest.mark.parametrize("frames_per_block", [2, 3, 7, 10])
@pytest.mark.parametrize("fields", ["v", "u,v"])
@pytest.mark.parametrize("backend", EVERY)
def test_frames_have_the_same_bits_for_any_block_size(
    backend: str, fields: str, frames_per_block: int, make_config: MakeConfig
) -> None:
    config = make_config({**GRID, "output.fields": fields})
    frames = []
    for size in (1, frames_per_block):
        layout = BlockLayout.of_frames(layout_of(config).frame, size)
        frames.append(record(make_solver(backend, config, layout, random_start(23, 34)), layout, 7))
    (data, statistics), (expected_data, expected_statistics) = frames
    assert len(data) == 7
    np.testing.assert_array_equal(data, expected_data)
    np.testing.assert_array_equal(statistics, expected_statistics)


@pytest.mark.parametrize("shuffle", [True, False], ids=["shuffled", "plain"])
@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("backend", EVERY)
def test_statistics_count_non_finite_values_and_describe_the_others(
    backend: str, bad: float, precision: str, shuffle: bool, make_config: MakeConfig
) -> None:
    config = make_config({"grid.rows": 21, "grid.cols": 33, "model.precision": precision})
    layout = BlockLayout.of_frames(FrameFormat.of((21, 33), "u,v", precision, shuffle=shuffle), 1)
    u, v = random_start(21, 33)
    u[4, 5] = v[0, 0] = v[20, 17] = bad
    solver = make_solver(backend, config, layout, (u, v))
    data, statistics = record(solver, layout, 1)
    for i, field in enumerate(fields(solver)):
        field = field.astype(layout.frame.dtype)
        assert 3 * 9 < statistics[0, i, 4] < field.size
        assert_same_bits((staged_field(layout, data[0, i]),), (field,))
        assert_statistics(statistics[0, i], field)


@pytest.mark.parametrize("backend", EVERY)
def test_statistics_of_a_field_without_a_finite_value_are_zero(backend: str, make_config: MakeConfig) -> None:
    config = make_config()
    layout = BlockLayout.of_frames(layout_of(config).frame, 1)
    nowhere = np.full((12, 17), np.nan)
    _, statistics = record(make_solver(backend, config, layout, (nowhere, nowhere)), layout, 1)
    assert statistics.tolist() == [[[0, 0, 0, 0, 12 * 17]]]


@pytest.mark.parametrize("backend", EVERY)
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize(("store", "keep_bits"), LOSSY)
def test_values_are_stored_in_fewer_bits_alike(
    store: str, keep_bits: int, precision: str, shuffle: bool, backend: str, make_config: MakeConfig
) -> None:
    config = make_config({"grid.rows": 21, "grid.cols": 33, "model.precision": precision})
    frame = FrameFormat.of((21, 33), "u,v", precision, shuffle=shuffle, store=store, keep_bits=keep_bits)
    layout = BlockLayout.of_frames(frame, 1)
    solver = make_solver(backend, config, layout, random_start(21, 33))
    data, statistics = record(solver, layout, 1)
    for i, field in enumerate(fields(solver)):
        expected, error = pack(field.astype(precision), frame)
        assert_same_bits((staged_field(layout, data[0, i]),), (expected,))
        assert statistics[0, i, 3] == error
        assert (error > 0) == frame.lossy
        assert statistics[0, i, 1] == field.astype(precision).max()


# Runs


@pytest.mark.parametrize("backend", [backend_param(name) for name in PEERS])
def test_a_run_by_array_code_is_saved_as_any_other(
    backend: str, make_config: MakeConfig, expected_frames: Any, tmp_path: Path
) -> None:
    need_library(backend)
    config = make_config({"run.backend": backend, "output.fields": "u,v", "model.feed": [0.02, 0.03]})
    gsio.simulate(config, tmp_path / "run.h5")
    with h5py.File(tmp_path / "run.h5") as file:
        assert file.attrs["backend"] == backend
        for name, frames in expected_frames(config).items():
            np.testing.assert_allclose(file[name], frames, rtol=1e-5, atol=1e-7)
