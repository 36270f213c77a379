"""What does saving every frame cost a loop in JAX, PyTorch, CuPy or NumPy? `gsio.FrameWriter` beside other ways.

    python profiling/library.py --frames 1000                           # as in profiling/results
    python profiling/library.py --shape 64,96 --frames 20 --libraries jax,torch-eager,numpy
    python profiling/library.py --torn 1000                             # is any stored frame torn?
    python profiling/library.py --flat 100000                           # does memory stay constant?

The loops are in `loops.py`. "Free" is a loop that only touches its array, which holds a frame from the middle of a
run. Each way to save is compared with copies that the loop itself made, before it is timed. "First" is the first frame,
with which `FrameWriter` makes its file and its memory; the others make theirs before. The clock of the loop begins
after it, and stops when the operating system has all frames; "durable" is the time until the disk has them. h5py does
not compress; the Zarr libraries use Blosc lz4. "In threads" means: the loop copies its array on the device, and threads
behind a bounded queue fetch and store the copies. Loops with the other rows of h5py, zarr-python and acquire-zarr wait
for their array and store it themselves.
"""

import argparse
import gc
import itertools
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any, NamedTuple

import numpy as np
import psutil
from loops import LIBRARIES, Array, Frame, Library, State, started

import gsio
from gsio.bench.peers import PEERS
from gsio.bench.storage import read_frame
from gsio.codec.blosc import lz4_parameters
from gsio.machine import usable_cores

HEAD = """\
| library | loop | output | first, s | loop, s | × no output | durable, s | frames/s | × `gsio run` | append, µs |
|---|---|---|---:|---:|---:|---:|---:|---:|---:|"""
CHECKED = 12  # frames of each way whose files are compared
TORN_FRAMES, TORN_LOOPS = 12, 25  # frames of a random loop, and loops that share a file
BUSY = 20  # times two kernels, at most, are in the queue when a frame is appended
TINY = 64, 64
SMALL_MEMORY = "320MiB"  # of the pool: a few blocks, which a free loop soon fills


class Job(NamedTuple):
    """What to measure, how often, and the folder in which outputs are made and deleted."""

    config: gsio.Config
    repeats: int
    folder: Path

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.config.grid.rows, self.config.grid.cols


class Output:
    """An output that is open; this one stores nothing."""

    waited_seconds = 0.0  # for which `append` waited because too many frames were on their way

    def append(self, frame: Array) -> None:
        """Save the next frame; the loop may change its memory afterwards."""

    def close(self) -> None:
        """Return when the operating system has everything."""

    def sync(self) -> None:
        """Return when the disk has everything."""


def frame_writer(path: Path, shape: Sequence[int], library: Library, memory: str = "") -> Any:
    """Open a `gsio.FrameWriter`."""
    return gsio.FrameWriter(path, tuple(shape[1:]), fields=("v",), dtype="float32", memory=memory)


class Peer(Output):
    """Another library, called by the loop itself, or by `threads` threads."""

    def __init__(self, make: Any, threads: int, path: Path, shape: Sequence[int], library: Library) -> None:
        self.peer = make(path, shape, lz4_parameters(0))
        self.library, self.number = library, itertools.count()
        self.threads = ThreadPoolExecutor(threads) if threads else None
        self.free = BoundedSemaphore(threads + 4)
        self.stored: list[Future[None]] = []

    def append(self, frame: Array) -> None:
        """Store a frame, or leave a copy to a thread."""
        number = next(self.number)
        if self.threads is None:
            self._store(number, frame)
        else:
            self.free.acquire()
            self.stored.append(self.threads.submit(self._fetch, number, self.library.copy(frame)))

    def _store(self, number: int, frame: Array) -> None:
        self.peer.write(number, self.library.host(frame)[np.newaxis])

    def _fetch(self, number: int, frame: Array) -> None:
        try:
            self._store(number, frame)
        finally:
            self.free.release()

    def close(self) -> None:
        """Wait for the threads, and flush."""
        for done in self.stored:
            done.result()
        if self.threads:
            self.threads.shutdown()
        self.peer.flush()

    def sync(self) -> None:
        """Sync what the library has written."""
        self.peer.sync()


