"""The typed configuration: its schema, how it is loaded from its layers, and its values with units."""

from gsio.config.loading import (
    allowed_values,
    config_folder,
    default_values,
    describe_preset,
    known_keys,
    load_config,
    parse_assignment,
    preset_names,
    toml_value,
    with_absolute_paths,
)
from gsio.config.schema import Config, Grid, Initial, Interval, Map, Model, Output, Parameter, Run
from gsio.config.tables import AUTO, BACKENDS, CODECS, Backend
from gsio.config.units import one_of, parse_bytes, parse_devices, parse_interval, parse_walltime

__all__ = [
    "AUTO",
    "BACKENDS",
    "CODECS",
    "Backend",
    "Config",
    "Grid",
    "Initial",
    "Interval",
    "Map",
    "Model",
    "Output",
    "Parameter",
    "Run",
    "allowed_values",
    "config_folder",
    "default_values",
    "describe_preset",
    "known_keys",
    "load_config",
    "one_of",
    "parse_assignment",
    "parse_bytes",
    "parse_devices",
    "parse_interval",
    "parse_walltime",
    "preset_names",
    "toml_value",
    "with_absolute_paths",
]
