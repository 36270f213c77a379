"""Does a long run stay as it began? Memory, open files and speed of one, seen from outside once a second.

    python profiling/endurance.py --frames 1000000

Ends with 1 if resident memory grows by more than 5 % after the first minute, or the last tenth of the run is more than
10 % slower than the first.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import psutil

WARM_SECONDS = 60.0  # a run grows until its blocks and caches are full
MOST_GROWTH = 0.05
MOST_SLOWDOWN = 0.10
OPTIONS = ["-r", "64", "-c", "64", "-e", "2", "--quiet"]


class Sample(NamedTuple):
    """What a run was at `seconds` after its start: frames committed, resident MiB, open files."""

    seconds: float
    frames: int
    memory: float
    files: int


def watch(run: subprocess.Popen[bytes], status: Path) -> list[Sample]:
    """Look at a run once a second until it ends."""
    samples: list[Sample] = []
    process, began = psutil.Process(run.pid), time.monotonic()
    while True:
        try:
            run.wait(timeout=1.0)
            return samples
        except subprocess.TimeoutExpired:
            pass
        try:
            frames = json.loads(status.read_bytes())["frame"]
        except OSError:  # it has not begun
            continue
        memory, files = process.memory_info().rss / 2**20, process.num_fds()
        samples.append(Sample(time.monotonic() - began, frames, memory, files))


def speed(samples: list[Sample]) -> float:
    """Return frames a second from the first to the last sample."""
    return (samples[-1].frames - samples[0].frames) / (samples[-1].seconds - samples[0].seconds)


def main() -> int:
    """Run, print a table, and return whether the run changed."""
    parser = argparse.ArgumentParser(description="Does a long run stay as it began?")
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--output", default="run.h5", help="its name, .h5 or .zarr")
    parser.add_argument("--folder", help="where it is written, and deleted")
    parser.add_argument("options", nargs="*", help="more options of gsio run, after --")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        output = Path(folder) / arguments.output
        command = [sys.executable, "-m", "gsio", "run", *OPTIONS, "-n", str(arguments.frames), "-o", str(output)]
        run = subprocess.Popen([*command, *arguments.options])
        samples = watch(run, Path(f"{output}.status.json"))
    if run.returncode:
        return run.returncode
    level = [sample for sample in samples if sample.seconds >= WARM_SECONDS]
    tenth = len(samples) // 10
    if len(level) < 10 or tenth < 2:
        print(f"expected a run of at least {WARM_SECONDS + 10:g} s, it took {len(samples)} s; ask for more --frames")
        return 2
    start, end = (statistics.median(s.memory for s in part) for part in (level[:5], level[-5:]))
    first, last = speed(samples[:tenth]), speed(samples[-tenth:])
    growth, slowdown = end / start - 1, 1 - last / first
    before, after = (max(s.files for s in part) for part in (level[: len(level) // 2], level[len(level) // 2 :]))
    print("| | first | last | change |")
    print("|---|---:|---:|---:|")
    print(f"| resident memory, MiB, after the first minute | {start:.1f} | {end:.1f} | {growth:+.1%} |")
    print(f"| frames/s, a tenth of the run | {first:.0f} | {last:.0f} | {-slowdown:+.1%} |")
    print(f"| open files at most, of each half after the first minute | {before} | {after} | {after - before:+d} |")
    print(f"\n{arguments.frames} frames in {samples[-1].seconds:.0f} s, {len(samples)} samples")
    return int(growth > MOST_GROWTH or slowdown > MOST_SLOWDOWN)


if __name__ == "__main__":
    sys.exit(main())
