"""What the tests of FrameWriter share: small blocks, and a codec that waits."""

from collections.abc import Iterator

import pytest
from appending import PLANE, Gate

from gsio import codec, config
from gsio.testing import small_blocks


@pytest.fixture
def blocks() -> Iterator[None]:
    """Blocks of four frames, each a chunk, so that a short loop fills many."""
    with small_blocks(block_bytes=4 * PLANE, chunk_bytes=PLANE):
        yield


@pytest.fixture
def gate(blocks: None) -> Iterator[Gate]:
    """A codec that waits until a test lets it go on."""
    made = Gate()
    yield made
    made.open.set()
    del codec.CODECS["gate"], config.CODECS["gate"]
