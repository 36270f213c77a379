"""The session of one output: its threads encode filled blocks, and commit them in frame order.

    acquire ──► the caller fills the block ──► submit ──► encode (threads) ──► commit ──► BlockPool.release

All threads are started before the first block. The queues between them need no bound, because only the blocks of the
pool pass through them. If storage is slow, the pool runs empty and the caller waits in `acquire`, and nowhere else.
"""

import contextvars
import math
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gsio import codec
from gsio.errors import NO_THREAD, GsioError, StorageError, reason_of
from gsio.frames.block import Block, BlockPool, EncodedBlock, FilledBlock
from gsio.frames.content import Content
from gsio.frames.layout import BlockLayout
from gsio.trace import Trace
from gsio.writer.formats import open_writer
from gsio.writer.journal import Journal
from gsio.writer.protocol import Target, Writer


class Earlier(NamedTuple):
    """The frames that earlier sessions left in an output; a new output has none.

    Attributes
    ----------
    frames
        Frames that the output holds.
    computed_from
        The first frame that is submitted: frames from this one up to `frames` are inspected, and not written.
    last
        The stored values of the frames that share a chunk or shard with the next one, [frame, …] for each field.
    """

    frames: int = 0
    computed_from: int = 0
    last: Sequence[NDArray[Any]] = ()


NOTHING = Earlier()


