"""Wrecks, which a kill, a full disk or a power cut left: whether they are sound, and the frames that can be saved.

A reader of a torn HDF5 file can hang or crash: a process of its own, with a deadline, looks at a wreck. A wreck is
rebuilt from its journal, which says where each chunk is, without HDF5, and from the frames that HDF5 or Zarr can read.
"""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gsio.codec import CODECS, decode
from gsio.codec.checksum import frame_checksum
from gsio.config import Config
from gsio.errors import DataError, GsioError, StorageError, UsageError, reason_of
from gsio.files import publish, remove, remove_temporaries, sync_folder, temporary_beside
from gsio.frames.block import Block
from gsio.frames.layout import STATISTICS, BlockLayout
from gsio.frames.metadata import DAMAGED, OF_ARRAYS, frame_series
from gsio.inputs import open_regular
from gsio.processes import end_with_parent, python_module, with_parent
from gsio.reader import Stack, open_stack
from gsio.reader.frames import encoded_in_folder, most_encoded
from gsio.reader.verify import check_frames
from gsio.run.plan import layout_of
from gsio.writer.journal import Journal, Records, journal_of, read_journal
from gsio.writer.session import new_output

DEADLINE = 120.0  # seconds without a sign of a process that reads frames

Values = list[NDArray[Any]]  # of each field, [frame, …]


class Survey(NamedTuple):
    """What a process of its own found in an output.

    Attributes
    ----------
    wrong
        Why the output cannot be used as it is, in a line; "" if it can.
    frames
        Committed frames. A kill can leave empty ones behind them, which do not count.
    damaged
        Committed frames that cannot be decoded, or do not match their checksum.
    output_id
        The identity of the output; "" where it cannot be read.
    behind
        What is wrong with the empty frames behind the committed ones, in a line; "" if there are none. A run that goes
        on cuts them, but a reader meets them.
    """

    wrong: str
    frames: int
    damaged: list[int]
    output_id: str
    behind: str = ""


def survey(output: Path, start: int = 0) -> Survey:
    """Look at an output, and at its frames from `start` on, the last one at least."""
    command = python_module("gsio.run.repair", str(output), str(start))
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
    """Do what `survey` says, in this process."""
    try:
        with open_stack(output) as stack:
            output_id = stack.attributes.get("output_id", "")
            records = None
            with suppress(DataError):  # a damaged or foreign journal says nothing of the output
                records = own_journal(output, output_id)
            known = len(records.frames) if records is not None else 0
            # The arrays of Zarr grow once a second: chunks of committed frames can lie behind them.
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
    """Return which series does not have a value for each frame, or the values that the journal knows; "" if none."""
    for name in stack.recorded:
        found = stack.series(name)
        if len(found) != stack.frames:
            return f"{name}: expected {stack.frames} values, found {len(found)}"
        if records is not None and (found[: len(records.frames)] != records.frames[name][: len(found)]).any():
            return f"{name}: expected the values that its journal knows, found others"
    return ""


