"""Resume: from which frame a stopped run goes on, and which of its frames stay."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from gsio.errors import DataError, UsageError
from gsio.frames.block import Block
from gsio.frames.metadata import DAMAGED
from gsio.log import log
from gsio.reader import Stack, open_stack
from gsio.run.checkpoints import Checkpoint, SavedState
from gsio.run.repair import rebuild
from gsio.run.survey import joined_series, own_journal, survey
from gsio.writer.journal import Journal
from gsio.writer.session import Earlier

State = TypeVar("State", bound=Checkpoint | SavedState)


class Restart(NamedTuple, Generic[State]):
    """An output that a run extends.

    Attributes
    ----------
    checkpoint
        The newest state that is not behind the frames that stay; None: the run computes from the initial state.
    series
        The series of the frames that stay, [frame] by name as in `metadata.frame_series`.
    checksums
        The checksums, uint32 [frame], that frames must have when they are computed again. Frames behind a damaged one
        do not stay, but are compared all the same.
    last
        The stored values, [frame, …] for each field, of the last frames, which share a chunk or shard with the next
        frame.
    frames_per_chunk, lines_per_chunk, output_id, device
        As recorded in the output; `device` computed its frames.
    is_complete
        The output has all frames of its run, and keeps them.
    """

    checkpoint: State | None
    series: Mapping[str, NDArray[Any]]
    checksums: NDArray[np.uint32]
    last: list[NDArray[Any]]
    frames_per_chunk: int
    lines_per_chunk: int
    output_id: str
    device: str
    is_complete: bool

    @property
    def frames(self) -> int:
        """Number of frames that stay."""
        return len(self.series["step"])

    @property
    def earlier(self) -> Earlier:
        """What a session needs of the frames that stay."""
        return Earlier(self.frames, self.computed_from, self.last)

    @property
    def computed_from(self) -> int:
        """The frame from which the run computes. It compares the frames from this one on with those that stay."""
        return self.checkpoint.frames if self.checkpoint is not None else 0


class Load(Protocol[State]):
    """A function that returns the intact checkpoints of an output, or only those with an identity, the newest first."""

    def __call__(self, output: Path, output_id: str | None = None, /) -> list[State]:
        """Return the checkpoints; raise DataError if all are damaged."""


def find_restart(
    output: Path,
    journal: Journal,
    check: Callable[[Stack], object],
    load: Load[State],
    discard_after: int | None = None,
    option: str = "--discard-after",
) -> Restart[State]:
    """Return where a run goes on with `output`: all committed frames stay, or the first `discard_after`.

    An output that cannot be read is rebuilt from its `journal`. `check` raises DataError if the run cannot extend the
    output, and `load` if its checkpoints are damaged. Raises DataError for a damaged output too, and UsageError if the
    output has fewer frames than `discard_after`, which the message calls `option`.
    """
    # A power cut can tear any frame that no checkpoint has made durable.
    start = max((state.frames for state in load(output)), default=0)
    log.info("decoding the frames that no checkpoint has made durable", output=str(output), first=start)
    found = survey(output, start)
    records = own_journal(output, found.output_id)
    if found.wrong and (records is not None or found.output_id):
        log.warning(f"{output} cannot be used as it is: {found.wrong}; {rebuild(output, journal, found, keep=False)}")
        found = survey(output, start)
        records = own_journal(output, found.output_id)
    if found.wrong:
        raise DataError(f"'{output}' cannot be used: {found.wrong}; see 'gsio verify' and 'gsio repair'")
    with open_stack(output) as stack:
        check(stack)
        if "selection" in stack.attributes:
            raise DataError(f"'{output}' is an export of a part of a run, with which no run can go on")
        frames = found.frames
        if discard_after is not None:
            if not 0 <= discard_after <= frames:
                raise UsageError(f"{option}: expected 0 to {frames}, the committed frames, got {discard_after}")
            frames = discard_after
        checkpoints = load(output, stack.attributes.get("output_id", ""))
        checkpoint = next((state for state in checkpoints if state.frames <= frames), None)
        if checkpoint is None:
            log.warning(
                f"{output} has no checkpoint of these frames: computing again from the first; all {frames} stay"
            )
        computed_from = checkpoint.frames if checkpoint is not None else 0
        damaged = [int(frame) for frame in np.atleast_1d(stack.attributes.get(DAMAGED, ())) if frame < frames]
        kept = min([frames, *(frame for frame in damaged if frame >= computed_from)])
        if kept < frames:
            log.warning(f"frame {kept} of {output} is damaged: this and all later frames are computed and stored again")
        if damaged and damaged[0] < computed_from:
            log.warning(f"{output} has damaged frames before its checkpoint, which stay as they are; see 'gsio verify'")
        return Restart(
            checkpoint,
            {name: joined_series(records, stack, name, kept) for name in stack.recorded},
            joined_series(records, stack, "integrity/crc32c", frames),
            _last_frames(stack, kept),
            next(iter(stack.fields.values())).frames_per_chunk,
            next(iter(stack.fields.values())).lines_per_chunk,
            stack.attributes.get("output_id", ""),
            stack.attributes["device"],
            stack.attributes["status"] == "complete" and discard_after is None,
        )


def compare(before: Restart[Any], device: str, cut: str, block: Block) -> None:
    """Raise DataError unless the frames of `block`, computed again on `device`, are those of the output.

    The message says that `cut`, with the number of the frame behind it, cuts the output.
    """
    found = block.checksums[block.kept : block.count]
    known = before.checksums[block.first + block.kept :][: len(found)]
    if len(wrong := np.flatnonzero(found[: len(known)] != known)):
        frame = block.first + block.kept + int(wrong[0])
        here, there = (f" on '{device}'", f" of '{before.device}'") if device != before.device else ("", "")
        raise DataError(
            f"frame {frame}, computed again{here}, differs from the committed one{there}; "
            f"compute it as before, or cut the output with {cut}{frame}"
        )


def _last_frames(stack: Stack, frames: int) -> list[NDArray[Any]]:
    """Return, for each field, the stored values of the frames behind the last whole chunk or shard; [] without any."""
    fields = list(stack.fields.values())
    first = frames - frames % fields[0].frames_together
    per_chunk = fields[0].frames_per_chunk
    chunks = range(first // per_chunk, -(-frames // per_chunk))
    return [np.concatenate([field.chunk(number) for number in chunks])[: frames - first] for field in fields if chunks]
