"""A block has room for what is put into it, whatever the frames."""

import itertools
import math
from dataclasses import replace
from functools import partial

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gsio.frames.block import Block
from gsio.frames.layout import SEGMENT_BYTES, STREAM_BYTES, BlockLayout

build = partial(
    st.builds,
    FrameLayout.of,
    st.one_of(
        st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
        st.tuples(st.integers(2, 40), st.integers(1, 300), st.integers(1, 300)),
        st.tuples(st.just(1), st.integers(1, 1 << 27)),
    ),
    st.sampled_from(["float32", "float64"]),
    st.sampled_from(["v", "u,v"]),
    shuffle=st.just(False),
    steps=st.just(32),
    frames=st.integers(1, 2000),
    store=st.sampled_from(["", "float16", "uint8"]),
    shard_frames=st.sampled_from([0, 0, 7, 100]),
)
layouts = build(gpu_codec=st.sampled_from(["lz4", "deflate"]))


@settings(deadline=None)
@given(layout=layouts)
def test_the_streams_of_a_chunk_are_no_longer_than_a_gpu_can_take(layout: BlockLayout) -> None:
    blocks, block = layout.gpu_blocks
    cells = math.prod(layout.chunks.chunk_shape)
    left = cells - (blocks - 1) * block
    assert 0 < left <= block <= {"lz4": STREAM_BYTES, "deflate": SEGMENT_BYTES}[layout.gpu_codec]
    if layout.gpu_codec == "lz4":  # all planes of the last are one stream if it is shorter
        assert left == block or left * layout.frame.dtype.itemsize <= block


@settings(deadline=None)
@given(layout=layouts)
def test_a_block_holds_its_chunks_if_nothing_shrinks(layout: BlockLayout) -> None:
    blocks, _ = layout.gpu_blocks
    streams = blocks * layout.frame.dtype.itemsize
    before, each, after = {"lz4": (16 + 4 * blocks, 4, 0), "deflate": (2, 5, 2 + 4)}[layout.gpu_codec]
    assert before + each * streams + layout.chunks.chunk_nbytes + after <= layout.encoded_nbytes
    chunks = layout.chunks.chunks_of(layout.frames_per_block)
    assert chunks == layout.frames_per_block // layout.chunks.frames_per_chunk * layout.chunks.slabs * len(
        layout.frame.fields
    )
    assert layout.header_nbytes + chunks * layout.encoded_nbytes <= layout.block_nbytes
    assert layout.block_nbytes >= replace(layout, gpu_codec="").block_nbytes


@settings(deadline=None)
@given(layout=build(gpu_codec=st.sampled_from(["", "lz4"]), raw=st.booleans()), filled=st.floats(0, 1))
def test_the_parts_of_a_block_hold_each_of_its_chunks_once_and_whole_shards(layout: BlockLayout, filled: float) -> None:
    assume(layout.chunks.chunks_of(layout.frames_per_block) < 10_000 and layout.block_nbytes < 1 << 32)
    block = Block(layout, np.empty(layout.block_nbytes, np.uint8))
    block.count = math.ceil(filled * layout.frames_per_block)
    parts = [block.chunk_numbers(part) for part in range(layout.tasks)]
    chunks = [(number, slab) for numbers, slab in parts for number in numbers]
    expected = itertools.product(range(-(-block.count // layout.chunks.frames_per_chunk)), range(layout.chunks.slabs))
    assert sorted(chunks) == list(expected)
    shard = layout.chunks.frames_per_shard or 1
    assert all(numbers.start * layout.chunks.frames_per_chunk % shard == 0 for numbers, _ in parts if numbers)
    assert [block.encoded() for _ in parts] == [False] * (layout.tasks - 1) + [True]


def test_blocks_are_halved_for_the_threads_that_encode_them() -> None:
    of = partial(FrameLayout.of, (1080, 1920), "float32", "v", shuffle=True, frames=1000)
    assert (of().frames_per_block, of().parts) == (8, 2)
    assert of(raw=True).parts == of(gpu_codec="deflate").parts == 1


def test_statistics_checksums_ends_and_frames_share_no_byte() -> None:
    layout = FrameLayout.of((3, 5), "float32", "u,v", shuffle=False, frames=9)
    block = Block(replace(layout, frames_per_block=9), np.zeros(1 << 16, np.uint8))
    for number, part in enumerate((block.statistics, block.checksums, block.ends, block.data), 1):
        part.reshape(-1).view(np.uint8)[:] = number
    found = [
        set(part.reshape(-1).view(np.uint8)) for part in (block.statistics, block.checksums, block.ends, block.data)
    ]
    assert found == [{1}, {2}, {3}, {4}]


def test_chunks_too_large_for_a_gpu_are_left_to_the_cpu() -> None:
    for rows, codec in ((1 << 28, "lz4"), (1 << 29, "")):
        layout = FrameLayout.of((2, rows), "float32", "v", shuffle=False, gpu_codec="lz4")
        assert layout.gpu_codec == codec
