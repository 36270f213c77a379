"""The typed configuration: defaults < preset < TOML file < GSIO_* variables < --set and short options.

The defaults are those of ``config/default.toml``, which names every key; the structures below add types and ranges.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct

from gsio.errors import DataError, UsageError, reason_of
from gsio.inputs import TOML_NBYTES, parse_toml, read_regular

LARGEST = 2**31 - 1
Positive = Annotated[int, Meta(ge=1, le=LARGEST)]
Natural = Annotated[int, Meta(ge=0, le=LARGEST)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Backend = Literal[
    "auto", "cupy", "numba", "numpy",
    "cupy-arrays", "jax", "jax-convolve", "jax-scan", "torch", "torch-compile", "cupynumeric",
]  # fmt: skip


class Map(Struct, frozen=True, forbid_unknown_fields=True):
    """A parameter that varies over the grid: start + (stop − start) s.

    s goes from 0 to 1 along an axis, from the first row or column to the last, or is what a file holds.
    """

    along: Literal["", "x", "y"] = ""
    path: str = ""
    start: Annotated[float, Meta(ge=-1e6, le=1e6)] = 0.0
    stop: Annotated[float, Meta(ge=-1e6, le=1e6)] = 1.0

    def __post_init__(self) -> None:
        if bool(self.along) == bool(self.path):
            raise ValueError("along or path")


Interval = Natural | str  # of frames, or of time
Compression = Annotated[str, Meta(title="auto, or a codec's name")]
CODECS = ["deflate", "lz4", "zstd", "none"]  # the names in the table of gsio.codec, which a test compares with these
# One number for the whole grid, one for each member of a batch, or a map.
Parameter = Fraction | Annotated[tuple[Fraction, ...], Meta(min_length=1)] | Map


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

    @property
    def members(self) -> int:
        """Return the number of grids that run side by side: the length of the lists among feed and kill, else 1."""
        return max(len(value) if isinstance(value, tuple) else 1 for value in (self.feed, self.kill))


class Initial(Struct, frozen=True, forbid_unknown_fields=True):
    """The initial state; which keys count depends on its kind."""

    kind: Literal["school", "square", "spots", "noise", "image", "file"]
    u: Fraction
    v: Fraction
    size: Positive
    count: Natural
    radius: Natural
    amplitude: Fraction
    seed: Natural
    path: str
    frame: Annotated[int, Meta(ge=-1)]


class Run(Struct, frozen=True, forbid_unknown_fields=True):
    """Length of the run, and what computes it."""

    frames: Positive
    steps_per_frame: Positive
    backend: Backend
    device: Natural
    threads: Natural
    checkpoint_every: Interval = "15m"
    max_walltime: str = ""


class Output(Struct, frozen=True, forbid_unknown_fields=True):
    """What is saved, and how it is encoded."""

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
        if self.compression not in (allowed := ("auto", *CODECS)):
            raise UsageError(f"output.compression: expected {_one_of(allowed)}, got {_short(self.compression)}")


class Config(Struct, frozen=True, forbid_unknown_fields=True):
    """The whole configuration of a run, resolved and checked."""

    grid: Grid
    model: Model
    initial: Initial
    run: Run
    output: Output

    @property
    def stored(self) -> str:
        """Return the type of the values in the file."""
        return self.model.precision if self.output.store == "computed" else self.output.store

    def to_toml(self) -> str:
        """Return the configuration as TOML that `load_config` reads back unchanged."""
        return msgspec.toml.encode(self).decode()

    @classmethod
    def from_toml(cls, text: str) -> "Config":
        """Return the configuration that `to_toml` made `text` of; raises DataError if it is another text."""
        try:
            return msgspec.convert(parse_toml(text), cls)
        except (ValueError, msgspec.ValidationError, UsageError) as error:
            raise DataError(f"expected the configuration of a run, found another text ({error})") from None


Layer = dict[str, Any]


def parse_bytes(key: str, text: str) -> int:
    """Return the bytes that `text`, the value of `key`, stands for: a number and a unit, MiB, GiB, MB or GB."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([MG])(i?)B\s*", text)
    if found is None:
        raise UsageError(f"{key}: expected a number and a unit, as in 512MiB or 2GB, got {_short(text)}")
    number, unit, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** {"M": 2, "G": 3}[unit])


