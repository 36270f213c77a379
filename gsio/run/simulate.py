"""One run, wired: what it goes on with, the solver, the pool of blocks, the writer; then the pipeline runs."""

import os
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import structlog
from numpy.typing import NDArray

from gsio.compute import open_solver
from gsio.config import Config
from gsio.errors import DataError, Interrupted, StorageError, TakenError, UsageError, reason_of
from gsio.files import Replaces, is_file, remove_temporaries, require_new
from gsio.frames.block import BlockPool
from gsio.log import configure
from gsio.model.gray_scott import Field, check_stability
from gsio.model.start import Start
from gsio.run import checkpoints
from gsio.run.checkpoints import Checkpoint
from gsio.run.initial import initial_state, rates
from gsio.run.limits import Limits
from gsio.run.pipeline import Pipeline, Watch
from gsio.run.plan import choose_backend, layout_of, plan, with_codec
from gsio.run.resume import Restart, find_restart
from gsio.run.status import Status
from gsio.run.summary import Summary, summarise
from gsio.run.tunings import recall
from gsio.trace import Trace
from gsio.trace.timeline import Timeline
from gsio.writer import format_of, is_zarr, open_writer
from gsio.writer.hdf5 import is_open_here
from gsio.writer.journal import Journal, is_journal, journal_of
from gsio.writer.protocol import Target
from gsio.writer.provenance import root_attributes
from gsio.writer.status_file import is_status, status_of

Resume = Literal["no", "auto", "must"]

log = structlog.get_logger()


def simulate(
    config: Config,
    output: Path | str,
    *,
    overwrite: bool = False,
    resume: Resume = "no",
    discard_after: int | None = None,
    timeline: Path | str | None = None,
    watch: Watch | None = None,
) -> Summary | None:
    """Simulate `config` and save every frame in `output`.

    Parameters
    ----------
    output
        The file or folder to make; its ending, .h5, .hdf5 or .zarr, names the format.
    overwrite
        Replace what is at `output`, a file or a Zarr group that gsio wrote, which else is an error.
    resume
        Go on with the run at `output` as if it had never stopped, until all frames of `config` are there; where there
        is none, begin one ("auto") or raise UsageError ("must"). Returns None if all frames were there already.
        Committed frames stay: those behind the newest checkpoint are computed again, and compared.
    discard_after
        With `resume="must"`: keep only so many of the committed frames.
    timeline
        A JSON file to make, for Perfetto, of what every thread and the device did when. One that is there is an error.
    watch
        Called four times a second while frames are computed, from the thread that called `simulate`; where that is
        inside trio, from another.

    Raises
    ------
    UsageError
        The configuration or the output cannot be used; nothing was touched. Or something took the name of the timeline
        while a run went on to its end: then that stays, and the output is complete.
    DataError
        The output or its checkpoint is damaged, or of another configuration; or a frame that is computed again differs
        from the committed one.
    DivergenceError, StorageError, Interrupted
        The run ended early; every committed frame is in the file.
    """
    if not structlog.is_configured():  # called from a program that has said nothing about logging
        configure("text", quiet=True)
    began = time.perf_counter()
    output, timeline = Path(output), None if timeline is None else Path(timeline)
    if resume != "no" and output.is_symlink():  # its journal, which is its lock, lies beside the file itself
        output = output.resolve()
    check_stability(config.model, *rates(config))
    check_output(output, overwrite=overwrite, resume=resume)
    if discard_after is not None and resume != "must":
        raise UsageError("--discard-after: expected it with --resume=must only, which names an output to cut")
    if timeline is not None:
        check_timeline(timeline, output)
    config, limits = with_codec(config, output), Limits(config, output)
    with Journal(output) as journal:
        check_output(output, overwrite=overwrite, resume=resume)  # again: from here on no other run makes it
        for path in (output, *checkpoints.paths_of(output), status_of(output)):
            remove_temporaries(path)
        before = None
        if resume != "no" and os.path.lexists(output):
            before = find_restart(output, config, journal, discard_after)
            if discard_after is None and before.status == "complete" and before.frames >= config.run.frames:
                journal.remove()  # of a run that was killed before it had replaced this output
                log.info("all frames are there already", output=str(output), frames=before.frames)
                return None
            if before.frames > config.run.frames:
                raise UsageError(
                    f"run.frames: expected at least {before.frames}, which are committed, got {config.run.frames}; "
                    "--discard-after cuts an output"
                )
        trace = Trace(Timeline() if timeline is not None else None)
        pipeline = _pipeline(config, output, journal, before, trace, overwrite=overwrite)
        limits.estimate(pipeline.pool.layout, config.run.frames - pipeline.first)
        log.info(
            "run started" if before is None else "run resumed",
            output=str(output),
            frames=config.run.frames,
            first=pipeline.first,
            **({} if before is None else {"computed_from": before.computed_from}),
            backend=pipeline.solver.backend,
            device=pipeline.solver.device,
        )
        status = Status(output)

        def look(pipeline: Pipeline) -> None:
            limits.check(pipeline)
            status.update(pipeline)
            if watch is not None:
                watch(pipeline)

        state = "failed"
        try:
            pipeline.run(look)
            limits.look(pipeline)
            state = "complete"
            journal.remove()
        except Interrupted:
            state = "stopped"
            raise
        finally:
            status.update(pipeline, state)
            if timeline is not None and trace.timeline is not None:
                try:
                    trace.timeline.write(timeline)
                except (OSError, UsageError) as error:
                    if state == "complete":
                        raise
                    log.warning(f"there is no timeline: {error}")  # what ended the run is the error to tell
    summary = summarise(pipeline, output, time.perf_counter() - began)
    log.info("run finished", frames=summary.frames, seconds=round(summary.wall_seconds, 3), nbytes=summary.nbytes_out)
    return summary


