"""Ranks: the processes of one run, each of which computes and stores a band of the grid; see ``docs/many-gpus.md``.

Rank 0 owns the output, its journal and the checkpoints. The others store their chunks, and tell rank 0 of each block.

    all ranks meet ──► each block: all agree to go on ──► rank 0 hears of all parts, and commits ──► rank 0 ends the run

Each rank gives signs of life to the next one. A rank that misses them ends all.
"""

import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gsio.compute.bands import Band
from gsio.compute.parts import Part, join_parts, part_of
from gsio.errors import DataError, GsioError, Interrupted, StorageError, ToldError, UsageError, reason_of
from gsio.frames.block import EncodedBlock
from gsio.log import log
from gsio.model.gray_scott import Field
from gsio.processes import Terminated
from gsio.run.mpi import Mpi, until
from gsio.run.signals import SIGNALS
from gsio.streams import say
from gsio.writer.protocol import Writer

PART, COMMAND, ANSWER, ROWS, LIFE = range(1, 6)  # tags of messages
SAME_CLOCK_SECONDS = 0.1  # two clocks that differ by less are one, which two processes have read one after the other
LIFE_SECONDS, MOST_MISSED = 1.0, 20  # between two signs of life, and how many may be missing
ERRORS = {kind.exit_code: kind for kind in (UsageError, DataError, StorageError, Interrupted)}


class Ended(NamedTuple):
    """How a rank left the loop: the exit code and the text of its error, the number of the system's error, or 0 and "".

    `reason` is what stopped the rank, such as the name of a signal, or "".
    """

    code: int = 0
    text: str = ""
    errno: int = 0
    reason: str = ""

    @classmethod
    def of(cls, error: BaseException | None, reason: str = "") -> "Ended":
        """Return how a rank ended that has met `error`, or none."""
        if error is None:
            return cls(reason=reason)
        cause = error.__cause__ if isinstance(error, StorageError) else None
        if isinstance(cause, OSError) and cause.errno:
            return cls(StorageError.exit_code, reason_of(cause), cause.errno, reason)
        if isinstance(error, KeyboardInterrupt):
            return cls(143 if isinstance(error, Terminated) else 130, "interrupted", 0, reason)
        if isinstance(error, GsioError):
            return cls(error.exit_code, str(error), 0, reason)
        return cls(GsioError.exit_code, f"internal error: {type(error).__name__}: {error}", 0, reason)

    def error(self, where: str) -> GsioError:
        """Return the error as one of another rank, which is `where`."""
        if not self.errno:
            return ERRORS.get(self.code, GsioError)(f"{where}: {self.text}")
        error = StorageError(f"storage failed: {self.text} on {where}")
        error.__cause__ = OSError(self.errno, f"{self.text} on {where}")
        return error


