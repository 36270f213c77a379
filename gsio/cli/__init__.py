"""The command line: parse, call, and turn errors into exit codes. Results go to stdout, everything else to stderr."""

import errno
import os
import sys
from importlib import import_module
from typing import NoReturn

import click

from gsio import __version__
from gsio.errors import NO_THREAD, GsioError, StorageError, ToldError, is_without_thread
from gsio.processes import Terminated, launched, leave_to_first, terminable
from gsio.streams import error_of, open_outputs, say

# The commands whose result is a file, so that a lost line of stdout is no failure, and what an interrupt leaves.
MADE = dict.fromkeys(("run", "profile", "repair", "export", "movie"), "; nothing was written") | {
    "frames": "; the pictures that were written are whole"
}

# The commands, each with its module and the first sentence of its help: to list them, none is imported.
COMMANDS = {
    "run": ("run", "Simulate and save every frame."),
    "view": ("look", "Show outputs in the browser, also while a run writes them."),
    "info": ("inspect", "Print the frames, fields, status and configuration of an output."),
    "verify": ("inspect", "Decode every frame of an output, and report what is damaged."),
    "repair": ("convert", "Rebuild an output that cannot be read from its journal."),
    "export": ("convert", "Write the frames of an output in another format."),
    "frames": ("look", "Draw frames of an output as pictures."),
    "movie": ("look", "Make a movie of the frames of an output."),
    "sweep": ("sweep", "Compute many runs that differ in some keys, and keep them as one result."),
    "presets": ("config", "List the shipped configurations, and the patterns they make."),
    "config": ("config", "Show configurations."),
    "doctor": ("inspect", "Describe this machine, and say what is missing to use its GPU."),
    "profile": ("run", "Run a job, and report what limits the run."),
    "bench": ("bench", "Measure the performance of this machine."),
}


class _Commands(click.Group):
    """The group of `COMMANDS`, each of which is imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"gsio.cli.{COMMANDS[cmd_name][0]}"), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """Run Gray-Scott simulations and save every frame while the GPU keeps computing.

    The main job: gsio run --output run.h5
    """


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
        _leave(code)  # after a failed write HDF5 can crash when Python frees the objects of the file
    return code


def program() -> NoReturn:
    """Run the command line of this process, and end it.

    Python would free every object first, and CUDA what a GPU holds: the system is faster. Where a launcher of MPI
    or a profiler watches how the process ends, it ends in the usual way.
    """
    import atexit

    code = main()
    watched = "mpi4py.MPI" in sys.modules or "CUDA_INJECTION64_PATH" in os.environ
    if "numpy" in sys.modules and not watched:
        atexit.register(_leave, code)  # it is called first: no thread runs any more, and no object is freed yet
    sys.exit(code)


def _leave(code: int) -> NoReturn:
    """End the process at once, after what libraries have asked Python to do at its end."""
    import atexit

    atexit.unregister(_leave)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    if "mpi4py.MPI" in sys.modules:
        sys.modules["mpi4py.MPI"].Finalize()  # else the launcher would call this an abort
    os._exit(code)


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
        import traceback

        traceback.print_exc()
    say(f"gsio: error: {' '.join(message.split())}", err=True)
    return code
