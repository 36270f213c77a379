"""Export to .h5 and .zarr: an output again, written by the writers of a run."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zarr
from msgspec.structs import replace

from gsio.compute.host import stage
from gsio.export.selection import Frame, Selection, slice_of
from gsio.frames.block import Block
from gsio.frames.chunking import Chunking
from gsio.frames.format import FrameFormat
from gsio.frames.sizes import default_sizes
from gsio.run.plan import layout_of
from gsio.trace import Trace
from gsio.writer import open_writer
from gsio.writer.journal import Journal
from gsio.writer.protocol import Target
from gsio.writer.zarr.store import METADATA, Folder


def write_output(path: Path, selection: Selection, frames: Iterator[Frame]) -> None:
    """By the writers of a run, so that it is an output itself, with checksums."""
    config, count = selection.config, len(selection.frames)
    rows, cols = selection.shape[-2:]
    config = replace(config, grid=replace(config.grid, rows=rows, cols=cols), run=replace(config.run, frames=count))
    layout = layout_of(config)
    block = Block(layout, np.empty(layout.block_nbytes, np.uint8))
    with Journal(path) as journal:
        writer = open_writer(Target(path, config, layout, selection.attributes, journal, Trace()))
        status = "failed"
        try:
            for number, frame in enumerate(frames):
                place = number % layout.frames_per_block
                for field, plane in enumerate(frame):
                    stage(plane, layout.frame, block.data[place, field], block.statistics[place, field])
                if place + 1 == layout.frames_per_block or number + 1 == count:
                    block.first, block.count = number - place, place + 1
                    for task in range(layout.tasks):
                        writer.encode(block, task)
                    writer.commit([block])
                    block.chunks = {}
            status = selection.stack.attributes["status"]
        finally:
            journal.remove()
            writer.close("stopped" if status == "running" else status)
    _amend(path, selection)


def _lines_per_chunk(shape: tuple[int, ...], dtype: str) -> int:
    """Return the rows of a slab of a plane [rows, cols]."""
    return Chunking.choose(FrameFormat.of(shape, "v", dtype), default_sizes()).lines_per_chunk


def _amend(path: Path, selection: Selection) -> None:
    """Set what the writers of a run derive from its configuration, from the clock and from values before rounding."""
    stack, ended = selection.stack, selection.stack.attributes["ended"]
    statistics = [f"stats/{name}_{word}" for name in selection.fields for word in ("min", "max", "mean", "error")]
    if (
        selection.shape != stack.fields[selection.fields[0]].shape[1:]
    ):  # the error of a whole frame bounds that of a selection
        statistics = [name for name in statistics if name.endswith("error")]
    kept = {name: stack.series(name)[slice_of(selection.frames)] for name in statistics if name in stack.root}
    series = selection.coordinates | kept
    if path.is_file():
        with h5py.File(path, "r+", locking=False) as file:
            for name, values in series.items():
                file[name][:] = values
            file.attrs.modify("ended", np.array(ended.encode(), "S32"))
        return
    root: Any = zarr.open_group(path, mode="r+", zarr_format=3)
    for name, values in series.items():
        root[name][:] = values
    store = Folder(path)
    group = json.loads(store.get(METADATA))
    group["attributes"]["ended"] = ended
    time, y, x = (float(series[name][0]) for name in ("time", "y", "x"))
    for image in group["attributes"]["ome"]["multiscales"]:
        scale, first = image["datasets"][0]["coordinateTransformations"]
        scale["scale"][0] = selection.interval
        first["translation"] = [time, *[0.0] * (len(selection.shape) - 2), y, x]
    store.put(METADATA, json.dumps(group, indent=2).encode())
    store.sync()
