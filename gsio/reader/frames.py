"""The frames of one field, which are read and decoded when they are indexed."""

import math
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from gsio.codec import Codec, decode
from gsio.errors import GsioError
from gsio.frames.chunking import PLACE
from gsio.frames.content import Content
from gsio.frames.layout import BlockLayout
from gsio.frames.metadata import field_attributes
from gsio.inputs import open_regular, read_regular
from gsio.machine import available_memory, usable_cores
from gsio.processes import check_threads

MOST_CHUNKS = 1 << 24  # the most chunks of a field whose places are kept in memory


class Places(NamedTuple):
    """Where the chunks of a field are in an HDF5 file, so that many threads can read them at once, without HDF5.

    Attributes
    ----------
    path, identity
        The file, and its device and inode. Another file of this name has other places.
    table
        `offset` and `nbytes` of each chunk, [chunk, slab]; a chunk of no bytes is missing.
    """

    path: Path
    identity: tuple[int, int]
    table: NDArray[np.void]


class ArrayLayout(NamedTuple):
    """What `Frames` asks of an array of h5py or zarr, for an array that is not opened."""

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype[Any]
    attrs: dict[str, Any]
    shards: tuple[int, ...] | None = None

    @classmethod
    def of(cls, field: str, content: Content, layout: BlockLayout, frames: int) -> "ArrayLayout":
        """Return the array of a field as gsio makes it."""
        frame, chunks = layout.frame, layout.chunks
        shards = (chunks.frames_per_shard, *chunks.chunk_shape[1:]) if chunks.frames_per_shard else None
        attributes = field_attributes(field, content, layout)
        return cls((frames, *frame.shape), chunks.chunk_shape, frame.dtype, attributes, shards)


