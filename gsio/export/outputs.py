"""Export to .h5 and .zarr: an output again, written by the writers of a run."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
from msgspec.structs import replace

from gsio.compute.host import stage
from gsio.export.provenance import attributes_of
from gsio.frames.block import FilledBlock
from gsio.frames.chunking import Chunking
from gsio.frames.format import FrameFormat
from gsio.frames.metadata import AXES, SERIES_CHUNK
from gsio.frames.sizes import default_sizes
from gsio.reader.selection import Frame, Selection, slice_of
from gsio.run.plan import layout_of, with_codec
from gsio.writer.formats import format_of
from gsio.writer.session import new_output
from gsio.writer.zarr.layout import put_values
from gsio.writer.zarr.store import METADATA, Folder


def as_output(selection: Selection, target: Path, compression: str) -> Selection:
    """Return a selection with the configuration of the output that `target` becomes."""
    form, config = format_of(target), selection.config
    shards = config.output.shard_frames if form.shards else 0
    # Levels of compression differ between codecs.
    output = replace(config.output, compression=compression, level=1, shard_frames=shards, pyramid=0)
    if config.stored == "float16" and not form.float16:  # float32 with 10 bits of the mantissa has the same values
        output = replace(output, store="float32", keep_bits=10)
    return dataclasses.replace(selection, config=with_codec(replace(config, output=output), target))


def write_output(path: Path, selection: Selection, frames: Iterator[Frame]) -> None:
    """Write frames with the writers of a run, so that the export is an output itself, with checksums."""
    config, count = selection.config, len(selection.frames)
    rows, cols = selection.shape[-2:]
    config = replace(config, grid=replace(config.grid, rows=rows, cols=cols), run=replace(config.run, frames=count))
    layout = layout_of(config)
    status = selection.stack.attributes["status"]
    status = "stopped" if status == "running" else status
    with new_output(path, config, layout, attributes_of(selection), status) as session:
        block = None
        for number, frame in enumerate(frames):
            place = number % layout.frames_per_block
            if place == 0:
                block = session.acquire()
            if block is None:  # the session has failed
                break
            for field, plane in enumerate(frame):
                stage(plane, layout.frame, block.data[place, field], block.statistics[place, field])
            if place + 1 == layout.frames_per_block or number + 1 == count:
                block.first, block.count = number - place, place + 1
                session.submit(FilledBlock(block))
    _amend(path, selection)


def lines_per_slab(shape: tuple[int, ...], dtype: str) -> int:
    """Return the rows of a slab of a plane [rows, cols]."""
    return Chunking.choose(FrameFormat.of(shape, "v", dtype), default_sizes()).lines_per_chunk


def _amend(path: Path, selection: Selection) -> None:
    """Replace by values of the source what the writers took from the configuration, the clock and rounded frames."""
    stack, ended = selection.stack, selection.stack.attributes["ended"]
    statistics = [f"stats/{name}_{word}" for name in selection.fields for word in ("min", "max", "mean", "error")]
    # The error of a whole frame bounds the error of its parts; other statistics do not hold for a part.
    if not selection.is_whole_frame:
        statistics = [name for name in statistics if name.endswith("error")]
    kept = {name: stack.series(name)[slice_of(selection.frames)] for name in statistics if name in stack.root}
    series = selection.coordinates | kept
    if path.is_file():
        with h5py.File(path, "r+", locking=False) as file:
            for name, values in series.items():
                file[name][:] = values
            file.attrs.modify("ended", np.array(ended.encode(), "S32"))
        return
    store = Folder(path)
    for name, values in series.items():
        put_values(store, name, values, len(values) if name in AXES else SERIES_CHUNK)
    group = json.loads(store.get(METADATA))
    group["attributes"]["ended"] = ended
    time, y, x = (float(series[name][0]) for name in ("time", "y", "x"))
    for image in group["attributes"]["ome"]["multiscales"]:
        scale, first = image["datasets"][0]["coordinateTransformations"]
        scale["scale"][0] = selection.interval
        first["translation"] = [time, *[0.0] * (len(selection.shape) - 2), y, x]
    store.put(METADATA, json.dumps(group, indent=2).encode())
    store.sync()
