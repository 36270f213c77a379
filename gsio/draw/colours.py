"""Colour maps by name, from the package cmap: one set of names for pictures, movies and the page."""

from functools import cache
from typing import TYPE_CHECKING

from gsio.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DEFAULT = "navia"
# All rise in lightness evenly, and people who are colour-blind can read them; cmap knows many more.
NAMES = (
    "navia", "batlow", "lapaz", "lipari", "oslo", "devon", "grayC",
    "viridis", "magma", "inferno", "cividis",
    "cmocean:ice", "cmocean:deep_r", "cmocean:haline", "cmocean:thermal",
    "cmasher:ocean", "cmasher:arctic", "cmasher:ember",
)  # fmt: skip


@cache
def table(name: str) -> "NDArray[np.uint8]":
    """Return a colour map as 256 steps of red, green and blue, uint8 [256, 3]; the array cannot be written to.

    Raises UsageError if neither `NAMES` nor cmap has the name.
    """
    import numpy as np  # the command line needs only the names
    from cmap import Colormap

    try:
        steps = Colormap(name).lut(256)[:, :3]
    except (ValueError, TypeError, KeyError):
        raise UsageError(
            f"--cmap: expected {', '.join(NAMES)}, or another colour map of the package cmap; got '{name}'"
        ) from None
    found = np.round(steps * 255).astype(np.uint8)
    found.setflags(write=False)
    return found
