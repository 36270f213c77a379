"""The threads of one run: the solver fills blocks, threads encode them, the writer commits them in frame order.

    compute ──► BlockPool.acquire ──► solver.fill ──► encode (threads) ──► commit ──► BlockPool.release

Each stage is a loop in a thread of its own, and all are started before the first block. The queues between the stages
need no bound, because only the blocks of the pool pass through them. If storage is slow, the pool runs empty and
computing waits in `acquire`, and nowhere else.
"""

import queue
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import structlog
import trio
from numpy.typing import NDArray

from gsio import codec
from gsio.compute.solver import Solver
from gsio.config import Config
from gsio.errors import Interrupted, StorageError, reason_of
from gsio.frames.block import Block, BlockPool
from gsio.frames.metadata import frame_steps
from gsio.run.checkpoints import Checkpointer
from gsio.run.progress import Observe, Occupied, Progress
from gsio.run.signals import listening
from gsio.run.stages import run_stages, run_trio
from gsio.run.values import ValueCheck
from gsio.trace import Trace
from gsio.writer.protocol import FrameWriter

OBSERVE_SECONDS = 0.25

log = structlog.get_logger()


class Earlier(NamedTuple):
    """The frames of earlier sessions of the run; a run that begins has none.

    Attributes
    ----------
    frames
        Frames that the output holds.
    computed_from
        The first frame to compute: frames from this one up to `frames` are computed again and checked.
    last
        The stored values of the frames that share a chunk or shard with the next one, [frame, …] for each field.
    check
        Raises DataError unless the frames of a block are those that the output holds, or held.
    """

    frames: int = 0
    computed_from: int = 0
    last: Sequence[NDArray[Any]] = ()
    check: Callable[[Block], object] = lambda block: None


NOTHING = Earlier()


