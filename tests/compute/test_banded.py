"""Bands that compute and stage their parts of frames, against one solver: fields, statistics and checksums."""

import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import numpy as np
import pytest
from patience import DEADLINE

from gsio import codec
from gsio.compute import open_solver
from gsio.compute.banded import BandSolver, RowsSolver
from gsio.compute.bands import Band, Cost, Message, cut
from gsio.compute.parts import join_parts, part_of
from gsio.compute.solver import Solver, fields
from gsio.config import Config
from gsio.frames.block import Block
from gsio.frames.chunking import Chunking
from gsio.frames.content import Content
from gsio.frames.layout import BlockLayout
from gsio.frames.sizes import Sizes
from gsio.model.start import Start
from gsio.run.initial import initial_state

FRAMES = 2
NUMBA = pytest.param("numba", marks=pytest.mark.numba)


class Meeting:
    """The exchange of bands in threads of one process."""

    def __init__(self, bands: int) -> None:
        self._barrier = threading.Barrier(bands)
        self._sent: dict[tuple[int, int], Any] = {}

    def exchange_of(self, band: Band) -> Callable[[Sequence[tuple[Message, Any]]], list[Any]]:
        def exchange(messages: Sequence[tuple[Message, Any]]) -> list[Any]:
            self._sent |= {(band.number, message.side): rows for message, rows in messages}
            self._barrier.wait(DEADLINE)
            found = [self._sent[message.neighbour, 1 - message.side] for message, _ in messages]
            self._barrier.wait(DEADLINE)
            return found

        return exchange


def block_of(solver: Solver, layout: BlockLayout) -> Block:
    block = Block(layout, solver.allocate(layout.block_nbytes))
    block.count = FRAMES
    solver.fill(block)
    solver.wait(block)
    codec.set_checksums(block, 0, FRAMES)
    return block


def check(
    config: Config, count: int, shuffle: bool, start: Callable[[Config], Start] = initial_state, bad: int = 0
) -> None:
    frame = Content.of(config).frame(shuffle=shuffle)
    chunks = Chunking.choose(frame, Sizes(), bands=count)
    layout = BlockLayout(chunks, FRAMES, FRAMES)
    whole = open_solver(config.run.backend, config, layout, 1, start)
    expected, state = block_of(whole, layout), fields(whole)
    assert expected.statistics[0, 0, -1] == bad
    bands, meeting = cut(config, chunks, count, Cost(1e-5, 1e6)), Meeting(count)

    def compute(band: Band) -> tuple[Block, Any]:
        part = dataclasses.replace(frame, shape=band.shape(frame.shape))
        own = BlockLayout(dataclasses.replace(chunks, frame=part), FRAMES, FRAMES, part=True)
        inner = cast(RowsSolver, open_solver(config.run.backend, config, own, 1, start, band=band))
        solver = BandSolver(inner, band, meeting.exchange_of(band), config.run.steps_per_frame)
        return block_of(solver, own), fields(solver)

    with ThreadPoolExecutor(count) as threads:
        blocks, states = zip(*threads.map(compute, bands), strict=True)
    for found, field in zip(zip(*states, strict=True), state, strict=True):
        assert np.concatenate(found).tobytes() == field.tobytes()
    joined = Block(layout, np.zeros(layout.block_nbytes, np.uint8))
    joined.count = FRAMES
    join_parts([part_of(block, band.lines) for block, band in zip(blocks, bands, strict=True)], joined)
    assert joined.statistics.tobytes() == expected.statistics.tobytes()
    assert joined.checksums.tobytes() == expected.checksums.tobytes()


@pytest.mark.parametrize("backend", ["numpy", NUMBA])
@pytest.mark.parametrize("boundary", ["periodic", "neumann", "zero"])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_parts_join_to_the_bits_of_the_whole(
    make_config: Callable[..., Config], backend: str, boundary: str, count: int
) -> None:
    changes: Mapping[str, Any] = {
        "run.backend": backend, "run.threads": 1, "grid.boundary": boundary, "grid.rows": 23, "grid.cols": 70,
        "run.steps_per_frame": 7, "output.fields": "u,v", "initial.kind": "noise", "output.store": "float16",
    }  # fmt: skip
    check(make_config(changes), count, shuffle=count == 3)


@pytest.mark.parametrize("backend", ["numpy", NUMBA])
def test_parts_of_a_batch_join_to_the_bits_of_the_whole(make_config: Callable[..., Config], backend: str) -> None:
    feed = [0.02, 0.025, 0.03]
    check(make_config({"run.backend": backend, "run.threads": 1, "model.feed": feed}), 2, shuffle=True)


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
@pytest.mark.parametrize("backend", ["numpy", NUMBA])
def test_a_band_that_diverges_has_the_statistics_of_the_whole(make_config: Callable[..., Config], backend: str) -> None:
    def start(config: Config) -> Start:
        found = initial_state(config)
        found.v[4:7] = 1e200
        return found

    check(make_config({"grid.rows": 24, "run.backend": backend, "run.threads": 1}), 3, False, start, bad=9 * 17)
