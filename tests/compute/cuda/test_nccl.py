"""Ranks with a GPU each, whose halos NCCL exchanges: their outputs have the bits of a run on one GPU."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from meeting import check_random

from gsio.config import Config
from gsio.testing import small_blocks

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("seed", range(20))
def test_outputs_of_two_gpus_of_two_ranks_have_the_same_bits(
    make_config: Callable[..., Config], tmp_path: Path, seed: int
) -> None:
    cupy = pytest.importorskip("cupy")
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("one GPU")
    with small_blocks(block_bytes=6000, chunk_bytes=2000):
        check_random(make_config, tmp_path, random.Random(seed), (2,), **{"run.backend": "cupy"})
