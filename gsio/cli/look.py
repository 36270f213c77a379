"""Commands that show: view."""

import sys
from pathlib import Path

import click

from gsio.cli.options import PATH, Command, Option, debug_option
from gsio.errors import UsageError
from gsio.processes import Terminated
from gsio.streams import say

PAGE = "Page"


@click.command(cls=Command)
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=PATH)
@click.option("--no-browser", cls=Option, is_flag=True, heading=PAGE, help="Print the address, and open no browser.")
@click.option("--wait", cls=Option, is_flag=True, heading=PAGE, help="Wait for outputs that do not exist yet.")
@click.option(
    "--port", cls=Option, type=click.IntRange(0, 65535), default=0, metavar="PORT", heading=PAGE,
    help="Serve the page at this port; without it a free one is taken.",
)  # fmt: skip
@click.option(
    "--allow-host", "names", cls=Option, multiple=True, metavar="NAME", heading=PAGE,
    help="Answer under this name of the machine too, as a proxy needs it; the option may be repeated.",
)  # fmt: skip
@click.option(
    "--host", cls=Option, default="127.0.0.1", show_default=True, metavar="ADDRESS", heading=PAGE,
    help="Serve the page at this address of the machine; other machines need --allow-others.",
)  # fmt: skip
@click.option(
    "--allow-others", cls=Option, is_flag=True, heading=PAGE,
    help="Let other machines reach the page at --host. Nothing is encrypted.",
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
        say(server.url)
        if not is_here(host):
            say("Nothing is encrypted: whoever reads this address on the network can see these outputs.", err=True)
        if sys.stdin is not None and sys.stdin.isatty():
            say("Ctrl-C ends the page.", err=True)
        try:
            if no_browser or not has_display():
                if not has_display() and is_here(host):
                    say(how_to_forward(server.port), err=True)
                server.wait()
            with opened_browser(server):
                server.wait()
        except KeyboardInterrupt as error:
            if isinstance(error, Terminated):
                raise
            say("The page has ended.", err=True)
