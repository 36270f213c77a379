"""gsio: Gray-Scott reaction-diffusion simulations that save every frame while the GPU keeps computing."""

from typing import TYPE_CHECKING, Any

from gsio.config import Config, load_config
from gsio.errors import GsioError

if TYPE_CHECKING:
    from gsio.run import simulate

__version__ = "0.1.0"

__all__ = ["Config", "GsioError", "__version__", "load_config", "simulate"]


def __getattr__(name: str) -> Any:
    """Import `simulate`, and with it Numba and HDF5, only when it is asked for."""
    if name == "simulate":
        from gsio.run import simulate

        return simulate
    raise AttributeError(f"module 'gsio' has no attribute '{name}'")
