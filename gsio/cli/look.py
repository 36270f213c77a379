"""Commands that show outputs: frames, movie and view."""

import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from gsio.cli.options import (
    PATH,
    SELECTION,
    Command,
    Option,
    completion,
    debug_option,
    output_option,
    overwrite_option,
    quiet_option,
    selection,
)
from gsio.draw.colours import DEFAULT, NAMES
from gsio.errors import UsageError
from gsio.processes import Terminated
from gsio.streams import say

PICTURE, MOVIE, PAGE = "How the picture looks", "The movie", "The page"


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
            "--cmap", cls=Option, metavar="NAME", default=DEFAULT, show_default=True, heading=PICTURE,
            shell_complete=completion(lambda: NAMES), help="Use this colour map of the package cmap.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


@click.command(cls=Command)
@click.argument("path", type=PATH)
@output_option(
    required=True, text="Write one frame to a .png or .tif, or many to names such as frame_%05d.png or to a folder."
)
@overwrite_option("a picture")
@selection
@click.option(
    "--scale", cls=Option, type=float, metavar="FACTOR", default=1, show_default=True, heading=PICTURE,
    help="Make the picture larger by a whole number, or smaller by a fraction of 1.",
)  # fmt: skip
@drawing
@quiet_option("Show neither progress nor a summary.")
@debug_option
def frames(path: Path, output: Path, quiet: bool, debug: bool, **options: Any) -> None:
    """Draw frames of an output as pictures.

    One picture shows the last frame, and many show all frames, unless --frames says otherwise. They show v unless
    --fields says otherwise. Several fields, or the members of a batch, become the tiles of one picture.
    """
    from gsio import log
    from gsio.look.frames import write_frames

    log.configure("text", quiet=quiet, debug=debug)
    number = write_frames(path, output, quiet=quiet, **options)
    if not quiet:
        say(f"{output}: {number} picture{'s' * (number > 1)}")


@click.command(cls=Command)
@click.argument("path", type=PATH)
@output_option(required=True, text="Write the movie here; the ending selects the format.")
@overwrite_option("the movie")
@selection
@click.option(
    "--every", cls=Option, type=int, metavar="N", default=1, show_default=True, heading=SELECTION,
    help="Take one of N frames.",
)  # fmt: skip
@click.option(
    "--fps", cls=Option, type=float, metavar="N", default=30, show_default=True, heading=MOVIE,
    help="Show N frames a second.",
)  # fmt: skip
@click.option(
    "--size", cls=Option, metavar="WxH", default="", heading=MOVIE,
    help="Make the picture as large as fits into W × H pixels. Without a size, .gif, .apng and .webp have at most 640 "
    "each way, and others 4096.",
)  # fmt: skip
@click.option(
    "--crf", cls=Option, type=int, metavar="N", heading=MOVIE,
    help="Choose the quality of .mp4, .webm and .mkv: a smaller number makes a better and larger movie.",
)  # fmt: skip
@click.option(
    "--lossless", cls=Option, is_flag=True, heading=MOVIE, help="Keep the exact colour of each pixel in .mkv, by FFV1."
)
@drawing
@quiet_option("Show neither progress nor a summary.")
@debug_option
def movie(path: Path, output: Path, quiet: bool, debug: bool, **options: Any) -> None:
    """Make a movie of the frames of an output.

    The ending of the name selects the format:

    \b
    .mp4   H.264, which everything plays; odd sizes get one more row or column
    .webm  VP9, for web pages
    .mkv   H.264, or with --lossless FFV1, for archives
    .gif, .apng, .webp   pictures that move, with the exact colours

    A movie of a running output ends with the frames that are committed.
    """  # noqa: D301 - click keeps the lines after \b
    from gsio import log
    from gsio.look.movie import make_movie

    log.configure("text", quiet=quiet, debug=debug)
    number = make_movie(path, output, quiet=quiet, **options)
    if not quiet:
        say(f"{output}: {number} frame{'s' * (number > 1)}, {number / options['fps']:.4g} seconds")


@click.command(cls=Command)
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=PATH)
@click.option("--no-browser", cls=Option, is_flag=True, heading=PAGE, help="Print the address, and open no browser.")
@click.option("--wait", cls=Option, is_flag=True, heading=PAGE, help="Wait for outputs that do not exist yet.")
@click.option(
    "--port", cls=Option, type=int, default=0, metavar="PORT", show_default=True, heading=PAGE,
    help="Serve the page at this port; 0 takes a free one.",
)  # fmt: skip
@click.option(
    "--host", cls=Option, default="127.0.0.1", show_default=True, metavar="ADDRESS", heading=PAGE,
    help="Serve the page at this address of the machine; other machines need --allow-others.",
)  # fmt: skip
@click.option(
    "--allow-others", cls=Option, is_flag=True, heading=PAGE,
    help="Let other machines reach the page at --host. Nothing is encrypted.",
)  # fmt: skip
@click.option(
    "--allow-host", "names", cls=Option, multiple=True, metavar="NAME", heading=PAGE,
    help="Answer under this name of the machine too, as a proxy needs it; the option may be repeated.",
)  # fmt: skip
@debug_option
def view(
    paths: tuple[Path, ...],
    no_browser: bool,
    wait: bool,
    port: int,
    names: tuple[str, ...],
    host: str,
    allow_others: bool,
    debug: bool,
) -> None:
    """Show outputs in the browser, also while a run writes them.

    The page has exact values, and follows a running output. Several outputs are shown side by side.
    """
    from gsio import log
    from gsio.look.browser import has_display, how_to_forward, opened_browser
    from gsio.look.serve import Server, is_here, listen

    log.configure("text", debug=debug)
    if not is_here(host) and not allow_others:
        raise UsageError(f"--host: {host} can be reached from other machines; expected --allow-others with it")
    with Server(paths, listen(host, port), names, wait=wait) as server:
        try:
            if wait or any(source.is_computing for source in server.sources):
                os.nice(10)  # a run on this machine needs its processors more than its page does
            say(server.url)
            if not is_here(host):
                say("Nothing is encrypted: whoever reads this address on the network can see these outputs.", err=True)
            elif not has_display():
                say(how_to_forward(server.port), err=True)
            if sys.stdin is not None and sys.stdin.isatty():
                say("Ctrl-C ends the page.", err=True)
            with nullcontext() if no_browser or not has_display() else opened_browser(server):
                server.wait()
        except KeyboardInterrupt as error:
            if isinstance(error, Terminated):
                raise
            say("The page has ended.", err=True)
