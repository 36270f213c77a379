"""Zarr version 3: a file for each chunk, put in place by the encoding threads; the arrays grow when frames commit.

No reader looks beyond the end of an array, so that chunks may be stored in any order; the metadata with the lengths of
the arrays follow. Each array has a metadata file, and the file of the group has the metadata of all arrays. The latter
is replaced last, so that its readers always find arrays of the same length. All codecs are in the core specification.
"""

import json
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsio.files import changed, publish, temporary_beside
from gsio.frames.block import EncodedBlock, FilledBlock
from gsio.frames.chunking import PLACE
from gsio.frames.metadata import DAMAGED, OF_SESSION, SERIES_CHUNK, frame_series
from gsio.writer.formats import is_zarr
from gsio.writer.ome import level_path, levels_of, ome_attributes
from gsio.writer.protocol import Target
from gsio.writer.provenance import now
from gsio.writer.zarr.chunks import ChunkWriter
from gsio.writer.zarr.layout import create_store, json_bytes, padded_chunks
from gsio.writer.zarr.store import METADATA, Folder

PUBLISH_SECONDS = 1.0  # the least time between two versions of the metadata, each of about twenty files


class ZarrWriter:
    """The encoding threads encode and store chunks; a commit lets the arrays along time grow."""

    def __init__(self, target: Target) -> None:
        path, content, layout, attributes, journal, self._trace, known, overwrite = target
        self._content, self._layout, self._journal = content, layout, journal
        self._levels = [level_path(name, level) for name in layout.frame.fields for level in levels_of(content)]
        self._lock = threading.Lock()  # guards the published metadata
        self._frames = 0 if known is None else len(known["step"])
        self._limits = dict.fromkeys(layout.frame.fields, (np.inf, -np.inf))
        self._times: NDArray[np.float64] = np.empty(0)  # of the first two frames
        self._published = 0.0
        self.nbytes = 0
        series = frame_series(layout, []) if known is None else known
        if known is None:
            temporary = temporary_beside(path)
            try:
                create_store(temporary, content, layout, attributes)
                Folder(temporary).sync()
                journal.begin(attributes, series, layout, self._places(0))
                publish("--output", temporary, path, replaces=is_zarr if overwrite else None)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
        self._chunks = ChunkWriter(path, content, self._trace)
        self._store = self._chunks.store
        text = self._store.get(METADATA)
        self._group = json.loads(text)
        arrays = self._group["consolidated_metadata"]["metadata"]
        # The metadata that were published last, by key, to notice that another program has replaced some.
        self._there = {METADATA: text}
        for key in (f"{name}/{METADATA}" for name in arrays):
            with suppress(FileNotFoundError):  # the file of the group is enough, and those of arrays are written again
                self._there[key] = self._store.get(key)
        published = arrays["step"]["shape"][0]
        self._series = {name: _PendingSeries(values, min(published, self._frames)) for name, values in series.items()}
        if known is not None:
            self._reopen(attributes, known, published)
        self._missing = self._chunks_missing()
        self._store.open()

    def _reopen(self, attributes: Mapping[str, Any], series: Mapping[str, NDArray[Any]], published: int) -> None:
        """Cut the store to the frames of `series`, and record that the run goes on."""
        for left in self._store.path.rglob(".*.tmp"):  # a kill has left these
            left.unlink()
        if not self._journal.resume(attributes["output_id"], self._frames, self._places(self._frames)):
            self._journal.begin(attributes, series, self._layout, self._places(self._frames))
        if self._frames:
            self._describe(series)
        for name in self._layout.frame.fields if self._frames else ():
            self.nbytes += sum(path.stat().st_size for path in (self._store.path / name).glob("c.*"))
        known = self._group["attributes"]
        history = f"{known['history']}\n{attributes['history']}"
        known |= {"history": history, "status": "running", "ended": ""}
        known |= {name: attributes[name] for name in OF_SESSION if name in attributes}
        if DAMAGED in known:
            known[DAMAGED] = [frame for frame in known[DAMAGED] if frame < self._frames]
        if self._frames < published:
            for key, value in reversed(self._metadata().items()):  # an array shrinks before its chunks are replaced
                self._put_metadata(key, value)
        self._publish()

    def encode(self, block: FilledBlock, task: int) -> None:
        """Compress one task of `block`, take checksums, and store its chunks; no reader looks at them yet."""
        self._chunks.encode(block, task)

    def commit(self, blocks: Sequence[EncodedBlock]) -> None:
        """Let the arrays grow by the frames of `blocks`; readers see new frames once a second."""
        with self._trace.span("commit", blocks[0].first), self._lock:
            series = frame_series(self._layout, blocks)
            for name, values in series.items():
                self._series[name].append(values)
            self._journal.append(self._frames, series, self._places(len(series["step"])))
            self._describe(series)
            for block in blocks:
                self._frames += block.count - block.kept
                self.nbytes += block.encoded_nbytes + block.nbytes_elsewhere
            if time.monotonic() - self._published > PUBLISH_SECONDS:
                self._publish()

    def sync(self) -> None:
        """Publish the committed frames, and wait until the disk has them."""
        with self._lock:
            self._publish()
        self._store.sync()

    def close(self, status: str) -> None:
        """Record how the run ended, and wait until the disk has everything.

        A store that another program has changed is left as it is.
        """
        try:
            self._check()
            if self._chunks_missing() > self._missing:
                raise changed(self._store.path, "stripped of chunks")
            self._group["attributes"] |= {"status": status, "ended": now()}
            self.sync()
        finally:
            self._store.close()

    def _chunks_missing(self) -> int:
        """Return the number of files of committed frames that are missing."""
        layout, missing = self._layout, 0
        of_arrays = dict.fromkeys(layout.frame.fields, layout.chunks.frames_together)
        for name, together in (of_arrays | dict.fromkeys(self._levels, layout.chunks.frames_per_chunk)).items():
            numbers = -(-self._frames // together)
            there = (path.name for path in (self._store.path / name).glob("c.*"))
            missing += numbers * layout.chunks.slabs - sum(int(chunk.split(".")[1]) < numbers for chunk in there)
        return missing

    def _describe(self, series: Mapping[str, NDArray[Any]]) -> None:
        """Take what the metadata for viewers need from the frames of `series`: the range of each field, and times."""
        self._times = np.concatenate([self._times, series["time"]])[:2]
        for name, (low, high) in self._limits.items():
            lows, highs = series[f"stats/{name}_min"], series[f"stats/{name}_max"]
            self._limits[name] = min(low, float(lows.min())), max(high, float(highs.max()))

    def _places(self, frames: int) -> NDArray[np.void]:
        """Return empty places: each chunk is a file of its own."""
        return np.zeros((frames, len(self._layout.frame.fields), self._layout.chunks.slabs), PLACE)

    def _check(self) -> None:
        """Raise StorageError if another program has replaced the store, or metadata of it."""
        self._chunks.check()
        for key, text in self._there.items():
            try:
                same = self._store.get(key) == text
            except FileNotFoundError:
                same = False
            if not same:
                raise changed(self._store.path / key, "deleted or changed")

    def _put_metadata(self, key: str, text: bytes) -> None:
        self._store.put(key, text)
        self._there[key] = text

    def _publish(self) -> None:
        self._check()
        for name, series in self._series.items():
            for number, values in series.new_chunks():
                self._store.put(f"{name}/c.{number}", values)
        for key, value in self._metadata().items():
            self._put_metadata(key, value)
        self._published = time.monotonic()

    def _metadata(self) -> dict[str, bytes]:
        """Return the metadata with the present lengths of the arrays, by key, in the order of publication."""
        found = {}
        arrays = self._group["consolidated_metadata"]["metadata"]
        for name in (*self._series, *self._levels, *self._layout.frame.fields):
            arrays[name]["shape"][0] = self._frames
            found[f"{name}/{METADATA}"] = json_bytes(arrays[name])
        limits = self._limits if self._frames else {}
        self._group["attributes"] |= ome_attributes(self._content, self._layout, limits, self._times)
        return found | {METADATA: json_bytes(self._group)}


class _PendingSeries:
    """The chunks of a growing 1-D array that are not yet stored or not yet full.

    The array begins with `values`, of which the first `stored` are in the store.
    """

    def __init__(self, values: NDArray[Any], stored: int) -> None:
        self._first = stored // SERIES_CHUNK  # chunk
        self._values = values[self._first * SERIES_CHUNK :]

    def append(self, values: NDArray[Any]) -> None:
        self._values = np.concatenate([self._values, values])

    def new_chunks(self) -> list[tuple[int, NDArray[Any]]]:
        """Return the chunks to store, by number; the last is stored again when it holds more."""
        chunks = list(enumerate(padded_chunks(self._values), self._first))
        full = len(self._values) // SERIES_CHUNK
        self._first, self._values = self._first + full, self._values[full * SERIES_CHUNK :]
        return chunks
