"""Pictures of frames: one file, or a file for each frame."""

import dataclasses
import io
import re
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from gsio.draw.colours import DEFAULT
from gsio.draw.limits import Limits
from gsio.draw.picture import Canvas, image, png
from gsio.errors import DataError, StorageError, UsageError, reason_of
from gsio.files import Replaces, is_file, new_file, require_apart, require_folder, require_new
from gsio.log import configure
from gsio.processes import terminable
from gsio.reader.frames import decoding_threads
from gsio.reader.pictures import Drawing, drawing
from gsio.reader.verify import LOOK_SECONDS, LOOKS
from gsio.run.progress import frame_progress
from gsio.run.status import is_written, open_committed

ENDINGS = (".png", ".tif", ".tiff")
NUMBER = re.compile(r"%0?\d*d")  # the place of the frame's number in a name
INSTEAD = "choose another name, or replace it with --overwrite"

log = structlog.get_logger()


def write_frames(
    source: Path,
    target: Path,
    *,
    frames: str = "",
    crop: str = ":,:",
    fields: str = "",
    members: str = ":",
    limits: str | Limits = "auto",
    cmap: str = DEFAULT,
    scale: float = 1.0,
    colorbar: bool = False,
    timestamp: bool = False,
    overwrite: bool = False,
    quiet: bool = True,
) -> int:
    """Draw frames of the output `source`, and return the number of pictures; several fields or members become tiles.

    Parameters
    ----------
    target
        A name that ends in .png, .tif or .tiff, for one frame; such a name with the place of the frame's number, as in
        frame_%05d.png; or a folder, which gets frame_00000.png and so on.
    frames, crop, members
        As for `gsio.export.export`; empty `frames` are all frames, or the last one where `target` is for one frame.
    fields
        Names of saved fields; empty for v, or for the only field.
    limits, cmap, scale, colorbar, timestamp
        See `gsio.reader.pictures.Drawing`; `limits` may also be a text LO:HI.
    overwrite
        Replace pictures that are there.
    quiet
        Show no progress. Else progress is shown on stderr if that is a terminal.

    Raises
    ------
    UsageError, DataError, StorageError
        An option cannot be used, or the storage failed. If frames cannot be read, each is named in a warning, the
        others are drawn, and DataError is raised at the end.
    """
    if not structlog.is_configured():  # called from a program that has said nothing about logging
        configure("text", quiet=True)
    replaces = is_file if overwrite else None
    one = _is_for_one(target)
    if one:
        require_new("--output", target, apart_from=[source], replaces=replaces, instead=INSTEAD)
    with terminable(), open_committed(source) as stack:
        drawn = drawing(
            stack, frames=frames or ("-1" if one else ":"), crop=crop, fields=fields, members=members, limits=limits,
            cmap=cmap, scale=scale, colorbar=colorbar, timestamp=timestamp,
        )  # fmt: skip
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
            for look in range(1, LOOKS):
                if not lost or not is_written(source):
                    break
                time.sleep(LOOK_SECONDS * look)  # the run can be in the middle of a flush
                with open_committed(source) as anew:
                    again = dataclasses.replace(drawn, selection=dataclasses.replace(drawn.selection, stack=anew))
                    lost = _write(again, {number: paths[number] for number in lost}, replaces, advance)
    for why in dict.fromkeys(lost.values()):
        log.warning(f"a picture is left out: {why}")
    if lost:
        raise DataError(f"{source}: {len(lost)} of {len(numbers)} frames cannot be read; the others are drawn")
    return len(numbers)


def _write(
    drawn: Drawing, paths: dict[int, Path], replaces: Replaces | None, advance: Callable[[int], object]
) -> dict[int, str]:
    """Write the pictures of some frames in threads; return the frames that cannot be read, and why."""
    selection, lost = drawn.selection, dict[int, str]()

    def write(numbers: range) -> str:
        try:
            read = selection.read_chunk(numbers)
        except DataError as error:
            return str(error)
        for number, frame in zip(numbers, read, strict=True):
            canvas, path = drawn.canvas(number, frame), paths[number]
            with new_file("--output", path, replaces=replaces) as temporary:
                temporary.write_bytes(png(canvas, drawn.cmap) if path.suffix == ".png" else _tiff(canvas, drawn.cmap))
        return ""

    wanted = [numbers for numbers in selection.chunks if numbers[0] in paths]
    try:
        with decoding_threads(selection.apart) as each:
            for numbers, why in zip(wanted, each(write, wanted), strict=True):
                if why:
                    lost |= dict.fromkeys(numbers, why)
                else:
                    advance(len(numbers))
    except MemoryError:
        raise DataError(f"{selection.stack.path}: expected pictures that fit into memory, found larger ones") from None
    except OSError as error:
        raise StorageError(f"storage failed: {reason_of(error)}; make space or choose another place") from error
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
        require_new("--output", path, apart_from=[source], replaces=replaces, instead=INSTEAD)
