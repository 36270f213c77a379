"""Commands that write an output anew: repair and export."""

from pathlib import Path
from typing import Any

import click

from gsio.cli.options import (
    PATH,
    SELECTION,
    Command,
    Option,
    debug_option,
    overwrite_option,
    quiet_option,
    selection,
)
from gsio.config import AUTO, allowed_values, one_of
from gsio.streams import say


@click.command(cls=Command)
@click.argument("path", type=PATH)
@debug_option
def repair(path: Path, debug: bool) -> None:
    """Rebuild an output that cannot be read from its journal.

    A power cut, for example, can leave such an output.
    """
    from gsio import log
    from gsio.run.repair import repair

    log.configure("text", debug=debug)
    say(repair(path))


@click.command(cls=Command)
@click.argument("source", type=PATH)
@click.argument("target", type=PATH)
@selection
@click.option(
    "--compression", cls=Option, type=click.Choice(allowed_values("output.compression")), default=AUTO,
    show_default=True, heading=SELECTION, metavar="NAME",
    help=f"Compress .h5 and .zarr with {one_of(allowed_values('output.compression'))}; auto suits the format.",
)  # fmt: skip
@overwrite_option("TARGET")
@quiet_option("Show neither progress nor a summary.")
@debug_option
def export(source: Path, target: Path, quiet: bool, debug: bool, **options: Any) -> None:
    """Write the frames of an output in another format.

    All saved fields are written unless --fields says otherwise. The ending of TARGET selects the format:

    \b
    .h5, .hdf5, .zarr              another output of gsio
    .tif, .tiff                    ImageJ
    .ome.zarr, .ome.tif, .ome.tiff napari, bioio
    .vtkhdf                        ParaView
    .openpmd.h5                    openPMD
    """  # noqa: D301 - click keeps the lines after \b
    from gsio.export import export as write

    frames = write(source, target, quiet=quiet, **options)
    if not quiet:
        say(f"{target}: {frames} frames")
