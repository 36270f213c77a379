"""The structures of a configuration: its keys with their types and ranges. ``config/default.toml`` has the defaults."""

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from gsio.config.tables import AUTO, BACKENDS, CODECS
from gsio.config.units import one_of, parse_devices, shortened
from gsio.errors import DataError, UsageError
from gsio.inputs import parse_toml

LARGEST = 2**31 - 1
Positive = Annotated[int, Meta(ge=1, le=LARGEST)]
Natural = Annotated[int, Meta(ge=0, le=LARGEST)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
if TYPE_CHECKING:
    BackendName = str
else:
    BackendName = Literal[(AUTO, *BACKENDS)]


class Map(Struct, frozen=True, forbid_unknown_fields=True):
    """A parameter that varies over the grid: start + (stop − start) s.

    With `along`, s rises from 0 in the first row (y) or column (x) to 1 in the last. With `path`, a file holds s.
    """

    along: Literal["", "x", "y"] = ""
    path: str = ""
    start: Annotated[float, Meta(ge=-1e6, le=1e6)] = 0.0
    stop: Annotated[float, Meta(ge=-1e6, le=1e6)] = 1.0

    def __post_init__(self) -> None:
        if bool(self.along) == bool(self.path):
            raise ValueError("along or path")


Compression = Annotated[str, Meta(title="auto, or the name of a codec")]
Interval = Natural | str  # a number of frames, or a time such as 15m
# One number for the whole grid, one for each member of a batch, or a map.
Parameter = Fraction | Annotated[tuple[Fraction, ...], Meta(min_length=1)] | Map

Seed = Natural | Annotated[tuple[Natural, ...], Meta(min_length=1)]


class Grid(Struct, frozen=True, forbid_unknown_fields=True):
    """Size and edges of the grid; arrays are [rows, cols]."""

    rows: Positive
    cols: Positive
    boundary: Literal["periodic", "neumann", "zero"]


class Model(Struct, frozen=True, forbid_unknown_fields=True):
    """Parameters of the equations and of their discretisation."""

    feed: Parameter
    kill: Parameter
    diffusion_u: Annotated[float, Meta(ge=0, le=1e6)]
    diffusion_v: Annotated[float, Meta(ge=0, le=1e6)]
    dt: Annotated[float, Meta(gt=0, le=1e6)]
    stencil: Literal["oono-puri", "five-point", "patra-karttunen", "ones"]
    precision: Literal["float32", "float64"]

    @property
    def maps(self) -> bool:
        """Return whether feed or kill varies over the grid."""
        return isinstance(self.feed, Map) or isinstance(self.kill, Map)


class Initial(Struct, frozen=True, forbid_unknown_fields=True):
    """The initial state. Its kind decides which of the other keys are used."""

    kind: Literal["school", "square", "spots", "noise", "image", "file"]
    u: Fraction
    v: Fraction
    size: Positive
    count: Natural
    radius: Natural
    amplitude: Fraction
    seed: Seed
    path: str
    frame: Annotated[int, Meta(ge=-1)]


class Run(Struct, frozen=True, forbid_unknown_fields=True):
    """The length of the run, the devices and backend that compute it, and when it writes checkpoints."""

    frames: Positive
    steps_per_frame: Positive
    backend: BackendName
    device: Natural
    threads: Natural
    checkpoint_every: Interval = "15m"
    devices: Natural | str = ""
    max_walltime: str = ""

    def __post_init__(self) -> None:
        parse_devices("run.devices", self.devices)


class Output(Struct, frozen=True, forbid_unknown_fields=True):
    """The fields that are saved, and their encoding."""

    fields: Literal["v", "u", "u,v"]
    compression: Compression
    level: Annotated[int, Meta(ge=0, le=9)]
    store: Literal["computed", "float32", "float16", "uint16", "uint8"]
    keep_bits: Annotated[int, Meta(ge=0, le=52)]
    shard_frames: Natural
    threads: Natural
    memory: str
    pyramid: Annotated[int, Meta(ge=0, le=16)] = 0

    def __post_init__(self) -> None:
        if self.compression not in (allowed := (AUTO, *CODECS)):
            found = shortened(self.compression)
            raise UsageError(f"output.compression: expected {one_of(allowed)}, got {found}")


class Config(Struct, frozen=True, forbid_unknown_fields=True):
    """The whole configuration of a run, resolved and checked."""

    grid: Grid
    model: Model
    initial: Initial
    run: Run
    output: Output

    @property
    def members(self) -> int:
        """Return the number of grids in the batch: the length of the lists in feed, kill and seed, or 1 without one."""
        values = self.model.feed, self.model.kill, self.initial.seed
        return max(len(value) if isinstance(value, tuple) else 1 for value in values)

    @property
    def stored(self) -> str:
        """Return the name of the type of the values in the file."""
        return self.model.precision if self.output.store == "computed" else self.output.store

    def to_toml(self) -> str:
        """Return the configuration as TOML that `load_config` reads back unchanged."""
        return msgspec.toml.encode(self).decode()

    @classmethod
    def from_toml(cls, text: str) -> "Config":
        """Return the configuration in `text`, which `to_toml` made. Raises DataError for any other text."""
        try:
            return msgspec.convert(parse_toml(text), cls)
        except (ValueError, msgspec.ValidationError, UsageError) as error:
            raise DataError(f"expected the configuration of a run, found another text ({error})") from None
