"""A block has room for what is put into it, whatever the frames."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gsio.codec import CODECS
from gsio.compute.cuda.segments import blocks_of, encoded_nbytes
from gsio.frames.block import Block
from gsio.frames.chunking import Chunking
from gsio.frames.format import FrameFormat
from gsio.frames.layout import BlockLayout
from gsio.frames.sizes import Sizes

FLOAT32 = FrameFormat.of((1080, 1920), "v", "float32")
frames = st.builds(
    FrameFormat.of,
    st.one_of(
        st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
        st.tuples(st.integers(2, 40), st.integers(1, 300), st.integers(1, 300)),
        st.tuples(st.just(1), st.integers(1, 1 << 27)),
    ),
    st.sampled_from(["v", "u,v"]),
    st.sampled_from(["float32", "float64"]),
    store=st.sampled_from(["", "float16", "uint8"]),
)
chunkings = st.builds(
    Chunking.choose,
    frames,
    st.just(Sizes()),
    frames=st.integers(1, 2000),
    steps=st.just(32),
    frames_per_shard=st.sampled_from([0, 0, 7, 100]),
)
codecs = st.sampled_from(["lz4", "deflate"])


@settings(deadline=None)
@given(chunks=chunkings, codec=codecs)
def test_the_segments_of_a_chunk_are_no_longer_than_a_gpu_can_take(chunks: Chunking, codec: str) -> None:
    blocks, block = blocks_of(chunks, codec)
    last = math.prod(chunks.chunk_shape) - (blocks - 1) * block
    kernels = CODECS[codec].kernels
    assert kernels is not None
    assert 0 < last <= block <= kernels.segment
    if codec == "lz4":  # all planes of a shorter last block are one segment
        assert last == block or last * chunks.frame.dtype.itemsize <= block


@settings(deadline=None)
@given(chunks=chunkings, codec=codecs)
def test_a_block_holds_its_chunks_if_nothing_shrinks(chunks: Chunking, codec: str) -> None:
    blocks, _ = blocks_of(chunks, codec)
    segments = blocks * chunks.frame.dtype.itemsize
    before, each, after = {"lz4": (16 + 4 * blocks, 4, 0), "deflate": (2, 5, 2 + 4)}[codec]
    nbytes = encoded_nbytes(chunks, codec)
    assert before + each * segments + chunks.chunk_nbytes + after <= nbytes
    layout = BlockLayout.choose(chunks, Sizes(), steps=32, encoded_nbytes=nbytes)
    count = chunks.chunks_of(layout.frames_per_block)
    pieces = layout.frames_per_block // chunks.frames_per_chunk
    assert count == pieces * chunks.slabs * len(chunks.frame.fields)
    assert layout.header_nbytes + count * nbytes <= layout.block_nbytes
    assert layout.block_nbytes >= BlockLayout.choose(chunks, Sizes(), steps=32).block_nbytes


@settings(deadline=None)
@given(chunks=chunkings, halve=st.booleans(), filled=st.floats(0, 1))
def test_the_tasks_of_a_block_hold_each_of_its_chunks_once_and_whole_shards(
    chunks: Chunking, halve: bool, filled: float
) -> None:
    layout = BlockLayout.choose(chunks, Sizes(), steps=32, halve=halve)
    assume(chunks.chunks_of(layout.frames_per_block) < 10_000 and layout.block_nbytes < 1 << 32)
    block = Block(layout, np.empty(layout.block_nbytes, np.uint8))
    block.count = math.ceil(filled * layout.frames_per_block)
    tasks = [block.chunk_numbers(task) for task in range(layout.tasks)]
    found = [(number, slab) for numbers, slab in tasks for number in numbers]
    expected = itertools.product(range(-(-block.count // chunks.frames_per_chunk)), range(chunks.slabs))
    assert sorted(found) == list(expected)
    shard = chunks.frames_per_shard or 1
    assert all(numbers.start * chunks.frames_per_chunk % shard == 0 for numbers, _ in tasks if numbers)
    for _ in range(2):  # a block is filled again
        assert [block.finish_task() for _ in tasks] == [False] * (layout.tasks - 1) + [True]


def test_blocks_are_halved_for_the_threads_that_encode_them() -> None:
    chunks = Chunking.choose(FLOAT32, Sizes(), frames=1000)
    halved, whole = (BlockLayout.choose(chunks, Sizes(), halve=halve) for halve in (True, False))
    assert (halved.frames_per_block, halved.tasks) == (8, 2)
    assert (whole.frames_per_block, whole.tasks) == (8, 1)


def test_statistics_checksums_ends_and_frames_share_no_byte() -> None:
    layout = BlockLayout.of_frames(FrameFormat.of((3, 5), "u,v", "float32"), 9)
    block = Block(layout, np.zeros(1 << 16, np.uint8))
    arrays: list[Any] = [block.statistics, block.checksums, block.ends, block.data]
    for number, array in enumerate(arrays, 1):
        array.reshape(-1).view(np.uint8)[:] = number
    assert [set(array.reshape(-1).view(np.uint8)) for array in arrays] == [{1}, {2}, {3}, {4}]


def test_chunks_too_large_for_a_gpu_are_left_to_the_cpu() -> None:
    for rows, fits in ((1 << 28, True), (1 << 29, False)):
        chunks = Chunking.choose(FrameFormat.of((2, rows), "v", "float32"), Sizes())
        assert (encoded_nbytes(chunks, "lz4") > 0) == fits


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (lambda: FrameFormat.of((), "v", "float32"), "has cells and fields"),
        (lambda: FrameFormat.of((3, 0), "v", "float32"), "has cells and fields"),
        (lambda: FrameFormat((3, 3), ("v",), np.dtype(">f4"), np.dtype(">f4")), "little-endian"),
        (lambda: FrameFormat.of((3, 3), "v", "float32", store="uint8", keep_bits=3), "only floats"),
        (lambda: Chunking(FLOAT32, 0, 1080), "holds frames and lines"),
        (lambda: Chunking(FLOAT32, 2, 0), "holds frames and lines"),
        (lambda: Chunking(FLOAT32, 2, 1080, 3), "a shard holds whole chunks"),
        (lambda: BlockLayout(Chunking(FLOAT32, 2, 1080), 3, 2), "a block holds whole pieces of 2 frames"),
        (lambda: BlockLayout(Chunking(FLOAT32, 2, 1080), 4, 3), "a task holds whole pieces of 2 frames"),
        (lambda: BlockLayout(Chunking(FLOAT32, 2, 1080, 4), 4, 2), "a task holds whole pieces of 4 frames"),
        (lambda: BlockLayout(Chunking(FLOAT32, 2, 1080), 2, 4), "a block of 2 frames has no task of 4"),
    ],
)
def test_pieces_that_do_not_fit_together_are_refused(cut: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cut()
