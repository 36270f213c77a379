"""The description of a sweep: a configuration with a table `[sweep]`, and the values of the keys that it varies."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import numpy as np
from msgspec import Meta, Struct

from gsio.config import Config, check_keys, default_values, load_config, read_tables, suggestion
from gsio.config.schema import Natural
from gsio.config.units import shortened
from gsio.errors import UsageError

MEMBER = "member"  # the axis of members whose keys vary together
MOST_MEMBERS = 1_000_000
# The other keys decide how large the arrays are, or what the machine does: all members have the same.
VARIABLE = ("model.", "initial.", "grid.boundary", "run.steps_per_frame")
RESERVED = {MEMBER, "time", "step", "interval", "y", "x", "u", "v", "status", "frames"}
FORMS = (
    "{ values = […] }, or { from = …, to = …, count = … } with spacing = 'linear' or 'log'; without a count, the "
    f"values are those of a Latin hypercube of 'sweep.samples' members; at most {MOST_MEMBERS} members"
)


class Spec(Struct, frozen=True, forbid_unknown_fields=True, rename={"start": "from", "stop": "to"}):
    """The values of one key: a list, a range, or, without a count, one side of a Latin hypercube."""

    values: tuple[Any, ...] | None = None
    start: float | None = None
    stop: float | None = None
    count: Annotated[int, Meta(ge=1, le=MOST_MEMBERS)] | None = None
    spacing: Literal["linear", "log"] = "linear"

    def __post_init__(self) -> None:
        ends = self.start, self.stop
        if self.values is not None:
            if self.values == () or ends != (None, None) or self.count is not None:
                raise ValueError("one or more values, or a range")
        elif None in ends or not all(math.isfinite(end) for end in ends if end is not None):
            raise ValueError("from and to")
        elif self.spacing == "log" and min(end for end in ends if end is not None) <= 0:
            raise ValueError("a range above 0 for the spacing 'log'")

    @property
    def sampled(self) -> bool:
        """Whether the values are one side of a Latin hypercube."""
        return self.values is None and self.count is None

    def at(self, places: Any) -> list[float]:
        """Return the values at `places` of a range, each from 0 to 1."""
        assert self.start is not None
        assert self.stop is not None
        if self.spacing == "log":
            return [float(value) for value in self.start * (self.stop / self.start) ** np.asarray(places)]
        return [float(value) for value in self.start + (self.stop - self.start) * np.asarray(places)]


class How(Struct, frozen=True, forbid_unknown_fields=True):
    """How the values of the keys become members, and how members become tasks."""

    combine: Literal["product", "zip"] = "product"
    samples: Annotated[int, Meta(ge=0, le=MOST_MEMBERS)] = 0
    seed: Natural = 0
    batch: Natural = 0


class Axis(Struct, frozen=True):
    """An axis of a sweep: along it, each of `keys` has these values."""

    name: str
    keys: dict[str, tuple[Any, ...]]

    @property
    def size(self) -> int:
        """The number of places along the axis."""
        return len(next(iter(self.keys.values())))


class Description(NamedTuple):
    """What a person asks for.

    Attributes
    ----------
    config
        The values that the members share.
    axes
        The axes along which members differ.
    batch
        The most members of a task; 0: the number is chosen.
    """

    config: Config
    axes: tuple[Axis, ...]
    batch: int


def load_sweep(
    path: Path | None = None, *, preset: str | None = None, overrides: Mapping[str, Any] | None = None
) -> Description:
    """Return the description in a TOML file; `preset` and `overrides` change what the members share, as in a run.

    Raises UsageError for a key or a value that is not allowed, in the words of `load_config`.
    """
    if path is None:
        raise UsageError("expected the TOML file of a sweep: a configuration with a table [sweep]; see docs/sweeps.md")
    layer = read_tables(path)
    table = layer.pop("sweep", None)
    if not isinstance(table, dict):
        raise UsageError(f"{path}: expected a table [sweep], which says what varies; a single run is 'gsio run {path}'")
    config = load_config(layer, preset=preset, overrides=overrides)
    how, specs = _parse(table)
    if config.members > 1:
        lists = "the lists of a sweep belong in its table [sweep]"
        raise UsageError(f"model.feed, model.kill, initial.seed: expected one value of each; {lists}")
    axes = _axes(how, {key: _values(key, spec, how, path) for key, spec in _ranged(how, specs).items()}, specs)
    if (members := math.prod(axis.size for axis in axes)) > MOST_MEMBERS:
        raise UsageError(f"sweep: expected at most {MOST_MEMBERS} members, got {members}; vary fewer keys at a time")
    return Description(config, axes, how.batch)


def _parse(table: dict[str, Any]) -> tuple[How, dict[str, Spec]]:
    """Return the table in types; raise UsageError for what it may not hold."""
    plain = {name: value for name, value in table.items() if not isinstance(value, dict)}
    for name in plain:
        if name not in (names := list(How.__struct_fields__)):
            raise UsageError(f"unknown key 'sweep.{name}'{suggestion(name, names)}")
    try:
        how = msgspec.convert(plain, How)
    except msgspec.ValidationError as error:
        problem, _, where = str(error).partition(" - at `$.")
        name = where.rstrip("`")
        raise UsageError(f"sweep.{name}: {problem[0].lower()}{problem[1:]}, got {shortened(plain[name])}") from None
    nested: dict[str, Any] = {}
    for section, values in table.items():
        if isinstance(values, dict):
            first, dot, rest = section.partition(".")  # a key in quotes, "model.feed"
            nested.setdefault(first, {}).update({rest: values} if dot else values)
    check_keys(nested)
    found = {f"{section}.{name}": spec for section, values in nested.items() for name, spec in values.items()}
    if not found:
        raise UsageError("sweep: expected one or more keys that vary, such as model.feed = { values = [0.03, 0.04] }")
    return how, {key: _spec(key, spec) for key, spec in found.items()}


def _spec(key: str, given: Any) -> Spec:
    if not key.startswith(VARIABLE):
        raise UsageError(f"sweep.{key}: expected a key of model or initial, grid.boundary or run.steps_per_frame; "
                         "all members of a sweep have the same other keys")  # fmt: skip
    names = [field.encode_name for field in msgspec.structs.fields(Spec)]
    for name in given if isinstance(given, dict) else ():
        if name not in names:
            raise UsageError(f"unknown key 'sweep.{key}.{name}'{suggestion(name, names)}")
    try:
        return msgspec.convert(given, Spec)
    except msgspec.ValidationError:
        raise UsageError(f"sweep.{key}: expected {FORMS}; got {shortened(given)}") from None


def _ranged(how: How, specs: dict[str, Spec]) -> dict[str, Spec]:
    """Return the values of each key, with the places of a Latin hypercube filled in."""
    sampled = [key for key, spec in specs.items() if spec.sampled]
    if bool(sampled) != bool(how.samples):
        found = f"which {sampled[0]} needs, for it has no count" if sampled else "and a key without a count"
        raise UsageError(f"sweep.samples: expected the number of members of a Latin hypercube, {found}")
    if not sampled:
        return specs
    try:
        from scipy.stats import qmc
    except ImportError:
        raise UsageError(
            "sweep.samples: a Latin hypercube needs SciPy; get it with pip install 'gsio[sweep]'"
        ) from None
    points = qmc.LatinHypercube(len(sampled), rng=np.random.default_rng(how.seed)).random(how.samples)
    sides = {key: Spec(values=tuple(specs[key].at(points[:, place]))) for place, key in enumerate(sampled)}
    return specs | sides


def _values(key: str, spec: Spec, how: How, path: Path) -> tuple[Any, ...]:
    """Return the values of a key; a path is relative to the file of the sweep."""
    values = spec.values
    if values is None:
        count = spec.count or 1
        values = tuple(spec.at(np.linspace(0, 1, count) if count > 1 else [0.0]))
    if isinstance(default_values().get(key), int):  # ranges are made of floats
        values = tuple(int(v) if isinstance(v, float) and v.is_integer() else v for v in values)
    if key == "initial.path":
        values = tuple(
            os.fspath(path.parent / value) if isinstance(value, str) and value else value for value in values
        )
    return values


def _axes(how: How, values: dict[str, tuple[Any, ...]], specs: dict[str, Spec]) -> tuple[Axis, ...]:
    """Return the axes: one for all keys that are zipped or sampled, and one for each other key."""
    together = {key: found for key, found in values.items() if how.combine == "zip" or specs[key].sampled}
    if len({len(found) for found in together.values()}) > 1:
        sizes = ", ".join(f"{len(found)} of {key}" for key, found in together.items())
        raise UsageError(f"sweep: expected equally many values of all keys that are zipped, got {sizes}")
    axes: dict[str, Axis] = {}
    for key, found in values.items():
        name, keys = (MEMBER, together) if key in together else (coordinate(key, values), {key: found})
        axes.setdefault(name, Axis(name, dict(keys)))
    return tuple(axes.values())


def coordinate(key: str, keys: Mapping[str, Any]) -> str:
    """Return the name of the coordinate of one of `keys`: the last part, if that is free, or else both parts."""
    section, name = key.split(".")
    taken = name in RESERVED or [other.split(".")[1] for other in keys].count(name) > 1
    return f"{section}_{name}" if taken else name
