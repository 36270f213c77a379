"""One run: a thread computes blocks of frames, a session writes them, and observers see the progress.

Session.acquire ──► solver.fill ──► Session.submit ──► see gsio/writer/session.py
"""

import contextvars
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import trio

from gsio.compute.solver import Solver
from gsio.config import BACKENDS, Config
from gsio.errors import NO_THREAD, GsioError, Interrupted
from gsio.frames.block import Block, EncodedBlock, FilledBlock
from gsio.frames.content import Content
from gsio.frames.metadata import frame_steps
from gsio.log import log
from gsio.processes import give_way
from gsio.run.balance import Balance
from gsio.run.checkpoints import Checkpointer
from gsio.run.progress import Observe, Progress, progress_of
from gsio.run.ranks import Ranks
from gsio.run.signals import listening
from gsio.run.values import ValueCheck
from gsio.trace import placed
from gsio.writer.session import Session

OBSERVE_SECONDS = 0.25


class Pipeline:
    """One session of a run.

    Attributes
    ----------
    balance
        How evenly the bands of the grid share the work.
    started, finished
        Begin and end of the frame loop, `time.perf_counter` seconds; 0 before.
    """

    def __init__(
        self,
        config: Config,
        solver: Solver,
        session: Session,
        checkpoints: Checkpointer | None = None,
        check: Callable[[EncodedBlock], object] | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        """Prepare a run; `check` raises DataError unless a block has the frames that the output has or had.

        With `ranks`, this is the pipeline of one rank, which goes in step with those of all others.
        """
        self.config, self.solver, self.session, self.trace = config, solver, session, session.trace
        self.started = self.finished = 0.0
        self._frame = Content.of(config).frame()
        self._checkpoints = checkpoints if checkpoints is not None else Checkpointer()
        self._check, self._ranks = check, ranks
        self.balance = Balance()
        self._values = ValueCheck(config.run.steps_per_frame)
        self._nbytes_before = session.writer.nbytes if session.earlier.frames else 0
        self._compute_seconds = self._link_seconds = 0.0
        self._reason = ""
        self._gives_way = solver.backend in BACKENDS and BACKENDS[solver.backend].compiles

    def run(self, observers: Sequence[Observe] = ()) -> None:
        """Compute and commit all frames, then close the output; raise the error that ended the run early.

        The `observers` are called four times a second, in their order, by the thread that calls `run`.
        """
        _run_trio(partial(self._supervise, observers), partial(self.stop, "KeyboardInterrupt"))
        done, wanted = self.session.frames_committed, self.config.run.frames
        if done < wanted:
            raise Interrupted(
                f"stopped by {self._reason} after {done} of {wanted} frames, which are safe; go on with --resume"
            )

    def stop(self, reason: str) -> None:
        """Compute no further block, and end when the computed frames are committed."""
        self._reason = self._reason or reason
        self.session.stop()

    def progress(self) -> Progress:
        """Return how far the run is now."""
        end = self.finished or time.perf_counter()
        self.trace.update()
        return progress_of(
            self.session,
            self._frame,
            end - self.started if self.started else 0.0,
            self._nbytes_before,
            compute=self._compute_seconds or self.trace.advance.busy,  # where no device tells, computing is `fill`
            link=self._link_seconds,
            frames_total=self.config.run.frames,
            steps_per_frame=self.config.run.steps_per_frame,
            outside=self._values.outside,
        )

    async def _supervise(self, observers: Sequence[Observe]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._observe, observers)
            # Shielded: a thread cannot be cancelled. A cancelled run ends all the same: `_observe` then stops it.
            with trio.CancelScope(shield=True), listening(self.stop, self.session.abandon, self._checkpoints.ask):
                try:
                    await trio.to_thread.run_sync(self._work)
                except (RuntimeError, MemoryError):
                    if self.started:
                        raise
                    self.session.close("failed")  # in this thread, because no other can be started
                    raise GsioError(NO_THREAD) from None
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
                self.session.stop()

    def _work(self) -> None:
        """Compute, wait until the frames are committed, and close the output."""
        session, status = self.session, "failed"
        self.started = time.perf_counter()
        try:
            name = f"rank {self._ranks.number}" if self._ranks is not None else ""
            with self.trace.span("loop", 0), placed(name):
                try:
                    session.start(self._wait, self._inspect, lambda frame: log.debug("block committed", frame=frame))
                    self._compute()
                finally:
                    session.finish()
            if self._ranks is not None:
                self._reason = self._ranks.finish(session.error, self._reason)
            status = "complete" if session.frames_committed == self.config.run.frames else "stopped"
        finally:
            self.finished = time.perf_counter()  # a checkpoint that is being saved does not belong to the loop
            session.close(status)

    def _wait(self, block: FilledBlock) -> None:
        """Return when the frames of a block are in its memory; called by the threads that encode.

        They give way to compiled threads of a solver, which meet many times a frame: all would wait for one whose core
        encodes. The pool gives them their time: the solver waits where they do not keep up.
        """
        if self._gives_way:
            give_way()
        self.solver.wait(block)

    def _compute(self) -> None:
        """Fill blocks with frames until all are computed or the run is to stop."""
        session, first = self.session, self.session.earlier.computed_from
        while first < self.config.run.frames and (block := self._acquire(first)) is not None:
            end = min(session.end_of(first), self.config.run.frames)
            block.first, block.count = first, end - first
            block.steps[: block.count] = frame_steps(self.config, first, block.count)
            block.times[:] = block.steps * self.config.model.dt
            with self.trace.span("advance", first):
                self.solver.fill(block)
            session.submit(FilledBlock(block))
            first = end  # the block belongs to other threads now
        if self._ranks is not None:
            self._ranks.left()
        self._take_checkpoint(first)

    def _acquire(self, first: int) -> Block | None:
        """Wait for a free block, and take a checkpoint before it if one is due; None if the run is to stop."""
        block, due = self.session.acquire(), self._checkpoints.is_due(first)
        if self._ranks is not None:
            if block is None and self._ranks.number:  # rank 0 may wait for these parts, or for an error, to get a block
                self.session.finish()
                self._ranks.finish(self.session.error, self._reason)
            going, due = self._ranks.agree(block is not None, due)
            if not going and block is not None:
                self.session.pool.release(block)
            if not going:
                return None
        if block is not None and due:
            self._take_checkpoint(first)
        return block

    def _take_checkpoint(self, first: int) -> None:
        """Take a snapshot after `first` frames, which the session of the output saves, or rank 0 asks for."""
        if (save := self._checkpoints.take(first)) is not None:
            keep = self._ranks.keep if self._ranks is not None and self._ranks.number else self.session.checkpoint
            keep(first, save)

    def _inspect(self, block: EncodedBlock) -> GsioError | None:
        """Count the seconds of a block, and look at its values."""
        self._compute_seconds += block.compute_seconds
        self._link_seconds += block.link_seconds
        if self._ranks is not None and ((error := self._ranks.inspect(block)) is not None or self._ranks.number):
            return error
        self.balance.add(block.spent)
        for number, spent in enumerate(block.spent):
            self.trace.device("compute", block.first, spent.compute_start, spent.compute_seconds, number)
            self.trace.device("copy", block.first, spent.link_start, spent.link_seconds, number)
        diverged = self._values.cut(block)
        if self._check is not None:
            self._check(block)
        return self._values.error(block.first + block.count) if diverged else None


def _run_trio(main: Callable[[], Awaitable[None]], interrupt: Callable[[], None]) -> None:
    """Run `main` in a trio loop, in a thread of its own if the caller's thread is inside such a loop.

    Raises the error that ended it: the first that gsio raised, or else the first. A KeyboardInterrupt of the caller's
    loop calls `interrupt`, and is raised once `main` has ended.
    """
    try:
        if not trio.lowlevel.in_trio_run():
            trio.run(main)
            return
        with ThreadPoolExecutor(1) as thread:
            ended = thread.submit(contextvars.copy_context().run, partial(trio.run, main))
            try:
                ended.result()
            except KeyboardInterrupt:  # the caller's loop raises it here; the loop of `main` hears no signals
                interrupt()
                raise
    except BaseExceptionGroup as group:
        ours, _ = group.split(GsioError)
        error: BaseException = ours or group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None
