"""Draw the pictures of the README: one run as a movie, and six moments of it, from the seeds to a grid full of pattern.

    python docs/picture.py docs

The run takes the preset `coral` on the CPU, on a grid of 240 × 320 cells; each moment is one saved frame.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import gsio
from gsio.draw.limits import limits_of
from gsio.draw.picture import image, index, sheet

MOMENTS = (2, 5, 9, 14, 22, 39)  # the frames that are shown
OVERRIDES = {
    "grid.rows": 240,
    "grid.cols": 320,
    "run.frames": MOMENTS[-1] + 1,
    "run.steps_per_frame": 250,
    "run.backend": "numba",
}


def draw(target: Path) -> None:
    """Run the simulation in a temporary folder, and write run.gif and run.png into the folder `target`."""
    with TemporaryDirectory() as folder:
        output = Path(folder, "run.h5")
        gsio.simulate(gsio.load_config(preset="coral", overrides=OVERRIDES), output)
        with gsio.open_stack(output) as stack:
            tiles = [index(stack.v[moment], *limits_of(stack.v[moment])) for moment in MOMENTS]
            stack.movie(target / "run.gif", frames="0:30", size="256x256", fps=8, timestamp=True, overwrite=True)
            labels = [[f"time {stack.times[moment]:g}"] for moment in MOMENTS]
    image(sheet(tiles, labels)).save(target / "run.png", optimize=True)


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
