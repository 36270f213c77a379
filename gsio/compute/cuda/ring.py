"""The ring of slots on the device, from which frames are copied to the host, and the times of the work for a block."""

import threading
import time
from typing import Any, NamedTuple

import cupy
from cupy.cuda import Event, Stream, runtime

from gsio.frames.block import Block
from gsio.frames.layout import BlockLayout

# Event times are float32 milliseconds. They are good to a quarter of a microsecond for so many seconds after an anchor.
ANCHOR_SECONDS = 4.0
SLOTS = 3  # one filling, one copying, one to spare
# Encoded chunks get more slots as long as the ring stays small, because a host thread takes part in their copy.
MOST_SLOTS, SLOTS_BYTES = 6, 256 << 20
MAX_PADDING_RATIO = 1.25  # One padded copy replaces a copy for each chunk if it moves at most so many times the bytes.


def slots_of(layout: BlockLayout) -> tuple[int, int]:
    """Return how many slots the ring has, and the bytes of each: a block, or its chunks."""
    if not layout.encoded_nbytes:
        return SLOTS, layout.block_nbytes
    nbytes = layout.chunks.chunks_of(layout.frames_per_block) * layout.encoded_nbytes
    return max(SLOTS, min(MOST_SLOTS, SLOTS_BYTES // nbytes)), nbytes


class Slot:
    """Memory of the current device from which the link stream copies, and the event at the end of the last copy."""

    def __init__(self, nbytes: int) -> None:
        self.memory = cupy.zeros(nbytes, cupy.uint8)
        self.copied = Event(disable_timing=True)
        self.pending_copy: Block | None = None  # the block whose chunks lie here and are not copied yet


class ClockAnchor(NamedTuple):
    """An event, and the time on the host's clock when it happened."""

    event: Any
    seconds: float


class BlockTimes:
    """Events of the current device around the work for one block, and the host's times of the launches.

    An idle device starts to work at the launch, not at the event before it. A launch takes 0.1 ms under a profiler; the
    middle of the call is the best guess for its time.
    """

    anchor: ClockAnchor  # its event happened before the others
    launched, gathered, copy_issued = 0.0, 0.0, 0.0
    slot: Slot

    def __init__(self) -> None:
        self.computing, self.staged, self.computed = Event(), Event(), Event()
        self.copying, self.copied = Event(), Event(block=True)
        self.sizes_known = Event(block=True, disable_timing=True)  # the ends of the chunks are in the block
        self.lock = threading.Lock()
        self.arrived = False  # the frames are in host memory

    def interval(self, begin: Any, ordered: float, end: Any) -> tuple[float, float]:
        """Return the start, on the host's clock, and the seconds of the work between two events."""
        event, seconds = self.anchor
        began, ended = (seconds + cupy.cuda.get_elapsed_time(event, mark) / 1e3 for mark in (begin, end))
        began = min(max(began, ordered), ended)
        return began, ended - began


def new_anchor(clock: Stream) -> ClockAnchor:
    """Return the most exact of five anchors, set now on the stream `clock`, which has no other work."""
    anchors: list[tuple[float, ClockAnchor]] = []
    for _ in range(5):
        event, before = Event(), time.perf_counter()
        event.record(clock)
        event.synchronize()
        after = time.perf_counter()
        anchors.append((after - before, ClockAnchor(event, (before + after) / 2)))
    return min(anchors, key=lambda timed: timed[0])[1]


def copy_to_host(
    address: int, source: int, nbytes: int, stream: Stream, pieces: int = 1, pitch: int = 0, step: int = 0
) -> None:
    """Queue a copy to the host of `pieces` pieces of `nbytes` bytes, `pitch` bytes apart there and `step` here."""
    if pieces == 1:
        runtime.memcpyAsync(address, source, nbytes, runtime.memcpyDeviceToHost, stream.ptr)
    else:
        runtime.memcpy2DAsync(address, pitch, source, step, nbytes, pieces, runtime.memcpyDeviceToHost, stream.ptr)
