"""The plan of a run: "auto" becomes a value once, and sizes are arguments."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import gsio
from gsio.cli import main
from gsio.config import Config
from gsio.errors import UsageError
from gsio.frames.sizes import Sizes
from gsio.reader import open_stack
from gsio.run.plan import layout_of, plan
from gsio.testing import small_blocks

Make = Callable[..., Config]
PLANE = 12 * 17 * 4


@pytest.mark.parametrize(("name", "codec"), [("run.h5", "deflate"), ("run.zarr", "lz4")])
def test_auto_becomes_the_codec_of_the_format(name: str, codec: str, make_config: Make) -> None:
    config = make_config({"output.compression": "auto"})
    planned = plan(config, Path(name))
    assert (planned.layout.chunks.codec, planned.layout.chunks.level) == (codec, 1)
    assert planned.layout.frame.shuffle == (codec == "deflate")
    assert (planned.config.output.compression, planned.config.run.backend) == (codec, config.run.backend)


def test_a_plan_is_all_values(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gsio.run.plan.find_driver", lambda: None)
    config = make_config({"run.backend": "auto", "output.threads": 3, "run.frames": 100, "output.fields": "u,v"})
    planned = plan(config, Path("run.h5"), sizes=Sizes(block_bytes=16 * PLANE, chunk_bytes=4 * PLANE))
    assert (planned.backend, planned.threads) == ("numba", 3)
    layout = planned.layout
    assert (layout.frame.shape, layout.frame.fields) == ((12, 17), ("u", "v"))
    assert (layout.chunks.frames_per_chunk, layout.frames_per_block, layout.tasks) == (4, 8, 2)
    assert planned.config.run.backend == "auto"  # which the output records


def test_an_output_that_is_extended_keeps_its_chunks(make_config: Make) -> None:
    assert plan(make_config(), Path("run.h5"), 3).layout.chunks.frames_per_chunk == 3


@pytest.mark.parametrize(
    ("changes", "backend", "encodes"),
    [
        ({"output.compression": "lz4"}, "cupy", True),
        ({"output.compression": "lz4", "output.pyramid": 1}, "cupy", False),
        ({"output.compression": "deflate"}, "cupy", True),
        ({"output.compression": "deflate", "output.level": 2}, "cupy", False),
        ({"output.compression": "zstd"}, "cupy", False),
        ({"output.compression": "none"}, "cupy", False),
        ({"output.compression": "lz4"}, "numba", False),
        ({"output.compression": "lz4"}, "", False),
    ],
    ids=str,
)
def test_a_gpu_encodes_what_its_kernels_can(
    changes: dict[str, Any], backend: str, encodes: bool, make_config: Make
) -> None:
    layout = layout_of(make_config({**changes, "run.frames": 1000}), backend)
    assert (layout.encoded_nbytes > layout.chunks.chunk_nbytes) == encodes
    assert (layout.tasks == 1) == (encodes or changes["output.compression"] == "none")


@pytest.mark.parametrize(
    ("changes", "name", "message"),
    [
        ({}, "run.zarr", "Zarr has no deflate"),
        ({"output.shard_frames": 2}, "run.h5", "HDF5 is one file already"),
        ({"output.memory": "1MiB"}, "run.h5", "two blocks of frames"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(
    changes: dict[str, Any], name: str, message: str, make_config: Make
) -> None:
    with pytest.raises(UsageError, match=message):
        plan(make_config(changes), Path(name))


def test_small_blocks_last_as_long_as_the_statement(make_config: Make) -> None:
    config = make_config({"run.frames": 100})
    before = layout_of(config)
    with small_blocks(block_bytes=4 * PLANE, chunk_bytes=PLANE):
        inside = layout_of(config)
        assert (inside.chunks.frames_per_chunk, inside.frames_per_block) == (1, 4)
    assert layout_of(config) == before
    small_blocks(block_bytes=4 * PLANE, chunk_bytes=PLANE)
    assert layout_of(config) == inside


def test_a_command_has_small_blocks_too(make_config: Make, tmp_path: Path) -> None:
    small_blocks()
    config = make_config({"grid.rows": 24, "grid.cols": 32, "run.frames": 9})
    (tmp_path / "run.toml").write_text(config.to_toml())
    assert main(["run", str(tmp_path / "run.toml"), "-q", "-o", str(tmp_path / "run.h5")]) == 0
    gsio.simulate(config, tmp_path / "again.h5")
    for name in ("run.h5", "again.h5"):
        with open_stack(tmp_path / name) as stack:
            assert stack.fields["v"].frames_per_chunk == 2


def test_each_gpu_encodes_its_own_slabs_unless_an_extended_output_has_too_few(
    make_config: Make, tmp_path: Path
) -> None:
    config = make_config({"grid.rows": 1081, "grid.cols": 1920, "run.backend": "cupy", "run.devices": "0,2,3"})
    planned = plan(config, tmp_path / "run.h5")
    assert planned.layout.chunks.slabs == 3
    assert planned.layout.encoded_nbytes > 0
    extended = plan(config, tmp_path / "run.h5", 1, 1081)
    assert extended.layout.chunks.slabs == 1
    assert extended.layout.encoded_nbytes == 0


@pytest.mark.parametrize("devices", ["0,0", "1-2", "none", "0,", "99999"])
def test_devices_are_all_or_numbers(devices: str, make_config: Make) -> None:
    with pytest.raises(UsageError, match=r"run\.devices: expected all, or numbers of GPUs such as 0,1"):
        make_config({"run.devices": devices})


def test_several_gpus_need_a_backend_that_can_use_them(make_config: Make, tmp_path: Path) -> None:
    for devices in ("all", "0,1"):
        with pytest.raises(UsageError, match=r"run\.devices: expected the backend cupy, got numpy"):
            plan(make_config({"run.backend": "numpy", "run.devices": devices}), tmp_path / "run.h5")
