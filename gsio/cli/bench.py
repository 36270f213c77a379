"""Commands that measure: bench and its tables."""

from functools import partial
from pathlib import Path
from typing import Any

import click

from gsio.cli.options import FILES, FOLDER, Group, Option, configuration, debug_option, file_option
from gsio.config import AUTO, Config
from gsio.streams import say

MEASURED = "What is measured"
TABLES = {
    "verdict": (
        "Compare gsio with h5py on the main job. Every backend saves its frames by h5py in the loop, by h5py in a "
        "thread, and by gsio."
    ),
    "compute": "Measure the time steps alone, beside other libraries.",
    "storage": "Measure how fast frames are saved, beside other libraries. Every format is measured.",
    "transfer": "Measure the way of a frame from the GPU to the host. The time is compared with that of a step.",
    "startup": "Measure how long commands take to start, beside programs that only import what the commands need.",
    "scaling": (
        "Measure runs of growing size. The grid, the steps between two frames, and the encoding threads vary. With "
        "--devices, measure the time steps of one grid on several GPUs instead."
    ),
}


@click.group(cls=Group)
def bench() -> None:
    """Measure the performance of this machine."""


@bench.command()
@configuration
@debug_option
def tune(config: Config, debug: bool) -> None:
    """Find the fastest tiles for the grid of a run on this GPU.

    The result is kept, and every later run with the same grid uses it.
    """
    from gsio.compute import tune
    from gsio.run.initial import initial_state
    from gsio.run.plan import layout_of
    from gsio.run.tunings import recall, remember

    for tiling, speed in tune(config, layout_of(config), initial_state(config), recall, remember):
        say(f"{speed:8.1f} Gcell/s  {tiling}")


def _add_table(name: str, text: str) -> None:
    """Add the command that measures a table of ``gsio.bench``."""
    measured = partial(click.option, cls=Option, heading=MEASURED, show_default=True)

    @bench.command(name, help=text)
    @measured("--device", type=click.Choice([AUTO, "gpu", "cpu"]), default=AUTO, help="Measure this device.")
    @measured(
        "--only", default="", show_default=False, metavar="TEXT", help="Measure only the rows whose name contains TEXT."
    )
    @measured(
        "--repeats",
        type=click.IntRange(0),
        default=0,
        metavar="N",
        help="Measure every row N times; 0 leaves the number to the table.",
    )
    @measured(
        "--timeout",
        type=click.FloatRange(0),
        default=0,
        metavar="SECONDS",
        help="Stop a row after this time; 0 leaves the time to the table.",
    )
    @measured(
        "--frames",
        type=click.IntRange(2),
        default=1000,
        metavar="N",
        help="Save N frames in the main job; other rows save a fraction of them.",
    )
    @measured("--quick", is_flag=True, show_default=False, help="Measure few small rows once, in less than a minute.")
    @click.option(
        "--folder",
        cls=Option,
        type=FOLDER,
        metavar="FOLDER",
        heading=FILES,
        help="Write temporary files here; without it the folder of the system is used.",
    )
    @file_option("--json", "PATH", "Write every measurement to a JSON file too.")
    @file_option("--plot", "FOLDER", "Draw the table in FOLDER, as PNG and SVG.")
    @debug_option
    def measure(device: str, json: Path | None, plot: Path | None, debug: bool, **options: Any) -> None:
        from gsio.bench.tables import Options, report
        from gsio.machine import find_driver

        if device == AUTO:
            driver = find_driver()
            device = "gpu" if driver and driver.gpus else "cpu"
        table = "devices" if options.get("devices") else name
        say(report(table, Options(device, **options), json, plot, partial(say, err=True)))  # fmt: skip


for _name, _text in TABLES.items():
    _add_table(_name, _text)
bench.commands["scaling"].params.append(
    Option(
        ["--devices"], default="", metavar="all|N,N…", heading=MEASURED,
        help="Compare several GPUs, all or those with these numbers, with the first of them, beside JAX shard_map.",
    )
)  # fmt: skip