class Pipeline:
    """The threads of one session of a run.

    Attributes
    ----------
    frames_committed, frames_durable
        Frames that the output holds now, and how many of these the disk is known to have.
    started, finished
        Begin and end of the frame loop, `time.perf_counter` seconds; 0 before.
    """

    def __init__(
        self,
        config: Config,
        solver: Solver,
        pool: BlockPool,
        writer: FrameWriter,
        trace: Trace,
        threads: int,
        earlier: Earlier = NOTHING,
        checkpoints: Checkpointer | None = None,
    ) -> None:
        self.config, self.solver, self.pool, self.writer = config, solver, pool, writer
        self.trace, self.threads = trace, threads
        self.started = self.finished = 0.0
        self.frames_committed, self.frames_durable = earlier.frames, 0
        self._earlier = earlier
        self._checkpoints = checkpoints if checkpoints is not None else Checkpointer()
        self._values = ValueCheck(config.run.steps_per_frame)
        self._nbytes_before = writer.nbytes if earlier.frames else 0
        self._compute_seconds = self._link_seconds = 0.0
        self._position = earlier.computed_from  # frames computed, and compared or committed
        self._stopping = self._abandoning = self._closed = False
        self._reason = ""
        self._staged: queue.SimpleQueue[tuple[Block, range] | None] = queue.SimpleQueue()  # tasks of a block
        self._encoded: queue.SimpleQueue[Block | None] = queue.SimpleQueue()

    def run(self, observers: Sequence[Observe] = ()) -> None:
        """Compute and commit all frames, then close the writer; raise the error that ended the run early.

        The `observers` are called four times a second, in their order, by the thread that calls `run`.
        """
        run_trio(partial(self._supervise, observers), partial(self.stop, "KeyboardInterrupt"))
        if self.frames_committed < self.config.run.frames:
            done, wanted = self.frames_committed, self.config.run.frames
            raise Interrupted(
                f"stopped by {self._reason} after {done} of {wanted} frames, which are safe; go on with --resume"
            )

    def stop(self, reason: str) -> None:
        """Compute no further block, and end when the computed frames are committed."""
        self._reason = self._reason or reason
        self._stop()

    def progress(self) -> Progress:
        """Return how far the run is now."""
        end = self.finished or time.perf_counter()
        frame = self.pool.layout.frame
        return Progress(
            frames_total=self.config.run.frames,
            steps_per_frame=self.config.run.steps_per_frame,
            first=self._earlier.frames,
            frames_committed=self.frames_committed,
            frames_durable=self.frames_durable,
            cells=frame.cells,
            frame_nbytes=frame.frame_nbytes,
            nbytes=self.writer.nbytes,
            nbytes_before=self._nbytes_before,
            frames_per_block=self.pool.layout.frames_per_block,
            blocks_in_use=self.pool.in_use,
            seconds=end - self.started if self.started else 0.0,
            occupied=self._occupied(),
            outside=self._values.outside,
        )

    def _occupied(self) -> Occupied:
        trace = self.trace
        trace.update()
        return Occupied(
            compute=self._compute_seconds or trace.advance.busy,  # where no device tells, computing is `fill`
            link=self._link_seconds,
            encode=trace.encode.total / self.threads,
            write=trace.write.busy,
            wait=trace.wait.busy,
        )

    async def _supervise(self, observers: Sequence[Observe]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._observe, observers)
            # Shielded: threads cannot be cancelled, but one that never starts would leave the others waiting for it.
            # A cancelled run ends all the same, because `_observe` then stops the threads.
            with trio.CancelScope(shield=True), listening(self.stop, self._abandon, self._checkpoints.ask):
                await self._work()
            nursery.cancel_scope.cancel()

    async def _observe(self, observers: Sequence[Observe]) -> None:
        """Call the observers; when cancelled, for whatever reason, stop the threads, which trio cannot cancel."""
        try:
            while observers:
                progress = self.progress()
                for observe in observers:
                    observe(progress)
                await trio.sleep(OBSERVE_SECONDS)
            await trio.sleep_forever()
        finally:
            if not self.finished:
                self._stop()

    async def _work(self) -> None:
        status = "failed"
        stages = [self._checkpoint, self._commit, *[self._encode] * self.threads, self._compute]
        self.started = time.perf_counter()
        try:
            with self.trace.span("loop", 0):
                await run_stages(stages, self._stop, self._end_stages)
            status = "complete" if self.frames_committed == self.config.run.frames else "stopped"
        finally:
            self.finished = self.finished or time.perf_counter()
            try:
                await trio.to_thread.run_sync(self._close, status)
            except (RuntimeError, MemoryError):
                if self._closed:
                    raise
                self._close(status)  # in this thread, because no other can be started

    def _end_stages(self) -> None:
        """End the stages that have started, where the one that computes has not, nor perhaps some that encode."""
        for _ in range(self.threads):
            self._staged.put(None)
            self._encoded.put(None)
        self._checkpoints.end()

    def _compute(self) -> None:
        """Fill blocks with frames until all are computed or the run is to stop."""
        try:
            tasks, first = range(self.pool.layout.tasks), self._position
            while first < self.config.run.frames:
                with self.trace.span("wait_block", first):
                    block = self.pool.acquire()
                if block is None or self._stopping:
                    break
                self._checkpoints.take_if_due(first)
                end = self._block_end(first)
                block.first, block.count = first, end - first
                block.steps[: block.count] = frame_steps(self.config, first, block.count)
                block.times[:] = block.steps * self.config.model.dt
                with self.trace.span("advance", first):
                    self.solver.fill(block)
                alone = first < self._earlier.frames or first % self.pool.layout.chunks.frames_together
                for some in [tasks] if alone else [range(task, task + 1) for task in tasks]:
                    self._staged.put((block, some))
                first = end  # the block belongs to other threads now
            self._checkpoints.take_last(first)
        finally:
            for _ in range(self.threads):
                self._staged.put(None)

    def _block_end(self, first: int) -> int:
        """Return where the block that begins with frame `first` ends.

        A block holds only frames that the output has or only new ones; the first new block ends with a chunk or shard.
        """
        layout = self.pool.layout
        end = min(first + layout.frames_per_block, self.config.run.frames)
        if first < self._earlier.frames:
            return min(end, self._earlier.frames)
        behind = first % layout.chunks.frames_together
        return min(end, first - behind + layout.chunks.frames_together) if behind else end

    def _encode(self) -> None:
        """Wait for staged blocks and encode their tasks, in any order."""
        try:
            while (staged := self._staged.get()) is not None and not self._abandoning:
                block, tasks = staged
                with self.trace.span("stage", block.first):
                    self.solver.wait(block)
                if block.first < self._earlier.frames:
                    if not block.chunks:  # else the solver has taken the checksums
                        codec.set_checksums(block, 0, block.count)
                    self._encoded.put(block)
                    continue
                if block.first == self._earlier.frames and self._earlier.last:
                    codec.prepend(block, self._earlier.last)
                for task in tasks:
                    with self._storage():
                        self.writer.encode(block, task)
                    if block.finish_task():
                        self._encoded.put(block)
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
                waiting[block.first + block.kept] = block
                if self._encoded.empty():
                    self._commit_ready(waiting)
            if not self._abandoning:
                self._commit_ready(waiting)
        finally:
            self.finished = time.perf_counter()  # a checkpoint that is being saved does not belong to the loop
            self._checkpoints.end()

    def _commit_ready(self, waiting: dict[int, Block]) -> None:
        done: list[Block] = []
        diverged = False
        while not diverged and (block := waiting.pop(self._position, None)) is not None:
            self._compute_seconds += block.compute_seconds
            self._link_seconds += block.link_seconds
            self.trace.device("compute", block.first, block.compute_start, block.compute_seconds)
            self.trace.device("copy", block.first, block.link_start, block.link_seconds)
            diverged = self._values.cut(block)
            self._earlier.check(block)
            self._position = block.first + block.count
            done.append(block)
        first = self._earlier.frames
        if new := [block for block in done if block.first + block.count > max(first, block.first + block.kept)]:
            with self._storage():
                self.writer.commit(new)
            self.frames_committed = self._position
            log.debug("block committed", frame=self._position)
        for block in done:
            self.pool.release(block)
        self._checkpoints.committed(self._position)
        if diverged:
            raise self._values.error(self._position)

    def _checkpoint(self) -> None:
        """Save the snapshots whose frames are committed, once these are durable."""
        for snapshot in self._checkpoints.ready():
            with self.trace.span("checkpoint", snapshot.frames), self._storage():
                self._sync()
                if self._checkpoints.last(self._position) is None:  # else that one is saved next
                    self._checkpoints.save(snapshot)

    def _close(self, status: str) -> None:
        self._closed = True
        with self._storage():
            try:
                if status != "failed" and (last := self._checkpoints.last(self._position)) is not None:
                    self._sync()
                    self._checkpoints.save(last)  # first, so that a complete output always has its last checkpoint
            except BaseException:
                status = "failed"
                raise
            finally:
                self.writer.close(status)

    def _sync(self) -> None:
        committed = self.frames_committed
        self.writer.sync()
        self.frames_durable = committed

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

    def _stop(self) -> None:
        """Let no further block be computed, and wake the solver's thread if it waits for one."""
        self._stopping = True
        self.pool.close()

    def _abandon(self) -> None:
        """Drop the frames that are not written yet."""
        self._abandoning = True
