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
from typing import Any

import numpy as np
import psutil
import structlog
import trio
from numpy.typing import NDArray

from gsio.compute import open_solver
from gsio.compute.base import Solver
from gsio.compute.stencil import check_stability
from gsio.config import Config, parse_bytes, usable_cores
from gsio.errors import DivergenceError, GsioError, Interrupted, StorageError, UsageError
from gsio.log import configure
from gsio.staging import STATISTICS, Block, BlockPool, FrameLayout
from gsio.trace import Summary, Trace
from gsio.writer import for_output, format_of, is_zarr, open_writer
from gsio.writer.base import FrameWriter
from gsio.writer.metadata import root_attributes

WATCH_SECONDS = 0.25
SIGNALLED = (
    "stopping when the frames already computed are written; a second signal drops them",
    "stopping after the block being written; a third signal aborts",
)

log = structlog.get_logger()


def simulate(
    config: Config, output: Path, *, overwrite: bool = False, watch: "Callable[[Pipeline], None] | None" = None
) -> Summary:
    """Simulate `config` and save every frame in `output`.

    Parameters
    ----------
    output
        The file or folder to make; its ending, .h5, .hdf5 or .zarr, names the format.
    overwrite
        Replace what is at `output`, which else is an error.
    watch
        Called four times a second while frames are computed, from the thread that called `simulate`.

    Raises
    ------
    UsageError
        The configuration or the output cannot be used; nothing was touched.
    DivergenceError, StorageError, Interrupted
        The run ended early; every committed frame is in the file.
    """
    if not structlog.is_configured():  # called from a program that has said nothing about logging
        configure("auto", quiet=True)
    began = time.perf_counter()
    check_stability(config.model)
    check_output(output, overwrite=overwrite)
    config = for_output(config, output)
    layout = layout_of(config)
    threads, blocks = encoding_threads(config), pool_size(config, layout)
    solver = open_solver(config, layout, blocks)
    pool = BlockPool(layout, blocks, solver.allocate)
    trace = Trace()
    try:
        writer = open_writer(output, config, layout, root_attributes(config, solver.backend, solver.device), trace)
    except OSError as error:
        raise StorageError(f"cannot create {output}: {error.strerror or error}; no frame was written") from error
    log.info("run started", output=str(output), frames=config.run.frames, backend=solver.backend, device=solver.device)
    pipeline = Pipeline(config, solver, pool, writer, trace, threads)
    pipeline.run(watch)
    summary = summarise(pipeline, output, time.perf_counter() - began)
    log.info("run finished", frames=summary.frames, seconds=round(summary.wall_seconds, 3), nbytes=summary.nbytes_out)
    return summary


def last_frame(config: Config) -> NDArray[np.floating[Any]]:
    """Return v, of the layout's shape, after the last step of a run of which nothing is saved; raises as `simulate`."""
    check_stability(config.model)
    solver = open_solver(config, layout_of(config), blocks=1)
    solver.advance(config.run.frames * config.run.steps_per_frame)
    return solver.fields()[1]


def layout_of(config: Config) -> FrameLayout:
    """Return how the frames of a run lie in memory; only a codec gains from byte planes."""
    members, grid, output = config.model.members, config.grid, config.output
    shape = (grid.rows, grid.cols) if members == 1 else (members, grid.rows, grid.cols)
    return FrameLayout.of(
        shape,
        config.model.precision,
        output.fields,
        shuffle=output.compression == "deflate",
        steps=config.run.steps_per_frame,
        frames=config.run.frames,
        store=config.stored,
        keep_bits=output.keep_bits,
        shard_frames=output.shard_frames,
        lz4=output.compression == "lz4",
    )


def encoding_threads(config: Config) -> int:
    """Return how many threads encode; by default one for each core this process may use."""
    return config.output.threads or usable_cores()


def check_output(output: Path, *, overwrite: bool) -> None:
    """Raise UsageError if `output` cannot be created."""
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
    if os.path.lexists(output) and not overwrite:
        raise UsageError(f"--output: '{output}' exists; choose another name, or replace it with --overwrite")
    if what == "Zarr" and os.path.lexists(output) and not is_zarr(output):
        raise UsageError(f"--output: '{output}' is no Zarr group that gsio wrote; expected one to replace")


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


