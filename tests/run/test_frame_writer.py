"""FrameWriter: what a loop outside gsio can rely on."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr

import gsio
from gsio.testing import small_blocks

SHAPE = 12, 17
ENDINGS = pytest.mark.parametrize("ending", [".h5", ".zarr"])


def frame(number: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(number).random(shape, np.float32)


def stored(path: Path, name: str = "v") -> np.ndarray:
    """The values as a reader without gsio gets them."""
    if path.suffix == ".zarr":
        return np.asarray(zarr.open_group(path, mode="r")[name])
    with h5py.File(path) as file:
        return np.asarray(file[name])


def verified(path: Path) -> gsio.reader.Stack:
    """Open an output after `gsio verify` has found nothing wrong."""
    done = subprocess.run([sys.executable, "-m", "gsio", "verify", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return gsio.open_stack(path)


@pytest.fixture
def blocks() -> Iterator[None]:
    """Blocks of a few frames, so that a short loop fills many."""
    with small_blocks(block_bytes=4 * 4 * 12 * 17, chunk_bytes=4 * 12 * 17):
        yield


@ENDINGS
def test_frames_that_change_in_place_after_append_are_saved_as_they_were(
    tmp_path: Path, ending: str, blocks: None
) -> None:
    path = tmp_path / f"run{ending}"
    values = np.zeros(SHAPE, np.float32)
    with gsio.FrameWriter(path, SHAPE) as out:
        for number in range(40):
            values[...] = frame(number)
            out.append(values)
            values[...] = np.nan
            assert len(out) == number + 1
    assert out.frames_committed == 40
    np.testing.assert_array_equal(stored(path), [frame(number) for number in range(40)])
    with verified(path) as stack:
        assert stack.attributes["status"] == "complete"
        np.testing.assert_array_equal(stack.times, np.arange(40))
        np.testing.assert_array_equal(stack.series("step"), np.arange(40))
    assert not Path(f"{path}.journal").exists()
