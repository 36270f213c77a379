"""FrameWriter with arrays on a GPU: frames are the same as those of arrays in host memory, whatever the loop does."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from appending import ENDINGS, SHAPE, frame, frames, stored, verified

import gsio
from gsio.errors import UsageError

pytestmark = pytest.mark.gpu
LIBRARIES = pytest.mark.parametrize("of", ["cupy", "torch", "jax"], indirect=True)
COUNT = 40


class Library:
    """What the tests need of a library: an array on the GPU, a change in place or by donation, and a stream."""

    def __init__(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        module: Any = pytest.importorskip(name)
        self.name, self.stream = name, nullcontext
        if name == "cupy":
            self.array, self.stream = module.asarray, lambda: module.cuda.Stream(non_blocking=True)
        elif name == "torch":
            if not module.cuda.is_available():
                pytest.skip("PyTorch has no GPU")
            self.array = lambda values: module.from_numpy(np.array(values)).cuda()
            self.stream = lambda: module.cuda.stream(module.cuda.Stream())
        else:
            if module.default_backend() != "gpu":
                pytest.skip("JAX has no GPU")
            self.array = module.numpy.array
            self.add: Callable[[Any], Any] = module.jit(lambda x: x + 1, donate_argnums=0)

    def changed(self, array: Any) -> Any:
        """Return the array after it is increased by 1, in the same memory."""
        if self.name == "jax":
            return self.add(array)
        array += 1
        return array


@pytest.fixture
def of(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Library:
    return Library(request.param, monkeypatch)


@LIBRARIES
@ENDINGS
@pytest.mark.parametrize("compression", ["auto", "none", "zstd"])
@pytest.mark.parametrize("shape", [(240, 512), (13, 17)])
def test_frames_that_change_at_once_are_saved_as_they_were(
    of: Library, tmp_path: Path, ending: str, compression: str, shape: tuple[int, int]
) -> None:
    path, array = tmp_path / f"run{ending}", of.array(frame(0, shape))
    with gsio.FrameWriter(path, shape, compression=compression) as out:
        for _ in range(COUNT):
            out.append(array)
            array = of.changed(array)
    values = frame(0, shape)
    for found in stored(path):
        np.testing.assert_array_equal(found, values)
        values = values + np.float32(1)
    assert verified(path).attributes["device"] != "host memory"


@LIBRARIES
@ENDINGS
def test_a_file_is_that_of_arrays_in_host_memory(of: Library, tmp_path: Path, ending: str) -> None:
    for name, array in (("host", np.asarray), ("gpu", of.array)):
        with gsio.FrameWriter(tmp_path / f"{name}{ending}", SHAPE, fields="u,v") as out:
            for number in range(COUNT):
                out.append(u=array(frame(number)), v=array(frame(1000 + number)), time=number / 2, step=3 * number)
                if number in (4, 5, 17):
                    out.flush()  # blocks then begin and end inside chunks
    host, gpu = (verified(tmp_path / f"{name}{ending}") for name in ("host", "gpu"))
    for name in ("u", "v"):
        np.testing.assert_array_equal(stored(tmp_path / f"gpu{ending}", name), stored(tmp_path / f"host{ending}", name))
    for series in ("time", "step", "integrity/crc32c", "stats/v_min", "stats/v_max"):
        np.testing.assert_array_equal(gpu.series(series), host.series(series))
    np.testing.assert_allclose(gpu.series("stats/v_mean"), host.series("stats/v_mean"), rtol=1e-12)


@LIBRARIES
@pytest.mark.parametrize(
    "dtype",
    [
        "bool",
        "int8",
        "int16",
        "int32",
        "uint8",
        "uint16",
        "uint32",
        "float16",
        "bfloat16",
        "float32",
        "int64",
        "float64",
    ],
)
def test_values_are_stored_as_they_are(of: Library, tmp_path: Path, dtype: str) -> None:
    whole = np.arange(np.prod(SHAPE)).reshape(SHAPE) % 120
    values = whole - 60 if dtype.startswith(("i", "f", "b")) and dtype != "bool" else whole
    if dtype == "bfloat16":
        if of.name == "cupy":
            pytest.skip("CuPy needs another package for bfloat16")
        array = of.array(values.astype(np.float32))
        array = array.bfloat16() if of.name == "torch" else array.astype("bfloat16")
        expected = values.astype(np.float32)
    else:
        expected = values.astype(dtype)
        array = of.array(expected)
        if of.name == "jax" and dtype in ("int64", "float64"):
            expected = expected.astype(dtype.replace("64", "32"))  # JAX has no more bits by default
        if dtype == "bool":
            expected = expected.astype(np.uint8)
    path = tmp_path / "run.zarr"
    with gsio.FrameWriter(path, SHAPE) as out:
        out.append(array)
        out.append(array)
    found = stored(path)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, [expected, expected])
    stack = verified(path)
    assert stack.series("stats/v_min")[1] == expected.min()
    assert stack.series("stats/v_max")[1] == expected.max()
    assert stack.series("stats/v_mean")[0] == pytest.approx(expected.mean(dtype=np.float64))


@LIBRARIES
@pytest.mark.parametrize("store", ["float16", "uint8", "uint16"])
def test_values_are_packed_as_from_host_memory(of: Library, tmp_path: Path, store: str) -> None:
    for name, array in (("host", np.asarray), ("gpu", of.array)):
        with gsio.FrameWriter(tmp_path / f"{name}.zarr", SHAPE, dtype=store) as out:
            for values in frames(5):
                out.append(array(values))
    np.testing.assert_array_equal(stored(tmp_path / "gpu.zarr"), stored(tmp_path / "host.zarr"))
    host, gpu = (verified(tmp_path / f"{name}.zarr") for name in ("host", "gpu"))
    np.testing.assert_array_equal(gpu.series("stats/v_error"), host.series("stats/v_error"))


@LIBRARIES
@pytest.mark.parametrize("shape", [(1001,), (3, 5, 7), (2, 3, 8, 9), (1, 1)])
def test_a_frame_has_one_to_four_axes(of: Library, tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = tmp_path / "run.h5"
    with gsio.FrameWriter(path, shape) as out:
        for number in range(7):
            out.append(of.array(frame(number, shape)))
    np.testing.assert_array_equal(stored(path), [frame(number, shape) for number in range(7)])


@pytest.mark.parametrize("of", ["cupy", "torch"], indirect=True)
@pytest.mark.parametrize("form", ["transposed", "sliced", "broadcast", "reversed"])
def test_an_array_can_lie_in_memory_in_any_way(of: Library, tmp_path: Path, form: str) -> None:
    base = frame(0, (24, 34))
    array, expected = of.array(base), base
    forms: dict[str, Callable[[Any], Any]] = {
        "transposed": lambda x: x.T,
        "sliced": lambda x: x[1::2, ::3],
        "broadcast": lambda x: x[:1].expand(24, 34) if hasattr(x, "expand") else np.broadcast_to(x[:1], (24, 34)),
        "reversed": lambda x: x[::-1] if not hasattr(x, "flip") else x.flip(0),
    }
    if form == "broadcast" and of.name == "cupy":
        import cupy

        forms["broadcast"] = lambda x: (cupy if isinstance(x, cupy.ndarray) else np).broadcast_to(x[:1], (24, 34))
    array, expected = forms[form](array), forms[form](expected)
    with gsio.FrameWriter(tmp_path / "run.h5", expected.shape) as out:
        out.append(array)
        out.append(array)
    np.testing.assert_array_equal(stored(tmp_path / "run.h5"), [expected, expected])


@pytest.mark.parametrize("of", ["cupy", "torch"], indirect=True)
def test_arrays_of_several_streams_follow_one_another(of: Library, tmp_path: Path) -> None:
    shape = 500, 700
    streams = [of.stream() for _ in range(3)]
    arrays = []
    for number, stream in enumerate(streams):
        with stream:
            arrays.append(of.array(frame(number, shape)))
    with gsio.FrameWriter(tmp_path / "run.h5", shape) as out:
        for _ in range(10):
            for stream, array in zip(streams, arrays, strict=True):
                with stream:
                    out.append(array)
                    array *= 2
    found = stored(tmp_path / "run.h5")
    for number in range(30):
        np.testing.assert_array_equal(found[number], frame(number % 3, shape) * np.float32(2) ** (number // 3))


@pytest.mark.parametrize("of", ["torch"], indirect=True)
def test_a_parameter_that_learns_is_saved_without_its_gradient(of: Library, tmp_path: Path) -> None:
    array = of.array(frame(0)).requires_grad_()
    with gsio.FrameWriter(tmp_path / "run.h5", SHAPE) as out:
        out.append(array)
        out.append(array * 2)
    np.testing.assert_array_equal(stored(tmp_path / "run.h5"), [frame(0), frame(0) * 2])


@LIBRARIES
def test_an_array_elsewhere_than_the_first_is_refused_and_leaves_no_trace(of: Library, tmp_path: Path) -> None:
    with gsio.FrameWriter(tmp_path / "run.h5", SHAPE) as out:
        out.append(of.array(frame(0)))
        with pytest.raises(
            UsageError, match="expected arrays in memory of GPU 0, as in the first frame, got one in host"
        ):
            out.append(frame(1))
        out.append(of.array(frame(1)))
    np.testing.assert_array_equal(stored(tmp_path / "run.h5"), frames(2))
    with gsio.FrameWriter(tmp_path / "host.h5", SHAPE) as out:
        out.append(frame(0))
        with pytest.raises(
            UsageError, match="expected arrays in host memory, as in the first frame, got one in memory of"
        ):
            out.append(of.array(frame(1)))


@LIBRARIES
@ENDINGS
def test_a_loop_that_goes_on_makes_the_same_file(of: Library, tmp_path: Path, ending: str) -> None:
    def loop(path: Path, stop: int) -> None:
        with gsio.FrameWriter(path, SHAPE, resume="auto") as out:
            state = out.checkpoint
            array = of.array(frame(0)) if state is None else state["array"]
            for number in range(len(out), 30):
                out.append(array)
                array = of.changed(array)
                if number % 10 == 6:
                    out.save({"array": array})
                if number == stop:
                    raise KeyboardInterrupt

    loop(tmp_path / f"whole{ending}", 99)
    with pytest.raises(KeyboardInterrupt):
        loop(tmp_path / f"parts{ending}", 12)
    loop(tmp_path / f"parts{ending}", 99)
    whole, parts = (verified(tmp_path / f"{name}{ending}") for name in ("whole", "parts"))
    np.testing.assert_array_equal(stored(tmp_path / f"parts{ending}"), stored(tmp_path / f"whole{ending}"))
    for series in ("time", "step", "integrity/crc32c", "stats/v_mean"):
        np.testing.assert_array_equal(parts.series(series), whole.series(series))
