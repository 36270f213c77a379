"""The survey of an output that a kill, a full disk or a power cut may have damaged: which of its frames are sound.

A reader of a torn HDF5 file can hang or crash, so a process of its own reads the output, with a deadline.
"""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gsio.errors import DataError, GsioError
from gsio.frames.metadata import DAMAGED
from gsio.processes import end_with_parent, python_module, with_parent
from gsio.reader import Stack, open_stack
from gsio.reader.verify import check_frames
from gsio.writer.journal import Records, journal_of, read_journal

DEADLINE = 120.0  # seconds without a sign of the process that reads frames


class Survey(NamedTuple):
    """What a process of its own found in an output.

    Attributes
    ----------
    wrong
        Why the output cannot be used as it is, in a line; "" if it can.
    frames
        Committed frames. A kill can leave empty frames behind them, which do not count.
    damaged
        Committed frames that cannot be decoded, or do not match their checksum.
    output_id
        The identity of the output; "" if the output cannot be read.
    behind
        What is wrong with the empty frames behind the committed ones, in a line; "" if none are empty. A resumed run
        cuts them, but a reader meets them.
    """

    wrong: str
    frames: int
    damaged: list[int]
    output_id: str
    behind: str = ""


def survey(output: Path, start: int = 0) -> Survey:
    """Read an output and its frames from `start` on, at least the last one, in a process of its own."""
    command = python_module("gsio.run.survey", str(output), str(start))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=with_parent()) as reader:
        assert reader.stdout is not None and reader.stderr is not None
        said, started = b"", False
        while select.select([reader.stdout], [], [], DEADLINE)[0]:
            if not (more := os.read(reader.stdout.fileno(), 1 << 16)):
                break
            said, started = (said + more).lstrip(b"."), True
        else:
            reader.kill()
            return Survey(f"reading takes longer than {DEADLINE:g} s", 0, [], "")
        errors = reader.stderr.read().decode(errors="replace").strip().splitlines()
    if not started:
        raise GsioError(f"the process that looks at '{output}' did not start: {(errors or ['it said nothing'])[-1]}")
    if reader.returncode < 0:
        return Survey(f"its reader died of {signal.Signals(-reader.returncode).name}", 0, [], "")
    if reader.returncode:
        return Survey((errors or [f"its reader ended with {reader.returncode}"])[-1], 0, [], "")
    return Survey(**json.loads(said))


def _look(output: Path, start: int, advance: Callable[[int], object]) -> Survey:
    """Survey an output in this process, and call `advance` with the number of frames read."""
    try:
        with open_stack(output) as stack:
            output_id = stack.attributes.get("output_id", "")
            records = None
            with suppress(DataError):  # a damaged or foreign journal says nothing about the output
                records = own_journal(output, output_id)
            known = len(records.frames) if records is not None else 0
            # Zarr's arrays grow once a second: they can lack committed frames whose chunks exist.
            frames = max(stack.frames, known) if output.is_dir() else stack.frames
            if frames < known:
                return Survey(f"expected at least {known} frames, found {frames}", frames, [], output_id)
            checksums = joined_series(records, stack, "integrity/crc32c", frames)
            marked = set(np.atleast_1d(stack.attributes.get(DAMAGED, ())).tolist())
            reasons: dict[int, str] = {}
            for held, why in check_frames(stack, range(max(0, min(start, frames - 1)), frames), checksums, advance):
                reasons |= {frame: why for frame in held if frame not in marked}
            while frames > known and frames - 1 in reasons:
                frames -= 1
            damaged = [frame for frame in reasons if frame < frames]
            wrong = _wrong_series(stack, records) or _chunks_behind(stack, frames)
            if damaged and not wrong:
                wrong = f"frame {damaged[0]}: {reasons[damaged[0]]}"
            behind = f"frame {frames}, behind the committed ones: {reasons[frames]}" if frames < stack.frames else ""
            return Survey(wrong, frames, damaged, output_id, behind)
    except DataError as error:
        return Survey(str(error), 0, [], "")


def _wrong_series(stack: Stack, records: Records | None) -> str:
    """Return, in a line, which series lacks values, or has others than the journal; "" if all are right."""
    for name in stack.recorded:
        found = stack.series(name)
        if len(found) != stack.frames:
            return f"{name}: expected {stack.frames} values, found {len(found)}"
        if records is not None and (found[: len(records.frames)] != records.frames[name][: len(found)]).any():
            return f"{name}: expected the values that its journal knows, found others"
    return ""


def _chunks_behind(stack: Stack, frames: int) -> str:
    """Return, in a line, which chunk of HDF5 lies behind the first `frames` frames; "" if none does.

    A kill during a flush leaves such a chunk. Its place can be beyond the end that the file records: a resumed run
    would use this place for something else too, or could not write there.
    """
    found = ""

    def look(chunk: Any) -> None:
        nonlocal found
        if chunk.chunk_offset[0] >= frames:
            found = f"frame {chunk.chunk_offset[0]}: expected no chunk behind the {frames} committed frames, found one"

    try:
        for name in stack.fields if not stack.path.is_dir() else ():
            stack.root[name].id.chunk_iter(look)
    except (OSError, RuntimeError) as error:
        return str(error)
    return found


def own_journal(output: Path, output_id: str) -> Records | None:
    """Return the records of the journal if they belong to the output with this identity, or else None.

    Raises DataError if the journal is damaged, or holds frames of another output.
    """
    records = read_journal(output)
    if records is None or not output_id or records.attributes.get("output_id") == output_id:
        return records
    if len(records.frames):
        raise DataError(
            f"'{journal_of(output)}' belongs to another output than '{output}'; nothing was changed: move it away"
        )
    return None  # a run left this journal that ended before it had replaced the output


def joined_series(records: Records | None, stack: Stack | None, name: str, frames: int) -> NDArray[Any]:
    """Return a series of the first `frames` frames: the journal has the first values, the output the others."""
    values = [] if records is None else [records.frames[name][:frames]]
    if stack is not None:
        values.append(stack.series(name)[sum(map(len, values)) : frames])
    return np.concatenate(values)


if __name__ == "__main__":
    end_with_parent()

    def _sign(frames: int) -> None:
        print(".", end="", flush=True)  # noqa: T201 - for the process that asked

    _sign(0)
    print(json.dumps(_look(Path(sys.argv[1]), int(sys.argv[2]), _sign)._asdict()))  # noqa: T201
