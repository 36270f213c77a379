"""What the writer of every format promises: readers find each committed frame, bit for bit, and no other."""

import ctypes
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gsio import open_stack
from gsio.config import Config
from gsio.errors import StorageError
from gsio.files import LIBC
from gsio.frames.block import Block
from gsio.frames.content import Content
from gsio.frames.layout import BlockLayout
from gsio.frames.metadata import frame_steps
from gsio.reader.verify import problems
from gsio.run.plan import layout_of
from gsio.testing import encode, random_block, small_blocks
from gsio.trace import Trace
from gsio.writer.formats import FORMATS, open_writer
from gsio.writer.journal import Journal
from gsio.writer.protocol import Target, Writer
from gsio.writer.provenance import root_attributes

Make = Callable[..., Config]
FRAMES, CHUNK, BLOCK = 24, 2, 8
SMALL = {"grid.rows": 32, "grid.cols": 24, "run.frames": FRAMES, "output.fields": "u,v"}
ENDINGS = {form.name: form.endings[0] for form in FORMATS}
every_format = pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
every_format_and_codec = pytest.mark.parametrize(
    ("ending", "codec"), [(form.endings[0], codec.name) for form in FORMATS for codec in form.codecs]
)


class Output:
    """An output, the layout of its frames, and the writers that make it one after the other."""

    def __init__(self, path: Path, config: Config, layout: BlockLayout) -> None:
        self.path, self.config, self.layout = path, config, layout
        self._attributes = root_attributes(config, "test", "test")

    @contextmanager
    def writer(self, after: int | None = None) -> Iterator[Writer]:
        """Give a writer of a new output, or of one that goes on after so many frames."""
        series = None
        if after is not None:
            with open_stack(self.path) as stack:
                series = {name: stack.series(name)[:after] for name in stack.recorded}
        with Journal(self.path) as journal:
            content = Content.of(self.config)
            target = Target(self.path, content, self.layout, self._attributes, journal, Trace(), series)
            yield open_writer(target)

    def block(self, first: int, count: int = BLOCK, kept: int = 0) -> Block:
        block = random_block(self.layout, first, count)
        block.steps[:count] = frame_steps(self.config, first, count)
        block.times[:] = block.steps * self.config.model.dt
        block.kept = kept
        return block

    def frames(self) -> int:
        with open_stack(self.path) as stack:
            return stack.frames

    def check(self, frames: int, *statuses: str) -> None:
        """Check that so many frames are there, that each has its bits, and that the status is one of `statuses`."""
        with open_stack(self.path) as stack:
            assert stack.frames == frames
            assert stack.attributes["status"] in statuses
            assert list(problems(stack)) == []
            for frame in range(frames):
                expected = random_block(self.layout, frame).data[0]
                for name, planes in zip(self.layout.frame.fields, expected, strict=True):
                    number, place = divmod(frame, self.layout.chunks.frames_per_chunk)
                    stored = np.ascontiguousarray(stack.fields[name].chunk(number)[place])
                    raw = stored.reshape(-1, 1).view(np.uint8)
                    assert (raw.T if self.layout.frame.shuffle else raw).tobytes() == planes.tobytes()
                    values = stored * self.layout.frame.scale if self.layout.frame.stored_one else stored
                    np.testing.assert_array_equal(stack.frame(name, frame), values)


@pytest.fixture
def new_output(make_config: Make, tmp_path: Path) -> Callable[..., Output]:
    """Return a function that makes an output whose chunks have two frames, and its blocks eight."""
    small_blocks(block_bytes=2 * BLOCK * 3072, chunk_bytes=CHUNK * 3072)

    def new(ending: str, codec: str = "none", **changes: Any) -> Output:
        config = make_config({**SMALL, "output.compression": codec, **changes})
        layout = layout_of(config)
        assert (layout.chunks.frames_per_chunk, layout.frames_per_block) == (CHUNK, BLOCK)
        return Output(tmp_path / f"run{ending}", config, layout)

    return new


@every_format_and_codec
def test_frames_come_back_bit_for_bit(ending: str, codec: str, new_output: Callable[..., Output]) -> None:
    output = new_output(ending, codec)
    with output.writer() as writer:
        third, second, first = (encode(writer, output.block(place)) for place in (16, 8, 0))
        writer.commit([first])
        writer.commit([second, third])
        writer.close("complete")
    output.check(FRAMES, "complete")


@every_format
@pytest.mark.parametrize(
    "changes", [{"model.feed": [0.02, 0.03], "grid.rows": 16}, {"output.store": "uint8", "grid.rows": 128}], ids=str
)
def test_batches_and_packed_values_come_back_too(
    changes: dict[str, Any], ending: str, new_output: Callable[..., Output]
) -> None:
    output = new_output(ending, "none", **changes)
    with output.writer() as writer:
        writer.commit([encode(writer, output.block(0))])
        writer.close("stopped")
    output.check(BLOCK, "stopped")


