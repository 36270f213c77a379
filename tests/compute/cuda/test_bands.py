"""Bands on several GPUs, on simulated ones: the bits of one GPU, in whatever order the streams go on."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from simulation import Simulation, simulated

from gsio.codec import CODECS
from gsio.compute.cuda.segments import encoded_nbytes
from gsio.compute.solver import fields
from gsio.config import Config
from gsio.frames.block import Block
from gsio.frames.chunking import Chunking
from gsio.frames.content import Content
from gsio.frames.layout import BlockLayout
from gsio.frames.sizes import Sizes
from gsio.run.initial import initial_state

MakeConfig = Callable[..., Config]
FRAMES, BLOCKS = 3, 7  # of a block; more blocks than slots
GRID = {
    "run.backend": "cupy", "grid.rows": 61, "grid.cols": 43, "run.steps_per_frame": 7, "output.fields": "u,v",
    "initial.kind": "noise",
}  # fmt: skip


class Stencil(Simulation):
    """A GPU whose time step spreads what a row has to the rows around it, so that a wrong halo is seen."""

    def advance(self, options: Any, grid: Any, *arguments: Any) -> None:
        (u, v, next_u, next_v), plan = (array.values for array in arguments[:4]), arguments[-2]
        passes = int(plan["passes"])
        for _ in range(passes * int(plan["steps"]) + int(plan["longer"])):
            u, v = self.spread(options, u) + v / 8, self.spread(options, v) / 2
        to = (next_u, next_v) if passes % 2 else arguments[:2]
        for array, values in zip(to, (u, v), strict=True):
            getattr(array, "values", array)[...] = values

    def spread(self, options: Any, field: np.ndarray) -> np.ndarray:
        mode = "wrap" if "-DBOUNDARY=0" in options else "edge" if "-DBOUNDARY=1" in options else "constant"
        padded = np.pad(field, [(0, 0)] * (field.ndim - 2) + [(1, 1), (0, 0)], mode=mode)  # type: ignore[call-overload]
        found: np.ndarray = (padded[..., :-2, :] / 4 + field / 2 + padded[..., 2:, :] / 3) / 2
        return found


def layout_for(config: Config, count: int, compression: str, lines: int = 0) -> BlockLayout:
    codec = CODECS[compression]
    frame = Content.of(config).frame(shuffle=codec.byte_planes)
    chunks = Chunking.choose(
        frame, Sizes(), frames=FRAMES, frames_per_chunk=FRAMES if count == 2 else 1, lines_per_chunk=lines,
        bands=count, codec=compression,
    )  # fmt: skip
    return BlockLayout(chunks, FRAMES, FRAMES, 0 if lines else encoded_nbytes(chunks, compression))


def run(solver: Any, layout: BlockLayout, count: int) -> list[tuple[bytes, ...]]:
    """Return what each of some blocks has; threads wait for them meanwhile."""
    blocks = [Block(layout, solver.allocate(layout.block_nbytes)) for _ in range(count)]
    with ThreadPoolExecutor(3) as threads:
        waits = []
        for number, block in enumerate(blocks):
            block.count = FRAMES - (number == count - 1)  # the last is not full
            solver.fill(block)
            waits += [threads.submit(solver.wait, block) for _ in range(2)]
        for wait in waits:
            wait.result()
    found = []
    for block in blocks:
        numbers = block.statistics[: block.count].tobytes()
        if layout.encoded_nbytes:
            chunks = [bytes(chunk) for place in sorted(block.chunks) for chunk in block.chunks[place]]
            found.append((numbers, block.checksums[: block.count].tobytes(), *chunks))
        else:
            found.append((numbers, block.data[: block.count].tobytes()))
    return found


def check(
    make_config: MakeConfig, changes: dict[str, Any], count: int, compression: str, seed: int, lines: int = 0,
    direct: bool = True, blocks: int = BLOCKS,
) -> None:  # fmt: skip
    config = make_config({**GRID, **changes})
    layout, start = layout_for(config, count, compression, lines), initial_state(config)
    with simulated(Stencil(seed)) as solver_of:
        solver = solver_of(config, layout, start)
        expected = run(solver, layout, blocks), [field.tobytes() for field in fields(solver)]
    with simulated(Stencil(seed)):
        bands = import_module("gsio.compute.cuda.bands")
        solver = bands.BandsSolver(config, layout, start, [0] * count, direct=direct)
        found = run(solver, layout, blocks), [field.tobytes() for field in fields(solver)]
    assert found == expected


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("boundary", ["periodic", "neumann", "zero"])
@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize(("compression", "lines"), [("deflate", 0), ("deflate", 61), ("none", 61)])
def test_bands_have_the_bits_of_one_gpu(
    compression: str, lines: int, count: int, boundary: str, seed: int, make_config: MakeConfig
) -> None:
    check(make_config, {"grid.boundary": boundary}, count, compression, seed, lines)


def test_rows_can_pass_host_memory(make_config: MakeConfig) -> None:
    for seed in range(5):
        check(make_config, {}, 3, "deflate", seed, direct=False)


def test_a_halo_can_be_exchanged_several_times_in_a_frame(make_config: MakeConfig) -> None:
    check(make_config, {"run.steps_per_frame": 40, "grid.rows": 23}, 3, "deflate", 1)
    many = {"run.steps_per_frame": 800, "grid.rows": 3}  # too many launches for a graph
    check(make_config, many, 3, "none", 1, 3, blocks=1)


def test_members_of_a_batch_need_no_exchange(make_config: MakeConfig) -> None:
    feed = [0.02, 0.025, 0.03, 0.035]
    for count in (2, 3, 4):
        check(make_config, {"model.feed": feed}, count, "deflate", count)
