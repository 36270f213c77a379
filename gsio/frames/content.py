"""The content of an output: what its frames are, in the words that its readers need, whoever computed them.

The content of a run follows from its configuration, which the output records. Any other output records its content, as
TOML in the attribute `content`, and has no configuration.
"""

import math
import re
from collections.abc import Mapping, Sequence
from operator import index
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from gsio.config import AUTO, CODECS, Config
from gsio.config.schema import Natural, Positive
from gsio.config.units import one_of, shortened
from gsio.errors import DataError, UsageError
from gsio.frames.format import FrameFormat
from gsio.inputs import parse_toml

NAME = r"[A-Za-z][A-Za-z0-9_]{0,63}"  # of a field or an axis: a name in every format, and in an address of the page
MEMBER = "member"  # the axis of a batch
AXES = (MEMBER, "z", "y", "x")  # names of the last axes of a frame whose caller gives none
MOST_FIELDS, MOST_AXES, MOST_CELLS = 64, 4, 2**62
RESERVED = {"time", "step", "stats", "integrity", "pyramid", "matrix", "quantization_info", "VTKHDF", "status"}
Name = Annotated[str, Meta(pattern=rf"^{NAME}\Z")]
Text = Annotated[str, Meta(max_length=1000, pattern=r"^[^\x00-\x1f\x7f]*\Z")]
Dtype = Literal[
    "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"
]


class Quantity(Struct, frozen=True, forbid_unknown_fields=True):
    """What the numbers of a field, or of a series along time, mean: a name in words, and units as in UDUNITS."""

    long_name: Text = ""
    units: Text = "1"


class Axis(Struct, frozen=True, forbid_unknown_fields=True):
    """An axis of a frame: `size` places at the coordinates first, first + spacing, first + 2 spacing and so on."""

    name: Name
    size: Positive
    long_name: Text = ""
    units: Text = "1"
    first: float = 0.0
    spacing: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.first) and math.isfinite(self.spacing) and self.spacing):
            raise ValueError(f"axis {self.name}: expected finite coordinates that differ")

    @property
    def values(self) -> NDArray[np.float64]:
        """The coordinates, [place]."""
        return self.first + self.spacing * np.arange(self.size, dtype=np.float64)

    def part(self, kept: range) -> "Axis":
        """Return the axis of the places that are `kept`; the members of a batch are counted anew."""
        if self.name == MEMBER:
            return replace(self, size=len(kept))
        return replace(self, size=len(kept), first=self.first + self.spacing * kept.start,
                       spacing=self.spacing * kept.step)  # fmt: skip


class Content(Struct, frozen=True, forbid_unknown_fields=True):
    """What the frames of an output are, and how they are stored.

    Attributes
    ----------
    fields
        The saved fields by name, in the order of their checksums. Viewers show the last one first.
    axes
        The axes of a frame, one to four, the slowest first.
    precision, store
        The names of the dtypes in which values are computed, and stored. Values of "float32" or "float64" can be
        stored as "uint8" or "uint16", which stand for 0 to 1.
    keep_bits, compression, level, shard_frames, pyramid
        As in the section `output` of a configuration.
    time, step
        What the series along time mean, which have the model time and the number of steps behind each frame.
    interval
        Model time between two frames; 0: unknown.
    """

    fields: Annotated[dict[Name, Quantity], Meta(min_length=1, max_length=MOST_FIELDS)]
    axes: Annotated[tuple[Axis, ...], Meta(min_length=1, max_length=MOST_AXES)]
    precision: Dtype
    store: Dtype
    keep_bits: Annotated[int, Meta(ge=0, le=52)] = 0
    compression: str = AUTO
    level: Annotated[int, Meta(ge=0, le=9)] = 1
    shard_frames: Natural = 0
    pyramid: Annotated[int, Meta(ge=0, le=16)] = 0
    time: Quantity = Quantity("time")
    step: Quantity = Quantity("number of the step")
    interval: float = 0.0

    def __post_init__(self) -> None:
        names = [*self.fields, *(axis.name for axis in self.axes)]
        if len({*names, *RESERVED}) < len(names) + len(RESERVED):
            wrong = next(name for name in names if name in RESERVED or names.count(name) > 1)
            raise ValueError(
                f"expected names of fields and axes that differ, and none of {', '.join(sorted(RESERVED))}, "
                f"found {wrong}{'' if wrong in RESERVED else ' twice'}"
            )
        if math.prod(self.shape) > MOST_CELLS:
            raise ValueError(f"expected frames of at most {MOST_CELLS} cells, found {' × '.join(map(str, self.shape))}")
        kinds = self.precision, self.store
        packed = self.precision in ("float32", "float64") and self.store in ("uint8", "uint16")
        if not (packed or self.store == self.precision or all(kind.startswith("float") for kind in kinds)):
            raise ValueError(f"store: expected {self.precision} as computed, found {self.store}")
        if self.compression not in (AUTO, *CODECS):
            raise ValueError(f"compression: expected {one_of((AUTO, *CODECS))}, found {shortened(self.compression)}")
        if not 0 <= self.interval < math.inf:
            raise ValueError("interval: expected a time of 0 or more")

    @classmethod
    def of(cls, config: Config) -> "Content":
        """Return the content of the output of a run."""
        grid, output, members = config.grid, config.output, config.members
        batch = [Axis(MEMBER, members, "member of the batch")] if members > 1 else []
        rows, cols = Axis("y", grid.rows, "row, in grid spacings"), Axis("x", grid.cols, "column, in grid spacings")
        return cls(
            fields={name: Quantity(f"concentration of {name.upper()}") for name in output.fields.split(",")},
            axes=(*batch, rows, cols),
            precision=config.model.precision,
            store=config.stored,  # type: ignore[arg-type]  # a name of the configuration's own list
            keep_bits=output.keep_bits,
            compression=output.compression,
            level=output.level,
            shard_frames=output.shard_frames,
            pyramid=output.pyramid,
            time=Quantity("model time"),
            step=Quantity("time steps since the initial state"),
            interval=config.run.steps_per_frame * config.model.dt,
        )

    @classmethod
    def from_toml(cls, text: str) -> "Content":
        """Return the content in `text`, which `to_toml` made. Raises DataError for any other text."""
        try:
            return msgspec.convert(parse_toml(text), cls)
        except (ValueError, msgspec.ValidationError) as error:
            raise DataError(f"expected the content of an output, found another text ({error})") from None

    def to_toml(self) -> str:
        """Return the content as TOML that `from_toml` reads back unchanged."""
        return msgspec.toml.encode(self).decode()

    def checked(self) -> "Content":
        """Return the same content; raise UsageError if a name, a number or a text is not as it may be."""
        try:
            return msgspec.convert(msgspec.to_builtins(self), Content)
        except msgspec.ValidationError as error:
            wrong, _, where = str(error).partition(" - at `$.")
            raise UsageError(f"{where.rstrip('`')}: {wrong[0].lower()}{wrong[1:]}" if where else wrong) from None

    @property
    def shape(self) -> tuple[int, ...]:
        """Cells of a frame along each axis."""
        return tuple(axis.size for axis in self.axes)

    @property
    def volume(self) -> tuple[Axis, Axis, Axis]:
        """The members, rows and columns of a frame as pictures show it.

        The axes before the last two are one axis of members, and a frame of one axis has one row.
        """
        *before, rows, cols = self.axes if len(self.axes) > 1 else (Axis("row", 1), *self.axes)
        members = before[0] if len(before) == 1 else Axis(MEMBER, math.prod(axis.size for axis in before))
        return members, rows, cols

    def frame(self, *, shuffle: bool = False) -> FrameFormat:
        """Return the format of a frame; `shuffle`: the codec gets byte planes."""
        store = np.dtype(self.store).newbyteorder("<")
        return FrameFormat(self.shape, tuple(self.fields), np.dtype(self.precision), store, self.keep_bits, shuffle)


