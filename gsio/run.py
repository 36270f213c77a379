"""One run, wired: the solver fills blocks, threads encode them, the writer commits them in frame order.

    compute ──► BlockPool.acquire ──► solver.fill ──► encode (threads) ──► commit ──► BlockPool.release

Each stage is a loop in a thread of its own, started by one trio nursery; blocks pass through queues that need no bound,
because there are only as many blocks as the pool has. Where storage is slow, the pool runs empty and computing waits in
`acquire`, nowhere else.
"""

import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import psutil
import structlog
import trio
from numpy.typing import NDArray

from gsio import checkpoint
from gsio.checkpoint import Checkpoint
from gsio.compute import open_solver
from gsio.compute.base import Field, Solver
from gsio.compute.stencil import check_stability
from gsio.config import Config, parse_bytes, parse_interval, usable_cores
from gsio.errors import DataError, DivergenceError, GsioError, Interrupted, StorageError, UsageError
from gsio.initial import Start, initial_state
from gsio.limits import Limits
from gsio.log import configure
from gsio.reader import open_stack
from gsio.resume import where_to_go_on
from gsio.staging import STATISTICS, Block, BlockPool, FrameLayout, layout_of
from gsio.status import Status, status_of
from gsio.timeline import Timeline
from gsio.trace import Summary, Trace
from gsio.writer import for_output, format_of, is_zarr, open_writer
from gsio.writer.base import FrameWriter, remove_temporaries
from gsio.writer.journal import Journal
from gsio.writer.metadata import root_attributes

Resume = Literal["no", "auto", "must"]
Watch = Callable[["Pipeline"], None]

WATCH_SECONDS = 0.25
SIGNALLED = (
    "stopping when the frames already computed are written; a second signal drops them",
    "stopping after the block being written; a third signal aborts",
)

log = structlog.get_logger()


