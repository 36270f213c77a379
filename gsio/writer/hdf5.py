"""HDF5: compressed chunks appended as frames commit, or raw frames written beside the library into reserved space.

Files are made with the default library version and flushed at every commit, so that a killed process leaves a file that
opens plainly. They are not locked: others may read the committed frames while the run goes on.
"""

import ctypes
import errno
import os
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from gsio.config import Config
from gsio.errors import UsageError
from gsio.staging import PAGE, Block, FrameLayout
from gsio.writer import codec
from gsio.writer.base import LIBC, FrameWriter, Target, sync_folder, temporary_beside
from gsio.writer.journal import PLACE
from gsio.writer.metadata import (
    AXES,
    COORDINATES,
    QUANTIZATION,
    SERIES_CHUNK,
    field_attributes,
    frame_series,
    frame_steps,
    nexus_attributes,
    now,
    quantization_attributes,
    series_attributes,
)

RESERVE_STEP = 64 << 20
RESERVE_MARGIN = 1 << 20  # for the metadata HDF5 writes at a flush and at the end
SERIES_NBYTES = 128  # of a frame, at most, in all arrays along time
HEAD_NBYTES, NEAR_NBYTES = 64, 8192  # by which a chunk is found, and so much before the end the file had
LARGEST_CHUNK = 2**32 - 1  # of HDF5
BLOSC = 32001  # registered number of the filter
PLAIN = ("title", "coordinates", "cell_methods")  # which NCO and ncview take in ASCII of fixed length only
VTK = "VTKHDF"
OFFSETS = f"{VTK}/Steps/PointDataOffsets/"