def content_of(attributes: Mapping[str, Any]) -> Content:
    """Return the content of an output with these attributes; raise DataError if they tell none."""
    for name, read in (("config", lambda text: Content.of(Config.from_toml(text))), ("content", Content.from_toml)):
        if isinstance(text := attributes.get(name), str):
            return read(text)
    raise DataError("expected the attribute 'config' or 'content', a text, found none")


def quantity_of(name: str, words: Any) -> Quantity:
    """Return a quantity from its "long_name", by default its name, and "units"; raise UsageError for other words."""
    known = isinstance(words, Mapping) and words.keys() <= {"long_name", "units"}
    if not known or not all(isinstance(word, str) for word in words.values()):
        raise UsageError(f"{name}: expected texts for 'long_name' and 'units', got {shortened(words)}")
    return Quantity(**{"long_name": name, **words})


def quantities_of(fields: str | Sequence[str] | Mapping[str, Mapping[str, Any]]) -> dict[str, Quantity]:
    """Return fields by name from "v", "u,v", a sequence of names, or a mapping to their "long_name" and "units"."""
    names = fields.split(",") if isinstance(fields, str) else fields
    if not isinstance(names, (Sequence, Mapping)) or not names or len(set(names)) < len(names):
        raise UsageError(f"fields: expected one or more names that differ, got {shortened(fields)}")
    words = fields if isinstance(fields, Mapping) else {}
    return {_named("fields", name): quantity_of(name, words.get(name, {})) for name in names}


def axes_of(shape: Sequence[int], coords: Mapping[str, Any] | None) -> tuple[Axis, ...]:
    """Return the axes of a frame, with the coordinates of the caller if there are any."""
    try:
        sizes = [index(size) for size in shape]
    except TypeError:
        sizes = [0]
    if min(sizes, default=0) < 1 or len(sizes) > len(AXES):
        raise UsageError(f"shape: expected one to four numbers of cells, got {shortened(shape)}")
    if coords is None:
        return tuple(Axis(name, size, name) for name, size in zip(AXES[-len(sizes) :], sizes, strict=True))
    if not isinstance(coords, Mapping) or len(coords) != len(sizes):
        raise UsageError(f"coords: expected {len(sizes)} axes by name, as `shape` has, got {shortened(coords)}")
    return tuple(_axis(name, size, given) for (name, given), size in zip(coords.items(), sizes, strict=True))


def _axis(name: str, size: int, given: Any) -> Axis:
    described = isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], Mapping)
    values, words = given if described else (given, {})
    try:
        places = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise UsageError(f"coords: expected numbers along {name}, got {shortened(values)}") from None
    if places.shape != (size,):
        raise UsageError(f"coords: expected {size} numbers along {name}, got the shape {places.shape}")
    spacing = float(places[-1] - places[0]) / (size - 1) if size > 1 else 1.0
    even = places[0] + spacing * np.arange(size)
    if not spacing or not math.isfinite(spacing) or not np.allclose(places, even, rtol=0, atol=1e-6 * abs(spacing)):
        raise UsageError(f"coords: expected evenly spaced numbers along {name}, got others; leave them out")
    quantity = quantity_of(name, words)
    return Axis(_named("coords", name), size, quantity.long_name, quantity.units, float(places[0]), spacing)


def _named(what: str, name: Any) -> str:
    """Return the name of a field or axis; raise UsageError if a file or an address cannot have it."""
    if not isinstance(name, str) or not re.fullmatch(NAME, name):
        raise UsageError(
            f"{what}: expected names of up to 64 letters, digits and _, with a letter first, got {shortened(name)}"
        )
    return name
