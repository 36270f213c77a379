"""How a grid is cut into tiles for the kernel of ``tiles.cu``: which cuts there are, and which is likely the fastest.

A tile is advanced by one block of threads, `depth` steps a pass, with a halo of `depth` cells around its own. A larger
tile wastes less on its halo, a deeper halo is loaded less often, and the last tiles should not leave most of the GPU
idle. What a cut takes is estimated from a few measured figures; ``gsio bench tune`` measures, and keeps its choice.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gsio.config import Config

MOST_STEPS = 16384  # of one launch, so that a GPU that draws a screen too comes to that in between
STATIC_NBYTES = 256  # of shared memory that the kernel takes besides
DEPTHS = (1, 2, 3, 4, 6, 8, 12, 16)


TILE_PLAN = np.dtype([
    (name, np.int32)
    for name in (
        "rows", "cols", "members", "tiles_y", "height", "taller", "tiles_x", "width", "wider", "halo_y", "halo_x",
        "closed", "tiles", "passes", "steps", "longer", "shift", "maps",
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
# Measured on an H100. Issue slots of a step: for each cell of a lane, by the size of a number, and besides; how many
# microseconds a slot takes with all four schedulers busy. Then microseconds: of a launch and of a pass of tiles that
# stay, each also for each cell of a lane; of loading and storing a tile, for each row of a lane; of a turn to a tile of
# another pass. At last bytes a microsecond of the memory, and the bytes up to which both copies of the fields lie in
# the second-level cache.
SLOTS = {4: 16.5, 8: 33.0}
SLOTS_BESIDES = 14.0
SLOT = 1 / (4 * 1860)
LAUNCH = 3.0, 0.13
EXCHANGE = 2.4, 0.05
TILE = 0.55
TURN = 1.2
BANDWIDTH = 2.75e6
CACHED = 40 << 20
FEW = 32  # tiles for each multiprocessor; where there are more, launches cost nothing to speak of


class Device(NamedTuple):
    """What of a GPU counts here: multiprocessors, and the shared memory a block may have, bytes."""

    multiprocessors: int
    shared_nbytes: int


class Job(NamedTuple):
    """What is to be computed: the grid, bytes of a number, steps of a launch, and whether the rates vary by cell.

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

    If all passes are made `at_once`, a launch makes all its passes; where every tile has a multiprocessor, it then
    stays there. Else a launch is one pass.
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
        """Return whether a tile is exactly as high as the grid, and goes on at the other end of it."""
        return job.periodic and job.rows == self.shape.rows * self.shape.warps

    def halo_y(self, job: Job) -> int:
        """Return the height of the halo above and below, cells."""
        return 0 if self.closed(job) else self.depth

    def unit(self, job: Job) -> int:
        """Return the number of columns that are loaded together; tiles begin and end at its multiples."""
        return 1 if job.cols % self.shape.cols else self.shape.cols

    def halo_x(self, job: Job) -> int:
        """Return the width of the halo at either side, cells."""
        unit = self.unit(job)
        return -(-self.depth // unit) * unit

    def tiles(self, job: Job) -> int:
        """Return the number of tiles of all members."""
        return job.members * self.tiles_y * self.tiles_x

    def reach(self, job: Job) -> int:
        """Return how many tiles apart in the order of a pass a tile and those around it are at most.

        Tiles are ordered by member, then along the longer side of the grid of tiles; in a batch, what is around the
        first of a member can be its last.
        """
        return 2 * min(self.tiles_y, self.tiles_x) - 1 if job.members == 1 else self.tiles_y * self.tiles_x - 1

    def shared_nbytes(self, job: Job) -> int:
        """Return the shared memory of a block: two times the outermost rows of each warp, and the cells to load."""
        row = 32 * self.shape.warps * self.shape.cols * job.itemsize
        return (8 + (4 if job.by_cell else 2) * self.shape.rows) * row

    def passes(self, steps: int) -> int:
        """Return the number of passes for `steps` steps."""
        return -(-steps // self.depth)

    def estimate(self, job: Job, device: Device) -> float:
        """Return the microseconds the steps of `job` are likely to take on a GPU like the H100."""
        shape, passes, tiles, blocks = self.shape, self.passes(job.steps), self.tiles(job), device.multiprocessors
        cells = shape.cols * shape.rows
        step = shape.warps * (SLOTS[job.itemsize] * cells + SLOTS_BESIDES) * SLOT
        launch = LAUNCH[0] + LAUNCH[1] * cells
        if self.at_once and tiles <= blocks:
            return launch + step * job.steps + (EXCHANGE[0] + EXCHANGE[1] * cells) * passes
        a_pass = step * job.steps / passes
        a_pass += TILE * shape.rows * (1 if self.unit(job) == shape.cols else 2)
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
            unit, halo_x = tiling.unit(job), tiling.halo_x(job)
            height = shape.rows * shape.warps - 2 * tiling.halo_y(job)
            width = (32 * shape.cols - 2 * halo_x) // unit
            if height < 1 or width < 1 or tiling.shared_nbytes(job) + STATIC_NBYTES > device.shared_nbytes:
                continue
            tiling = replace(tiling, tiles_y=-(-job.rows // height), tiles_x=-(-job.cols // unit // width))
            yield tiling
            # Halos have to come from the tiles right around. And a block that goes round waits for the tiles that its
            # next one needs before it computes the one it has: they have to lie so far back that they are done.
            near = (tiling.tiles_y == 1 or job.rows // tiling.tiles_y >= depth) and (
                tiling.tiles_x == 1 or job.cols // unit // tiling.tiles_x * unit >= halo_x
            )
            tiles = tiling.tiles(job)
            done = tiles <= blocks or 2 * blocks <= tiles - 2 * tiling.reach(job)
            if near and done and depth < job.steps and tiles < FEW * blocks:
                yield replace(tiling, at_once=True)


def job_of(config: Config, *, by_cell: bool) -> Job:
    """Return what a launch has to do."""
    return Job(
        members=config.model.members,
        rows=config.grid.rows,
        cols=config.grid.cols,
        itemsize=np.dtype(config.model.precision).itemsize,
        steps=min(config.run.steps_per_frame, MOST_STEPS),
        by_cell=by_cell,
        periodic=config.grid.boundary == "periodic",
    )


def tile_plan(tiling: Tiling, job: Job, maps: int) -> NDArray[np.void]:
    """Return the struct Plan of ``tiles.cu``, without its passes."""
    units = job.cols // tiling.unit(job)
    plan = np.zeros((), TILE_PLAN)
    plan["rows"], plan["cols"], plan["members"] = job.rows, job.cols, job.members
    plan["tiles_y"], plan["tiles_x"] = tiling.tiles_y, tiling.tiles_x
    plan["height"], plan["taller"] = divmod(job.rows, tiling.tiles_y)
    plan["width"], plan["wider"] = divmod(units, tiling.tiles_x)
    plan["halo_y"], plan["halo_x"], plan["closed"] = tiling.halo_y(job), tiling.halo_x(job), tiling.closed(job)
    plan["tiles"], plan["shift"], plan["maps"] = tiling.tiles(job), tiling.reach(job), maps
    return plan


def tuning_name(device: str, config: Config, job: Job) -> str:
    """Return the name under which the fastest tiling of a run is kept: all that its speed depends on."""
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
