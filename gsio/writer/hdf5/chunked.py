"""HDF5: chunks, compressed or raw, appended as frames commit.

Files are made with the default library version and flushed at every commit, so that a killed process leaves a file that
opens plainly. They are not locked: others may read the committed frames while the run goes on.
"""

import itertools
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from gsio import codec
from gsio.codec import CODECS
from gsio.errors import StorageError
from gsio.files import is_file, publish, sync_folder
from gsio.frames.block import EncodedBlock, FilledBlock
from gsio.frames.chunking import PLACE
from gsio.frames.layout import PAGE
from gsio.frames.metadata import SERIES_CHUNK, frame_series
from gsio.writer.hdf5.disk import Disk
from gsio.writer.hdf5.layout import create_arrays, reopen
from gsio.writer.hdf5.vtk import OFFSETS, VTK
from gsio.writer.protocol import Target
from gsio.writer.provenance import now

SAVED = ".chunks_before_resume_"  # the names of groups with copies of chunks begin so


class ChunkWriter:
    """Chunks that are encoded outside HDF5 and stored by `write_direct_chunk`.

    HDF5 runs one call at a time whatever the number of threads: compressing outside it is what makes it parallel. The
    time axis grows with each commit, so that its length is the number of committed frames.
    """

    def __init__(self, target: Target, place: Path) -> None:
        """Lay the file out at `place`, then rename it to `target.path`, which is the same for an extended output."""
        self._path, self._layout, self._trace = target.path, target.layout, target.trace
        self._journal = target.journal
        self._saved: tuple[str, NDArray[np.void]] | None = None  # the group of the copies, and where the originals are
        self._last = np.zeros(0, PLACE)  # the places of the last chunk, if it is not full, [frame, field, slab]
        self._disk = Disk(place, new=target.series is None)
        self._file: Any = None
        self._vtk_steps: Any = None  # an attribute of the image for VTK, if the output has one
        try:
            with self._disk.raising():
                self._open(target)
            if place != target.path:
                publish("--output", place, target.path, replaces=is_file if target.overwrite else None)
        except BaseException:
            self._disk.abandon()
            with suppress(OSError, RuntimeError):
                if self._file is not None:
                    self._file.close()
            self._disk.close()
            raise

    def _open(self, target: Target) -> None:
        """Lay the file out, or cut it to the frames of `target.series`."""
        content, layout, attributes = target.content, target.layout, target.attributes
        # No chunk cache: every chunk is written once and whole. Raw chunks begin at a page, so that they can be mapped.
        raw = CODECS[layout.chunks.codec].raw
        pages = {"alignment_threshold": PAGE, "alignment_interval": PAGE} if raw else {}
        self._disk.reserve(0)
        self._file = h5py.File(self._disk, "w" if target.series is None else "r+", rdcc_nbytes=0, **pages)
        series = frame_series(layout, []) if target.series is None else target.series
        frames, stale = len(series["step"]), []
        if target.series is None:
            create_arrays(self._file, content, layout, attributes)
        self._fields = [self._file[name].id for name in layout.frame.fields]
        places = self._places(frames)
        # From here on the journal can restore a file that a kill tears, even an output that was complete and had none.
        if target.series is None or not self._journal.resume(attributes["output_id"], frames, places):
            self._journal.begin(attributes, series, layout, places)
        if target.series is not None:
            self._journal.sync()
            stale = [name for name in self._file if name.startswith(SAVED)]  # a kill has left these
            reopen(self._file, attributes, frames)
        along_time = dict(series)
        if VTK in self._file:
            along_time[OFFSETS + layout.frame.fields[0]] = np.arange(frames)
            self._vtk_steps = h5py.h5a.open(self._file[f"{VTK}/Steps"].id, b"NSteps")
            self._vtk_steps.write(np.array(frames))
        self._series = {name: _GrowingSeries(self._file[name], values) for name, values in along_time.items()}
        self._cut(frames, places)
        for name in stale:
            del self._file[name]
        self._file.flush()
        self.nbytes = self._disk.size

    def encode(self, block: FilledBlock, task: int) -> None:
        """Compress one task of `block`, and take the checksums of its frames."""
        with self._trace.span("encode", block.first):
            codec.encode(block, task)

    def commit(self, blocks: Sequence[EncodedBlock]) -> None:
        """Append the frames of `blocks` and flush, so that readers find them."""
        first, frames, layout = blocks[0].first, blocks[-1].first + blocks[-1].count, self._layout
        kept = blocks[0].kept
        places = np.zeros((frames - first, len(layout.frame.fields), layout.chunks.slabs), PLACE)
        self._disk.check(self._path)
        with self._trace.span("write", first), self._disk.raising():
            self._disk.reserve(
                sum(len(encoded) for block in blocks for chunk in block.chunks.values() for encoded in chunk)
                + (int(self._last[0]["nbytes"].sum()) if len(self._last) else 0)
            )
            if kept and self._saved is None:
                self._save(first, self._last)
            saved, self._saved = self._saved, None  # whatever happens from here on, the journal has the copies
            for field in self._fields:
                field.set_extent((frames, *layout.frame.shape))
            for block in blocks:
                for (number, slab), chunk in block.chunks.items():
                    frame, line = number * layout.chunks.frames_per_chunk, slab * layout.chunks.lines_per_chunk
                    place = (block.first + frame, line, *[0] * len(layout.frame.shape[1:]))
                    start = block.first + frame - first
                    for i, (field, encoded) in enumerate(zip(self._fields, chunk, strict=True)):
                        offset = self._disk.place(field, place, encoded)
                        places[start : start + layout.chunks.frames_per_chunk, i, slab] = offset, len(encoded)
            self._disk.write_placed()
        with self._trace.span("commit", first), self._disk.raising():
            series = frame_series(layout, blocks)
            for name, values in series.items():
                self._series[name].append(first + kept, values)
            if self._vtk_steps is not None:
                self._series[OFFSETS + layout.frame.fields[0]].append(first + kept, np.arange(first + kept, frames))
                self._vtk_steps.write(np.array(frames))
            self._file.flush()
        self._journal.append(first + kept, series, places[kept:])
        if kept:
            self._journal.move(first, places[:kept])
            if saved is not None:
                self.sync()  # HDF5 may use the space of the copies again from now on
                del self._file[saved[0]]
        self._last = places[len(places) - frames % layout.chunks.frames_per_chunk :]
        self.nbytes = self._disk.size

    def _cut(self, frames: int, places: NDArray[np.void]) -> None:
        """Cut the fields to `frames` frames, whose chunks are at `places` [frame, field, slab].

        When HDF5 cuts a chunk, it would decode it, for which it may lack the filter: the chunk is stored again as it
        was.
        """
        layout, behind = self._layout, frames % self._layout.chunks.frames_per_chunk
        chunks = self._save(frames - behind, places[frames - behind :]) if behind else {}
        for number, field in enumerate(self._fields):
            if field.shape[0] == frames:
                continue
            field.set_extent((frames - behind, *layout.frame.shape))
            field.set_extent((frames, *layout.frame.shape))
            for slab in range(layout.chunks.slabs if behind else 0):
                place = (frames - behind, slab * layout.chunks.lines_per_chunk, *[0] * len(layout.frame.shape[1:]))
                if len(chunk := chunks[number, slab]):
                    places["offset"][frames - behind :, number, slab] = self._disk.place(field, place, chunk)
        self._disk.write_placed()

    def _save(self, first: int, places: NDArray[np.void]) -> dict[tuple[int, int], NDArray[np.uint8]]:
        """Copy the last chunk, which has the frames from `first` on, and return its bytes by field and slab.

        The next commit replaces a last chunk that is not full, and HDF5 may use its space again before that commit is
        complete. A copy of the chunk therefore stays until then, and the journal has the place of the copy. The disk
        has both before this function returns.
        """
        group = next(name for number in itertools.count() if (name := f"{SAVED}{number}") not in self._file)
        self._saved, copies, chunks = (group, places), places.copy(), {}
        with self._disk.raising():
            for field, slab in np.ndindex(places.shape[1:]):
                offset, nbytes = (int(number) for number in places[0, field, slab])
                chunks[field, slab] = np.frombuffer(os.pread(self._disk.fd, nbytes, offset), np.uint8)
                copy = self._file.create_dataset(f"{group}/{field}_{slab}", data=chunks[field, slab])
                copies["offset"][:, field, slab] = copy.id.get_offset() if nbytes else 0
            self._file.flush()
        self._journal.move(first, copies)
        self.sync()
        return chunks

    def sync(self) -> None:
        """Wait until the disk has the committed frames, and the journal, which can restore a torn file."""
        self._disk.sync()
        self._journal.sync()

    def close(self, status: str) -> None:
        """Record how the run ended, close the file, and wait until the disk has it.

        A file that somebody else has changed is left as it is.
        """
        try:
            try:
                self._disk.check(self._path)
            except StorageError:
                self._disk.abandon()
                with suppress(OSError, RuntimeError):
                    self._file.close()
                raise
            with self._disk.raising():
                try:
                    if self._saved is not None:  # nothing was committed
                        group, places = self._saved
                        self._journal.move(len(self._file["step"]) - len(places), places)
                        del self._file[group]
                    _finish(self._file, status)
                finally:
                    self._file.close()
            self._disk.check(self._path)
        finally:
            try:
                self._disk.sync()
                sync_folder(self._path.parent)
            finally:
                self._disk.close()

    def _places(self, frames: int) -> NDArray[np.void]:
        """Return the places of the chunks of the first `frames` frames, [frame, field, slab]."""
        layout = self._layout
        places = np.zeros((frames, len(layout.frame.fields), layout.chunks.slabs), PLACE)
        for number, field in enumerate(self._fields):

            def keep(chunk: h5py.h5d.StoreInfo, number: int = number) -> None:
                frame, line = chunk.chunk_offset[:2]
                here = slice(frame, frame + layout.chunks.frames_per_chunk)
                places[here, number, line // layout.chunks.lines_per_chunk] = chunk.byte_offset, chunk.size

            field.chunk_iter(keep)
        return places


class _GrowingSeries:
    """A 1-D dataset that grows after its first `values`; its last chunk is kept in memory.

    To store that chunk again for each append takes two calls of HDF5, and to write a selection takes five. Most of the
    time of a commit is spent between Python and HDF5.
    """

    def __init__(self, dataset: h5py.Dataset, values: NDArray[Any]) -> None:
        self._id = dataset.id
        self._chunk = np.zeros(SERIES_CHUNK, dataset.dtype)
        started = len(values) % SERIES_CHUNK
        self._chunk[:started] = values[len(values) - started :]
        self._id.set_extent((len(values),))

    def append(self, first: int, values: NDArray[Any]) -> None:
        """Append `values`; `first` is the present length."""
        self._id.set_extent((first + len(values),))
        while len(values):
            start = first % SERIES_CHUNK
            here = values[: SERIES_CHUNK - start]
            self._chunk[start : start + len(here)] = here
            self._id.write_direct_chunk((first - start,), self._chunk)
            first, values = first + len(here), values[len(here) :]


def _finish(file: h5py.File, status: str) -> None:
    file.attrs.modify("status", np.array(status.encode(), "S16"))
    file.attrs.modify("ended", np.array(now().encode(), "S32"))