def _pipeline(
    config: Config, output: Path, journal: Journal, before: Restart | None, trace: Trace, *, overwrite: bool
) -> Pipeline:
    """Return the pipeline of a run that begins, or goes on with what was there `before`, with its output open."""
    planned = plan(config, output, before.frames_per_chunk if before is not None else 0)
    layout = planned.layout
    state = before.checkpoint if before is not None else None
    feed, kill = rates(config)
    checksum = checkpoints.rates_checksum(feed, kill)
    if state is not None and checksum != state.rates:
        raise DataError("--resume: the maps of feed or kill are not those of the checkpoint; put these back")

    def start(config: Config) -> Start:
        return initial_state(config) if state is None else Start(state.u, state.v, feed, kill)

    solver = open_solver(planned.backend, config, layout, planned.blocks, start, recall)
    pool = BlockPool(layout, planned.blocks, solver.allocate)
    attributes = root_attributes(config, solver.backend, solver.device)
    if before is not None:
        attributes["output_id"] = before.output_id

    def save(frames: int, u: Field, v: Field) -> None:
        checkpoints.save(output, Checkpoint(attributes["output_id"], frames, u, v, config.to_toml(), checksum))

    try:
        series = before.series if before is not None else None
        if before is not None:
            checkpoints.discard(output, before.frames)
        writer = open_writer(Target(output, config, layout, attributes, journal, trace, series, overwrite))
        for path in checkpoints.paths_of(output) if before is None else ():  # of the output that was replaced
            if checkpoints.is_checkpoint(path):
                path.unlink()
    except BaseException as error:
        # An output that was there needs its journal to start again where a killed run has no checkpoint.
        if isinstance(error, TakenError) or not os.path.lexists(output):
            journal.remove()
        if isinstance(error, (OSError, RuntimeError)):  # h5py raises either
            there = before.frames if before is not None else 0
            safe = f"the {there} frames committed before are safe" if there else "no frame was written"
            raise StorageError(f"cannot write {output}: {reason_of(error)}; {safe}") from error
        raise
    return Pipeline(config, solver, pool, writer, trace, planned.threads, before, save)


def last_frame(config: Config) -> NDArray[np.floating[Any]]:
    """Return v, of the layout's shape, after the last step of a run of which nothing is saved; raises as `simulate`."""
    solver = open_solver(choose_backend(config), config, layout_of(config), 1, initial_state, recall)
    solver.advance(config.run.frames * config.run.steps_per_frame)
    return solver.field("v")


def check_output(output: Path, *, overwrite: bool, resume: Resume = "no") -> None:
    """Raise UsageError if `output` cannot be created, or gone on with."""
    try:
        os.fspath(output).encode()
    except UnicodeEncodeError:
        raise UsageError(f"--output: expected a name in UTF-8, got {os.fspath(output)!a}") from None
    is_folder = format_of(output) == "Zarr"
    if overwrite and resume != "no":
        raise UsageError("--overwrite, --resume: expected one of them, got both")
    if resume == "must" and not os.path.lexists(output):
        raise UsageError(f"--resume=must: '{output}' does not exist; expected the output of a run that stopped")
    if not is_folder and output.is_dir():
        raise UsageError(f"--output: '{output}' is a folder; expected the name of a file")
    goes_on = resume != "no" and os.path.lexists(output)
    if goes_on and not is_folder and is_open_here(output):
        raise UsageError(f"--resume: expected an output that is closed, but this process has '{output}' open; close it")
    replaces: Replaces | None = is_zarr if is_folder else is_file
    if goes_on:
        replaces = os.path.lexists
    elif not overwrite:
        replaces = None
    require_new("--output", output, replaces=replaces, instead="choose another name, --resume it, or --overwrite it")
    for path, is_of_run in beside(output).items():
        require_new("--output", path, replaces=_is_regular if goes_on else is_of_run)


def _is_regular(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def beside(output: Path) -> dict[Path, Replaces]:
    """Return the names that a run makes beside its output, each with what says whether a run has made what is there."""
    saved = dict.fromkeys(checkpoints.paths_of(output), checkpoints.is_checkpoint)
    return {journal_of(output): is_journal, status_of(output): is_status, **saved}


def check_timeline(path: Path, output: Path) -> None:
    """Raise UsageError unless a run of `output` can make a new timeline at `path`."""
    require_new("--timeline", path, apart_from=[output, *beside(output)])
