"""Commands that look: info, verify and doctor."""

import sys
from pathlib import Path

import click

from gsio.cli.options import DISPLAY, PATH, Command, Option, debug_option
from gsio.errors import DataError
from gsio.streams import error_of, say


@click.command(cls=Command)
@click.argument("path", type=PATH)
@click.option(
    "--follow",
    cls=Option,
    is_flag=True,
    heading=DISPLAY,
    help="Print frames as they are committed, until the run ends.",
)
@debug_option
def info(path: Path, follow: bool, debug: bool) -> None:
    """Print the frames, fields, status and configuration of an output.

    An output that no run of Gray-Scott made has its content instead of a configuration.
    """
    from gsio.run.status import follow as follow_run
    from gsio.run.status import open_committed, state_of

    if follow:
        for line in follow_run(path):
            say(line)
            if error_of(sys.stdout) is not None:  # the reader of stdout has gone
                break
        return

    with open_committed(path) as stack:
        shape = " × ".join(map(str, next(iter(stack.fields.values())).shape[1:]))
        say(f"{path}: {stack.frames} frames of {shape}, {state_of(path, stack.attributes['status'])}")
        for name, field in stack.fields.items():
            say(f"  {name:12} {field.dtype}, compression {field.codec}, {field.frames_per_chunk} frames a chunk")
        for name in ("started", "ended", "device", "backend", "gsio_version", "gsio_commit", "host", "argv"):
            say(f"  {name:12} {' '.join(stack.attributes[name].split())}")
        say("\n" + stack.attributes["config" if stack.is_of_run else "content"].rstrip())


@click.command(cls=Command)
@click.argument("path", type=PATH)
@debug_option
def verify(path: Path, debug: bool) -> None:
    """Decode every frame of an output, and report what is damaged.

    Every frame is also compared with its checksum.
    """
    from gsio.reader.verify import outside, problems
    from gsio.run.progress import frame_progress
    from gsio.run.status import is_written, open_committed

    with open_committed(path) as stack:
        found = 0
        with frame_progress(stack.frames) as advance:
            for problem in problems(stack, advance, is_written=is_written(path)):
                say(problem)  # rich prints it above the bar
                found += 1
        if left := outside(stack):
            say(f"warning: {left}; the frames are as they were computed")
        if found:
            raise DataError(f"{path}: {found} problems in {stack.frames} frames; expected none")
        say(f"{path}: {stack.frames} frames, all intact")


@click.command(cls=Command)
@debug_option
def doctor(debug: bool) -> None:
    """Describe this machine, and say what is missing to use its GPU."""
    from gsio.cli.doctor import findings

    for name, finding in findings():
        say(f"{name:12} {finding}")
