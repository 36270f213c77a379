"""States of other loops: trees of containers and arrays, in a checkpoint and out of it again."""

import dataclasses
import functools
import json
import sys
import types
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from structlog.testing import capture_logs

from gsio.errors import DataError, UsageError
from gsio.run import checkpoints
from gsio.run.checkpoints import Checkpoint, SavedState
from gsio.run.trees import DEPTH, LEAVES, flatten, restore

HOSTILE = [
    "[",
    "[" * 100_000,
    "[" * (DEPTH + 1) + "]" * (DEPTH + 1),
    '{"array": {}}',
    '[{"array": {}}, {"array": {}}, {"array": {}}]',
    '{"array": 1}',
    '{"array": {"dtype": "no_dtype"}}',
    '{"array": {"dtype": 7}}',
    '{"array": {"dtype": "finfo"}}',
    '{"dict": [[[], 1]]}',
    '{"dict": [1]}',
    '{"array": {"dtype": "a\\nb"}}',
    '{"class": ["a\\nb", "c"], "fields": {}}',
    '{"complex": ["a", []]}',
    '{"set": [1]}',
    '{"class": ["os", "system"], "fields": {}}',
    '{"class": ["os", "path.join"], "fields": {}}',
    '{"class": ["", ""], "fields": {}}',
    '{"class": ["builtins", "tuple"], "fields": {}}',
    '{"class": ["antigravity", "fly"], "fields": {}}',
    "1" * 100_000,
]


class Moments(NamedTuple):
    count: int
    mu: Any


Empty = namedtuple("Empty", ())


@dataclasses.dataclass
class Model:
    weights: Any
    name: str = "model"
    steps: list[int] = dataclasses.field(default_factory=list, init=False)

    @functools.cached_property
    def total(self) -> float:
        return float(np.sum(self.weights))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    inner: Any
    started: dataclasses.InitVar[bool] = False

    def __post_init__(self, started: bool) -> None:
        if not started:
            raise AssertionError("a class is restored without its own code")


def same(found: Any, expected: Any) -> bool:
    """Return whether two values have the same types and bits all the way down."""
    if type(found) is not type(expected):
        return False
    if isinstance(expected, np.ndarray):
        return (found.shape, found.dtype, found.tobytes()) == (expected.shape, expected.dtype, expected.tobytes())
    if isinstance(expected, np.generic):
        return (found.dtype, found.tobytes()) == (expected.dtype, expected.tobytes())
    if isinstance(expected, dict):
        return [*found] == [*expected] and all(same(found[key], expected[key]) for key in expected)
    if dataclasses.is_dataclass(expected):
        names = [field.name for field in dataclasses.fields(expected)]
        return all(same(getattr(found, name), getattr(expected, name)) for name in names)
    if isinstance(expected, (list, tuple)):
        return len(found) == len(expected) and all(map(same, found, expected))
    return repr(found) == repr(expected)  # also of nan and -0.0


def model(weights: Any, steps: list[int]) -> Model:
    made = Model(weights)
    made.steps = steps
    return made


numbers = st.one_of(st.booleans(), st.integers(-(2**200), 2**200), st.floats(), st.complex_numbers())
dtypes = st.one_of(
    arrays_of.boolean_dtypes(), arrays_of.integer_dtypes(), arrays_of.unsigned_integer_dtypes(),
    arrays_of.floating_dtypes(endianness="?"), arrays_of.complex_number_dtypes(), arrays_of.datetime64_dtypes(),
    arrays_of.unicode_string_dtypes(max_len=5),
)  # fmt: skip
some_arrays = arrays_of.arrays(dtypes, arrays_of.array_shapes(min_dims=0, min_side=0, max_side=3))
scalars = st.sampled_from([np.float32(1.5), np.float64(-0.0), np.int8(-3), np.bool_(True), np.complex64(1j)])
trees = st.recursive(
    st.one_of(st.none(), numbers, st.text(), some_arrays, scalars),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.one_of(st.text(), st.integers()), inner, max_size=3),
        st.dictionaries(st.text(), inner, max_size=2).map(OrderedDict),
        st.builds(Moments, st.integers(), inner),
        st.builds(model, inner, st.lists(st.integers(), max_size=2)),
        st.builds(lambda value: Frozen(inner=value, started=True), inner),
        st.just(Empty()),
    ),
    max_leaves=8,
)


