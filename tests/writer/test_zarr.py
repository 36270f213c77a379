"""Zarr groups: what stock readers find in them, and what is left when storage fails or a process is killed."""

import ctypes
import errno
import itertools
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import xarray
import zarr
from ome_zarr_models.v05 import Image
from patience import DEADLINE

import gsio
from gsio.config import Config
from gsio.errors import StorageError, UsageError
from gsio.files import LIBC
from gsio.frames.block import Block
from gsio.frames.content import Content
from gsio.frames.metadata import frame_series
from gsio.run.plan import layout_of, with_codec
from gsio.testing import encode, random_block, small_blocks
from gsio.trace import Trace
from gsio.writer import open_writer
from gsio.writer.journal import Journal
from gsio.writer.protocol import Target

Make = Callable[..., Config]
Expected = Callable[[Config], dict[str, np.ndarray]]
COMPRESSIONS = ("lz4", "zstd", "none")
BESIDE = {"run.zarr.checkpoint.npz", "run.zarr.status.json"}  # what a complete run leaves
NOISE = {"initial.kind": "noise", "output.compression": "auto"}


def new_writer(
    path: Path, config: Config, journal: Journal | None = None, frames: int | None = None
) -> tuple[Any, Callable[[int], Block]]:
    """Return a writer, and a function that gives it the block of a number, encoded."""
    config = with_codec(config, path)
    layout = layout_of(config)
    attributes = dict.fromkeys(("gsio_version", "output_id", "device", "backend", "history"), "test")
    attributes["config"] = config.to_toml()
    series = None
    if frames is not None:
        group: Any = zarr.open_group(path, mode="r")
        series = {name: np.asarray(group[name][:frames]) for name in frame_series(layout, [])}
    content = Content.of(config)
    writer = open_writer(Target(path, content, layout, attributes, journal or Journal(path), Trace(), series=series))

    def encoded(number: int) -> Block:
        count = layout.frames_per_block
        return encode(writer, random_block(layout, number * count, count))

    return writer, encoded


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("fields", ["v", "u,v"])
def test_zarr_python_and_tensorstore_read_every_frame_exactly(
    expected_frames: Expected, compression: str, precision: str, fields: str, make_config: Make, tmp_path: Path
) -> None:
    config = make_config(
        {**NOISE, "output.compression": compression, "model.precision": precision, "output.fields": fields}
    )
    gsio.simulate(config, tmp_path / "run.zarr")
    group = zarr.open_group(tmp_path / "run.zarr", mode="r")
    for name, expected in expected_frames(config).items():
        assert (name in group) == (name in fields)
        if name in fields:
            np.testing.assert_array_equal(group[name], expected)
            spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(tmp_path / "run.zarr" / name)}}
            np.testing.assert_array_equal(tensorstore.open(spec, read=True).result().read().result(), expected)


def test_a_grid_with_one_row_is_read_back(expected_frames: Expected, make_config: Make, tmp_path: Path) -> None:
    config = make_config({**NOISE, "grid.rows": 1})
    gsio.simulate(config, tmp_path / "run.zarr")
    with gsio.open_stack(tmp_path / "run.zarr") as stack:
        np.testing.assert_array_equal(stack.v, expected_frames(config)["v"])
        np.testing.assert_array_equal(stack.axis("y"), [0])


def test_xarray_finds_named_dimensions_and_coordinates(make_config: Make, tmp_path: Path) -> None:
    gsio.simulate(make_config(NOISE), tmp_path / "run.zarr")
    with xarray.open_zarr(tmp_path / "run.zarr", chunks=None) as data:
        assert data["v"].dims == ("time", "y", "x")
        assert set(data["v"].coords) == {"time", "step", "y", "x"}
        np.testing.assert_array_equal(data["time"], [3, 6, 9, 12, 15])
        assert data.attrs["status"] == "complete"


def test_it_is_an_ome_zarr_image_with_the_limits_of_its_contrast(
    expected_frames: Expected, make_config: Make, tmp_path: Path
) -> None:
    config = make_config({**NOISE, "output.fields": "u,v"})
    gsio.simulate(config, tmp_path / "run.zarr")
    image = Image.from_zarr(zarr.open_group(tmp_path / "run.zarr", mode="r"))
    scales = image.ome_attributes.multiscales
    assert [axis.name for axis in scales[0].axes] == ["time", "y", "x"]
    assert [scale.datasets[0].path for scale in scales] == ["v", "u"]
    window = image.ome_attributes.omero["channels"][0]["window"]
    v = expected_frames(config)["v"]
    assert (window["start"], window["end"]) == (v.min(), v.max())


