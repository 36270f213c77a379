"""Bands: a grid is cut along the first axis of its frames into parts that are computed apart.

A band of rows has a halo: copies of `depth` rows of the band above and of the band below. Its solver is the solver of
a grid of all these rows, with the boundary of the whole grid. This boundary is wrong for the outermost rows of a halo,
and the error creeps inwards by one row a step, so that the rows of the band itself are right for `depth` steps, bit for
bit. Then the halos are exchanged. A batch is cut into bands of whole members, which need no halo.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from gsio.config import Config
from gsio.errors import UsageError
from gsio.frames.chunking import Chunking
from gsio.log import log
from gsio.model.start import Start

MOST_DEPTH = 1024  # rows of a halo that are worth a thought: an exchange costs less than these


class Cost(NamedTuple):
    """What decides how deep a halo is: the seconds that an exchange takes, and the cells that a band advances a second.

    The time for the bytes of an exchange does not count. A halo that is twice as deep is exchanged half as often. A
    solver that takes many steps in a pass over the memory begins one anew after each exchange, which costs
    `pass_seconds` for each cell of the band. A deeper halo than the `pass_steps` of a pass is a multiple of these.
    """

    exchange_seconds: float
    cells_per_second: float
    pass_seconds: float = 0.0
    pass_steps: int = 1


class Message(NamedTuple):
    """What a band exchanges with one neighbour, in rows of the band and its halo.

    Attributes
    ----------
    side
        0 for the band above, 1 for the band below. What is sent from one side arrives at the other side of the
        neighbour, which tells the messages of two bands apart that are neighbours on both sides.
    neighbour
        The number of the other band, which can be the band itself.
    sent, received
        The rows that the neighbour gets, and the rows of the halo that it sends.
    """

    side: int
    neighbour: int
    sent: slice
    received: slice


@dataclass(frozen=True)
class Band:
    """The part of a grid that one device, or one rank, computes.

    Attributes
    ----------
    number, bands
        Its number, from 0 on, and the number of all bands.
    lines, all_lines
        Its lines along the first axis of a frame, and the number of all lines: rows, or members of a batch.
    slabs
        The slabs of the file that have these lines.
    depth
        The rows of a halo, which are the steps between two exchanges; 0: the band needs no halo, and no exchange.
    periodic
        Whether the last band is a neighbour of the first one. If not, there is no halo at the edge of the grid.
    batch
        Whether the lines are members of a batch.
    """

    number: int
    bands: int
    lines: range
    all_lines: int
    slabs: range
    depth: int
    periodic: bool
    batch: bool

    @property
    def before(self) -> int:
        """The rows of the halo above the band."""
        return self.depth if self.number or self.periodic else 0

    @property
    def after(self) -> int:
        """The rows of the halo below the band."""
        return self.depth if self.number + 1 < self.bands or self.periodic else 0

    @property
    def own(self) -> slice:
        """The lines of the band itself, among all lines that its solver has."""
        return slice(self.before, self.before + len(self.lines))

    @property
    def messages(self) -> tuple[Message, ...]:
        """What the band exchanges before each `depth` steps."""
        depth, start, stop = self.depth, self.own.start, self.own.stop
        above = Message(0, (self.number - 1) % self.bands, slice(start, start + depth), slice(0, start))
        below = Message(1, (self.number + 1) % self.bands, slice(stop - depth, stop), slice(stop, stop + depth))
        return (above,) * (self.before > 0) + (below,) * (self.after > 0)

    def rounds(self, steps: int) -> Iterator[int]:
        """Yield the steps that follow each exchange, until the sum is `steps`."""
        most = self.depth or steps
        yield from (min(most, steps - done) for done in range(0, steps, most or 1))

    def part(self, field: NDArray[Any]) -> NDArray[Any]:
        """Return the lines of this band and its halo of an array that broadcasts to [members, rows, cols]."""
        axis = field.ndim - (3 if self.batch else 2)
        if axis < 0 or field.shape[axis] == 1 < self.all_lines:
            return field
        lines = np.arange(self.lines.start - self.before, self.lines.stop + self.after)
        return field.take(lines % self.all_lines, axis)

    def start(self, start: Start) -> Start:
        """Return the start of the solver of this band; its arrays are `part` of those of the whole grid."""
        return Start(*map(self.part, start))

    def config(self, config: Config) -> Config:
        """Return the configuration of the solver of this band: that of a run of its rows and halo, or its members."""
        if not self.batch:
            rows = len(self.lines) + self.before + self.after
            return replace(config, grid=replace(config.grid, rows=rows))

        def own(value: Any) -> Any:
            several = isinstance(value, tuple) and len(value) > 1
            return value[self.lines.start : self.lines.stop] if several else value

        model = replace(config.model, feed=own(config.model.feed), kill=own(config.model.kill))
        initial = replace(config.initial, seed=own(config.initial.seed))
        return replace(config, model=model, initial=initial)

    def shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the cells of the part of a frame that this band stages: without its halo."""
        return (len(self.lines), *shape[1:])


