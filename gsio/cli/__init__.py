"""The command line: parse, call, and turn errors into exit codes. Results go to stdout, everything else to stderr."""

import errno
import os
import sys
import traceback

import click

from gsio import __version__
from gsio.cli import bench, config, convert, inspect, look, run, sweep
from gsio.cli.options import Group
from gsio.errors import NO_THREAD, GsioError, StorageError, ToldError, is_without_thread
from gsio.processes import Terminated, launched, leave_to_first, terminable
from gsio.streams import error_of, open_outputs, say

# The commands whose result is a file, so that a lost line of stdout is no failure, and what an interrupt leaves.
MADE = dict.fromkeys(("run", "profile", "repair", "export", "movie"), "; nothing was written") | {
    "frames": "; the pictures that were written are whole"
}


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """Run Gray-Scott simulations and save every frame while the GPU keeps computing.

    The main job: gsio run --output run.h5
    """


for _command in (
    run.run, look.view, inspect.info, inspect.verify, convert.repair, convert.export, look.frames, look.movie,
    sweep.sweep, config.presets, config.config, inspect.doctor, run.profile, bench.bench,
):  # fmt: skip
    cli.add_command(_command)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code of the process; see ``gsio.errors`` for the codes."""
    is_program, arguments = arguments is None, sys.argv[1:] if arguments is None else arguments
    if is_program:
        open_outputs()
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy needs no BLAS here, and would start its threads
    with terminable():
        code = _run(arguments)
    if is_program:
        sys.stdout.flush()
    lost = error_of(sys.stdout)
    if lost is not None and lost.errno != errno.EPIPE and code == 0 and arguments[0] not in MADE:
        code = _fail(f"stdout: {lost.strerror}; expected to write the results there; send them to another place", 74)
    if is_program and code == StorageError.exit_code:
        sys.stderr.flush()
        if "mpi4py.MPI" in sys.modules:
            sys.modules["mpi4py.MPI"].Finalize()  # else the launcher would call this an abort
        os._exit(code)  # after a failed write HDF5 can crash when Python frees the objects of the file
    return code


def _run(arguments: list[str]) -> int:
    debug = "--debug" in arguments
    try:
        cli.main(arguments, prog_name="gsio", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        say(error.format_message(), err=True)
        return 2
    except ToldError as error:
        return error.exit_code
    except click.ClickException as error:
        if "--mpi" in arguments and launched()[0]:
            leave_to_first()
            return 2
        hint = f"; see '{error.ctx.command_path} --help'" if isinstance(error, click.UsageError) and error.ctx else ""
        return _fail(error.format_message().rstrip(".") + hint, 2)
    except GsioError as error:
        return _fail(str(error), error.exit_code, debug=debug)
    except OSError as error:
        return _fail(f"{error.strerror or error}; expected a place that can be written to", 74, debug=debug)
    except (KeyboardInterrupt, click.Abort) as error:  # click raises Abort from a KeyboardInterrupt
        code = 143 if isinstance(error.__cause__ or error, Terminated) else 130
        return _fail("interrupted" + MADE.get("".join(arguments[:1]), ""), code)
    except Exception as error:
        if is_without_thread(error):
            return _fail(NO_THREAD, GsioError.exit_code, debug=debug)
        text = f"internal error: {type(error).__name__}: {error}; run again with --debug for the traceback"
        return _fail(text, 70, debug=debug)
    return 0


def _fail(message: str, code: int, *, debug: bool = False) -> int:
    if debug:
        traceback.print_exc()
    say(f"gsio: error: {' '.join(message.split())}", err=True)
    return code
