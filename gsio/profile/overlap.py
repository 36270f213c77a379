"""The share of copying, encoding and writing that was hidden under computing, and the resource that bounds a run.

The functions below are arithmetic of time intervals. An interval is (begin, end); a union is a sorted list of intervals
of positive length that neither overlap nor touch.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from gsio.trace.timeline import DEVICE, Recording

Pair = tuple[float, float]

LANES = {"compute": "compute", "copy": "copy", "encode": "encode", "write": "write", "commit": "write"}
ENCODE_AND_WRITE = "encode, write"  # a lane of both
LONG_GAP_SECONDS = 50e-6  # a launch alone costs a shorter gap of the device
SATURATED = 0.8  # a resource that is busy for a smaller share of the time bounds nothing
ADVICE = {
    "compute": "all other work can hide under computing; 'gsio bench tune' or fewer steps per frame shorten it",
    "copy": "move fewer bytes, by --store uint16, one of --fields or more steps per frame",
    "encode": "encode faster, by --compression lz4, or by more output.threads if cores are left",
    "write": "write fewer bytes, by --compression zstd, --keep-bits or --store, or to a faster disk",
    "": "the resources wait for one another; more blocks (--memory) let them run apart",
}


def union(intervals: Iterable[Pair]) -> list[Pair]:
    """Return the union of any intervals; an interval that does not end after its begin counts as empty."""
    merged: list[Pair] = []
    for begin, end in sorted(intervals):
        if end <= begin:
            continue
        if merged and begin <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((begin, end))
    return merged


def length(spans: list[Pair]) -> float:
    """Return the length of a union."""
    return sum(end - begin for begin, end in spans)


def intersection(one: list[Pair], other: list[Pair]) -> list[Pair]:
    """Return the intersection of two unions."""
    common = []
    i = j = 0
    while i < len(one) and j < len(other):
        begin, end = max(one[i][0], other[j][0]), min(one[i][1], other[j][1])
        if begin < end:
            common.append((begin, end))
        if one[i][1] < other[j][1]:
            i += 1
        else:
            j += 1
    return common


def gaps(spans: list[Pair], begin: float, end: float) -> list[Pair]:
    """Return the gaps of a union between `begin` and `end`."""
    edges = [begin, *(edge for span in intersection(spans, [(begin, end)]) for edge in span), end]
    return [(edges[i], edges[i + 1]) for i in range(0, len(edges), 2) if edges[i] < edges[i + 1]]


@dataclass(frozen=True)
class Lane:
    """One resource of a run; times in seconds.

    Attributes
    ----------
    busy, hidden
        The time with at least one thread at this work, and the part of this time in which the device computed.
    work
        The time at this work, summed over threads.
    threads
        The number of threads that do this work; 0 means that the device does it.
    occupied
        The mean share of the loop in which these threads do any work, weighted by their shares of this work.
    """

    busy: float
    hidden: float
    work: float
    threads: int
    occupied: float


@dataclass(frozen=True)
class Gap:
    """A gap in which the device did not compute, and the share of the gap that each kind of host span covers."""

    begin: float
    end: float
    host: dict[str, float]


@dataclass(frozen=True)
class Report:
    """The result of `overlap`; times in seconds.

    Attributes
    ----------
    lanes
        `compute`, `copy`, `encode`, `write` and the last two together, as far as the recording has them.
    idle_before, idle_between, idle_after
        The time in the loop before the device began to compute, between its blocks, and after its last block.
    gaps
        The gaps between blocks that are longer than `LONG_GAP_SECONDS`.
    bound
        The lane that bounds the run, or "" where none does.
    """

    source: str
    seconds: float
    blocks: int
    lanes: dict[str, Lane]
    idle_before: float
    idle_between: float
    idle_after: float
    gaps: list[Gap]
    bound: str
    notes: list[str]

    def share(self, seconds: float) -> float:
        """Return `seconds` as a share of the loop."""
        return seconds / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        lines = [f"{self.blocks} blocks in {self.seconds:.3f} s ({self.source})"]
        lines.append("               busy s   of the loop   hidden under compute")
        for name, lane in self.lanes.items():
            hidden = "" if name == "compute" else f"{lane.hidden / lane.busy:.1%}"
            line = f"{name:14}{lane.busy:7.3f}{self.share(lane.busy):14.1%}{hidden:>23}"
            if lane.threads and name != ENCODE_AND_WRITE:
                line += f"   {lane.threads} thread{'s' * (lane.threads > 1)}, {lane.occupied:.0%} occupied"
            lines.append(line.rstrip())
        before, between, after = map(self.share, (self.idle_before, self.idle_between, self.idle_after))
        lines.append(
            f"device idle   {before + between + after:.2%} of the loop: {before:.2%} before its first block, "
            f"{between:.2%} between blocks, {after:.2%} after its last"
        )
        lines.append(f"gaps          {self._gaps()}")
        lines.append(f"bound by      {self.bound or 'nothing'}: {ADVICE[self.bound]}")
        return "\n".join([*lines, *(f"note          {note}" for note in self.notes)])

    def _gaps(self) -> str:
        limit = f"{LONG_GAP_SECONDS * 1e6:.0f} µs"
        if not self.gaps:
            return f"none between blocks over {limit}"
        spans = [gap.end - gap.begin for gap in self.gaps]
        covered: dict[str, float] = {}
        for gap, span in zip(self.gaps, spans, strict=True):
            for name, share in gap.host.items():
                covered[name] = covered.get(name, 0.0) + share * span
        longest_first = sorted(covered, key=lambda name: covered[name], reverse=True)[:3]
        host = ", ".join(f"{name} {covered[name] / sum(spans):.0%}" for name in longest_first) or "no span"
        longest = max(self.gaps, key=lambda gap: gap.end - gap.begin)
        return (
            f"{len(spans)} over {limit}, {sum(spans) * 1e3:.2f} ms in all, the longest {max(spans) * 1e3:.2f} ms "
            f"at {longest.begin:.3f} s; host: {host}"
        )


def overlap(recording: Recording) -> Report:
    """Return a report of the lanes of a run, of the gaps between blocks, and of the lane that bounds the run.

    Where the recording has no times of a device, computing is the time in `advance`, as on a CPU.
    """
    begin, end = recording.begin, recording.end
    window = [(begin, end)] if begin < end else []
    notes = []
    intervals = recording.intervals
    if not any(interval.name == "compute" for interval in intervals):
        notes.append(
            "the recording has no times of a device: the time in 'advance' is taken for computing, as on a CPU"
        )
        intervals = [i._replace(name="compute", thread=DEVICE) if i.name == "advance" else i for i in intervals]
    if all(interval.thread <= DEVICE for interval in intervals):
        notes.append(
            "the recording has no spans of the host, so encoding and writing are missing; 'gsio doctor' says why"
        )

    def covered(names: set[str], thread: int | None = None) -> list[Pair]:
        chosen = (i for i in intervals if i.name in names and thread in (None, i.thread))
        return intersection(union((i.begin, i.end) for i in chosen), window)

    compute = covered({"compute"})
    lanes = {}
    for lane in [*dict.fromkeys(LANES.values()), ENCODE_AND_WRITE]:
        members = {name for name, its in LANES.items() if its in lane.split(", ")}
        if not (spans := covered(members)):
            continue
        work = {
            thread: length(covered(members, thread)) for thread in {i.thread for i in intervals if i.name in members}
        }
        busy = {thread: length(covered(set(LANES) if thread > DEVICE else members, thread)) for thread in work}
        lanes[lane] = Lane(
            busy=length(spans),
            hidden=length(intersection(spans, compute)),
            work=sum(work.values()),
            threads=sum(thread > DEVICE for thread in work),
            occupied=sum(work[thread] * busy[thread] for thread in work) / sum(work.values()) / (end - begin),
        )
    idle = gaps(compute, begin, end)
    first, last = (compute[0][0], compute[-1][1]) if compute else (end, end)
    host = {name: covered({name}) for name in sorted({i.name for i in intervals if i.thread > DEVICE})}
    between = [span for span in idle if first <= span[0] and span[1] <= last]
    return Report(
        source=recording.source,
        seconds=end - begin,
        blocks=sum(interval.name == "advance" for interval in recording.intervals),
        lanes=lanes,
        idle_before=first - begin,
        idle_between=length(between),
        idle_after=end - last,
        gaps=_explained([gap for gap in between if gap[1] - gap[0] > LONG_GAP_SECONDS], host, begin),
        bound=_bound(lanes),
        notes=notes,
    )


def _explained(long: list[Pair], host: dict[str, list[Pair]], origin: float) -> list[Gap]:
    """Return `long` gaps, with times since `origin`, each with the shares that the spans of the host cover."""
    shares: list[dict[str, float]] = [{} for _ in long]
    for name, spans in host.items():
        place = 0
        for begin, end in intersection(long, spans):
            while long[place][1] < end:
                place += 1
            whole = long[place][1] - long[place][0]
            shares[place][name] = shares[place].get(name, 0.0) + (end - begin) / whole
    return [Gap(begin - origin, end - origin, share) for (begin, end), share in zip(long, shares, strict=True)]


def _bound(lanes: dict[str, Lane]) -> str:
    """Return the lane that is occupied most, or "" if no lane is occupied for a share of `SATURATED`.

    The same threads may do the work of two lanes. Among lanes that are nearly equally occupied, the lane with the most
    work for each thread counts.
    """
    occupied = {name: lane.occupied for name, lane in lanes.items() if name != ENCODE_AND_WRITE}
    highest = max(occupied.values(), default=0.0)
    if highest < SATURATED:
        return ""
    near = [name for name, share in occupied.items() if share >= 0.95 * highest]
    return max(near, key=lambda name: lanes[name].work / max(1, lanes[name].threads))
