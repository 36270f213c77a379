"""gsio: Gray-Scott reaction-diffusion simulations that save every frame while the GPU keeps computing."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gsio._version import __version__
from gsio.errors import GsioError

if TYPE_CHECKING:
    from gsio.config import Config, load_config
    from gsio.look.notebook import view
    from gsio.reader import open_stack
    from gsio.run.frame_writer import FrameWriter
    from gsio.run.simulate import simulate

__all__ = ["Config", "FrameWriter", "GsioError", "__version__", "load_config", "open_stack", "simulate", "view"]


_PLACES = {
    "Config": "config",
    "FrameWriter": "run.frame_writer",
    "load_config": "config",
    "open_stack": "reader",
    "simulate": "run.simulate",
    "view": "look.notebook",
}


def __getattr__(name: str) -> Any:
    """Import a name, and the libraries that it needs, only when it is asked for."""
    if name in _PLACES:
        return getattr(import_module(f"gsio.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'gsio' has no attribute '{name}'")