def parse_interval(key: str, value: int | str) -> tuple[int, float]:
    """Return the frames and the seconds that `value`, of `key`, stands for: a whole number, or as in 90s, 15m or 2h."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", str(value))
    if found is None or ("." in found[1] and not found[2]):
        raise UsageError(f"{key}: expected a number of frames, or a time as in 90s, 15m or 2h, got {_short(value)}")
    number, unit = found.groups()
    return (0, float(number) * {"s": 1, "m": 60, "h": 3600}[unit]) if unit else (int(number), 0.0)


def parse_walltime(key: str, text: str) -> float:
    """Return the seconds of `text`, the value of `key`: hours, minutes and seconds, as in 1:30:00."""
    found = re.fullmatch(r"\s*(\d+):([0-5]?\d):([0-5]?\d)\s*", text)
    if found is None:
        raise UsageError(f"{key}: expected hours, minutes and seconds as in 1:30:00, got {_short(text)}")
    hours, minutes, seconds = map(int, found.groups())
    return float(3600 * hours + 60 * minutes + seconds)


def config_folder() -> Path:
    """Return the folder of the shipped configurations: inside the wheel, or beside the package in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "_config"
    return installed if installed.is_dir() else package.parent / "config"


def preset_names() -> list[str]:
    """Return the names `--preset` takes: the shipped configurations and presets."""
    folder = config_folder()
    return sorted(path.stem for path in [*folder.glob("*.toml"), *folder.glob("presets/*.toml")])


def describe_preset(name: str) -> str:
    """Return what a preset makes, in one line: the first of its file."""
    with _preset_path(name).open(encoding="utf-8") as file:
        return file.readline().removeprefix("#").strip()


