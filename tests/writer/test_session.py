"""A session writes the blocks of one output in order, raises an error once, and leaves nothing behind."""

import asyncio
import errno
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
from patience import DEADLINE

from gsio import open_stack
from gsio.codec import CODECS, decode
from gsio.codec.checksum import frame_checksum
from gsio.config import Config
from gsio.errors import DivergenceError, GsioError, StorageError
from gsio.frames.block import Block, BlockPool, EncodedBlock, FilledBlock
from gsio.frames.content import Content
from gsio.frames.layout import BlockLayout
from gsio.reader.verify import problems
from gsio.run.plan import layout_of
from gsio.testing import KeepingWriter, random_block, small_blocks
from gsio.trace import Trace
from gsio.writer.formats import FORMATS
from gsio.writer.journal import Journal, read_journal
from gsio.writer.provenance import root_attributes
from gsio.writer.session import Earlier, Session, open_session

Make = Callable[..., Config]
CHUNK, BLOCK = 3, 6  # frames
PLANE = 12 * 17 * 4
COUNTS = (1, 1, 4, 5, 1, 6, 2, 1)  # frames from one flush to the next: some end inside a chunk, some with it
OUTPUTS = {
    **{f"{form.name}, {codec.name}": (form.endings[0], codec.name, 0) for form in FORMATS for codec in form.codecs},
    "shards": (".zarr", "lz4", 3 * CHUNK),
}
every_output = pytest.mark.parametrize(("ending", "codec", "shard"), OUTPUTS.values(), ids=OUTPUTS)


@pytest.fixture(autouse=True)
def small_chunks() -> None:
    small_blocks(block_bytes=BLOCK * PLANE, chunk_bytes=CHUNK * PLANE)


@pytest.fixture
def layout(make_config: Make) -> BlockLayout:
    return layout_of(make_config({"run.frames": 60}))


def allocate(nbytes: int) -> Any:
    return np.zeros(nbytes, np.uint8)


def session_of(writer: Any, layout: BlockLayout, threads: int = 2, blocks: int = 4, **how: Any) -> Session:
    return Session(writer, BlockPool(layout, blocks, allocate), Trace(), threads, **how)


def submit(session: Session, first: int, count: int) -> bool:
    """Submit random frames in as many blocks as they need, and return whether the session took them all."""
    end = first + count
    while first < end:
        if (block := session.acquire()) is None:
            return False
        block.first, block.count = first, min(end, session.pool.layout.end_of(first)) - first
        found = random_block(session.pool.layout, first, block.count)
        block.data[: block.count], block.statistics[:] = found.data[: block.count], found.statistics
        first += block.count
        session.submit(FilledBlock(block))
    return True


def threads_there() -> set[threading.Thread]:
    """Return the threads that are alive, but for those of zarr-python, which reads the outputs."""
    return {thread for thread in threading.enumerate() if not thread.name.startswith(("asyncio_", "zarr_io"))}


@contextmanager
def nothing_left(session: Session) -> Iterator[Session]:
    """Start a session, and check at the end that all its threads and blocks are back."""
    before = threads_there()
    yield session
    assert threads_there() <= before
    assert session.pool.in_use == 0


def test_blocks_that_many_threads_encode_are_committed_in_order(
    layout: BlockLayout, capsys: pytest.CaptureFixture[str]
) -> None:
    writer, encoding = KeepingWriter(), threading.Barrier(4)
    writer.before_encode = lambda block: encoding.wait(DEADLINE)  # four tasks at once, of several blocks
    with nothing_left(session_of(writer, layout, threads=4)) as session:
        session.start()
        assert submit(session, 0, 4 * BLOCK)
        session.close("complete")
    assert writer.committed == list(range(4 * BLOCK))
    assert (writer.status, session.frames_committed) == ("complete", 4 * BLOCK)
    assert capsys.readouterr() == ("", "")  # also where nobody has said how to log


@pytest.mark.parametrize("failing", ["encode", "commit"])
def test_an_error_of_storage_is_raised_once_and_keeps_the_frames_before_it(failing: str, layout: BlockLayout) -> None:
    writer = KeepingWriter()

    def fail(blocks: Sequence[Block]) -> None:
        if blocks[-1].first >= 3 * BLOCK:
            raise OSError(errno.EIO, "Input/output error")

    if failing == "encode":
        writer.before_encode = lambda block: fail([block])
    else:
        writer.before_commit = fail
    with nothing_left(session_of(writer, layout)) as session:
        session.start()
        assert not submit(session, 0, 1000 * BLOCK)
        assert session.acquire() is None
        with pytest.raises(StorageError, match="Input/output error") as error:
            session.close("complete")
        session.close("complete")
    assert f"; {len(writer.committed)} frames are committed" in str(error.value)
    assert writer.committed == list(range(session.frames_committed))
    assert (writer.status, len(writer.committed) <= 3 * BLOCK) == ("failed", True)