@given(trees)
def test_a_state_comes_back_with_its_types_and_bits(state: Any) -> None:
    text, arrays = flatten(state)
    assert same(restore(text, arrays), state)


@settings(max_examples=25)
@given(trees)
def test_a_state_lives_in_a_checkpoint(tmp_path_factory: pytest.TempPathFactory, state: Any) -> None:
    output = tmp_path_factory.getbasetemp() / "states.h5"
    for path in checkpoints.paths_of(output):
        path.unlink(missing_ok=True)
    checkpoints.save(output, SavedState("mine", 7, *flatten(state)))
    (found,) = checkpoints.load_states(output, "mine")
    assert found.frames == 7
    assert same(restore(found.structure, found.leaves), state)


def test_leaves_are_copied() -> None:
    state = {"u": np.zeros(3), "scalar": np.zeros(())}
    text, arrays = flatten(state)
    for array in state.values():
        array[...] = 1
    assert same(restore(text, arrays), {"u": np.zeros(3), "scalar": np.zeros(())})


def test_arrays_keep_their_order_in_memory_and_views_only_their_own_values() -> None:
    _, (by_columns, every_second) = flatten([np.zeros((3, 4), order="F"), np.arange(10)[::2]])
    assert by_columns.flags.f_contiguous
    assert every_second.flags.c_contiguous
    assert every_second.base is None


@pytest.mark.parametrize(
    ("state", "place"),
    [
        ({"opt": [0, Moments(1, (x for x in ()))]}, r"state\['opt'\]\[1\]\.mu: .*found generator"),
        ((1, {3: object()}), r"state\[1\]\[3\]: .*found object"),
        ({"f": np.sum}, r"state\['f'\]: .*found"),
        ({"f": np.ndarray}, r"state\['f'\]: .*found type"),
        ([b"bytes"], r"state\[0\]: .*found bytes"),
        ([np.array([None])], r"state\[0\]: .*found an array of object"),
        ([np.zeros(2, [("a", "f4")])], r"state\[0\]: .*found an array of \[\('a'"),
        ([np.ma.masked_array([1, 2], [True, False])], r"state\[0\]: .*found numpy\.ma"),
        ({"a": {1.5: 0}}, r"state\['a'\]: expected texts or whole numbers as keys, found 1\.5"),
        ([10**5000], "state: .*digits"),
        ([0.0] * 10**6, "state: expected at most .* characters"),
        ([np.zeros(0)] * (LEAVES + 1), "state: expected at most .* arrays"),
    ],
)
def test_what_cannot_be_kept_is_named_with_its_place(state: Any, place: str) -> None:
    with pytest.raises(UsageError, match=f"^{place}") as caught:
        flatten(state)
    assert "\n" not in str(caught.value)


def test_a_tree_that_holds_itself_is_refused() -> None:
    state: list[Any] = []
    state.append(state)
    with pytest.raises(UsageError, match=f"at most {DEPTH} containers"):
        flatten(state)


def test_fields_without_a_value_and_values_without_a_field_are_refused() -> None:
    state = Model(np.ones(2))
    assert state.total == 2  # makes an attribute, which can be made again
    restored = restore(*flatten(state))
    assert same(restored, state)
    assert restored.total == 2
    state.other = 5
    with pytest.raises(UsageError, match=r"state\.other: expected fields only"):
        flatten(state)
    del state.other, state.steps
    with pytest.raises(UsageError, match=r"state\.steps: expected a value"):
        flatten(state)


def test_a_class_in_a_function_cannot_be_found_again() -> None:
    class Here(NamedTuple):
        x: int

    with pytest.raises(UsageError, match=r"state\[0\]: the class .*Here cannot be found by its name; define it in"):
        flatten([Here(1)])


