"""States of a loop: any tree of containers and arrays as a text and host arrays, and the tree again.

The text is JSON. It has numbers, texts, None and lists as they are, and an object for everything else. The arrays
stand apart, in the order in which the text names them. To restore a state executes nothing of the file: no class is
imported, and neither ``__init__`` nor ``__post_init__`` is called.
"""

import dataclasses
import json
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gsio.errors import DataError, UsageError
from gsio.inputs import parse_json
from gsio.log import log

# A state that is larger is refused when it is saved, and a file that holds one when it is read.
DEPTH = 100  # containers in each other
LEAVES = 1 << 15  # arrays; the directory of an .npz has to stay below the limit of `gsio.inputs`
TEXT_NBYTES = 4 << 20
KINDS = "biufcmMSU"  # of dtypes; others have no bits that an .npz can hold


def flatten(state: Any) -> tuple[str, list[NDArray[Any]]]:
    """Return the structure of a state as JSON, and a copy of each of its arrays in host memory.

    Containers are dicts with texts or whole numbers as keys, lists, tuples, NamedTuples, dataclasses and None. Leaves
    are numbers, texts, and arrays of NumPy, JAX, PyTorch, CuPy or anything else with ``__array__`` or ``__dlpack__``.
    Raises UsageError, which names the place in the tree, if the state has something else.
    """
    arrays: list[NDArray[Any]] = []
    try:
        text = json.dumps(_node(state, "state", arrays, DEPTH))
    except ValueError as error:  # a number of thousands of digits
        raise UsageError(f"state: {error}") from None
    if len(arrays) > LEAVES or len(text) > TEXT_NBYTES:
        raise UsageError(
            f"state: expected at most {LEAVES} arrays and {TEXT_NBYTES} characters of structure, found {len(arrays)} "
            f"and {len(text)}; join small arrays"
        )
    return text, arrays


def restore(text: str, arrays: Iterable[NDArray[Any]]) -> Any:
    """Return the state that `flatten` made `text` and `arrays` of; the arrays belong to the state from now on.

    Each array is one of its library again, on the default device, or on its own one for PyTorch. Without the library
    it is a NumPy array, and a warning says so. Raises DataError if the text is damaged, or names a class that is not
    imported or has other fields now.
    """
    rest = iter(arrays)
    try:
        if len(text) > TEXT_NBYTES:
            raise ValueError(f"expected at most {TEXT_NBYTES} characters, found {len(text)}")
        state = _value(parse_json(text.encode()), "state", rest, DEPTH)
        if next(rest, None) is not None:
            raise ValueError("it has more arrays than places for them")
    except DataError:
        raise
    except Exception as error:  # libraries tell in many ways that an array is none of theirs
        raise DataError(f"the state of the checkpoint is damaged ({_line(error)}); delete the checkpoint") from error
    return state


def _node(value: Any, path: str, arrays: list[NDArray[Any]], depth: int) -> Any:
    """Return what JSON has of a value, and append the copies of its arrays."""
    if depth == 0:
        raise UsageError(f"{path[:80]}…: expected at most {DEPTH} containers in each other, found more")

    def inner(part: str, child: Any) -> Any:
        return _node(child, path + part, arrays, depth - 1)

    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind is complex:
        return {"complex": [value.real, value.imag]}
    if kind in (list, tuple):
        children = [inner(f"[{i}]", child) for i, child in enumerate(value)]
        return children if kind is list else {"tuple": children}
    if kind in (dict, OrderedDict):
        if others := [key for key in value if type(key) not in (str, int)]:
            raise UsageError(f"{path}: expected texts or whole numbers as keys, found {others[0]!r}")
        return {kind.__name__: [[key, inner(f"[{key!r}]", child)] for key, child in value.items()]}
    if (names := _fields(kind)) is not None:
        _check_fields(value, path, names)
        fields = {name: inner(f".{name}", getattr(value, name)) for name in names}
        return {"class": [kind.__module__, kind.__qualname__], "fields": fields}
    array, how = _copy(value, path)
    arrays.append(array)
    return {"array": how}


def _check_fields(value: Any, path: str, names: tuple[str, ...]) -> None:
    """Raise UsageError unless a NamedTuple or dataclass is nothing but its fields, and can be found again."""
    kind = type(value)
    if _class(kind.__module__, kind.__qualname__) is not kind:
        raise UsageError(
            f"{path}: the class {_name(kind)} cannot be found by its name; define it in a module, outside of functions"
        )
    if missing := [name for name in names if not hasattr(value, name)]:
        raise UsageError(f"{path}.{missing[0]}: expected a value, found none; set the field before the state is saved")
    # What a class has under the same name, as a cached property, can be made again.
    if others := [name for name in getattr(value, "__dict__", ()) if name not in names and not hasattr(kind, name)]:
        raise UsageError(f"{path}.{others[0]}: expected fields only, found another attribute; declare it as a field")


