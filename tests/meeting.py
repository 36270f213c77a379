"""Ranks that are threads of one process: the messages of MPI without MPI, and runs on such ranks."""

import contextvars
import queue
import random
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from patience import DEADLINE

from gsio.config import Config
from gsio.errors import UsageError
from gsio.reader import open_stack
from gsio.reader.verify import problems
from gsio.run import checkpoints
from gsio.run.joint import assist
from gsio.run.ranks import Ranks
from gsio.run.simulate import simulate
from gsio.run.summary import Summary


class Meeting:
    """What the ranks share: a queue of messages for each two ranks and each tag, and a place to meet."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.queues: defaultdict[Any, queue.SimpleQueue[Any]] = defaultdict(queue.SimpleQueue)
        self.barriers = {name: threading.Barrier(count) for name in ("gathered", "largest", "share", "close")}
        self.values: dict[tuple[str, int], Any] = {}


class ThreadMpi:
    """The messages of one rank, as `gsio.run.mpi.Mpi` has them."""

    def __init__(self, meeting: Meeting, number: int) -> None:
        self.number, self.count, self._meeting = number, meeting.count, meeting
        self.local, self.sharing = number, meeting.count

    def _met(self, name: str, value: Any) -> list[Any]:
        barrier = self._meeting.barriers[name]
        self._meeting.values[name, self.number] = value
        barrier.wait(DEADLINE)
        found = [self._meeting.values[name, rank] for rank in range(self.count)]
        barrier.wait(DEADLINE)
        return found

    def exchange(self, messages: Sequence[tuple[Any, Any]]) -> list[Any]:
        for message, rows in messages:
            self.send(rows.copy(), message.neighbour, ("halo", message.side))
        return [self.receive(message.neighbour, ("halo", 1 - message.side)) for message, _ in messages]

    def largest(self, numbers: Sequence[int]) -> list[int]:
        return np.max(self._met("largest", list(numbers)), axis=0).tolist()  # type: ignore[no-any-return]

    def gathered(self, value: Any) -> list[Any]:
        return self._met("gathered", value)

    def send(self, value: Any, rank: int, tag: Any) -> None:
        self._meeting.queues[self.number, rank, tag].put(value)

    def receive(self, rank: int, tag: Any) -> Any:
        forever = threading.current_thread().daemon  # until the process ends, which is that of all ranks here
        return self._meeting.queues[rank, self.number, tag].get(timeout=None if forever else DEADLINE)

    def received(self, rank: int, tag: Any) -> tuple[Any] | None:
        try:
            return (self._meeting.queues[rank, self.number, tag].get_nowait(),)
        except queue.Empty:
            return None

    def send_array(self, array: Any, rank: int, tag: Any) -> None:
        self.send(np.array(array), rank, ("array", tag))

    def receive_array(self, into: Any, rank: int, tag: Any) -> None:
        into[...] = self.receive(rank, ("array", tag)).reshape(into.shape)

    def share_array(self, array: Any) -> None:
        found = self._met("share", array)[0]
        if self.number:
            array[...] = found
        self._meeting.barriers["share"].wait(DEADLINE)

    def close(self, tag: Any) -> None:
        self._met("close", None)

    def abort(self, code: int) -> None:
        raise AssertionError(f"rank {self.number} ended all with {code}")


def on_ranks(count: int, run: Callable[[Ranks], Any]) -> list[Any]:
    """Return what `run` returns, or raises, in each of `count` ranks."""
    meeting = Meeting(count)

    def one(number: int) -> Any:
        try:
            with Ranks(ThreadMpi(meeting, number)) as ranks:  # type: ignore[arg-type]
                return run(ranks)
        except Exception as error:
            return error

    with ThreadPoolExecutor(count) as threads:
        begun = [threads.submit(contextvars.copy_context().run, one, number) for number in range(count)]
        return [each.result() for each in begun]


def run_on(count: int, config: Config, output: Path, **how: Any) -> list[Any]:
    """Return the summary of a run on so many ranks, or its error, and how each other rank ended."""
    if count == 1:
        return [simulate(config, output, **how)]

    def one(ranks: Ranks) -> Any:
        return assist(ranks) if ranks.number else simulate(config, output, **how, ranks=ranks)

    return on_ranks(count, one)


def contents(output: Path) -> dict[str, bytes]:
    """Return all frames, their pyramids, all series, and the newest checkpoint of an output, by name."""
    with open_stack(output) as stack:
        assert list(problems(stack)) == []
        found = {name: stack.series(name).tobytes() for name in stack.recorded}
        found |= {name: field[:].tobytes() for name, field in stack.fields.items()}
        found |= {f"level {name}": array[:].tobytes() for name, array in _levels(stack.root)}
    state = checkpoints.load(output)[0]
    return found | {"u": state.u.tobytes(), "v of the state": state.v.tobytes(), "frames": bytes(state.frames)}


def _levels(root: Any) -> list[tuple[str, Any]]:
    return [(name, array) for name, array in root["pyramid"].arrays()] if "pyramid" in root else []


def assert_whole(found: list[Any], frames: int) -> None:
    assert isinstance(found[0], Summary), found
    assert (found[0].frames, found[1:]) == (frames, [None] * (len(found) - 1))


def random_changes(dice: random.Random) -> dict[str, Any]:
    rows, cols = dice.randint(5, 30), dice.randint(4, 30)
    store = dice.choice(["computed", "float32", "float16", "uint16", "uint8"])
    feed: Any = dice.choice(
        [0.03, 0.03, [0.02, 0.025, 0.03, 0.035, 0.04], {"along": dice.choice("xy"), "start": 0.02, "stop": 0.04}]
    )
    return {
        "grid.rows": rows, "grid.cols": cols, "grid.boundary": dice.choice(["periodic", "neumann", "zero"]),
        "model.feed": feed, "model.stencil": dice.choice(["oono-puri", "five-point", "patra-karttunen"]),
        "model.precision": dice.choice(["float32", "float64"]) if store == "computed" else "float32",
        "initial.kind": "noise", "initial.u": 0.5, "initial.v": 0.25, "initial.amplitude": 0.2,
        "initial.seed": dice.randint(0, 1000),
        "run.frames": dice.randint(3, 12), "run.steps_per_frame": dice.randint(1, 9),
        "run.checkpoint_every": dice.choice([2, 3, "15m"]),
        "output.fields": dice.choice(["v", "u", "u,v"]), "output.store": store,
        "output.keep_bits": dice.choice([0, 9]) if store in ("computed", "float32") else 0,
        "output.compression": dice.choice(["lz4", "zstd", "none"]), "output.shard_frames": dice.choice([0, 0, 4]),
        "output.pyramid": dice.choice([0, 0, 1]), "output.threads": dice.randint(1, 3),
    }  # fmt: skip


def check_random(
    make_config: Callable[..., Config],
    folder: Path,
    dice: random.Random,
    counts: Sequence[int] = (2, 3, 5),
    **more: Any,
) -> None:
    """Check runs on numbers of ranks, and one that goes on on another number of ranks, against a run on one."""
    changes = random_changes(dice) | more
    config = make_config(changes)
    run_on(1, config, folder / "1.zarr")
    whole = contents(folder / "1.zarr")
    for count in counts:
        output = folder / f"{count}.zarr"
        ended = run_on(count, config, output)
        if isinstance(ended[0], UsageError):  # a slab has two lines at least, if there is a pyramid
            assert changes["output.pyramid"]
            assert "ranks or devices" in str(ended[0])
            continue
        assert_whole(ended, config.run.frames)
        found = contents(output)
        assert [name for name in whole if whole[name] != found[name]] == [], (count, changes)
    part, first, then = folder / "part.zarr", dice.choice(counts[:2]), dice.choice([1, 2])
    sooner = make_config(changes | {"run.frames": dice.randint(1, config.run.frames - 1)})
    if isinstance(run_on(first, sooner, part)[0], Summary):
        assert_whole(run_on(then, config, part, resume="must"), config.run.frames - sooner.run.frames)
        found = contents(part)
        assert [name for name in whole if whole[name] != found[name]] == [], (first, then, changes)