class Ranks:
    """One rank of a run, and what it tells the others: a context manager that all ranks leave together.

    Attributes
    ----------
    number, count, local, sharing
        As in `Mpi`.
    exchange
        The exchange of halos between the ranks: see `BandSolver`.
    """

    def __init__(self, mpi: Mpi) -> None:
        self.number, self.count, self.local, self.sharing = mpi.number, mpi.count, mpi.local, mpi.sharing
        self.exchange, self._mpi = mpi.exchange, mpi
        self._bands: Sequence[Band] = ()
        self._behind = 0.0  # seconds by which the clock of this rank is behind that of rank 0
        self._met = False  # an error was raised in all ranks
        self._running = self._left = False  # the loop has begun; all ranks have left it after the same block
        self._ended: dict[int, Ended] = {}
        self._kept: dict[int, Callable[[], None]] = {}  # what sends a snapshot, by the frames before it
        self._code: int | None = None  # the exit code of the run, once rank 0 has said that it is over
        self._asking = threading.Lock()  # one question to the other ranks at a time
        self._over = threading.Event()
        self._life = threading.Thread(target=self._live, name="life", daemon=True)
        self._life.start()

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._leave(error)

    # Before the loop: all ranks meet, and an error of one is an error of all.

    def meet(self, value: Any = None, error: BaseException | None = None) -> Any:
        """Wait for all ranks, and return the value of rank 0; raise an error if any rank comes with one."""
        mine = Ended.of(error)
        found = self._mpi.gathered((value if self.number == 0 else None, mine, socket.gethostname()))
        wrong = [(rank, ended, host) for rank, (_, ended, host) in enumerate(found) if ended.code]
        if wrong:
            self._met = True
            rank, ended, host = wrong[0]
            if self.number:
                raise ToldError(ended.code)
            if rank == 0 and error is not None:
                raise error
            raise ended.error(f"rank {rank} on {host}")
        return found[0][0]

    def join(self, bands: Sequence[Band], writer: Writer) -> "JointWriter":
        """Tell the other ranks that the output is there, and return the writer of all."""
        self.meet()
        self.begin(bands, writer)
        return JointWriter(writer, self)

    def begin(self, bands: Sequence[Band], writer: Writer) -> None:
        """Meet for the last time: from now on rank 0 can ask each other rank, whose chunks its `writer` stores."""
        self._bands = bands
        self.meet()
        clocks = self._mpi.gathered(time.perf_counter())
        behind = clocks[0] - clocks[self.number]
        self._behind = behind if abs(behind) > SAME_CLOCK_SECONDS else 0.0
        self._running = True
        if self.number:
            threading.Thread(target=self._serve, args=(writer,), name="serve", daemon=True).start()

    def share(self, arrays: Sequence[NDArray[Any]]) -> None:
        """Fill arrays with those of rank 0."""
        for array in arrays:
            self._mpi.share_array(array)

    # In the loop.

    def agree(self, going: bool, due: bool) -> tuple[bool, bool]:
        """Return whether all ranks can go on with the next block, and whether any wants a checkpoint before it."""
        stopping, due_somewhere = self._mpi.largest([not going, due])
        return not stopping, bool(due_somewhere)

    def left(self) -> None:
        """Note that all ranks have left the loop after the same block."""
        self._left = True

    def inspect(self, block: EncodedBlock) -> GsioError | None:
        """Tell rank 0 of the parts of a block, in frame order; in rank 0, join all parts of its frames.

        If a rank has ended without its parts, the block is emptied, and the error of that rank returned.
        """
        mine = part_of(block, self._bands[self.number].lines)
        if self.number:
            mine = mine._replace(spent=mine.spent.on_clock(self._behind))
            self._mpi.send((block.first, block.count, block.encoded_nbytes, mine), 0, PART)
            return None
        parts = [mine]
        for rank in range(1, self.count):
            found = self._mpi.receive(rank, PART)
            if isinstance(found, Ended):
                self._ended[rank], block.count = found, block.kept
                if found.code:
                    return found.error(f"rank {rank}")
                return Interrupted(f"rank {rank} has dropped its frames after a second signal; go on with --resume")
            first, count, nbytes, part = found
            assert (first, count) == (block.first, block.count) and isinstance(part, Part)
            block.nbytes_elsewhere += nbytes
            block.spent_elsewhere.append(part.spent)
            parts.append(part)
        join_parts(parts, block)
        return None

    def finish(self, error: BaseException | None, reason: str) -> str:
        """Tell rank 0 how the loop ended here; in rank 0, wait for all others, and return what stopped the run.

        Raises the error of another rank, if the loop of rank 0 has none.
        """
        if self.number:
            if self.number not in self._ended:
                self._ended[self.number] = Ended.of(error, reason)
                self._mpi.send(self._ended[self.number], 0, PART)
            return reason
        for rank in range(1, self.count):
            while rank not in self._ended:
                if isinstance(found := self._mpi.receive(rank, PART), Ended):
                    self._ended[rank] = found
        failed = [(rank, ended) for rank, ended in sorted(self._ended.items()) if ended.code]
        if failed and error is None:
            rank, ended = failed[0]
            raise ended.error(f"rank {rank}")
        return reason or next((ended.reason for ended in self._ended.values() if ended.reason), "")

    # Questions of rank 0, which the other ranks answer in a thread.

    def sync(self) -> None:
        """Wait until each other rank has its chunks on the disk; raise OSError where storage fails."""
        with self._asking:
            for rank in range(1, self.count):
                self._mpi.send(("sync", 0), rank, COMMAND)
            found = [self._mpi.receive(rank, ANSWER) for rank in range(1, self.count)]
        for rank, ended in enumerate(found, 1):
            if ended.code:
                raise OSError(ended.errno, f"{ended.text} on rank {rank}")

    def gather(self, frames: int, u: Field, v: Field, shape: tuple[int, ...]) -> tuple[Field, Field]:
        """Return u and v of the whole grid, of this shape, after `frames` frames, from those of each band."""
        whole = tuple(np.empty(shape, field.dtype) for field in (u, v))
        with self._asking:
            for rank in range(1, self.count):
                self._mpi.send(("rows", frames), rank, COMMAND)
            for field, mine in zip(whole, (u, v), strict=True):
                field[self._bands[0].lines] = mine
                for rank in range(1, self.count):
                    lines = self._bands[rank].lines
                    self._mpi.receive_array(field[lines.start : lines.stop], rank, ROWS)
        return whole[0], whole[1]

    def keep(self, frames: int, send: Callable[[], None]) -> None:
        """Keep a snapshot after `frames` frames, which `send` sends, until rank 0 asks for this or a later one."""
        self._kept[frames] = send

    def send_rows(self, frames: int, u: Field, v: Field) -> None:
        """Send the fields of this band to rank 0, which has asked for those after `frames` frames."""
        for field in (u, v):
            self._mpi.send_array(field, 0, ROWS)

    def _serve(self, writer: Writer) -> None:
        """Answer rank 0, until it says that the run is over."""
        while True:
            what, number = self._mpi.receive(0, COMMAND)
            if what == "over":
                self._code = number
                return
            try:
                if what == "sync":
                    writer.sync()
                    self._mpi.send(Ended(), 0, ANSWER)
                else:
                    until(partial(self._kept.__contains__, number))
                    self._kept[number]()
                    kept = list(self._kept)  # another thread adds some meanwhile
                    for frames in [frames for frames in kept if frames <= number]:
                        del self._kept[frames]
            except OSError as error:
                self._mpi.send(Ended(StorageError.exit_code, reason_of(error), error.errno or 0), 0, ANSWER)
            except Exception as error:
                self._end_all(Ended.of(error).text, GsioError.exit_code)

    # The end, of all ranks.

    def _leave(self, error: BaseException | None) -> None:
        """End this rank together with all others; raise the error of the run, in rank 0 as one for the user."""
        # The others wait for the halo of this rank, or for an error that the rank could have met anywhere.
        unexpected = error is not None and not isinstance(error, GsioError)
        if not self._left if self._running else unexpected:
            if unexpected:
                log.debug("".join(traceback.format_exception(error)))
            ended = Ended.of(error)
            self._end_all(ended.text, ended.code)
        try:
            if not self._running and error is not None and not self._met:
                self.meet(error=error)
            if self._running:
                self._end(error)
            if error is not None:
                raise error
        finally:
            self._over.set()
            self._life.join()
            self._mpi.close(LIFE)

    def _end(self, error: BaseException | None) -> None:
        """Tell the other ranks that the run is over, or wait until rank 0 does."""
        if self.number == 0:
            self._code = 0 if error is None else Ended.of(error).code
            for rank in range(1, self.count):
                self._mpi.send(("over", self._code), rank, COMMAND)
            return
        with _deaf():  # rank 0 hears the signals
            until(lambda: self._code is not None)
        if self._code:
            raise ToldError(self._code) from error

    def _live(self) -> None:
        """Give signs of life to the next rank, and end all ranks when the previous one gives none."""
        missed, previous, following = 0, (self.number - 1) % self.count, (self.number + 1) % self.count
        while not self._over.is_set():
            self._mpi.send(None, following, LIFE)
            self._over.wait(LIFE_SECONDS)
            missed += 1  # pauses are counted, not seconds: all ranks can be suspended together
            while self._mpi.received(previous, LIFE):
                missed = 0
            if missed > MOST_MISSED and not self._over.is_set():
                self._end_all(
                    f"rank {previous} has given no sign of life for {MOST_MISSED * LIFE_SECONDS:.0f} s; "
                    "the committed frames are safe; go on with --resume",
                    GsioError.exit_code,
                )

    def _end_all(self, text: str, code: int) -> None:
        say(f"gsio: error: {' '.join(text.split())}", err=True)
        self._mpi.abort(code)


class JointWriter:
    """The writer of rank 0: what is durable is durable on all ranks."""

    def __init__(self, writer: Writer, ranks: Ranks) -> None:
        self._writer, self._ranks = writer, ranks
        self.encode, self.commit = writer.encode, writer.commit

    @property
    def nbytes(self) -> int:
        """Bytes the output held after the last commit."""
        return self._writer.nbytes

    def sync(self) -> None:
        """Make the committed frames durable."""
        self._ranks.sync()
        self._writer.sync()

    def close(self, status: str) -> None:
        """Record how the run ended, make everything durable and close."""
        try:
            self._ranks.sync()
        except OSError:
            self._writer.close("failed")
            raise
        self._writer.close(status)


@contextmanager
def joined() -> Iterator[Ranks | None]:
    """Start MPI, and give this rank, or None if there is only one; all ranks leave the context together.

    Raises UsageError if MPI cannot be used, and `ToldError` in each rank whose error another rank tells.
    """
    mpi = Mpi()
    if mpi.count == 1:
        yield None
        return
    with Ranks(mpi) as ranks:
        yield ranks


@contextmanager
def _deaf() -> Iterator[None]:
    """Ignore the signals that stop a run, where this thread hears them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
