"""An output that is open for reading: its fields, its series and its attributes."""

import os
import warnings
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsio.codec import CODECS
from gsio.config import Config
from gsio.draw.colours import DEFAULT
from gsio.draw.limits import Limits
from gsio.errors import NO_THREAD, DataError, GsioError, is_without_thread, reason_of
from gsio.frames.content import Content
from gsio.reader.checked import attributes_of, check, check_place
from gsio.reader.frames import Frames


class Stack:
    """The committed frames of an output, with their series and attributes; a context manager that closes the file.

    Attributes
    ----------
    frames
        Number of committed frames.
    fields
        Saved fields by name, in the order of their checksums, each a `Frames`; also by its name, as in `.v`.
    content
        What the frames are: their fields and axes, and how they are stored.
    attributes
        Attributes of the file as a whole.
    times
        float64 [frame], model time.
    root
        The open h5py.File or zarr.Group.
    """

    def __init__(
        self, path: Path, root: Any, attributes: dict[str, Any], content: Content, most: int | None = None
    ) -> None:
        self.path = path
        self.root = root
        self.attributes = attributes
        self.content = content
        there = min(root[name].shape[0] for name in content.fields)
        self.frames = there if most is None else min(there, most)
        folders = {name: path / name if path.is_dir() else None for name in content.fields}
        self._codec = CODECS[content.compression]
        self.fields = {name: Frames(root[name], self.frames, folder, self._codec) for name, folder in folders.items()}
        self.times: NDArray[np.float64] = np.asarray(root["time"][: self.frames])

    def __getattr__(self, name: str) -> Frames:
        if name in self.__dict__.get("fields", ()):
            return self.fields[name]
        raise AttributeError(f"{type(self).__name__} has no '{name}'")

    def __enter__(self) -> "Stack":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        if hasattr(self.root, "close"):
            self.root.close()

    @property
    def is_of_run(self) -> bool:
        """Whether a run of Gray-Scott made the output, which then records its configuration."""
        return "config" in self.attributes

    @property
    def config(self) -> Config:
        """The configuration of the run; raises DataError if no run of Gray-Scott made the output."""
        if not self.is_of_run:
            raise DataError(f"{self.path}: expected an output of 'gsio run', found one that another program made")
        return Config.from_toml(self.attributes["config"])

    def series(self, name: str) -> NDArray[Any]:
        """Return a series, with one value for each frame [frame]: 'step', 'stats/v_min' or 'integrity/crc32c'."""
        return self._read(name, slice(self.frames))

    def axis(self, name: str) -> NDArray[np.float64]:
        """Return the coordinates along an axis of a frame, [cell]: 'y' or 'x'."""
        return self._read(name, slice(None))

    def _read(self, name: str, part: slice) -> NDArray[Any]:
        try:
            return np.asarray(self.root[name][part])
        except (OSError, RuntimeError, ValueError) as error:  # h5py raises any of them
            raise DataError(f"{self.path}: {name} cannot be read ({error}); see 'gsio verify'") from None

    @property
    def recorded(self) -> list[str]:
        """The names that `series` takes."""
        statistics = [f"stats/{name}" for name in self.root["stats"] if name != "time"]  # `time` is a link
        return ["time", "step", *statistics, "integrity/crc32c"]

    def frame(self, name: str, index: int) -> NDArray[Any]:
        """Return one frame of a saved field, [row, col], [member, row, col] or as its axes are; -1 is the last.

        Raises KeyError if the field is not saved and IndexError if the frame is not committed.
        """
        if name not in self.fields:
            raise KeyError(f"it holds only {', '.join(self.fields)}")
        if not -self.frames <= index < self.frames:
            raise IndexError(f"expected a frame below {self.frames}, got {index}")
        return self.fields[name][index]

    def picture(
        self,
        number: int,
        field: str | None = None,
        *,
        member: int | None = None,
        limits: str | Limits = "auto",
        cmap: str = DEFAULT,
        scale: float = 1.0,
    ) -> Any:
        """Return a frame as an image of Pillow, mode P, which a notebook shows; -1 is the last frame.

        Parameters
        ----------
        field, member
            The field, by default the last one, which is v if it is saved; the member of a batch, by default all of
            them as tiles.
        limits
            The values of the first and the last colour, (low, high); "auto" for the range of all frames, or "frame"
            for the range of this frame.
        cmap
            The name of a colour map of `gsio.draw.colours`.
        scale
            A fraction of 1, or a whole number: how much larger the picture is than the grid.

        Raises
        ------
        IndexError, UsageError, DataError
            The frame is not committed, an argument cannot be used, or the frame cannot be read.
        """
        from gsio.reader.pictures import picture

        return picture(self, number, field, member, limits=limits, cmap=cmap, scale=scale)

    def movie(
        self,
        path: Path | str,
        *,
        fps: float = 30.0,
        every: int = 1,
        frames: str = "",
        fields: str = "",
        members: str = ":",
        crop: str = ":,:",
        size: str = "",
        cmap: str = DEFAULT,
        limits: str | Limits = "auto",
        timestamp: bool = False,
        colorbar: bool = False,
        crf: int | None = None,
        lossless: bool = False,
        overwrite: bool = False,
    ) -> int:
        """Write frames as a movie, and return their number; several fields or members become tiles.

        Parameters
        ----------
        path
            A name that ends in .mp4 (H.264), .webm (VP9), .mkv (H.264), .gif, .apng or .webp. In the last three each
            pixel has the exact colour.
        fps, every
            Frames of the movie a second, and how many frames of the selection there are for one of the movie.
        frames, fields, members, crop
            What is taken, as the options of 'gsio movie' have it; empty `fields` are the last one.
        size
            The most pixels across and down, "1280x720"; by default 640 each for .gif, .apng and .webp, 4096 for others.
            Larger pictures are made smaller. Smaller ones are made larger, by a whole number, only if this is given.
        cmap
            The name of a colour map of `gsio.draw.colours`.
        limits
            The values of the first and the last colour, (low, high); "auto" for the range of all frames, or "frame"
            for the range of each.
        timestamp, colorbar
            Write the model time, and draw the colours with their values, below the picture.
        crf
            The quality of a video: a smaller number for a better one and a larger file.
        lossless
            Keep the exact colours in a .mkv, by the codec FFV1.
        overwrite
            Replace a file at `path`.

        Raises
        ------
        UsageError, DataError, StorageError
            An argument cannot be used, or PyAV is not installed; frames cannot be read, and the movie, if there is
            one, has the others; the storage failed.
        """
        from gsio.reader.movie import movie

        return movie(
            self, Path(path), fps=fps, every=every, frames=frames, fields=fields, members=members, crop=crop, size=size,
            cmap=cmap, limits=limits, timestamp=timestamp, colorbar=colorbar, crf=crf, lossless=lossless,
            overwrite=overwrite, progress=lambda frames: nullcontext(lambda done: None),
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"<gsio.Stack {self.path}: {self.facts}>"

    @property
    def facts(self) -> str:
        """The frames, fields, shape and state of the output, in words."""
        field = next(iter(self.fields.values()))
        shape = " × ".join(map(str, field.shape[1:]))
        return f"{self.frames} frames of {', '.join(self.fields)}, {shape} {field.dtype}, {self.attributes['status']}"

    def _repr_html_(self) -> str:
        from gsio.reader.pictures import html_of

        return html_of(self)

    def to_xarray(self) -> Any:
        """Return a lazy xarray.Dataset, read by zarr, or by h5netcdf with hdf5plugin for lz4 and zstd."""
        import xarray

        if self.path.is_dir():
            return xarray.open_zarr(self.path, chunks=None)
        if self._codec.hdf5 and self._codec.hdf5.plugin:
            import_module(self._codec.hdf5.plugin)  # its import registers the filter
        return xarray.open_dataset(self.path, engine="h5netcdf").isel(time=slice(self.frames))


def open_stack(path: Path | str, most: int | None = None) -> Stack:
    """Open an output for reading; if `most` is given, only its first `most` frames.

    Raises DataError if `path` is no output, or not as gsio writes it.
    """
    path = Path(path)
    root: Any = None
    try:
        check_place(path)
        root = _open_zarr(path) if path.is_dir() else open_hdf5(path)
        attributes = attributes_of(root)
        return Stack(path, root, attributes, check(path, root, attributes), most)
    except Exception as error:  # h5py and zarr raise many types for a damaged file
        if hasattr(root, "close"):
            root.close()
        if is_without_thread(error):  # zarr has one of its own
            raise GsioError(NO_THREAD) from None
        found = isinstance(error, OSError) and error.errno is not None
        reason = reason_of(error) if found else error
        if not os.path.lexists(path):
            reason = "no such file"
        elif path.is_dir() and not os.path.lexists(path / "zarr.json"):
            reason = "it is a folder, and no Zarr group of version 3"
        raise DataError(f"cannot read {path}: {reason}; expected an output of 'gsio run'") from None


def open_hdf5(path: Path) -> Any:
    """Open a file of HDF5, also where it cannot be locked, or this process has it open without a lock."""
    import h5py

    try:
        return h5py.File(path, "r")
    except OSError as error:
        if "lock" not in str(error):
            raise
        return h5py.File(path, "r", locking=False)  # some file systems have no locks, and no writer of ours takes one


def _open_zarr(path: Path) -> Any:
    import zarr

    with warnings.catch_warnings(action="ignore"):  # gsio checks the metadata itself
        return zarr.open_group(path, mode="r", zarr_format=3, use_consolidated=True)
