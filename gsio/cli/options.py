"""The options of the commands: a table of those that change a configuration key, and how `--help` shows all of them."""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
from click.shell_completion import CompletionItem

from gsio.config import (
    allowed_values,
    default_values,
    known_keys,
    load_config,
    one_of,
    parse_assignment,
    preset_names,
    toml_value,
)

MODEL, RUN, OUTPUT, SELECTION, FILES, DISPLAY, OTHER = (
    "Model and grid", "Run", "What is saved", "What is taken", "Files", "Display", "General",
)  # fmt: skip


class _Path(click.Path):
    """The name of a file or folder. A shell does not expand the ~ of --output=~/run.h5, so that is done here."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = os.fspath(value)
        home = os.path.expanduser(text) if isinstance(text, str) else text  # noqa: PTH111 - keeps ~ without a home
        return super().convert(home, param, ctx)


PATH = _Path(path_type=Path)
FOLDER = _Path(path_type=Path, exists=True, file_okay=False)


class Option(click.Option):
    """An option that stands under `heading` in the help."""

    def __init__(self, *args: Any, heading: str = OTHER, default_of: str = "", **options: Any) -> None:
        super().__init__(*args, **options)
        self.heading = heading
        self._default_of = default_of  # the configuration key whose default the help shows

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the names and the help of the option."""
        record = super().get_help_record(ctx)
        default = default_values()[self._default_of] if record and self._default_of else ""
        return (record[0], f"{record[1]}  [default: {default}]") if record and default != "" else record


class Command(click.Command):
    """A command whose help lists the options under their headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a section for each heading, in the order of the first option of each."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record and isinstance(parameter, click.Option):
                sections.setdefault(getattr(parameter, "heading", OTHER), []).append(record)
        width = max(len(names) for records in sections.values() for names, _ in records)
        for heading, records in sections.items():
            with formatter.section(heading):
                # All sections share the width of the first column: the longest name that fits, and two spaces.
                padded = [(names.ljust(min(width, COLUMN)), text) for names, text in records]
                formatter.write_dl(padded, col_max=COLUMN + 2)


COLUMN = 30  # characters of the names of an option; longer names get a line of their own


class Group(click.Group):
    """A group that lists its commands in the order in which they were added."""

    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands."""
        return list(self.commands)


class KeyOption(NamedTuple):
    """An option that sets one key of the configuration."""

    names: str
    key: str
    type: Any
    metavar: str
    heading: str
    help: str


KEY_OPTIONS = [
    KeyOption("-r --rows", "grid.rows", int, "N", MODEL, "Give the grid N rows."),
    KeyOption("-c --cols", "grid.cols", int, "N", MODEL, "Give the grid N columns."),
    KeyOption("-f --feed", "model.feed", toml_value, "RATE", MODEL, "Set the feed rate F: a number, a list or a map."),
    KeyOption("-k --kill", "model.kill", toml_value, "RATE", MODEL, "Set the kill rate k: a number, a list or a map."),
    KeyOption("-t --dt", "model.dt", float, "TIME", MODEL, "Set the length of a time step."),
    KeyOption("-n --frames", "run.frames", int, "N", RUN, "Save N frames."),
    KeyOption("-e --steps-per-frame", "run.steps_per_frame", int, "N", RUN, "Compute N time steps for each frame."),
    KeyOption("--backend", "run.backend", str, "NAME", RUN,
              "Compute with cupy (on a GPU), numba, numpy (slow), or a library to compare with; auto takes a "
              "GPU if there is one, else numba."),
    KeyOption("--device", "run.device", int, "N", RUN, "Use GPU number N; the first is 0."),
    KeyOption("--devices", "run.devices", str, "all|N,N…", RUN,
              "Share the grid among several GPUs, all or those with these numbers."),
    KeyOption("--checkpoint-every", "run.checkpoint_every", toml_value, "N|TIME", RUN,
              "Write a checkpoint every N frames, or at intervals such as 15m."),
    KeyOption("--max-walltime", "run.max_walltime", str, "H:MM:SS", RUN,
              "Stop with a checkpoint, early enough to end within this time."),
    KeyOption("--memory", "output.memory", str, "SIZE", RUN,
              "Limit the memory for frames that wait to be written, for example 512MiB; without it the limit fits the "
              "machine."),
    KeyOption("--fields", "output.fields", str, "NAMES", OUTPUT, "Save the field v, the field u, or both as u,v."),
    KeyOption("--compression", "output.compression", str, "NAME", OUTPUT,
              f"Compress with {one_of(allowed_values('output.compression'))}; auto suits the format."),
    KeyOption("--store", "output.store", str, "TYPE", OUTPUT,
              "Store values as float32, float16, uint16 or uint8, or in the precision in which they are computed."),
    KeyOption("--keep-bits", "output.keep_bits", int, "N", OUTPUT,
              "Keep N bits of the mantissa of each value and round away the others; 0 keeps all."),
    KeyOption("--shard-frames", "output.shard_frames", int, "N", OUTPUT,
              "Put N frames into one file of a Zarr output; 0 makes a file for each chunk."),
    KeyOption("--pyramid", "output.pyramid", int, "N", OUTPUT,
              "Add N smaller copies for viewers to a Zarr output, each half as wide and high as the one before."),
]  # fmt: skip


