"""What the tests of FrameWriter share: small blocks, and a codec that waits."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from appending import PLANE
from patience import DEADLINE

from gsio import codec, config
from gsio.testing import small_blocks


@pytest.fixture
def blocks() -> Iterator[None]:
    """Blocks of four frames, each a chunk, so that a short loop fills many."""
    with small_blocks(block_bytes=4 * PLANE, chunk_bytes=PLANE):
        yield


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


@pytest.fixture
def gate(blocks: None) -> Iterator[Gate]:
    """A codec that waits until a test lets it go on."""
    made = Gate()
    yield made
    made.open.set()
    del codec.CODECS["gate"], config.CODECS["gate"]
