"""gsio: Gray-Scott reaction-diffusion simulations that save every frame while the GPU keeps computing."""

from typing import TYPE_CHECKING, Any

from gsio._version import __version__
from gsio.config import Config, load_config
from gsio.errors import GsioError

if TYPE_CHECKING:
    from gsio.look.notebook import view
    from gsio.reader import open_stack
    from gsio.run.frame_writer import FrameWriter
    from gsio.run.simulate import simulate

__all__ = ["Config", "FrameWriter", "GsioError", "__version__", "load_config", "open_stack", "simulate", "view"]


def __getattr__(name: str) -> Any:
    """Import `simulate`, `FrameWriter`, `open_stack` and `view`, and HDF5 with them, only when they are asked for."""
    if name == "simulate":
        from gsio.run.simulate import simulate

        return simulate
    if name == "FrameWriter":
        from gsio.run.frame_writer import FrameWriter

        return FrameWriter
    if name == "open_stack":
        from gsio.reader import open_stack

        return open_stack
    if name == "view":
        from gsio.look.notebook import view

        return view
    raise AttributeError(f"module 'gsio' has no attribute '{name}'")
