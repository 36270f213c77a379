"""What the spans of the NVTX domain `gsio` cost a run, with no profiler attached.

    python profiling/spans.py [--set KEY=VALUE …]

Times each kind of span alone, counts those of a run, and divides: what they cost is a share of the time of the threads
that enter them, which run beside one another; the frame loop is longer by no more than the sum.
"""

import argparse
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path

import gsio
from gsio import log
from gsio.config import parse_assignment
from gsio.trace import CATEGORIES, Trace, timeline
from gsio.trace.timeline import Timeline

SPANS = 20_000


def microseconds(trace: Trace, name: str) -> float:
    """Return what one span costs, the median of seven rounds."""
    rounds = []
    for _ in range(7):
        start = time.perf_counter()
        for frame in range(SPANS):
            with trace.span(name, frame):
                pass
        rounds.append((time.perf_counter() - start) / SPANS * 1e6)
    return statistics.median(rounds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", dest="assignments", action="append", default=[], metavar="KEY=VALUE")
    assignments = parser.parse_args().assignments
    log.configure("text", quiet=True)
    config = gsio.load_config(overrides=dict(map(parse_assignment, assignments)))
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        recorded = Path(folder) / "run.json"
        summary = gsio.simulate(config, Path(folder) / "run.h5", timeline=recorded)
        spans = Counter(interval.name for interval in timeline.read(recorded).intervals) + Counter(["loop"])
    print(f"{summary.device}; {summary.frames} frames, frame loop {summary.loop_seconds:.3f} s\n")
    print("| span | in the run | µs each | µs each with --timeline | share of the loop |\n|---|---|---|---|---|")
    total = 0.0
    for name in CATEGORIES:
        cost, kept = microseconds(Trace(), name), microseconds(Trace(Timeline(SPANS)), name)
        share = spans[name] * cost / 1e6 / summary.loop_seconds
        total += share
        print(f"| {name} | {spans[name]} | {cost:.2f} | {kept:.2f} | {share:.4%} |")
    print(f"| together | {sum(spans.values())} | | | {total:.4%} |")


if __name__ == "__main__":
    main()
