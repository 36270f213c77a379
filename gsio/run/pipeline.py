"""The threads of one run: the solver fills blocks, threads encode them, the writer commits them in frame order.

    compute ──► BlockPool.acquire ──► solver.fill ──► encode (threads) ──► commit ──► BlockPool.release

Each stage is a loop in a thread of its own, and all are started before the first block; blocks pass through queues that
need no bound, because there are only as many blocks as the pool has. Where storage is slow, the pool runs empty and
computing waits in `acquire`, nowhere else.
"""

import contextvars
import math
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import NamedTuple

import numpy as np
import structlog
import trio

from gsio import codec
from gsio.compute.solver import Solver
from gsio.config import Config, parse_interval
from gsio.errors import NO_THREAD, DataError, DivergenceError, GsioError, Interrupted, StorageError, reason_of
from gsio.frames.block import Block, BlockPool
from gsio.frames.layout import STATISTICS
from gsio.model.gray_scott import Field, values_outside
from gsio.run.resume import Restart
from gsio.trace import Trace
from gsio.writer.protocol import FrameWriter

Watch = Callable[["Pipeline"], None]

WATCH_SECONDS = 0.25
SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1
SIGNALLED = (
    "stopping when the frames already computed are written; a second signal drops them",
    "stopping after the block being written; a third signal aborts",
)

log = structlog.get_logger()