@pytest.mark.parametrize("module", ["theirs", "calendar"])
def test_a_class_is_looked_up_and_never_imported(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = types.ModuleType(module)
    exec("from typing import NamedTuple\nclass State(NamedTuple):\n    u: int\n    v: int", vars(theirs))
    monkeypatch.setitem(sys.modules, module, theirs)
    text, arrays = flatten([theirs.State(1, 2)])
    assert same(restore(text, arrays), [theirs.State(1, 2)])
    full = rf"state\[0\] is a '{module}\.State'"
    exec("class State(NamedTuple):\n    u: int\n    w: int", vars(theirs))
    with pytest.raises(DataError, match=rf"{full} with the fields \['u', 'v'\], but the class has \['u', 'w'\] now"):
        restore(text, arrays)
    exec("class State(tuple):\n    pass", vars(theirs))
    with pytest.raises(DataError, match=f"{full}, which is no NamedTuple or dataclass"):
        restore(text, arrays)
    monkeypatch.delitem(sys.modules, module)
    with pytest.raises(DataError, match=f"{full}, which is not imported; import the class before"):
        restore(text, arrays)
    assert module not in sys.modules


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_structure_is_an_error_of_data(text: str) -> None:
    before = set(sys.modules)
    with pytest.raises(DataError) as caught:
        restore(text, [np.zeros(2, np.uint16), np.zeros(2)])
    assert len(str(caught.value).splitlines()) == 1
    assert not {name for name in set(sys.modules) - before if not name.startswith("ml_dtypes")}


words = st.sampled_from(["tuple", "dict", "OrderedDict", "complex", "class", "fields", "array", "dtype", "scalar"])
classes = st.sampled_from([[__name__, name] for name in ("Moments", "Model", "Frozen", "Empty", "Tensor", "__name__")])
nodes = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.text(max_size=3), st.sampled_from(["bfloat16", "int4"]), classes
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(words, inner, max_size=3),
        st.fixed_dictionaries({"class": classes, "fields": st.dictionaries(st.sampled_from(["count", "mu"]), inner)}),
        st.fixed_dictionaries({"array": st.dictionaries(words, inner, max_size=2)}),
    ),
)


@given(nodes)
def test_whatever_a_structure_says_is_a_state_or_an_error_of_data(node: Any) -> None:
    text, found = json.dumps(node), False
    for count in range(3):
        with suppress(DataError):
            restore(text, [np.zeros(2, np.uint16) for _ in range(count)])
            assert not found  # no other number of arrays fits
            found = True


def test_each_array_is_used_once() -> None:
    array = np.zeros(2)
    leaf = {"array": {}}
    assert len(restore(json.dumps([leaf, leaf]), [array, array])) == 2
    for count in (1, 3):
        with pytest.raises(DataError, match="damaged"):
            restore(json.dumps([leaf, leaf]), [array] * count)


def test_checkpoints_of_states_and_runs_share_files_and_are_told_apart(tmp_path: Path) -> None:
    output, u = tmp_path / "run.h5", np.ones((3, 4))
    newest, previous = checkpoints.paths_of(output)
    checkpoints.save(output, Checkpoint("mine", 3, u, u, "", 5))
    checkpoints.save(output, SavedState("mine", 5, *flatten({"u": u})))
    assert [path.exists() and checkpoints.is_checkpoint(path) for path in (newest, previous)] == [True, True]
    assert [found.frames for found in checkpoints.load(output)] == [3]
    assert [found.frames for found in checkpoints.load_states(output, "mine")] == [5]
    assert checkpoints.load_states(output, "another") == []
    checkpoints.discard(output, 4)
    assert [path.exists() for path in (newest, previous)] == [False, True]


def test_the_state_before_a_damaged_one_is_loaded(tmp_path: Path) -> None:
    output = tmp_path / "run.h5"
    for frames in (1, 2):
        checkpoints.save(output, SavedState("mine", frames, *flatten({"u": np.full(100, frames)})))
    newest, previous = checkpoints.paths_of(output)
    for path, left in ((newest, [1]), (previous, None)):
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw)
        if left is None:
            with pytest.raises(DataError, match=r"is damaged.*is damaged"):
                checkpoints.load_states(output, "mine")
        else:
            assert [found.frames for found in checkpoints.load_states(output, "mine")] == left