@every_format_and_codec
def test_readers_find_frames_once_they_are_committed_and_synced(
    ending: str, codec: str, new_output: Callable[..., Output]
) -> None:
    output = new_output(ending, codec)
    with output.writer() as writer:
        assert output.frames() == 0
        before = writer.nbytes
        blocks = [encode(writer, output.block(place)) for place in (0, 8)]
        writer.sync()
        assert output.frames() == 0  # they are encoded, and not committed
        for number, block in enumerate(blocks, 1):
            writer.commit([block])
            writer.sync()
            output.check(number * BLOCK, "running")
            assert writer.nbytes >= before + number * BLOCK * output.layout.frame.frame_nbytes // 2  # noise stays long
        writer.close("stopped")
    output.check(2 * BLOCK, "stopped")


@every_format
@pytest.mark.parametrize("status", ["complete", "stopped", "failed"])
def test_how_a_run_ended_is_recorded_without_a_frame_too(
    status: str, ending: str, new_output: Callable[..., Output]
) -> None:
    output = new_output(ending)
    with output.writer() as writer:
        writer.close(status)
    with open_stack(output.path) as stack:
        assert (stack.frames, stack.attributes["status"]) == (0, status)


@every_format_and_codec
@pytest.mark.parametrize("after", [0, 1, BLOCK, BLOCK + 3, 2 * BLOCK])
def test_a_run_goes_on_after_any_frame(after: int, ending: str, codec: str, new_output: Callable[..., Output]) -> None:
    output = new_output(ending, codec)
    with output.writer() as writer:
        writer.commit([encode(writer, output.block(place)) for place in (0, 8)])
        writer.close("stopped")
    first, kept = after - after % CHUNK, after % CHUNK
    with output.writer(after) as writer:
        writer.sync()
        output.check(after, "running")
        blocks: Sequence[Block] = []
        if kept:  # what shares a chunk with frames that stay is a block of its own
            blocks, first, kept = [output.block(first, CHUNK, kept)], first + CHUNK, 0
        places = range(first, FRAMES, BLOCK)
        blocks = [*blocks, *(output.block(place, min(BLOCK, FRAMES - place)) for place in places)]
        for block in blocks:
            writer.commit([encode(writer, block)])
        writer.close("complete")
    output.check(FRAMES, "complete")


@every_format
def test_what_is_recorded_of_each_frame_goes_on_past_a_chunk(ending: str, make_config: Make, tmp_path: Path) -> None:
    config = make_config({
        "grid.rows": 5, "grid.cols": 4, "run.frames": 2500, "run.steps_per_frame": 1, "output.compression": "none",
    })  # fmt: skip
    output = Output(tmp_path / f"run{ending}", config, layout_of(config, frames_per_chunk=10))
    with output.writer() as writer:
        for first, count in ((0, 1000), (1000, 30), (1030, 10), (1040, 1460)):
            block = output.block(first, count)
            block.statistics[:count, 0, 0] = np.arange(first, first + count)
            writer.commit([encode(writer, block)])
            writer.sync()
        writer.close("complete")
    with open_stack(output.path) as stack:
        np.testing.assert_array_equal(stack.series("step"), np.arange(1, 2501))
        np.testing.assert_array_equal(stack.series("stats/v_min"), np.arange(2500))


@every_format_and_codec
def test_a_write_that_fails_is_raised_and_the_frames_before_it_stay(
    ending: str, codec: str, new_output: Callable[..., Output], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    output = new_output(ending, codec)
    with output.writer() as writer:
        writer.commit([encode(writer, output.block(0))])
        writer.sync()
        with monkeypatch.context() as broken:
            for name in ("write", "pwritev"):
                broken.setattr(os, name, fail)
            with pytest.raises(OSError, match="Input/output error"):
                writer.commit([encode(writer, output.block(8))])
        with suppress(OSError, StorageError):  # the writer of HDF5 writes nothing after an error
            writer.close("failed")
    output.check(BLOCK, "failed", "running")


@every_format
def test_a_sync_that_fails_is_raised(
    ending: str, new_output: Callable[..., Output], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def fail_in_c(fd: int) -> int:
        ctypes.set_errno(errno.EIO)
        return -1

    output = new_output(ending)
    with output.writer() as writer:
        writer.commit([encode(writer, output.block(0))])
        with monkeypatch.context() as broken:
            broken.setattr(os, "fsync", fail)
            broken.setattr(LIBC, "syncfs", fail_in_c)
            with pytest.raises(OSError, match="Input/output error"):
                writer.sync()
        writer.sync()
        output.check(BLOCK, "running")
        writer.close("failed")
    output.check(BLOCK, "failed")
