"""The configuration that an output records: the user's own text of every key, with the codec that the format chose."""

from pathlib import Path
from typing import Any

import pytest

from gsio.config import load_config
from gsio.reader import open_stack
from gsio.run.simulate import simulate

SMALL = {"grid.rows": 12, "grid.cols": 17, "run.frames": 2, "run.steps_per_frame": 3}
GRID = """\
[grid]
rows = 12
cols = 17
boundary = "periodic"

[model]
"""
MODEL = """\
kill = 0.054
diffusion_u = 0.1
diffusion_v = 0.05
dt = 1.0
stencil = "oono-puri"
precision = "float32"
"""
ALONG_X = """
[model.feed]
along = "x"
path = ""
start = 0.02
stop = 0.03
"""
INITIAL_AND_RUN = """
[initial]
kind = "school"
u = 0.5
v = 0.25
size = 16
count = 20
radius = 8
amplitude = 0.05
seed = 0
path = ""
frame = -1

[run]
frames = 2
steps_per_frame = 3
backend = "auto"
device = 0
threads = 0
checkpoint_every = "15m"
devices = ""
max_walltime = ""
"""
OUTPUT = """
[output]
fields = "v"
compression = "{codec}"
level = 1
store = "computed"
keep_bits = {keep_bits}
shard_frames = 0
threads = 0
memory = ""
pyramid = 0
"""
ONE_RATE = "feed = 0.014\n"


@pytest.mark.numba
@pytest.mark.parametrize(("ending", "codec"), [(".h5", "deflate"), (".zarr", "lz4")])
@pytest.mark.parametrize(
    ("changes", "feed", "maps", "keep_bits"),
    [
        ({}, ONE_RATE, "", 0),
        ({"model.feed": [0.02, 0.03]}, "feed = [\n    0.02,\n    0.03,\n]\n", "", 0),
        ({"model.feed": {"along": "x", "start": 0.02, "stop": 0.03}}, "", ALONG_X, 0),
        ({"output.keep_bits": 7}, ONE_RATE, "", 7),
    ],
    ids=["default", "batch", "maps", "lossy"],
)
def test_an_output_records_the_configuration_of_the_user(
    changes: dict[str, Any], feed: str, maps: str, keep_bits: int, ending: str, codec: str, tmp_path: Path
) -> None:
    simulate(load_config(overrides={**SMALL, **changes}, environ={}), tmp_path / f"run{ending}")
    with open_stack(tmp_path / f"run{ending}") as stack:
        recorded = stack.attributes["config"]
    assert recorded == GRID + feed + MODEL + maps + INITIAL_AND_RUN + OUTPUT.format(codec=codec, keep_bits=keep_bits)
