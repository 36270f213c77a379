"""Checksums of pieces that are joined, against the checksum of the whole."""

import numpy as np
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from gsio.codec.checksum import joined


@given(pieces=st.lists(st.binary(max_size=300), min_size=1, max_size=5))
def test_checksums_of_pieces_join_to_that_of_all_bytes(pieces: list[bytes]) -> None:
    found = joined(np.array([crc32c(piece) for piece in pieces], np.uint32), tuple(map(len, pieces)))
    assert found == crc32c(b"".join(pieces))


def test_long_pieces_join_in_a_few_steps() -> None:
    nbytes = 3 << 20
    first, second = np.random.default_rng(0).integers(0, 256, (2, nbytes), np.uint8)
    parts = np.array([[[crc32c(first), crc32c(second)]] * 3] * 2, np.uint32)
    assert (joined(parts, (nbytes, nbytes)) == np.full((2, 3), crc32c(second, crc32c(first)))).all()