def test_frames_are_there_once_they_are_committed_for_every_reader(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gsio.writer.zarr.writer.PUBLISH_SECONDS", 0)
    path = tmp_path / "run.zarr"
    writer, encoded = new_writer(path, make_config({**NOISE, "grid.rows": 1024, "grid.cols": 1024}))
    blocks = [encoded(number) for number in (1, 0)][::-1]
    per_block = blocks[0].count

    def lengths() -> set[int]:
        group, data = zarr.open_group(path, mode="r"), xarray.open_zarr(path, chunks=None)
        alone = [zarr.open_array(path / name, mode="r").shape[0] for name in ("v", "time", "stats/v_max")]
        return {group["v"].shape[0], group["time"].shape[0], data.sizes["time"], *alone}

    assert lengths() == {0}
    for number, block in enumerate(blocks, 1):
        writer.commit([block])
        assert lengths() == {number * per_block}
    writer.close("stopped")
    frame = np.asarray(zarr.open_group(path, mode="r")["v"][per_block]).reshape(-1).view(np.uint8)
    np.testing.assert_array_equal(frame, blocks[1].data[0, 0])
    assert [name for _, _, names in os.walk(path) for name in names if name.startswith(".")] == []


def test_arrays_shrink_to_where_a_run_goes_on_before_their_chunks_are_replaced(
    make_config: Make, tmp_path: Path
) -> None:
    path, config = tmp_path / "run.zarr", make_config({**NOISE, "grid.rows": 1024, "grid.cols": 1024})
    with Journal(path) as journal:
        writer, encoded = new_writer(path, config, journal)
        blocks = [encoded(number) for number in range(3)]
        writer.commit(blocks)
        writer.close("stopped")
        new_writer(path, config, journal, frames=blocks[0].count)
    for name in ("v", "step", "stats/v_max"):
        for array in (zarr.open_group(path, mode="r")[name], zarr.open_array(path / name, mode="r")):
            assert array.shape[0] == blocks[0].count


def test_chunks_that_were_never_committed_are_not_counted(make_config: Make, tmp_path: Path) -> None:
    path, config = tmp_path / "run.zarr", make_config(NOISE)
    with Journal(path) as journal:
        _, encoded = new_writer(path, config, journal)
        encoded(0)
        writer, _ = new_writer(path, config, journal, frames=0)
    assert writer.nbytes == 0


def test_a_full_disk_ends_the_run_with_what_is_committed(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_blocks(block_bytes=2 * 12 * 17 * 4, chunk_bytes=12 * 17 * 4)
    write, number = os.write, itertools.count()

    def full(fd: int, data: Any) -> int:
        if Path(f"/proc/self/fd/{fd}").readlink().name.endswith(" (deleted)") and next(number) >= 4:  # a chunk
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageError, match="No space left"):
        gsio.simulate(make_config({**NOISE, "run.frames": 20}), tmp_path / "run.zarr")
    with gsio.open_stack(tmp_path / "run.zarr") as stack:
        assert stack.attributes["status"] == "failed"
        assert stack.frames <= 4
        assert np.isfinite(stack.v).all()
    assert [name for _, _, names in os.walk(tmp_path) for name in names if name.endswith(".tmp")] == []


def test_an_error_of_the_disk_that_a_call_met_before_is_raised_by_the_sync(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system tells an error once: here to the call that lets the disk begin to write."""
    monkeypatch.setattr("gsio.writer.writeback.PAUSE_SECONDS", 0)
    path, codes, began = tmp_path / "run.zarr", iter([errno.EIO]), threading.Event()

    def broken(fd: int) -> int:
        ctypes.set_errno(code := next(codes, 0))
        began.set()
        return -1 if code else 0

    with Journal(path) as journal:
        writer, encoded = new_writer(path, make_config(NOISE), journal)
        monkeypatch.setattr(LIBC, "syncfs", broken)
        writer.commit([encoded(0)])
        assert began.wait(DEADLINE)
        with pytest.raises(OSError, match="Input/output error"):
            writer.sync()
        writer.close("failed")


@pytest.mark.parametrize("error", [errno.EOPNOTSUPP, errno.EISDIR])
def test_file_systems_whose_files_need_a_name_get_the_same_files(
    error: int, make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config({**NOISE, "run.frames": 4})
    gsio.simulate(config, tmp_path / "nameless.zarr")
    real, refused = os.open, []

    def old(path: Any, flags: int, *mode: int, **how: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            refused.append(path)
            raise OSError(error, os.strerror(error))
        return real(path, flags, *mode, **how)

    monkeypatch.setattr(os, "open", old)
    gsio.simulate(config, tmp_path / "named.zarr")
    assert refused
    chunks = [{path.name: path.read_bytes() for path in (tmp_path / name / "v").glob("c.*")}
              for name in ("nameless.zarr", "named.zarr")]  # fmt: skip
    assert chunks[0] == chunks[1] != {}
    assert {path.stat().st_mode for path in tmp_path.rglob("c.*")} == {
        (tmp_path / "named.zarr/zarr.json").stat().st_mode
    }


def test_only_a_group_of_ours_is_ever_replaced(make_config: Make, tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    path.mkdir()
    (path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="is a folder that gsio did not write"):
        gsio.simulate(make_config(NOISE), path, overwrite=True)
    assert (path / "thesis.tex").read_text() == "years of work"
    (path / "thesis.tex").unlink()
    path.rmdir()
    for frames in (5, 2):
        gsio.simulate(make_config({**NOISE, "run.frames": frames}), path, overwrite=True)
    assert zarr.open_group(path, mode="r")["v"].shape[0] == 2
    assert {path.name for path in tmp_path.iterdir()} == {"run.zarr", *BESIDE}


def test_a_group_that_cannot_be_laid_out_leaves_the_old_one(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.zarr"
    gsio.simulate(make_config(NOISE), path)
    before = json.loads((path / "zarr.json").read_bytes())

    def fail(self: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("gsio.writer.zarr.store.Folder.sync", fail)
    with pytest.raises(StorageError, match="Input/output error"):
        gsio.simulate(make_config(NOISE), path, overwrite=True)
    assert json.loads((path / "zarr.json").read_bytes()) == before
    assert {path.name for path in tmp_path.iterdir()} == {"run.zarr", *BESIDE}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"output.store": "uint8", "output.compression": "none"},
        {"output.store": "float16", "output.fields": "u,v"},
        {"model.precision": "float64", "grid.rows": 21},
        {"model.feed": [0.02, 0.03, 0.04]},
        {"output.shard_frames": 4},
    ],
)
@pytest.mark.parametrize("slabs", [False, True])
def test_a_pyramid_holds_the_means_of_the_cells(
    slabs: bool, changes: dict[str, Any], make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if slabs:
        small_blocks(64 << 20, 4 << 20, large_bytes=100, slab_bytes=300)
    config = make_config({**NOISE, "initial.amplitude": 0.3, "output.pyramid": 3, **changes})
    gsio.simulate(config, tmp_path / "run.zarr")
    group = zarr.open_group(tmp_path / "run.zarr", mode="r")
    for name in config.output.fields.split(","):
        values = group[name][:]
        for level in (1, 2, 3):
            rows, cols = (size - size % 2 for size in values.shape[-2:])
            whole = values[..., :rows, :cols].astype(np.float64)
            means = whole.reshape(*whole.shape[:-2], rows // 2, 2, cols // 2, 2).mean(axis=(-3, -1))
            values = group[f"pyramid/{level}/{name}"][:]
            tolerance = {"f": np.finfo(values.dtype).eps if values.dtype.kind == "f" else 0, "u": 0.5}[
                values.dtype.kind
            ]
            np.testing.assert_allclose(values, means, rtol=0, atol=tolerance)
    assert len(Image.from_zarr(group).ome_attributes.multiscales[0].datasets) == 4


FLAT: list[dict[str, Any]] = [
    {"initial.kind": "spots", "initial.count": 0},  # v is 0
    {"initial.kind": "noise", "initial.amplitude": 0.0, "run.frames": 1},
    {"initial.kind": "spots", "initial.count": 0, "output.store": "uint8"},
    {"initial.kind": "spots", "initial.count": 0, "output.fields": "u"},  # 1
]


@pytest.mark.parametrize("changes", FLAT, ids=str)
def test_the_contrast_of_a_flat_field_has_a_width(changes: dict[str, Any], make_config: Make, tmp_path: Path) -> None:
    gsio.simulate(make_config({"output.compression": "auto"} | changes), tmp_path / "run.zarr")
    image = Image.from_zarr(zarr.open_group(tmp_path / "run.zarr", mode="r"))
    window = image.ome_attributes.omero["channels"][0]["window"]
    assert np.float32(window["start"]) < np.float32(window["end"])
    assert window["min"] <= window["start"]
    assert window["end"] <= window["max"]


@pytest.mark.parametrize("levels", [1, 3])
def test_a_level_opens_in_xarray(levels: int, make_config: Make, tmp_path: Path) -> None:
    changes = {**NOISE, "output.fields": "u,v", "output.pyramid": levels}
    gsio.simulate(make_config(changes), tmp_path / "run.zarr")
    with xarray.open_dataset(tmp_path / "run.zarr", engine="zarr") as whole:
        for level in range(1, levels + 1):
            with xarray.open_dataset(tmp_path / "run.zarr", engine="zarr", group=f"pyramid/{level}") as data:
                assert set(data) == {"u", "v"}
                assert data["v"].dims == ("time", "y", "x")
                assert data["v"].shape == (len(whole["time"]), 12 >> level, 17 >> level)


def test_a_pyramid_that_cannot_be_is_refused(make_config: Make, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"output\.pyramid: expected at most 3 with 12 cells, got 4"):
        gsio.simulate(make_config({**NOISE, "output.pyramid": 4}), tmp_path / "run.zarr")
    with pytest.raises(UsageError, match=r"output\.pyramid: HDF5 has no such levels"):
        gsio.simulate(make_config({"output.pyramid": 1}), tmp_path / "run.h5")
    assert list(tmp_path.iterdir()) == []


def test_deflate_is_refused(make_config: Make, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"output\.compression.*expected lz4, zstd or none"):
        gsio.simulate(make_config({"output.compression": "deflate"}), tmp_path / "run.zarr")
    assert list(tmp_path.iterdir()) == []
