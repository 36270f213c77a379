"""The view that other processes have of a run: its status file, replaced as a whole, and its committed frames."""

import datetime
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from gsio.errors import DataError, Interrupted, TakenError
from gsio.files import publish, temporary_beside
from gsio.log import bound, log
from gsio.processes import started_at
from gsio.reader import Stack, open_stack
from gsio.reader.verify import LOOK_SECONDS, LOOKS
from gsio.run.progress import IDLE, Observe, Occupied, Progress
from gsio.writer.journal import journal_of, read_journal
from gsio.writer.status_file import is_alive, is_status, read_status, status_of

STATUS_SECONDS = 1.0  # at least, between two versions of the file
FOLLOW_SECONDS = 0.5


@contextmanager
def status_file(output: Path, progress: Callable[[], Progress]) -> Iterator[Observe]:
    """Observe a run: keep its status file up to date, and record at the end how the run ended.

    A disk that is full is no error here. If something else takes the name of the file, that stays, and the rest of the
    run has no status.
    """
    path, written, taken = status_of(output), float("-inf"), False
    before: Progress | None = None  # the progress in the status before

    def write(now: Progress, state: str) -> None:
        nonlocal written, taken, before
        if taken:
            return
        temporary, text = temporary_beside(path), _status(now, before if state == "running" else None, state)
        try:
            with temporary.open("x") as file:
                file.write(text)
            publish("--output", temporary, path, replaces=is_status)
        except (OSError, TakenError) as error:
            temporary.unlink(missing_ok=True)
            taken = isinstance(error, TakenError)
            if taken:
                log.warning(f"'{path}' was taken by something else, which stays: the run goes on without a status")
        written, before = time.monotonic(), now

    def observe(now: Progress) -> None:
        if time.monotonic() - written >= STATUS_SECONDS:
            write(now, "running")

    state = "failed"
    try:
        yield observe
        state = "complete"
    except Interrupted:
        state = "stopped"
        raise
    finally:
        write(progress(), state)


def _status(now: Progress, before: Progress | None, state: str) -> str:
    """Return the text of a status file, which says how busy the resources were since `before`, or in all."""
    occupied = now.occupied.since(before.occupied if before is not None else IDLE)
    shares = occupied.shares(now.seconds - (before.seconds if before is not None else 0.0))
    throughput = now.throughput._asdict()
    values = {
        "state": state,
        **bound(),  # the id of the run
        "frame": throughput.pop("frames"),
        "frames": now.frames_total,
        **{key: value and round(value, 3) for key, value in throughput.items()},
        "occupied": {name: round(share, 3) for name, share in shares.items()},
        "bottleneck": occupied.bottleneck,
        "pid": os.getpid(),
        "process_started": started_at(os.getpid()),
        "host": socket.gethostname(),
        "updated": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    return json.dumps(values) + "\n"


def follow(output: Path) -> Iterator[str]:
    """Yield a line whenever the run of `output` has committed more frames, until it has ended; opens no HDF5 file.

    Raises DataError if no run has left a status beside the output.
    """
    shown = 0

    def of_all(number: int) -> str:
        """Return a number of frames, and that of the whole run if somebody knows it."""
        return f"{number} of {status['frames']}" if status["frames"] else f"{number}"

    while True:
        status, records = read_status(output), read_journal(output, first=-1)
        if not status:
            raise DataError(f"no run has left a whole '{status_of(output)}'; expected the output of 'gsio run'")
        running = status["state"] == "running" and is_alive(status)
        last = records.frames[-1] if records is not None and len(records.frames) else None
        if last is not None and last["frame"] >= shown:
            ranges = [
                f"{name.removeprefix('stats/').removesuffix('_min')} {last[name]:.4g} to {last[name[:-3] + 'max']:.4g}"
                for name in last.dtype.names
                if name.endswith("_min")
            ]
            shown = int(last["frame"]) + 1
            bottleneck = f", bottleneck {name}" if (name := status.get("bottleneck")) in Occupied._fields else ""
            yield f"frame {of_all(shown)}, step {last['step']}, {', '.join(ranges)}{bottleneck}"
        if not running:
            state = "killed" if status["state"] == "running" else status["state"]
            yield f"{state} after {of_all(status['frame'])} frames"
            return
        time.sleep(FOLLOW_SECONDS)


def state_of(output: Path, recorded: str) -> str:
    """Return what became of a run whose output has `recorded` a state: a killed run could not record its end."""
    status = read_status(output)
    if recorded != "running" or status.get("state") != "running":
        return recorded
    return "running" if is_alive(status) else "killed"


def is_written(output: Path, status: dict[str, Any] | None = None) -> bool:
    """Return whether a run writes an output now; a run on another machine may be alive, and counts.

    `status` is what `read_status` has returned, if the caller knows that.
    """
    status = read_status(output) if status is None else status
    return status.get("state") == "running" and is_alive(status) and journal_of(output).exists()


def open_committed(output: Path) -> Stack:
    """Open an output with its committed frames; if a run is writing it, the journal says which these are, and where.

    HDF5 flushes a file piece by piece. Meanwhile some pieces are older than others, so a reader looks again at the
    metadata, and finds the frames without HDF5. Raises DataError if `output` is no output.
    """
    for look in range(LOOKS):
        records = read_journal(output) if is_written(output) else None
        if records is None:
            break
        committed = int(records.frames[-1]["frame"]) + 1 if len(records.frames) else 0
        with suppress(DataError, OSError, RuntimeError, LookupError, ValueError), ExitStack() as opened:
            stack = opened.enter_context(open_stack(output, committed))
            # The metadata of Zarr has new frames once a second.
            known = records.attributes.get("output_id") == stack.attributes.get("output_id")
            if known and stack.attributes["status"] == "running" and (stack.frames == committed or output.is_dir()):
                places = records.frames["places"][:: records.frames_per_chunk]  # [chunk, field, slab]
                for place, name in enumerate(stack.fields):
                    stack.fields[name] = stack.fields[name].apart(output, places[:, place])
                opened.pop_all()
                return stack
        time.sleep(LOOK_SECONDS * look)
    return open_stack(output)
