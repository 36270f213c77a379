"""Proxies: small 8-bit pictures of all frames, made when the page asks for them, and ahead of it while nobody waits."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from gsio.look.source import GROUP, Snapshot
from gsio.machine import usable_cores
from gsio.processes import give_way

MOST_NBYTES = 256 << 20  # the deflated groups that are kept take no more
AHEAD = 8  # groups are made ahead, and no more, once three quarters of `MOST_NBYTES` are kept
SHARE = 0.02  # the work ahead takes this part of the machine while a run computes on it
Key = tuple[tuple[object, ...], int, int]  # of a group: the output with field and member, its number, its frames
UNREADABLE = np.full(2, np.nan, "<f4").tobytes()


class Wanted(NamedTuple):
    """A group of frames of one field and member of an output."""

    now: Snapshot
    field: str
    member: int
    group: int

    @property
    def frames(self) -> range:
        """The committed frames of the group."""
        return range(self.group * GROUP, min((self.group + 1) * GROUP, self.now.frames_of(self.member)))

    @property
    def key(self) -> Key:
        """What tells this group from all others, and from itself with fewer frames."""
        return (self.now.output_id, self.now.identity, self.field, self.member), self.group, len(self.frames)


class Proxies:
    """The proxies of all outputs, for many threads at once.

    Parameters
    ----------
    is_computing
        A function that says whether a run on this machine writes one of the outputs.
    most_nbytes
        The bytes that are kept, at most.

    Attributes
    ----------
    nbytes
        The bytes that are kept.
    """

    def __init__(self, is_computing: Callable[[], bool] = lambda: False, most_nbytes: int = MOST_NBYTES) -> None:
        self._is_computing, self._most = is_computing, most_nbytes
        self._kept: OrderedDict[Key, bytes] = OrderedDict()  # what was used last comes last
        self.nbytes = 0
        self._changed = threading.Condition()
        self._waiting = 0  # requests that are being answered
        self._wanted: Wanted | None = None  # the group that the page has asked for last
        self._ahead: Iterator[tuple[int, Wanted]] = iter(())  # what may have to be made, numbered
        self._making: set[Key] = set()
        self._stopped = threading.Event()

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Let the work ahead rest while a request is answered."""
        with self._changed:
            self._waiting += 1
        try:
            yield
        finally:
            with self._changed:
                self._waiting -= 1
                self._changed.notify_all()

    def group(self, wanted: Wanted) -> bytes:
        """Return the proxies of the frames of a group in one zlib stream, and work ahead from there.

        Each proxy has its least and its greatest value, float32, and then a byte for each cell. Both values are NaN if
        the frame cannot be read.
        """
        with self._changed:
            self._want(wanted)
            if (found := self._kept.get(wanted.key)) is not None:
                self._kept.move_to_end(wanted.key)
                return found
        return self._keep(wanted, _deflated(wanted))

    def follow(self, now: Snapshot) -> None:
        """Take the new frames of an output into the work ahead, if the page shows this output."""
        with self._changed:
            if self._wanted is not None:
                same = self._wanted.now.output_id == now.output_id
                self._want(self._wanted._replace(now=now) if same else self._wanted)
            self._changed.notify_all()  # the run of another output can have ended, which was waited for

    def ready(self, now: Snapshot) -> int:
        """Return how many frames have proxies, of the field and member that the page has asked for last."""
        with self._changed:
            if self._wanted is None or self._wanted.now.output_id != now.output_id:
                return 0
            shown, _, _ = self._wanted.key
            frames = now.frames_of(self._wanted.member)
            return sum(n for of, group, n in self._kept if of == shown and n == min(GROUP, frames - group * GROUP))

    def work_ahead(self) -> None:
        """Make proxies that the page has not asked for yet, until `stop`; threads call this."""
        give_way()
        while (wanted := self._next()) is not None:
            try:
                self._keep(wanted, _deflated(wanted, self._rest))
            finally:
                with self._changed:
                    self._making.discard(wanted.key)

    def stop(self) -> None:
        """End the work ahead."""
        self._stopped.set()
        with self._changed:
            self._changed.notify_all()

    def _want(self, wanted: Wanted) -> None:
        """Let the work ahead go on from a group.

        The groups that follow it come first. While a run goes on, only those that are full are made, the newest first.
        """
        frames = wanted.now.frames_of(wanted.member)
        full, every = frames // GROUP, -(-frames // GROUP)
        order = [*range(wanted.group, every), *range(wanted.group)]
        if self._is_computing():
            order = [*reversed(range(full))]
        self._wanted = wanted
        self._ahead = enumerate(wanted._replace(group=group) for group in order)

    def _next(self) -> Wanted | None:
        """Wait for a group to make, and return it; None means the end. While a run goes on, one thread makes groups."""
        with self._changed:
            while not self._stopped.is_set():
                if not self._waiting and not (self._making and self._is_computing()):
                    for place, group in self._ahead:
                        if place >= AHEAD and self.nbytes > self._most * 3 // 4:
                            break
                        if group.key not in self._kept and group.key not in self._making:
                            self._making.add(group.key)
                            return group
                self._changed.wait()
        return None

    def _rest(self, started: float) -> None:
        """Wait until no request is being answered, and longer while a run needs the machine: `SHARE` of it is ours."""
        if self._is_computing():
            seconds = time.monotonic() - started
            self._stopped.wait(seconds / (SHARE * usable_cores()) - seconds)
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting or self._stopped.is_set())

    def _keep(self, wanted: Wanted, deflated: bytes) -> bytes:
        with self._changed:
            self.nbytes += len(deflated) - len(self._kept.pop(wanted.key, b""))
            self._kept[wanted.key] = deflated
            while self.nbytes > self._most:
                _, oldest = self._kept.popitem(last=False)
                self.nbytes -= len(oldest)
            self._changed.notify_all()
        return deflated


