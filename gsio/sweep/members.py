"""The members of a result: how far each is, and its frames, which many threads can read at once.

Nothing here grows with the number of frames: where the chunks of a member are is found when somebody asks for them.
"""

from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from gsio.codec import CODECS
from gsio.errors import DataError
from gsio.frames.content import Content
from gsio.reader import Frames, open_stack
from gsio.reader.frames import ArrayLayout
from gsio.sweep.description import coordinate
from gsio.sweep.pieces import file_of_task, hdf5_of
from gsio.sweep.plan import Plan, Task
from gsio.sweep.result import State, read_states
from gsio.writer import format_of

PLACES, FILES = 1 << 12, 64  # members whose files are known, and files of HDF5 whose places of chunks are kept


class Members:
    """The members of a result as they are at one moment.

    Attributes
    ----------
    states, frames
        The state, and the number of frames, of each member, [member].
    """

    def __init__(self, plan: Plan, output: Path) -> None:
        """Look at the states of a result; raises DataError if they cannot be read."""
        self.plan, self.output = plan, output
        found = read_states(output)
        self.states = np.minimum(found["status"], np.uint8(max(State)))
        self.frames = np.clip(found["frames"], 0, plan.config.run.frames)
        if not len(self.states) == len(self.frames) == plan.count:
            raise DataError(f"'{output}': expected {plan.count} members, found {len(self.states)}")

    def of(self, field: str, member: int) -> tuple[Frames, int]:
        """Return frames, and the place of a member among the members that they hold.

        Raises OSError if they cannot be found, or their file is damaged.
        """
        if format_of(self.output).is_folder:
            return self._frames(field, int(self.frames[member]), self.plan.place(member)), 0
        try:
            task = self._tasks[member]
            path, place = _place_of(self.output, task, member, _identity(file_of_task(self.output, task)))
            return _fields_of(path, _identity(path))[field], place
        except (OSError, DataError, RuntimeError, ValueError, LookupError):  # whose words can have the path of the file
            raise OSError("the file of its task cannot be read") from None

    @cached_property
    def content(self) -> Content:
        """What a frame of a member is."""
        return Content.of(self.plan.config)

    @cached_property
    def fields(self) -> dict[str, Frames]:
        """What the frames of each member are, by the name of the field; these hold none."""
        return {name: self._frames(name, 0) for name in self.content.fields}

    def _frames(self, field: str, count: int, place: tuple[int, ...] = ()) -> Frames:
        array = ArrayLayout.of(field, self.content, self.plan.layout, count)
        return Frames(array, count, self.output / field, CODECS[self.content.compression], before=place)

    @cached_property
    def _tasks(self) -> dict[int, Task]:
        return {member: task for task in self.plan.tasks for member in task.members}

    def state(self, runs: Sequence[str | None], *, goes_on: bool) -> str:
        """Return the state of the sweep; `runs` has those of its runs, by their status files, and some may go on."""
        left = set(self.states.tolist()) & {State.PENDING, State.FAILED}
        if not left:
            return "complete"
        if goes_on:
            return "running"
        if State.PENDING not in left:
            return "failed"
        if "running" in runs:
            return "killed"
        return "stopped" if runs or self.states.any() else "waiting"

    def axes(self) -> list[dict[str, Any]]:
        """Return each axis in the types of JSON: its name, its size, and the values of each key along it."""
        return [
            {"name": axis.name, "size": axis.size, "keys": {
                coordinate(key, self.plan.keys): list(map(_plain, values)) for key, values in axis.keys.items()
            }}
            for axis in self.plan.axes
        ]  # fmt: skip

    def describe(self) -> dict[str, Any]:
        """Return how far members are, in the types of JSON: a digit for each, and the frames of those with a part."""
        parts = np.flatnonzero((self.frames > 0) & (self.frames < self.plan.config.run.frames))
        return {
            "states": (self.states + ord("0")).tobytes().decode(),
            "parts": {int(member): int(self.frames[member]) for member in parts},
        }


def _identity(path: Path) -> tuple[int, ...]:
    """Return what changes when another file takes the place of one, which can have the same inode."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


@lru_cache(PLACES)
def _place_of(output: Path, task: Task, member: int, identity: tuple[int, ...]) -> tuple[Path, int]:
    """Return what `hdf5_of` finds in the file of a task, which has the `identity`."""
    return hdf5_of(output, task, member)


@lru_cache(FILES)
def _fields_of(path: Path, identity: tuple[int, ...]) -> dict[str, Frames]:
    """Return the fields of the output of a run in HDF5, whose file has the `identity`."""
    with open_stack(path) as stack:
        return {name: frames.apart(path) for name, frames in stack.fields.items()}


def _plain(value: Any) -> Any:
    return value if isinstance(value, (int, float, str)) else str(value)
