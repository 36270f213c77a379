"""Commands that show: view."""

from pathlib import Path

import click

from gsio.cli.options import DISPLAY, PATH, Command, Option, debug_option
from gsio.streams import say


@click.command(cls=Command)
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=PATH)
@click.option("--no-browser", cls=Option, is_flag=True, heading=DISPLAY, help="Print the address, and open no browser.")
@click.option(
    "--port", cls=Option, type=click.IntRange(0, 65535), default=0, metavar="PORT", heading=DISPLAY,
    help="Serve the page at this port of this machine; without it a free port is taken.",
)  # fmt: skip
@debug_option
def view(paths: tuple[Path, ...], no_browser: bool, port: int, debug: bool) -> None:
    """Show outputs in the browser, also while a run writes them."""
    import trio

    from gsio.look.serve import Server, listen

    server = Server(paths, listen(port=port))
    trio.run(server.run, lambda: say(server.url))
