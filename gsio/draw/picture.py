"""A field as a picture."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Red, green and blue along the colour scale, from the lowest value to the highest; brightness rises throughout.
COLOURS = np.array([(8, 12, 32), (28, 62, 120), (38, 134, 148), (132, 196, 134), (246, 216, 122), (255, 252, 240)])


def write_picture(path: Path, field: NDArray[np.floating[Any]], longest: int = 256) -> None:
    """Draw a field [rows, cols] as a PNG, its range of finite values as the colour scale.

    A field with more than `longest` rows or columns is made smaller. Raises OSError if `path` cannot be written.
    """
    finite = np.isfinite(field)
    low, high = (field[finite].min(), field[finite].max()) if finite.any() else (0, 0)
    place = (np.where(finite, field, low) - low) / (high - low or 1) * (len(COLOURS) - 1)
    channels = [np.interp(place, range(len(COLOURS)), channel) for channel in COLOURS.T]
    picture = Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))
    picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    picture.save(path, format="PNG")
