"""Loading: defaults < preset < TOML file < GSIO_* variables < --set and short options."""

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from gsio.config.schema import Compression, Config, Fraction, Interval, Natural, Parameter, Seed
from gsio.config.tables import AUTO, CODECS
from gsio.config.units import one_of, parse_interval, parse_walltime, shortened
from gsio.errors import UsageError, reason_of
from gsio.inputs import TOML_NBYTES, parse_toml, read_regular

Layer = dict[str, Any]


def config_folder() -> Path:
    """Return the folder of the shipped configurations: inside the wheel, or beside the package in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "_config"
    return installed if installed.is_dir() else package.parent / "config"


def preset_names() -> list[str]:
    """Return the names that `--preset` takes."""
    folder = config_folder()
    return sorted(path.stem for path in [*folder.glob("*.toml"), *folder.glob("presets/*.toml")])


def default_values() -> dict[str, Any]:
    """Return the value of each key in ``config/default.toml``, by its dotted name."""
    layer = read_tables(config_folder() / "default.toml")
    return {f"{section}.{name}": value for section, values in layer.items() for name, value in values.items()}


def allowed_values(key: str) -> tuple[str, ...]:
    """Return the names that a key allows, or nothing if the key takes a number or a text."""
    section, _, name = key.partition(".")
    return _names_allowed(get_type_hints(_sections()[section], include_extras=True)[name])


def _names_allowed(hint: Any) -> tuple[str, ...]:
    if hint == Compression:
        return (AUTO, *CODECS)
    return get_args(hint) if get_origin(hint) is Literal else ()


def describe_preset(name: str) -> str:
    """Return the first line of the file of a preset, which says what the preset makes."""
    with _preset_path(name).open(encoding="utf-8") as file:
        return file.readline().removeprefix("#").strip()


def load_config(
    path: Path | Layer | None = None,
    *,
    preset: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Config:
    """Return the resolved configuration.

    Parameters
    ----------
    path
        A TOML file that changes some of the keys of ``config/default.toml``, or the tables that `read_tables` has read
        from one. Its paths are relative to its folder.
    preset
        The name of a shipped configuration, applied before `path`.
    overrides
        Values by dotted key (``{"model.feed": 0.03}``), applied last. Paths, NumPy scalars and arrays are allowed.
    environ
        The environment with the GSIO_* variables; by default that of the process.

    Raises
    ------
    UsageError
        A file cannot be read, or a key or value is not allowed. The message names the key, the value found, the values
        allowed and the nearest known key.
    """
    layers = [read_tables(config_folder() / "default.toml")]
    if preset is not None:
        layers.append(read_tables(_preset_path(preset)))
    if path is not None:
        layers.append(read_tables(path) if isinstance(path, Path) else path)
    given = [_from_environment(os.environ if environ is None else environ)]
    given.append(_nested({key: _builtin(value) for key, value in (overrides or {}).items() if value is not None}))
    for layer in given:
        for table in _with_paths(layer):
            table["path"] = os.path.expanduser(table["path"])  # noqa: PTH111 - it leaves the ~ of an unknown user
    return resolve(_merged([*layers, *given]))


def resolve(merged: Layer) -> Config:
    """Return the configuration with all the values in `merged`, tables by section; raises as `load_config`."""
    try:
        config = msgspec.convert(merged, Config)
    except msgspec.ValidationError as error:
        raise UsageError(_explain(str(error), merged)) from None
    _check(config)
    return config


def _merged(layers: list[Layer]) -> Layer:
    """Return all layers in one; a later layer wins."""
    merged: Layer = {}
    for layer in layers:
        check_keys(layer)
        for section, values in layer.items():
            merged.setdefault(section, {}).update(values)
    return merged


def _check(config: Config) -> None:
    """Raise UsageError for a value with a unit that cannot be read, and for values that do not fit one another."""
    parse_interval("run.checkpoint_every", config.run.checkpoint_every)
    if config.run.max_walltime:
        parse_walltime("run.max_walltime", config.run.max_walltime)
    wants_path = config.initial.kind in ("image", "file")
    if bool(config.initial.path) != wants_path:
        found = f"'{config.initial.path}'" if config.initial.path else "none"
        expected = "the name of a file" if wants_path else "no file, or initial.kind image or file,"
        raise UsageError(f"initial.path: expected {expected} with initial.kind={config.initial.kind}, got {found}")
    values = {"model.feed": config.model.feed, "model.kill": config.model.kill, "initial.seed": config.initial.seed}
    lists = {key: str(len(value)) for key, value in values.items() if isinstance(value, tuple)}
    if len(set(lists.values())) > 1:
        raise UsageError(
            f"{', '.join(lists)}: expected one value for each member of the batch in all lists, "
            f"got {' and '.join(lists.values())}"
        )


def _builtin(value: Any) -> Any:
    """Return a value with its paths as text, and its NumPy scalars and arrays as numbers and lists of Python."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {name: _builtin(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_builtin(part) for part in value]
    return value.tolist() if hasattr(value, "tolist") else value


