"""The orders that the CUDA solver gives its device, on a simulated one: right in whatever order the streams go on."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simulation import Simulation, simulated

import gsio
from gsio.bench.storage import stored
from gsio.config import Config
from gsio.frames.block import BlockPool
from gsio.reader import open_stack
from gsio.reader.verify import problems
from gsio.run.initial import initial_state
from gsio.run.plan import layout_of, with_codec
from gsio.testing import small_blocks

MakeConfig = Callable[..., Config]


@pytest.fixture
def restless() -> Iterator[None]:
    """Let threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("restless")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"output.fields": "u,v"},
        {"output.compression": "none"},
        {"output.level": 2},
        {"grid.rows": 120, "grid.cols": 101, "run.frames": 60},
        {"grid.rows": 240, "grid.cols": 101, "run.frames": 40},  # in slabs
    ],
    ids=str,
)
def test_frames_are_right_in_whatever_order_streams_go_on(
    changes: dict[str, object], seed: int, make_config: MakeConfig, tmp_path: Path
) -> None:
    small_blocks(64 << 10, 8 << 10, large_bytes=90_000, slab_bytes=20_000)
    device = Simulation(seed)
    with simulated(device) as solver_of:
        save_and_check(solver_of, changes, make_config, tmp_path / "run.h5")


@pytest.mark.usefixtures("restless")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("compression", ["deflate", "none"])
def test_arrays_that_change_right_after_append_are_saved_as_they_were_in_whatever_order_streams_go_on(
    compression: str, seed: int, tmp_path: Path
) -> None:
    small_blocks(64 << 10, 8 << 10)
    device, shape, count = Simulation(seed), (30, 41), 200
    with simulated(device):
        streams = [device.cuda.get_current_stream(), device.cuda.Stream()]
        arrays = [device.asarray(np.full(shape, 1000 * which, np.float32)) for which in range(2)]
        with gsio.FrameWriter(tmp_path / "run.h5", shape, compression=compression, threads=2) as out:
            for number in range(count):
                with streams[number % 2]:
                    arrays[number % 2].add_one()
                    out.append(arrays[number % 2])
                    arrays[number % 2].add_one()
    with open_stack(tmp_path / "run.h5") as stack:
        assert list(problems(stack)) == []
        assert stack.attributes["device"] == "simulated"
        for number, frame in enumerate(stack.v[:]):
            np.testing.assert_array_equal(frame, np.full(shape, 1000 * (number % 2) + 2 * (number // 2) + 1))
        assert stack.frames == count


def save_and_check(solver_of: Any, changes: dict[str, object], make_config: MakeConfig, output: Path) -> None:
    small = {"grid.rows": 30, "grid.cols": 41, "run.frames": 500, "run.steps_per_frame": 1, "output.threads": 4}
    config = with_codec(make_config({**small, "run.backend": "cupy", **changes}), output)
    layout, start = layout_of(config, "cupy"), initial_state(config)
    solver = solver_of(config, layout, start)
    stored(config, output, layout, solver, BlockPool(layout, 16, solver.allocate))
    with open_stack(output) as stack:
        assert list(problems(stack)) == []
        frames = stack.v[:]
    added = frames[0, 0, 0] - np.float32(start.v[0, 0])
    assert added > 0
    for number, frame in enumerate(frames, 1):
        np.testing.assert_array_equal(frame, start.v.astype(np.float32) + number * added)