def test_a_checkpoint_that_unfolds_is_damaged(tmp_path: Path) -> None:
    output = tmp_path / "run.h5"
    path, _ = checkpoints.paths_of(output)
    values = {"output_id": "mine", "frames": 1, "structure": '{"array": {}}', "leaf_0": np.zeros(10**6)}
    np.savez_compressed(path, **values)
    with pytest.raises(DataError, match="not compressed"):
        checkpoints.load_states(output, "mine")
    np.savez(path, **{**values, "leaf_0": np.array([{}], object)})
    with pytest.raises(DataError, match="is damaged"):
        checkpoints.load_states(output, "mine")


def test_arrays_of_unknown_libraries_come_back_as_numpy() -> None:
    class Exported:
        def __init__(self, array: np.ndarray) -> None:
            self.array = array

        def __dlpack__(self, **options: Any) -> Any:
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self) -> Any:
            return self.array.__dlpack_device__()

    array = np.arange(4.0)
    text, arrays = flatten([Exported(array)])
    array[:] = 0
    assert same(restore(text, arrays), [np.arange(4.0)])


def test_dtypes_of_ml_dtypes_keep_their_bits() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    every = {
        name: np.arange(256, dtype=np.uint8).view(getattr(ml_dtypes, name))
        for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3b11fnuz")
    }
    state = {**every, "scalar": ml_dtypes.bfloat16(1.5), "empty": every["bfloat16"][:0], "zero": every["bfloat16"][0]}
    text, arrays = flatten(state)
    assert {array.dtype.kind for array in arrays} == {"u"}
    assert same(restore(text, arrays), state)


def test_a_dtype_that_is_missing_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(DataError, match=r"state\['x'\] has the dtype 'bfloat16', which needs .*ml_dtypes.*install"):
        restore('{"dict": [["x", {"array": {"dtype": "bfloat16"}}]]}', [np.zeros(2, np.uint16)])


class Tensor:
    """What stands in for arrays of PyTorch and CuPy: values on a device that NumPy cannot read."""

    def __init__(self, values: np.ndarray, device: str = "cpu", dtype: str = "") -> None:
        self.values, self.device, self.requires_grad = values, device, False
        self.dtype, self.itemsize = f"torch.{dtype or values.dtype.name}", values.itemsize

    def detach(self) -> "Tensor":
        return self

    def view(self, dtype: str) -> "Tensor":
        return Tensor(self.values, self.device, str(dtype).removeprefix("torch."))

    def numpy(self, *, force: bool) -> np.ndarray:
        assert force
        assert hasattr(np, self.dtype.removeprefix("torch."))
        return self.values

    def get(self) -> np.ndarray:
        return self.values.copy()

    def to(self, device: str) -> "Tensor":
        if device not in ("cpu", "cuda:0"):
            raise RuntimeError(f"no {device}\nand more lines")
        return Tensor(self.values, device, self.dtype.removeprefix("torch."))


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> Any:
    names = {name: f"torch.{name}" for name in ("uint8", "uint16", "bfloat16")}
    stand_in: Any = types.ModuleType("torch")
    vars(stand_in).update(Tensor=Tensor, from_numpy=Tensor, **names)
    monkeypatch.setitem(sys.modules, "torch", stand_in)
    return stand_in


@pytest.mark.parametrize("device", ["cpu", "cuda:0", "cuda:7"])
def test_a_tensor_comes_back_on_its_device_or_on_the_cpu(device: str, torch: Any) -> None:
    bits = np.arange(6, dtype=np.uint16)
    text, arrays = flatten([Tensor(np.arange(3.0), device), Tensor(bits.copy(), device, "bfloat16")])
    with capture_logs() as events:
        plain, brain = restore(text, arrays)
    assert (type(plain), plain.dtype, plain.values.tolist()) == (Tensor, "torch.float64", [0, 1, 2])
    assert (brain.dtype, brain.values.tolist()) == ("torch.bfloat16", bits.tolist())
    if device == "cuda:7":
        assert plain.device == brain.device == "cpu"
        assert events[0]["event"] == "state[0] is now on the CPU, because PyTorch cannot use 'cuda:7' (no cuda:7)"
    else:
        assert plain.device == brain.device == device
        assert events == []


