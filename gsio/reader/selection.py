"""The frames, members, fields, rows and columns of an output that a command takes."""

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from gsio.draw.limits import limits_of
from gsio.errors import DataError, UsageError
from gsio.frames.content import Axis, Content
from gsio.frames.metadata import damaged_frames
from gsio.reader.frames import Frames
from gsio.reader.stack import Stack

Frame = list[NDArray[Any]]  # one array of `Selection.shape` for each field


@dataclasses.dataclass(frozen=True)
class Selection:
    """A part of an output; the ranges count the frames, members, rows and columns of `stack`.

    A frame is seen as `Content.volume` has it: members are the places along the axes before the last two.

    Attributes
    ----------
    content
        The content of an output that holds just this part.
    members
        The members; range(1) for a single grid.
    """

    stack: Stack
    content: Content
    frames: range
    members: range
    rows: range
    cols: range

    @property
    def fields(self) -> tuple[str, ...]:
        """Return the names of the fields, in the order of their checksums."""
        return tuple(self.content.fields)

    @cached_property
    def is_whole_frame(self) -> bool:
        """Return whether each frame is taken as a whole, with all fields, members, rows and columns."""
        whole = self.stack.content
        return (self.fields, self.content.shape) == (tuple(whole.fields), whole.shape)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of a frame, [(member,) row, col]; a single member has no axis of its own."""
        return tuple(axis.size for axis in self.axes)

    @cached_property
    def axes(self) -> tuple[Axis, ...]:
        """Return the axes of a frame of `shape`."""
        members, *plane = self.content.volume
        return (members, *plane) if members.size > 1 else tuple(plane)

    @cached_property
    def times(self) -> NDArray[np.float64]:
        """Return the model time of each frame."""
        return self.stack.series("time")[slice_of(self.frames)]

    @cached_property
    def steps(self) -> NDArray[np.int64]:
        """Return the number of steps behind each frame."""
        return self.stack.series("step")[slice_of(self.frames)]

    @cached_property
    def interval(self) -> float:
        """Return the model time between two frames; 0: unknown."""
        return float(self.times[1] - self.times[0]) if len(self.times) > 1 else self.content.interval

    def limits(self, name: str) -> tuple[float, float]:
        """Return the limits of the contrast of a field: its least and largest finite value in the frames."""
        series = (self.stack.series(f"stats/{name}_{word}")[slice_of(self.frames)] for word in ("min", "max"))
        return limits_of(np.concatenate(list(series)))

    def read(self, number: int) -> Frame:
        """Return frame `number` of the stack, one array for each field; raise DataError if it cannot be read."""
        try:
            return [self._part(self.stack.fields[name][number]) for name in self.fields]
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
        return [[self._part(chunk[number % per_chunk]) for chunk in chunks] for number in frames]

    @cached_property
    def _damaged(self) -> frozenset[int]:
        return frozenset(damaged_frames(self.stack.attributes))

    def _part(self, frame: NDArray[Any]) -> NDArray[Any]:
        """Return the selected part of a whole frame."""
        volume = frame.reshape([axis.size for axis in self.stack.content.volume])
        return volume[slice_of(self.members), slice_of(self.rows), slice_of(self.cols)].reshape(self.shape)


def select(stack: Stack, *, frames: str = "", crop: str = ":,:", fields: str = "", members: str = ":") -> Selection:
    """Return the selection that the texts name; empty `frames` or `fields` name all of them.

    Raises UsageError or DataError if the output has no frames, its fields or times cannot be read, or a text selects
    nothing.
    """
    saved, corners = tuple(stack.fields), crop.split(",")
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
    batch, rows, cols = (axis.size for axis in stack.content.volume)
    part = (
        parse_range("--members", "START:STOP:STEP", members, batch),
        parse_range("--crop", "TOP:BOTTOM", corners[0], rows),
        parse_range("--crop", "LEFT:RIGHT", corners[1], cols),
    )
    taken = parse_range("--frames", "START:STOP:STEP", frames or ":", stack.frames)
    return Selection(stack, _content_of(stack.content, chosen, *part), taken, *part)


def _content_of(content: Content, fields: Sequence[str], members: range, rows: range, cols: range) -> Content:
    """Return the content of an output that holds only these fields, members, rows and columns."""
    before: Sequence[Axis] = content.axes[:-2]
    of_members, *plane = content.volume
    if len(members) < of_members.size:
        before = (of_members.part(members),) if len(members) > 1 else ()
    after = [axis.part(kept) for axis, kept in zip(plane, (rows, cols), strict=True)][-len(content.axes) :]
    return replace(content, fields={name: content.fields[name] for name in fields}, axes=(*before, *after))


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