def _value(node: Any, path: str, rest: Iterator[NDArray[Any]], depth: int) -> Any:
    """Return the value of which JSON has `node`; its arrays are the next of `rest`."""
    if depth == 0:
        raise ValueError(f"expected at most {DEPTH} containers in each other, found more")

    def inner(part: str, child: Any) -> Any:
        return _value(child, path + part, rest, depth - 1)

    match node:
        case None | bool() | int() | float() | str():
            return node
        case list(children):
            return [inner(f"[{i}]", child) for i, child in enumerate(children)]
        case {"tuple": list(children)}:
            return tuple([inner(f"[{i}]", child) for i, child in enumerate(children)])
        case {"dict": list(pairs)}:
            return {key: inner(f"[{key!r}]", child) for key, child in pairs}
        case {"OrderedDict": list(pairs)}:
            return OrderedDict([(key, inner(f"[{key!r}]", child)) for key, child in pairs])
        case {"complex": [real, imag]}:
            return complex(real, imag)
        case {"class": [str(module), str(name)], "fields": dict(fields)}:
            kind = _same_class(module, name, path, tuple(fields))
            return _made(kind, {name: inner(f".{name}", child) for name, child in fields.items()})
        case {"array": dict(how)}:
            return _array(next(rest), how, path)
    raise ValueError(f"{path}: expected a container or a leaf, found neither")


def _fields(kind: type) -> tuple[str, ...] | None:
    """Return the names of the fields of a NamedTuple or dataclass, or None for another class."""
    if issubclass(kind, tuple):
        return getattr(kind, "_fields", None)
    return tuple(field.name for field in dataclasses.fields(kind)) if dataclasses.is_dataclass(kind) else None


def _class(module: str, name: str) -> Any:
    """Return what an imported module has under a qualified name, or None; no code of the module runs."""
    found = sys.modules.get(module)
    for part in name.split("."):
        if found is not None:  # getattr would let a module import another one
            found = object.__getattribute__(found, "__dict__").get(part)
    return found


def _same_class(module: str, name: str, path: str, fields: tuple[str, ...]) -> type:
    kind, full = _class(module, name), ascii(f"{module}.{name}")
    if kind is None:
        raise DataError(f"{path} is a {full}, which is not imported; import the class before the checkpoint is read")
    if not isinstance(kind, type) or (names := _fields(kind)) is None:
        raise DataError(f"{path} is a {full}, which is no NamedTuple or dataclass now; put the class back")
    if set(names) != set(fields):
        raise DataError(
            f"{path} is a {full} with the fields {[*fields]!a}, but the class has {[*names]} now; put the old ones back"
        )
    return kind


def _made(kind: type, values: dict[str, Any]) -> Any:
    if issubclass(kind, tuple):
        return tuple.__new__(kind, [values[name] for name in _fields(kind) or ()])
    made = object.__new__(kind)
    for name, value in values.items():
        object.__setattr__(made, name, value)  # also where the class is frozen
    return made


def _copy(value: Any, path: str) -> tuple[NDArray[Any], dict[str, Any]]:
    """Return a copy of a leaf in host memory, and what is needed to make the leaf of the copy again."""
    library = next((name for name, row in LIBRARIES.items() if isinstance(value, _arrays_of(name, row))), None)
    try:
        if library is not None:
            array, how = LIBRARIES[library].copy(value)
            how["library"] = library
        else:
            array, how = _copy_other(value)
    except Exception as error:  # a tracer, a donated buffer, memory that no host can read
        raise UsageError(f"{path}: the array cannot be copied into host memory: {_line(error)}") from error
    if array is None:
        raise UsageError(
            f"{path}: expected an array, a number, a text or a container of these, found {_name(type(value))}; leave "
            "it out of the state"
        )
    if array.dtype.isbuiltin == 2:  # registered by ml_dtypes: its name says more than NumPy can save
        how["dtype"], array = array.dtype.name, array.view(f"u{array.dtype.itemsize}")
    if array.dtype.kind not in KINDS:
        raise UsageError(f"{path}: expected numbers or texts, found an array of {array.dtype}; leave it out")
    return array, how


def _array(array: NDArray[Any], how: dict[str, Any], path: str) -> Any:
    """Return the leaf of which `array` is the copy."""
    if (library := how.get("library")) in LIBRARIES:
        try:
            import_module(library)
        except Exception as error:
            log.warning(f"{path} is now an array of NumPy, because {library} cannot be imported ({_line(error)})")
        else:
            return LIBRARIES[library].restore(array, how, path)
    array = _typed(array, how, path)
    return array[()] if how.get("scalar") else array