def cut(config: Config, chunks: Chunking, bands: int, cost: Cost) -> tuple[Band, ...]:
    """Return the bands of a grid: whole slabs of the file, and about the same number for each.

    A halo is at most as deep as the lowest band is high, so that only neighbours exchange rows. One band needs no
    halo. Raises UsageError if there are fewer slabs than bands.
    """
    if bands > chunks.slabs:
        raise UsageError(
            f"expected at most {chunks.slabs} ranks or devices, got {bands}: each takes at least one slab, and the "
            f"frames of the output have {chunks.slabs}; lower the number, or begin a new output"
        )
    all_lines, batch = chunks.frame.shape[0], len(chunks.frame.shape) > 2
    edges = [number * chunks.slabs // bands for number in range(bands + 1)]
    lines = [min(slab * chunks.lines_per_chunk, all_lines) for slab in edges]
    parts = list(zip(map(range, lines, lines[1:]), map(range, edges, edges[1:]), strict=True))
    depth = 0
    if bands > 1 and not batch:
        depth = halo_depth([len(rows) for rows, _ in parts], config.grid.cols, config.run.steps_per_frame, cost)
    periodic = config.grid.boundary == "periodic"
    return tuple(
        Band(number, bands, rows, all_lines, slabs, depth, periodic, batch)
        for number, (rows, slabs) in enumerate(parts)
    )


def halo_depth(heights: Sequence[int], cols: int, steps: int, cost: Cost) -> int:
    """Return the rows of a halo with which bands of these heights take the shortest time for the steps of a frame.

    With a depth of d, a frame of n steps takes ⌈n / d⌉ exchanges, and each step computes 2 d rows that other bands
    compute too. Every frame begins with an exchange, so that a halo deeper than n would gain nothing.
    """
    depths = np.arange(1, min(*heights, steps, MOST_DEPTH) + 1)
    depths = depths[(depths < cost.pass_steps) | (depths % cost.pass_steps == 0) | (depths == steps)]
    exchanges = -(-steps // depths) * (cost.exchange_seconds + max(heights) * cols * cost.pass_seconds)
    redundant = steps * 2 * depths * cols / cost.cells_per_second
    return int(depths[(exchanges + redundant).argmin()])


def estimate(bands: Sequence[Band], config: Config, cost: Cost) -> tuple[float, float]:
    """Return how many times as fast as one device the bands are, and the share of their time that exchanges take.

    The model is that of `halo_depth`.
    """
    band, steps = max(bands, key=lambda band: len(band.lines)), config.run.steps_per_frame
    of_line = config.grid.cols * (config.grid.rows if band.batch else 1)
    cells, halo = len(band.lines) * of_line, (band.before + band.after) * of_line
    rounds = len(list(band.rounds(steps))) if band.messages else 0
    exchange = rounds * (cost.exchange_seconds + cells * cost.pass_seconds)
    taken = steps * (cells + halo) / cost.cells_per_second + exchange
    return steps * band.all_lines * of_line / cost.cells_per_second / taken, exchange / taken


def told(bands: Sequence[Band], speedup: float, exchanging: float, device: str, advice: str) -> str:
    """Return how a grid is cut, and what that brings by an estimate; warn if one device would be faster.

    The bands are `speedup` times as fast as one `device`, and take a share of their time for `exchanging` rows.
    """
    if speedup < 1:
        log.warning(
            f"the steps of a frame take an estimated {1 / speedup:.1f} times as long on {len(bands)} {device}s as on "
            f"one, since they exchange rows; {advice}, or compute a larger grid"
        )
    heights = sorted({len(band.lines) for band in bands})
    lines = " to ".join(map(str, heights[:1] + heights[1:][-1:]))
    what = f"{lines} members" if bands[0].batch else f"{lines} rows, with halos of {bands[0].depth}"
    return (
        f"{len(bands)} of {what}; an estimated {speedup:.3g} times as fast as one {device}, "
        f"{exchanging:.0%} of the time for exchanges"
    )