def configuration(command: Callable[..., Any], load: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """Add the options that choose and change a configuration, and pass the command what `load` makes of them.

    The command gets the result of `load`, by default `load_config`, which has the same arguments, as `config`.
    """
    keys: dict[str, str] = {}
    options = [
        click.argument("config_path", metavar="[CONFIG]", required=False, type=PATH),
        click.option(
            "--preset", cls=Option, metavar="NAME", heading=MODEL, shell_complete=completion(preset_names),
            help="Start from a shipped configuration; 'gsio presets' lists them.",
        ),
        click.option(
            "--set", "assignments", cls=Option, metavar="KEY=VALUE", multiple=True, heading=MODEL,
            shell_complete=completion(lambda: [f"{key}=" for key in known_keys()]),
            help="Set any key that 'gsio config show' lists; the option may be repeated.",
        ),
    ]  # fmt: skip
    for row in KEY_OPTIONS:
        *_, long = row.names.split()
        keys[long.lstrip("-").replace("-", "_")] = row.key
        names = completion(functools.partial(allowed_values, row.key))
        options.append(
            click.option(
                *row.names.split(), cls=Option, type=row.type, metavar=row.metavar, help=row.help,
                heading=row.heading, default_of=row.key, shell_complete=names,
            )
        )  # fmt: skip

    @functools.wraps(command)
    def with_config(config_path: Path | None, preset: str | None, assignments: tuple[str, ...], **given: Any) -> Any:
        overrides = dict(map(parse_assignment, assignments))
        values = {key: given.pop(name) for name, key in keys.items()}
        overrides |= {key: value for key, value in values.items() if value is not None}
        return command(config=(load or load_config)(config_path, preset=preset, overrides=overrides), **given)

    decorated: Callable[..., Any] = with_config
    for option in reversed(options):
        decorated = option(decorated)
    return decorated


def completion(names: Callable[[], Any]) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    """Return the function with which a shell completes one of `names()`."""
    return lambda ctx, param, start: [CompletionItem(name) for name in names() if name.startswith(start)]


def selection(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that select a part of an output: export, frames and movie all have them."""
    for name, metavar, default, text in (  # the defaults take all
        ("--crop", "TOP:BOTTOM,LEFT:RIGHT", ":,:", "Take only these rows and columns."),
        ("--members", "N|START:STOP:STEP", ":", "Take only these members of a batch."),
        ("--fields", "NAMES", "", "Take only the field v, the field u, or both as u,v."),
        ("--frames", "N|START:STOP:STEP", "", "Take only these frames, in the notation of Python; -1 is the last."),
    ):
        command = click.option(name, cls=Option, default=default, metavar=metavar, heading=SELECTION, help=text)(
            command
        )
    return command


def output_option(*, required: bool, text: str) -> Callable[..., Any]:
    """Return the option that names the output of a command."""
    return click.option(
        "-o", "--output", cls=Option, metavar="PATH", required=required, type=PATH, heading=FILES, help=text
    )


def file_option(name: str, metavar: str, text: str) -> Callable[..., Any]:
    """Return an option that names a file or folder that the command makes."""
    return click.option(name, cls=Option, metavar=metavar, type=PATH, heading=FILES, help=text)


def overwrite_option(target: str) -> Callable[..., Any]:
    """Return the option that allows a command to replace its target."""
    text = f"Replace {target} if it exists."
    return click.option("--overwrite", cls=Option, is_flag=True, heading=FILES, help=text)


def quiet_option(text: str) -> Callable[..., Any]:
    """Return the option that makes a command silent."""
    return click.option("-q", "--quiet", cls=Option, is_flag=True, heading=DISPLAY, help=text)


debug_option = click.option("--debug", cls=Option, is_flag=True, help="Log more, and show a traceback with an error.")
