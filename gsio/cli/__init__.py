"""The command line: parse, call, map errors to exit codes. Results go to stdout, everything else to stderr."""

import errno
import os
import sys
import traceback
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from gsio import __version__
from gsio.config import Config, describe_preset, load_config, parse_assignment, preset_names, toml_value
from gsio.errors import NO_THREAD, DataError, GsioError, StorageError, is_without_thread
from gsio.files import new_file, require_folder
from gsio.inputs import printable
from gsio.processes import Terminated, terminable
from gsio.streams import error_of, open_outputs

MAKE_FILES = {"run", "profile", "repair", "export"}  # what they print is not what they are for


class _Path(click.Path):
    """The name of a file or folder; a shell leaves the ~ of --output=~/run.h5 as it is."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = os.fspath(value)
        home = os.path.expanduser(text) if isinstance(text, str) else text  # noqa: PTH111 - as it is without a home
        return super().convert(home, param, ctx)


PATH = _Path(path_type=Path)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code of the process; see ``gsio.errors`` for the codes."""
    is_program, arguments = arguments is None, sys.argv[1:] if arguments is None else arguments
    if is_program:
        open_outputs()
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # of NumPy: here it has nothing to do but to start threads
    # click would take what follows a bare --resume for its value.
    arguments = ["--resume=auto" if argument == "--resume" else argument for argument in arguments]
    with terminable():
        code = _run(arguments)
    if is_program:
        sys.stdout.flush()
    lost = error_of(sys.stdout)
    if lost is not None and lost.errno != errno.EPIPE and code == 0 and arguments[0] not in MAKE_FILES:
        code = _fail(f"stdout: {lost.strerror}; expected a place that results can be written to", 74)
    if is_program and code == StorageError.exit_code:
        sys.stderr.flush()
        os._exit(code)  # HDF5 that met a failed write can crash when Python lets go of what is left of its file
    return code