class Pipeline:
    """The threads of one run, and how far they are.

    Attributes
    ----------
    first, frames_committed
        Frames that were in the file before, and that are in it now.
    frames_durable
        Frames that the disk is known to have.
    compute_seconds, link_seconds
        Time the device spent computing and copying those frames.
    started, finished
        Begin and end of the frame loop, `time.perf_counter` seconds.
    outside
        What leaves 0 to 1 in the first of those frames where something does, in words; "" while nothing has.
    """

    def __init__(
        self,
        config: Config,
        solver: Solver,
        pool: BlockPool,
        writer: FrameWriter,
        trace: Trace,
        threads: int,
        before: Restart | None = None,
        save: Callable[[int, Field, Field], None] | None = None,
    ) -> None:
        """Go on with the frames that were there `before`; `save` makes a checkpoint of the state after so many."""
        self.config = config
        self.solver = solver
        self.pool = pool
        self.writer = writer
        self.trace = trace
        self.threads = threads
        self.first = self.frames_committed = before.frames if before is not None else 0
        self.frames_durable = 0
        self.nbytes_before = writer.nbytes if self.first else 0
        self.compute_seconds = self.link_seconds = 0.0
        self.started = self.finished = 0.0
        self._before = before
        self._position = before.computed_from if before is not None else 0  # frames computed and dealt with
        self.outside = ""
        self._save = save
        self._every = parse_interval("run.checkpoint_every", config.run.checkpoint_every)
        self._stopping = self._abandoning = self._checkpoint_asked = self._closed = False
        self._reason = ""
        self._kept: Snapshot | None = None  # until its frames are committed
        self._due: queue.SimpleQueue[Snapshot | None] = queue.SimpleQueue()  # to be saved
        self._saving = False  # either of these holds one
        self._last: Snapshot | None = None  # is saved when the file is closed
        self._staged: queue.SimpleQueue[tuple[Block, range] | None] = queue.SimpleQueue()  # tasks of a block
        self._encoded: queue.SimpleQueue[Block | None] = queue.SimpleQueue()

    def run(self, watch: Watch | None = None) -> None:
        """Compute and commit all frames, then close the writer; raise what ended the run early."""
        try:
            self._run_loop(watch)
        except BaseExceptionGroup as group:
            raise _cause(group) from None
        if self.frames_committed < self.config.run.frames:
            done, asked = self.frames_committed, self.config.run.frames
            raise Interrupted(
                f"stopped by {self._reason} after {done} of {asked} frames, which are safe; go on with --resume"
            )

    def _run_loop(self, watch: Watch | None) -> None:
        """Run trio's loop, in a thread of its own where the caller's thread is inside one already."""
        loop = partial(trio.run, self._supervise, watch)
        if not trio.lowlevel.in_trio_run():
            loop()
            return
        with ThreadPoolExecutor(1) as thread:
            ended = thread.submit(contextvars.copy_context().run, loop)
            try:
                ended.result()
            except KeyboardInterrupt:  # raised here by the caller's loop; the run's own hears no signals
                self.stop("KeyboardInterrupt")
                raise

    def stop(self, reason: str) -> None:
        """Compute no further block, and end when what is computed is committed."""
        self._reason = self._reason or reason
        self._stop()

    async def _supervise(self, watch: Watch | None) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, watch)
            # Shielded: threads cannot be cancelled, but one that never starts would leave the others waiting for it.
            # A cancelled run ends all the same, because `_watch` then stops the threads.
            with trio.CancelScope(shield=True), self._listening():
                await self._work()
            nursery.cancel_scope.cancel()

    async def _work(self) -> None:
        status = "failed"
        self.started = time.perf_counter()
        try:
            with self.trace.span("loop", 0):
                await self._stages()
            status = "complete" if self.frames_committed == self.config.run.frames else "stopped"
        finally:
            self.finished = self.finished or time.perf_counter()
            try:
                await trio.to_thread.run_sync(self._close, status)
            except (RuntimeError, MemoryError):
                if self._closed:
                    raise
                self._close(status)  # in this thread, as no other can be started

    async def _stages(self) -> None:
        """Run each stage in a thread of its own until all have ended; raise what they raised.

        The thread that computes is started last: where the system allows no more threads, nothing has begun.
        """
        errors: list[BaseException] = []
        ended, end = trio.open_memory_channel[BaseException | None](math.inf)
        token = trio.lowlevel.current_trio_token()

        def run(stage: Callable[[], None]) -> None:
            error = None
            try:
                stage()
            except BaseException as raised:
                error = raised
            token.run_sync_soon(ended.send_nowait, error)

        stages = [self._checkpoint, self._commit, *[self._encode] * self.threads, self._compute]
        started = 0
        try:
            for stage in stages:
                threading.Thread(target=run, args=(stage,), name=stage.__name__, daemon=True).start()
                started += 1
        except (RuntimeError, MemoryError):
            errors.append(GsioError(NO_THREAD))
            self._end_stages()
        errors += [error for _ in range(started) if (error := await end.receive()) is not None]
        if errors:
            raise BaseExceptionGroup("stages of a run", errors)

    def _end_stages(self) -> None:
        """Let the stages that have started end, where the one that computes has not."""
        for _ in range(self.threads):  # an encoder that never started neither takes its end nor passes one on
            self._staged.put(None)
            self._encoded.put(None)
        self._due.put(None)

    def _compute(self) -> None:
        """Fill blocks with frames until all are computed or the run is to stop."""
        try:
            frames, tasks = self.config.run.frames, range(self.pool.layout.tasks)
            first, saved = self._position, (self._position, time.monotonic())
            while first < frames:
                with self.trace.span("wait_block", first):
                    block = self.pool.acquire()
                if block is None or self._stopping:
                    break
                if self._is_due(first, *saved):
                    saved, self._saving = (first, time.monotonic()), True
                    self._kept = self._snapshot(first)
                end = self._block_end(first)
                block.first, block.count = first, end - first
                with self.trace.span("advance", first):
                    self.solver.fill(block)
                alone = first < self.first or first % self.pool.layout.chunks.frames_together
                for some in [tasks] if alone else [range(task, task + 1) for task in tasks]:
                    self._staged.put((block, some))
                first = end  # the block has changed hands
            self._last = self._snapshot(first)
        finally:
            for _ in range(self.threads):
                self._staged.put(None)

    def _block_end(self, first: int) -> int:
        """Return where the block that begins with frame `first` ends.

        A block holds either frames that are in the file or new ones, and after these first ends with a chunk or shard.
        """
        layout = self.pool.layout
        end = min(first + layout.frames_per_block, self.config.run.frames)
        if first < self.first:
            return min(end, self.first)
        behind = first % layout.chunks.frames_together
        return min(end, first - behind + layout.chunks.frames_together) if behind else end

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
                    self._sync()
                    if self._safe_last() is None:  # else that one is saved next
                        self._save_snapshot(snapshot)
                self._saving = False
        except BaseException:
            self._stop()
            raise

    def _sync(self) -> None:
        committed = self.frames_committed
        self.writer.sync()
        self.frames_durable = committed

    def _safe_last(self) -> "Snapshot | None":
        """Return the last checkpoint if all frames before it are committed."""
        last = self._last
        return last if last is not None and last.frames <= self._position else None

    def _save_snapshot(self, snapshot: "Snapshot") -> None:
        assert self._save is not None
        self._save(snapshot.frames, *snapshot.fields())
        log.info("checkpoint written", frame=snapshot.frames)

    def _encode(self) -> None:
        """Wait for staged blocks and encode their tasks, in any order."""
        try:
            while (staged := self._staged.get()) is not None and not self._abandoning:
                block, tasks = staged
                with self.trace.span("stage", block.first):
                    self.solver.wait(block)
                if block.first < self.first:
                    if not block.chunks:  # else the solver has taken the checksums
                        codec.set_checksums(block, 0, block.count)
                    self._encoded.put(block)
                    continue
                if block.first == self.first and self._before is not None and self._before.last:
                    codec.prepend(block, self._before.last)
                for task in tasks:
                    with self._storage():
                        self.writer.encode(block, task)
                    if block.finish_task():
                        self._encoded.put(block)
        except BaseException:
            self._stop()
            raise
        finally:
            self._encoded.put(None)

    def _compare(self, block: Block) -> None:
        """Raise DataError unless the frames of `block` are those that the file holds, or held."""
        if self._before is None:
            return
        found = block.checksums[block.kept : block.count]
        known = self._before.checksums[block.first + block.kept :][: len(found)]
        if len(wrong := np.flatnonzero(found[: len(known)] != known)):
            frame = block.first + block.kept + int(wrong[0])
            raise DataError(
                f"--resume: frame {frame}, computed again on '{self.solver.device}', differs from the committed one of "
                f"'{self._before.device}'; go on there, or cut the output with --resume=must --discard-after {frame}"
            )

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
                waiting[block.first + block.kept] = block
                if self._encoded.empty():
                    self._commit_ready(waiting)
            if not self._abandoning:
                self._commit_ready(waiting)
        except BaseException:
            self._stop()
            raise
        finally:
            self.finished = time.perf_counter()  # a checkpoint that is being saved belongs to what comes after
            self._due.put(None)

    def _commit_ready(self, waiting: dict[int, Block]) -> None:
        done: list[Block] = []
        diverged = None
        while diverged is None and (block := waiting.pop(self._position, None)) is not None:
            self.compute_seconds += block.compute_seconds
            self.link_seconds += block.link_seconds
            self.trace.device("compute", block.first, block.compute_start, block.compute_seconds)
            self.trace.device("copy", block.first, block.link_start, block.link_seconds)
            diverged = _cut_at_divergence(block)
            self._look_outside(block)
            self._compare(block)
            self._position = block.first + block.count
            done.append(block)
        if ready := [block for block in done if block.first + block.count > max(self.first, block.first + block.kept)]:
            with self._storage():
                self.writer.commit(ready)
            self.frames_committed = self._position
            log.debug("block committed", frame=self._position)
        for block in done:
            self.pool.release(block)
        if (kept := self._kept) is not None and kept.frames <= self._position:
            self._kept = None
            self._due.put(kept)
        if diverged is not None:
            step = (diverged + 1) * self.config.run.steps_per_frame
            raise DivergenceError(
                f"the fields hold non-finite values at frame {diverged}, step {step}; "
                f"the {diverged} frames before it are safe{f' ({self.outside})' if self.outside else ''}; "
                "lower model.dt or check the initial state"
            )

    def _look_outside(self, block: Block) -> None:
        """Warn of the first frame whose values leave 0 to 1; an initial state can start there, so that it can go on."""
        if self.outside:
            return
        least, largest = (block.statistics[: block.count, :, STATISTICS.index(name)] for name in ("min", "max"))
        self.outside = values_outside(least, largest, block.layout.frame.fields, block.first)
        if self.outside:
            log.warning(f"{self.outside}: model.dt is too long, or the initial state starts outside; the run goes on")

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
                f"storage failed: {reason_of(error)}; {self.frames_committed} frames are committed, and "
                f"{self.frames_durable} of these are known to be safe on the disk; make space, then go on with --resume"
            ) from error

    def _close(self, status: str) -> None:
        self._closed = True
        with self._storage():
            try:
                if status != "failed" and (last := self._safe_last()) is not None:
                    self._sync()
                    self._save_snapshot(last)  # first, so that a complete output always has its last checkpoint
            except BaseException:
                status = "failed"
                raise
            finally:
                self.writer.close(status)

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Stop on the first signal, drop what is not yet written on the second, abort on the third.

        SIGUSR1 asks for a checkpoint. A signal that was ignored when the process started stays ignored: SIGHUP under
        nohup, SIGINT in the background of a shell. They are heard between two instructions of the main thread,
        whatever trio waits for; only the message waits for trio.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        token = trio.lowlevel.current_trio_token()
        received = 0

        def hear(number: int, frame: object) -> None:
            nonlocal received
            if number == signal.SIGUSR1:
                self._checkpoint_asked = True
                return
            received += 1
            self._abandoning = received > 1
            if received > 2:
                os._exit(128 + (signal.SIGINT if number == signal.SIGINT else signal.SIGTERM))
            self.stop(signal.Signals(number).name)
            token.run_sync_soon(_tell, SIGNALLED[received - 1])

        before = {number: signal.getsignal(number) for number in SIGNALS}
        heard = [number for number in SIGNALS if before[number] not in (signal.SIG_IGN, None)]
        for number in heard:
            signal.signal(number, hear)
        try:
            yield
        finally:
            for number in heard:
                signal.signal(number, before[number])

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


class Snapshot(NamedTuple):
    """The state after so many frames; `fields` waits for u and v, and returns them."""

    frames: int
    fields: Callable[[], tuple[Field, Field]]


def _tell(text: str) -> None:
    with suppress(OSError):  # a message that nobody can read ends no run
        log.warning(text)


def _cut_at_divergence(block: Block) -> int | None:
    """Cut `block` before its first non-finite frame and return that frame's number, or None if all are finite."""
    bad = block.statistics[: block.count, :, STATISTICS.index("nonfinite")].any(axis=1)
    if not bad.any():
        return None
    block.count = int(bad.argmax())
    kept = -(-block.count // block.layout.chunks.frames_per_chunk)
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
