"""Draw the picture of the README: six moments of one run, from the seeds to a grid full of pattern.

    python docs/picture.py docs/run.png

The run takes the preset `coral` on the CPU, on a grid of 240 × 320 cells; each moment is one saved frame.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

import gsio
from gsio.draw.picture import write_picture

MOMENTS = (2, 5, 9, 14, 22, 39)  # the frames that are shown
GAP = 8  # pixels between two moments
OVERRIDES = {
    "grid.rows": 240,
    "grid.cols": 320,
    "run.frames": MOMENTS[-1] + 1,
    "run.steps_per_frame": 250,
    "run.backend": "numba",
}


def draw(target: Path) -> None:
    """Run the simulation in a temporary folder, and write its moments as one PNG of two rows."""
    with TemporaryDirectory() as folder:
        output = Path(folder, "run.h5")
        gsio.simulate(gsio.load_config(preset="coral", overrides=OVERRIDES), output)
        tiles = []
        with gsio.open_stack(output) as stack:
            for moment in MOMENTS:
                path = Path(folder, f"{moment}.png")
                write_picture(path, stack.v[moment], longest=320)
                tiles.append(Image.open(path).copy())
    columns = len(tiles) // 2
    width, height = tiles[0].size
    strip = Image.new("RGB", (columns * (width + GAP) - GAP, 2 * (height + GAP) - GAP), "white")
    for place, tile in enumerate(tiles):
        strip.paste(tile, (place % columns * (width + GAP), place // columns * (height + GAP)))
    strip.quantize(128).save(target, optimize=True)


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
