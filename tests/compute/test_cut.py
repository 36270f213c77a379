"""Bands: the geometry of the cut, and the bits of a grid that was cut, against the same grid as a whole."""

import dataclasses
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from gsio.compute.bands import Band, Cost, cut, estimate, halo_depth, told
from gsio.config import Config, Map, load_config
from gsio.errors import UsageError
from gsio.frames.chunking import Chunking
from gsio.frames.content import Content
from gsio.frames.sizes import Sizes
from gsio.model.gray_scott import step
from gsio.model.start import Start
from gsio.run.initial import initial_state

COSTS = Cost(1e-3, 1e12), Cost(1e-5, 1e6), Cost(1e-9, 1e6)  # halos as deep as they can be, of some rows, and of one
BOUNDARIES = "periodic", "neumann", "zero"


def config_of(rows: int, cols: int, boundary: str, steps: int, feed: object = 0.03, kill: object = 0.06) -> Config:
    config = load_config(preset="smoke")
    return replace(
        config,
        grid=replace(config.grid, rows=rows, cols=cols, boundary=boundary),
        model=replace(config.model, feed=feed, kill=kill),
        initial=replace(config.initial, kind="noise", u=0.5, v=0.25, amplitude=0.2),
        run=replace(config.run, steps_per_frame=steps),
    )


def chunks_of(config: Config, bands: int, sizes: Sizes | None = None) -> Chunking:
    return Chunking.choose(Content.of(config).frame(), sizes or Sizes(), bands=bands)


class Cut:
    """The bands of a grid in one process, advanced by NumPy's oracle."""

    def __init__(self, config: Config, bands: tuple[Band, ...], start: Start) -> None:
        self.bands, self.steps = bands, config.run.steps_per_frame
        self.configs = [band.config(config) for band in bands]
        self.starts = [band.start(start) for band in bands]
        self.fields = [[field.copy() for field in begin[:2]] for begin in self.starts]

    def exchange(self) -> None:
        sent = {
            (band.number, message.side): [field[..., message.sent, :].copy() for field in fields]
            for band, fields in zip(self.bands, self.fields, strict=True)
            for message in band.messages
        }
        for band, fields in zip(self.bands, self.fields, strict=True):
            for message in band.messages:
                for field, rows in zip(fields, sent[message.neighbour, 1 - message.side], strict=True):
                    field[..., message.received, :] = rows

    def frame(self) -> None:
        for steps in self.bands[0].rounds(self.steps):
            self.exchange()
            for fields, start, config in zip(self.fields, self.starts, self.configs, strict=True):
                for _ in range(steps):
                    fields[:] = step(*fields, start.feed, start.kill, config.model, config.grid.boundary)

    def joined(self) -> list[np.ndarray]:
        axis = -3 if self.bands[0].batch else -2
        own = [
            [field.take(range(band.own.start, band.own.stop), axis) for field in fields]
            for band, fields in zip(self.bands, self.fields, strict=True)
        ]
        return [np.concatenate(parts, axis) for parts in zip(*own, strict=True)]


def assert_same_as_whole(config: Config, count: int, cost: Cost) -> None:
    start = initial_state(config)
    shape = Content.of(config).shape
    start = start._replace(u=np.broadcast_to(start.u, shape), v=np.broadcast_to(start.v, shape))
    bands = cut(config, chunks_of(config, count), count, cost)
    parts, whole = Cut(config, bands, start), start[:2]
    for _ in range(3):
        parts.frame()
        for _ in range(config.run.steps_per_frame):
            whole = step(*whole, start.feed, start.kill, config.model, config.grid.boundary)
    for found, expected in zip(parts.joined(), whole, strict=True):
        assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("rows", [5, 17, 32])
def test_bands_have_the_bits_of_the_whole_grid(rows: int, count: int, boundary: str) -> None:
    for cost in COSTS:
        assert_same_as_whole(config_of(rows, 13, boundary, 7), count, cost)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("feed", [Map("x", start=0.02, stop=0.05), Map("y", start=0.02, stop=0.05)])
def test_maps_of_rates_are_cut_with_the_grid(feed: Map, count: int) -> None:
    assert_same_as_whole(config_of(11, 9, "periodic", 5, feed), count, COSTS[1])


@pytest.mark.parametrize("kill", [0.06, (0.061, 0.062, 0.063, 0.064, 0.065)])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_batch_is_cut_into_members(count: int, kill: object) -> None:
    config = config_of(6, 7, "periodic", 4, (0.03, 0.031, 0.032, 0.033, 0.034), kill)
    bands = cut(config, chunks_of(config, count), count, COSTS[0])
    assert [len(band.lines) for band in bands] == [band.config(config).members for band in bands]
    assert all(not band.messages for band in bands)
    assert_same_as_whole(config, count, COSTS[0])


