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
from gsio.frames.sizes import default_sizes
from gsio.reader.selection import Frame, Selection, slice_of
from gsio.run.plan import content_layout, content_with_codec
from gsio.writer.formats import format_of
from gsio.writer.session import new_output
from gsio.writer.zarr.layout import put_values
from gsio.writer.zarr.store import METADATA, Folder


def as_output(selection: Selection, target: Path, compression: str) -> Selection:
    """Return a selection with the content of the output that `target` becomes."""
    form, content = format_of(target), selection.content
    shards = content.shard_frames if form.shards else 0
    # Levels of compression differ between codecs.
    content = replace(content, compression=compression, level=1, shard_frames=shards, pyramid=0)
    content = replace(content, interval=selection.interval if content.interval else 0.0)
    if content.store == "float16" and not form.float16:  # float32 with 10 bits of the mantissa has the same values
        content = replace(content, store="float32", keep_bits=10)
    return dataclasses.replace(selection, content=content_with_codec(content, target, "output."))


def write_output(path: Path, selection: Selection, frames: Iterator[Frame]) -> None:
    """Write frames with the writers of a run, so that the export is an output itself, with checksums."""
    stack, content, count = selection.stack, selection.content, len(selection.frames)
    steps = stack.config.run.steps_per_frame if stack.is_of_run else 0
    layout = content_layout(content, frames=count, steps=steps)
    status = stack.attributes["status"]
    status = "stopped" if status == "running" else status
    with new_output(path, content, layout, attributes_of(selection), status) as session:
        block = None
        for number, frame in enumerate(frames):
            place = number % layout.frames_per_block
            if place == 0:
                block = session.acquire()
            if block is None:  # the session has failed
                break
            block.times[place], block.steps[place] = selection.times[number], selection.steps[number]
            for field, plane in enumerate(frame):
                stage(plane, layout.frame, block.data[place, field], block.statistics[place, field])
            if place + 1 == layout.frames_per_block or number + 1 == count:
                block.first, block.count = number - place, place + 1
                session.submit(FilledBlock(block))
    _amend(path, selection)


def lines_per_slab(shape: tuple[int, ...], dtype: str) -> int:
    """Return the rows of a slab of a plane [rows, cols]."""
    return Chunking.choose(FrameFormat.of(shape, "plane", dtype), default_sizes()).lines_per_chunk


def exported_dtype(selection: Selection) -> str:
    """Return the dtype of the values for other tools, which know no half precision."""
    precision = selection.content.precision
    return "float32" if precision == "float16" else precision


def _amend(path: Path, selection: Selection) -> None:
    """Replace by values of the source what the writers took from the clock and from rounded frames."""
    stack, ended = selection.stack, selection.stack.attributes["ended"]
    statistics = [f"stats/{name}_{word}" for name in selection.fields for word in ("min", "max", "mean", "error")]
    # The error of a whole frame bounds the error of its parts; other statistics do not hold for a part.
    if not selection.is_whole_frame:
        statistics = [name for name in statistics if name.endswith("error")]
    series = {name: stack.series(name)[slice_of(selection.frames)] for name in statistics if name in stack.root}
    if path.is_file():
        with h5py.File(path, "r+", locking=False) as file:
            for name, values in series.items():
                file[name][:] = values
            file.attrs.modify("ended", np.array(ended.encode(), "S32"))
        return
    store = Folder(path)
    for name, values in series.items():
        put_values(store, name, values)
    group = json.loads(store.get(METADATA))
    group["attributes"]["ended"] = ended
    store.put(METADATA, json.dumps(group, indent=2).encode())
    store.sync()
