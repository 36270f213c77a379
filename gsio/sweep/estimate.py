"""How long a sweep takes, and how large its result is, measured on the first frames of one of its tasks."""

import datetime
import os
import tempfile
from pathlib import Path

from msgspec.structs import replace

from gsio.files import require_new
from gsio.machine import free_space
from gsio.run.simulate import simulate
from gsio.sweep.description import Description
from gsio.sweep.engines import gpus
from gsio.sweep.plan import make_plan

FRAMES = 8  # that are measured; the first frames compress better than later ones, which have more patterns


def estimate(description: Description, output: Path) -> list[str]:
    """Return in words how many members a sweep has, and how long and large it is; nothing is made at `output`.

    Raises UsageError as `make_plan` does, and what a run raises.
    """
    plan = make_plan(description, output)
    require_new("--output", output, replaces=os.path.lexists)
    members = plan.tasks[0].members
    config = plan.run_of(members)
    frames, tasks = plan.config.run.frames, len(plan.tasks)
    measured = replace(config, run=replace(config.run, frames=min(FRAMES, frames)))
    with tempfile.TemporaryDirectory(prefix="gsio-") as folder:
        path = Path(folder) / f"run{output.suffix}"
        summary = simulate(measured, path, cut=plan.cut_of(len(members)))
    assert summary is not None
    devices = gpus(plan.config)
    share = frames / summary.frames
    loop = summary.loop_seconds * share
    before = summary.wall_seconds - summary.loop_seconds  # most of it passes once in each process
    seconds = round(before + loop * -(-tasks // len(devices)))
    nbytes = summary.nbytes_out * share * plan.count / len(members)
    where = f"{len(devices)} GPUs" if devices != [None] else "the CPU"
    return [
        f"{plan.count} members ({' × '.join(f'{axis.size} {axis.name}' for axis in plan.axes)}) in {tasks} tasks of up "
        f"to {plan.batch} members, each of {frames} frames",
        f"about {datetime.timedelta(seconds=seconds)} on {where}, measured on {summary.frames} frames of "
        f"{len(members)} members on {summary.device}",
        f"about {nbytes / 1e9:.2f} GB, and {free_space(output.absolute().parent) / 1e9:.2f} GB are free",
    ]