def test_an_error_of_sync_is_raised_by_flush(layout: BlockLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = KeepingWriter()

    def fail() -> None:
        raise OSError(errno.EIO, "Input/output error")

    with nothing_left(session_of(writer, layout)) as session:
        session.start()
        assert submit(session, 0, BLOCK)
        monkeypatch.setattr(writer, "sync", fail)
        with pytest.raises(StorageError, match=f"{BLOCK} frames are committed, and 0 of these"):
            session.flush()
        monkeypatch.undo()  # a second sync can succeed although the disk has lost what the first should have written
        assert session.acquire() is None
        session.close("complete")
    assert writer.status == "failed"


def test_whoever_waits_for_a_block_hears_at_once_that_the_session_has_failed(layout: BlockLayout) -> None:
    writer, waits = KeepingWriter(), threading.Event()

    def fail(blocks: Sequence[Block]) -> None:
        assert waits.wait(DEADLINE)
        raise OSError(errno.EIO, "Input/output error")

    writer.before_commit = fail
    with nothing_left(session_of(writer, layout, blocks=2)) as session:
        session.start()
        assert submit(session, 0, 2 * BLOCK)
        waits.set()
        assert session.acquire() is None
        for _ in range(2):  # each time: nobody may take these frames for durable
            with pytest.raises(StorageError):
                session.flush()
        session.close("stopped")
    assert (writer.committed, writer.status) == ([], "failed")


def test_an_inspected_block_can_end_the_session(layout: BlockLayout) -> None:
    writer = KeepingWriter()

    def inspect(block: EncodedBlock) -> GsioError | None:
        if block.first < 2 * BLOCK:
            return None
        block.count = 4
        return DivergenceError("enough")

    with nothing_left(session_of(writer, layout)) as session:
        session.start(inspect=inspect)
        assert not submit(session, 0, 1000 * BLOCK)
        with pytest.raises(DivergenceError, match="enough"):
            session.close("complete")
    assert (writer.committed, writer.status) == (list(range(2 * BLOCK + 4)), "failed")


def test_an_abandoned_session_drops_what_is_not_written(layout: BlockLayout) -> None:
    writer, writing, go_on = KeepingWriter(), threading.Event(), threading.Event()

    def commit(blocks: Sequence[Block]) -> None:
        writing.set()
        assert go_on.wait(DEADLINE)

    writer.before_commit = commit
    with nothing_left(session_of(writer, layout, threads=1)) as session:
        session.start()
        assert submit(session, 0, BLOCK)
        assert writing.wait(DEADLINE)
        assert submit(session, BLOCK, 2 * BLOCK)
        session.abandon()
        go_on.set()
        session.close("stopped")
    assert (writer.committed, writer.status) == (list(range(BLOCK)), "stopped")


def test_a_checkpoint_is_saved_once_the_disk_has_the_frames_before_it(
    layout: BlockLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, done, saved = KeepingWriter(), list[str](), threading.Event()
    monkeypatch.setattr(writer, "sync", lambda: done.append(f"sync {len(writer.committed)}"))
    writer.before_close = lambda status: done.append("close")

    def save(frames: int) -> None:
        done.append(f"save {frames}")
        saved.set()

    with nothing_left(session_of(writer, layout)) as session:
        session.start()
        session.checkpoint(BLOCK, lambda: save(BLOCK))
        assert submit(session, 0, BLOCK)
        assert saved.wait(DEADLINE)
        assert submit(session, BLOCK, BLOCK)
        session.checkpoint(2 * BLOCK, lambda: save(2 * BLOCK))
        session.checkpoint(9 * BLOCK, lambda: save(9 * BLOCK))
        session.close("complete")
    assert done == [f"sync {BLOCK}", f"save {BLOCK}", f"sync {2 * BLOCK}", f"save {2 * BLOCK}", "close"]


@pytest.mark.parametrize("threads", range(5))
def test_a_session_that_cannot_start_all_its_threads_leaves_none(
    threads: int, layout: BlockLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, left, start = KeepingWriter(), itertools.count(threads, -1), threading.Thread.start

    def few(thread: threading.Thread) -> None:
        if next(left) <= 0:
            raise RuntimeError("can't start new thread")
        start(thread)

    with nothing_left(session_of(writer, layout, threads=3)) as session:
        with monkeypatch.context() as full:
            full.setattr(threading.Thread, "start", few)
            with pytest.raises(GsioError, match="expected to start a thread"):
                session.start()
        assert session.acquire() is None
        session.close("complete")
    assert writer.status == "failed"


def open_new(path: Path, config: Config, journal: Journal, threads: int = 2) -> Session:
    pool = BlockPool(layout_of(config), 3, allocate)
    content = Content.of(config)
    return open_session(path, content, root_attributes(content, "test", "test"), journal, pool, threads)


def check(path: Path, layout: BlockLayout, frames: int) -> None:
    """Check that an output has so many frames, each with its bits."""
    with open_stack(path) as stack:
        assert stack.frames == frames
        assert list(problems(stack)) == []
        for frame in range(frames):
            number, place = divmod(frame, layout.chunks.frames_per_chunk)
            expected = random_block(layout, frame)
            found = random_block(layout, frame)
            found.put(0, 0, stack.v.chunk(number)[place])
            assert found.data[0].tobytes() == expected.data[0].tobytes()


@every_output
def test_frames_are_flushed_in_the_middle_of_chunks_and_shards(
    ending: str, codec: str, shard: int, make_config: Make, tmp_path: Path
) -> None:
    changes = {"run.frames": sum(COUNTS) + 3, "output.compression": codec, "output.shard_frames": shard}
    config, path, first = make_config(changes), tmp_path / f"run{ending}", 0
    with Journal(path) as journal, nothing_left(open_new(path, config, journal)) as session:
        assert session.pool.layout.chunks.frames_per_chunk == CHUNK
        session.start()
        for count in COUNTS:
            assert submit(session, first, count)
            first += count
            session.flush()
            assert session.frames_committed == session.frames_durable == first
            check(path, session.pool.layout, first)
        assert submit(session, first, 1)
        assert submit(session, first + 1, 2)  # without a flush between them
        session.close("complete")
        check(path, session.pool.layout, first + 3)
    if path.is_file():
        import h5py

        with h5py.File(path) as file:
            assert [name for name in file if name.startswith(".")] == []


def restorable(path: Path, layout: BlockLayout) -> int:
    """Return how many frames an output has for whoever must restore it, and check that each of these has its bits."""
    if path.is_dir():
        with open_stack(path) as stack:
            assert list(problems(stack)) == []
            return stack.frames
    records = read_journal(path)
    assert records is not None
    data, chunks = path.read_bytes(), layout.chunks
    for frame, record in enumerate(records.frames):
        slabs = [
            decode(CODECS[chunks.codec], data[offset : offset + nbytes], layout.frame.dtype, chunks.chunk_nbytes)
            for offset, nbytes in record["places"][0].tolist()
        ]
        place = frame % chunks.frames_per_chunk
        plane = np.concatenate([slab.reshape(chunks.chunk_shape)[place] for slab in slabs])[: layout.frame.shape[0]]
        assert frame_checksum([plane], layout.frame.shuffle) == record["integrity/crc32c"]
    return len(records.frames)


def after_each_write(monkeypatch: pytest.MonkeyPatch, look: Callable[[], object]) -> None:
    """Call `look` after each call that changes a file."""

    def looking(call: Callable[..., Any]) -> Callable[..., Any]:
        def then_look(*arguments: Any, **named: Any) -> Any:
            result = call(*arguments, **named)
            look()
            return result

        return then_look

    for name in ("pwrite", "pwritev", "write", "ftruncate", "rename", "link"):
        monkeypatch.setattr(os, name, looking(getattr(os, name)))
    monkeypatch.setattr(Path, "rename", looking(Path.rename))


@pytest.mark.parametrize(
    ("ending", "codec", "shard", "slab"),
    [(".h5", "deflate", 0, PLANE), (".h5", "none", 0, PLANE * 5 // 12), (".zarr", "lz4", 3 * CHUNK, PLANE)],
    ids=["chunks", "slabs", "shards"],
)
def test_a_kill_at_any_write_of_a_commit_that_replaces_a_chunk_loses_no_frame(
    ending: str, codec: str, shard: int, slab: int, make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_blocks(block_bytes=BLOCK * PLANE, chunk_bytes=CHUNK * PLANE, large_bytes=slab, slab_bytes=slab)
    changes = {"run.frames": 60, "output.compression": codec, "output.shard_frames": shard}
    config, path, seen = make_config(changes), tmp_path / f"run{ending}", set[int]()
    with Journal(path) as journal:
        session = open_new(path, config, journal, threads=1)
        layout, safe = session.pool.layout, 0

        def look() -> None:
            found = restorable(path, layout)
            assert found >= safe
            seen.add(found)

        session.start()
        with monkeypatch.context() as watched:
            after_each_write(watched, look)
            for count in COUNTS[:4]:
                assert submit(session, safe, count)
                session.flush()
                safe += count
        session.close("stopped")
    assert {0, *itertools.accumulate(COUNTS[:4])} <= seen
    check(path, layout, safe)


@pytest.mark.parametrize("nth", range(1, 30, 4))
def test_an_error_at_any_write_of_a_commit_that_replaces_a_chunk_loses_no_frame(
    nth: int, make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, path, left = make_config({"run.frames": 60}), tmp_path / "run.h5", itertools.count(nth - 1, -1)

    def fail_late() -> None:
        if next(left) <= 0:
            raise OSError(errno.EIO, "Input/output error")

    with Journal(path) as journal:
        session = open_new(path, config, journal, threads=1)
        session.start()
        assert submit(session, 0, 2)
        session.flush()
        with monkeypatch.context() as broken:
            after_each_write(broken, fail_late)
            submit(session, 2, 1)
            with suppress(StorageError):
                session.flush()
            assert restorable(path, session.pool.layout) >= session.frames_committed >= 2
            with suppress(StorageError):
                session.close("stopped")
        assert restorable(path, session.pool.layout) >= session.frames_committed >= 2


def test_ten_sessions_write_side_by_side(make_config: Make, tmp_path: Path) -> None:
    config = make_config({"run.frames": 2 * BLOCK})
    paths = [tmp_path / f"run{number}{ending}" for number in range(5) for ending in (".h5", ".zarr")]
    configs = {".h5": config, ".zarr": make_config({"run.frames": 2 * BLOCK, "output.compression": "lz4"})}
    before = threads_there()
    journals = [Journal(path) for path in paths]
    sessions = [open_new(path, configs[path.suffix], journal) for path, journal in zip(paths, journals, strict=True)]
    for session in sessions:
        session.start()
    for first in range(0, 2 * BLOCK, 2):
        for session in sessions:
            assert submit(session, first, 2)
    for session, journal in zip(sessions, journals, strict=True):
        session.close("complete")
        journal.__exit__(None, None, None)
    assert threads_there() <= before
    for path, session in zip(paths, sessions, strict=True):
        check(path, session.pool.layout, 2 * BLOCK)


@pytest.mark.parametrize("run", [lambda main: asyncio.run(main()), trio.run], ids=["asyncio", "trio"])
def test_a_session_works_inside_an_event_loop(run: Callable[[Any], object], layout: BlockLayout) -> None:
    writer = KeepingWriter()

    async def main() -> None:
        session = session_of(writer, layout)
        session.start()
        assert submit(session, 0, 8 * BLOCK)
        session.close("complete")

    with ThreadPoolExecutor(1) as apart:  # the tests of the page leave a loop of asyncio in this thread
        apart.submit(run, main).result()
    assert (writer.committed, writer.status) == (list(range(8 * BLOCK)), "complete")


def test_a_session_goes_on_inside_a_chunk_of_an_earlier_one(layout: BlockLayout) -> None:
    writer, kept = KeepingWriter(), list[int]()
    planes = [random_block(layout, frame) for frame in range(4)]
    last = np.stack([np.zeros(layout.frame.shape, layout.frame.dtype)] * (4 % CHUNK))
    writer.before_commit = lambda blocks: kept.extend(block.kept for block in blocks)
    with nothing_left(session_of(writer, layout, earlier=Earlier(4, 2, [last]))) as session:
        session.start()
        assert len(planes) == 4
        assert submit(session, 2, 2)  # these are compared, and not written
        assert submit(session, 4, 5)
        session.close("complete")
    assert session.frames_committed == 9
    assert kept[0] == 4 % CHUNK
