"""Wrecks, which a kill, a full disk or a power cut left: whether they are sound, and what can be saved of them.

A reader of a torn HDF5 file can hang or crash: a wreck is looked at by a process of its own, with a deadline. One that
cannot be read is rebuilt from the journal, which says where each chunk is, without HDF5.
"""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from gsio.config import Config
from gsio.errors import DataError, StorageError, UsageError, reason_of
from gsio.processes import end_with_parent, with_parent
from gsio.reader import encoded_in_folder, open_stack
from gsio.staging import STATISTICS, Block, FrameLayout, layout_of
from gsio.trace import Trace
from gsio.verify import damaged_frames, frame_checksum
from gsio.writer import open_writer
from gsio.writer.base import Target, move_into_place, remove_temporaries, temporary_beside
from gsio.writer.codec import decode
from gsio.writer.journal import Journal, journal_of, read_journal

DEADLINE = 120.0  # seconds, of reading a few frames


def what_is_wrong(output: Path, frames: int, *, to_the_end: bool = False) -> str:
    """Return why an output cannot be used after its first `frames` frames, the last of which are checked, or "".

    `to_the_end`: or why it cannot be read beyond them, as after a kill while HDF5 wrote its metadata, piece by piece.
    """
    command = [sys.executable, "-m", "gsio.repair", str(output), str(frames), *(["to the end"] if to_the_end else [])]
    try:
        reader = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, env=with_parent())
    except subprocess.TimeoutExpired:
        return f"reading it takes longer than {DEADLINE:g} s"
    if reader.returncode < 0:
        return f"its reader died of {signal.Signals(-reader.returncode).name}"
    if reader.returncode:
        return (reader.stderr.strip().splitlines() or [f"its reader ended with {reader.returncode}"])[-1]
    return reader.stdout.strip()


def _look(output: Path, frames: int, to_the_end: bool) -> str:
    """Do what `what_is_wrong` says, in this process."""
    try:
        with open_stack(output) as stack:
            if stack.frames < frames:
                return f"expected at least {frames} frames, found {stack.frames}"
            # Of what follows the first and the last: all of it may be much.
            ends = [frames, *([frames + 1, stack.frames] if to_the_end and stack.frames > frames else [])]
            for wrong in (found for end in ends if end for found in damaged_frames(stack, end - 1, end)):
                return wrong
            if to_the_end and (records := read_journal(output)) is not None:
                for name in records.frames.dtype.names or ():
                    if name in stack.root and (stack.series(name)[:frames] != records.frames[name][:frames]).any():
                        return f"{name}: expected the values that its journal knows, found others"
            return ""
    except DataError as error:
        return str(error)


def repair(output: Path) -> str:
    """Rebuild an output from its journal if it needs to be, and say in a line what was saved.

    Raises UsageError if a run is writing it, DataError if it has no journal, and StorageError where storage fails.
    """
    if not os.path.lexists(output):
        raise UsageError(f"'{output}' does not exist; expected an output of 'gsio run'")
    with Journal(output):
        records = read_journal(output)
        known = len(records.frames) if records is not None else 0
        if not (wrong := what_is_wrong(output, known, to_the_end=records is not None)):
            return f"{output}: nothing to repair"
        saved = rebuild(output)
    return f"{output}: {wrong}; rebuilt with {saved} of the {known} frames that its journal knows"


def rebuild(output: Path) -> int:
    """Replace an output by a new one with all frames that its journal knows and that are whole; return how many.

    Raises DataError if there is no journal, and StorageError where storage fails; what is there stays until the new is.
    """
    records = read_journal(output)
    if records is None:
        raise DataError(f"{output} has no journal, '{journal_of(output).name}', from which it could be rebuilt")
    config = Config.from_toml(records.attributes["config"])
    layout = layout_of(config, records.frames_per_chunk)
    together = 1 if config.output.compression == "none" and output.is_file() else layout.frames_per_chunk
    # One commit holds what cannot be told apart: the frames of a chunk, or of a shard.
    one = dataclasses.replace(layout, frames_per_block=layout.frames_per_shard or together)
    target = temporary_beside(output, output.suffix)
    try:
        with Journal(target) as journal:
            writer = open_writer(Target(target, config, layout, records.attributes, journal, Trace()))
            frames = 0
            try:
                while frames < len(records.frames):
                    block = _block(output, config, one, together, records.frames[frames:])
                    if block is None:
                        break
                    for part in range(one.parts):
                        writer.encode(block, part)
                    writer.commit([block])
                    frames += block.count
            finally:
                writer.close("stopped")
            journal.sync()
        move_into_place(output, target)
        journal_of(target).replace(journal_of(output))  # later: without it the new output is whole, the old one lost
    except BaseException as error:
        remove_temporaries(output)
        if isinstance(error, (OSError, RuntimeError)):  # h5py raises either
            raise StorageError(
                f"storage failed: {reason_of(error)}; the {len(records.frames)} frames that the journal of '{output}' "
                "knows are safe; make space, then repair or --resume it"
            ) from error
        raise
    return frames


def _block(output: Path, config: Config, layout: FrameLayout, together: int, records: Any) -> Block | None:
    """Return the next frames that share a block, from where `records` [frame] say they are, or None if one is torn."""
    block = Block(layout, np.zeros(layout.block_nbytes, np.uint8))
    count = block.count = min(layout.frames_per_block, len(records))
    block.first = int(records["frame"][0])
    how = {"deflate": "deflate", "none": "none"}.get(config.output.compression, "blosc")
    for first in range(0, count, together):
        planes = []
        for field, name in enumerate(layout.fields):
            slabs = []
            for slab in range(layout.slabs):
                offset, nbytes = records["places"][first, field, slab]
                try:
                    if nbytes:
                        encoded = _pread(output, int(offset), int(nbytes))
                    else:
                        number = (block.first + first) // together
                        shard = layout.frames_per_shard // together
                        encoded = encoded_in_folder(output / name, number, slab, len(layout.shape) - 1, shard)
                    slabs.append(decode(encoded, how, layout.dtype).reshape(together, -1, *layout.shape[1:]))
                except (OSError, ValueError):
                    return None
            planes.append(np.concatenate(slabs, axis=1)[:, : layout.shape[0]])
        for frame in range(first, min(first + together, count)):
            here = [plane[frame - first] for plane in planes]
            if frame_checksum(here, layout.shuffle) != records["integrity/crc32c"][frame]:
                return None
            for field, plane in enumerate(map(np.ascontiguousarray, here)):
                raw = plane.reshape(-1, 1).view(np.uint8)
                block.data[frame, field] = (raw.T if layout.shuffle else raw).reshape(-1)
    for field, name in enumerate(layout.fields):
        for statistic, word in enumerate(STATISTICS):
            if f"stats/{name}_{word}" in records.dtype.names:
                block.statistics[:count, field, statistic] = records[f"stats/{name}_{word}"][:count]
    return block


def _pread(path: Path, offset: int, nbytes: int) -> bytes:
    with path.open("rb") as file:
        return os.pread(file.fileno(), nbytes, offset)


if __name__ == "__main__":
    end_with_parent()
    print(_look(Path(sys.argv[1]), int(sys.argv[2]), to_the_end=len(sys.argv) > 3))  # noqa: T201 - for the process that asked