class Pipeline:
    """The threads of one run, and how far they are.

    Attributes
    ----------
    frames_committed
        Frames in the file.
    compute_seconds, link_seconds
        Time the device spent computing and copying those frames.
    started, finished
        Begin and end of the frame loop, `time.perf_counter` seconds.
    """

    def __init__(
        self, config: Config, solver: Solver, pool: BlockPool, writer: FrameWriter, trace: Trace, threads: int
    ) -> None:
        self.config = config
        self.solver = solver
        self.pool = pool
        self.writer = writer
        self.trace = trace
        self.threads = threads
        self.frames_committed = 0
        self.compute_seconds = self.link_seconds = 0.0
        self.started = self.finished = 0.0
        self._stopping = self._abandoning = False
        self._signal: signal.Signals | None = None
        self._staged: queue.SimpleQueue[tuple[Block, int] | None] = queue.SimpleQueue()
        self._encoded: queue.SimpleQueue[Block | None] = queue.SimpleQueue()

    def run(self, watch: "Callable[[Pipeline], None] | None" = None) -> None:
        """Compute and commit all frames, then close the writer; raise what ended the run early."""
        try:
            trio.run(self._supervise, watch)
        except BaseExceptionGroup as group:
            raise _cause(group) from None
        if self.frames_committed < self.config.run.frames:
            assert self._signal is not None
            done, asked = self.frames_committed, self.config.run.frames
            raise Interrupted(f"stopped by {self._signal.name} after {done} of {asked} frames, which are safe")

    async def _supervise(self, watch: "Callable[[Pipeline], None] | None") -> None:
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
        limiter = trio.CapacityLimiter(self.threads + 2)
        self.started = time.perf_counter()
        try:
            async with trio.open_nursery() as workers:
                for work in [self._compute, self._commit, *[self._encode] * self.threads]:
                    workers.start_soon(partial(trio.to_thread.run_sync, work, limiter=limiter))
            status = "complete" if self.frames_committed == self.config.run.frames else "stopped"
        finally:
            self.finished = time.perf_counter()
            await trio.to_thread.run_sync(self._close, status)

    def _compute(self) -> None:
        """Fill blocks with frames until all are computed or the run is to stop."""
        try:
            frames, per_block = self.config.run.frames, self.pool.layout.frames_per_block
            for first in range(0, frames, per_block):
                with self.trace.span("wait_block", first):
                    block = self.pool.acquire()
                if block is None or self._stopping:
                    break
                block.first, block.count = first, min(per_block, frames - first)
                with self.trace.span("advance", first):
                    self.solver.fill(block)
                for slab in range(self.pool.layout.slabs):
                    self._staged.put((block, slab))
        finally:
            for _ in range(self.threads):
                self._staged.put(None)

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

    def _commit_ready(self, waiting: dict[int, Block]) -> None:
        ready: list[Block] = []
        following = self.frames_committed
        diverged = None
        while diverged is None and (block := waiting.pop(following, None)) is not None:
            self.compute_seconds += block.compute_seconds
            self.link_seconds += block.link_seconds
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
                "committed before are safe; make space or choose another --output, and run again"
            ) from error

    def _close(self, status: str) -> None:
        with self._storage():
            self.writer.close(status)

    async def _listen(self, task_status: "trio.TaskStatus[None]") -> None:
        """Stop on the first signal, drop what is not yet written on the second, abort on the third."""
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            received = 0
            async for number in signals:
                received += 1
                self._signal = self._signal or signal.Signals(number)
                self._abandoning = received > 1
                if received > 2:
                    os._exit(128 + number)
                self._stop()
                log.warning(SIGNALLED[received - 1])

    async def _watch(self, watch: "Callable[[Pipeline], None] | None") -> None:
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
    frames = pipeline.frames_committed
    return Summary(
        output=output,
        device=pipeline.solver.device,
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
        nbytes_out=pipeline.writer.nbytes,
    )


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