OUTPUTS: dict[str, tuple[str, Callable[..., Any]]] = {
    "none": ("none", lambda path, shape, library: Output()),
    "gsio, HDF5": ("run.h5", frame_writer),
    "gsio, Zarr": ("run.zarr", frame_writer),
    "h5py": ("run.h5", partial(Peer, PEERS["h5py"].make, 0)),
    "h5py in a thread": ("run.h5", partial(Peer, PEERS["h5py"].make, 1)),
    "zarr-python": ("run.zarr", partial(Peer, PEERS["zarr-python"].make, 0)),
    "zarr-python in threads": ("run.zarr", partial(Peer, PEERS["zarr-python"].make, 2)),
    "TensorStore in threads": ("run.zarr", partial(Peer, PEERS["TensorStore"].make, usable_cores())),
    "acquire-zarr": ("run.zarr", partial(Peer, PEERS["acquire-zarr"].make, 0)),
}


class Run(NamedTuple):
    """Seconds of the first frame, until the system and the disk had the others, and of calls that did not wait.

    `committing` is the loop by the clock of a FrameWriter, which begins when its file is open, as that of `gsio run`.
    """

    first: float
    loop: float
    durable: float
    calls: list[float]
    committing: float


@contextmanager
def opened(job: Job, output: str, frames: int, library: Library) -> Iterator[tuple[Path, Any]]:
    """Give the path of a new output, and the output; delete it at the end."""
    with tempfile.TemporaryDirectory(dir=job.folder, prefix="library-") as folder:
        ending, make = OUTPUTS[output]
        path = Path(folder, ending)
        yield path, make(path, (frames, *job.shape), library)


def run(library: Library, advance: Callable[[State], State], state: State, frames: int, out: Any) -> Run:
    """Run a loop that saves v of each state."""
    calls, waited, clock = [], out.waited_seconds, time.perf_counter
    library.host(state[1])
    began = clock()
    state = advance(state)
    out.append(state[1])
    library.host(state[1])
    first, waited = clock() - began, out.waited_seconds
    before = 0.0 if isinstance(out, Output) else out.summary().loop_seconds
    began = clock()
    for _ in range(frames - 1):
        state = advance(state)
        called = clock()
        out.append(state[1])
        seconds = clock() - called
        if out.waited_seconds == waited:
            calls.append(seconds)
        waited = out.waited_seconds
    library.host(state[1])
    out.close()
    loop = clock() - began
    if isinstance(out, Output):
        out.sync()
        return Run(first, loop, clock() - began, calls, 0.0)
    committing = out.summary().loop_seconds  # `close` has also waited for the disk
    return Run(first, committing - before, loop, calls, committing)


def require_equal(job: Job, library: Library, start: Callable[[], State], output: str) -> None:
    """Raise ValueError unless an output holds the frames that the loop itself has copied to the host."""
    frames, state, expected = min(job.config.run.frames, CHECKED), start(), []
    for _ in range(frames):
        state = library.step(state)
        expected.append(np.array(library.host(state[1])))
    with opened(job, output, frames, library) as (path, out):
        run(library, library.step, start(), frames, out)
        wrong = [n for n in range(frames) if read_frame(path, n, job.shape).tobytes() != expected[n].tobytes()]
    if wrong:
        raise ValueError(f"expected the frames of the loop, got others in {wrong}")


def measure(name: str, job: Job, only: str, speeds: dict[str, float], free: Frame) -> None:
    """Print the rows of a library; `free` is the frame of the free loop, `speeds` has the frames/s of `gsio run`."""
    library = LIBRARIES[name](job.config)
    fields = started(job.config)[:2]
    stepping = f"{job.config.run.steps_per_frame} steps"
    loops = {
        stepping: (library.step, lambda: tuple(map(library.array, fields))),
        "free": (library.touch, lambda: (library.array(free), library.array(free))),
    }
    outputs = ["none"]
    for output in OUTPUTS:
        if output != "none" and only in output:
            try:
                require_equal(job, library, loops[stepping][1], output)
                outputs.append(output)
            except (ImportError, ValueError) as error:
                print(f"| {name} | | {output} | {error} |", flush=True)
    found: dict[tuple[str, str], list[Run]] = {key: [] for key in itertools.product(loops, outputs)}
    frames = job.config.run.frames
    for _ in range(job.repeats):
        for loop, output in found:
            advance, start = loops[loop]
            library.host(advance(start())[1])  # a library compiles at the first call
            with opened(job, output, frames, library) as (_, out):
                os.sync()  # the run must not wait for bytes that others left
                found[loop, output].append(run(library, advance, start(), frames, out))
                del out
            gc.collect()
    for (loop, output), runs in found.items():
        print(f"| {name} | {loop} | {output} | {cells(loop, output, frames, runs, found, speeds)} |", flush=True)