def parse_assignment(text: str) -> tuple[str, Any]:
    """Split ``key=value``. A value that is not TOML is taken as plain text."""
    key, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"expected KEY=VALUE, got '{text}'; for example model.feed=0.03")
    return key.strip(), toml_value(value.strip())


def toml_value(text: str) -> Any:
    """Return the value of a TOML expression, or `text` itself if it is none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"expected a value in UTF-8, got {text!a}") from None
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return parsed["value"] if len(parsed) == 1 else text


def read_tables(path: Path) -> Layer:
    """Return the tables of a TOML file. Paths in the file are relative to its folder."""
    try:
        layer = parse_toml(read_regular(path, TOML_NBYTES))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {reason_of(error)}; expected a TOML file") from None
    except ValueError as error:  # not TOML, or not UTF-8
        raise UsageError(f"{path} is not valid TOML: {error}") from None
    for table in _with_paths(layer):
        table["path"] = str(path.parent / os.path.expanduser(table["path"]))  # noqa: PTH111 - as above
    return layer


def with_absolute_paths(config: Config) -> Config:
    """Return `config` with absolute paths, so that it can be loaded from any folder."""
    layer = msgspec.to_builtins(config)
    for table in _with_paths(layer):
        table["path"] = os.path.abspath(table["path"])  # noqa: PTH100 - Path.resolve would follow links
    return msgspec.convert(layer, Config)


def _with_paths(layer: Layer) -> Iterator[Layer]:
    """Yield the tables of a layer that name a file under "path"."""
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
    raise UsageError(f"there is no preset '{name}'{suggestion(name, preset_names())}")


def _from_environment(environ: Mapping[str, str]) -> Layer:
    variables = {"GSIO_" + key.replace(".", "_").upper(): key for key in known_keys()}
    found: Layer = {}
    for name, text in environ.items():
        if not name.startswith("GSIO_"):
            continue
        if name not in variables:
            raise UsageError(f"unknown environment variable {name}{suggestion(name, list(variables))}")
        found[variables[name]] = toml_value(text)
    return _nested(found)


def _nested(values: Mapping[str, Any]) -> Layer:
    layer: Layer = {}
    for key, value in values.items():
        section, dot, name = key.partition(".")
        if not dot:
            raise UsageError(f"unknown key '{key}'{suggestion(key, known_keys())}")
        layer.setdefault(section, {})[name] = value
    return layer


def _sections() -> dict[str, type]:
    return get_type_hints(Config)


def known_keys() -> list[str]:
    """Return the dotted names of all keys."""
    return [f"{section}.{field}" for section, struct in _sections().items() for field in struct.__struct_fields__]  # type: ignore[attr-defined]


def check_keys(layer: Layer) -> None:
    """Raise UsageError for a key that no configuration has."""
    known = known_keys()
    for section, values in layer.items():
        if not isinstance(values, dict) or (not values and section not in _sections()):
            raise UsageError(f"unknown key '{section}'{suggestion(section, known)}")
        for name in values:
            if f"{section}.{name}" not in known:
                raise UsageError(f"unknown key '{section}.{name}'{suggestion(f'{section}.{name}', known)}")


def suggestion(word: str, known: list[str]) -> str:
    """Return the end of a message about an unknown name: the nearest of the known ones, or all of them."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if not close:  # the section can be wrong or missing
        close = [key for key in known if key.rpartition(".")[2] == word.rpartition(".")[2]]
    return f"; did you mean '{close[0]}'?" if close else f"; expected one of {', '.join(known)}"


def _explain(message: str, merged: Layer) -> str:
    """Return msgspec's message, which ends in the path of the value, as "KEY: expected …, got …"."""
    problem, _, location = message.partition(" - at ")
    section, name = re.split(r"[.\[]", location.strip("`$."))[:2]
    hint = get_type_hints(_sections()[section], include_extras=True)[name]
    if names := _names_allowed(hint):
        allowed = one_of(names)
    elif hint == Parameter:
        table = "{along='x' or 'y', start=…, stop=…} or {path='FILE', start=…, stop=…}"
        allowed = f"{_range(Fraction)}, a list of such numbers, or a table: {table}"
    elif hint == Seed:
        allowed = f"{_range(Natural)}, or a list of such numbers"
    elif hint == Interval:
        allowed = "a number of frames, or a time such as 90s, 15m or 2h"
    else:
        allowed = _range(hint)
    return f"{section}.{name}: expected {allowed}, got {shortened(merged[section][name])}" if problem else message


def _range(hint: Any) -> str:
    """Describe the type and the bounds of a key in words."""
    kind, *metas = get_args(hint) or (hint,)
    words = [{int: "a whole number", float: "a number", str: "text"}[kind]]
    for meta in metas:
        words += [
            f"{sign} {bound}" for sign, bound in ((">", meta.gt), (">=", meta.ge), ("<=", meta.le)) if bound is not None
        ]
    return " ".join([words[0], " and ".join(words[1:])]).strip()
