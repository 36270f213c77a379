"""The plan of a sweep: its members, the tasks that compute them, and how the result is cut."""

import fcntl
import itertools
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from msgspec.structs import replace

from gsio.config import Config, resolve
from gsio.config.units import shortened
from gsio.errors import DataError, UsageError
from gsio.files import new_file
from gsio.frames.content import Content
from gsio.frames.layout import BlockLayout
from gsio.frames.sizes import default_sizes
from gsio.inputs import read_regular
from gsio.model.gray_scott import check_stability
from gsio.run.checkpoints import KEYS_THAT_MAY_CHANGE
from gsio.run.initial import rates
from gsio.run.plan import choose_backend, layout_of, with_codec
from gsio.sweep.description import Axis, Description, coordinate

# Cells of a batch. A GPU is then about as busy as with one large grid; on a CPU a larger batch gains nothing.
GPU_CELLS, CPU_CELLS = 1 << 22, 1 << 20
BEGINNING = 1 << 40  # the lock of whoever makes a result; the numbers of tasks are smaller
WORK = 8  # how much longer a block of a task may take than one of a run
PLAN_NBYTES = 64 << 20  # the limit for the file of a plan


class Recorded(msgspec.Struct, frozen=True):
    """What the file of a plan holds."""

    config: Config
    axes: tuple[Axis, ...]
    batch: int
    cut: tuple[int, int]


class Task(NamedTuple):
    """Members that one run computes, in the order of their numbers."""

    number: int
    members: tuple[int, ...]


class Plan:
    """A sweep whose choices are made.

    Attributes
    ----------
    config
        The values that the members share.
    axes
        The axes along which members differ. Members are numbered in C order.
    batch
        The most members of a task.
    cut
        The frames of a member, and the rows of each, that share a chunk.
    """

    def __init__(self, recorded: Recorded) -> None:
        self.recorded = recorded
        self.config, self.axes, self.batch, self.cut = recorded.config, recorded.axes, recorded.batch, recorded.cut
        self._base = msgspec.to_builtins(self.config)

    @property
    def shape(self) -> tuple[int, ...]:
        """The places along each axis."""
        return tuple(axis.size for axis in self.axes)

    @property
    def count(self) -> int:
        """The number of members."""
        return math.prod(self.shape)

    @cached_property
    def keys(self) -> dict[str, tuple[int, tuple[Any, ...]]]:
        """The axis, and the values along it, of each key that varies."""
        return {key: (place, values) for place, axis in enumerate(self.axes) for key, values in axis.keys.items()}

    def place(self, member: int) -> tuple[int, ...]:
        """Return the place of a member along each axis."""
        return tuple(int(index) for index in np.unravel_index(member, self.shape))

    def values(self, member: int) -> dict[str, Any]:
        """Return what sets a member apart, by the key."""
        place = self.place(member)
        return {key: values[place[axis]] for key, (axis, values) in self.keys.items()}

    def name(self, member: int) -> str:
        """Return a member in words: its number and its values."""
        words = (f"{coordinate(key, self.keys)} {short(value)}" for key, value in self.values(member).items())
        return f"member {member} ({', '.join(words)})"

    def member(self, number: int) -> Config:
        """Return the configuration of a member: that of the same run alone."""
        merged = {section: dict(values) for section, values in self._base.items()}
        for key, value in self.values(number).items():
            section, name = key.split(".")
            merged[section][name] = value
        return resolve(merged)

    @cached_property
    def members(self) -> list[Config]:
        """The configurations of all members; raises UsageError, which names the member, where one is not allowed."""
        found = []
        for number in range(self.count):
            try:
                found.append(self.member(number))
            except UsageError as error:
                raise UsageError(f"{self.name(number)}: {error}") from None
        return found

    @cached_property
    def tasks(self) -> list[Task]:
        """The tasks: members that differ only in what a batch can hold, as many together as `batch` says."""
        groups: dict[Any, list[int]] = {}
        for number, config in enumerate(self.members):
            alone = self.batch == 1 or config.model.maps
            groups.setdefault(number if alone else _without_batched(config), []).append(number)
        parts = [members[first : first + self.batch] for members in groups.values()
                 for first in range(0, len(members), self.batch)]  # fmt: skip
        return [Task(number, tuple(members)) for number, members in enumerate(parts)]

    def run_of(self, members: tuple[int, ...]) -> Config:
        """Return the configuration of the run of some members of a task."""
        configs = [self.members[member] for member in members]
        if len(configs) == 1:
            return configs[0]
        feed, kill = (tuple(getattr(config.model, name) for config in configs) for name in ("feed", "kill"))
        seeds: Any = tuple(config.initial.seed for config in configs)
        return replace(
            configs[0],
            model=replace(configs[0].model, feed=feed, kill=kill),
            initial=replace(configs[0].initial, seed=seeds if len(set(seeds)) > 1 else seeds[0]),
        )

    def cut_of(self, members: int) -> tuple[int, int]:
        """Return the frames and lines of a chunk of a run of this number of members: each has chunks of its own."""
        return self.cut[0], 1 if members > 1 else self.cut[1]

    @cached_property
    def layout(self) -> BlockLayout:
        """The layout of the frames of one member: a run of a batch cuts each member in the same way."""
        return layout_of(self.config, frames_per_chunk=self.cut[0], lines_per_chunk=self.cut[1])


