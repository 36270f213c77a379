"""The frames, rows and columns of an output that an export takes."""

import dataclasses
import secrets
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from gsio.config import Config
from gsio.errors import DataError, StorageError, UsageError
from gsio.frames.metadata import DAMAGED, OF_ARRAYS
from gsio.inputs import portable
from gsio.machine import free_space
from gsio.reader import Stack
from gsio.writer.ome import contrast
from gsio.writer.provenance import history_line

SPARE_BYTES = 16 << 20  # these stay free: HDF5 must never meet a full disk
Frame = list[NDArray[Any]]  # one array of `Selection.shape` for each field


@dataclasses.dataclass(frozen=True)
class Selection:
    """The part of an output that is exported; the ranges count the frames, rows and columns of `stack`."""

    stack: Stack
    config: Config  # that of the run, except for the compression of the export
    frames: range
    rows: range
    cols: range

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """Return the saved fields, in the order of their checksums."""
        return tuple(self.config.output.fields.split(","))

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of a frame, [(member,) row, col]."""
        return (*self.stack.fields[self.fields[0]].shape[1:-2], len(self.rows), len(self.cols))

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

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """Return the provenance of the run, with this export in its history, and the selection."""
        known = self.stack.attributes
        kept = portable({name: known[name] for name in known if name not in ("status", "ended", DAMAGED, *OF_ARRAYS)})
        kept["output_id"] = secrets.token_hex(16)
        kept |= {"history": f"{kept['history']}\n{history_line()}", "config": self.config.to_toml()}
        if (len(self.frames), *self.shape) != self.stack.fields[self.fields[0]].shape:
            places = {"frames": self.frames, "rows": self.rows, "columns": self.cols}
            chosen = ", ".join(f"{name} {place.start}:{place.stop}:{place.step}" for name, place in places.items())
            kept["selection"] = f"{kept['selection']}; then {chosen}" if "selection" in kept else chosen
        return kept

    def limits(self, name: str) -> tuple[float, float]:
        """Return the limits of the contrast of a field in the frames."""
        low, high = (self.stack.series(f"stats/{name}_{word}")[slice_of(self.frames)] for word in ("min", "max"))
        return contrast(float(low.min()), float(high.max()))

    def read(self, folder: Path, advance: Callable[[int], object]) -> Iterator[Frame]:
        """Yield the frames; raise StorageError if the disk of `folder` has no room for the next."""
        crop = (..., slice_of(self.rows), slice_of(self.cols))
        for number in self.frames:
            try:
                frame = [self.stack.fields[name][number, *crop] for name in self.fields]
            except (OSError, ValueError, LookupError) as error:
                raise DataError(f"{self.stack.path}: frame {number}: {error}; see 'gsio verify'") from None
            free = free_space(folder)
            if free < sum(plane.nbytes for plane in frame) + SPARE_BYTES:
                raise StorageError(f"'{folder}' is full: {free >> 20} MiB are left; make space; nothing was exported")
            yield frame
            advance(1)


def select(stack: Stack, frames: str, crop: str) -> Selection:
    """Return the selection that `frames` and `crop` name; raises UsageError or DataError where they cannot be read."""
    config = stack.config
    names, corners = config.output.fields.split(","), crop.split(",")
    if not set(names) <= set(stack.fields):
        found = ", ".join(stack.fields)
        raise UsageError(f"{stack.path}: expected the fields {', '.join(names)}, found {found}; see 'gsio verify'")
    if len(corners) != 2:
        raise UsageError(f"--crop: expected TOP:BOTTOM,LEFT:RIGHT, got '{crop}'")
    for name in ("time", "step", "integrity/crc32c"):
        if (recorded := len(stack.series(name))) != stack.frames:
            raise DataError(
                f"{stack.path}: {name}: expected {stack.frames} values, found {recorded}; see 'gsio verify'"
            )
    chosen = parse_range("--frames", "START:STOP:STEP", frames, stack.frames)
    rows, cols = stack.fields[names[0]].shape[-2:]
    top, left = (
        parse_range("--crop", "TOP:BOTTOM", corners[0], rows),
        parse_range("--crop", "LEFT:RIGHT", corners[1], cols),
    )
    return Selection(stack, config, chosen, top, left)


def parse_range(option: str, form: str, text: str, size: int) -> range:
    """Return the indices below `size` that `text` selects; raise UsageError if it selects none, or one out of range."""
    try:
        bounds = [int(bound) if bound else None for bound in text.split(":")]
    except ValueError:
        bounds = []
    start, stop, step = (*bounds, None, None, None)[:3]
    inside = all(bound is None or -size <= bound <= size for bound in (start, stop))
    if 2 <= len(bounds) <= form.count(":") + 1 and inside and (step is None or step > 0):
        found = range(size)[start:stop:step]
        if found:
            return found
    raise UsageError(f"{option}: expected {form} that selects some of 0:{size}, got '{text}'")


def slice_of(kept: range) -> slice:
    """Return a range as a slice of the same indices."""
    return slice(kept.start, kept.stop, kept.step)
