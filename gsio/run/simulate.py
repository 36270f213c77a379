"""A run from end to end: its arguments are checked, its pipeline is built and run, and its end is recorded."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gsio.compute import open_solver
from gsio.config import Config, parse_interval
from gsio.errors import DataError, UsageError
from gsio.files import require_new
from gsio.frames.block import BlockPool
from gsio.frames.content import Content
from gsio.frames.layout import BlockLayout
from gsio.log import configure_unless_done, log
from gsio.model.gray_scott import Field, check_stability
from gsio.model.start import Start
from gsio.run import checkpoints
from gsio.run.checkpoints import Checkpoint, Checkpointer, check_same_run
from gsio.run.initial import initial_state, rates
from gsio.run.joint import Share, open_share
from gsio.run.limits import limits, time_limit
from gsio.run.output import Resume, beside, check_output, open_output, place_of, restart
from gsio.run.pipeline import Pipeline
from gsio.run.plan import choose_backend, layout_of, plan, with_codec
from gsio.run.progress import Observe
from gsio.run.ranks import Ranks
from gsio.run.resume import Restart, compare
from gsio.run.status import status_file
from gsio.run.summary import Summary, summarise
from gsio.run.tunings import recall, remember
from gsio.trace import Trace
from gsio.trace.timeline import Timeline
from gsio.writer.journal import Journal, journal_of
from gsio.writer.provenance import root_attributes
from gsio.writer.session import NOTHING


def simulate(
    config: Config,
    output: Path | str,
    *,
    overwrite: bool = False,
    resume: Resume = "no",
    discard_after: int | None = None,
    timeline: Path | str | None = None,
    watch: Observe | None = None,
    ranks: Ranks | None = None,
    cut: tuple[int, int] = (0, 0),
) -> Summary | None:
    """Simulate `config` and save every frame in `output`; return None if `output` has all frames already.

    Parameters
    ----------
    output
        The file or folder to make; its ending, .h5, .hdf5 or .zarr, names the format.
    overwrite
        Replace the file, or the Zarr group of gsio, at `output`, which is an error otherwise.
    resume
        Go on with the run at `output` as if it had never stopped. Without one, begin ("auto") or raise UsageError
        ("must"). Committed frames stay: those behind the newest checkpoint are computed again, and compared.
    discard_after
        With `resume="must"`: keep only this number of the committed frames.
    timeline
        A new JSON file, for Perfetto, that shows what each thread and the device did, and when.
    watch
        Called with the Progress of the run four times a second, from the calling thread, or from another one if that is
        inside trio. If it raises an error, the run ends with it; `gsio.errors.Interrupted` is the one for a wanted end.
    ranks
        Rank 0 of several, which share the run; the others call `gsio.run.joint.assist`.
    cut
        The frames, and the lines of a frame, that share a chunk of a new output; 0: the number is chosen.

    Raises
    ------
    UsageError
        The configuration or the output cannot be used; nothing was touched. Or something else took the name of the
        timeline during the run: it stays, and the output is complete.
    DataError
        The output or its checkpoint is damaged, or of another configuration, or a frame computed again differs.
    DivergenceError, StorageError, Interrupted
        The run ended early; every committed frame is in the file.
    """
    configure_unless_done()
    began, output = time.perf_counter(), place_of(output, resume)
    how: dict[str, Any] = {"overwrite": overwrite, "resume": resume, "discard_after": discard_after}
    check_stability(config.model, *rates(config))
    check_output(output, **how)
    timeline, config, end = timeline_of(timeline, output), with_codec(config, output), time_limit(config)
    opened = _open(config, output, None, None, cut) if ranks is None and _begins(output, resume) else None
    with Journal(output) as journal:
        before = _find_restart(config, output, journal, how)
        if _is_done(config, output, journal, before, ranks):
            return None
        trace = Trace(Timeline() if timeline is not None else None)
        pipeline = _pipeline(config, output, journal, before, trace, opened, ranks, cut, overwrite=overwrite)
        _run(pipeline, output, journal, before, end, timeline, watch)
    return _summary(pipeline, output, time.perf_counter() - began)


def _summary(pipeline: Pipeline, output: Path, taken: float) -> Summary:
    """Return the summary of a run that took `taken` seconds, and log its end."""
    solver = pipeline.solver
    shared = getattr(solver, "note", ""), str(pipeline.balance)  # how, and how evenly, bands share the grid
    summary = summarise(pipeline.progress(), pipeline.trace, solver.device, output, taken, *shared)
    log.info("run finished", frames=summary.frames, seconds=round(summary.wall_seconds, 3), nbytes=summary.nbytes_out)
    return summary


def _find_restart(config: Config, output: Path, journal: Journal, how: Mapping[str, Any]) -> Restart[Checkpoint] | None:
    """Return where the run goes on with `output`, or None if it begins."""
    before = restart(output, journal, partial(check_same_run, config), checkpoints.load, **how)
    if before is not None and before.frames > config.run.frames and not before.is_complete:
        raise UsageError(
            f"run.frames: expected at least {before.frames}, which are committed, got {config.run.frames}; "
            "--discard-after cuts an output"
        )
    return before


def _is_done(
    config: Config, output: Path, journal: Journal, before: Restart[Checkpoint] | None, ranks: Ranks | None
) -> bool:
    """Return whether an output that would be extended has all frames already; if so, end what the run has begun."""
    if before is None or not before.is_complete or before.frames < config.run.frames:
        return False
    journal.remove()  # a run left it that was killed before it had replaced this output
    if ranks is not None:
        ranks.meet()
    log.info("all frames are there already", output=str(output), frames=before.frames)
    return True


def _run(
    pipeline: Pipeline,
    output: Path,
    journal: Journal,
    before: Restart[Checkpoint] | None,
    end: float | None,
    timeline: Path | None,
    watch: Observe | None,
) -> None:
    """Run a pipeline under the eyes of its observers, and record beside the output how it ended."""
    with _saved(pipeline.trace.timeline, timeline), status_file(output, pipeline.progress) as update:
        with limits(output, end, pipeline.progress, pipeline.stop) as check:
            log.info(
                "run started" if before is None else "run resumed",
                output=str(output),
                frames=pipeline.config.run.frames,
                first=pipeline.session.frames_committed,
                **({} if before is None else {"computed_from": before.computed_from}),
                backend=pipeline.solver.backend,
                device=pipeline.solver.device,
            )
            pipeline.run([check, update] if watch is None else [check, update, watch])
        journal.remove()


@contextmanager
def _saved(timeline: Timeline | None, path: Path | None) -> Iterator[None]:
    """Write a timeline at the end, if there is one."""
    state = "failed"
    try:
        yield
        state = "complete"
    finally:
        if timeline is not None and path is not None:
            try:
                timeline.write(path)
            except (OSError, UsageError) as error:
                if state == "complete":
                    raise
                log.warning(f"there is no timeline: {error}")  # the error that ended the run is the one to raise


def _begins(output: Path, resume: Resume) -> bool:
    """Return whether a run begins, and finds no journal: it opens its solver before it makes one.

    Solvers can compile for a minute, and a kill meanwhile then leaves nothing.
    """
    return not (os.path.lexists(journal_of(output)) or (resume != "no" and os.path.lexists(output)))


class _Opened(NamedTuple):
    """The layout of whole frames, what this process does of a run, and a checksum of the rates."""

    layout: BlockLayout
    share: Share
    rates: int


def _open(
    config: Config, output: Path, before: Restart[Checkpoint] | None, ranks: Ranks | None, cut: tuple[int, int]
) -> _Opened:
    """Plan a run that begins, or extends the output `before`, and open its solver."""
    kept = (before.frames_per_chunk, before.lines_per_chunk) if before is not None else cut
    planned = plan(config, output, *kept, bands=ranks.count if ranks is not None else 1)
    state = before.checkpoint if before is not None else None
    feed, kill = rates(config)
    checksum = checkpoints.rates_checksum(feed, kill)
    if state is not None and checksum != state.rates:
        raise DataError("--resume: the maps of feed or kill are not those of the checkpoint; put these back")
    resumed = Start(state.u, state.v, feed, kill) if state is not None else None
    share = open_share(planned, output, before.earlier if before is not None else NOTHING, resumed, ranks)
    return _Opened(planned.layout, share, checksum)


def _pipeline(
    config: Config,
    output: Path,
    journal: Journal,
    before: Restart[Checkpoint] | None,
    trace: Trace,
    opened: _Opened | None,
    ranks: Ranks | None,
    cut: tuple[int, int],
    *,
    overwrite: bool,
) -> Pipeline:
    """Open the output and return the pipeline of a run that begins, or extends the output `before`."""
    if opened is None or before is not None:
        opened = _open(config, output, before, ranks, cut)
    layout, share, checksum = opened
    solver, pool = share.solver, BlockPool(share.layout, share.blocks, share.solver.allocate)
    output_id = before.output_id if before is not None else ""
    attributes = root_attributes(config, solver.backend, solver.device, output_id)

    def save(frames: int, u: Field, v: Field) -> None:
        if ranks is not None:
            u, v = ranks.gather(frames, u, v, layout.frame.shape)
        checkpoints.save(output, Checkpoint(attributes["output_id"], frames, u, v, config.to_toml(), checksum))

    session = open_output(
        output, Content.of(config), attributes, journal, pool, share.threads, trace, before,
        overwrite=overwrite, layout=layout, earlier=share.earlier,
    )  # fmt: skip
    if ranks is not None:
        session.writer = ranks.join(share.bands, session.writer)
    check = None if before is None else partial(compare, before, solver.device, "--resume=must --discard-after ")
    every = parse_interval("run.checkpoint_every", config.run.checkpoint_every)
    checkpointer = Checkpointer(session.earlier.computed_from, every, solver.snapshot, save)
    return Pipeline(config, solver, session, checkpointer, check, ranks)


def last_frame(config: Config) -> NDArray[np.floating[Any]]:
    """Return v, of the layout's shape, after the last step of a run that saves nothing; raises as `simulate`."""
    layout = layout_of(config)
    solver = open_solver(choose_backend(config), config, layout, 1, initial_state, recall, remember=remember)
    solver.advance(config.run.frames * config.run.steps_per_frame)
    return solver.field("v")


def timeline_of(path: Path | str | None, output: Path) -> Path | None:
    """Return the path of a timeline; raise UsageError unless a run of `output` can make one there."""
    if path is None:
        return None
    require_new("--timeline", Path(path), apart_from=[output, *beside(output)])
    return Path(path)