@given(
    rows=st.integers(1, 3000), count=st.integers(1, 12), slab=st.integers(1, 1 << 14), pyramid=st.integers(0, 2),
    boundary=st.sampled_from(BOUNDARIES), steps=st.integers(1, 5000),
)  # fmt: skip
@example(rows=6, count=4, slab=1 << 14, pyramid=0, boundary="periodic", steps=1)
def test_each_line_is_in_one_band_of_whole_slabs(
    rows: int, count: int, slab: int, pyramid: int, boundary: str, steps: int
) -> None:
    config = config_of(rows, 8, boundary, steps)
    sizes = Sizes(large_bytes=2 * slab, slab_bytes=slab)
    chunks = Chunking.choose(Content.of(config).frame(), sizes, bands=count, pyramid=pyramid)
    if chunks.slabs < count:
        assert pyramid or rows < count
        with pytest.raises(UsageError, match=f"expected at most {chunks.slabs} ranks or devices, got {count}"):
            cut(config, chunks, count, COSTS[0])
        return
    bands = cut(config, chunks, count, COSTS[0])
    assert list(itertools.chain(*(band.lines for band in bands))) == list(range(rows))
    assert list(itertools.chain(*(band.slabs for band in bands))) == list(range(chunks.slabs))
    for band in bands:
        assert band.lines.start == band.slabs.start * chunks.lines_per_chunk
        part = dataclasses.replace(chunks.frame, shape=band.shape(chunks.frame.shape))
        assert len(band.slabs) == Chunking(part, 1, chunks.lines_per_chunk).slabs
        assert band.depth <= min(len(other.lines) for other in bands)
        assert (band.depth > 0) == (count > 1)
        assert sum(band.rounds(steps)) == steps
        assert max(band.rounds(steps)) <= (band.depth or steps)
        at_edge = boundary != "periodic" and count > 1
        assert (band.before == 0) == (count == 1 or (at_edge and band.number == 0))
        assert (band.after == 0) == (count == 1 or (at_edge and band.number == count - 1))
        assert len(band.part(np.zeros((rows, 8)))) == len(band.lines) + band.before + band.after
    assert max(len(band.slabs) for band in bands) - min(len(band.slabs) for band in bands) <= 1


@given(count=st.integers(2, 7), boundary=st.sampled_from(BOUNDARIES), extra=st.integers(0, 20))
def test_what_a_band_sends_is_what_its_neighbour_receives(count: int, boundary: str, extra: int) -> None:
    config = config_of(count + extra, 4, boundary, 3)
    bands = cut(config, chunks_of(config, count), count, COSTS[1])
    rows = np.arange(count + extra)[:, np.newaxis]
    parts = [band.part(rows) for band in bands]
    for sender, message in ((band, message) for band in bands for message in band.messages):
        matching = [other for other in bands[message.neighbour].messages if other.side == 1 - message.side]
        assert [other.neighbour for other in matching] == [sender.number]
        assert parts[message.neighbour][matching[0].sent].tolist() == parts[sender.number][message.received].tolist()


def test_one_band_is_the_whole_grid() -> None:
    config = config_of(24, 32, "periodic", 8)
    (band,) = cut(config, chunks_of(config, 1), 1, COSTS[0])
    assert (band.messages, band.config(config), list(band.rounds(8)), band.own) == ((), config, [8], slice(0, 24))


@given(
    heights=st.lists(st.integers(1, 500), min_size=2, max_size=5), cols=st.integers(1, 10000),
    steps=st.integers(1, 200), seconds=st.floats(1e-7, 1e-2), speed=st.floats(1e6, 1e13), a_pass=st.floats(0, 1e-8),
)  # fmt: skip
def test_the_depth_of_a_halo_is_the_cheapest(
    heights: list[int], cols: int, steps: int, seconds: float, speed: float, a_pass: float
) -> None:
    def costs(depth: int) -> float:
        exchange = seconds + max(heights) * cols * a_pass
        return math.ceil(steps / depth) * exchange + steps * 2 * depth * cols / speed

    found = halo_depth(heights, cols, steps, Cost(seconds, speed, a_pass))
    assert 1 <= found <= min(*heights, steps)
    assert costs(found) <= min(costs(depth) for depth in range(1, min(*heights, steps) + 1)) * (1 + 1e-12)


@pytest.mark.parametrize("feed", [0.03, (0.03,) * 4])
def test_the_estimate_counts_rows_that_are_computed_twice_and_exchanges(feed: object) -> None:
    config = config_of(64, 100, "periodic", 8, feed)
    members = 4 if isinstance(feed, tuple) else 1
    cells = members * 64 * 100 * 8 / 2  # of one band in a frame
    free, slow = Cost(1e-9, 1e6), Cost(1.0, 1e6, 0.01)
    bands = cut(config, chunks_of(config, 2), 2, free)
    halo, rounds = (0, 0) if members > 1 else (2 * bands[0].depth * 100 * 8, math.ceil(8 / bands[0].depth))
    speedup, exchanging = estimate(bands, config, free)
    assert speedup == pytest.approx(2 * cells / (cells + halo), rel=1e-3)
    assert exchanging == pytest.approx(0, abs=1e-3)
    speedup, exchanging = estimate(bands, config, slow)
    exchange, computing = rounds * (1.0 + 0.01 * 64 * 100 / 2), (cells + halo) / 1e6
    assert speedup == pytest.approx(2 * cells / 1e6 / (computing + exchange))
    assert exchanging == pytest.approx(exchange / (computing + exchange))


def test_bands_that_are_slower_than_one_device_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    monkeypatch.setattr("gsio.compute.bands.log", SimpleNamespace(warning=warnings.append))
    config = config_of(65, 100, "periodic", 8)
    bands = cut(config, chunks_of(config, 2), 2, COSTS[1])
    assert told(bands, 1.9, 0.02, "rank", "start fewer ranks").startswith("2 of 32 to 33 rows, with halos of ")
    assert warnings == []
    assert "0.25 times as fast as one rank, 40% of the time" in told(bands, 0.25, 0.4, "rank", "start fewer ranks")
    (warning,) = warnings
    assert "4.0 times as long on 2 ranks as on one, since they exchange rows; start fewer ranks, or" in warning


def test_an_output_that_is_extended_keeps_its_lines() -> None:
    frame = Content.of(config_of(30, 8, "zero", 1)).frame()
    assert Chunking.choose(frame, Sizes(), bands=3, lines_per_chunk=7).slabs == 5
    assert Chunking.choose(frame, Sizes(), lines_per_chunk=30).slabs == 1
