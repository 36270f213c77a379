"""The intervals of a run: what its threads and its device did when, kept up to a bound, and as a file for Perfetto."""

import json
import math
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from gsio.errors import DataError, reason_of
from gsio.files import new_file
from gsio.inputs import parse_json, read_regular

DEVICE = 0  # in place of a thread's id: what the device did, named `compute` or `copy`; the next device is -1
MAX_INTERVALS = 200_000  # kept: 40 MB, at least 25,000 blocks
TIMELINE_NBYTES = 48 << 20  # the limit for a file with `MAX_INTERVALS` intervals


class Interval(NamedTuple):
    """One span of a thread, or one block on the device; times are seconds of one clock."""

    name: str
    thread: int
    frame: int  # the first of the block
    begin: float
    end: float


class Recording(NamedTuple):
    """All intervals of a frame loop that lasted from `begin` to `end`, by their begin; `source` says who took them.

    The last checkpoint can be saved after the loop.
    """

    source: str
    begin: float
    end: float
    intervals: list[Interval]


class Timeline:
    """The last `most` intervals of a run, in the order in which they ended."""

    def __init__(self, most: int = MAX_INTERVALS) -> None:
        self._most = most
        self._kept: deque[Interval] = deque()
        self._dropped = 0
        self._complete_from = -math.inf  # every interval dropped ended before
        self._lock = threading.Lock()

    def add(self, interval: Interval) -> None:
        """Keep `interval`, and drop the oldest if there are too many."""
        with self._lock:
            self._kept.append(interval)
            if len(self._kept) > self._most:
                self._dropped += 1
                self._complete_from = max(self._complete_from, self._kept.popleft().end)

    def recording(self) -> Recording:
        """Return the kept intervals. If some were dropped, the recording begins after the last dropped one."""
        return recording("spans and device events", self._kept, self._complete_from)

    def write(self, path: Path) -> None:
        """Write trace events, which Perfetto and chrome://tracing open; time 0 is where the recording begins.

        Raises UsageError if `path` exists, which stays, and OSError if it cannot be written.
        """
        source, begin, end, intervals = self.recording()
        facts = {"source": source, "seconds": round(end - begin, 9), "intervals_dropped": self._dropped}
        with new_file("--timeline", path) as temporary, temporary.open("x") as file:
            file.write(f'{{"displayTimeUnit": "ms", "otherData": {json.dumps(facts)}, "traceEvents": [\n')
            file.write(",\n".join(map(json.dumps, _events(intervals, begin))))
            file.write("\n]}\n")


def recording(source: str, intervals: Iterable[Interval], complete_from: float = -math.inf) -> Recording:
    """Return the recording of the loop that the interval `loop` spans, or all intervals together if there is none.

    Nothing is known of what was before `complete_from`.
    """
    ordered = sorted(intervals, key=lambda interval: interval.begin)
    of_loop = [interval for interval in ordered if interval.name == "loop"] or ordered
    begin = min((interval.begin for interval in of_loop), default=0.0)
    end = max((interval.end for interval in of_loop), default=0.0)
    if complete_from > begin:
        source += f", the last {max(0.0, end - complete_from):.1f} of {end - begin:.1f} s"
        begin = min(complete_from, end)
    return Recording(source, begin, end, [interval for interval in ordered if interval.name != "loop"])


def read(path: Path) -> Recording:
    """Return what `Timeline.write` wrote.

    Raises
    ------
    DataError
        It is no such file.
    """
    try:
        data = parse_json(read_regular(path, TIMELINE_NBYTES))
        facts = data["otherData"]
        intervals = [
            Interval(
                str(event["name"]),
                -((int(event["tid"]) - 1) // 2) if event["pid"] == PROCESSES["device"] else int(event["tid"]),
                int(event["args"]["frame"]),
                event["ts"] / 1e6,
                (event["ts"] + event["dur"]) / 1e6,
            )
            for event in data["traceEvents"]
            if event["ph"] == "X"
        ]
        return Recording(str(facts["source"]), 0.0, float(facts["seconds"]), intervals)
    except OSError as error:
        raise DataError(f"cannot read {path}: {reason_of(error)}; expected a timeline written by --timeline") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: expected a timeline written by --timeline, got another file ({error})") from None


def thread_roles(intervals: Iterable[Interval]) -> dict[int, str]:
    """Return the role of each thread of a run, by its number: solver, encode N, writer or checkpoint."""
    names: dict[int, set[str]] = {}
    for interval in intervals:
        if interval.thread > DEVICE:
            names.setdefault(interval.thread, set()).add(interval.name)
    solver = [thread for thread, seen in names.items() if seen & {"advance", "wait_block"}]
    encoders = sorted(thread for thread, seen in names.items() if "stage" in seen)
    found = dict.fromkeys(solver, "solver")
    found |= {thread: f"encode {number}" for number, thread in enumerate(encoders, 1)}
    found |= {thread: "checkpoint" for thread, seen in names.items() if seen == {"checkpoint"}}
    return found | {thread: "writer" for thread in names if thread not in found}


def device_rows(intervals: Iterable[Interval]) -> dict[tuple[str, int], str]:
    """Return the rows of devices, by the name and thread of their intervals; several devices have numbers."""
    threads = sorted({interval.thread for interval in intervals if interval.thread <= DEVICE} | {DEVICE}, reverse=True)
    numbered = len(threads) > 1
    return {
        (name, thread): f"{name} {-thread}" if numbered else name for thread in threads for name in ("compute", "copy")
    }


PROCESSES = {"gsio": 1, "device": 2}


def _events(intervals: list[Interval], origin: float) -> Iterator[dict[str, Any]]:
    """Yield trace events: names of the rows, then a complete event ("X") for each interval, in microseconds."""
    threads, on_device = thread_roles(intervals), device_rows(intervals)
    numbers = {row: number for number, row in enumerate(on_device, 1)}
    rows = [(PROCESSES["device"], numbers[row], name) for row, name in on_device.items()]
    rows += [(PROCESSES["gsio"], thread, role) for thread, role in threads.items()]
    for name, pid in PROCESSES.items():
        yield {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}}
    for pid, tid, name in rows:
        yield {"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": name}}
    free = dict.fromkeys(on_device, -math.inf)
    for name, thread, frame, begin, end in intervals:
        pid, tid = PROCESSES["gsio"], thread
        if thread <= DEVICE:
            row = name, thread
            pid, tid = PROCESSES["device"], numbers[row]
            # Blocks on a stream follow one another, but their times are rounded; a row must not overlap itself.
            begin, free[row] = max(begin, free[row]), max(end, free[row])
            end = max(begin, end)
        start = round((begin - origin) * 1e6, 3)
        duration = round((end - begin) * 1e6, 3)
        yield {"ph": "X", "name": name, "pid": pid, "tid": tid, "ts": start, "dur": duration, "args": {"frame": frame}}