def open_writer(target: Target) -> FrameWriter:
    """Return the writer of `target`; raises as `gsio.writer.open_writer`."""
    compression, nbytes = target.config.output.compression, target.layout.chunk_nbytes
    if compression != "none" and nbytes > LARGEST_CHUNK:
        raise UsageError(
            f"output.compression: a row of {nbytes / 2**30:.1f} GiB is larger than "
            "HDF5's largest chunk, 4 GiB; expected 'none' for such a grid"
        )
    writer = RawWriter if compression == "none" else ChunkWriter
    if target.frames is not None:
        return writer(target, target.path)
    temporary = temporary_beside(target.path)
    try:
        return writer(target, temporary)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class ChunkWriter:
    """Chunks that are encoded outside HDF5 and stored by `write_direct_chunk`.

    HDF5 runs one call at a time whatever the number of threads: compressing outside it is what makes it parallel. The
    time axis grows with each commit, so that its length is the number of committed frames.
    """

    def __init__(self, target: Target, place: Path) -> None:
        """Lay the file out at `place`, then move it to its own; these are the same where a run goes on."""
        path, config, layout, attributes, journal, self._trace, frames = target
        self._path, self._config, self._layout, self._journal = path, config, layout, journal
        # No chunk cache: every chunk is written once and whole.
        self._file = h5py.File(place, "w" if frames is None else "r+", locking=False, rdcc_nbytes=0)
        self._fd = os.open(place, os.O_RDWR)
        self._writeback = _Writeback(self._fd)
        self._reserved = 0
        try:
            self._reserve(0)
            with _heard():
                if frames is None:
                    _lay_out(self._file, config, layout, attributes, frames=0)
                else:
                    _go_on(self._file, attributes)
            series = frame_series(config, layout, [])
            along_time = {**series, OFFSETS + layout.fields[0]: np.empty(0, np.int64)}
            self._series = {name: _Series(self._file[name], frames or 0) for name in along_time}
            self._fields = [self._file[name].id for name in layout.fields]
            for field in self._fields:
                field.set_extent((frames or 0, *layout.shape))
            self._vtk_steps = h5py.h5a.open(self._file[f"{VTK}/Steps"].id, b"NSteps")
            self._vtk_steps.write(np.array(frames or 0))
            places = self._places(frames or 0)
            if frames is None or not journal.resume(frames, places):
                journal.begin(attributes, series, layout)
                journal.append(0, {name: self._file[name][:] for name in series}, places)
            self._file.flush()
            self.nbytes = _size(self._fd)
            place.rename(path)
        except BaseException:
            with suppress(OSError, RuntimeError):  # of HDF5, which tries again: the first error is the cause
                self._file.close()
            self._writeback.end()
            os.close(self._fd)
            raise

    def encode(self, block: Block, part: int) -> None:
        """Compress one part of `block`, and take the checksums of its frames."""
        with self._trace.span("encode", block.first):
            codec.encode(block, self._config.output, part)

    def commit(self, blocks: Sequence[Block]) -> None:
        """Append the frames of `blocks` and flush: from now on a reader finds them."""
        first, frames, layout = blocks[0].first, blocks[-1].first + blocks[-1].count, self._layout
        places = np.zeros((frames - first, len(layout.fields), layout.slabs), PLACE)
        with self._trace.span("write", first):
            self._reserve(sum(len(encoded) for block in blocks for chunk in block.chunks.values() for encoded in chunk))
            for field in self._fields:
                field.set_extent((frames, *layout.shape))
            for block in blocks:
                for (number, slab), chunk in block.chunks.items():
                    frame, line = number * layout.frames_per_chunk, slab * layout.lines_per_chunk
                    place = (block.first + frame, line, *[0] * len(layout.shape[1:]))
                    start = block.first + frame - first
                    for i, (field, encoded) in enumerate(zip(self._fields, chunk, strict=True)):
                        end = self._file.id.get_filesize()
                        field.write_direct_chunk(place, encoded)
                        offset = self._offset(field, place, encoded, end)
                        places[start : start + layout.frames_per_chunk, i, slab] = offset, len(encoded)
        with self._trace.span("commit", first):
            series = frame_series(self._config, layout, blocks)
            for name, values in series.items():
                self._series[name].append(first, values)
            self._series[OFFSETS + layout.fields[0]].append(first, np.arange(first, frames))
            self._vtk_steps.write(np.array(frames))
            self._file.flush()
            self._journal.append(first, series, places)
            self.nbytes = _size(self._fd)

    def sync(self) -> None:
        """Wait until the disk has what is committed, and the journal, which holds whatever a commit leaves torn."""
        os.fsync(self._fd)
        self._journal.sync()

    def close(self, status: str) -> None:
        """Record how the run ended, close the file, and wait until the disk has it."""
        try:
            _finish(self._file, status)
        finally:
            self._file.close()
            self._writeback.end()
            os.ftruncate(self._fd, _size(self._fd))  # gives back what was reserved beyond the end
            _sync(self._fd, self._path)
            os.close(self._fd)

    def _offset(self, field: h5py.h5d.DatasetID, place: tuple[int, ...], encoded: Any, end: int) -> int:
        """Return where HDF5 put a chunk just now, when the file went to `end`.

        HDF5 appends but for free space that a resumed run left. Asked, it would look through all chunks before.
        """
        head, start = bytes(encoded[:HEAD_NBYTES]), max(0, end - NEAR_NBYTES)
        near = self._file.id.get_filesize() - len(encoded) - start + HEAD_NBYTES
        if near > 0 and (found := os.pread(self._fd, near, start).rfind(head)) >= 0:
            return start + found
        return int(field.get_chunk_info_by_coord(place).byte_offset)

    def _places(self, frames: int) -> NDArray[np.void]:
        """Return where the chunks of the first `frames` frames are, [frame, field, slab]."""
        layout = self._layout
        places = np.zeros((frames, len(layout.fields), layout.slabs), PLACE)
        for number, field in enumerate(self._fields):

            def keep(chunk: h5py.h5d.StoreInfo, number: int = number) -> None:
                frame, line = chunk.chunk_offset[:2]
                here = slice(frame, frame + layout.frames_per_chunk)
                places[here, number, line // layout.lines_per_chunk] = chunk.byte_offset, chunk.size

            field.chunk_iter(keep)
        return places

    def _reserve(self, nbytes: int) -> None:
        """Make sure that the next `nbytes` and their metadata fit: HDF5 must never meet a full disk."""
        end = _size(self._fd) + nbytes + RESERVE_MARGIN
        if end <= self._reserved:
            return
        self._writeback.start()
        try:
            _allocate(self._fd, end + RESERVE_STEP)
            self._reserved = end + RESERVE_STEP
        except OSError:  # not that much, but perhaps enough
            _allocate(self._fd, end)
            self._reserved = end


class RawWriter:
    """Raw frames in one contiguous, aligned array per field, put in place by `pwrite` from the encoding threads.

    HDF5 makes the whole file first; after that no HDF5 call is made until the end, so that a kill leaves the file's
    metadata as they were. The time axis has its full length from the start; `/frames_committed` says how far it is.
    """

    def __init__(self, target: Target, place: Path) -> None:
        """Lay the file out at `place`, then move it to its own; these are the same where a run goes on."""
        path, config, layout, attributes, journal, self._trace, frames = target
        self._path, self._config, self._layout, self._journal = path, config, layout, journal
        new = frames is None
        if new:
            with place.open("xb") as empty:  # HDF5 must not be the one to find that there is no space
                _allocate(empty.fileno(), config.run.frames * (layout.frame_nbytes + SERIES_NBYTES) + RESERVE_MARGIN)
        alignment = {"alignment_threshold": PAGE, "alignment_interval": PAGE} if new else {}
        with _heard(), h5py.File(place, "w" if new else "r+", locking=False, **alignment) as file:
            if new:
                _lay_out(file, config, layout, attributes, frames=config.run.frames)
            else:
                _go_on(file, attributes)
            if (room := len(file["time"])) < config.run.frames:
                raise UsageError(
                    f"run.frames: expected at most {room}, for which '{path}' has room, got {config.run.frames}; "
                    "only a compressed output can be extended"
                )
            series = frame_series(config, layout, [])
            names = ["frames_committed", *layout.fields, *series]
            self._offsets: dict[str, int] = {name: file[name].id.get_offset() for name in names}
            places = self._places(0, frames or 0)
            if new or not journal.resume(frames or 0, places):
                journal.begin(attributes, series, layout)
                journal.append(0, {name: file[name][: frames or 0] for name in series}, places)
        self._fd = os.open(place, os.O_RDWR)
        self._writeback = _Writeback(self._fd)
        try:
            self._write(np.array([frames or 0]).view(np.uint8), self._offsets["frames_committed"])
            self.nbytes = _size(self._fd)
            os.posix_fallocate(self._fd, 0, self.nbytes)
            _sync(self._fd, path)
            place.rename(path)
        except BaseException:
            os.close(self._fd)
            raise

    def encode(self, block: Block, part: int) -> None:
        """Write one part of `block` to its place, where no reader counts it yet, and take checksums."""
        layout = self._layout
        _, slab = block.chunk_numbers(part)
        start, end = (min((slab + i) * layout.slab_nbytes, layout.plane_nbytes) for i in (0, 1))
        with self._trace.span("write", block.first):
            for field, name in enumerate(layout.fields):
                frames = block.data[: block.count, field, start:end]
                if frames.flags.c_contiguous:  # one call: threads that write to one file wait for one another
                    frames = frames.reshape(1, -1)
                for number, values in enumerate(frames):
                    place = self._offsets[name] + (block.first + number) * layout.plane_nbytes + start
                    self._write(values, place)
            self._writeback.start()
        if slab == 0:
            with self._trace.span("encode", block.first):
                codec.checksum(block, 0, block.count)

    def commit(self, blocks: Sequence[Block]) -> None:
        """Write what is recorded of each frame, then the number of committed frames."""
        first, frames = blocks[0].first, blocks[-1].first + blocks[-1].count
        with self._trace.span("commit", first):
            series = frame_series(self._config, self._layout, blocks)
            for name, values in series.items():
                self._write(values.view(np.uint8), self._offsets[name] + first * values.itemsize)
            self._write(np.array([frames]).view(np.uint8), self._offsets["frames_committed"])
            self._journal.append(first, series, self._places(first, frames))

    def sync(self) -> None:
        """Wait until the disk has what is committed, and the journal."""
        os.fsync(self._fd)
        self._journal.sync()

    def close(self, status: str) -> None:
        """Wait until the disk has the frames, record how the run ended, and close."""
        try:
            os.fsync(self._fd)
            with _heard(), h5py.File(self._path, "r+", locking=False) as file:
                file[VTK]["Steps"].attrs.modify("NSteps", np.int64(file["frames_committed"][()]))
                _finish(file, status)
        finally:
            self._writeback.end()
            _sync(self._fd, self._path)
            os.close(self._fd)

    def _places(self, first: int, frames: int) -> NDArray[np.void]:
        """Return where the slabs of the frames [first, frames) are, [frame, field, slab]."""
        layout = self._layout
        places = np.zeros((frames - first, len(layout.fields), layout.slabs), PLACE)
        slabs = np.arange(layout.slabs) * layout.slab_nbytes
        for number, name in enumerate(layout.fields):
            starts = self._offsets[name] + np.arange(first, frames) * layout.plane_nbytes
            places["offset"][:, number] = starts[:, np.newaxis] + slabs
        places["nbytes"] = np.diff(slabs, append=layout.plane_nbytes)
        return places

    def _write(self, values: NDArray[np.uint8], offset: int) -> None:
        rest = memoryview(values.data)
        while rest:
            written = os.pwrite(self._fd, rest, offset)
            rest, offset = rest[written:], offset + written


def _lay_out(file: h5py.File, config: Config, layout: FrameLayout, attributes: Mapping[str, Any], frames: int) -> None:
    """Create every array and attribute; arrays along time are contiguous if they have `frames` from the start."""
    _describe(file, attributes)
    # Of fixed size, so that the end of a run overwrites them in place and never needs new space.
    file.attrs.create("status", b"running", dtype="S16")
    file.attrs.create("ended", b"", dtype="S32")
    raw = config.output.compression == "none"
    properties = _reserved_contiguous() if raw else None
    if raw:
        file.create_dataset("frames_committed", data=np.zeros((), np.int64), dcpl=properties)
    axes = AXES[-len(layout.shape) :]
    file.attrs.update(nexus_attributes(layout))
    for name, size in zip(axes, layout.shape, strict=True):
        file.create_dataset(name, data=np.arange(size, dtype=np.float64))
        file[name].make_scale(name)
        file[name].attrs.update(COORDINATES[name])
    for name, values in frame_series(config, layout, []).items():
        growth: dict[str, Any] = {} if raw else {"chunks": (SERIES_CHUNK,), "maxshape": (None,)}
        series = file.create_dataset(name, (frames,), values.dtype, dcpl=properties, **growth)
        _describe(series, series_attributes(name, layout))
        if name == "time":
            series.make_scale("time")
        else:
            series.dims[0].attach_scale(file["time"])
        group = name.rpartition("/")[0]
        if group and "time" not in file[group]:  # so that the group has its coordinate where read alone
            file[group]["time"] = h5py.SoftLink("/time")
    if raw:
        file["step"][:] = frame_steps(config, 0, frames)
        file["time"][:] = frame_steps(config, 0, frames) * config.model.dt
    for name in layout.fields:
        growth = {} if raw else {
            "chunks": layout.chunk_shape,
            "maxshape": (None, *layout.shape),
            **_filters(config, layout),
        }  # fmt: skip
        with _no_plugins():
            field = file.create_dataset(name, (frames, *layout.shape), layout.dtype, dcpl=properties, **growth)
        _describe(field, field_attributes(name, layout), layout.computed)
        for axis, scale in enumerate(("time", *axes)):
            field.dims[axis].attach_scale(file[scale])
    if layout.keep_bits:
        file.create_dataset(QUANTIZATION, (), np.int8).attrs.update(quantization_attributes())
    file["matrix"] = file["v" if "v" in layout.fields else layout.fields[0]]  # the Gray Scott School's readers
    _lay_out_for_vtk(file, layout, frames, series={} if raw else {"chunks": (SERIES_CHUNK,), "maxshape": (None,)})


def _describe(of: Any, attributes: Mapping[str, Any], dtype: np.dtype[Any] | None = None) -> None:
    """Set attributes, floats as `dtype`: readers decode packed integers as the dtype of their scale."""
    for name, value in attributes.items():
        number = dtype is not None and isinstance(value, float)
        of.attrs[name] = np.bytes_(value) if name in PLAIN else np.asarray(value, dtype)[()] if number else value


def _lay_out_for_vtk(file: h5py.File, layout: FrameLayout, frames: int, series: dict[str, Any]) -> None:
    """Show the fields as temporal ImageData of the VTKHDF format, 2.0 (docs.vtk.org): points, members along z.

    VTK reads an image with one z as [time, y, x], as the fields are, so that links are enough.
    """
    members, rows, cols = (1, *layout.shape)[-3:]
    root = file.create_group(VTK)
    root.attrs["Version"] = np.array([2, 0], np.int64)
    root.attrs["Type"] = np.bytes_("ImageData")
    root.attrs["WholeExtent"] = np.array([0, cols - 1, 0, rows - 1, 0, members - 1], np.int64)
    root.attrs["Origin"] = np.zeros(3)
    root.attrs["Spacing"] = np.ones(3)
    root.attrs["Direction"] = np.eye(3).reshape(-1)
    steps = root.create_group("Steps")
    steps.attrs["NSteps"] = np.int64(frames)
    steps["Values"] = h5py.SoftLink("/time")
    offsets = file.create_dataset(OFFSETS + layout.fields[0], data=np.arange(frames, dtype=np.int64), **series)
    offsets.dims[0].attach_scale(file["time"])  # without which cf-python reads nothing of the file
    for name in layout.fields:
        root[f"PointData/{name}"] = h5py.SoftLink(f"/{name}")
        if name != layout.fields[0]:
            file[OFFSETS + name] = offsets


def _filters(config: Config, layout: FrameLayout) -> dict[str, Any]:
    """Return what readers have to undo, as arguments of `create_dataset`."""
    if (how := codec.blosc_of(config.output)) is None:
        return {"shuffle": True, "compression": "gzip", "compression_opts": config.output.level}
    compressor = {"lz4": 1, "zstd": 5}[how.cname]
    options = (
        2,
        2,
        layout.dtype.itemsize,
        layout.chunk_nbytes,
        how.clevel,
        int(blosc.SHUFFLE),
        compressor,
    )  # versions first
    return {"compression": BLOSC, "compression_opts": options, "allow_unknown_filter": True}


@contextmanager
def _no_plugins() -> Iterator[None]:
    """Hide the plugins of HDF5_PLUGIN_PATH: encoding is done here, and a filter they bring can refuse to be set up."""
    paths = [h5py.h5pl.get(0)]
    while h5py.h5pl.size() > 1:
        paths.append(h5py.h5pl.get(1))
        h5py.h5pl.remove(1)
    h5py.h5pl.replace(b"/", 0)  # there has to be one
    try:
        yield
    finally:
        h5py.h5pl.replace(paths[0], 0)
        for path in paths[1:]:
            h5py.h5pl.append(path)


@contextmanager
def _heard() -> Iterator[None]:
    """Raise what h5py cannot: an error of the write that letting go of an object of HDF5 can be."""
    errors: list[BaseException | None] = []
    before, sys.unraisablehook = sys.unraisablehook, lambda ignored: errors.append(ignored.exc_value)
    try:
        yield
    finally:
        sys.unraisablehook = before
    if errors and errors[0] is not None:
        raise errors[0]


def _reserved_contiguous() -> h5py.h5p.PropDCID:
    """Return the creation properties of a contiguous array that has its place in the file from the start, unfilled."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    return properties


def _go_on(file: h5py.File, attributes: Mapping[str, Any]) -> None:
    """Let the file say that the run goes on, and with which configuration."""
    history = f"{file.attrs['history']}\n{attributes['history']}"
    file.attrs.update({"config": attributes["config"], "history": history})
    file.attrs.modify("status", np.array(b"running", "S16"))
    file.attrs.modify("ended", np.array(b"", "S32"))


class _Series:
    """A 1-D dataset that grows after its first `frames` values, and its last chunk in memory.

    Storing that chunk again for each append takes two calls of HDF5, where a selection takes five; and of a commit's
    time most is spent between Python and HDF5.
    """

    def __init__(self, dataset: h5py.Dataset, frames: int) -> None:
        self._id = dataset.id
        self._chunk = np.zeros(SERIES_CHUNK, dataset.dtype)
        started = frames % SERIES_CHUNK
        self._chunk[:started] = dataset[frames - started : frames]
        self._id.set_extent((frames,))

    def append(self, first: int, values: NDArray[Any]) -> None:
        """Put `values` at the indices from `first` on, the present end."""
        self._id.set_extent((first + len(values),))
        while len(values):
            start = first % SERIES_CHUNK
            here = values[: SERIES_CHUNK - start]
            self._chunk[start : start + len(here)] = here
            self._id.write_direct_chunk((first - start,), self._chunk)
            first, values = first + len(here), values[len(here) :]


class _Writeback:
    """Lets the disk begin with what is written, so that little is left for the fsync at the end.

    In a thread of its own: the call waits while the disk has enough to do, which took half of the writer's time.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._thread = ThreadPoolExecutor(1)
        self._started: Future[None] | None = None

    def start(self) -> None:
        """Begin, unless the call before has not yet returned."""
        if self._started is None or self._started.done():
            self._started = self._thread.submit(self._start)

    def end(self) -> None:
        """Wait for the thread; to be called before the file is closed."""
        self._thread.shutdown()

    def _start(self) -> None:
        write = 2  # SYNC_FILE_RANGE_WRITE: start, do not wait; only a hint
        if hasattr(LIBC, "sync_file_range"):
            LIBC.sync_file_range(self._fd, ctypes.c_int64(0), ctypes.c_int64(0), write)


def _finish(file: h5py.File, status: str) -> None:
    file.attrs.modify("status", np.array(status.encode(), "S16"))
    file.attrs.modify("ended", np.array(now().encode(), "S32"))


def _size(fd: int) -> int:
    return os.fstat(fd).st_size


def _sync(fd: int, path: Path) -> None:
    """Wait until the disk has the file and its name."""
    os.fsync(fd)
    sync_folder(path.parent)


def _allocate(fd: int, end: int) -> None:
    """Reserve disk space up to `end` without changing the file's size; raise OSError if there is not enough."""
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit != resource.RLIM_INFINITY and end > limit:  # which a reservation does not meet, but a write does
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    free = os.fstatvfs(fd)
    if end - os.fstat(fd).st_blocks * 512 > free.f_bavail * free.f_frsize:  # fallocate would fill the disk, then fail
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    keep_size = 1  # FALLOC_FL_KEEP_SIZE, which os.posix_fallocate does not offer
    if LIBC.fallocate(fd, keep_size, ctypes.c_int64(0), ctypes.c_int64(end)):
        code = ctypes.get_errno()
        if code not in (errno.EOPNOTSUPP, errno.ENOSYS):  # a file system that cannot reserve has to do without
            raise OSError(code, os.strerror(code))