def _without_batched(config: Config) -> Config:
    """Return a configuration without what can differ between the members of a batch."""
    model, initial = replace(config.model, feed=0.0, kill=0.0), replace(config.initial, seed=0)
    return replace(config, model=model, initial=initial)


def short(value: Any, digits: int = 6) -> str:
    """Return a value for a label."""
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def make_plan(description: Description, output: Path) -> Plan:
    """Return the plan of a sweep whose result is `output`.

    Raises UsageError if a member is not allowed, or if the members would not fit into one array.
    """
    config = with_codec(description.config, output)
    if config.output.pyramid:
        raise UsageError("output.pyramid: expected 0, for the result of a sweep has no smaller levels")
    layout, sizes = layout_of(config), default_sizes()
    cells = GPU_CELLS if choose_backend(config) == "cupy" else CPU_CELLS
    batch = description.batch or max(1, cells // layout.frame.cells)
    if layout.chunks.slabs > 1:
        batch = 1  # a frame of one member is as large as several chunks
    # A block holds whole chunks. It may take longer than that of a run, so that chunks are not too small.
    in_block = WORK * sizes.frames_in_block(layout.frame, config.run.steps_per_frame)
    fitting = min(sizes.block_bytes / layout.frame.frame_nbytes, in_block) / batch
    frames = max(1, min(layout.chunks.frames_per_chunk, int(fitting), config.run.frames))
    plan = Plan(Recorded(config, description.axes, batch, (frames, layout.chunks.lines_per_chunk)))
    _check_members(plan)
    return plan


def _check_members(plan: Plan) -> None:
    content = replace(Content.of(plan.config), interval=0)
    for number, config in enumerate(plan.members):
        if config.members > 1:
            raise UsageError(f"{plan.name(number)}: expected one value, for a sweep makes the batches")
        if replace(Content.of(config), interval=0) != content:
            raise UsageError(f"{plan.name(number)}: expected the same type of values as the others; set output.store")
        if not config.model.maps:
            try:
                check_stability(config.model, *rates(config))
            except UsageError as error:
                raise UsageError(f"{plan.name(number)}: {error}") from None


def folder_of(output: Path) -> Path:
    """Return the folder beside the result of a sweep, which has its plan and the runs of its tasks."""
    return Path(f"{output}.tasks")


@contextmanager
def locked(output: Path, number: int, *, wait: bool = False) -> Iterator[bool]:
    """Lock the byte of a task, or another number, in the file of locks, and say whether this process has it now.

    A lock that another process has is waited for, or not. The system releases the lock of a killed process.
    """
    how = fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB
    with (folder_of(output) / "lock").open("ab") as file:
        try:
            fcntl.lockf(file, how, 1, number, os.SEEK_SET)
        except (BlockingIOError, PermissionError):
            yield False
        else:
            yield True


def file_of(output: Path) -> Path:
    """Return the file of the plan of a sweep."""
    return folder_of(output) / "plan.json"


def has_plan(output: Path) -> bool:
    """Return whether a sweep has begun to make `output`."""
    return file_of(output).is_file()


def record(plan: Plan, output: Path) -> None:
    """Write the plan beside the result."""
    with new_file("--output", file_of(output)) as file:
        file.write_bytes(msgspec.json.encode(plan.recorded))


def read_plan(output: Path) -> Plan:
    """Return the plan beside the result of a sweep; raise DataError if there is none."""
    try:
        return Plan(msgspec.json.decode(read_regular(file_of(output), PLAN_NBYTES), type=Recorded))
    except (OSError, ValueError, UsageError) as error:
        raise DataError(
            f"'{output}': expected the result of a sweep, with its plan in '{file_of(output)}': {error}"
        ) from None


def check_same(new: Plan, old: Plan, output: Path) -> None:
    """Raise UsageError, which names what differs, unless `new` describes the sweep whose result `output` is."""
    now, then = (dict(_described(plan)) for plan in (new, old))
    differing = [key for key in sorted({*now, *then}) if now.get(key) != then.get(key)]
    if differing:
        key = differing[0]
        raise UsageError(
            f"--output: '{output}' is the result of another sweep: {key} is {shortened(then.get(key))} there, and "
            f"{shortened(now.get(key))} now; choose another name, or first remove '{output}' and '{folder_of(output)}'"
        )


def _described(plan: Plan) -> itertools.chain[tuple[str, Any]]:
    """Yield the keys and values that decide what the result holds."""
    may_change = KEYS_THAT_MAY_CHANGE - {"run.frames"}
    layer = msgspec.to_builtins(plan.config)
    shared = (
        (f"{section}.{name}", value) for section, values in layer.items() for name, value in values.items()
        if f"{section}.{name}" not in may_change
    )  # fmt: skip
    varied = ((f"sweep.{key}", list(values)) for axis in plan.axes for key, values in axis.keys.items())
    return itertools.chain(shared, varied, [("the axes", [axis.name for axis in plan.axes])])