def _chunks_behind(stack: Stack, frames: int) -> str:
    """Return which chunk of HDF5 lies behind so many frames, in a line; "" if none does.

    A kill in the middle of a flush leaves it. Its place can be beyond what the file says is in use: a run that goes on
    would use that for something else too, or could not write there.
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
    """Return the journal of the output of that identity, or None if there is none.

    Raises DataError if the journal is damaged, or holds frames of another output.
    """
    records = read_journal(output)
    if records is None or not output_id or records.attributes.get("output_id") == output_id:
        return records
    if len(records.frames):
        raise DataError(
            f"'{journal_of(output)}' belongs to another output than '{output}'; nothing was changed: move it away"
        )
    return None  # of a run that ended before it had replaced this output


def repair(output: Path) -> str:
    """Rebuild an output if it needs to be, and say in a line which frames were saved, and where the wreck is.

    Raises UsageError if a run is writing it, DataError if there is nothing to rebuild it from, and StorageError where
    storage fails.
    """
    if not os.path.lexists(output):
        raise UsageError(f"'{output}' does not exist; expected an output of 'gsio run'")
    output = output.resolve() if output.is_symlink() else output  # its journal lies beside the file itself
    with Journal(output) as journal:
        found = survey(output)
        wrong = found.wrong or found.behind
        try:
            read_journal(output)
        except DataError as error:
            if not found.output_id:
                raise
            shutil.copyfile(journal.path, _new_name(journal.path))
            journal.clear()
            wrong = wrong or str(error)
        own_journal(output, found.output_id)
        return f"{output}: {wrong}; {rebuild(output, journal, found)}" if wrong else f"{output}: nothing to repair"


def rebuild(output: Path, journal: Journal, found: Survey, *, keep: bool = True) -> str:
    """Replace an output by one with all frames that can be decoded, up to the last whole one, and say so in a line.

    `found` is the result of a survey. The attribute `DAMAGED` names the damaged frames before that one. The output as
    it was stays, under another name, and so does its journal, which can place frames that nothing else can. Where
    `keep` is False and every frame was saved, neither stays.

    Raises DataError if no frame can be saved, and StorageError where storage fails.
    """
    with ExitStack() as opened:
        # What a process of its own could read, this one can.
        stack = opened.enter_context(open_stack(output)) if found.output_id else None
        records = own_journal(output, found.output_id)
        wreck = Wreck(output, stack, records, found)
        target, before = temporary_beside(output, output.suffix), output.lstat()
        try:
            damaged = wreck.write(target)
            aside = _new_name(output)
            _exchange(output, target, aside, before, journal)
            journal.adopt(journal_of(target))  # later: without it the new output is whole, the old one lost
            sync_folder(output.parent)
        except BaseException as error:
            remove_temporaries(output)
            if isinstance(error, (OSError, RuntimeError)):  # h5py raises either
                raise StorageError(
                    f"storage failed: {reason_of(error)}; '{output}' and its journal are as they were; "
                    "make space, then repair or --resume it"
                ) from error
            raise
    lost = f", of which damaged: {_ranges(damaged)}" if damaged else ""
    said = f"rebuilt with {wreck.saved} of {wreck.frames} frames{lost}"
    if not keep and not damaged and wreck.saved == wreck.frames:
        remove(aside)
        journal_of(aside).unlink(missing_ok=True)
        return said
    return f"{said}; the output as it was is '{aside}'"


def _exchange(output: Path, new: Path, aside: Path, before: os.stat_result, journal: Journal) -> None:
    """Give `new` the name of the `output` that was `before`, and that one the name `aside`, with a copy of its journal.

    What is new gets the name `aside` first, so that the wreck never has a temporary one, under which it would be
    deleted after a kill.
    """
    made = new.lstat()
    try:
        if journal.path.stat().st_size:
            shutil.copyfile(journal.path, journal_of(aside))
        publish("PATH", new, aside)
        publish("PATH", aside, output, replaces=lambda path: os.path.samestat(path.lstat(), before), keep=aside)
    except BaseException:
        if os.path.lexists(aside) and os.path.samestat(aside.lstat(), made):
            aside.rename(new)
        journal_of(aside).unlink(missing_ok=True)
        raise


class Wreck:
    """The frames of an output, from its journal and from what HDF5 or Zarr can read of it.

    Attributes
    ----------
    frames, saved
        Frames that are known, and those up to the last whole one, which `write` writes.
    """

    def __init__(self, output: Path, stack: Stack | None, records: Records | None, found: Survey) -> None:
        if stack is None and records is None:
            raise DataError(f"{output} cannot be read ({found.wrong}), and there is no '{journal_of(output).name}'")
        self._output, self._stack, self._records = output, stack, records
        if records is not None:
            self._attributes, per_chunk = records.attributes, records.frames_per_chunk
        else:
            assert stack is not None
            kept = {
                name: value for name, value in stack.attributes.items() if name not in ("status", "ended", *OF_ARRAYS)
            }
            self._attributes, per_chunk = kept, next(iter(stack.fields.values())).frames_per_chunk
        self._attributes.pop(DAMAGED, None)
        self._config = Config.from_toml(self._attributes["config"])
        if (compression := self._config.output.compression) not in CODECS:
            raise DataError(f"{output}: expected the compression {', '.join(CODECS)}, found {compression}")
        self._layout = layout_of(self._config, frames_per_chunk=per_chunk)
        known = len(records.frames) if records is not None else 0
        self.frames = max(known, found.frames)
        self.saved = 0
        names = list(frame_series(self._config, self._layout, []))
        self._series = {name: joined_series(records, stack, name, self.frames) for name in names}

    def write(self, target: Path) -> list[int]:
        """Write the frames up to the last whole one to a new output, and return which of these are damaged."""
        # One commit holds the frames of one chunk or shard: they are stored, or lost, together.
        chunks = self._layout.chunks
        layout = BlockLayout(chunks, chunks.frames_together, chunks.frames_together)
        blocks = [(first, *self._block(layout, first)[1:]) for first in range(0, self.frames, layout.frames_per_block)]
        damaged = [frame for _, of_block in blocks for frame in of_block]
        self.saved = self.frames
        while self.saved and self.saved - 1 in damaged[-1:]:
            self.saved = damaged.pop()
        if self.frames and not self.saved:
            raise DataError(
                f"{self._output}: none of the {self.frames} frames that are known can be decoded; nothing was changed: "
                "is the journal that of another output?"
            )
        attributes = self._attributes | ({DAMAGED: damaged} if damaged else {})
        known = self._series["integrity/crc32c"]
        with new_output(
            target, self._config, layout, attributes, "stopped", checksums=known, keep_journal=True
        ) as append:
            for first in range(0, self.saved, layout.frames_per_block):
                block, _ = self._block(layout, first)
                block.count = min(block.count, self.saved - first)
                append(block)
        return damaged

    def _block(self, layout: BlockLayout, first: int) -> tuple[Block, list[int]]:
        """Return the frames from `first` on that share a block, and which of them are damaged."""
        block = Block(layout, np.zeros(layout.block_nbytes, np.uint8))
        block.first, block.count = first, min(layout.frames_per_block, self.frames - first)
        damaged = []
        missing = np.full(layout.frame.shape, np.nan if layout.frame.dtype.kind == "f" else 0, layout.frame.dtype)
        per_chunk = layout.chunks.frames_per_chunk
        for number in range(first // per_chunk, -(-(first + block.count) // per_chunk)):
            frames = range(number * per_chunk, (number + 1) * per_chunk)
            frames = range(frames.start, min(frames.stop, self.frames))
            values, whole = self._best(number, frames)
            for place, frame in enumerate(frames):
                for field in range(len(layout.frame.fields)):
                    block.put(frame - first, field, values[field][place] if values else missing)
                if not whole[place]:
                    damaged.append(frame)
        for field, name in enumerate(layout.frame.fields):
            for statistic, word in enumerate(STATISTICS):
                if (series := self._series.get(f"stats/{name}_{word}")) is not None:
                    block.statistics[: block.count, field, statistic] = series[first : first + block.count]
        return block, damaged

    def _best(self, number: int, frames: range) -> tuple[Values | None, list[bool]]:
        """Return the values of a chunk from where most of its frames match their checksums, and which do."""
        best: tuple[Values | None, list[bool]] = None, [False] * len(frames)
        for values in self._sources(number, frames):
            whole = [
                frame_checksum([plane[place] for plane in values], self._layout.frame.shuffle)
                == self._series["integrity/crc32c"][frame]
                for place, frame in enumerate(frames)
            ]
            if best[0] is None or sum(whole) > sum(best[1]):
                best = values, whole
            if all(whole):
                break
        return best

    def _sources(self, number: int, frames: range) -> Iterator[Values]:
        """Yield the values of a chunk as the journal places them, then as the output reads."""
        frame, chunks, records = self._layout.frame, self._layout.chunks, self._records
        if records is not None and frames.start < len(records.frames):
            places = records.frames["places"][frames.start]
            encoded = [[self._encoded(number, field, slab, *places[field, slab].tolist())
                        for slab in range(chunks.slabs)] for field in range(len(frame.fields))]  # fmt: skip
            codec = CODECS[self._config.output.compression]
            with suppress(ValueError):
                yield [
                    np.concatenate([
                        decode(codec, chunk, frame.dtype, chunks.chunk_nbytes).reshape(chunks.chunk_shape)
                        for chunk in slabs
                    ], axis=1)[:, : frame.shape[0]]
                    for slabs in encoded
                ]  # fmt: skip
        if self._stack is not None and frames.stop <= self._stack.frames:
            with suppress(OSError, ValueError):
                yield [self._stack.fields[name].chunk(number) for name in frame.fields]

    def _encoded(self, number: int, field: int, slab: int, offset: int, nbytes: int) -> bytes:
        """Return a chunk as it is stored, or b"" if it cannot be read."""
        layout = self._layout
        most = most_encoded(layout.chunks.chunk_nbytes)
        try:
            if self._output.is_dir():
                together = layout.chunks.frames_per_shard // layout.chunks.frames_per_chunk
                folder = self._output / layout.frame.fields[field]
                return encoded_in_folder(folder, number, slab, len(layout.frame.shape) - 1, together, most)
            with open_regular(self._output) as file:
                return os.pread(file.fileno(), min(nbytes, most), offset)
        except (OSError, ValueError, OverflowError):
            return b""


def joined_series(records: Records | None, stack: Stack | None, name: str, frames: int) -> NDArray[Any]:
    """Return what is recorded of the first `frames` frames: in the journal, and in the output behind these."""
    parts = [] if records is None else [records.frames[name][:frames]]
    if stack is not None:
        parts.append(stack.series(name)[sum(map(len, parts)) : frames])
    return np.concatenate(parts)


def _ranges(numbers: list[int]) -> str:
    """Return ascending numbers in a short form, as in 3, 7-9."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _new_name(output: Path) -> Path:
    """Return a name beside `output` that nothing has, for the output as it was."""
    for number in range(1, sys.maxsize):
        path = output.with_name(f"{output.stem}.damaged-{number}{output.suffix}")
        if not os.path.lexists(path) and not os.path.lexists(journal_of(path)):
            return path
    raise AssertionError


if __name__ == "__main__":
    end_with_parent()

    def _sign(frames: int) -> None:
        print(".", end="", flush=True)  # noqa: T201 - for the process that asked

    _sign(0)
    print(json.dumps(_look(Path(sys.argv[1]), int(sys.argv[2]), _sign)._asdict()))  # noqa: T201