def simulate(
    config: Config,
    output: Path,
    *,
    overwrite: bool = False,
    resume: Resume = "no",
    timeline: Path | None = None,
    watch: Watch | None = None,
) -> Summary | None:
    """Simulate `config` and save every frame in `output`.

    Parameters
    ----------
    output
        The file or folder to make; its ending, .h5, .hdf5 or .zarr, names the format.
    overwrite
        Replace what is at `output`, which else is an error.
    resume
        Go on with the run at `output` as if it had never stopped, until all frames of `config` are there; where there
        is none, begin one ("auto") or raise UsageError ("must"). Returns None if all frames were there already.
    timeline
        A JSON file to make, for Perfetto, of what every thread and the device did when.
    watch
        Called four times a second while frames are computed, from the thread that called `simulate`.

    Raises
    ------
    UsageError
        The configuration or the output cannot be used; nothing was touched.
    DataError
        The output or its checkpoint is damaged, or of another configuration.
    DivergenceError, StorageError, Interrupted
        The run ended early; every committed frame is in the file.
    """
    if not structlog.is_configured():  # called from a program that has said nothing about logging
        configure("auto", quiet=True)
    began = time.perf_counter()
    check_stability(config.model)
    check_output(output, overwrite=overwrite, resume=resume)
    if timeline is not None:
        check_timeline(timeline)
    config, limits = for_output(config, output), Limits(config, output)
    with Journal(output) as journal:
        for path in (output, *checkpoint.paths_of(output), status_of(output)):
            remove_temporaries(path)
        part = where_to_go_on(output, config) if resume != "no" and os.path.lexists(output) else None
        if part is not None and (there := frames_there(output)) >= config.run.frames:
            journal.remove()  # of a run that was killed before it had replaced this output
            log.info("all frames are there already", output=str(output), frames=there)
            return None
        if part is not None and part.frames > config.run.frames:
            least = f"expected at least the {part.frames} of the checkpoint"
            raise UsageError(f"run.frames: {least}, got {config.run.frames}")
        pipeline = _pipeline(config, output, journal, part, Trace(Timeline() if timeline is not None else None))
        limits.estimate(pipeline.pool.layout, config.run.frames - pipeline.first)
        log.info(
            "run started" if part is None else "run resumed",
            output=str(output),
            frames=config.run.frames,
            first=pipeline.first,
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
            if timeline is not None and pipeline.trace.timeline is not None:
                pipeline.trace.timeline.write(timeline)
    summary = summarise(pipeline, output, time.perf_counter() - began)
    log.info("run finished", frames=summary.frames, seconds=round(summary.wall_seconds, 3), nbytes=summary.nbytes_out)
    return summary


def _pipeline(config: Config, output: Path, journal: Journal, part: Checkpoint | None, trace: Trace) -> "Pipeline":
    """Return the pipeline of a run that begins, or goes on with `part`, with its output open."""
    layout = layout_of(config, part.frames_per_chunk if part else 0)
    threads, blocks = encoding_threads(config), pool_size(config, layout)
    rates = 0

    def start(config: Config) -> Start:
        nonlocal rates
        initial = initial_state(config)
        rates = checkpoint.rates_checksum(initial)
        if part is None:
            return initial
        if rates != part.rates:
            raise DataError("--resume: the maps of feed or kill are not those of the checkpoint; put these back")
        return initial._replace(u=part.u, v=part.v)

    def save(frames: int, u: Field, v: Field) -> None:
        checkpoint.save(output, Checkpoint(frames, u, v, config.to_toml(), rates, layout.frames_per_chunk))

    solver = open_solver(config, layout, blocks, start)
    pool = BlockPool(layout, blocks, solver.allocate)
    attributes = root_attributes(config, solver.backend, solver.device)
    try:
        writer = open_writer(output, config, layout, attributes, journal, trace, part.frames if part else None)
        for path in checkpoint.paths_of(output) if part is None else ():  # of the output that was replaced
            path.unlink(missing_ok=True)
    except BaseException as error:
        if not os.path.lexists(output):  # else it is needed to start again where a killed run has no checkpoint
            journal.remove()
        if isinstance(error, (OSError, RuntimeError)):  # h5py raises either
            reason = getattr(error, "strerror", None) or error
            safe = f"the {part.frames} frames of its checkpoint are safe" if part else "no frame was written"
            raise StorageError(f"cannot write {output}: {reason}; {safe}") from error
        raise
    return Pipeline(config, solver, pool, writer, trace, threads, part.frames if part else 0, save)


def last_frame(config: Config) -> NDArray[np.floating[Any]]:
    """Return v, of the layout's shape, after the last step of a run of which nothing is saved; raises as `simulate`."""
    check_stability(config.model)
    solver = open_solver(config, layout_of(config), blocks=1)
    solver.advance(config.run.frames * config.run.steps_per_frame)
    return solver.field("v")


def encoding_threads(config: Config) -> int:
    """Return how many threads encode; by default one for each core this process may use."""
    return config.output.threads or usable_cores()


def check_output(output: Path, *, overwrite: bool, resume: Resume = "no") -> None:
    """Raise UsageError if `output` cannot be created, or gone on with."""
    try:
        os.fspath(output).encode()
    except UnicodeEncodeError:
        raise UsageError(f"--output: expected a name in UTF-8, got {os.fspath(output)!a}") from None
    what = format_of(output)
    if not output.parent.is_dir():
        raise UsageError(f"--output: the folder '{output.parent}' does not exist; create it first")
    if not os.access(output.parent, os.W_OK | os.X_OK):
        raise UsageError(f"--output: the folder '{output.parent}' is not writable; choose another")
    if what == "HDF5" and output.is_dir():
        raise UsageError(f"--output: '{output}' is a folder; expected the name of a file")
    if overwrite and resume != "no":
        raise UsageError("--overwrite, --resume: expected one of them, got both")
    if resume == "must" and not os.path.lexists(output):
        raise UsageError(f"--resume=must: '{output}' does not exist; expected the output of a run that stopped")
    if os.path.lexists(output) and not overwrite and resume == "no":
        raise UsageError(f"--output: '{output}' exists; choose another name, --resume it, or --overwrite it")
    if what == "Zarr" and overwrite and os.path.lexists(output) and not is_zarr(output):
        raise UsageError(f"--output: '{output}' is no Zarr group that gsio wrote; expected one to replace")


def check_timeline(path: Path) -> None:
    """Raise UsageError if a timeline cannot be written to `path`."""
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"--timeline: expected the name of a JSON file in a folder that exists, got '{path}'")


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
        wanted = -(-encoding_threads(config) // layout.slabs) + 4
        affordable = psutil.virtual_memory().available // 4 // (2 * layout.block_nbytes)
        blocks = max(2, min(wanted, int(affordable)))
    in_the_run = -(-config.run.frames // layout.frames_per_block)
    return min(in_the_run, blocks)


def frames_there(output: Path) -> int:
    """Return the number of frames of an output that is complete, or 0 if it is not."""
    with open_stack(output) as stack:
        return stack.frames if stack.attributes["status"] == "complete" else 0


class Pipeline:
    """The threads of one run, and how far they are.

    Attributes
    ----------
    first, frames_committed
        Frames that were in the file before, and that are in it now.
    compute_seconds, link_seconds
        Time the device spent computing and copying those frames.
    started, finished
        Begin and end of the frame loop, `time.perf_counter` seconds.
    """

    def __init__(
        self,
        config: Config,
        solver: Solver,
        pool: BlockPool,
        writer: FrameWriter,
        trace: Trace,
        threads: int,
        first: int = 0,
        save: Callable[[int, Field, Field], None] | None = None,
    ) -> None:
        """Compute from frame `first` on; `save` makes a checkpoint of the state after so many frames."""
        self.config = config
        self.solver = solver
        self.pool = pool
        self.writer = writer
        self.trace = trace
        self.threads = threads
        self.first = self.frames_committed = first
        self.nbytes_before = writer.nbytes if first else 0
        self.compute_seconds = self.link_seconds = 0.0
        self.started = self.finished = 0.0
        self._save = save
        self._every = parse_interval("run.checkpoint_every", config.run.checkpoint_every)
        self._stopping = self._abandoning = self._checkpoint_asked = False
        self._reason = ""
        self._kept: Snapshot | None = None  # until its frames are committed
        self._due: queue.SimpleQueue[Snapshot | None] = queue.SimpleQueue()  # to be saved
        self._saving = False  # either of these holds one
        self._last: Snapshot | None = None  # is saved when the file is closed
        self._staged: queue.SimpleQueue[tuple[Block, int] | None] = queue.SimpleQueue()
        self._encoded: queue.SimpleQueue[Block | None] = queue.SimpleQueue()

    def run(self, watch: Watch | None = None) -> None:
        """Compute and commit all frames, then close the writer; raise what ended the run early."""
        try:
            trio.run(self._supervise, watch)
        except BaseExceptionGroup as group:
            raise _cause(group) from None
        if self.frames_committed < self.config.run.frames:
            done, asked = self.frames_committed, self.config.run.frames
            raise Interrupted(
                f"stopped by {self._reason} after {done} of {asked} frames, which are safe; go on with --resume"
            )

    def stop(self, reason: str) -> None:
        """Compute no further block, and end when what is computed is committed."""
        self._reason = self._reason or reason
        self._stop()

    async def _supervise(self, watch: Watch | None) -> None:
        async with trio.open_nursery() as nursery:
            if threading.current_thread() is threading.main_thread():
                await nursery.start(self._listen)
            nursery.start_soon(self._watch, watch)
            # Shielded: threads cannot be cancelled, but one that never starts would leave the others waiting for it.
            # A cancelled run ends all the same, because `_watch` then stops the threads.
            with trio.CancelScope(shield=True):
                await self._work()
            nursery.cancel_scope.cancel()

    async def _work(self) -> None:
        status = "failed"
        limiter = trio.CapacityLimiter(self.threads + 3)
        self.started = time.perf_counter()
        try:
            with self.trace.span("loop", 0):
                async with trio.open_nursery() as workers:
                    for work in [self._compute, self._commit, self._checkpoint, *[self._encode] * self.threads]:
                        workers.start_soon(partial(trio.to_thread.run_sync, work, limiter=limiter))
            status = "complete" if self.frames_committed == self.config.run.frames else "stopped"
        finally:
            self.finished = time.perf_counter()
            await trio.to_thread.run_sync(self._close, status)

    def _compute(self) -> None:
        """Fill blocks with frames until all are computed or the run is to stop."""
        try:
            frames, per_block = self.config.run.frames, self.pool.layout.frames_per_block
            first, saved = self.first, (self.first, time.monotonic())
            while first < frames:
                with self.trace.span("wait_block", first):
                    block = self.pool.acquire()
                if block is None or self._stopping:
                    break
                if first + per_block > frames:  # a run that is extended goes on with whole blocks
                    self._last = self._snapshot(first)
                elif self._is_due(first, *saved):
                    saved, self._saving = (first, time.monotonic()), True
                    self._kept = self._snapshot(first)
                block.first, block.count = first, min(per_block, frames - first)
                with self.trace.span("advance", first):
                    self.solver.fill(block)
                for slab in range(self.pool.layout.slabs):
                    self._staged.put((block, slab))
                first += per_block
            if first <= frames:
                self._last = self._snapshot(first)
        finally:
            for _ in range(self.threads):
                self._staged.put(None)

    def _is_due(self, first: int, frames: int, since: float) -> bool:
        """Return whether a checkpoint is due at frame `first`, after one at `frames`, at the time `since`."""
        if self._save is None or self._saving or first == frames:
            return False
        every_frames, every_seconds = self._every
        late = 0 < every_frames <= first - frames or 0 < every_seconds <= time.monotonic() - since
        asked, self._checkpoint_asked = self._checkpoint_asked, False
        return late or asked

    def _snapshot(self, first: int) -> "Snapshot | None":
        """Keep the state after `first` frames; the device does it between two blocks, nobody waits."""
        return Snapshot(first, self.solver.snapshot()) if self._save is not None else None

    def _checkpoint(self) -> None:
        """Save the snapshots whose frames are committed, once these are durable."""
        try:
            while (snapshot := self._due.get()) is not None:
                with self.trace.span("checkpoint", snapshot.frames), self._storage():
                    self.writer.sync()
                    self._save_snapshot(snapshot)
                self._saving = False
        except BaseException:
            self._stop()
            raise

    def _save_snapshot(self, snapshot: "Snapshot") -> None:
        assert self._save is not None
        self._save(snapshot.frames, *snapshot.fields())
        log.info("checkpoint written", frame=snapshot.frames)

    def _encode(self) -> None:
        """Wait for staged blocks and encode their slabs, in any order."""
        try:
            while (staged := self._staged.get()) is not None and not self._abandoning:
                block, slab = staged
                with self.trace.span("stage", block.first):
                    self.solver.wait(block)
                with self._storage():
                    self.writer.encode(block, slab)
                if block.encoded():
                    self._encoded.put(block)
        except BaseException:
            self._stop()
            raise
        finally:
            self._encoded.put(None)

    def _commit(self) -> None:
        """Put encoded blocks back into frame order and commit them; one commit takes all that are ready."""
        try:
            waiting: dict[int, Block] = {}
            encoding = self.threads
            while encoding and not self._abandoning:
                block = self._encoded.get()
                if block is None:
                    encoding -= 1
                    continue
                waiting[block.first] = block
                if self._encoded.empty():
                    self._commit_ready(waiting)
            if not self._abandoning:
                self._commit_ready(waiting)
        except BaseException:
            self._stop()
            raise
        finally:
            self._due.put(None)

    def _commit_ready(self, waiting: dict[int, Block]) -> None:
        ready: list[Block] = []
        following = self.frames_committed
        diverged = None
        while diverged is None and (block := waiting.pop(following, None)) is not None:
            self.compute_seconds += block.compute_seconds
            self.link_seconds += block.link_seconds
            self.trace.device("compute", block.first, block.compute_start, block.compute_seconds)
            self.trace.device("copy", block.first, block.link_start, block.link_seconds)
            diverged = _cut_at_divergence(block)
            if block.count:
                ready.append(block)
            following += block.count
        if ready:
            with self._storage():
                self.writer.commit(ready)
            self.frames_committed = following
            log.debug("block committed", frame=following)
            for block in ready:
                self.pool.release(block)
            if (kept := self._kept) is not None and kept.frames <= following:
                self._kept = None
                self._due.put(kept)
        if diverged is not None:
            step = (diverged + 1) * self.config.run.steps_per_frame
            raise DivergenceError(
                f"the fields hold non-finite values at frame {diverged}, step {step}; "
                f"the {following} frames before it are safe; lower model.dt or check the initial state"
            )

    def _stop(self) -> None:
        """Let no further block be computed, and wake the solver's thread if it waits for one."""
        self._stopping = True
        self.pool.close()

    @contextmanager
    def _storage(self) -> Iterator[None]:
        """Turn an error of the storage into one that says what is safe."""
        try:
            yield
        except (OSError, RuntimeError) as error:  # h5py raises either
            raise StorageError(
                f"storage failed: {getattr(error, 'strerror', None) or error}; the {self.frames_committed} frames "
                "committed before are safe; make space, then go on with --resume"
            ) from error

    def _close(self, status: str) -> None:
        with self._storage():
            try:
                if status != "failed" and self._last is not None and self._last.frames <= self.frames_committed:
                    self.writer.sync()
                    self._save_snapshot(self._last)  # first, so that a complete output always has its last checkpoint
            except BaseException:
                status = "failed"
                raise
            finally:
                self.writer.close(status)

    async def _listen(self, task_status: "trio.TaskStatus[None]") -> None:
        """Stop on the first signal, drop what is not yet written on the second, abort on the third.

        SIGUSR1 asks for a checkpoint.
        """
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGUSR1) as signals:
            task_status.started()
            received = 0
            async for number in signals:
                if number == signal.SIGUSR1:
                    self._checkpoint_asked = True
                    continue
                received += 1
                self._abandoning = received > 1
                if received > 2:
                    os._exit(128 + number)
                self.stop(signal.Signals(number).name)
                log.warning(SIGNALLED[received - 1])

    async def _watch(self, watch: Watch | None) -> None:
        """Show how far the run is; when cancelled, for whatever reason, stop the threads, which trio cannot cancel."""
        try:
            while watch is not None:
                watch(self)
                await trio.sleep(WATCH_SECONDS)
            await trio.sleep_forever()
        finally:
            if not self.finished:
                self._stop()


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
    )


class Snapshot(NamedTuple):
    """The state after so many frames; `fields` waits for u and v, and returns them."""

    frames: int
    fields: Callable[[], tuple[Field, Field]]


def _cut_at_divergence(block: Block) -> int | None:
    """Cut `block` before its first non-finite frame and return that frame's number, or None if all are finite."""
    bad = block.statistics[: block.count, :, STATISTICS.index("nonfinite")].any(axis=1)
    if not bad.any():
        return None
    block.count = int(bad.argmax())
    kept = -(-block.count // block.layout.frames_per_chunk)
    block.chunks = {place: chunk for place, chunk in block.chunks.items() if place[0] < kept}
    return block.first + block.count


def _cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the error that ended the run: the first of ours, else the first."""
    leaves: list[BaseException] = []
    groups: list[BaseException] = [group]
    while groups:
        error = groups.pop(0)
        if isinstance(error, BaseExceptionGroup):
            groups.extend(error.exceptions)
        else:
            leaves.append(error)
    return next((error for error in leaves if isinstance(error, GsioError)), leaves[0])
