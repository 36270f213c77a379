"""Commands that simulate: run and profile."""

import functools
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gsio.cli.options import (
    DISPLAY,
    FILES,
    RUN,
    Command,
    Option,
    configuration,
    debug_option,
    file_option,
    output_option,
    overwrite_option,
    quiet_option,
)
from gsio.config import AUTO, BACKENDS, Config, parse_devices
from gsio.errors import ToldError, UsageError
from gsio.processes import launched, leave_to_first
from gsio.streams import say

if TYPE_CHECKING:
    from gsio.run.ranks import Ranks

RESUME_MODES = ("no", "auto", "must")


class _RunCommand(Command):
    """A command that takes --resume without a value for --resume=auto."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Write the value out: click would take any word after a bare --resume, such as CONFIG, for it."""
        pairs = pairwise([*args, ""])
        args = ["--resume=auto" if word == "--resume" and after not in RESUME_MODES else word for word, after in pairs]
        return super().parse_args(ctx, args)


def across_ranks(command: Callable[..., Any]) -> Callable[..., Any]:
    """Pass a command with the option --mpi its `ranks`, which all leave together."""

    @functools.wraps(command)
    def with_ranks(mpi: bool, **given: Any) -> Any:
        if not mpi:
            refuse_ranks()
            return command(ranks=None, **given)
        from gsio.run.ranks import joined

        with joined() as ranks:
            return command(ranks=ranks, **given)

    return with_ranks


def refuse_ranks() -> None:
    """Raise UsageError if this is one of several processes that a launcher of MPI has started together."""
    number, count = launched()
    if count > 1 and number == 0:
        raise UsageError(
            f"--mpi: expected it, for this is one of {count} processes that were started together, and each would "
            "make the same output; for runs of their own start each process alone, as by srun -n 1"
        )
    if count > 1:
        leave_to_first()
        raise ToldError(UsageError.exit_code)


@click.command(cls=_RunCommand)
@across_ranks
@configuration
@click.option(
    "--mpi", cls=Option, is_flag=True, heading=RUN,
    help="Share one run with all processes that mpirun or srun has started; the output ends in .zarr.",
)  # fmt: skip
@output_option(required=True, text="Write the frames to PATH, which ends in .h5, .hdf5 or .zarr.")
@overwrite_option("the output")
@click.option(
    "--resume", cls=Option, type=click.Choice(RESUME_MODES), default="no", metavar="[=auto|must|no]", heading=FILES,
    help="Continue the output. Without a value, or with auto, begin a missing output; must fails instead.",
)  # fmt: skip
@click.option(
    "--discard-after", cls=Option, type=click.IntRange(0), metavar="N", heading=FILES,
    help="Together with --resume=must: keep the first N committed frames and discard the others.",
)  # fmt: skip
@file_option("--timeline", "PATH.json", "Save a timeline of all threads and the device, for Perfetto.")
@click.option(
    "--metrics-port", cls=Option, type=int, metavar="PORT", heading=DISPLAY,
    help="Offer progress and throughput to Prometheus at this port of localhost.",
)  # fmt: skip
@click.option(
    "--log-format", cls=Option, type=click.Choice(["text", "json"]), default="text", show_default=True,
    heading=DISPLAY, help="Write events to stderr as lines of text or of JSON.",
)  # fmt: skip
@click.option(
    "--view", cls=Option, is_flag=True, heading=DISPLAY, help="Show the run in the browser, as gsio view does."
)
@quiet_option("Show neither progress nor a summary.")
@debug_option
def run(
    config: Config,
    output: Path,
    ranks: "Ranks | None",
    metrics_port: int | None,
    view: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Simulate and save every frame.

    CONFIG is a TOML file that changes some of the keys that 'gsio config show' lists.
    """
    if ranks is None and (config.run.backend == AUTO or BACKENDS[config.run.backend].cuda):
        from gsio.machine import wake

        wake(parse_devices("run.devices", config.run.devices) or (config.run.device,))

    from gsio import log
    from gsio.look.beside import shown
    from gsio.run.metrics import metrics
    from gsio.run.progress import Progress, run_progress
    from gsio.run.simulate import simulate

    log_format, debug = options.pop("log_format"), options.pop("debug")
    if ranks is not None and ranks.number:
        from gsio.run.joint import assist

        log.configure(log_format, silent=True)  # rank 0 speaks for all
        assist(ranks)
        return
    log.name_run(os.urandom(4).hex())
    with shown(output, wanted=view):
        with metrics(metrics_port) as show, run_progress(quiet=quiet) as bar:

            def watch(progress: Progress) -> None:
                bar(progress)
                show(progress)

            log.configure(log_format, quiet=quiet, debug=debug)  # after the bar, so that events are printed above it
            summary = simulate(config, output, **options, watch=watch, ranks=ranks)
        if not quiet and summary is not None:
            say(summary)


@click.command(cls=Command)
@configuration
@output_option(required=False, text="Keep the output of the run at PATH; without it the output is deleted.")
@overwrite_option("the output")
@file_option("--timeline", "PATH.json", "Save a timeline of all threads and the device, for Perfetto.")
@file_option("--plot", "PATH", "Draw the result as .png or .svg.")
@file_option("--report", "PATH.nsys-rep", "Keep the report of Nsight Systems.")
@file_option("--read", "FILE", "Run nothing: report on FILE, a timeline or a report of Nsight Systems made before.")
@quiet_option("Show no progress.")
@debug_option
def profile(
    config: Config,
    output: Path | None,
    overwrite: bool,
    timeline: Path | None,
    plot: Path | None,
    report: Path | None,
    read: Path | None,
    quiet: bool,
    debug: bool,
) -> None:
    """Run a job, and report what limits the run.

    The report also says how much other work overlapped with computing. If nsys is on PATH, Nsight Systems records the
    run too, and both results are reported.
    """
    from gsio import log
    from gsio.profile import disagreement, read_report
    from gsio.profile import profile as run_profiled
    from gsio.run.progress import run_progress

    if read is not None:
        say(read_report(read))
        return
    with run_progress(quiet=quiet) as watch:
        log.configure("text", quiet=True, debug=debug)
        files = {"to_timeline": timeline, "plot": plot, "report": report}
        reports = run_profiled(config, output, overwrite=overwrite, **files, quiet=quiet, watch=watch)
    say("\n\n".join(map(str, reports)))
    if len(reports) > 1:
        say(f"\nThe two results differ by at most {disagreement(reports):.1%} of the loop.")
