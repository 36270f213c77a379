"""One view of what gsio wrote, for every command that reads."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsio.errors import DataError


class Stack:
    """The committed frames of an open output.

    Attributes
    ----------
    frames
        Number of committed frames.
    fields
        Saved fields by name; each is indexed by frame and gives an array [rows, cols] ([members, rows, cols] of
        a batch).
    attributes
        Attributes of the file as a whole.
    """

    def __init__(self, file: Any) -> None:
        self.fields = {name: file[name] for name in ("u", "v") if name in file}
        self.attributes = {name: _plain(value) for name, value in file.attrs.items()}
        committed = file["frames_committed"][()] if "frames_committed" in file else len(file["time"])
        self.frames = int(committed)

    def frame(self, name: str, index: int) -> NDArray[Any]:
        """Return one frame of a saved field, [rows, cols] or [members, rows, cols]; -1 is the last.

        Raises KeyError if the field is not saved and IndexError if the frame is not committed.
        """
        if name not in self.fields:
            raise KeyError(f"it holds only {', '.join(self.fields)}")
        if not -self.frames <= index < self.frames:
            raise IndexError(f"expected a frame below {self.frames}, got {index}")
        return np.asarray(self.fields[name][index % self.frames])


@contextmanager
def open_stack(path: Path) -> Iterator[Stack]:
    """Open an output for reading; raises DataError if it is none."""
    import h5py

    try:
        file = h5py.File(path, "r")
    except OSError as error:
        reason = "no such file" if not path.exists() else "it is a folder" if path.is_dir() else str(error)
        raise DataError(f"cannot read {path}: {reason}; expected a file written by gsio") from None
    with file:
        if "gsio_version" not in file.attrs:
            raise DataError(f"{path} was not written by gsio; expected an output of 'gsio run'")
        yield Stack(file)


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
