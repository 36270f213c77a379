"""A block has room for what is put into it, whatever the frames."""

import math
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gsio.staging import STREAM_BYTES, Block, FrameLayout

layouts = st.builds(
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
    lz4=st.just(True),
)


@settings(deadline=None)
@given(layout=layouts)
def test_the_streams_of_a_chunk_are_no_longer_than_a_gpu_can_take(layout: FrameLayout) -> None:
    blocks, block = layout.blosc_blocks
    cells = math.prod(layout.chunk_shape)
    left = cells - (blocks - 1) * block  # of the last, all of whose planes are one stream if it is shorter
    assert 0 < left <= block <= STREAM_BYTES
    assert left == block or left * layout.dtype.itemsize <= block


@settings(deadline=None)
@given(layout=layouts)
def test_a_block_holds_its_chunks_if_nothing_shrinks(layout: FrameLayout) -> None:
    blocks, _ = layout.blosc_blocks
    header, streams = 16 + 4 * blocks, 4 * blocks * layout.dtype.itemsize
    assert header + streams + layout.chunk_nbytes <= layout.encoded_nbytes
    chunks = layout.chunks_of(layout.frames_per_block)
    assert chunks == layout.frames_per_block // layout.frames_per_chunk * layout.slabs * len(layout.fields)
    assert layout.header_nbytes + chunks * layout.encoded_nbytes <= layout.block_nbytes
    assert layout.block_nbytes >= replace(layout, lz4=False).block_nbytes


def test_statistics_checksums_and_frames_share_no_byte() -> None:
    layout = FrameLayout.of((3, 5), "float32", "u,v", shuffle=False, frames=9)
    block = Block(replace(layout, frames_per_block=9), np.zeros(1 << 16, np.uint8))
    for number, part in enumerate((block.statistics, block.checksums, block.data), 1):
        part.reshape(-1).view(np.uint8)[:] = number
    found = [set(part.reshape(-1).view(np.uint8)) for part in (block.statistics, block.checksums, block.data)]
    assert found == [{1}, {2}, {3}]


def test_chunks_too_large_for_a_gpu_are_left_to_the_cpu() -> None:
    assert FrameLayout.of((2, 1 << 28), "float32", "v", shuffle=False, lz4=True).lz4
    assert not FrameLayout.of((2, 1 << 29), "float32", "v", shuffle=False, lz4=True).lz4
