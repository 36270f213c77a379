"""Is an output intact? Every chunk is decoded, and every frame compared with what was recorded of it."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from crc32c import crc32c
from numcodecs import Shuffle
from numpy.typing import NDArray

from gsio.config import usable_cores
from gsio.limits import available_memory
from gsio.reader import Stack
from gsio.writer.metadata import DAMAGED, frame_steps


def problems(stack: Stack, advance: Callable[[int], object] = lambda frames: None) -> Iterator[str]:
    """Yield what is wrong with the committed frames, each in one line; nothing if all is well.

    `advance` is told of each few frames that were checked.
    """
    if "selection" not in stack.attributes:  # else the configuration is that of the whole run
        yield from _unexpected(stack)
    yield from damaged_frames(stack, 0, stack.frames, advance)


def _unexpected(stack: Stack) -> Iterator[str]:
    """Yield where the frames are not those of the configuration."""
    config, frames = stack.config, stack.frames
    status = stack.attributes["status"]
    if status == "complete" and frames != config.run.frames:
        yield f"expected {config.run.frames} frames of a complete run, found {frames}"
    grid, members = (config.grid.rows, config.grid.cols), config.model.members
    expected = (frames, *((members,) if members > 1 else ()), *grid)
    for name in config.output.fields.split(","):
        if name not in stack.fields:
            yield f"{name}: expected this field, found {', '.join(stack.fields)}"
        elif stack.fields[name].shape != expected:
            yield f"{name}: expected the shape {expected}, found {stack.fields[name].shape}"
    steps = frame_steps(config, 0, frames)
    for name, right in (("step", steps), ("time", steps * config.model.dt)):
        found = stack.series(name)
        if len(found) == frames and len(wrong := np.flatnonzero(found != right)):
            yield f"{name}: expected {right[wrong[0]]} at frame {wrong[0]}, found {found[wrong[0]]}"


def damaged_frames(
    stack: Stack, start: int, stop: int, advance: Callable[[int], object] = lambda frames: None
) -> Iterator[str]:
    """Yield which series are short, and what is wrong with the chunks that hold the frames [start, stop)."""
    for name in stack.recorded:
        if (found := len(stack.series(name))) != stack.frames:
            yield f"{name}: expected {stack.frames} values, found {found}"
    for frames, wrong in check_frames(stack, range(start, stop), stack.series("integrity/crc32c"), advance):
        first, last = frames.start, frames.stop - 1
        yield f"frames {first} to {last}: {wrong}" if last > first else f"frame {first}: {wrong}"


def check_frames(
    stack: Stack,
    frames: range,
    checksums: NDArray[np.uint32],
    advance: Callable[[int], object] = lambda frames: None,
) -> Iterator[tuple[range, str]]:
    """Yield, in order, which of the chunks that hold `frames` are wrong, and why.

    `checksums`, [frame], are those that the frames of the output have to have, from frame 0 on.
    """
    fields = [stack.fields[name] for name in stack.config.output.fields.split(",") if name in stack.fields]
    if not fields:
        return
    per_chunk, shuffled = fields[0].frames_per_chunk, fields[0].codec == "deflate"
    repaired = set(np.atleast_1d(stack.attributes.get(DAMAGED, ())).tolist())

    def check(number: int) -> list[tuple[range, str]]:
        held = range(number * per_chunk, min((number + 1) * per_chunk, max(stack.frames, len(checksums))))
        try:
            chunks = [field.chunk(number) for field in fields]
        except (OSError, ValueError, LookupError) as error:
            return [(held, str(error))]
        wrong = []
        for frame in held:
            planes = [chunk[frame - held.start] for chunk in chunks]
            found = frame_checksum(planes, shuffled)
            if frame in repaired:
                why = "'gsio repair' found this frame damaged; its values are missing"
            elif frame < len(checksums) and found != checksums[frame]:
                why = f"expected the checksum {checksums[frame]:08x}, found {found:08x}"
            elif not all(np.isfinite(plane).all() for plane in planes):
                why = "expected finite values, found others"
            else:
                continue
            wrong.append((range(frame, frame + 1), why))
        return wrong

    in_memory = 4 * per_chunk * sum(np.prod(field.shape[1:]) * field.dtype.itemsize for field in fields)
    at_once = max(1, min(usable_cores(), int(available_memory() // in_memory)))
    with ThreadPoolExecutor(at_once) as threads:
        for wrong in threads.map(check, range(frames.start // per_chunk, -(-frames.stop // per_chunk))):
            yield from wrong
            advance(per_chunk)


def frame_checksum(planes: Sequence[NDArray[Any]], shuffled: bool) -> int:
    """Return the crc32c of a frame, of its fields as they are stored, from the bytes as they were staged."""
    checksum = 0
    for plane in map(np.ascontiguousarray, planes):
        checksum = crc32c(Shuffle(plane.itemsize).encode(plane) if shuffled else plane.data, checksum)
    return checksum
