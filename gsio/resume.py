"""Where a stopped run goes on: its newest checkpoint of which the output holds the frames, whole."""

from pathlib import Path

import structlog

from gsio.checkpoint import Checkpoint, check_same_run, load
from gsio.config import Config
from gsio.errors import DataError
from gsio.repair import rebuild, what_is_wrong
from gsio.writer.journal import read_journal

log = structlog.get_logger()


def where_to_go_on(output: Path, config: Config) -> Checkpoint | None:
    """Return the checkpoint from which `config` goes on with `output`, or None where it has to start anew.

    A file that cannot be read is rebuilt from its journal. Raises DataError if the output or its checkpoint is of
    another configuration, or damaged, or if there is nothing to go on with.
    """
    checkpoints, records = load(output), read_journal(output)
    if records is not None and not len(records.frames) and what_is_wrong(output, 0) == "" != what_is_wrong(output, 1):
        checkpoints = []  # of an output that this one, without a frame yet, replaced
    if not checkpoints:
        if records is None:
            raise DataError(f"--resume: '{output}' has no checkpoint; choose another --output, or --overwrite")
        check_same_run(config, records.attributes["config"], f"'{output}'")
        log.warning(f"{output} has no checkpoint: starting again with the first frame")
        return None
    check_same_run(config, checkpoints[0].config, f"the checkpoint of '{output}'")
    found = []
    for checkpoint in checkpoints:
        wrong = what_is_wrong(output, checkpoint.frames)
        if wrong and records is not None and len(records.frames) >= checkpoint.frames:
            log.warning(f"{output} cannot be used as it is ({wrong}): rebuilding it from its journal")
            wrong = "" if rebuild(output) >= checkpoint.frames else wrong
        if not wrong:
            return checkpoint
        found.append(f"checkpoint after {checkpoint.frames} frames: {wrong}")
    raise DataError(f"--resume: '{output}' does not match its checkpoints: {'; '.join(found)}; see 'gsio verify'")