def test_a_tensor_without_its_library_comes_back_as_numpy(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    text, arrays = flatten([Tensor(np.arange(3.0))])
    monkeypatch.setitem(sys.modules, "torch", None)
    with capture_logs() as events:
        assert same(restore(text, arrays), [np.arange(3.0)])
    assert "state[0] is now an array of NumPy, because torch cannot be imported" in events[0]["event"]


@pytest.mark.parametrize("has_gpu", [True, False])
def test_an_array_of_cupy_comes_back_on_a_gpu_or_as_numpy(has_gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class CUDARuntimeError(RuntimeError):
        pass

    def asarray(values: np.ndarray) -> Tensor:
        if not has_gpu:
            raise CUDARuntimeError("no device")
        return Tensor(values, "cuda:0")

    runtime = types.SimpleNamespace(CUDARuntimeError=CUDARuntimeError)
    stand_in: Any = types.ModuleType("cupy")
    vars(stand_in).update(ndarray=Tensor, asarray=asarray, cuda=types.SimpleNamespace(runtime=runtime))
    monkeypatch.setitem(sys.modules, "cupy", stand_in)
    text, arrays = flatten([Tensor(np.arange(3.0), "cuda:0")])
    with capture_logs() as events:
        (found,) = restore(text, arrays)
    if has_gpu:
        assert (type(found), found.values.tolist(), events) == (Tensor, [0, 1, 2], [])
    else:
        assert same(found, np.arange(3.0))
        assert "because CuPy cannot use a GPU (no device)" in events[0]["event"]


def jax_state(jax: Any) -> dict[str, Any]:
    jnp = jax.numpy
    return {
        "plain": jnp.arange(6.0).reshape(2, 3),
        "weak": jnp.asarray(1.5),
        "weak array": jnp.full((2, 3), 2),
        "empty": jnp.zeros((0, 3), jnp.int8),
        "brain": jnp.arange(5, dtype=jnp.bfloat16),
        "float8": jnp.arange(5, dtype=jnp.float8_e4m3fn),
        "key": jax.random.key(7),
        "keys": jax.random.split(jax.random.key(7, impl="rbg"), 3),
    }


def test_arrays_and_keys_of_jax_come_back() -> None:
    jax = pytest.importorskip("jax")
    state = jax_state(jax)
    found = restore(*flatten(state))
    assert jax.tree.structure(found) == jax.tree.structure(state)
    for name, mine in found.items():
        theirs = state[name]
        assert isinstance(mine, jax.Array)
        assert mine.aval == theirs.aval  # shape, dtype and weakness
        if "key" in name:
            assert jax.random.key_impl(mine) == jax.random.key_impl(theirs)
            mine, theirs = jax.random.key_data(mine), jax.random.key_data(theirs)
        assert np.asarray(mine).tobytes() == np.asarray(theirs).tobytes()


def test_a_jitted_step_is_not_compiled_again_for_a_restored_state() -> None:
    jax = pytest.importorskip("jax")
    compiled = []

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: Any) -> Any:
        compiled.append(True)
        return jax.tree.map(lambda leaf: leaf + 1, state)

    state = Moments(3, {"a": jax.numpy.asarray(1.0), "b": jax.numpy.ones(4, "bfloat16")})
    text, arrays = flatten(state)
    first = step(state)
    with pytest.raises(UsageError, match=r"state\.mu\['a'\]: the array cannot be copied .*deleted"):
        flatten(state)
    second = step(restore(text, arrays))
    assert len(compiled) == 1
    assert str(first) == str(second)


def test_a_traced_array_is_refused() -> None:
    jax = pytest.importorskip("jax")

    @jax.jit
    def step(state: Any) -> Any:
        flatten([state])
        return state

    with pytest.raises(UsageError, match=r"^state\[0\]: the array cannot be copied .*traced"):
        step(jax.numpy.ones(3))


def test_float64_of_jax_needs_a_jax_that_has_float64() -> None:
    jax = pytest.importorskip("jax")
    with jax.experimental.enable_x64() if not hasattr(jax, "enable_x64") else jax.enable_x64(True):
        text, arrays = flatten({"u": jax.numpy.ones(3, "float64")})
        assert restore(text, arrays)["u"].dtype == "float64"
    with pytest.raises(DataError, match=r"state\['u'\] is float64, but JAX makes float32 of it; set jax_enable_x64"):
        restore(text, arrays)


def test_a_hostile_key_of_jax_is_an_error_of_data() -> None:
    pytest.importorskip("jax")
    for how in ({"key": "none"}, {"key": "threefry2x32"}, {"key": 5}, {"weak": True, "dtype": "bfloat16"}):
        with pytest.raises(DataError, match="damaged"):
            restore(json.dumps({"array": {"library": "jax", **how}}), [np.array(["text"])])


@pytest.mark.parametrize("library", ["flax.struct", "equinox"])
def test_modules_of_libraries_of_jax_come_back(library: str) -> None:
    jax, module = pytest.importorskip("jax"), pytest.importorskip(library)
    state = module.nn.Linear(2, 3, key=jax.random.key(0)) if library == "equinox" else FlaxState(jax.numpy.ones(3), 5)
    found = restore(*flatten(state))
    assert jax.tree.structure(found) == jax.tree.structure(state)
    assert jax.tree.all(jax.tree.map(lambda mine, theirs: (mine == theirs).all(), found, state))


with suppress(ImportError):
    from flax import struct

    @struct.dataclass
    class FlaxState:
        mu: Any
        steps: int = struct.field(pytree_node=False)


TENSORS: dict[str, Callable[[Any], Any]] = {
    "plain": lambda torch: torch.arange(6.0).reshape(2, 3),
    "transposed": lambda torch: torch.arange(6, dtype=torch.bfloat16).reshape(2, 3).T,
    "scalar": lambda torch: torch.tensor(1.5, dtype=torch.float8_e5m2),
    "conjugate": lambda torch: torch.tensor([1j, 2.0]).conj(),
    "gradient": lambda torch: torch.ones(3, requires_grad=True),
    "empty": lambda torch: torch.zeros((0, 2), dtype=torch.bool),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_of_pytorch_come_back(name: str) -> None:
    torch = pytest.importorskip("torch")
    tensor = TENSORS[name](torch)
    (found,) = restore(*flatten([tensor]))
    assert (found.dtype, found.shape, found.requires_grad) == (tensor.dtype, tensor.shape, tensor.requires_grad)
    assert torch.equal(found, tensor)


def test_an_optimizer_of_pytorch_goes_on_with_the_same_bits() -> None:
    torch = pytest.importorskip("torch")

    def made() -> tuple[Any, Any]:
        net = torch.nn.Linear(3, 2)
        return net, torch.optim.Adam(net.parameters())

    def train(net: Any, optimizer: Any) -> None:
        for _ in range(3):
            optimizer.zero_grad()
            net(torch.ones(3)).square().sum().backward()
            optimizer.step()

    first, second = made(), made()
    train(*first)
    text, arrays = flatten([part.state_dict() for part in first])
    train(*first)  # in place: the copies stay
    for part, state in zip(second, restore(text, arrays), strict=True):
        part.load_state_dict(state)
    train(*second)
    assert all(map(torch.equal, first[0].parameters(), second[0].parameters()))


def test_a_sparse_tensor_is_refused() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(UsageError, match=r"^state\[0\]: the array cannot be copied"):
        flatten([torch.ones(2).to_sparse()])


@pytest.mark.gpu
def test_arrays_of_cupy_come_back() -> None:
    cupy = pytest.importorskip("cupy")
    (found,) = restore(*flatten([cupy.arange(5, dtype="float16")]))
    assert isinstance(found, cupy.ndarray)
    assert found.dtype == "float16"
    assert found.get().tolist() == [0, 1, 2, 3, 4]