class Session:
    """The threads that write one output, for synchronous code, event loops and other threads alike.

    One thread at a time acquires and submits blocks. If a thread of the session fails, the frames before the failure
    are committed, `acquire` returns None, and `close` raises the error. Each of the other methods can be called from
    any thread.

    Attributes
    ----------
    frames_committed, frames_durable
        Frames that the output holds now, and how many of these the disk is known to have.
    submitted, error
        The number of the frame after the last one that was submitted, and the first error of the session, or None.
    advice
        What an error of the storage tells the user to do.
    """

    def __init__(self, writer: Writer, pool: BlockPool, trace: Trace, threads: int, earlier: Earlier = NOTHING) -> None:
        self.writer, self.pool, self.trace, self.threads, self.earlier = writer, pool, trace, threads, earlier
        self.frames_committed, self.frames_durable = earlier.frames, 0
        self.advice = "make space, then go on with --resume"
        self._position = self.submitted = earlier.computed_from  # frames inspected, and held or committed; submitted
        self._last = earlier.last
        self._limit = math.inf  # this frame and later ones are dropped
        self._finishing = self._closing = self._closed = self._raised = False
        self.error: BaseException | None = None
        self._checkpoints: list[tuple[int, Callable[[], object]]] = []
        self._started: list[threading.Thread] = []
        self._changed = threading.Condition()  # guards what threads wait for: the position, the limit and checkpoints
        self._staged: queue.SimpleQueue[tuple[FilledBlock, range] | None] = queue.SimpleQueue()  # tasks of a block
        self._encoded: queue.SimpleQueue[EncodedBlock | None] = queue.SimpleQueue()

    def start(
        self,
        wait: Callable[[FilledBlock], object] = lambda block: None,
        inspect: Callable[[EncodedBlock], GsioError | None] = lambda block: None,
        committed: Callable[[int], object] = lambda frames: None,
    ) -> None:
        """Start all threads; raise GsioError where the system allows no more.

        Parameters
        ----------
        wait
            Returns when the frames of a block are in its memory. Several threads call it, also for the same block.
        inspect
            Called in frame order before a block is committed. It may cut the block, and return an error, which ends the
            session once the frames that are left are committed.
        committed
            Called after each commit with the number of frames that the output holds.
        """
        self._wait, self._inspect, self._committed = wait, inspect, committed
        try:
            for run in (self._save, self._commit, *[self._encode] * self.threads):
                context = contextvars.copy_context()  # the log has the identity of the run there
                thread = threading.Thread(target=context.run, args=(run,), name=run.__name__, daemon=True)
                thread.start()
                self._started.append(thread)
        except (RuntimeError, MemoryError):
            self._fail(GsioError(NO_THREAD), 0)
            self.raise_error()

    def acquire(self) -> Block | None:
        """Wait for a free block and return it; None if the session is stopped, or has failed."""
        with self.trace.span("wait_block", self.submitted):
            return self.pool.acquire()

    def end_of(self, first: int) -> int:
        """Return where a block from frame `first` on ends at most: the output has all its frames already, or none."""
        layout, held = self.pool.layout, self.earlier.frames
        return min(first + layout.frames_per_block, held) if first < held else layout.end_of(first)

    def submit(self, block: FilledBlock) -> None:
        """Let the frames of `block`, which follow those of the block before, be written.

        The block ends at `end_of` or before. A block may begin inside a chunk or shard: what the output has
        of this piece is then encoded and stored again, with the frames of the block.
        """
        layout, first = self.pool.layout, block.first
        tasks = range(layout.tasks)
        alone = first < self.earlier.frames or first % layout.chunks.frames_together
        pieces = [tasks] if alone else [tasks[task : task + 1] for task in tasks]
        puts = map(self._staged.put, [(block, some) for some in pieces])
        # Python runs handlers of signals after a call, never before one: these two lines submit a block as a whole.
        self.submitted = first + block.count
        deque(puts, maxlen=0)

    def checkpoint(self, frames: int, save: Callable[[], object]) -> None:
        """Call `save`, in a thread of the session, once the first `frames` frames are committed and the disk has them.

        Where several checkpoints have all their frames, only the last is saved. `close` waits until that is done.
        """
        with self._changed:
            self._checkpoints.append((frames, save))
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait until the disk has all frames that were submitted; raise the error of the session if some get lost.

        After `abandon` the function returns at once.
        """
        wanted = self.submitted
        with self._changed:
            self._changed.wait_for(lambda: self._position >= wanted or wanted > self._limit)
        if self._position >= wanted:
            try:
                with self._storage():
                    self._sync()
            except StorageError as error:
                if not self._closed:  # else `close` has made the frames durable meanwhile
                    self._fail(error, math.inf)
                    self._raised = False
        else:
            self._raised = False  # each time: nobody may take these frames for durable
        self.raise_error()

    def stop(self) -> None:
        """Give no further block, and wake the thread that waits for one."""
        self.pool.close()

    def abandon(self) -> None:
        """Drop the frames that are not written yet."""
        with self._changed:
            self._limit = 0
            self._changed.notify_all()
        self.stop()

    def finish(self) -> None:
        """Wait until the frames that were submitted are committed or dropped; no block may be submitted any more."""
        self._finishing = True
        committing, encoding = self._started[1:2], self._started[2:]
        for _ in encoding:
            self._staged.put(None)
        for thread in encoding:
            thread.join()
        self._encoded.put(None)
        for thread in committing:
            thread.join()

    def close(self, status: str) -> None:
        """Finish, save the last checkpoint, record how the session ended, and close the output.

        The status is "failed" if a thread has failed. The first call closes. The first error is raised, unless
        `raise_error` has raised it before.
        """
        self.finish()
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._started[:1]:
            thread.join()  # first, so that a complete output always has its last checkpoint
        if not self._closed:
            self._closed = True
            try:
                with self._storage():
                    self.writer.close("failed" if self.error is not None else status)
            except BaseException as error:
                self._fail(error, 0)
        self.raise_error()

    def raise_error(self) -> None:
        """Raise the first error of the session, once."""
        if self.error is not None and not self._raised:
            self._raised = True
            if isinstance(self.error, StorageError) and isinstance(cause := self.error.__cause__, Exception):
                raise self._storage_error(cause) from cause  # frames were committed since
            raise self.error

    def _encode(self) -> None:
        """Wait for staged blocks and encode their tasks, in any order."""
        while (staged := self._staged.get()) is not None:
            block, tasks = staged
            try:
                if block.first < self._limit:
                    self._encode_tasks(block, tasks)
            except BaseException as error:
                self._fail(error, block.first + block.kept)
            for _ in tasks:
                if block.finish_task():
                    self._encoded.put(EncodedBlock(block))

    def _encode_tasks(self, block: FilledBlock, tasks: range) -> None:
        with self.trace.span("stage", block.first):
            self._wait(block)
        if block.first < self.earlier.frames:
            if not block.chunks:  # else the solver has taken the checksums
                codec.set_checksums(block, 0, block.count)
            return
        if (first := block.first) % self.pool.layout.chunks.frames_together:
            with self._changed:
                self._changed.wait_for(lambda: self._position == first or self._limit <= first)
            if self._position != first:
                return
            codec.prepend(block, self._last)
        for task in tasks:
            with self._storage():
                self.writer.encode(block, task)

    def _commit(self) -> None:
        """Put encoded blocks back into frame order and commit them; one commit takes all that are ready."""
        waiting: dict[int, EncodedBlock] = {}
        while (block := self._encoded.get()) is not None:
            waiting[block.first + block.kept] = block
            if self._encoded.empty():
                self._commit_ready(waiting)
        self._commit_ready(waiting)
        for block in waiting.values():
            self.pool.release(block)

    def _commit_ready(self, waiting: dict[int, EncodedBlock]) -> None:
        done: list[EncodedBlock] = []
        position, error = self._position, None
        try:
            while error is None and position < self._limit and (block := waiting.pop(position, None)) is not None:
                done.append(block)
                error = self._inspect(block)
                position = block.first + block.count
            first = self.earlier.frames
            new = [block for block in done if block.first + block.count > max(first, block.first + block.kept)]
            if new:
                with self._storage():
                    self.writer.commit(new)
                self._keep_last(new[-1])
            with self._changed:
                self._position = position
                self.frames_committed = max(self.frames_committed, position)
                self._changed.notify_all()
            if new:
                self._committed(position)
            if error is not None:
                raise error
        except BaseException as error:
            self._fail(error, 0)
        for block in done:
            self.pool.release(block)

    def _keep_last(self, block: EncodedBlock) -> None:
        """Keep what the next block is encoded with, if it begins inside a chunk or shard of `block`."""
        end = block.first + block.count
        behind = end % self.pool.layout.chunks.frames_together
        if behind and not (self._finishing and end == self.submitted):
            self._last = codec.values(block, block.count - behind)

    def _save(self) -> None:
        """Save the checkpoints whose frames are committed, once these are durable."""
        try:
            while (found := self._next_checkpoint()) is not None:
                frames, save = found
                with self.trace.span("checkpoint", frames), self._storage():
                    self._sync()
                    save()
        except BaseException as error:
            self._fail(error, math.inf)

    def _next_checkpoint(self) -> tuple[int, Callable[[], object]] | None:
        """Wait for a checkpoint whose frames are committed; None once the session closes and has none."""
        with self._changed:
            while True:
                ready = [found for found in self._checkpoints if found[0] <= self._position]
                if ready:
                    self._checkpoints = [found for found in self._checkpoints if found not in ready]
                    return ready[-1]
                if self._closing:
                    return None
                self._changed.wait()

    def _sync(self) -> None:
        committed = self.frames_committed
        self.writer.sync()
        self.frames_durable = committed

    def _fail(self, error: BaseException, first: float) -> None:
        """Keep the first error, drop the frames from `first` on, and stop."""
        with self._changed:
            self.error = self.error or error
            self._limit = min(self._limit, first)
            self._changed.notify_all()
        self.stop()

    @contextmanager
    def _storage(self) -> Iterator[None]:
        """Turn an error of the storage into one of gsio."""
        try:
            yield
        except (OSError, RuntimeError) as error:  # h5py raises either
            raise self._storage_error(error) from error

    def _storage_error(self, error: Exception) -> StorageError:
        """Return the error that says what is safe now."""
        return StorageError(
            f"storage failed: {reason_of(error)}; {self.frames_committed} frames are committed, and "
            f"{self.frames_durable} of these are known to be safe on the disk; {self.advice}"
        )


def open_session(
    path: Path,
    content: Content,
    attributes: Mapping[str, Any],
    journal: Journal,
    pool: BlockPool,
    threads: int,
    *,
    trace: Trace | None = None,
    series: Mapping[str, NDArray[Any]] | None = None,
    overwrite: bool = False,
    earlier: Earlier = NOTHING,
    layout: BlockLayout | None = None,
) -> Session:
    """Open an output as `Target` says, whose `layout` can be that of `pool`; raises as `gsio.writer.open_writer`."""
    trace = trace if trace is not None else Trace()
    writer = open_writer(Target(path, content, layout or pool.layout, attributes, journal, trace, series, overwrite))
    return Session(writer, pool, trace, threads, earlier)


@contextmanager
def new_output(
    path: Path,
    content: Content,
    layout: BlockLayout,
    attributes: Mapping[str, Any],
    status: str,
    *,
    inspect: Callable[[EncodedBlock], None] = lambda block: None,
    keep_journal: bool = False,
) -> Iterator[Session]:
    """Give the session of a new output at `path`, with one thread that encodes while the caller fills a block.

    At the end the output is closed with `status`, or with "failed" where an exception ended the context. The journal
    stays, synced, if `keep_journal` is True. Raises as `gsio.writer.open_writer`, and what storage raises as it is.
    """
    pool = BlockPool(layout, 2, lambda nbytes: np.zeros(nbytes, np.uint8))
    with Journal(path) as journal:
        session = open_session(path, content, attributes, journal, pool, 1)
        ended = "failed"
        try:
            session.start(inspect=inspect)
            yield session
            ended = status
        finally:
            try:
                session.close(ended)
            except StorageError as error:
                raise error.__cause__ or error from None  # no frame is safe: the output does not have its name yet
            finally:
                journal.sync() if keep_journal else journal.remove()
