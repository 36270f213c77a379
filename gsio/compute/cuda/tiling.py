"""How a grid is cut into tiles for the kernel of ``tiles.cu``: which cuts there are, and which is likely the fastest.

A tile is advanced by one block of threads, `depth` steps a pass, with a halo of `depth` cells around its own. A larger
tile wastes less on its halo, a deeper halo is loaded less often, and the last tiles should not leave most of the GPU
idle. The time of a cut is estimated from a few figures; ``gsio bench tune`` measures it and keeps the fastest.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gsio.config import Config

MOST_STEPS = 16384  # of one launch: a GPU that also draws a screen can do so between two launches
STATIC_NBYTES = 256  # bytes of static shared memory in the kernel
PITCH = 4  # A row of a field takes a multiple of these cells in memory: the most columns of a lane.
DEPTHS = (1, 2, 3, 4, 6, 8, 12, 16)


TILE_PLAN = np.dtype([
    (name, np.int32)
    for name in (
        "rows", "cols", "pitch", "members", "tiles_y", "height", "taller", "tiles_x", "width", "wider", "depth",
        "halo_y", "halo_x", "outer_x", "closed", "tiles", "passes", "steps", "longer", "shift", "maps", "first",
    )
])  # fmt: skip


class Shape(NamedTuple):
    """A block of threads: columns and rows of a lane, and warps."""

    cols: int
    rows: int
    warps: int


# The shapes that were the fastest for some size, of 20 tried on an H100.
SHAPES = {
    4: [
        *(Shape(4, rows, 16) for rows in (9, 8, 7, 6, 4)),
        *(Shape(2, rows, 16) for rows in (16, 8, 4, 3)),
        *(Shape(2, rows, 8) for rows in (6, 4)),
        *(Shape(1, rows, 8) for rows in (6, 4)),
    ],
    8: [
        *(Shape(2, rows, 16) for rows in (9, 8, 6, 4)),
        *(Shape(2, rows, 8) for rows in (6, 4)),
        *(Shape(1, rows, 8) for rows in (6, 4)),
    ],
}
# Measured on an H100 and an H200; times are in microseconds.
SLOTS = {4: 16.5, 8: 33.0}  # issue slots a step for each cell of a lane, by the bytes of a number
SLOTS_BESIDES = 14.0  # issue slots a step for each lane
LATENCY = 960  # slots of a block between the rows that a warp publishes and its next step, unless inner rows fill them
SLOT = 1 / (4 * 1860)  # time of a slot if all four schedulers are busy
LAUNCH = 2.8, 0.13  # time of a launch, and its addition for each cell of a lane
EXCHANGE = 1.2, 0.05  # time of a pass if tiles stay, and its addition for each cell of a lane
TILE = 0.35  # time to load and store a tile, for each row of a lane
TURN = 1.2  # time to go to a tile of another pass
BANDWIDTH = 2.75e6  # of the memory, bytes a microsecond
CACHED = 40 << 20  # bytes of both copies of the fields that the second-level cache holds
FEW = 32  # tiles a multiprocessor; with more of them, the cost of launches is negligible


class Device(NamedTuple):
    """The limits of a GPU: its multiprocessors, and the bytes of shared memory that a block may have."""

    multiprocessors: int
    shared_nbytes: int


class Job(NamedTuple):
    """The work of a launch: the grid, the bytes of a number, the steps, and whether the rates vary by cell.

    In a `periodic` grid, a tile as high as the grid needs no halo above and below: it is closed.
    """

    members: int
    rows: int
    cols: int
    itemsize: int
    steps: int
    by_cell: bool = False
    periodic: bool = False


@dataclass(frozen=True)
class Tiling:
    """A cut: the shape of a block, the most steps of a pass, and how many tiles there are along either axis.

    A launch makes all passes if `at_once`, else one pass. A tile stays on its multiprocessor if all passes are made at
    once and every tile has a multiprocessor.
    """

    shape: Shape
    depth: int
    tiles_y: int
    tiles_x: int
    at_once: bool

    def __str__(self) -> str:
        shape, launched = self.shape, "all passes in a launch" if self.at_once else "a launch for each pass"
        cells = f"{shape.rows} × {shape.cols} cells a thread, {shape.warps} warps"
        return f"{self.tiles_y} × {self.tiles_x} tiles, {cells}, {self.depth} steps a pass, {launched}"

    def record(self) -> dict[str, Any]:
        """Return the tiling as values that JSON can hold."""
        return {**asdict(self), "shape": list(self.shape)}

    def closed(self, job: Job) -> bool:
        """Return whether a tile is as high as the periodic grid, so that its last row is the neighbour of its first."""
        return job.periodic and job.rows == self.shape.rows * self.shape.warps

    def halo_y(self, job: Job) -> int:
        """Return the height of the halo above and below, cells."""
        return 0 if self.closed(job) else self.depth

    def units(self, job: Job) -> int:
        """Return the width of the grid in lanes. Its last lane may have cells outside the grid."""
        return -(-job.cols // self.shape.cols)

    @property
    def halo_x(self) -> int:
        """The width of the halo at either side, cells, in whole lanes."""
        return -(-self.depth // self.shape.cols) * self.shape.cols

    def outer_x(self, job: Job) -> int:
        """Return the width of a strip at either side of a tile that holds all that is copied to a halo, cells."""
        return self.halo_x + -job.cols % self.shape.cols  # in the last tile also the columns outside the grid

    def spans(self, job: Job) -> bool:
        """Return whether the tiles are wide enough for the grid; its last tile needs only `depth` columns behind it."""
        width, wider = divmod(self.units(job), self.tiles_x)
        most, last = 32 * self.shape.cols, job.cols - (self.tiles_x - 1) * width * self.shape.cols
        all_fit = (width + (wider > 1)) * self.shape.cols + 2 * self.halo_x <= most
        return all_fit and last + self.halo_x + self.depth <= most

    def height(self, job: Job) -> int:
        """Return the most rows of a tile, without its halo."""
        return self.shape.rows * self.shape.warps - 2 * self.halo_y(job)

    def tiles(self, job: Job) -> int:
        """Return the number of tiles of all members."""
        return job.members * self.tiles_y * self.tiles_x

    def reach(self, job: Job) -> int:
        """Return the largest distance, in the order of a pass, between a tile and the tiles around it.

        Tiles are ordered by member, then along the longer side of the grid of tiles; in a batch, the last
        tile of a member can be a neighbour of its first.
        """
        return 2 * min(self.tiles_y, self.tiles_x) - 1 if job.members == 1 else self.tiles_y * self.tiles_x - 1

    def shared_nbytes(self, job: Job) -> int:
        """Return the bytes of shared memory of a block: the outermost rows of each warp, twice, and loaded cells."""
        row = 32 * self.shape.warps * self.shape.cols * job.itemsize
        return (8 + (4 if job.by_cell else 2) * self.shape.rows) * row

    def passes(self, steps: int) -> int:
        """Return the number of passes for `steps` steps."""
        return -(-steps // self.depth)

    def estimate(self, job: Job, device: Device) -> float:
        """Return the estimated microseconds of the steps of `job` on a GPU like the H100."""
        shape, passes, tiles, blocks = self.shape, self.passes(job.steps), self.tiles(job), device.multiprocessors
        cells = shape.cols * shape.rows
        slots = SLOTS[job.itemsize]
        waiting = max(0.0, LATENCY - shape.warps * slots * shape.cols * (shape.rows - 2))
        step = (shape.warps * (slots * cells + SLOTS_BESIDES) + waiting) * SLOT
        launch = LAUNCH[0] + LAUNCH[1] * cells
        if self.at_once and tiles <= blocks:
            return launch + step * job.steps + (EXCHANGE[0] + EXCHANGE[1] * cells) * passes
        a_pass = step * job.steps / passes
        a_pass += TILE * shape.rows
        grid = job.members * job.rows * job.cols
        if 4 * grid * job.itemsize > CACHED:
            moved = 2 * (tiles * cells * 32 * shape.warps + grid) * job.itemsize
            a_pass = max(a_pass, moved / BANDWIDTH / (tiles / blocks))
        if self.at_once:
            return launch + -(-tiles * passes // blocks) * (a_pass + TURN)
        return passes * (launch + -(-tiles // blocks) * a_pass)


def tilings(job: Job, device: Device) -> Iterator[Tiling]:
    """Yield every cut of `job` that `device` can run."""
    blocks = device.multiprocessors
    for shape in SHAPES[job.itemsize]:
        for depth in sorted({-(-job.steps // -(-job.steps // depth)) for depth in DEPTHS}):
            tiling = Tiling(shape, depth, 1, 1, at_once=False)
            units, height = tiling.units(job), tiling.height(job)
            width = 32 - 2 * tiling.halo_x // shape.cols
            if height < 1 or width < 1 or tiling.shared_nbytes(job) + STATIC_NBYTES > device.shared_nbytes:
                continue
            tiling = replace(tiling, tiles_y=-(-job.rows // height), tiles_x=-(-units // width))
            fewer = replace(tiling, tiles_x=max(tiling.tiles_x - 1, 1))
            tiling = fewer if fewer.spans(job) else tiling
            yield tiling
            # A halo has to lie within the adjacent tiles. A block that takes turns waits for the neighbours of its next
            # tile before it computes the current one; they have to come so early in the order that they are done.
            near = (tiling.tiles_y == 1 or job.rows // tiling.tiles_y >= depth) and (
                tiling.tiles_x == 1 or units // tiling.tiles_x * shape.cols >= tiling.outer_x(job)
            )
            tiles = tiling.tiles(job)
            done = tiles <= blocks or 2 * blocks <= tiles - 2 * tiling.reach(job)
            if near and done and depth < job.steps and tiles < FEW * blocks:
                yield replace(tiling, at_once=True)


def job_of(config: Config, *, by_cell: bool) -> Job:
    """Return the work of a launch."""
    return Job(
        members=config.members,
        rows=config.grid.rows,
        cols=config.grid.cols,
        itemsize=np.dtype(config.model.precision).itemsize,
        steps=min(config.run.steps_per_frame, MOST_STEPS),
        by_cell=by_cell,
        periodic=config.grid.boundary == "periodic",
    )


def pitch_of(cols: int) -> int:
    """Return the cells from one row of a field to the next in memory."""
    return -(-cols // PITCH) * PITCH


def tile_plan(tiling: Tiling, job: Job, maps: int) -> NDArray[np.void]:
    """Return the struct Plan of ``tiles.cu``, without its passes."""
    plan = np.zeros((), TILE_PLAN)
    plan["rows"], plan["cols"], plan["pitch"], plan["members"] = job.rows, job.cols, pitch_of(job.cols), job.members
    plan["tiles_x"] = tiling.tiles_x
    plan["width"], plan["wider"] = divmod(tiling.units(job), tiling.tiles_x)
    plan["halo_y"], plan["halo_x"], plan["outer_x"] = tiling.halo_y(job), tiling.halo_x, tiling.outer_x(job)
    plan["depth"], plan["closed"] = tiling.depth, tiling.closed(job)
    plan["shift"], plan["maps"] = tiling.reach(job), maps
    set_rows(plan, tiling, job, range(job.rows))
    return plan


def set_rows(plan: NDArray[np.void], tiling: Tiling, job: Job, rows: range) -> None:
    """Let the tiles of a plan be those of some rows of the grid."""
    tiles_y = -(-len(rows) // tiling.height(job))
    plan["first"], plan["tiles_y"] = rows.start, tiles_y
    plan["height"], plan["taller"] = divmod(len(rows), tiles_y)
    plan["tiles"] = job.members * tiles_y * tiling.tiles_x


def tuning_name(device: str, config: Config, job: Job) -> str:
    """Return the name under which the fastest tiling of a run is kept. It lists all that the speed depends on."""
    grid, model = config.grid, config.model
    rates = "maps" if job.by_cell else "constants"
    size = " × ".join(map(str, (job.members, job.rows, job.cols)))
    return f"{device}: {size} {model.precision}, {grid.boundary}, {model.stencil}, {rates}, {job.steps} steps"


def choose(job: Job, device: Device, known: Any = None) -> Tiling:
    """Return the cut of `job` whose record is `known`, if `device` can run it, or else the fastest by the estimate."""
    possible = list(tilings(job, device))
    return next(
        (tiling for tiling in possible if tiling.record() == known),
        min(possible, key=lambda tiling: tiling.estimate(job, device)),
    )
