"""FrameWriter saves the arrays of a loop as they were when `append` was called, whatever their memory and dtype."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from appending import ENDINGS, SHAPE, frame, frames, stored, verified
from cuts import OUTPUTS
from hypothesis import given, settings
from hypothesis import strategies as st

import gsio
from gsio.errors import UsageError
from gsio.testing import small_blocks

DTYPES = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)] + ["float32", "float64"]


@pytest.mark.parametrize(("name", "compression"), OUTPUTS)
@pytest.mark.usefixtures("blocks")
def test_frames_that_change_in_place_after_append_are_saved_as_they_were(
    tmp_path: Path, name: str, compression: str
) -> None:
    path, values = tmp_path / name, np.zeros(SHAPE, np.float32)
    with gsio.FrameWriter(path, SHAPE, compression=compression) as out:
        for number in range(22):
            values[...] = frame(number)
            out.append(values)
            values[...] = np.nan
            assert len(out) == number + 1
    assert out.frames_committed == 22
    np.testing.assert_array_equal(stored(path), frames(22))
    with verified(path) as stack:
        assert (stack.attributes["status"], stack.content.compression) == ("complete", compression)
        np.testing.assert_array_equal(stack.times, np.arange(22))
        np.testing.assert_array_equal(stack.series("step"), np.arange(22))
    assert not Path(f"{path}.journal").exists()


@ENDINGS
@pytest.mark.parametrize("shape", [(7,), (1,), (5, 6), (3, 4, 5), (2, 3, 4, 5)], ids=str)
@pytest.mark.usefixtures("blocks")
def test_a_frame_has_one_to_four_axes(tmp_path: Path, ending: str, shape: tuple[int, ...]) -> None:
    path = tmp_path / f"run{ending}"
    with gsio.FrameWriter(path, shape, fields="u,v") as out:
        for number in range(9):
            out.append(v=frame(number, shape), u=-frame(number, shape))
    expected = np.array([frame(number, shape) for number in range(9)])
    np.testing.assert_array_equal(stored(path), expected)
    np.testing.assert_array_equal(stored(path, "u"), -expected)
    with verified(path) as stack:
        assert [axis.name for axis in stack.content.axes] == ["member", "z", "y", "x"][-len(shape) :]
        assert stack.fields["u"].shape == (9, *shape)


class OnlyDlpack:
    """An array that shares its memory by DLPack, and by nothing else."""

    def __init__(self, values: np.ndarray) -> None:
        self.__dlpack__ = values.__dlpack__
        self.__dlpack_device__ = values.__dlpack_device__


class OnlyArray:
    """An array that gives a NumPy array, and nothing else."""

    def __init__(self, values: np.ndarray) -> None:
        self._values = values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._values


def read_only(values: np.ndarray) -> np.ndarray:
    values.flags.writeable = False
    return values


FORMS = {
    "strided": lambda values: np.repeat(np.repeat(values, 2, 0), 3, 1)[::2, ::3],
    "reversed": lambda values: values[::-1, ::-1].copy()[::-1, ::-1],
    "Fortran order": np.asfortranarray,
    "transposed": lambda values: values.T.copy().T,
    "byte-swapped": lambda values: values.astype(">f4"),
    "read-only": read_only,
    "DLPack": OnlyDlpack,
    "__array__": OnlyArray,
}


@ENDINGS
@pytest.mark.parametrize("form", FORMS)
def test_an_array_can_lie_in_memory_in_any_way(tmp_path: Path, ending: str, form: str) -> None:
    path = tmp_path / f"run{ending}"
    with gsio.FrameWriter(path, SHAPE) as out:
        for number in range(3):
            out.append(FORMS[form](frame(number)))
    found = stored(path)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, frames(3))


def test_an_array_can_lie_in_a_file(tmp_path: Path) -> None:
    mapped = np.memmap(tmp_path / "values", np.float32, "w+", shape=SHAPE)
    with gsio.FrameWriter(tmp_path / "run.h5", SHAPE) as out:
        for number in range(3):
            mapped[...] = frame(number)
            out.append(mapped)
    np.testing.assert_array_equal(stored(tmp_path / "run.h5"), frames(3))


def test_arrays_of_jax_are_saved_also_when_their_buffers_are_donated(tmp_path: Path) -> None:
    jax = pytest.importorskip("jax")
    advance = jax.jit(lambda values: values * 0.5 + 1, donate_argnums=0)
    state, expected = jax.numpy.asarray(frame(0)), []
    with gsio.FrameWriter(tmp_path / "run.h5", SHAPE) as out:
        for _ in range(5):
            out.append(state)
            expected.append(np.array(state))
            state = advance(state)
    np.testing.assert_array_equal(stored(tmp_path / "run.h5"), expected)
    with gsio.open_stack(tmp_path / "run.h5") as stack:
        assert stack.attributes["backend"].startswith("jax")


def test_append_does_not_wait_for_the_work_of_jax(tmp_path: Path) -> None:
    jax = pytest.importorskip("jax")
    shape = 400, 400
    long = jax.jit(lambda values: jax.lax.fori_loop(0, 150, lambda _, x: x @ x, values))
    initial = jax.numpy.eye(shape[0])
    with gsio.FrameWriter(tmp_path / "run.h5", shape) as out:
        out.append(initial)  # JAX compiles the copy
        pending = long(initial)
        out.append(pending)
        assert not pending.is_ready()
    np.testing.assert_array_equal(stored(tmp_path / "run.h5"), [np.eye(400)] * 2)


def test_bfloat16_becomes_float32_which_holds_its_values(tmp_path: Path) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = frame(0).astype(ml_dtypes.bfloat16)
    with gsio.FrameWriter(tmp_path / "run.zarr", SHAPE) as out:
        out.append(values)
    found = stored(tmp_path / "run.zarr")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[0], values.astype(np.float32))


@ENDINGS
@pytest.mark.parametrize("dtype", [*DTYPES, "bool", "float16"])
def test_values_are_stored_as_they_are(tmp_path: Path, ending: str, dtype: str) -> None:
    path, rng = tmp_path / f"run{ending}", np.random.default_rng(1)
    if np.dtype(dtype).kind in "iu":
        info = np.iinfo(dtype)
        values = rng.integers(info.min, info.max, (3, *SHAPE), dtype, endpoint=True)
        values[0, 0, :2] = info.min, info.max
    else:
        values = (rng.random((3, *SHAPE)) * 2).astype(dtype)
    with gsio.FrameWriter(path, SHAPE) as out:
        for value in values:
            out.append(value)
    found = stored(path)
    as_stored = {"bool": "uint8", "float16": "float32" if ending == ".h5" else "float16"}
    assert found.dtype == as_stored.get(dtype, dtype)
    np.testing.assert_array_equal(found, values)
    with verified(path) as stack:
        assert "stats/v_error" not in stack.recorded
        np.testing.assert_array_equal(stack.series("stats/v_min"), values.min((1, 2)).astype(np.float64))


@pytest.mark.parametrize("dtype", ["longdouble", "complex64", "object", "S3", "U3", "datetime64[s]"])
def test_arrays_of_other_values_are_refused_in_a_line(tmp_path: Path, dtype: str) -> None:
    with gsio.FrameWriter(tmp_path / "run.h5", SHAPE) as out:
        with pytest.raises(UsageError, match=r"^append: expected an array of numbers, got ndarray \(.*\)$"):
            out.append(np.ones(SHAPE, "i4").astype(dtype))
        assert len(out) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("frame", ["abc", None, [[1], [1, 2]], np.ma.masked_less(np.ones(SHAPE), 2)], ids=repr)
def test_other_objects_are_refused_in_a_line(tmp_path: Path, frame: Any) -> None:
    with (
        gsio.FrameWriter(tmp_path / "run.h5", SHAPE) as out,
        pytest.raises(UsageError, match=r"^append: expected an array of numbers, got .*$"),
    ):
        out.append(frame)


@ENDINGS
def test_floats_can_be_stored_in_fewer_bytes_and_the_error_is_recorded(tmp_path: Path, ending: str) -> None:
    path, values = tmp_path / f"run{ending}", np.random.default_rng(0).random((5, *SHAPE))
    with gsio.FrameWriter(path, SHAPE, dtype="float32") as out:
        for value in values:
            out.append(value)
    found = stored(path)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, values.astype(np.float32))
    with verified(path) as stack:
        errors = np.abs(values.astype(np.float32).astype(np.float64) - values).max((1, 2))
        np.testing.assert_array_equal(stack.series("stats/v_error"), errors)


@ENDINGS
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_floats_from_0_to_1_can_be_stored_as_integers(tmp_path: Path, ending: str, dtype: str) -> None:
    path, most = tmp_path / f"run{ending}", np.iinfo(dtype).max
    with gsio.FrameWriter(path, SHAPE, dtype=dtype) as out:
        for number in range(3):
            out.append(frame(number))
    found = stored(path)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, np.rint(frames(3) * np.float64(most)).astype(dtype))
    with verified(path) as stack:
        np.testing.assert_allclose(stack.v[:], frames(3), rtol=0, atol=0.51 / most)
        assert np.all(stack.series("stats/v_error") <= 0.51 / most)


@pytest.mark.parametrize(("dtype", "values"), [("float64", "float32"), ("int32", "int8"), ("uint8", "bool")])
def test_values_that_a_wider_dtype_holds_are_stored_in_it_exactly(tmp_path: Path, dtype: str, values: str) -> None:
    given = (frame(0) * 2).astype(values)
    with gsio.FrameWriter(tmp_path / "run.h5", SHAPE, dtype=dtype) as out:
        out.append(given)
    found = stored(tmp_path / "run.h5")
    assert found.dtype == dtype
    np.testing.assert_array_equal(found[0], given)


@pytest.mark.parametrize(("dtype", "values"), [("float32", "int32"), ("float64", "int64"), ("uint8", "int32")])
def test_integers_are_never_rounded(tmp_path: Path, dtype: str, values: str) -> None:
    with (
        gsio.FrameWriter(tmp_path / "run.h5", SHAPE, dtype=dtype) as out,
        pytest.raises(UsageError, match=f"append: .* stored as dtype='{dtype}', got {values}; convert"),
    ):
        out.append(np.ones(SHAPE, values))


@pytest.mark.parametrize(
    ("first", "later"), [("float32", "float64"), ("float32", "int64"), ("float64", "int64"), ("uint8", "int8")]
)
def test_a_later_frame_that_the_first_dtype_cannot_hold_is_refused(tmp_path: Path, first: str, later: str) -> None:
    with gsio.FrameWriter(tmp_path / "run.h5", SHAPE) as out:
        out.append(np.ones(SHAPE, first))
        with pytest.raises(UsageError, match=f"expected values that {first} can hold, .* got {later}; convert them"):
            out.append(np.ones(SHAPE, later))
        out.append(np.zeros(SHAPE, "bool"))
    found = stored(tmp_path / "run.h5")
    assert found.dtype == first
    np.testing.assert_array_equal(found[:, 0, 0], [1, 0])


def test_a_frame_that_is_refused_leaves_no_trace(tmp_path: Path) -> None:
    u, v = frame(0), frame(1)
    with gsio.FrameWriter(tmp_path / "run.h5", SHAPE, fields="u,v") as out:
        out.append(u, v)
        refused: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
            ((u, v[:5]), {}, r"expected v of the shape \(12, 17\), got \(5, 17\)"),
            ((u, v[None]), {}, r"got \(1, 12, 17\)"),
            ((u,), {}, "expected an array for each of u, v, got an array$"),
            ((u, v, v), {}, "expected an array for each of u, v, got an array, an array, an array$"),
            ((), {}, "got none$"),
            ((), {"u": u}, "got u$"),
            ((), {"u": u, "w": v}, "got u, w$"),
            ((u,), {"v": v}, "got an array, v$"),
            (({"u": u, "v": v},), {}, r"got a dict, which append\(\*\*frame\) takes$"),
            ((u, v), {"time": "soon"}, "expected a number as time"),
            ((u, v), {"step": 1.5}, "expected a number as time and a whole one as step"),
            ((u, v), {"step": 2**63}, "a whole one as step"),
        ]
        for planes, named, message in refused:
            with pytest.raises(UsageError, match=f"^append: .*{message}"):
                out.append(*planes, **named)
        assert len(out) == 1
        out.append(v=v, u=u, time=2.5, step=7)
    with verified(tmp_path / "run.h5") as stack:
        np.testing.assert_array_equal(stack.v[:], [v, v])
        np.testing.assert_array_equal(stack.times, [0, 2.5])
        np.testing.assert_array_equal(stack.series("step"), [0, 7])


@settings(max_examples=15)
@given(data=st.data())
def test_any_frames_are_read_back_as_they_were(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    name, compression = data.draw(st.sampled_from(OUTPUTS))
    shape = tuple(data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)))
    fields = data.draw(st.lists(st.from_regex(r"^[A-Z][a-z]{0,4}_?\Z"), min_size=1, max_size=3, unique=True))
    dtype, count = np.dtype(data.draw(st.sampled_from(DTYPES))), data.draw(st.integers(1, 30))
    chunk = data.draw(st.integers(1, 4 * dtype.itemsize * int(np.prod(shape))))
    block, seed = data.draw(st.integers(1, 6 * chunk)), data.draw(st.integers(0, 99))
    shard = data.draw(st.integers(0, 5)) if name.endswith(".zarr") else 0
    moments = data.draw(st.dictionaries(st.integers(0, count - 1), st.sampled_from(["flush", "save"]), max_size=6))
    raw = np.random.default_rng(seed).integers(0, 100, (count, len(fields), *shape))
    values = raw.astype(dtype) if dtype.kind in "iu" else (raw / 7).astype(dtype)
    path = tmp_path_factory.mktemp("any") / name
    with small_blocks(block_bytes=block, chunk_bytes=chunk):
        with gsio.FrameWriter(path, shape, fields=fields, compression=compression, shard_frames=shard) as out:
            for number, planes in enumerate(values):
                out.append(*planes, time=number / 8)
                if moments.get(number) == "flush":
                    out.flush()
                    assert out.frames_committed == number + 1
                elif moments.get(number) == "save":
                    out.save({"number": number, "planes": planes})
        with verified(path) as stack:
            np.testing.assert_array_equal(stack.times, np.arange(count) / 8)
    for place, field in enumerate(fields):
        found = stored(path, field)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, values[:, place])