def load_config(
    path: Path | None = None,
    *,
    preset: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Config:
    """Return the resolved configuration.

    Parameters
    ----------
    path
        A TOML file that changes some of the keys of ``config/default.toml``; paths in it are relative to its folder.
    preset
        The name of a shipped configuration, applied before `path`.
    overrides
        Values by dotted key (``{"model.feed": 0.03}``), applied last; scalars and arrays of NumPy and paths too.
    environ
        Where GSIO_* variables are looked for; the process environment if not given.

    Raises
    ------
    UsageError
        A file that cannot be read, or a key or value that is not allowed: the message names the key, the value found,
        what is allowed and the nearest known key.
    """
    layers = [_read(config_folder() / "default.toml")]
    if preset is not None:
        layers.append(_read(_preset_path(preset)))
    if path is not None:
        layers.append(_read(path))
    given = [_from_environment(os.environ if environ is None else environ)]
    given.append(_nested({key: _builtin(value) for key, value in (overrides or {}).items() if value is not None}))
    for layer in given:
        for table in _with_paths(layer):
            table["path"] = os.path.expanduser(table["path"])  # noqa: PTH111 - else as it is written
    layers += given
    merged: Layer = {}
    for layer in layers:
        _check_keys(layer)
        for section, values in layer.items():
            merged.setdefault(section, {}).update(values)
    try:
        config = msgspec.convert(merged, Config)
    except msgspec.ValidationError as error:
        raise UsageError(_explain(str(error), merged)) from None
    parse_interval("run.checkpoint_every", config.run.checkpoint_every)
    if config.run.max_walltime:
        parse_walltime("run.max_walltime", config.run.max_walltime)
    wants = config.initial.kind in ("image", "file")
    if bool(config.initial.path) != wants:
        found = f"'{config.initial.path}'" if config.initial.path else "none"
        what = "the name of a file" if wants else "no file, or initial.kind image or file,"
        raise UsageError(f"initial.path: expected {what} with initial.kind={config.initial.kind}, got {found}")
    lengths = {len(value) for value in (config.model.feed, config.model.kill) if isinstance(value, tuple)}
    if len(lengths) > 1:
        raise UsageError(
            "model.feed, model.kill: expected one value for each member of the batch in both lists, "
            f"got {len(config.model.feed)} and {len(config.model.kill)}"  # type: ignore[arg-type]
        )
    return config


def _builtin(value: Any) -> Any:
    """Return a value with what Python has for paths and for the scalars and arrays of NumPy."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {name: _builtin(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_builtin(part) for part in value]
    return value.tolist() if hasattr(value, "tolist") else value


def parse_assignment(text: str) -> tuple[str, Any]:
    """Split ``key=value``, reading the value as TOML where it is TOML and as a plain string where it is not."""
    key, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"expected KEY=VALUE, got '{text}'; for example model.feed=0.03")
    return key.strip(), toml_value(value.strip())


def toml_value(text: str) -> Any:
    """Return `text` read as a TOML value where it is one, else as it is."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"expected a value in UTF-8, got {text!a}") from None
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return parsed["value"] if len(parsed) == 1 else text


def _read(path: Path) -> Layer:
    """Return what a TOML file holds; paths in it are relative to its folder."""
    try:
        layer = parse_toml(read_regular(path, TOML_NBYTES))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {reason_of(error)}; expected a TOML file") from None
    except ValueError as error:  # not TOML, or not UTF-8
        raise UsageError(f"{path} is not valid TOML: {error}") from None
    for table in _with_paths(layer):
        table["path"] = str(path.parent / os.path.expanduser(table["path"]))  # noqa: PTH111 - without a home as it is
    return layer


def with_absolute_paths(config: Config) -> Config:
    """Return `config` with paths that do not depend on the working folder, as for a file in another folder."""
    layer = msgspec.to_builtins(config)
    for table in _with_paths(layer):
        table["path"] = os.path.abspath(table["path"])  # noqa: PTH100 - a name of a file, with links as they are
    return msgspec.convert(layer, Config)


def _with_paths(layer: Layer) -> Iterator[Layer]:
    """Yield the tables of a layer in which the value of "path" is the name of a file."""
    sections = [layer.get(section) for section in ("initial", "model")]
    initial, model = (section if isinstance(section, dict) else {} for section in sections)
    for table in (initial, model.get("feed"), model.get("kill")):
        if isinstance(table, dict) and isinstance(table.get("path"), str) and table["path"]:
            yield table


def _preset_path(name: str) -> Path:
    folder = config_folder()
    for path in (folder / f"{name}.toml", folder / "presets" / f"{name}.toml"):
        if name in preset_names() and path.is_file():
            return path
    raise UsageError(f"no preset is called '{name}'{_nearest(name, preset_names())}")


def _from_environment(environ: Mapping[str, str]) -> Layer:
    variables = {"GSIO_" + key.replace(".", "_").upper(): key for key in _known_keys()}
    found: Layer = {}
    for name, text in environ.items():
        if not name.startswith("GSIO_"):
            continue
        if name not in variables:
            raise UsageError(f"unknown environment variable {name}{_nearest(name, list(variables))}")
        found[variables[name]] = toml_value(text)
    return _nested(found)


def _nested(values: Mapping[str, Any]) -> Layer:
    layer: Layer = {}
    for key, value in values.items():
        section, dot, name = key.partition(".")
        if not dot:
            raise UsageError(f"unknown key '{key}'{_nearest(key, _known_keys())}")
        layer.setdefault(section, {})[name] = value
    return layer


def _sections() -> dict[str, type]:
    return get_type_hints(Config)


def _known_keys() -> list[str]:
    return [f"{section}.{field}" for section, struct in _sections().items() for field in struct.__struct_fields__]  # type: ignore[attr-defined]


def _check_keys(layer: Layer) -> None:
    known = _known_keys()
    for section, values in layer.items():
        if not isinstance(values, dict) or (not values and section not in _sections()):
            raise UsageError(f"unknown key '{section}'{_nearest(section, known)}")
        for name in values:
            if f"{section}.{name}" not in known:
                raise UsageError(f"unknown key '{section}.{name}'{_nearest(f'{section}.{name}', known)}")


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if not close:  # the right name in the wrong section, or no section at all
        close = [key for key in known if key.rpartition(".")[2] == word.rpartition(".")[2]]
    return f"; did you mean '{close[0]}'?" if close else f"; known are {', '.join(known)}"


def _explain(message: str, merged: Layer) -> str:
    """Turn msgspec's message, which ends in the path of the value, into the key, what is allowed and what was found."""
    what, _, where = message.partition(" - at ")
    section, name = re.split(r"[.\[]", where.strip("`$."))[:2]
    hint = get_type_hints(_sections()[section], include_extras=True)[name]
    if get_origin(hint) is Literal:
        allowed = _one_of(get_args(hint))
    elif hint == Compression:
        allowed = _one_of(("auto", *CODECS))
    elif hint == Parameter:
        table = "{along='x' or 'y', start=…, stop=…} or {path='FILE', start=…, stop=…}"
        allowed = f"{_range(Fraction)}, a list of such numbers, or a table: {table}"
    elif hint == Interval:
        allowed = "a number of frames, or a time as in 90s, 15m or 2h"
    else:
        allowed = _range(hint)
    return f"{section}.{name}: expected {allowed}, got {_short(merged[section][name])}" if what else message


def _one_of(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # of a whole number of thousands of digits
        return "a number that is too long"
    return text if len(text) <= 60 else f"{text[:40]}… ({len(text)} characters)"


def _range(hint: Any) -> str:
    kind, *metas = get_args(hint) or (hint,)
    words = [{int: "a whole number", float: "a number", str: "text"}[kind]]
    for meta in metas:
        words += [
            f"{sign} {bound}" for sign, bound in ((">", meta.gt), (">=", meta.ge), ("<=", meta.le)) if bound is not None
        ]
    return " ".join([words[0], " and ".join(words[1:])]).strip()
