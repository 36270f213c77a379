"""A codec that is one value: registered in the table, it works from `gsio run` to `gsio verify`, in both formats."""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from zarr.codecs import GzipCodec

import gsio
import gsio.export
from gsio import codec, config
from gsio.cli import main
from gsio.codec.interface import Codec, Hdf5Filter
from gsio.config import Config

Make = Callable[..., Config]
Captured = pytest.CaptureFixture[str]
GZIP = 31  # zlib's word for a header of gzip


def to_zlib(chunk: Any, itemsize: int, level: int) -> bytes:
    return zlib.compress(chunk, level)


def to_gzip(chunk: Any, itemsize: int, level: int) -> bytes:
    return zlib.compress(chunk, level, GZIP)


def inflate(encoded: Any, itemsize: int, nbytes: int) -> bytes:
    stream = zlib.decompressobj(GZIP + 16)  # either header
    raw = stream.decompress(encoded, nbytes + 1)
    if not stream.eof or stream.unused_data:
        raise ValueError("it does not end where the chunk does")
    return raw


def hdf5_arguments(itemsize: int, nbytes: int, level: int) -> dict[str, Any]:
    return {"compression": "gzip", "compression_opts": level}


# HDF5 takes a header of zlib, Zarr one of gzip.
TOYS = {
    "run.h5": Codec("toy", "toy", to_zlib, inflate, range(1, 10), Hdf5Filter((1,), hdf5_arguments), None),
    "run.zarr": Codec("toy", "toy", to_gzip, inflate, range(1, 10), None, lambda level: [GzipCodec(level=level)]),
}
OPTIONS = ["-r", "12", "-c", "17", "-e", "3", "--backend", "numpy", "--fields", "u,v", "-q", "--checkpoint-every", "2"]


@pytest.fixture(params=TOYS)
def output(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the name of an output whose format can hold the toy codec, which is registered during the test."""
    monkeypatch.setattr(config, "CODECS", [*config.CODECS])
    monkeypatch.setattr(codec, "CODECS", codec.CODECS)
    monkeypatch.setitem(codec.CODECS, "toy", TOYS[request.param])
    codec.register(TOYS[request.param])
    return tmp_path / str(request.param)


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return u and v as the usual reader of the format gives them, without a plugin."""
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            return file["u"][:], file["v"][:]
    group = zarr.open_group(path, mode="r")
    return np.asarray(group["u"][:]), np.asarray(group["v"][:])


@pytest.mark.parametrize("resumed", [False, True])
def test_a_whole_run_goes_through_a_codec_of_one_file(
    resumed: bool, output: Path, make_config: Make, expected_frames: Callable[[Config], Any], capsys: Captured
) -> None:
    run = ["run", *OPTIONS, "--compression", "toy", "-o", str(output)]
    if resumed:  # frame 5 shares a chunk with the frames before it, which are decoded and encoded again
        assert main([*run, "-n", "5"]) == 0
        assert main([*run, "-n", "9", "--resume"]) == 0
    else:
        assert main([*run, "-n", "9"]) == 0
    expected = expected_frames(make_config({"run.frames": 9, "output.fields": "u,v"}))
    for name, found in zip("uv", read(output), strict=True):
        np.testing.assert_array_equal(found, expected[name])
    with gsio.open_stack(output) as stack:
        assert (stack.v.codec, stack.config.output.compression) == ("toy", "toy")
        np.testing.assert_array_equal(stack.v[:], expected["v"])
    assert main(["verify", str(output)]) == 0
    assert main(["info", str(output)]) == 0
    assert "compression toy" in capsys.readouterr().out


def test_it_can_be_repaired_and_exported(output: Path) -> None:
    assert main(["run", *OPTIONS, "-n", "9", "--compression", "toy", "-o", str(output)]) == 0
    other = output.with_name("out" + output.suffix)
    assert gsio.export.export(output, other, compression="toy") == 9
    assert main(["repair", str(other)]) == 0
    for here, there in zip(read(output), read(other), strict=True):
        np.testing.assert_array_equal(here, there)


def test_a_format_that_cannot_hold_it_names_those_that_it_can(output: Path, capsys: Captured) -> None:
    other = output.with_name({"run.h5": "run.zarr", "run.zarr": "run.h5"}[output.name])
    assert main(["run", *OPTIONS, "-n", "9", "--compression", "toy", "-o", str(other)]) == 2
    assert "has no toy; expected " in capsys.readouterr().err
    assert list(output.parent.iterdir()) == []


def test_a_level_that_it_lacks_is_refused(output: Path, capsys: Captured) -> None:
    arguments = ["run", *OPTIONS, "-n", "9", "--compression", "toy", "--set", "output.level=0", "-o", str(output)]
    assert main(arguments) == 2
    assert "output.level: expected 1 to 9 with toy, got 0" in capsys.readouterr().err


def test_a_codec_that_is_not_in_the_table_is_refused(capsys: Captured) -> None:
    for found in ("toy", "3"):
        assert main(["config", "show", "--set", f"output.compression={found}"]) == 2
        assert "output.compression: expected auto, deflate, lz4, zstd or none, got " in capsys.readouterr().err
