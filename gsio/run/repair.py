"""Repair: a damaged output, the wreck, is replaced by a new one that has all frames that can be saved.

The frames come from the journal, which places each chunk without the help of HDF5, and from HDF5 or Zarr, if these can
still read the output.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsio.codec import CODECS, decode
from gsio.codec.checksum import frame_checksum
from gsio.errors import DataError, StorageError, UsageError, reason_of
from gsio.files import publish, remove, remove_temporaries, sync_folder, temporary_beside
from gsio.frames.block import Block, EncodedBlock, FilledBlock
from gsio.frames.content import content_of
from gsio.frames.layout import STATISTICS, BlockLayout
from gsio.frames.metadata import DAMAGED, OF_ARRAYS, frame_series
from gsio.inputs import open_regular
from gsio.reader import Stack, open_stack
from gsio.reader.frames import encoded_in_folder, most_encoded
from gsio.run.plan import content_layout
from gsio.run.survey import Survey, joined_series, own_journal, survey
from gsio.writer.journal import Journal, Records, journal_of, read_journal
from gsio.writer.session import new_output

Values = list[NDArray[Any]]  # for each field, [frame, …]


def repair(output: Path) -> str:
    """Rebuild an output if it is damaged, and say in a line which frames were saved, and where the wreck is.

    Raises UsageError if a run is writing the output, DataError if no frame can be saved, and StorageError if storage
    fails.
    """
    if not os.path.lexists(output):
        raise UsageError(f"'{output}' does not exist; expected an output of 'gsio run'")
    if output.is_symlink():  # its journal lies beside the file itself
        output = Path(os.path.realpath(output))  # `resolve` fails in a loop of links
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

    `found` is the survey of the output. The attribute `DAMAGED` names the damaged frames before the last whole one. The
    wreck stays under another name, with its journal, which can place frames that nothing else can. Both are deleted if
    `keep` is False and every frame was saved.

    Raises DataError if no frame can be saved, and StorageError if storage fails.
    """
    with ExitStack() as opened:
        # The process of the survey has read this output, so this process can.
        stack = opened.enter_context(open_stack(output)) if found.output_id else None
        records = own_journal(output, found.output_id)
        wreck = Wreck(output, stack, records, found)
        target, before = temporary_beside(output, output.suffix), output.lstat()
        try:
            damaged = wreck.write(target)
            aside = _new_name(output)
            _exchange(output, target, aside, before, journal)
            journal.adopt(journal_of(target))  # last: the new output is whole without its journal
            sync_folder(output.parent)
        except BaseException as error:
            remove_temporaries(output)
            if isinstance(error, (OSError, RuntimeError)):  # h5py raises either
                raise StorageError(
                    f"storage failed: {reason_of(error)}; '{output}' and its journal are as they were; "
                    "make space, then repair or resume it"
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
    """Exchange the `output`, whose state was `before`, and `new`; the wreck gets the name `aside`, and a journal.

    The new output gets the name `aside` first, so that the wreck never has a temporary name: after a kill, the next
    run deletes files with such names.
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
    """A damaged output, whose frames its journal, or HDF5 or Zarr, can read.

    Attributes
    ----------
    frames, saved
        Number of known frames, and of frames up to the last whole one, which `write` writes.
    """

    def __init__(self, output: Path, stack: Stack | None, records: Records | None, found: Survey) -> None:
        if stack is None and records is None:
            raise DataError(f"{output} cannot be read ({found.wrong}), and there is no '{journal_of(output).name}'")
        self._output, self._stack, self._records = output, stack, records
        if records is not None:
            self._attributes = records.attributes
            per_chunk, lines = records.frames_per_chunk, records.lines_per_chunk
        else:
            assert stack is not None
            kept = {
                name: value for name, value in stack.attributes.items() if name not in ("status", "ended", *OF_ARRAYS)
            }
            field = next(iter(stack.fields.values()))
            self._attributes, per_chunk, lines = kept, field.frames_per_chunk, field.lines_per_chunk
        self._attributes.pop(DAMAGED, None)
        self._content = stack.content if stack is not None else content_of(self._attributes)
        if (compression := self._content.compression) not in CODECS:
            raise DataError(f"{output}: expected the compression {', '.join(CODECS)}, found {compression}")
        self._layout = content_layout(self._content, frames_per_chunk=per_chunk, lines_per_chunk=lines)
        known = len(records.frames) if records is not None else 0
        self.frames = max(known, found.frames)
        self.saved = 0
        names, parts = list(frame_series(self._layout, [])), (len(self._content.fields), self._layout.chunks.slabs)
        kinds = records.frames.dtype if records is not None else None
        if kinds is not None and not (set(names) <= set(kinds.names or ()) and kinds["places"].shape == parts):
            raise DataError(
                f"'{journal_of(output)}' has records of other frames than its head says; move it away, and repair again"
            )
        self._series = {name: joined_series(records, stack, name, self.frames) for name in names}
        # A kill while an output is cut leaves frames behind the end of the series: nothing says whether they are whole.
        self._told = min(map(len, self._series.values()))

    def write(self, target: Path) -> list[int]:
        """Write the frames up to the last whole one to a new output, and return which of these are damaged."""
        # One commit holds the frames of one chunk or shard: they are stored, or lost, together.
        chunks = self._layout.chunks
        layout = BlockLayout(chunks, chunks.frames_together, chunks.frames_together)
        unsaved = Block(layout, np.zeros(layout.block_nbytes, np.uint8))
        firsts = range(0, self._told, layout.frames_per_block)
        damaged = [frame for first in firsts for frame in self._fill(unsaved, first)]
        self.saved = self._told
        while self.saved and self.saved - 1 in damaged[-1:]:
            self.saved = damaged.pop()
        if self.frames and not self.saved and (self._told or self._records is None):
            raise DataError(
                f"{self._output}: none of the {self.frames} frames that are known can be decoded; nothing was changed: "
                "is the journal that of another output?"
            )
        attributes = self._attributes | ({DAMAGED: damaged} if damaged else {})
        known = self._series["integrity/crc32c"]

        def inspect(block: EncodedBlock) -> None:
            block.checksums[: block.count] = known[block.first : block.first + block.count]

        with new_output(
            target, self._content, layout, attributes, "stopped", inspect=inspect, keep_journal=True
        ) as session:
            for first in range(0, self.saved, layout.frames_per_block):
                if (block := session.acquire()) is None:
                    break
                self._fill(block, first)
                block.count = min(block.count, self.saved - first)
                session.submit(FilledBlock(block))
        return damaged

    def _fill(self, block: Block, first: int) -> list[int]:
        """Fill a block with the frames from `first` on, and return which of them are damaged."""
        layout = block.layout
        block.first, block.count = first, min(layout.frames_per_block, self._told - first)
        damaged = []
        missing = np.full(layout.frame.shape, np.nan if layout.frame.dtype.kind == "f" else 0, layout.frame.dtype)
        per_chunk = layout.chunks.frames_per_chunk
        for number in range(first // per_chunk, -(-(first + block.count) // per_chunk)):
            frames = range(number * per_chunk, (number + 1) * per_chunk)
            frames = range(frames.start, min(frames.stop, self._told))
            values, whole = self._best(number, frames)
            for place, frame in enumerate(frames):
                for field in range(len(layout.frame.fields)):
                    block.put(frame - first, field, values[field][place] if values else missing)
                if not whole[place]:
                    damaged.append(frame)
        held = slice(first, first + block.count)
        block.times[: block.count], block.steps[: block.count] = (self._series[name][held] for name in ("time", "step"))
        for field, name in enumerate(layout.frame.fields):
            for statistic, word in enumerate(STATISTICS):
                if (series := self._series.get(f"stats/{name}_{word}")) is not None:
                    block.statistics[: block.count, field, statistic] = series[held]
        return damaged

    def _best(self, number: int, frames: range) -> tuple[Values | None, list[bool]]:
        """Return the values of a chunk by the source with the most whole frames, and which frames are whole."""
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
        """Yield the values of a chunk from the place that the journal names, then as HDF5 or Zarr reads them."""
        frame, chunks, records = self._layout.frame, self._layout.chunks, self._records
        if records is not None and frames.start < len(records.frames):
            places = records.frames["places"][frames.start]
            encoded = [[self._encoded(number, field, slab, *places[field, slab].tolist())
                        for slab in range(chunks.slabs)] for field in range(len(frame.fields))]  # fmt: skip
            codec = CODECS[self._content.compression]
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
    """Return a free name beside `output` for the wreck."""
    for number in range(1, sys.maxsize):
        path = output.with_name(f"{output.stem}.damaged-{number}{output.suffix}")
        if not os.path.lexists(path) and not os.path.lexists(journal_of(path)):
            return path
    raise AssertionError
