"""What every codec in the table promises: it gives back each chunk, refuses each other one, and stock readers agree."""

import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from numcodecs import Shuffle, blosc
from numpy.typing import NDArray

from gsio import config
from gsio.codec import CODECS, Codec, decode
from gsio.writer.formats import HDF5, ZARR

assert hdf5plugin.FILTERS["blosc"] == 32001  # its import is what lets h5py read lz4 and zstd
DTYPES = ("<f8", "<f4", "<f2", "<u2", "|u1")
SHIPPED = list(CODECS.values())
every_codec = pytest.mark.parametrize("codec", SHIPPED, ids=list(CODECS))


def values_of(kind: str, dtype: str, count: int, seed: int) -> NDArray[Any]:
    """Return values that a codec finds easy, hard, or partly hard."""
    raw = np.random.default_rng(seed).integers(0, 256, count * np.dtype(dtype).itemsize, np.uint8)
    raw[: {"zero": len(raw), "half": len(raw) // 2, "noise": 0}[kind]] = 0
    return raw.view(dtype)


def encoded_of(codec: Codec, values: NDArray[Any], level: int) -> bytes:
    raw = values.view(np.uint8)
    chunk = np.asarray(Shuffle(values.itemsize).encode(raw)).view(np.uint8) if codec.byte_planes else raw
    return bytes(codec.encode(chunk, values.itemsize, level))


chunks = st.builds(
    values_of,
    st.sampled_from(["zero", "half", "noise"]),
    st.sampled_from(DTYPES),
    st.one_of(st.integers(1, 300), st.integers(1, 200_000)),
    st.integers(0, 99),
)


@every_codec
@given(values=chunks, data=st.data())
def test_a_chunk_comes_back_bit_for_bit(codec: Codec, values: NDArray[Any], data: st.DataObject) -> None:
    encoded = encoded_of(codec, values, data.draw(st.sampled_from(codec.levels)))
    found = decode(codec, encoded, values.dtype, values.nbytes)
    assert (found.dtype, found.tobytes()) == (values.dtype, values.tobytes())
    assert len(encoded) <= values.nbytes + values.nbytes // 8 + (64 << 10)  # more than this no reader takes


@every_codec
@given(values=chunks, data=st.data())
def test_a_chunk_that_is_cut_or_of_another_size_is_refused(
    codec: Codec, values: NDArray[Any], data: st.DataObject
) -> None:
    encoded = encoded_of(codec, values, 1)
    cut = encoded[: data.draw(st.integers(0, len(encoded) - 1))]
    for damaged in (cut, encoded + b"\0"):
        with pytest.raises(ValueError, match="a chunk cannot be decoded"):
            decode(codec, damaged, values.dtype, values.nbytes)
    for nbytes in {0, values.nbytes - values.itemsize, values.nbytes + values.itemsize} - {values.nbytes}:
        with pytest.raises(ValueError, match="a chunk cannot be decoded"):
            decode(codec, encoded, values.dtype, nbytes)


@every_codec
@given(values=chunks, place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_a_damaged_chunk_raises_only_a_value_error(codec: Codec, values: NDArray[Any], place: float, flip: int) -> None:
    damaged = bytearray(encoded_of(codec, values, 1))
    damaged[int(place * len(damaged))] ^= flip
    try:
        found = decode(codec, bytes(damaged), values.dtype, values.nbytes)
    except ValueError:
        return
    assert found.nbytes == values.nbytes  # the checksum of the frame finds such damage


@every_codec
def test_no_more_is_decoded_than_was_told(codec: Codec) -> None:
    bomb, nbytes = encoded_of(codec, np.zeros(64 << 20, np.uint8), 1), 1 << 16
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="a chunk cannot be decoded"):
            decode(codec, bomb, np.dtype("u1"), nbytes)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * nbytes


@every_codec
@pytest.mark.parametrize("dtype", DTYPES)
def test_stock_h5py_reads_a_chunk(codec: Codec, dtype: str, tmp_path: Path) -> None:
    if codec.hdf5 is None:
        pytest.skip("HDF5 cannot hold it")
    values = values_of("half", dtype, 3 * 70 * 500, 1).reshape(3, 70, 500)
    for level in codec.levels:
        arguments = codec.hdf5.arguments(values.itemsize, values.nbytes, level)
        with h5py.File(tmp_path / "one.h5", "w") as file:
            made = file.create_dataset("v", values.shape, dtype, chunks=values.shape, **arguments)
            made.id.write_direct_chunk((0, 0, 0), encoded_of(codec, values.reshape(-1), level))
        with h5py.File(tmp_path / "one.h5") as file:
            filters = file["v"].id.get_create_plist()
            assert tuple(filters.get_filter(i)[0] for i in range(filters.get_nfilters())) == codec.hdf5.numbers
            assert file["v"][:].tobytes() == values.tobytes()


@every_codec
@pytest.mark.parametrize("dtype", DTYPES)
def test_stock_zarr_reads_a_chunk(codec: Codec, dtype: str, tmp_path: Path) -> None:
    if codec.zarr is None:
        pytest.skip("Zarr cannot hold it")
    values = values_of("half", dtype, 3 * 70 * 500, 1).reshape(3, 70, 500)
    for level in codec.levels:
        path = tmp_path / f"{level}.zarr"
        zarr.create_array(
            path, shape=values.shape, dtype=dtype, chunks=values.shape, compressors=codec.zarr(values.itemsize, level)
        )
        (path / "c/0/0").mkdir(parents=True)
        (path / "c/0/0/0").write_bytes(encoded_of(codec, values.reshape(-1), level))
        assert np.asarray(zarr.open_array(path, mode="r")[:]).tobytes() == values.tobytes()


def test_the_names_of_the_configuration_are_those_of_the_table() -> None:
    assert list(CODECS) == list(config.CODECS)
    assert all(name == codec.name for name, codec in CODECS.items())


def test_a_format_takes_the_first_codec_that_it_can_hold() -> None:
    assert [codec.name for codec in HDF5.codecs] == ["deflate", "lz4", "zstd", "none"]
    assert [codec.name for codec in ZARR.codecs] == ["lz4", "zstd", "none"]


@pytest.mark.parametrize("kind", ["zero", "half", "noise"])
def test_the_bytes_are_those_of_the_plain_formats(kind: str) -> None:
    values = values_of(kind, "<f4", 500_000, 1)
    planes = np.asarray(Shuffle(4).encode(values.view(np.uint8))).tobytes()
    assert zlib.decompress(encoded_of(CODECS["deflate"], values, 1)) == planes
    assert blosc.decompress(encoded_of(CODECS["lz4"], values, 1)) == values.tobytes()
    assert encoded_of(CODECS["none"], values, 1) == values.tobytes()


WITH_KERNELS = [codec for codec in SHIPPED if codec.kernels]


@pytest.mark.parametrize("codec", WITH_KERNELS, ids=lambda codec: codec.name)
@given(cells=st.integers(1, 1 << 28), itemsize=st.sampled_from([1, 2, 4, 8]))
def test_the_blocks_of_a_gpu_hold_each_cell_once(codec: Codec, cells: int, itemsize: int) -> None:
    assert codec.kernels is not None
    blocks, block = codec.kernels.blocks(cells, itemsize)
    last = cells - (blocks - 1) * block
    assert 0 < last <= block <= 16 << 10
    assert block <= 8 << 10 or codec.family != "blosc"
    assert last == block or last * itemsize <= block or codec.family != "blosc"  # else a segment would be too long
    assert codec.kernels.headers(blocks, blocks * itemsize) >= 4 * blocks * itemsize
    assert set(codec.kernels.levels) <= set(codec.levels)
