"""Pictures of frames: one file, or a file for each frame."""

import io
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gsio.draw.picture import Canvas, image, png
from gsio.errors import DataError, UsageError, storage_errors
from gsio.files import OR_OVERWRITE, Replaces, is_file, new_file, require_apart, require_folder, require_new
from gsio.processes import terminable
from gsio.reader.frames import decoding_threads
from gsio.reader.pictures import Drawing, drawing, warn_of
from gsio.run.progress import frame_progress
from gsio.run.status import open_committed

ENDINGS = (".png", ".tif", ".tiff")
NUMBER = re.compile(r"%0?\d{0,3}d")  # the place of the frame's number in a name


def write_frames(
    source: Path,
    target: Path,
    *,
    frames: str = "",
    overwrite: bool = False,
    quiet: bool = True,
    **options: Any,
) -> int:
    """Draw frames of the output `source`, and return the number of pictures; several fields or members become tiles.

    Parameters
    ----------
    target
        A name that ends in .png, .tif or .tiff, for one frame; such a name with the place of the frame's number, as in
        frame_%05d.png; or a folder, which gets frame_00000.png and so on.
    frames
        As for `gsio.export.export`; if empty, all frames, or the last one where `target` is for one frame.
    overwrite
        Replace pictures that are there.
    quiet
        Show no progress. Else progress is shown on stderr if that is a terminal.
    options
        The other options of `gsio.reader.pictures.drawing`.

    Raises
    ------
    UsageError, DataError, StorageError
        An option cannot be used, or the storage failed. If frames cannot be read, each is named in a warning, the
        others are drawn, and DataError is raised at the end.
    """
    replaces = is_file if overwrite else None
    one = _is_for_one(target)
    if one:
        require_new("--output", target, apart_from=[source], replaces=replaces, instead=OR_OVERWRITE)
    with terminable(), open_committed(source) as stack:
        drawn = drawing(stack, frames=frames or ("-1" if one else ":"), **options)
        numbers = drawn.selection.frames
        if one and len(numbers) > 1:
            raise UsageError(
                f"--output: expected one frame for '{target}', got {len(numbers)}; choose one with --frames, or a "
                f"folder, or a name such as '{target.stem}_%05d{target.suffix}'"
            )
        paths = {number: target if one else _path(target, number, stack.frames) for number in numbers}
        if not one:
            _require(paths, target, source, replaces)
        with frame_progress(len(numbers), quiet=quiet) as advance:
            lost = _write(drawn, paths, replaces, advance)
    warn_of(lost)
    if lost:
        raise DataError(f"{source}: {len(lost)} of {len(numbers)} frames cannot be read; the others are drawn")
    return len(numbers)


def _write(
    drawn: Drawing, paths: dict[int, Path], replaces: Replaces | None, advance: Callable[[int], object]
) -> dict[int, str]:
    """Write the pictures of some frames in threads; return the frames that cannot be read, and why."""
    selection, lost, held = drawn.selection, dict[int, str](), threading.local()

    def write(numbers: range) -> str:
        try:
            # A thread holds what it read until the next chunk is read. Else malloc would give the memory back to the
            # system after each picture, and page faults would take a fifth of the time.
            held.read = read = selection.read_chunk(numbers)
        except DataError as error:
            return str(error)
        for number, frame in zip(numbers, read, strict=True):
            canvas, path = drawn.canvas(number, frame), paths[number]
            with new_file("--output", path, replaces=replaces) as temporary:
                temporary.write_bytes(png(canvas, drawn.cmap) if path.suffix == ".png" else _tiff(canvas, drawn.cmap))
        return ""

    with storage_errors(selection.stack.path, "pictures"), decoding_threads(selection.apart) as each:
        for numbers, why in zip(selection.chunks, each(write, selection.chunks), strict=True):
            lost |= dict.fromkeys(numbers, why) if why else {}
            advance(len(numbers))
    return lost


def _tiff(canvas: Canvas, cmap: str) -> bytes:
    """Return a picture as a TIFF: every reader has PackBits. In a file, libtiff would say on stderr what fails."""
    image(canvas, cmap).save(buffer := io.BytesIO(), "TIFF", compression="packbits")
    return buffer.getvalue()


def _is_for_one(target: Path) -> bool:
    """Return whether a name is that of one picture; raise UsageError if its ending is of no format."""
    if target.suffix in ENDINGS:
        return not NUMBER.search(target.name)
    if target.suffix and not target.is_dir():
        raise UsageError(
            f"--output: expected a folder, or a name that ends in {', '.join(ENDINGS)}, got '{target}'; a folder with "
            "a dot in its name has to exist"
        )
    return False


def _path(target: Path, number: int, frames: int) -> Path:
    """Return the name of the picture of a frame in a folder, or by a name with a place for the number."""
    if target.suffix in ENDINGS:
        return target.with_name(NUMBER.sub(lambda place: place.group() % number, target.name))
    return target / f"frame_{number:0{max(5, len(str(frames - 1)))}d}.png"


def _require(paths: dict[int, Path], target: Path, source: Path, replaces: Replaces | None) -> None:
    """Make a folder for the pictures if `target` is one; raise UsageError if one of them cannot be written."""
    folder = next(iter(paths.values())).parent
    if folder == target:
        require_apart("--output", folder / "frame.png", [source])
        require_folder("--output", folder, ())
        folder.mkdir(parents=True, exist_ok=True)
    for path in paths.values():
        require_new("--output", path, apart_from=[source], replaces=replaces, instead=OR_OVERWRITE)
