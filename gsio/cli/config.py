"""Commands about configurations: presets and config show."""

from pathlib import Path

import click

from gsio.cli.options import (
    RUN,
    Command,
    Group,
    Option,
    completion,
    configuration,
    debug_option,
    file_option,
)
from gsio.config import Config, allowed_values, describe_preset, load_config, preset_names
from gsio.files import new_file, require_folder
from gsio.streams import say


@click.command(cls=Command)
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=completion(preset_names))
@file_option("--preview", "FOLDER", "Run each preset, and draw its last frame in FOLDER/NAME.png.")
@click.option(
    "--backend", cls=Option, metavar="NAME", heading=RUN,
    shell_complete=completion(lambda: allowed_values("run.backend")),
    help="Compute the preview with this backend, as gsio run does.",
)  # fmt: skip
@debug_option
def presets(names: tuple[str, ...], preview: Path | None, backend: str | None, debug: bool) -> None:
    """List the shipped configurations, and the patterns they make."""
    shown = names or [name for name in preset_names() if name != "default"]
    configs = {name: load_config(preset=name, overrides={"run.backend": backend}, environ={}) for name in shown}
    if preview is not None:
        from gsio import log

        require_folder("--preview", preview, (f"{name}.png" for name in configs))
        log.configure("text", quiet=True, debug=debug)  # the default of structlog is stdout
    say("preset   feed   kill    what it makes")
    for name, config in configs.items():
        if preview is not None:
            from gsio.draw.picture import thumbnail
            from gsio.run.simulate import last_frame

            frame = last_frame(config)
            preview.mkdir(parents=True, exist_ok=True)
            with new_file("--preview", preview / f"{name}.png") as picture:
                thumbnail(frame, 256).save(picture)
        say(f"{name:8} {config.model.feed:<7g}{config.model.kill:<7g} {describe_preset(name)}")


@click.group(cls=Group)
def config() -> None:
    """Show configurations."""


@config.command()
@configuration
@debug_option
def show(config: Config, debug: bool) -> None:
    """Print the resolved configuration as TOML."""
    from gsio.model.gray_scott import check_stability
    from gsio.run.initial import rates

    check_stability(config.model, *rates(config))
    say(config.to_toml(), nl=False)
