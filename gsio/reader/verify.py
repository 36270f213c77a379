"""Is an output intact? Every chunk is decoded, and every frame compared with what was recorded of it."""

import itertools
import time
from collections.abc import Callable, Collection, Iterator

import numpy as np
from numpy.typing import NDArray

from gsio.codec import CODECS
from gsio.codec.checksum import frame_checksum
from gsio.errors import DataError
from gsio.frames.metadata import damaged_frames, frame_steps
from gsio.model.gray_scott import values_outside
from gsio.reader import Stack, open_stack
from gsio.reader.frames import decoding_threads

LOOKS, LOOK_SECONDS = 5, 0.1  # at a file that is being written, and between two of them so much more each time
WHOLE = -1  # in place of the number of a chunk: the output as a whole


def problems(
    stack: Stack, advance: Callable[[int], object] = lambda frames: None, *, is_written: bool = False
) -> Iterator[str]:
    """Yield what is wrong with the committed frames, each in one line; nothing if all is well.

    `advance` is told of each few frames that were checked. Where a run is writing the output (`is_written`), what seems
    wrong is looked at again in a file that is opened anew, for which `stack` is closed: a reader can meet HDF5 in the
    middle of a flush.
    """
    if not is_written:
        for _, wrong in _looked_at(stack, None, advance):
            yield from wrong
        return
    found = dict(_looked_at(stack, None, advance))
    stack.close()
    for look in range(1, LOOKS):
        if not found:
            return
        time.sleep(LOOK_SECONDS * look)
        try:
            with open_stack(stack.path, stack.frames) as anew:
                anew.attributes = stack.attributes  # the run can have ended meanwhile
                found = dict(_looked_at(anew, found.keys()))
        except (DataError, OSError, RuntimeError, LookupError, ValueError):  # in the middle again
            continue
    for wrong in found.values():
        yield from wrong


def _looked_at(
    stack: Stack, chunks: Collection[int] | None, advance: Callable[[int], object] = lambda frames: None
) -> Iterator[tuple[int, list[str]]]:
    """Yield what is wrong with some chunks of frames, or with all, by number; -1 is the output as a whole."""
    if chunks is None or WHOLE in chunks:
        try:
            # The configuration of an export is that of the whole run.
            whole = stack.is_of_run and "selection" not in stack.attributes
            wrong = list(_unexpected(stack)) if whole else []
            wrong += _short_series(stack)
        except (OSError, RuntimeError, LookupError) as error:
            wrong = [str(error)]
        if wrong:
            yield WHOLE, wrong
    wrong_frames = check_frames(stack, range(stack.frames), stack.series("integrity/crc32c"), advance, chunks)
    per_chunk = next(iter(stack.fields.values())).frames_per_chunk
    for number, found in itertools.groupby(
        wrong_frames, key=lambda frames_and_why: frames_and_why[0].start // per_chunk
    ):
        yield number, [_in_a_line(*frames_and_why) for frames_and_why in found]


def _in_a_line(frames: range, why: str) -> str:
    first, last = frames.start, frames.stop - 1
    return f"frames {first} to {last}: {why}" if last > first else f"frame {first}: {why}"


def outside(stack: Stack) -> str:
    """Return what leaves 0 to 1 in the first frame where something does, by the stored statistics; "" if nothing does.

    Such frames are what was computed: they are no problem of the file. Only a run of Gray-Scott has such bounds.
    """
    fields = [name for name in stack.fields if stack.is_of_run and f"{name}_max" in stack.root.get("stats", ())]
    ranges = [[stack.series(f"stats/{name}_{word}")[: stack.frames] for name in fields] for word in ("min", "max")]
    lengths = {len(series) for words in ranges for series in words}
    if len(lengths) != 1:  # no statistics, or those of a damaged file
        return ""
    least, largest = (np.stack(words, axis=1) for words in ranges)
    return values_outside(least, largest, fields)


def _unexpected(stack: Stack) -> Iterator[str]:
    """Yield where the frames of a run are not those of its configuration."""
    config, frames = stack.config, stack.frames
    status = stack.attributes["status"]
    if status == "complete" and frames != config.run.frames:
        yield f"expected {config.run.frames} frames of a complete run, found {frames}"
    steps = frame_steps(config, 0, frames)
    for name, right in (("step", steps), ("time", steps * config.model.dt)):
        found = stack.series(name)
        if len(found) == frames and len(wrong := np.flatnonzero(found != right)):
            yield f"{name}: expected {right[wrong[0]]} at frame {wrong[0]}, found {found[wrong[0]]}"


def _short_series(stack: Stack) -> Iterator[str]:
    for name in stack.recorded:
        if (found := len(stack.series(name))) != stack.frames:
            yield f"{name}: expected {stack.frames} values, found {found}"


def check_frames(
    stack: Stack,
    frames: range,
    checksums: NDArray[np.uint32],
    advance: Callable[[int], object] = lambda frames: None,
    chunks: Collection[int] | None = None,
) -> Iterator[tuple[range, str]]:
    """Yield, in order, which of the chunks that hold `frames` are wrong, and why.

    `checksums`, [frame], are those that the frames of the output have to have, from frame 0 on. If `chunks` is given,
    only those of these numbers are looked at.
    """
    fields = list(stack.fields.values())
    per_chunk, byte_planes = fields[0].frames_per_chunk, CODECS[stack.content.compression].byte_planes
    repaired = set(damaged_frames(stack.attributes))

    def check(number: int) -> list[tuple[range, str]]:
        held = range(number * per_chunk, min((number + 1) * per_chunk, max(stack.frames, len(checksums))))
        try:
            chunks = [field.chunk(number) for field in fields]
        except (OSError, ValueError, LookupError) as error:
            return [(held, str(error))]
        wrong = []
        for frame in held:
            planes = [chunk[frame - held.start] for chunk in chunks]
            found = frame_checksum(planes, byte_planes)
            if frame in repaired:
                why = "'gsio repair' found this frame damaged; its values are missing"
            elif frame < len(checksums) and found != checksums[frame]:
                why = f"expected the checksum {checksums[frame]:08x}, found {found:08x}"
            elif stack.is_of_run and not all(np.isfinite(plane).all() for plane in planes):
                why = "expected finite values, found others"
            else:
                continue
            wrong.append((range(frame, frame + 1), why))
        return wrong

    wanted = [
        number for number in range(frames.start // per_chunk, -(-frames.stop // per_chunk))
        if chunks is None or number in chunks
    ]  # fmt: skip
    with decoding_threads(fields) as each:
        for wrong in each(check, wanted):
            yield from wrong
            advance(per_chunk)