def _deflated(wanted: Wanted, rest: Callable[[float], object] = lambda started: None) -> bytes:
    """Return the proxies of a group in one zlib stream; `rest` is called after each chunk, with the time it began."""
    per_chunk, frames, found = wanted.now.fields[wanted.field].frames_per_chunk, wanted.frames, []
    for number in range(frames.start // per_chunk, -(-frames.stop // per_chunk)):
        started = time.monotonic()
        here = range(max(frames.start, number * per_chunk), min(frames.stop, (number + 1) * per_chunk))
        try:
            found += make_proxies(wanted.now, wanted.field, wanted.member, here)
        except (OSError, ValueError):
            found += [UNREADABLE + bytes(np.prod(wanted.now.proxy_shape))] * len(here)
        rest(started)
    deflated: bytes = isal_zlib.compress(b"".join(found), 1)
    return deflated


@np.errstate(all="ignore")  # values of a run that diverges
def make_proxies(now: Snapshot, field: str, member: int, frames: range) -> list[bytes]:
    """Return the proxies of `frames`, which share a chunk; raises as `Frames.chunk`."""
    (source, member), k, (_, rows, cols) = now.of(field, member), now.factor, now.shape
    number = frames.start // source.frames_per_chunk
    here = slice(frames.start % source.frames_per_chunk, (frames.stop - 1) % source.frames_per_chunk + 1)
    lines, columns = now.proxy_shape
    tall = np.zeros((len(frames), lines, cols), np.float32)
    for first, piece in source.pieces(number, member, range(rows)):
        for offset in range(min(k, piece.shape[1])):
            part, line = piece[here, offset::k], (first + offset) // k
            tall[:, line : line + part.shape[1]] += part
    sums = np.zeros((len(frames), lines, columns), np.float32)
    for offset in range(k):
        part = tall[:, :, offset::k]
        sums[:, :, : part.shape[2]] += part
    cells = np.minimum(k, rows - k * np.arange(lines))[:, np.newaxis] * np.minimum(k, cols - k * np.arange(columns))
    sums *= (source.scale or 1) / cells.astype(np.float32)
    return [_quantised(mean) for mean in sums]


def _quantised(mean: NDArray[Any]) -> bytes:
    """Return the range of the finite values [row, col], and a byte for each cell; 0 stands for one that is not."""
    finite = np.isfinite(mean)
    values = mean[finite] if not finite.all() else mean
    low, high = (values.min(), values.max()) if values.size else (np.float32(0), np.float32(0))
    factor = min(255 / (float(high) - float(low) or 1), 3e38)  # float32 holds it, also of a range near 0
    steps = (mean - low) * np.float32(factor) + np.float32(0.5)
    steps = np.where(finite, np.clip(steps, 0, 255), 0)
    return np.array([low, high], "<f4").tobytes() + steps.astype(np.uint8).tobytes()
