"""The command sweep: many runs that differ in some keys, as one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from gsio.cli.look import PICTURE
from gsio.cli.options import (
    DISPLAY,
    PATH,
    RUN,
    SELECTION,
    Group,
    Option,
    configuration,
    debug_option,
    output_option,
    overwrite_option,
    quiet_option,
)
from gsio.cli.run import refuse_ranks
from gsio.config import parse_assignment
from gsio.draw.colours import DEFAULT
from gsio.errors import UsageError
from gsio.streams import say

ENGINES = ("local", "slurm", "print")


class _SweepGroup(Group):
    """A group whose name, followed by anything else than one of its commands, means its first command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Name the first command where none is named."""
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = [next(iter(self.commands)), *args]
        return super().parse_args(ctx, args)


@click.group(cls=_SweepGroup)
def sweep() -> None:
    """Compute many runs that differ in some keys, and keep them as one result.

    \b
    gsio sweep sweep.toml -o plane.zarr
    gsio sweep status plane.zarr
    gsio sweep sheet plane.zarr -o sheet.png

    The first form is short for 'gsio sweep run', whose options 'gsio sweep run --help' lists.
    """  # noqa: D301 - click keeps the lines after \b


def sweep_configuration(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a configuration, and pass the command the description of a sweep."""

    def load(path: Path | None, **given: Any) -> Any:
        from gsio.sweep.description import load_sweep

        return load_sweep(path, **given)

    return configuration(command, load)


@sweep.command("run")
@sweep_configuration
@output_option(required=True, text="Write the result to PATH, which ends in .zarr, .h5 or .hdf5; go on if it exists.")
@click.option(
    "--engine", cls=Option, type=click.Choice(ENGINES), default="local", show_default=True, heading=RUN,
    help="Compute here (local), submit a job array (slurm), or print a command line for each task (print).",
)  # fmt: skip
@click.option(
    "--slurm", "slurm", cls=Option, metavar="KEY=VALUE", multiple=True, heading=RUN,
    help="Set an option of the jobs, such as partition=gpu, time=240 or array_parallelism=8; it may be repeated.",
)  # fmt: skip
@click.option(
    "--dry-run", cls=Option, is_flag=True, heading=RUN,
    help="Only say how many members there are, and, measured on one, how long they take and how large they are.",
)  # fmt: skip
@quiet_option("Show neither progress nor a summary.")
@debug_option
def run_sweep(
    config: Any, output: Path, engine: str, slurm: tuple[str, ...], dry_run: bool, quiet: bool, debug: bool
) -> None:
    """Compute the members of a sweep, as far as they are missing.

    CONFIG is a TOML file with the keys that all members share, and a table [sweep] with the values of the others.
    """
    from gsio import log
    from gsio.sweep import engines
    from gsio.sweep.result import begin
    from gsio.sweep.status import status_of_sweep, sweep_progress
    from gsio.sweep.tasks import missing

    refuse_ranks()
    log.configure("text", quiet=quiet, debug=debug)
    if slurm and engine != "slurm":
        raise UsageError("--slurm: expected it with --engine slurm only, whose jobs it describes")
    if dry_run:
        from gsio.sweep.estimate import estimate

        for line in estimate(config, output):
            say(line)
        return
    plan = begin(config, output)
    left = missing(plan, output)
    if engine == "print":
        for line in engines.printed(output, left):
            say(line)
        return
    if engine == "slurm":
        from gsio.sweep.slurm import submit

        jobs = [job.job_id for job in submit(output, left, dict(map(parse_assignment, slurm)))] if left else []
        if not quiet:
            names = f", {jobs[0]} to {jobs[-1]}" if jobs else ""
            say(f"{len(jobs)} jobs are submitted{names}; 'gsio sweep status {output}' says how far they are")
        return
    if left:
        with sweep_progress(quiet=quiet) as show:
            engines.compute(plan, output, engines.gpus(config.config)[: len(left)], show)
    status = status_of_sweep(output, plan)
    if not quiet:
        say(f"{output}: {status.lines()[0]}")
    status.check(output)


@sweep.command("task")
@click.argument("path", type=PATH)
@click.argument("numbers", type=click.IntRange(0), nargs=-1, metavar="[TASK]...")
@click.option("--device", cls=Option, type=click.IntRange(0), metavar="N", heading=RUN, help="Use GPU number N.")
@quiet_option("Show no progress.")
@debug_option
def run_task(path: Path, numbers: tuple[int, ...], device: int | None, quiet: bool, debug: bool) -> None:
    """Compute tasks of a sweep that 'gsio sweep' has begun, by default all.

    Tasks that are complete, or that another process computes, are left out.
    """
    from gsio import log
    from gsio.sweep.tasks import run_tasks

    log.configure("text", quiet=quiet, debug=debug)
    run_tasks(path, numbers, device=device)


@sweep.command("status")
@click.argument("path", type=PATH)
@click.option("--json", "as_json", cls=Option, is_flag=True, heading=DISPLAY, help="Print JSON, with every member.")
@debug_option
def status(path: Path, as_json: bool, debug: bool) -> None:
    """Say how far a sweep is, and which members diverged or failed."""
    from gsio.sweep.status import status_of_sweep

    found = status_of_sweep(path)
    for line in [json.dumps(found.as_json())] if as_json else found.lines():
        say(line)


@sweep.command("sheet")
@click.argument("path", type=PATH)
@output_option(required=True, text="Write the sheet here, a .png.")
@overwrite_option("the picture")
@click.option("--field", cls=Option, metavar="NAME", default="", heading=SELECTION, help="Show this field; v if saved.")
@click.option(
    "--scale", cls=Option, type=float, metavar="FACTOR", heading=PICTURE,
    help="Make each frame larger by a whole number, or smaller by a fraction of 1; by default the sheet fits a screen.",
)  # fmt: skip
@click.option(
    "--limits", cls=Option, metavar="LO:HI|auto|frame", default="auto", show_default=True, heading=PICTURE,
    help="Give LO the first colour and HI the last; auto takes the range of all last frames, frame that of each.",
)  # fmt: skip
@click.option(
    "--cmap", cls=Option, metavar="NAME", default=DEFAULT, show_default=True, heading=PICTURE,
    help="Use this colour map of the package cmap.",
)  # fmt: skip
@debug_option
def sheet(path: Path, output: Path, debug: bool, **options: Any) -> None:
    """Draw the last frame of each member, laid out along the axes of the sweep."""
    from gsio.sweep.sheet import write_sheet

    say(f"{output}: {write_sheet(path, output, **options)} members")