def cells(
    loop: str,
    output: str,
    frames: int,
    runs: list[Run],
    found: dict[tuple[str, str], list[Run]],
    speeds: dict[str, float],
) -> str:
    """Return medians of the runs, and the median and 95 % of all calls that did not wait."""
    seconds = statistics.median(one.loop for one in runs)
    durable = statistics.median(one.durable for one in runs)
    committing = statistics.median(one.committing for one in runs)
    alone = statistics.median(one.loop for one in found[loop, "none"])
    calls = sorted(1e6 * call for one in runs for call in one.calls)
    return " | ".join([
        f"{statistics.median(one.first for one in runs):.3f}",
        f"{seconds:.3f}",
        f"{seconds / alone:.3f}" if output != "none" and loop != "free" else "",
        f"{durable:.3f}" if output != "none" else "",
        f"{frames / seconds:.0f}",
        f"{frames / committing / speeds[output]:.3f}" if output in speeds and loop == "free" else "",
        f"{statistics.median(calls):.0f} / {calls[int(0.95 * len(calls))]:.0f}" if calls else "all waited",
    ])  # fmt: skip


def run_gsio(job: Job, output: str) -> tuple[float, Frame]:
    """Return the frames a second of `gsio run`, and the frame in its middle."""
    seconds, frames = [], job.config.run.frames
    for _ in range(job.repeats + 1):  # the first compiles
        with tempfile.TemporaryDirectory(dir=job.folder, prefix="library-") as folder:
            path = Path(folder, OUTPUTS[output][0])
            summary = gsio.simulate(job.config, path)
            assert summary is not None
            seconds.append(summary.loop_seconds)
            middle = read_frame(path, frames // 2, job.shape)
    return frames / statistics.median(seconds[1:]), middle


def compare(job: Job, libraries: list[str], only: str) -> None:
    """Print the table."""
    rows, cols, speeds = *job.shape, dict[str, float]()
    for output in ("gsio, HDF5", "gsio, Zarr"):
        speeds[output], middle = apart(run_gsio, job, output)
    print(f"{job.config.run.frames} frames of {rows} × {cols}; medians of {job.repeats} runs.")
    print("; ".join(f"`gsio run`, {output[6:]}: {speed:.0f} frames/s" for output, speed in speeds.items()))
    print(f"\n{HEAD}", flush=True)
    for name in libraries:
        apart(measure, name, job, only, speeds, middle)


def torn(name: str, job: Job, trials: int) -> str:
    """Return a row: the frames of random loops that their files hold differently.

    A loop has one array or several, on streams of its own if its library has streams. A frame is appended while kernels
    of its array are in the queue. Then the array is changed at once, in place or by donation, or it is dropped, and a
    new array of the same size is filled. The frames are whole numbers, and thus known without a copy. Several loops
    share a file.
    """
    library, bad = LIBRARIES[name](job.config), list[str]()
    for began in range(0, trials, TORN_LOOPS):
        dice, loops = random.Random(began), min(TORN_LOOPS, trials - began)
        shape = dice.randint(8, 600), dice.randint(8, 600)
        first = np.arange(np.prod(shape), dtype=np.float32).reshape(shape) % 1021
        expected: list[int] = []  # what is added to `first`
        with tempfile.TemporaryDirectory(dir=job.folder, prefix="library-") as folder:
            path = Path(folder, dice.choice(("run.h5", "run.zarr")))
            out = frame_writer(path, (0, *shape), library, SMALL_MEMORY)
            for _ in range(loops):
                expected += torn_loop(library, out, first, dice)
            out.close()
            del out
            with gsio.open_stack(path) as stack:
                frames = stack.v[:]
            for number, added in enumerate(expected):
                if (frames[number] != first + added).any():
                    bad.append(f"{began + number // TORN_FRAMES}/{number % TORN_FRAMES}")
    return f"| {name} | {trials} | {trials * TORN_FRAMES} | {len(bad)} | {' '.join(bad[:5])} |"


def torn_loop(library: Library, out: Any, first: Frame, dice: random.Random) -> list[int]:
    """Append the frames of one random loop, and return what each adds to `first`."""
    arrays, drops = dice.choice((1, 1, 2, 3)), dice.random() < 0.3
    streams = [library.stream() for _ in range(arrays)]
    own, other = [], []
    for stream in streams:
        with stream():
            own.append(library.array(first))
            other.append(library.array(np.full(first.shape, -1, np.float32)))
    for number in range(TORN_FRAMES):
        which = number % arrays
        with streams[which]():
            own[which] = library.change(own[which], 2 * dice.randint(0, BUSY))
            if drops:
                out.append(library.copy(own[which]))
                library.copy(other[which])
            else:
                out.append(own[which])
            own[which] = library.change(own[which], 0)
    return [1 + 2 * (number // arrays) for number in range(TORN_FRAMES)]


def flat(name: str, job: Job, frames: int) -> str:
    """Return a row: what the process has after half of many tiny frames, after all, and after `close`."""
    library, found = LIBRARIES[name](job.config), []
    state = library.array(np.zeros(TINY, np.float32)), library.array(np.zeros(TINY, np.float32))
    with tempfile.TemporaryDirectory(dir=job.folder, prefix="library-") as folder:
        path = Path(folder, "run.h5")
        out = gsio.FrameWriter(path, TINY, fields=("v",), dtype="float32", memory=SMALL_MEMORY)
        for number in range(frames):
            state = library.touch(state)
            out.append(state[1])
            if number in (frames // 2, frames - 1):
                found.append(usage())
        out.close()
        last = read_frame(path, frames - 1, TINY)[0, 0]
        del out
    if last != frames:
        raise ValueError(f"expected {frames} in the first cell of the last frame, got {last}")
    gc.collect()
    found.append(usage())
    return f"| {name} | {frames} | {' | '.join(' → '.join(values) for values in zip(*found, strict=True))} |"


def usage() -> tuple[str, str, str, str]:
    """Return MiB of this process and of the device, the number of threads, and of open files."""
    process, device = psutil.Process(), "none"
    if find_spec("cupy"):
        import cupy

        if cupy.is_available():
            free, total = cupy.cuda.runtime.memGetInfo()
            device = f"{(total - free) / 2**20:.0f}"
    return f"{process.memory_info().rss / 2**20:.0f}", device, str(process.num_threads()), str(process.num_fds())


def job_of(shape: tuple[int, int], frames: int, steps: int, repeats: int, folder: Path) -> Job:
    """Return the main job with another grid, and other frames."""
    changes = {"grid.rows": shape[0], "grid.cols": shape[1], "run.frames": frames, "run.steps_per_frame": steps}
    return Job(gsio.load_config(overrides=changes, environ={}), repeats, folder)


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process of its own, so that each library has the device for itself."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = ",".join(name for name in LIBRARIES if find_spec(name))
    parser.add_argument("--libraries", default=here, help=f"of {', '.join(LIBRARIES)}; default: {here}")
    parser.add_argument("--shape", default="1080,1920", help="rows and columns")
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=32, help="between two frames")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each row; the table has their medians")
    parser.add_argument("--only", default="", help="measure the outputs whose names hold this text, and the loop alone")
    parser.add_argument("--folder", type=Path, default=Path(), help="where outputs are made and deleted")
    parser.add_argument("--torn", type=int, metavar="N", help="look for torn frames in N random loops of each library")
    parser.add_argument("--flat", type=int, metavar="N", help="save N tiny frames from each library, and watch memory")
    options = parser.parse_args()
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # else JAX takes most of a device's memory at its start
    rows, cols = map(int, options.shape.split(","))
    job = job_of((rows, cols), options.frames, options.steps, options.repeats, options.folder)
    libraries = options.libraries.split(",")
    if options.torn:
        print("| library | loops | frames | torn | the first, loop/frame |\n|---|---:|---:|---:|---|", flush=True)
        for name in libraries:
            print(apart(torn, name, job, options.torn), flush=True)
    elif options.flat:
        print("Three values: after half of the frames, after all frames, and after `close`.\n")
        print("| library | frames | memory, MiB | device, MiB | threads | open files |\n|---|---:|---:|---:|---:|---:|")
        for name in libraries:
            print(apart(flat, name, job, options.flat), flush=True)
    else:
        compare(job, libraries, options.only)


if __name__ == "__main__":
    main()
