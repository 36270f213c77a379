"""The frames, members, fields, rows and columns of an output that a command takes."""

import dataclasses
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from gsio.config import Config
from gsio.draw.limits import limits_of
from gsio.errors import DataError, UsageError
from gsio.frames.metadata import damaged_frames
from gsio.reader.frames import Frames
from gsio.reader.stack import Stack

Frame = list[NDArray[Any]]  # one array of `Selection.shape` for each field


@dataclasses.dataclass(frozen=True)
class Selection:
    """A part of an output; the ranges count the frames, members, rows and columns of `stack`.

    Attributes
    ----------
    config
        The configuration of a run that saves just these fields and members.
    fields
        The names of the fields, in the order of their checksums.
    members
        The members of a batch; range(1) for a single grid.
    """

    stack: Stack
    config: Config
    fields: tuple[str, ...]
    frames: range
    members: range
    rows: range
    cols: range

    @cached_property
    def is_whole_frame(self) -> bool:
        """Return whether each frame is taken as a whole, with all fields, members, rows and columns."""
        return self.fields == fields_of(self.stack) and self.shape == self.stack.fields[self.fields[0]].shape[1:]

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of a frame, [(member,) row, col]; a single member has no axis of its own."""
        members = (len(self.members),) if len(self.members) > 1 else ()
        return (*members, len(self.rows), len(self.cols))

    @cached_property
    def coordinates(self) -> dict[str, NDArray[Any]]:
        """Return time and step of each frame, and y and x, as in the source, which can itself be an export."""
        found = {name: self.stack.series(name)[slice_of(self.frames)] for name in ("time", "step")}
        for name, kept in (("y", self.rows), ("x", self.cols)):
            found[name] = self.stack.axis(name)[slice_of(kept)]
        return found

    @cached_property
    def interval(self) -> float:
        """Return the model time between two frames."""
        times, run = self.coordinates["time"], self.config.run
        return float(times[1] - times[0]) if len(times) > 1 else run.steps_per_frame * self.config.model.dt

    def limits(self, name: str) -> tuple[float, float]:
        """Return the limits of the contrast of a field: its least and largest finite value in the frames."""
        series = (self.stack.series(f"stats/{name}_{word}")[slice_of(self.frames)] for word in ("min", "max"))
        return limits_of(np.concatenate(list(series)))

    def read(self, number: int) -> Frame:
        """Return frame `number` of the stack, one array for each field; raise DataError if it cannot be read."""
        try:
            return [self.stack.fields[name][number, *self._crop] for name in self.fields]
        except (OSError, ValueError, LookupError) as error:
            raise DataError(f"{self.stack.path}: frame {number}: {error}; see 'gsio verify'") from None

    @cached_property
    def chunks(self) -> list[range]:
        """The frames, together where they share chunks; apart from them those that 'gsio repair' found damaged."""
        per_chunk = self.stack.fields[self.fields[0]].frames_per_chunk
        together = groupby(self.frames, key=lambda number: (number // per_chunk, number in self._damaged))
        groups = (list(group) for _, group in together)
        return [range(group[0], group[-1] + 1, self.frames.step) for group in groups]

    @cached_property
    def apart(self) -> list[Frames]:
        """The fields, for many threads at once, which HDF5 would let read one after another."""
        fields = [self.stack.fields[name] for name in self.fields]
        try:
            return [field.apart(self.stack.path) for field in fields]
        except (OSError, RuntimeError, ValueError):  # HDF5 can still find some chunks by a damaged index
            return fields

    def read_chunk(self, frames: range) -> list[Frame]:
        """Return the frames of one of `chunks`, each as `read` does, decoded once; several threads may do this.

        Raises DataError if they cannot be read, or if 'gsio repair' found their values missing.
        """
        fields = self.apart
        per_chunk = fields[0].frames_per_chunk
        numbers = f"frames {frames[0]} to {frames[-1]}" if len(frames) > 1 else f"frame {frames[0]}"
        try:
            if frames[0] in self._damaged:
                raise ValueError("'gsio repair' found the values missing")
            chunks = [field.decoded(frames[0] // per_chunk) for field in fields]
        except (OSError, ValueError, LookupError) as error:
            raise DataError(f"{self.stack.path}: {numbers}: {error}; see 'gsio verify'") from None
        return [[chunk[number % per_chunk, *self._crop] for chunk in chunks] for number in frames]

    @cached_property
    def _damaged(self) -> frozenset[int]:
        return frozenset(damaged_frames(self.stack.attributes))

    @cached_property
    def _crop(self) -> tuple[int | slice, ...]:
        """The index of a frame that gives the selected part."""
        batch = self.stack.fields[self.fields[0]].ndim > 3
        members = self.members[0] if batch and len(self.members) == 1 else slice_of(self.members)
        return (*((members,) if batch else ()), slice_of(self.rows), slice_of(self.cols))


def fields_of(stack: Stack) -> tuple[str, ...]:
    """Return the names of the saved fields, in the order of their checksums."""
    return tuple(stack.config.output.fields.split(","))


def select(stack: Stack, *, frames: str = "", crop: str = ":,:", fields: str = "", members: str = ":") -> Selection:
    """Return the selection that the texts name; empty `frames` or `fields` name all of them.

    Raises UsageError or DataError if the output has no frames, its fields or times cannot be read, or a text selects
    nothing.
    """
    saved, corners = fields_of(stack), crop.split(",")
    if not set(saved) <= set(stack.fields):
        found = ", ".join(stack.fields)
        raise UsageError(f"{stack.path}: expected the fields {', '.join(saved)}, found {found}; see 'gsio verify'")
    chosen = tuple(name for name in saved if name in fields.split(",")) if fields else saved
    if fields and set(fields.split(",")) != set(chosen):
        raise UsageError(f"--fields: expected some of {', '.join(saved)}, got '{fields}'")
    if len(corners) != 2:
        raise UsageError(f"--crop: expected TOP:BOTTOM,LEFT:RIGHT, got '{crop}'")
    for name in ("time", "step", "integrity/crc32c"):
        if (recorded := len(stack.series(name))) != stack.frames:
            raise DataError(
                f"{stack.path}: {name}: expected {stack.frames} values, found {recorded}; see 'gsio verify'"
            )
    if not stack.frames:
        raise DataError(f"{stack.path}: expected committed frames, found none; try again when the run has saved some")
    rows, cols = stack.fields[saved[0]].shape[-2:]
    batch = parse_range("--members", "START:STOP:STEP", members, stack.config.model.members)
    return Selection(
        stack,
        _config_of(stack.config, chosen, batch),
        chosen,
        parse_range("--frames", "START:STOP:STEP", frames or ":", stack.frames),
        batch,
        parse_range("--crop", "TOP:BOTTOM", corners[0], rows),
        parse_range("--crop", "LEFT:RIGHT", corners[1], cols),
    )


def _config_of(config: Config, fields: tuple[str, ...], members: range) -> Config:
    """Return the configuration of a run that saves only these fields and members."""

    def of_members(values: Any) -> Any:
        if not isinstance(values, tuple):
            return values
        kept = values[slice_of(members)]
        return kept if len(kept) > 1 else kept[0]

    model = replace(config.model, feed=of_members(config.model.feed), kill=of_members(config.model.kill))
    return replace(config, model=model, output=replace(config.output, fields=",".join(fields)))


def parse_range(option: str, form: str, text: str, size: int) -> range:
    """Return the indices below `size` that `text` selects; raise UsageError if it selects none, or one out of range.

    If `form` is START:STOP:STEP, a single number selects one index, -1 the last.
    """
    parts = text.split(":")
    try:
        bounds = [int(bound) if bound else None for bound in parts]
    except ValueError:
        bounds = []
    start, stop, step = (*bounds, None, None, None)[:3]
    if len(bounds) == 1 and form.count(":") == 2 and start is not None and -size <= start < size:
        return range(size)[start % size : start % size + 1]
    inside = all(bound is None or -size <= bound <= size for bound in (start, stop))
    if 2 <= len(bounds) <= form.count(":") + 1 and inside and (step is None or step > 0):
        found = range(size)[start:stop:step]
        if found:
            return found
    raise UsageError(f"{option}: expected {form} that selects some of 0:{size}, got '{text}'")


def slice_of(kept: range) -> slice:
    """Return a range as a slice of the same indices."""
    return slice(kept.start, kept.stop, kept.step)