def _typed(array: NDArray[Any], how: dict[str, Any], path: str) -> NDArray[Any]:
    """Return an array as one of the dtype that only its name could tell."""
    if (name := how.get("dtype")) is None:
        return array
    try:
        dtype = np.dtype(getattr(import_module("ml_dtypes"), name))
    except (ImportError, AttributeError) as error:
        raise DataError(
            f"{path} has the dtype {name!a}, which needs a newer ml_dtypes ({_line(error)}); install it"
        ) from None
    if dtype.isbuiltin != 2 or array.dtype != f"u{dtype.itemsize}":
        raise ValueError(f"{path}: expected the bits of {name}, found {array.dtype}")
    return array.view(dtype)


def _copy_other(value: Any) -> tuple[Any, dict[str, Any]]:
    if isinstance(value, np.generic):
        return np.array(value), {"scalar": True}
    is_foreign = not isinstance(value, (np.ndarray, type))  # a masked array, as others of NumPy's own, is more than one
    if type(value) in (np.ndarray, np.memmap) or (is_foreign and hasattr(value, "__array__")):
        return np.array(value), {}
    return (np.from_dlpack(value).copy() if is_foreign and hasattr(value, "__dlpack__") else None), {}


def _copy_jax(value: Any) -> tuple[NDArray[Any], dict[str, Any]]:
    import jax

    if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        return np.array(jax.random.key_data(value)), {"key": str(jax.random.key_impl(value))}
    return np.array(value), {"weak": True} if value.weak_type else {}


def _restore_jax(array: NDArray[Any], how: dict[str, Any], path: str) -> Any:
    import jax

    if "key" in how:
        return jax.random.wrap_key_data(jax.numpy.array(array), impl=how["key"])
    array = _typed(array, how, path)
    made = jax.numpy.array(array)
    if made.dtype != array.dtype:
        raise DataError(
            f"{path} is {array.dtype}, but JAX makes {made.dtype} of it; set jax_enable_x64 before it is read"
        )
    if "weak" in how:  # such an array, made of numbers of Python, takes the dtype of what it meets
        weak = jax.numpy.full(made.shape, {"i": 0, "c": 0j}.get(array.dtype.kind, 0.0)).at[...].set(made)
        made = weak if weak.dtype == made.dtype else made
    return made


def _copy_torch(value: Any) -> tuple[NDArray[Any], dict[str, Any]]:
    import torch

    how = {"device": str(value.device), **({"grad": True} if value.requires_grad else {})}
    name, value = str(value.dtype).removeprefix("torch."), value.detach()
    if not hasattr(np, name):
        how["dtype"], value = name, value.view(getattr(torch, f"uint{8 * value.itemsize}"))
    return np.array(value.numpy(force=True)), how


def _restore_torch(array: NDArray[Any], how: dict[str, Any], path: str) -> Any:
    import torch

    made = torch.from_numpy(array)
    if "dtype" in how:
        made = made.view(getattr(torch, how["dtype"]))
    try:
        made = made.to(how["device"])
    except Exception as error:
        log.warning(f"{path} is now on the CPU, because PyTorch cannot use {how['device']!a} ({_line(error)})")
    return made.requires_grad_() if "grad" in how else made


def _copy_cupy(value: Any) -> tuple[NDArray[Any], dict[str, Any]]:
    return value.get(), {}


def _restore_cupy(array: NDArray[Any], how: dict[str, Any], path: str) -> Any:
    import cupy

    array = _typed(array, how, path)
    try:
        return cupy.asarray(array)
    except cupy.cuda.runtime.CUDARuntimeError as error:
        log.warning(f"{path} is now an array of NumPy, because CuPy cannot use a GPU ({_line(error)})")
        return array


class Library(NamedTuple):
    """A library of arrays: the name of its class, and the functions that copy an array and restore it."""

    array: str
    copy: Callable[[Any], tuple[NDArray[Any], dict[str, Any]]]
    restore: Callable[[NDArray[Any], dict[str, Any], str], Any]


LIBRARIES = {
    "jax": Library("Array", _copy_jax, _restore_jax),
    "torch": Library("Tensor", _copy_torch, _restore_torch),
    "cupy": Library("ndarray", _copy_cupy, _restore_cupy),
}


def _arrays_of(name: str, library: Library) -> Any:
    """Return the class of a library's arrays; no value is of the library while nobody has imported it."""
    return getattr(sys.modules.get(name), library.array, ())


def _name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _line(error: Exception) -> str:
    """Return the first line of an error, or its class."""
    return next(iter(str(error).splitlines()), type(error).__name__)