class Frames:
    """The committed frames of one field, [frame, …], indexed like a NumPy array, and read when they are indexed.

    With slices, integers and one list of frames, memory holds only the selected cells of each frame. Any other index of
    NumPy gives the same as on an array, but memory then holds every frame that it touches.

    Attributes
    ----------
    dtype
        The dtype of the values; where integers are stored for them, the dtype that was computed.
    ndim, size
        As a NumPy array has them, so that dask.array.from_array and napari accept a `Frames`.
    codec
        The family of the codec: deflate, blosc or none.
    frames_per_chunk, frames_together
        Frames of a chunk, which is decoded to read one of them; the last chunk is kept. Frames of a shard, or of
        a chunk if there are no shards.
    lines_per_chunk
        Lines of a chunk along the first axis of a frame.
    lines_per_slab
        Rows that a slab holds, or members where frames have more than two axes.
    """

    def __init__(
        self,
        array: Any,
        frames: int,
        folder: Path | None,
        codec: Codec,
        places: Places | None = None,
        before: tuple[int, ...] = (),
    ) -> None:
        self._array, self._codec = array, codec
        self._folder, self._places = folder, places  # the folder of the chunks is that of Zarr
        self._before = before  # the place of the frames along more axes of the array of Zarr, which come first
        self._kept: tuple[int, NDArray[Any]] = -1, np.empty(0)
        self.shape: tuple[int, ...] = (frames, *array.shape[1:])
        scale = array.attrs.get("scale_factor")
        exact = scale is None or np.float32(scale) != scale  # JSON does not record the dtype
        self._scale: np.floating[Any] | None = None if scale is None else (np.float64 if exact else np.float32)(scale)
        self.dtype: np.dtype[Any] = array.dtype if self._scale is None else self._scale.dtype
        self.frames_per_chunk = array.chunks[0]
        self.frames_together: int = (getattr(array, "shards", None) or [self.frames_per_chunk])[0]
        self.codec = codec.family
        # Lines are rows, or members; a frame of one axis is one row, and one of four axes has all members of a place.
        self.lines_per_chunk: int = array.chunks[1] if self.ndim > 1 else 1
        self.lines_per_slab: int = array.chunks[1] * math.prod(self.shape[2:-2]) if self.ndim > 2 else 1
        self.stored: np.dtype[Any] = array.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"<gsio.Frames {self.shape} {self.dtype}, {self.codec}>"

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    def __getitem__(self, key: Any) -> NDArray[Any]:
        before, part, after = _split(key, self.shape)
        numbers = np.arange(len(self))[part]  # raises IndexError like any array
        simple = all(_is_simple(index) or isinstance(index, int | np.integer) for index in after)
        if not isinstance(part, slice) and (before or numbers.ndim != 1 or not simple):
            wanted, places = np.unique(numbers, return_inverse=True)
            if len(wanted) == 1:
                frames = self._frame(int(wanted[0]))[np.newaxis]
            else:
                frames = np.empty((len(wanted), *self.shape[1:]), self.dtype)
                for place, number in enumerate(wanted):
                    frames[place] = self._frame(int(number))
            found: NDArray[Any] = frames[(*before, places.reshape(numbers.shape)[()], *after)].copy()
            return found
        # The selected cells of a frame are copied before the next is read. NumPy tells where the frame axis ends up.
        whole = (*before, slice(None), *after)
        shape, longer = (np.broadcast_to(self.dtype.type(), (n, *self.shape[1:]))[whole].shape for n in (1, 2))
        axis = next(axis for axis, sizes in enumerate(zip(shape, longer, strict=True)) if sizes[0] != sizes[1])
        out = np.empty((*shape[:axis], len(numbers), *shape[axis + 1 :]), self.dtype)
        for place, number in enumerate(numbers):
            np.moveaxis(out, axis, 0)[place] = np.moveaxis(self._frame(int(number))[np.newaxis][whole], axis, 0)[0]
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype)

    def chunk(self, number: int) -> NDArray[Any]:
        """Return the frames that share chunks, [frame, …], as stored; the last chunk can hold uncommitted frames.

        Raises OSError if the chunk is missing or cannot be read, and ValueError if it is damaged.
        """
        found = [self.slab(number, slab) for slab in range(self.slabs)]
        return found[0] if len(found) == 1 else np.concatenate(found, axis=1)[:, : self.shape[1]]

    def decoded(self, number: int) -> NDArray[Any]:
        """Return the values of the frames that share chunks, as `chunk` does, with `dtype`; threads may call this."""
        return self.chunk(number) if self._scale is None else self.chunk(number) * self._scale

    @property
    def scale(self) -> np.floating[Any] | None:
        """The value that the stored integer 1 stands for, or None where values are stored as they are."""
        return self._scale

    @property
    def slabs(self) -> int:
        """Number of slabs that a frame is cut into; 1: frames are whole."""
        return int(-(-self.shape[1] // self._array.chunks[1]))

    def pieces(self, number: int, member: int, rows: range) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield `rows` of one member of the frames that share chunks, slab by slab, so that memory holds one slab.

        Each piece is a row and the values from there on, [frame, row, col], as stored; raises as `chunk`.
        """
        lines, line = self.lines_per_slab, self.shape[-2:] if self.ndim > 3 else self.shape[-1:]

        def slab(place: int) -> NDArray[Any]:
            return self.slab(number, place).reshape(self.frames_per_chunk, lines, *line)

        if self.ndim > 3:
            yield rows.start, slab(member // lines)[:, member % lines, rows.start : rows.stop]
            return
        for place in range(rows.start // lines, -(-rows.stop // lines)):
            first = max(rows.start, place * lines)
            yield first, slab(place)[:, first - place * lines : rows.stop - place * lines]

    def slab(self, number: int, slab: int) -> NDArray[Any]:
        """Return one slab of the frames that share chunks, [frame, line, …], as stored; raises as `chunk`.

        The last slab of a frame is padded.
        """
        encoded = self.encoded(number, slab)
        return decode(self._codec, encoded, self._array.dtype, self._chunk_nbytes).reshape(self._array.chunks)

    @property
    def _chunk_nbytes(self) -> int:
        return int(math.prod(self._array.chunks) * self._array.dtype.itemsize)

    def apart(self, path: Path, table: NDArray[np.void] | None = None) -> "Frames":
        """Return the same frames, for many threads at once, which need no open file: `path` is that of the output.

        The places of the chunks are those of `table`, as `Places` has it, or else of the index of HDF5. Raises
        ValueError if the table is one of other chunks, or the index has more than `MOST_CHUNKS`.
        """
        if self._folder is not None or self._places is not None:
            return self
        chunks, found = self._array.chunks, path.stat()
        shape = -(-len(self) // chunks[0]), self.slabs
        table = self._indexed(shape) if table is None else table
        if table.shape != shape:
            raise ValueError(f"expected the places of {shape} chunks, found {table.shape}")
        layout = ArrayLayout(self._array.shape, chunks, self._array.dtype, dict(self._array.attrs))
        return Frames(layout, len(self), None, self._codec, Places(path, (found.st_dev, found.st_ino), table))

    def _indexed(self, shape: tuple[int, int]) -> NDArray[np.void]:
        """Return the places of the chunks, [chunk, slab], that the index of HDF5 has."""
        if math.prod(shape) > MOST_CHUNKS:
            raise ValueError(f"expected at most {MOST_CHUNKS} chunks, found {shape[0]} × {shape[1]}")
        chunks, table = self._array.chunks, np.zeros(shape, PLACE)

        def keep(chunk: Any) -> None:
            frame, line = chunk.chunk_offset[:2]
            if frame < len(self) and not chunk.filter_mask:
                table[frame // chunks[0], line // chunks[1]] = chunk.byte_offset, chunk.size

        self._array.id.chunk_iter(keep)
        return table

    def for_page(self, number: int, slab: int) -> tuple[Any, str]:
        """Return a chunk of a slab as a browser decodes it, and the encoding by which it does; "" if there is none.

        A deflated chunk is sent as it is stored, and so are raw values; others are decoded first.
        """
        encoded = self.encoded(number, slab)
        if self._codec.byte_planes:
            return bytes(encoded), "deflate"
        return decode(self._codec, encoded, self._array.dtype, self._chunk_nbytes).tobytes(), ""

    def encoded(self, number: int, slab: int) -> Any:
        """Return a chunk of a slab as it is stored, bytes-like; only one thread at a time can be in HDF5."""
        places, most = [0] * (len(self.shape) - 2), most_encoded(self._chunk_nbytes)
        if self._places is not None:
            return encoded_at(self._places, number, slab, most)
        if self._folder is not None:
            together = self._array.shards[0] // self.frames_per_chunk if self._array.shards else 0
            return encoded_in_folder(self._folder, number, slab, len(places), together, most, self._before)
        place = (number * self.frames_per_chunk, slab * self._array.chunks[1], *places)
        try:
            skipped, encoded = self._array.id.read_direct_chunk(place, out=np.empty(most, np.uint8))
        except RuntimeError as error:
            raise OSError(f"a chunk of {self._array.name} is missing: {error}") from None
        if skipped:
            raise ValueError(f"a chunk of {self._array.name} is not encoded as the others")
        return encoded

    def _frame(self, number: int) -> NDArray[Any]:
        wanted, place = divmod(number, self.frames_per_chunk)
        kept, frames = self._kept
        if kept != wanted:
            frames = self.decoded(wanted)
            self._kept = wanted, frames
        frame: NDArray[Any] = frames[place]
        return frame


@contextmanager
def decoding_threads(fields: Sequence[Frames], most_nbytes: int = sys.maxsize) -> Iterator[Any]:
    """Give a `map` that works in threads: one for each core, as far as the memory allows chunks of all `fields`.

    Together they take at most about `most_nbytes`. The map is a few results ahead of who takes them. It works in this
    thread where the system allows no more.
    """
    in_memory = 4 * sum(field.frames_per_chunk * math.prod(field.shape[1:]) * field.dtype.itemsize for field in fields)
    at_once = max(1, min(usable_cores(), min(most_nbytes, available_memory()) // in_memory))
    try:
        check_threads(at_once)
    except GsioError:
        from numcodecs import blosc

        blosc.use_threads = False  # it has threads of its own for the main one
        yield map
        return
    with ThreadPoolExecutor(at_once) as threads:
        yield partial(_map_ahead, threads, at_once + 1)


def _map_ahead(threads: ThreadPoolExecutor, most: int, work: Callable[..., Any], *pieces: Iterable[Any]) -> Any:
    """Yield what `map` yields; `most` results are made before they are taken, where Executor.map makes all."""
    todo, waiting = zip(*pieces, strict=False), deque[Future[Any]]()
    try:
        for piece in todo:
            waiting.append(threads.submit(work, *piece))
            if len(waiting) == most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _split(key: Any, shape: tuple[int, ...]) -> tuple[tuple[Any, ...], Any, tuple[Any, ...]]:
    """Return the parts of an index before, at and after the axis of frames; together they are as long as `shape`.

    A mask over several axes becomes a list of places for each of them, which NumPy treats alike.
    """
    given = key if isinstance(key, tuple) else (key,)
    parts = [part if _is_simple(part) else _places(part) for part in given]
    axes = [0 if part is None or part is Ellipsis else part.ndim if _is_mask(part) else 1 for part in parts]
    dots = [place for place, part in enumerate(parts) if part is Ellipsis]
    if len(dots) > 1 or sum(axes) > len(shape):
        found = "several ellipses" if len(dots) > 1 else f"{sum(axes)} indices"
        raise IndexError(f"expected at most one ellipsis and {len(shape)} indices, got {found}")
    place = dots[0] if dots else len(parts)
    slices = [slice(None)] * (len(shape) - sum(axes))
    parts[place:place] = slices  # the ellipsis stays behind the slices, because it separates the lists on its two sides
    axes[place:place] = [1] * len(slices)
    first = next(place for place, number in enumerate(axes) if number)
    if _is_mask(parts[first]):
        if parts[first].shape != shape[: axes[first]]:
            raise IndexError(f"expected a mask of {shape[: axes[first]]}, got one of {parts[first].shape}")
        parts[first : first + 1] = np.nonzero(parts[first])
    return tuple(parts[:first]), parts[first], tuple(parts[first + 1 :])


def _is_simple(part: Any) -> bool:
    return part is None or part is Ellipsis or isinstance(part, slice)


def _is_mask(part: Any) -> bool:
    return isinstance(part, np.ndarray) and part.dtype == bool


def _places(part: Any) -> Any:
    """Return an index that is no slice as an integer or an array, of integers or a mask."""
    if isinstance(part, int | np.integer) and not isinstance(part, bool):
        return part
    found = np.asarray(part)
    return found if found.size or found.dtype.kind in "iub" else found.astype(np.intp)


def most_encoded(nbytes: int) -> int:
    """Return the largest encoded size of a chunk of `nbytes`: the headers of every codec are small."""
    return nbytes + nbytes // 8 + (64 << 10)


def encoded_at(places: Places, number: int, slab: int, most_nbytes: int) -> bytes:
    """Return a chunk of an HDF5 file, as it is stored; raises OSError if it is missing, or the file is another."""
    offset, nbytes = map(int, places.table[number, slab])
    if not 0 < nbytes <= most_nbytes:
        raise OSError("a chunk is missing")
    with open_regular(places.path) as file:
        found = os.fstat(file.fileno())
        if (found.st_dev, found.st_ino) != places.identity:
            raise OSError("another file has replaced this one")
        encoded = os.pread(file.fileno(), nbytes, offset)
    if len(encoded) < nbytes:
        raise OSError("a chunk lies behind the end of the file")
    return encoded


def encoded_in_folder(
    folder: Path, number: int, slab: int, axes: int, together: int, most_nbytes: int, before: tuple[int, ...] = ()
) -> bytes:
    """Return a chunk from the folder of a Zarr array with `axes` more axes; `together` chunks share a shard, or 0.

    Axes before that of the frames have the place `before`. Raises OSError if the chunk is missing, in no regular file
    or larger than `most_nbytes`, and ValueError if it is damaged.
    """
    path = folder / ".".join(map(str, ["c", *before, number // (together or 1), slab, *[0] * axes]))
    if together:
        return _from_shard(path, number % together, together, most_nbytes)
    return read_regular(path, most_nbytes)


def _from_shard(path: Path, place: int, chunks: int, most_nbytes: int) -> bytes:
    """Return one of the chunks of a shard; the index of offsets and sizes is at the end of the file."""
    with open_regular(path) as file:
        start = file.seek(0, os.SEEK_END) - (16 * chunks + 4)
        if start < 0:
            raise ValueError(f"{path.name} is too short for its index")
        file.seek(start)
        index, checksum = file.read(16 * chunks), file.read(4)
        if crc32c(index) != int.from_bytes(checksum, "little"):
            raise ValueError(f"the index of {path.name} is damaged")
        offset, size = map(int, np.frombuffer(index, "<u8").reshape(-1, 2)[place])
        if size > most_nbytes or offset + size > start:
            raise ValueError(f"a chunk of {path.name} is missing or damaged")
        file.seek(offset)
        return file.read(size)
