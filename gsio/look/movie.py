"""The frames of an output as a movie; that of a running output ends with the frames that are committed."""

from functools import partial
from pathlib import Path
from typing import Any

from gsio.processes import terminable
from gsio.reader.movie import movie
from gsio.run.progress import frame_progress
from gsio.run.status import open_committed


def make_movie(source: Path, target: Path, *, quiet: bool = True, **options: Any) -> int:
    """Make a movie of the output `source`, and return the number of its frames; `options` as `Stack.movie` has them."""
    with terminable(), open_committed(source) as stack:
        return movie(stack, target, progress=partial(frame_progress, quiet=quiet), **options)
