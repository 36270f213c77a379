"""What the tests of FrameWriter share: frames, what readers find of them, a loop elsewhere, and a codec that waits."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401 - its import registers the filters of lz4 and zstd
import numpy as np
import pytest
import zarr
from patience import DEADLINE

import gsio
from gsio import codec
from gsio.cli import main
from gsio.reader import Stack

SHAPE = 12, 17
PLANE = 4 * 12 * 17  # bytes of a field
ENDINGS = pytest.mark.parametrize("ending", [".h5", ".zarr"])


def frame(number: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(number).random(shape, np.float32)


def frames(count: int) -> np.ndarray:
    return np.array([frame(number) for number in range(count)])


def stored(path: Path, name: str = "v") -> np.ndarray:
    """The values as a reader without gsio gets them."""
    if path.suffix == ".zarr":
        return np.asarray(zarr.open_group(path, mode="r")[name])
    with h5py.File(path) as file:
        return np.asarray(file[name])


def verified(path: Path) -> Stack:
    """Open an output after `gsio verify` has found nothing wrong."""
    assert main(["verify", str(path)]) == 0
    return gsio.open_stack(path)


def own_threads() -> set[threading.Thread]:
    """The threads of this process, without those of zarr-python, which stay."""
    return {thread for thread in threading.enumerate() if not thread.name.startswith(("zarr_io", "asyncio_"))}


def wait_until(happened: Callable[[], object]) -> None:
    """Return when something has happened that no event tells."""
    ends = time.monotonic() + DEADLINE
    while not happened():
        assert time.monotonic() < ends
        time.sleep(0.002)


def wait_until_full(out: gsio.FrameWriter, thread: threading.Thread) -> None:
    """Return when a thread waits in `append`, because all blocks are full."""
    seen: list[int] = []

    def waits() -> bool:
        place = sys._current_frames().get(thread.ident or 0)
        names = []
        while place is not None:
            names.append(place.f_code.co_name)
            place = place.f_back
        seen.append(len(out) if {"acquire", "append"} <= set(names) else -len(seen) - 1)
        return len(seen) > 20 and len(set(seen[-20:])) == 1

    wait_until(waits)


def python(code: str, *words: object, **options: Any) -> subprocess.Popen[str]:
    """Start a program whose `frame` is that of the tests."""
    start = f"import sys; sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]!r}\n"
    start += "from appending import *\nfrom gsio.testing import small_blocks\n"
    command = [sys.executable, "-c", start + code, *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


class Gate:
    """A codec, named gate, that waits until it is open, and can fail.

    Attributes
    ----------
    error
        What the codec raises once it is open.
    entered
        A thread has begun to encode.
    """

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.open, self.entered = threading.Event(), threading.Event()
        self._deflate = codec.CODECS["deflate"]
        codec.register(self._deflate._replace(name="gate", encode=self._encode, kernels=None))

    def _encode(self, chunk: Any, itemsize: int, level: int) -> Any:
        self.entered.set()
        assert self.open.wait(DEADLINE)
        if self.error is not None:
            raise self.error
        return self._deflate.encode(chunk, itemsize, level)
