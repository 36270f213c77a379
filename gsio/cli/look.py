"""Commands that show outputs: frames."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from gsio.cli.options import (
    PATH,
    Command,
    Option,
    completion,
    debug_option,
    output_option,
    overwrite_option,
    quiet_option,
    selection,
)
from gsio.streams import say

PICTURE = "How the picture looks"


def _colour_maps() -> tuple[str, ...]:
    from gsio.draw.colours import NAMES

    return NAMES


def drawing(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say how frames are drawn: frames and movie have them."""
    for option in (
        click.option("--timestamp", cls=Option, is_flag=True, heading=PICTURE, help="Write the model time below."),
        click.option(
            "--colorbar", cls=Option, is_flag=True, heading=PICTURE, help="Draw the colours and their values below."
        ),
        click.option(
            "--limits", cls=Option, metavar="LO:HI|auto|frame", default="auto", show_default=True, heading=PICTURE,
            help="Give LO the first colour and HI the last; auto takes the range of all frames, frame that of each.",
        ),
        click.option(
            "--cmap", cls=Option, metavar="NAME", default="navia", show_default=True, heading=PICTURE,
            shell_complete=completion(_colour_maps), help="Use this colour map of the package cmap.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


@click.command(cls=Command)
@click.argument("path", type=PATH)
@output_option(
    required=True, text="Write a folder of pictures; or one picture, .png or .tif; or many, as in frame_%05d.png."
)
@overwrite_option("a picture")
@selection
@click.option(
    "--scale", cls=Option, type=float, metavar="FACTOR", default=1.0, show_default=True, heading=PICTURE,
    help="Make the picture larger by a whole number, or smaller by a fraction of 1.",
)  # fmt: skip
@drawing
@quiet_option("Show neither progress nor a summary.")
@debug_option
def frames(path: Path, output: Path, quiet: bool, debug: bool, **options: Any) -> None:
    """Draw frames of an output as pictures.

    One picture shows the last frame, and v, unless --frames and --fields say otherwise. Several fields, or the members
    of a batch, become the tiles of one picture.
    """
    from gsio import log
    from gsio.look.frames import write_frames

    log.configure("text", quiet=quiet, debug=debug)
    number = write_frames(path, output, quiet=quiet, **options)
    if not quiet:
        say(f"{output}: {number} picture{'s' * (number > 1)}")
