"""`gsio.open_stack`: one view of every format, compression and cut into chunks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import pytest
import tensorstore
import xarray
from cuts import CUTS, OUTPUTS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

import gsio
from gsio.config import Config
from gsio.errors import DataError, UsageError
from gsio.reader.verify import problems
from gsio.testing import small_blocks

Make = Callable[..., Config]
Expected = Callable[[Config], dict[str, np.ndarray]]


@pytest.fixture
def cut(request: pytest.FixtureRequest) -> None:
    chunk, block, large, slab = CUTS[request.param]
    small_blocks(block, chunk, large_bytes=large, slab_bytes=slab)


@pytest.mark.parametrize("cut", CUTS, indirect=True)
@pytest.mark.parametrize(("name", "compression"), OUTPUTS)
@pytest.mark.parametrize("feed", [0.03, [0.03, 0.04, 0.05]], ids=["alone", "batch"])
@pytest.mark.usefixtures("cut")
def test_every_frame_reads_back_exactly_however_it_is_cut(
    expected_frames: Expected, name: str, compression: str, feed: Any, make_config: Make, tmp_path: Path
) -> None:
    config = make_config(
        {
            "run.frames": 16,
            "output.fields": "u,v",
            "output.compression": compression,
            "initial.kind": "noise",
            "model.feed": feed,
        }
    )
    gsio.simulate(config, tmp_path / name)
    with gsio.open_stack(tmp_path / name) as stack:
        for field, expected in expected_frames(config).items():
            np.testing.assert_array_equal(stack.fields[field], expected)
        np.testing.assert_array_equal(stack.times, np.arange(1, 17) * 3)
        assert stack.config == config
        np.testing.assert_array_equal(
            stack.series("stats/v_max"), expected_frames(config)["v"].reshape(16, -1).max(axis=1)
        )


@pytest.mark.parametrize("cut", CUTS, indirect=True)
@pytest.mark.parametrize("compression", ["lz4", "none"])
@pytest.mark.usefixtures("cut")
def test_sharded_frames_read_back_exactly_in_every_reader(
    expected_frames: Expected, compression: str, make_config: Make, tmp_path: Path
) -> None:
    changes = {"run.frames": 16, "output.fields": "u,v", "initial.kind": "noise", "output.shard_frames": 6}
    path = tmp_path / "run.zarr"
    config = make_config({**changes, "output.compression": compression})
    gsio.simulate(config, path)
    assert len([name for name in (path / "v").iterdir() if name.name.endswith(".0.0")]) == 3
    with gsio.open_stack(path) as stack:
        assert list(problems(stack)) == []
        for field, expected in expected_frames(config).items():
            np.testing.assert_array_equal(stack.fields[field], expected)
            np.testing.assert_array_equal(stack.root[field], expected)
            spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path / field)}}
            np.testing.assert_array_equal(tensorstore.open(spec, read=True).result().read().result(), expected)
        (path / "u" / "c.1.0.0").unlink()
        assert next(problems(stack)).partition(":")[0].endswith(("6", "6 to 8"))


def test_shards_are_refused_where_there_are_none(make_config: Make, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"output\.shard_frames"):
        gsio.simulate(make_config({"output.shard_frames": 6}), tmp_path / "run.h5")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with gsio.open_stack(small_output(tmp_path_factory.mktemp("stack") / "run.h5", 0.03)) as stack:
        yield stack


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with gsio.open_stack(small_output(tmp_path_factory.mktemp("stack") / "run.zarr", [0.03, 0.04])) as stack:
        yield stack


def small_output(path: Path, feed: Any) -> Path:
    changes = {"grid.rows": 6, "grid.cols": 5, "run.frames": 9, "run.steps_per_frame": 1, "run.backend": "numpy"}
    gsio.simulate(
        gsio.load_config(overrides={**changes, "initial.kind": "noise", "model.feed": feed}, environ={}), path
    )
    return path


@st.composite
def indices(draw: st.DrawFn, shape: tuple[int, ...]) -> Any:
    """Any index that NumPy knows, and some that it refuses."""
    together, key, axis = draw(array_shapes(min_dims=0, max_dims=2, max_side=3)), [], 0
    while axis < len(shape) and draw(st.integers(0, 5)):
        size = shape[axis]
        places = st.integers(-size, size - 1)
        two = arrays(bool, shape[axis : axis + 2]) if axis + 2 <= len(shape) else st.none()
        part = draw(
            st.one_of(
                places,
                st.slices(size),
                st.lists(places, max_size=3),
                arrays(np.int64, together, elements=places),
                st.lists(st.booleans(), min_size=size, max_size=size),
                two,
                st.none(),
                st.booleans(),
                st.just(...),
            )
        )
        key.append(part)
        axis += draw(st.integers(0, 2)) if part is ... else 0 if part is None or isinstance(part, bool) else 1
    return tuple(key) if len(key) != 1 or draw(st.booleans()) else key[0]


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("name", ["stack", "batch"])
def test_it_is_indexed_like_a_numpy_array(name: str, data: st.DataObject, stack: Any, batch: Any) -> None:
    found = {"stack": stack, "batch": batch}[name].v
    array = np.asarray(found)
    key = data.draw(indices(array.shape))
    try:
        expected = array[key]
    except IndexError:
        with pytest.raises(IndexError):
            found[key]
        return
    got = found[key]
    assert (type(got), got.dtype, got.shape) == (type(expected), expected.dtype, expected.shape)
    np.testing.assert_array_equal(got, expected)


def test_what_is_read_can_be_changed(stack: Any) -> None:
    expected = stack.v[3].copy()
    for key in (3, [3], slice(3, 4), (None, 3)):
        stack.v[key][...] = 7
        np.testing.assert_array_equal(stack.v[3], expected)


def test_it_says_of_which_form_it_is(stack: Any) -> None:
    assert (stack.v.ndim, stack.v.size, len(stack.v)) == (3, 9 * 6 * 5, 9)
    assert repr(stack.v) == "<gsio.Frames (9, 6, 5) float32, deflate>"


def test_dask_takes_it(stack: Any) -> None:
    lazy = dask.array.from_array(stack.v, chunks=(2, 6, 5))
    np.testing.assert_array_equal(lazy[1:8:3, ::2].mean(axis=0), np.asarray(stack.v)[1:8:3, ::2].mean(axis=0))
    np.testing.assert_array_equal(lazy[4].compute(), stack.v[4])


@given(frame=st.one_of(st.integers(9, 100), st.integers(-100, -10)))
def test_a_frame_that_is_not_there_is_an_index_error(frame: int, stack: Any) -> None:
    with pytest.raises(IndexError):
        stack.v[frame]
    with pytest.raises(IndexError, match="below 9"):
        stack.frame("v", frame)


@pytest.mark.parametrize(("name", "compression"), OUTPUTS)
def test_it_becomes_an_xarray_dataset(
    expected_frames: Expected, name: str, compression: str, make_config: Make, tmp_path: Path
) -> None:
    config = make_config({"output.compression": compression, "initial.kind": "noise"})
    gsio.simulate(config, tmp_path / name)
    with gsio.open_stack(tmp_path / name) as stack, stack.to_xarray() as data:
        assert isinstance(data, xarray.Dataset)
        assert data["v"].dims == ("time", "y", "x")
        np.testing.assert_array_equal(data["v"], expected_frames(config)["v"])


def test_what_is_not_saved_is_not_there(stack: Any) -> None:
    with pytest.raises(AttributeError, match="no 'u'"):
        stack.u  # noqa: B018
    with pytest.raises(KeyError, match="only v"):
        stack.frame("u", 0)


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch], ids=["folder", "file"])
@pytest.mark.parametrize("name", ["run.zarr", "run.h5"])
def test_what_is_no_output_is_refused(name: str, make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / name)
    with pytest.raises(DataError, match="expected an output"):
        gsio.open_stack(tmp_path / name)


LOSSY = [
    ({"keep_bits": 10}, 2**-11),
    ({"store": "float16"}, 2**-11),
    ({"store": "uint16"}, 0.5001 / 65535),
    ({"store": "uint8"}, 0.5001 / 255),
]


@pytest.mark.parametrize(
    ("name", "compression", "how", "most"),
    [
        (*output, *lossy)
        for output in OUTPUTS
        for lossy in LOSSY
        if output[0] != "run.h5" or "float16" not in lossy[0].values()
    ],
    ids=str,
)
def test_the_recorded_error_is_that_against_the_run_without_loss(
    name: str, compression: str, how: dict[str, Any], most: float, make_config: Make, tmp_path: Path
) -> None:
    changes = {"run.frames": 6, "initial.kind": "noise", "output.fields": "u,v", "output.compression": compression}
    gsio.simulate(make_config(changes), tmp_path / f"exact-{name}")
    gsio.simulate(make_config({**changes, **{f"output.{k}": v for k, v in how.items()}}), tmp_path / name)
    with gsio.open_stack(tmp_path / f"exact-{name}") as exact, gsio.open_stack(tmp_path / name) as stack:
        assert list(problems(stack)) == []
        for field in "uv":
            found, expected = (np.asarray(of.fields[field]).astype(np.float64) for of in (stack, exact))
            errors = np.abs(found - expected).max(axis=(1, 2))
            np.testing.assert_array_equal(stack.series(f"stats/{field}_error"), errors)
            assert 0 < errors.max() <= most
            np.testing.assert_array_equal(stack.series(f"stats/{field}_max"), exact.series(f"stats/{field}_max"))
            with stack.to_xarray() as data:  # as the attributes say, which cannot tell float32 in Zarr
                np.testing.assert_array_equal(data[field].astype(stack.v.dtype), stack.fields[field])
            assert stack.v.dtype == ("float16" if "float16" in how.values() else "float32")


@pytest.mark.parametrize("name", ["run.h5", "run.zarr"])
def test_rounding_is_described_as_cf_wants_it(name: str, make_config: Make, tmp_path: Path) -> None:
    gsio.simulate(make_config({"output.compression": "auto", "output.keep_bits": 7}), tmp_path / name)
    with gsio.open_stack(tmp_path / name) as stack, stack.to_xarray() as data:
        container = data[data["v"].attrs["quantization"]]
        assert container.attrs == {"algorithm": "bitround", "implementation": f"gsio version {gsio.__version__}"}
        assert data["v"].attrs["quantization_nsb"] == 7


@pytest.mark.parametrize(
    ("changes", "most"),
    [({"keep_bits": 23}, 22), ({"keep_bits": 1, "store": "float16"}, 0), ({"keep_bits": 1, "store": "uint8"}, 0)],
    ids=str,
)
def test_more_bits_than_there_are_to_drop_are_refused(
    changes: dict[str, Any], most: int, make_config: Make, tmp_path: Path
) -> None:
    config = make_config({f"output.{key}": value for key, value in changes.items()})
    with pytest.raises(UsageError, match=rf"output\.keep_bits: expected 0 to {most} with"):
        gsio.simulate(config, tmp_path / "run.h5")


@pytest.mark.parametrize("name", ["run.h5", "run.hdf5"])
def test_float16_is_refused_where_netcdf_would_crash(name: str, make_config: Make, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"output\.store: float16.*output\.keep_bits=10.*\.zarr"):
        gsio.simulate(make_config({"output.store": "float16"}), tmp_path / name)
    assert list(tmp_path.iterdir()) == []
