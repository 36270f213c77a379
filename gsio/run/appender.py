"""The output that a FrameWriter fills: its blocks, its session, and a thread that watches both."""

import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from time import perf_counter as clock
from typing import Any

from gsio.compute.staging import Plane, open_stager
from gsio.errors import NO_THREAD, GsioError, Interrupted, StorageError, is_without_thread
from gsio.frames.block import Block, BlockPool, FilledBlock
from gsio.frames.content import Content
from gsio.run import checkpoints
from gsio.run.checkpoints import SavedState
from gsio.run.output import open_output
from gsio.run.plan import blocks_of, content_layout, default_threads
from gsio.run.progress import Progress, progress_of
from gsio.run.resume import Restart, compare
from gsio.run.status import status_file
from gsio.run.summary import Summary, summarise
from gsio.trace import Trace
from gsio.writer.journal import Journal
from gsio.writer.provenance import root_attributes

PATIENCE_SECONDS = 1.0  # the longest time that a frame waits for others to fill its block


class Appender:
    """The output of a FrameWriter from its first frame on; whoever calls a method that changes it holds `lock`."""

    def __init__(
        self,
        path: Path,
        content: Content,
        journal: Journal,
        before: Restart[SavedState] | None,
        attributes: dict[str, Any],
        library: str,
        device: int | None,
        lock: threading.RLock,
        *,
        overwrite: bool,
        memory: str,
        threads: int,
    ) -> None:
        self._path, self._journal, self._lock = path, journal, lock
        kept = (before.frames_per_chunk, before.lines_per_chunk) if before is not None else (0, 0)
        backend = "cupy" if device is not None else ""
        layout = content_layout(content, backend, frames_per_chunk=kept[0], lines_per_chunk=kept[1])
        self._stager = open_stager(layout, device)
        threads = threads or default_threads(layout)
        blocks = blocks_of(layout, threads, memory, nbytes_beside=self._stager.nbytes_beside, key="memory")
        pool = BlockPool(layout, blocks, self._stager.allocate)
        known = root_attributes(content, library, self._stager.device, before.output_id if before is not None else "")
        self.output_id = known["output_id"]
        self.session = open_output(
            path, content, known | attributes, journal, pool, threads, Trace(), before, overwrite=overwrite
        )
        self.session.advice = "make space, then go on with resume='auto'"
        self._appended = before.computed_from if before is not None else 0  # the number of the next frame
        self._block: Block | None = None  # its frames wait for others
        self._block_began = 0.0
        self._nbytes_before = self.session.writer.nbytes if before is not None else 0
        self._began, self._ended = clock(), 0.0
        self._inside = 0.0  # seconds in `put`
        self._closing, self._state = threading.Event(), "failed"
        self._watcher = threading.Thread(target=self._watch, name="watch", daemon=True)
        cut = "resume='must' and discard_after="
        try:
            self.session.start(
                self._stager.wait,
                (lambda block: None) if before is None else partial(compare, before, self._stager.device, cut),
            )
            self._watcher.start()
        except BaseException as error:
            with suppress(GsioError):
                self.session.close("failed")
            if is_without_thread(error):
                raise GsioError(NO_THREAD) from None
            raise

    def put(self, planes: Sequence[Plane], time: float | None, step: int | None) -> None:
        """Copy a frame into the block that is filled, and submit the block if that is full.

        The time and the step are the number of the frame where they are None.
        """
        began = clock()
        self._check()
        block = self._filled()
        if block is None:
            block = self.session.acquire()
            self._check()
            assert block is not None  # else the session has failed
            block.first, block.count = self._appended, 0
            self._block, self._block_began = block, clock()
        place, number = block.count, self._appended
        self._stager.snapshot(block, place, planes)
        block.times[place] = number if time is None else time
        block.steps[place] = number if step is None else step
        block.count = place + 1  # from here on the frame is appended
        self._filled()
        self._inside += clock() - began

    def submit(self) -> None:
        """Let no frame wait for others."""
        self._check()
        self._submit()

    @property
    def appended(self) -> int:
        """The number of the next frame."""
        block = self._block
        if block is not None and self.session.submitted <= block.first:
            return block.first + block.count
        return self._appended

    def _filled(self) -> Block | None:
        """Return the block that is filled, or None; a block that is full is submitted first.

        Ctrl-C, or the handler of another signal, can end any call of this class at any place. The block alone says what
        was done, and the next call does the rest.
        """
        block = self._block
        if block is not None and self.session.submitted <= block.first:
            self._appended = block.first + block.count
            if self._appended < self.session.end_of(block.first):
                return block
            self._send(block)
        self._block = None
        return None

    def flush(self) -> None:
        """Return when the disk has all frames that were submitted."""
        self.session.flush()
        self._check()

    def save(self, state: SavedState) -> None:
        """Let `state` be the checkpoint as soon as its frames are safe.

        The frames still wait for others: to commit a chunk of small frames in parts costs space in HDF5.
        """
        self._check()
        self.session.checkpoint(state.frames, partial(checkpoints.save, self._path, state))

    def close(self, status: str) -> None:
        """Commit all frames, and close the output with a status."""
        try:
            self._submit()
            self.session.finish()
            self._ended = clock()
            self.session.close(status)
            self._state = status if self.session.error is None else "failed"
            if self._state == "complete":
                self._journal.remove()
        except BaseException:  # Ctrl-C, for example: nobody wants to wait for the frames that are not written yet
            self.session.abandon()
            self.session.close("stopped")
            self._state = "stopped" if self.session.error is None else "failed"
            raise
        finally:
            self._closing.set()
            self._watcher.join()
            self._stager.close()
            self.session.pool.empty()

    def _submit(self) -> None:
        if (block := self._filled()) is not None and block.count:
            self._send(block)
            self._block = None

    def _send(self, block: Block) -> None:
        self._stager.submit(block)
        self.session.submit(FilledBlock(block))

    def _check(self) -> None:
        """Raise the error of the session, again and again: no frame can be appended any more."""
        self.session.raise_error()  # `close` does not raise what was raised here
        if self.session.error is not None:
            raise self.session.error.with_traceback(None)

    def progress(self) -> Progress:
        """Return how far the loop is; its time outside of `append` counts as computing."""
        seconds = (self._ended or clock()) - self._began
        self.session.trace.update()
        return progress_of(
            self.session,
            self.session.pool.layout.frame,
            seconds,
            self._nbytes_before,
            compute=max(0.0, seconds - self._inside),
        )

    def summary(self, wall_seconds: float) -> Summary:
        """Return what the loop took."""
        return summarise(self.progress(), self.session.trace, self._stager.device, self._path, wall_seconds)

    def _watch(self) -> None:
        """Keep the status file up to date, and let no frame wait long for others."""
        with suppress(GsioError), status_file(self._path, self.progress) as observe:
            while not self._closing.wait(PATIENCE_SECONDS / 4):
                observe(self.progress())
                if clock() > self._block_began + PATIENCE_SECONDS and self._lock.acquire(blocking=False):
                    try:
                        self._submit()
                    finally:
                        self._lock.release()
            if self._state != "complete":  # the status file records a state by the error that ends it
                raise Interrupted if self._state == "stopped" else StorageError
