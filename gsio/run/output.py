"""The output of a run, or of another loop, on the disk: whether it may be made, where it goes on, and its session."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from gsio.errors import StorageError, TakenError, UsageError, reason_of
from gsio.files import Replaces, remove_temporaries, require_new
from gsio.frames.block import BlockPool
from gsio.frames.content import Content
from gsio.frames.layout import BlockLayout
from gsio.reader import Stack
from gsio.run import checkpoints
from gsio.run.resume import Load, Restart, find_restart
from gsio.trace import Trace
from gsio.writer import format_of
from gsio.writer.journal import Journal, is_journal, journal_of
from gsio.writer.session import NOTHING, Earlier, Session, open_session
from gsio.writer.status_file import is_status, status_of

Resume = Literal["no", "auto", "must"]


class Words(NamedTuple):
    """What a person calls the output, and the ways to treat one that exists: options, or arguments of Python."""

    output: str = "--output"
    overwrite: str = "--overwrite"
    resume: str = "--resume"
    must: str = "--resume=must"
    discard_after: str = "--discard-after"
    instead: str = "choose another name, --resume it, or --overwrite it"


OPTIONS = Words()
ARGUMENTS = Words(
    "path", "overwrite", "resume", "resume='must'", "discard_after",
    "choose another name, or pass resume='auto' or overwrite=True",
)  # fmt: skip


def place_of(output: Path | str, resume: Resume) -> Path:
    """Return the path of an output, without a link if the output goes on: its lock lies beside the file itself."""
    output = Path(output)
    return Path(os.path.realpath(output)) if resume != "no" and output.is_symlink() else output


def check_output(
    output: Path,
    *,
    overwrite: bool,
    resume: Resume = "no",
    discard_after: int | None = None,
    words: Words = OPTIONS,
) -> None:
    """Raise UsageError, in `words`, if a run cannot create `output`, or resume it."""
    try:
        os.fspath(output).encode()
    except UnicodeEncodeError:
        raise UsageError(f"{words.output}: expected a name in UTF-8, got {os.fspath(output)!a}") from None
    form = format_of(output, words.output)
    if overwrite and resume != "no":
        raise UsageError(f"{words.overwrite}, {words.resume}: expected one of them, got both")
    if resume == "must" and not os.path.lexists(output):
        raise UsageError(f"{words.must}: '{output}' does not exist; expected an output to go on with")
    if discard_after is not None and resume != "must":
        raise UsageError(f"{words.discard_after}: expected it with {words.must} only, which names an output to cut")
    if not form.is_folder and output.is_dir():
        raise UsageError(f"{words.output}: '{output}' is a folder; expected the name of a file")
    goes_on = resume != "no" and os.path.lexists(output)
    if goes_on and not form.is_folder:
        from gsio.writer.hdf5 import is_open_here

        if is_open_here(output):
            raise UsageError(
                f"{words.resume}: expected an output that is closed, but this process has '{output}' open; close it"
            )
    replaces: Replaces | None = form.is_output
    if goes_on:
        replaces = os.path.lexists
    elif not overwrite:
        replaces = None
    require_new(words.output, output, replaces=replaces, instead=words.instead)
    for path, is_of_run in beside(output).items():
        require_new(words.output, path, replaces=_is_regular if goes_on else is_of_run)


def _is_regular(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def beside(output: Path) -> dict[Path, Replaces]:
    """Return the paths that a run makes beside its output, each with the function that says whether a run made it."""
    saved = dict.fromkeys(checkpoints.paths_of(output), checkpoints.is_checkpoint)
    return {journal_of(output): is_journal, status_of(output): is_status, **saved}


def restart(
    output: Path, journal: Journal, check: Callable[[Stack], object], load: Load[Any],
    *, overwrite: bool, resume: Resume, discard_after: int | None = None, words: Words = OPTIONS,
) -> Restart[Any] | None:  # fmt: skip
    """Remove what killed runs left, and return where a run goes on with `output`, or None if it begins.

    `check` and `load` are those of `find_restart`, which says what is raised. Whether the output may be made is looked
    at again: from here on no other run makes it, because its `journal` is locked.
    """
    check_output(output, overwrite=overwrite, resume=resume, discard_after=discard_after, words=words)
    for path in (output, *checkpoints.paths_of(output), status_of(output)):
        remove_temporaries(path)
    if resume == "no" or not os.path.lexists(output):
        return None
    return find_restart(output, journal, check, load, discard_after, words.discard_after)


def open_output(
    output: Path,
    content: Content,
    attributes: Mapping[str, Any],
    journal: Journal,
    pool: BlockPool,
    threads: int,
    trace: Trace,
    before: Restart[Any] | None,
    *,
    overwrite: bool = False,
    layout: BlockLayout | None = None,
    earlier: Earlier | None = None,
) -> Session:
    """Create an output, or open the one `before`, and return its session; raise StorageError if storage fails.

    If the blocks of `pool` have parts of the frames, `layout` is that of whole frames, and `earlier` has the parts.
    """
    series = before.series if before is not None else None
    earlier = earlier or (before.earlier if before is not None else NOTHING)
    try:
        if before is not None:
            checkpoints.discard(output, before.frames)
        session = open_session(
            output, content, attributes, journal, pool, threads,
            trace=trace, series=series, overwrite=overwrite, earlier=earlier, layout=layout,
        )  # fmt: skip
        for path in checkpoints.paths_of(output):
            if before is None and checkpoints.is_checkpoint(path):  # it belongs to the output that was replaced
                path.unlink()
        return session
    except BaseException as error:
        # An output of a killed run without a checkpoint needs its journal to be resumed.
        if isinstance(error, TakenError) or not os.path.lexists(output):
            journal.remove()
        if isinstance(error, (OSError, RuntimeError)):  # h5py raises either
            frames = earlier.frames
            safe = f"the {frames} frames committed before are safe" if frames else "no frame was written"
            raise StorageError(f"cannot write {output}: {reason_of(error)}; {safe}") from error
        raise