def _run(arguments: list[str]) -> int:
    debug = "--debug" in arguments
    try:
        cli.main(arguments, prog_name="gsio", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        _say(error.format_message(), err=True)
        return 2
    except click.ClickException as error:
        hint = f"; see '{error.ctx.command_path} --help'" if isinstance(error, click.UsageError) and error.ctx else ""
        return _fail(error.format_message().rstrip(".") + hint, 2)
    except GsioError as error:
        return _fail(str(error), error.exit_code, debug=debug)
    except OSError as error:
        return _fail(f"{error.strerror or error}; expected a place that can be written to", 74, debug=debug)
    except (KeyboardInterrupt, click.Abort) as error:  # click makes its own of the first
        code = 143 if isinstance(error.__cause__ or error, Terminated) else 130
        return _fail("interrupted before the first frame; nothing was written", code)
    except Exception as error:
        if is_without_thread(error):
            return _fail(NO_THREAD, GsioError.exit_code, debug=debug)
        text = f"internal error: {type(error).__name__}: {error}; run again with --debug for the traceback"
        return _fail(text, 70, debug=debug)
    return 0


def _fail(message: str, code: int, *, debug: bool = False) -> int:
    if debug:
        traceback.print_exc()
    _say(f"gsio: error: {' '.join(message.split())}", err=True)
    return code


def _say(text: object, *, err: bool = False, nl: bool = True) -> None:
    """Print to what stdout or stderr is now; names and attributes, whoever wrote them, do nothing to a terminal."""
    click.echo(printable(str(text)), file=sys.stderr if err else sys.stdout, nl=nl)


def _configuration(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose and change a configuration."""
    for option in reversed([
        click.argument("config_path", metavar="[CONFIG]", required=False, type=PATH),
        click.option("--preset", metavar="NAME", help=f"A shipped configuration: {', '.join(preset_names())}."),
        click.option("--set", "assignments", metavar="KEY=VALUE", multiple=True, help="Change a key; may be repeated."),
        click.option("-n", "--frames", type=int, help="Frames to save."),
        click.option("-e", "--steps-per-frame", type=int, help="Time steps between two frames."),
        click.option("-r", "--rows", type=int, help="Rows of the grid."),
        click.option("-c", "--cols", type=int, help="Columns of the grid."),
        click.option("-f", "--feed", type=toml_value, metavar="RATE", help="Feed rate F, or a list or map of it."),
        click.option("-k", "--kill", type=toml_value, metavar="RATE", help="Kill rate k, or a list or map of it."),
        click.option("-t", "--dt", type=float, help="Time step."),
        click.option("--backend", help="auto, cupy, numba, numpy, or one to compare with."),
        click.option("--device", type=int, help="Which GPU."),
        click.option("--checkpoint-every", metavar="N|TIME", type=toml_value, help="Frames, or a time as in 15m."),
        click.option("--max-walltime", metavar="H:MM:SS", help="Stop in time to be done by then."),
        click.option("--compression", help="auto, deflate, lz4, zstd or none."),
        click.option("--store", help="computed, float32, float16, uint16 or uint8."),
        click.option("--keep-bits", type=int, help="Bits of the mantissa to keep; 0: all."),
        click.option("--fields", help="v, u or u,v."),
        click.option("--shard-frames", type=int, metavar="N", help="Zarr: frames that share a file."),
        click.option("--pyramid", type=int, metavar="N", help="Zarr: smaller levels for viewers, each half as wide."),
        click.option("--memory", metavar="SIZE", help="Of the blocks in which frames wait, as in 512MiB."),
    ]):  # fmt: skip
        command = option(command)
    return command


KEYS = {
    "frames": "run.frames",
    "steps_per_frame": "run.steps_per_frame",
    "rows": "grid.rows",
    "cols": "grid.cols",
    "feed": "model.feed",
    "kill": "model.kill",
    "dt": "model.dt",
    "backend": "run.backend",
    "device": "run.device",
    "checkpoint_every": "run.checkpoint_every",
    "max_walltime": "run.max_walltime",
    "compression": "output.compression",
    "store": "output.store",
    "keep_bits": "output.keep_bits",
    "fields": "output.fields",
    "shard_frames": "output.shard_frames",
    "pyramid": "output.pyramid",
    "memory": "output.memory",
}


def _load(
    config_path: Path | None, preset: str | None, assignments: tuple[str, ...], options: dict[str, Any]
) -> Config:
    overrides = dict(map(parse_assignment, assignments))
    overrides |= {KEYS[name]: value for name, value in options.items() if value is not None}
    return load_config(config_path, preset=preset, overrides=overrides)


_debug = click.option("--debug", is_flag=True, help="Show tracebacks and log every commit.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """Gray-Scott reaction-diffusion, saved while it is computed.

    The main job: gsio run --output run.h5
    """


@cli.command()
@_configuration
@click.option("-o", "--output", metavar="PATH", required=True, type=PATH, help="File to make: .h5, .hdf5 or .zarr.")
@click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
@click.option(
    "--resume",
    type=click.Choice(["no", "auto", "must"]),
    default="no",
    help="auto, or --resume alone: go on with the output, or begin it. must: it has to be there.",
)
@click.option(
    "--discard-after",
    type=click.IntRange(0),
    metavar="N",
    help="With --resume=must: keep only N of the committed frames.",
)
@click.option("--metrics-port", type=int, metavar="PORT", help="Show rates to Prometheus at this port of localhost.")
@click.option("--timeline", metavar="PATH.json", type=PATH, help="Also save what ran when, for Perfetto.")
@click.option("--log-format", type=click.Choice(["auto", "text", "json"]), default="auto", show_default=True)
@click.option("-q", "--quiet", is_flag=True, help="No progress, no summary.")
@_debug
def run(
    config_path: Path | None,
    preset: str | None,
    assignments: tuple[str, ...],
    output: Path,
    overwrite: bool,
    resume: Any,
    discard_after: int | None,
    metrics_port: int | None,
    timeline: Path | None,
    log_format: Any,
    quiet: bool,
    debug: bool,
    **options: Any,
) -> None:
    """Simulate and save every frame.

    CONFIG is a TOML file that changes some of the keys of 'gsio config show'.
    """
    config = _load(config_path, preset, assignments, options)
    import structlog

    from gsio import log
    from gsio.run.pipeline import Pipeline
    from gsio.run.progress import shown
    from gsio.run.simulate import simulate
    from gsio.run.status import metrics

    structlog.contextvars.bind_contextvars(run=uuid.uuid4().hex[:8])
    with metrics(metrics_port) as show, shown(quiet=quiet) as bar:

        def watch(pipeline: Pipeline) -> None:
            bar(pipeline)
            show(pipeline)

        log.configure(log_format, quiet=quiet, debug=debug)  # inside, so that events are printed above the bar
        options = {"overwrite": overwrite, "resume": resume, "discard_after": discard_after, "timeline": timeline}
        summary = simulate(config, output, **options, watch=watch)
    if not quiet and summary is not None:
        _say(summary)


@cli.command()
@_configuration
@click.option("-o", "--output", metavar="PATH", type=PATH, help="Keep what the run makes; else it is removed.")
@click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
@click.option("--timeline", metavar="PATH.json", type=PATH, help="Save what ran when, for Perfetto.")
@click.option("--plot", metavar="PATH", type=PATH, help="Draw it: .png or .svg.")
@click.option("--report", metavar="PATH.nsys-rep", type=PATH, help="Keep the report of Nsight Systems.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@_debug
def profile(
    config_path: Path | None,
    preset: str | None,
    assignments: tuple[str, ...],
    output: Path | None,
    overwrite: bool,
    timeline: Path | None,
    plot: Path | None,
    report: Path | None,
    quiet: bool,
    debug: bool,
    **options: Any,
) -> None:
    """Run a job and say what overlapped: what was hidden under computing, and what bounds the run.

    Where nsys is on PATH the run is recorded by Nsight Systems too, and told of both.
    """
    config = _load(config_path, preset, assignments, options)
    from gsio import log
    from gsio.profile import disagreement
    from gsio.profile import profile as run_profiled
    from gsio.run.progress import shown

    with shown(quiet=quiet) as watch:
        log.configure("auto", quiet=True, debug=debug)
        files = {"to_timeline": timeline, "plot": plot, "report": report}
        reports = run_profiled(config, output, overwrite=overwrite, **files, quiet=quiet, watch=watch)
    _say("\n\n".join(map(str, reports)))
    if len(reports) > 1:
        _say(f"\nThe two differ by at most {disagreement(reports):.1%} of the loop.")


@cli.command()
@click.argument("path", type=PATH)
@click.option("--follow", is_flag=True, help="Print frames as they are committed, until the run ends.")
@_debug
def info(path: Path, follow: bool, debug: bool) -> None:
    """Print what an output holds."""
    from gsio.run.status import lines_of, open_committed, state_of

    if follow:
        for line in lines_of(path):
            _say(line)
            if error_of(sys.stdout) is not None:  # nobody follows any more
                break
        return

    with open_committed(path) as stack:
        shape = " × ".join(map(str, next(iter(stack.fields.values())).shape[1:]))
        _say(f"{path}: {stack.frames} frames of {shape}, {state_of(path, stack.attributes['status'])}")
        for name, field in stack.fields.items():
            _say(f"  {name:12} {field.dtype}, compression {field.codec}, {field.frames_per_chunk} frames a chunk")
        for name in ("started", "ended", "device", "backend", "gsio_version", "gsio_commit", "host", "argv"):
            _say(f"  {name:12} {' '.join(stack.attributes[name].split())}")
        _say("\n" + stack.attributes["config"].rstrip())


@cli.command()
@click.argument("path", type=PATH)
@_debug
def verify(path: Path, debug: bool) -> None:
    """Decode every frame of an output, and say what is wrong with it and where."""
    from gsio.reader.verify import outside, problems
    from gsio.run.progress import counted
    from gsio.run.status import is_written, open_committed

    with open_committed(path) as stack:
        found = 0
        with counted(stack.frames) as advance:
            for problem in problems(stack, advance, is_written=is_written(path)):
                _say(problem)  # above the bar
                found += 1
        if left := outside(stack):
            click.echo(f"warning: {left}; the frames are as they were computed")
        if found:
            raise DataError(f"{path}: {found} problems in {stack.frames} frames; expected none")
        _say(f"{path}: {stack.frames} frames, all intact")


@cli.command()
@click.argument("path", type=PATH)
@_debug
def repair(path: Path, debug: bool) -> None:
    """Rebuild an output that cannot be read, after a power cut, from its journal."""
    from gsio import log
    from gsio.run.repair import repair

    log.configure("text", debug=debug)
    _say(repair(path))


@cli.command()
@click.argument("source", type=PATH)
@click.argument("target", type=PATH)
@click.option("--frames", default=":", metavar="START:STOP:STEP", help="Only these, as in Python.")
@click.option("--crop", default=":,:", metavar="TOP:BOTTOM,LEFT:RIGHT", help="Only these rows and columns.")
@click.option(
    "--compression",
    type=click.Choice(["auto", "deflate", "lz4", "zstd", "none"]),
    default="auto",
    help="Of .h5 and .zarr.",
)
@click.option("--overwrite", is_flag=True, help="Replace TARGET if it exists.")
@click.option("-q", "--quiet", is_flag=True, help="No progress, no summary.")
@_debug
def export(source: Path, target: Path, quiet: bool, debug: bool, **options: Any) -> None:
    """Write what an output holds, or a part of it, in another format.

    The ending of TARGET names it: .h5, .hdf5 or .zarr (an output again), .tif or .tiff (ImageJ), .ome.zarr, .ome.tif or
    .ome.tiff (napari, bioio), .vtkhdf (ParaView), .openpmd.h5.
    """
    from gsio.export import export as write

    frames = write(source, target, quiet=quiet, **options)
    if not quiet:
        _say(f"{target}: {frames} frames")


@cli.command()
@_debug
def doctor(debug: bool) -> None:
    """Say what this machine has, and what is missing to use its GPU."""
    from gsio.cli.doctor import findings

    for name, finding in findings():
        _say(f"{name:12} {finding}")


@cli.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--preview", metavar="FOLDER", type=PATH, help="Run each, and draw its last frame in FOLDER/NAME.png.")
@click.option("--backend", help="As of gsio run, for the preview.")
@_debug
def presets(names: tuple[str, ...], preview: Path | None, backend: str | None, debug: bool) -> None:
    """List the shipped configurations, with feed, kill and what they make."""
    shown = names or [name for name in preset_names() if name != "default"]
    configs = {name: load_config(preset=name, overrides={"run.backend": backend}, environ={}) for name in shown}
    if preview is not None:
        from gsio import log

        require_folder("--preview", preview, (f"{name}.png" for name in configs))
        log.configure("auto", quiet=True, debug=debug)  # else structlog would write to stdout
    _say("preset   feed   kill    what it makes")
    for name, config in configs.items():
        if preview is not None:
            from gsio.run.simulate import last_frame
            from gsio.view.picture import write_picture

            frame = last_frame(config)
            preview.mkdir(parents=True, exist_ok=True)
            with new_file("--preview", preview / f"{name}.png") as picture:
                write_picture(picture, frame)
        _say(f"{name:8} {config.model.feed:<7g}{config.model.kill:<7g} {describe_preset(name)}")


@cli.group()
def bench() -> None:
    """Measure what this machine can do."""


@bench.command()
@_configuration
@_debug
def tune(
    config_path: Path | None, preset: str | None, assignments: tuple[str, ...], debug: bool, **options: Any
) -> None:
    """Find the fastest way to cut a run's grid into tiles on this GPU.

    The fastest is kept, and used by every later run of the same grid.
    """
    config = _load(config_path, preset, assignments, options)
    from gsio.compute import tune
    from gsio.run.initial import initial_state
    from gsio.run.plan import layout_of

    for tiling, speed in tune(config, layout_of(config), initial_state(config)):
        _say(f"{speed:8.1f} Gcell/s  {tiling}")


TABLES = {
    "verdict": "The main job by every backend: saved by h5py in the loop, by h5py in a thread, and by gsio.",
    "compute": "The time steps alone, beside other libraries.",
    "storage": "What is saved a second, in every format, beside other libraries.",
    "transfer": "What a frame costs on its way from the GPU to the host, against what a step costs.",
    "scaling": "A run by the size of the grid, the steps between two frames, and the threads that encode.",
}


def _add_table(name: str, what: str) -> None:
    """Add the command that measures a table of ``gsio.bench``."""

    @bench.command(name, help=what)
    @click.option("--device", type=click.Choice(["auto", "gpu", "cpu"]), default="auto", help="What is measured.")
    @click.option("--only", default="", metavar="TEXT", help="Only rows whose name holds TEXT.")
    @click.option("--repeats", type=click.IntRange(0), default=0, help="Of every row; 0: as many as the table needs.")
    @click.option("--timeout", type=click.FloatRange(0), default=0, help="Seconds a row may take; 0: the table's own.")
    @click.option(
        "--folder",
        type=_Path(path_type=Path, exists=True, file_okay=False),
        help="Where to write; else the system's own.",
    )
    @click.option("--frames", type=click.IntRange(2), default=1000, help="Of the main job; other rows take a share.")
    @click.option("--quick", is_flag=True, help="Few rows, small and once: less than a minute.")
    @click.option("--json", "json_path", metavar="PATH", type=PATH, help="Write every measurement too.")
    @click.option("--plot", metavar="FOLDER", type=PATH, help="Draw the table, as PNG and SVG.")
    @_debug
    def measure(device: str, json_path: Path | None, plot: Path | None, debug: bool, **options: Any) -> None:
        from gsio.bench.tables import Options, report
        from gsio.machine import find_driver

        if device == "auto":
            driver = find_driver()
            device = "gpu" if driver and driver.gpus else "cpu"
        _say(report(name, Options(device, **options), json_path, plot, partial(_say, err=True)))


for _name, _what in TABLES.items():
    _add_table(_name, _what)


@cli.group("config")
def config_group() -> None:
    """Look at configurations."""


@config_group.command()
@_configuration
@_debug
def show(
    config_path: Path | None, preset: str | None, assignments: tuple[str, ...], debug: bool, **options: Any
) -> None:
    """Print the resolved configuration as TOML."""
    config = _load(config_path, preset, assignments, options)
    from gsio.model.gray_scott import check_stability
    from gsio.run.initial import rates

    check_stability(config.model, *rates(config))
    _say(config.to_toml(), nl=False)
