"""One run on several ranks: what rank 0 tells the others before the loop, and what each does for its band."""

from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from msgspec.structs import replace

from gsio.compute import open_solver
from gsio.compute.banded import BandSolver, RowsSolver
from gsio.compute.bands import Band, Cost, cut, estimate, told
from gsio.compute.solver import Solver
from gsio.config import BACKENDS, Config, one_of
from gsio.errors import UsageError
from gsio.frames.block import BlockPool
from gsio.frames.content import Content
from gsio.frames.layout import BlockLayout
from gsio.machine import find_driver, one_line, usable_cores
from gsio.model.start import Start
from gsio.run.checkpoints import Checkpointer
from gsio.run.initial import initial_state, rates
from gsio.run.pipeline import Pipeline
from gsio.run.plan import RunPlan, default_threads, encoding_threads, layout_of_band, pool_size
from gsio.run.ranks import Ranks
from gsio.run.tunings import recall, remember
from gsio.trace import Trace
from gsio.writer import format_of
from gsio.writer.journal import journal_of
from gsio.writer.session import Earlier, Session


class Job(NamedTuple):
    """What rank 0 tells all others.

    Attributes
    ----------
    config, backend, layout
        As in `RunPlan`; the layout has whole frames.
    output
        The absolute path of the output, which all ranks see.
    earlier
        What the output holds already; `earlier.last` has whole frames.
    state
        The dtype of u and v in the checkpoint from which the run goes on; "" if it begins at the initial state.
    """

    config: Config
    backend: str
    layout: BlockLayout
    output: Path
    earlier: Earlier
    state: str


class Share(NamedTuple):
    """What a process does of a run: its solver, the layout and number of its blocks, and the parts of frames before.

    `bands` are those of all ranks; without ranks there are none. `threads` is the number of those that encode.
    """

    bands: tuple[Band, ...]
    solver: Solver
    layout: BlockLayout
    threads: int
    blocks: int
    earlier: Earlier


def open_share(planned: RunPlan, output: Path, earlier: Earlier, resumed: Start | None, ranks: Ranks | None) -> Share:
    """Return the share of this process in a run, which begins, or goes on from the fields `resumed`.

    This is rank 0 if there are several, which tells the others what to do, and waits until they can.
    """
    if ranks is None:
        solver = open_solver(
            planned.backend, planned.config, planned.layout, planned.blocks,
            lambda config: resumed or initial_state(config), recall, remember=remember,
        )  # fmt: skip
        return Share((), solver, planned.layout, planned.threads, planned.blocks, earlier)
    _check(planned.backend, output)
    state = resumed.u.dtype.str if resumed is not None else ""
    job = Job(planned.config, planned.backend, planned.layout, output.absolute(), earlier, state)
    ranks.meet(job)
    share = _share(job, ranks, resumed)
    ranks.meet()
    return share


def _check(backend: str, output: Path) -> None:
    """Raise UsageError unless several ranks can write `output`, and compute with `backend`."""
    if not format_of(output).is_folder:
        raise UsageError(
            f"--mpi: several processes cannot write one HDF5 file, got '{output}'; expected an output that ends in "
            ".zarr, which 'gsio export' makes an HDF5 file of afterwards"
        )
    able = [name for name, row in BACKENDS.items() if row.cells_per_second]
    if backend not in able:
        raise UsageError(f"--mpi: expected the backend {one_of(able)}, got {backend}; set it by --backend")


def _share(job: Job, ranks: Ranks, start: Start | None = None) -> Share:
    """Return the share of this rank in a run; rank 0 has the `start` of a run that goes on."""
    row, steps, shape = BACKENDS[job.backend], job.config.run.steps_per_frame, job.layout.frame.shape
    u, v = start[:2] if start is not None else np.empty((2, *shape) if job.state else (2, 0), job.state or float)
    ranks.share([u, v])
    cost = Cost(row.exchange_seconds, row.cells_per_second, row.pass_seconds, row.pass_steps)
    bands = cut(job.config, job.layout.chunks, ranks.count, cost)
    band, layout = bands[ranks.number], layout_of_band(job.layout, job.config, bands, ranks.number)
    config = _at_this_place(job.config, layout, ranks, gpu=row.cuda)
    blocks = pool_size(config, layout)

    def begin(config: Config) -> Start:
        return Start(u, v, *rates(config)) if job.state else initial_state(config)

    solver = open_solver(job.backend, config, layout, blocks, begin, recall, remember=remember, band=band)
    lines = slice(band.lines.start, band.lines.stop)
    earlier = job.earlier._replace(last=[field[:, lines] for field in job.earlier.last])
    if not row.cuda:
        joint: Any = BandSolver(cast(RowsSolver, solver), band, ranks.exchange, steps)
    else:
        try:
            from gsio.compute.cuda.nccl import NcclSolver, new_key
        except ImportError as error:
            raise UsageError(
                f"--mpi: NCCL cannot be used here: {one_line(error)}; get it with pip install nvidia-nccl-cu12"
            ) from None
        key = ranks.meet(new_key() if ranks.number == 0 else None)  # NCCL would wait for a rank that has failed
        joint = NcclSolver(cast(Any, solver), band, key, config.run.device, steps)
    joint.note = told(bands, *estimate(bands, config, cost), "rank", "start fewer ranks")
    return Share(bands, joint, layout, encoding_threads(config, layout), blocks, earlier)


def _at_this_place(config: Config, layout: BlockLayout, ranks: Ranks, *, gpu: bool) -> Config:
    """Return a configuration with the GPU of this rank, and with its part of the cores that several ranks may use."""
    run, output = config.run, config.output
    if gpu and (driver := find_driver()) is not None and driver.gpus:
        run = replace(run, device=ranks.local % len(driver.gpus))
    if ranks.sharing > 1:
        cores = max(1, usable_cores() // ranks.sharing)
        run = replace(run, threads=run.threads or cores)
        output = replace(output, threads=output.threads or min(cores, default_threads(layout)))
    return replace(config, run=run, output=output)


def assist(ranks: Ranks) -> None:
    """Compute and store the band of a rank other than 0, as rank 0 says; raises as `simulate`."""
    job: Job | None = ranks.meet()
    if job is None:
        return
    share = _share(job, ranks)
    if not journal_of(job.output).is_file():
        raise UsageError(
            f"--output: expected a folder that all ranks share, but '{journal_of(job.output)}' of rank 0 is not here"
        )
    pool = BlockPool(share.layout, share.blocks, share.solver.allocate)
    ranks.meet()  # nothing is made before all ranks are here
    ranks.meet()  # rank 0 has made the output
    from gsio.writer.zarr.chunks import ChunkWriter

    trace, band = Trace(), share.bands[ranks.number]
    writer = ChunkWriter(job.output, Content.of(job.config), trace, band.slabs.start)
    session = Session(writer, pool, trace, share.threads, share.earlier)
    ranks.begin(share.bands, writer)
    checkpointer = Checkpointer(share.earlier.computed_from, (0, 0.0), share.solver.snapshot, ranks.send_rows)
    Pipeline(job.config, share.solver, session, checkpointer, ranks=ranks).run()
