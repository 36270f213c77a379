"""One run, wired: what it goes on with, the solver, the pool of blocks, the writer; then the pipeline runs."""

import os
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import structlog
from numpy.typing import NDArray

from gsio import checkpoint, staging
from gsio.checkpoint import Checkpoint
from gsio.compute import open_solver, with_backend
from gsio.compute.base import Field
from gsio.compute.stencil import check_stability
from gsio.config import Config, parse_bytes, usable_cores
from gsio.errors import DataError, Interrupted, StorageError, TakenError, UsageError, reason_of
from gsio.files import Replaces, is_file, remove_temporaries, require_new
from gsio.initial import Start, initial_state, rates
from gsio.limits import Limits, available_memory
from gsio.log import configure
from gsio.pipeline import Pipeline, Watch
from gsio.resume import Restart, find_restart
from gsio.staging import BlockPool, FrameLayout, layout_of
from gsio.status import Status, is_status, status_of
from gsio.timeline import Timeline
from gsio.trace import Summary, Trace
from gsio.writer import for_output, format_of, is_zarr, open_writer
from gsio.writer.base import Target
from gsio.writer.hdf5 import is_open_here
from gsio.writer.journal import Journal, is_journal, journal_of
from gsio.writer.metadata import root_attributes

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
        configure("auto", quiet=True)
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
    config, limits = for_output(config, output), Limits(config, output)
    with Journal(output) as journal:
        check_output(output, overwrite=overwrite, resume=resume)  # again: from here on no other run makes it
        for path in (output, *checkpoint.paths_of(output), status_of(output)):
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
    chosen = with_backend(config)
    layout = layout_of(chosen, before.frames_per_chunk if before is not None else 0)
    threads, blocks = encoding_threads(config, layout), pool_size(config, layout)
    state = before.checkpoint if before is not None else None
    feed, kill = rates(config)
    checksum = checkpoint.rates_checksum(feed, kill)
    if state is not None and checksum != state.rates:
        raise DataError("--resume: the maps of feed or kill are not those of the checkpoint; put these back")

    def start(config: Config) -> Start:
        return initial_state(config) if state is None else Start(state.u, state.v, feed, kill)

    solver = open_solver(chosen, layout, blocks, start)
    pool = BlockPool(layout, blocks, solver.allocate)
    attributes = root_attributes(config, solver.backend, solver.device)
    if before is not None:
        attributes["output_id"] = before.output_id

    def save(frames: int, u: Field, v: Field) -> None:
        checkpoint.save(output, Checkpoint(attributes["output_id"], frames, u, v, config.to_toml(), checksum))

    try:
        series = before.series if before is not None else None
        if before is not None:
            checkpoint.discard(output, before.frames)
        writer = open_writer(Target(output, config, layout, attributes, journal, trace, series, overwrite))
        for path in checkpoint.paths_of(output) if before is None else ():  # of the output that was replaced
            if checkpoint.is_checkpoint(path):
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
    return Pipeline(config, solver, pool, writer, trace, threads, before, save)


def last_frame(config: Config) -> NDArray[np.floating[Any]]:
    """Return v, of the layout's shape, after the last step of a run of which nothing is saved; raises as `simulate`."""
    solver = open_solver(config, layout_of(config), blocks=1)
    solver.advance(config.run.frames * config.run.steps_per_frame)
    return solver.field("v")


def encoding_threads(config: Config, layout: FrameLayout) -> int:
    """Return how many threads encode; by default one for each core this process may use.

    Fewer of many cores where a GPU encodes: threads that only write take turns at the interpreter, and the more of
    them there are, the longer the solver's thread waits for its own.
    """
    cores = usable_cores()
    return config.output.threads or (min(cores, 4 + cores // 4) if layout.gpu_codec else cores)


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
    checkpoints = dict.fromkeys(checkpoint.paths_of(output), checkpoint.is_checkpoint)
    return {journal_of(output): is_journal, status_of(output): is_status, **checkpoints}


def check_timeline(path: Path, output: Path) -> None:
    """Raise UsageError unless a run of `output` can make a new timeline at `path`."""
    require_new("--timeline", path, apart_from=[output, *beside(output)])


def pool_size(config: Config, layout: FrameLayout) -> int:
    """Return the number of blocks: what `output.memory` holds, else enough to keep the encoders and the link busy.

    Raises UsageError if that are less than two: one to be filled while another is written.
    """
    if memory := config.output.memory:
        blocks = parse_bytes("output.memory", memory) // layout.block_nbytes
        if blocks < 2:
            least = -(-2 * layout.block_nbytes // 2**20)
            raise UsageError(f"output.memory: expected at least {least}MiB, two blocks of frames, got {memory}")
    else:
        wanted = -(-encoding_threads(config, layout) // layout.slabs) + 4
        wanted *= max(1, staging.BLOCK_BYTES // layout.block_nbytes)  # small blocks too cover the pauses of a disk
        affordable = available_memory() // 4 // (2 * layout.block_nbytes)
        blocks = max(2, min(wanted, int(affordable)))
    in_the_run = -(-config.run.frames // layout.frames_per_block)
    return min(in_the_run, blocks)


def summarise(pipeline: Pipeline, output: Path, wall_seconds: float) -> Summary:
    """Return what the run took."""
    trace, config, loop = pipeline.trace, pipeline.config, pipeline.finished - pipeline.started
    occupied = {
        "compute": pipeline.compute_seconds,
        "link": pipeline.link_seconds,
        "encode": trace.encode.total / pipeline.threads,
        "write": trace.write.busy,
    }
    io = max(trace.io.busy, pipeline.link_seconds)
    exposed = max(0.0, loop - pipeline.compute_seconds)
    frames = pipeline.frames_committed - pipeline.first
    return Summary(
        output=output,
        device=pipeline.solver.device,
        first=pipeline.first,
        frames=frames,
        cells=frames * config.run.steps_per_frame * pipeline.pool.layout.cells,
        wall_seconds=wall_seconds,
        loop_seconds=loop,
        compute_seconds=pipeline.compute_seconds,
        link_seconds=pipeline.link_seconds,
        encode_seconds=trace.encode.busy,
        write_seconds=trace.write.busy,
        wait_seconds=trace.wait.busy,
        bottleneck=max(occupied, key=lambda name: occupied[name]),
        hidden=min(1.0, max(0.0, 1 - exposed / io)) if io else 1.0,
        nbytes_in=frames * pipeline.pool.layout.frame_nbytes,
        nbytes_out=pipeline.writer.nbytes - pipeline.nbytes_before,
        outside=pipeline.outside,
    )
