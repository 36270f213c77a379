"""What an output holds, or a part of it, in the format of another tool; no more than a block of frames in memory."""

import dataclasses
import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zarr
from isal import isal_zlib
from msgspec.structs import replace
from numcodecs import Shuffle
from numpy.typing import NDArray

import gsio
from gsio.compute.host import stage
from gsio.config import Config
from gsio.errors import DataError, StorageError, UsageError, reason_of
from gsio.files import is_file, publish, remove_temporaries, require_new, temporary_beside
from gsio.frames.block import Block
from gsio.frames.chunking import Chunking
from gsio.frames.format import FrameFormat
from gsio.frames.metadata import AXES, DAMAGED, OF_ARRAYS
from gsio.frames.sizes import default_sizes
from gsio.inputs import portable
from gsio.machine import free_space
from gsio.processes import terminable
from gsio.reader import Stack
from gsio.run.plan import layout_of, with_codec
from gsio.run.progress import frame_progress
from gsio.run.simulate import beside
from gsio.run.status import open_committed
from gsio.trace import Trace
from gsio.writer import format_of, is_zarr, open_writer
from gsio.writer.journal import Journal
from gsio.writer.ome import contrast, ome_channel
from gsio.writer.protocol import Target
from gsio.writer.provenance import history_line
from gsio.writer.zarr import METADATA, Folder, halved

SPARE_BYTES = 16 << 20  # left free on the disk: HDF5 must never meet a full one
CLASSIC_TIFF_BYTES = 2**32
LEVEL_CELLS = 1024  # rows or columns, from which on viewers want a smaller level of an image
CHANNEL_COLORS = ("0072B2", "FFFFFF")  # of u where it is saved too, and of v; viewers add them
PAGE_ENTRY_BYTES = 512  # of a TIFF page, at most, beside its pixels

Frame = list[NDArray[Any]]  # one array of `Part.shape` for each field


@dataclasses.dataclass(frozen=True)
class Part:
    """What is exported of an output; the ranges count the frames, rows and columns of `stack`."""

    stack: Stack
    config: Config  # of the run, but for how the export is compressed
    frames: range
    rows: range
    cols: range

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """Return the saved fields, in the order of their checksums."""
        return tuple(self.config.output.fields.split(","))

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of a frame, [(member,) row, col]."""
        return (*self.stack.fields[self.fields[0]].shape[1:-2], len(self.rows), len(self.cols))

    @cached_property
    def coordinates(self) -> dict[str, NDArray[Any]]:
        """Return time and step of each frame, and y and x: those of the source, which can itself be an export."""
        found = {name: self.stack.series(name)[_slice(self.frames)] for name in ("time", "step")}
        for name, kept in (("y", self.rows), ("x", self.cols)):
            found[name] = self.stack.axis(name)[_slice(kept)]
        return found

    @cached_property
    def interval(self) -> float:
        """Return the model time between two frames."""
        times, run = self.coordinates["time"], self.config.run
        return float(times[1] - times[0]) if len(times) > 1 else run.steps_per_frame * self.config.model.dt

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """Return the provenance of the run, with this export in its history, and what was selected."""
        known = self.stack.attributes
        kept = portable({name: known[name] for name in known if name not in ("status", "ended", DAMAGED, *OF_ARRAYS)})
        kept["output_id"] = secrets.token_hex(16)
        kept |= {"history": f"{kept['history']}\n{history_line()}", "config": self.config.to_toml()}
        if (len(self.frames), *self.shape) != self.stack.fields[self.fields[0]].shape:
            places = {"frames": self.frames, "rows": self.rows, "columns": self.cols}
            chosen = ", ".join(f"{name} {place.start}:{place.stop}:{place.step}" for name, place in places.items())
            kept["selection"] = f"{kept['selection']}; then {chosen}" if "selection" in kept else chosen
        return kept

    def limits(self, name: str) -> tuple[float, float]:
        """Return the limits of the contrast of a field in the frames."""
        low, high = (self.stack.series(f"stats/{name}_{word}")[_slice(self.frames)] for word in ("min", "max"))
        return contrast(float(low.min()), float(high.max()))

    def read(self, folder: Path, advance: Callable[[int], object]) -> Iterator[Frame]:
        """Yield the frames, while there is room for them in `folder`."""
        crop = (..., _slice(self.rows), _slice(self.cols))
        for number in self.frames:
            try:
                frame = [self.stack.fields[name][number, *crop] for name in self.fields]
            except (OSError, ValueError, LookupError) as error:
                raise DataError(f"{self.stack.path}: frame {number}: {error}; see 'gsio verify'") from None
            free = free_space(folder)
            if free < sum(plane.nbytes for plane in frame) + SPARE_BYTES:
                raise StorageError(f"'{folder}' is full: {free >> 20} MiB are left; make space; nothing was exported")
            yield frame
            advance(1)


def export(
    source: Path,
    target: Path,
    *,
    frames: str = ":",
    crop: str = ":,:",
    compression: str = "auto",
    overwrite: bool = False,
    quiet: bool = True,
) -> int:
    """Write what the output `source` holds to `target`, and return the number of frames.

    Parameters
    ----------
    target
        Its ending names the format: .h5, .hdf5 or .zarr (an output again), .tif or .tiff (an ImageJ hyperstack,
        float32, fields as channels), .ome.tif or .ome.tiff (an OME-TIFF), .ome.zarr (an image, fields as channels),
        .vtkhdf, .openpmd.h5. In TIFF, .ome.zarr and .vtkhdf the members of a batch lie along z.
    frames, crop
        START:STOP or START:STOP:STEP, and TOP:BOTTOM,LEFT:RIGHT; as in Python, but out of range is an error.
    compression
        Of .h5 and .zarr.
    overwrite
        Replace what is at `target`, which else is an error: a file, or a Zarr group that gsio wrote. The checkpoint,
        the status and the journal of a run that made it go too.
    quiet
        Show no progress, which else is on stderr if that is a terminal.

    Raises
    ------
    UsageError, DataError, StorageError
        Options that cannot be used, a target that a run writes, a frame that cannot be read, no space. What was at
        `target` before is still there.
    """
    ending, write = next(((end, FORMATS[end]) for end in FORMATS if target.name.endswith(end)), ("", None))
    if write is None:
        raise UsageError(f"TARGET: expected a name that ends in {', '.join(FORMATS)}, got '{target}'")
    if write is not _write_output and compression != "auto":
        raise UsageError(f"--compression: expected it with .h5 and .zarr only, got it with {ending}")
    _check_target(source, target, overwrite=overwrite)
    temporary = temporary_beside(target, ending)
    with terminable(), Journal(target, "TARGET") as journal, open_committed(source) as stack:
        _check_target(source, target, overwrite=overwrite)  # again: from here on no run makes it
        remove_temporaries(target)
        part = _part(stack, frames, crop)
        if write is _write_output:
            shards = part.config.output.shard_frames if target.suffix == ".zarr" else 0
            # Levels differ between codecs.
            output = replace(part.config.output, compression=compression, level=1, shard_frames=shards, pyramid=0)
            if (
                part.config.stored == "float16" and format_of(target) == "HDF5"
            ):  # refused there; these are the same bits
                output = replace(output, store="float32", keep_bits=10)
            part = dataclasses.replace(part, config=with_codec(replace(part.config, output=output), target))
        try:
            with frame_progress(len(part.frames), quiet=quiet) as advance:
                write(temporary, part, part.read(target.parent, advance))
            if temporary.is_file():  # a folder is on the disk
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
            replaces = is_zarr if target.suffix == ".zarr" else is_file
            publish("TARGET", temporary, target, replaces=replaces if overwrite else None)
            for path in (path for path, is_of_run in beside(target).items() if is_of_run(path)):
                path.unlink()
            journal.remove()
        except MemoryError:
            raise DataError(f"{source}: expected frames and shards that fit into memory, found larger ones") from None
        except (OSError, RuntimeError) as error:  # h5py raises either
            raise StorageError(f"storage failed: {reason_of(error)}; make space or choose another place") from error
        finally:
            if temporary.is_dir():
                shutil.rmtree(temporary)
            temporary.unlink(missing_ok=True)
        return len(part.frames)


def _part(stack: Stack, frames: str, crop: str) -> Part:
    config = stack.config
    names, corners = config.output.fields.split(","), crop.split(",")
    if not set(names) <= set(stack.fields):
        found = ", ".join(stack.fields)
        raise UsageError(f"{stack.path}: expected the fields {', '.join(names)}, found {found}; see 'gsio verify'")
    if len(corners) != 2:
        raise UsageError(f"--crop: expected TOP:BOTTOM,LEFT:RIGHT, got '{crop}'")
    for name in ("time", "step", "integrity/crc32c"):
        if (recorded := len(stack.series(name))) != stack.frames:
            raise DataError(
                f"{stack.path}: {name}: expected {stack.frames} values, found {recorded}; see 'gsio verify'"
            )
    chosen = _range("--frames", "START:STOP:STEP", frames, stack.frames)
    rows, cols = stack.fields[names[0]].shape[-2:]
    top, left = _range("--crop", "TOP:BOTTOM", corners[0], rows), _range("--crop", "LEFT:RIGHT", corners[1], cols)
    return Part(stack, config, chosen, top, left)


def _range(option: str, form: str, text: str, size: int) -> range:
    """Return what `text` selects of `size` things: at least one, and none that is not there."""
    try:
        bounds = [int(bound) if bound else None for bound in text.split(":")]
    except ValueError:
        bounds = []
    start, stop, step = (*bounds, None, None, None)[:3]
    inside = all(bound is None or -size <= bound <= size for bound in (start, stop))
    if 2 <= len(bounds) <= form.count(":") + 1 and inside and (step is None or step > 0):
        found = range(size)[start:stop:step]
        if found:
            return found
    raise UsageError(f"{option}: expected {form} that selects some of 0:{size}, got '{text}'")


def _slice(kept: range) -> slice:
    return slice(kept.start, kept.stop, kept.step)


def _check_target(source: Path, target: Path, *, overwrite: bool) -> None:
    here, there = (Path(os.path.realpath(path)) for path in (source, target))  # `resolve` fails in a loop of links
    if here in (there, *there.parents) or there in here.parents:
        raise UsageError(f"TARGET: expected a place apart from '{source}', got '{target}'; choose another name")
    replaces = is_zarr if target.suffix == ".zarr" else is_file
    instead = "choose another name, or replace it with --overwrite"
    require_new("TARGET", target, replaces=replaces if overwrite else None, instead=instead)
    for path, is_of_run in beside(target).items():
        require_new("TARGET", path, replaces=is_of_run)


def _write_output(path: Path, part: Part, frames: Iterator[Frame]) -> None:
    """By the writers of a run, so that it is an output itself, with checksums."""
    config, count = part.config, len(part.frames)
    rows, cols = part.shape[-2:]
    config = replace(config, grid=replace(config.grid, rows=rows, cols=cols), run=replace(config.run, frames=count))
    layout = layout_of(config)
    block = Block(layout, np.empty(layout.block_nbytes, np.uint8))
    with Journal(path) as journal:
        writer = open_writer(Target(path, config, layout, part.attributes, journal, Trace()))
        status = "failed"
        try:
            for number, frame in enumerate(frames):
                place = number % layout.frames_per_block
                for field, plane in enumerate(frame):
                    stage(plane, layout.frame, block.data[place, field], block.statistics[place, field])
                if place + 1 == layout.frames_per_block or number + 1 == count:
                    block.first, block.count = number - place, place + 1
                    for task in range(layout.tasks):
                        writer.encode(block, task)
                    writer.commit([block])
                    block.chunks = {}
            status = part.stack.attributes["status"]
        finally:
            journal.remove()
            writer.close("stopped" if status == "running" else status)
    _amend(path, part)


def _amend(path: Path, part: Part) -> None:
    """Set what the writers of a run derive from its configuration, from the clock and from values before rounding."""
    stack, ended = part.stack, part.stack.attributes["ended"]
    statistics = [f"stats/{name}_{word}" for name in part.fields for word in ("min", "max", "mean", "error")]
    if part.shape != stack.fields[part.fields[0]].shape[1:]:  # the error of a whole frame bounds that of a part
        statistics = [name for name in statistics if name.endswith("error")]
    kept = {name: stack.series(name)[_slice(part.frames)] for name in statistics if name in stack.root}
    series = part.coordinates | kept
    if path.is_file():
        with h5py.File(path, "r+", locking=False) as file:
            for name, values in series.items():
                file[name][:] = values
            file.attrs.modify("ended", np.array(ended.encode(), "S32"))
        return
    root: Any = zarr.open_group(path, mode="r+", zarr_format=3)
    for name, values in series.items():
        root[name][:] = values
    store = Folder(path)
    group = json.loads(store.get(METADATA))
    group["attributes"]["ended"] = ended
    time, y, x = (float(series[name][0]) for name in ("time", "y", "x"))
    for image in group["attributes"]["ome"]["multiscales"]:
        scale, first = image["datasets"][0]["coordinateTransformations"]
        scale["scale"][0] = part.interval
        first["translation"] = [time, *[0.0] * (len(part.shape) - 2), y, x]
    store.put(METADATA, json.dumps(group, indent=2).encode())
    store.sync()


def _write_tiff(path: Path, part: Part, frames: Iterator[Frame]) -> None:
    """As TZCYX: fields are channels, and the members of a batch slices; a pixel is a grid spacing."""
    try:
        tifffile = import_module("tifffile")
    except ImportError:
        raise UsageError("TARGET: .tif needs the package tifffile; run pip install 'gsio[tiff]' first") from None
    members, rows, cols = (1, *part.shape)[-3:]
    shape = (len(part.frames), members, len(part.fields), rows, cols)
    stacks = ([plane.reshape(shape[1], rows, cols) for plane in frame] for frame in frames)
    pages = (
        np.ascontiguousarray(plane[z], np.float32) for planes in stacks for z in range(members) for plane in planes
    )
    metadata: dict[str, Any] = {"axes": "TZCYX"}
    # An ImageJ hyperstack cannot be larger than a classic TIFF: what is becomes an OME-TIFF in a BigTIFF, which ImageJ
    # opens through Bio-Formats.
    nbytes = math.prod(shape[:3]) * (rows * cols * 4 + PAGE_ENTRY_BYTES)
    large = nbytes > CLASSIC_TIFF_BYTES
    ome = large or path.name.endswith((".ome.tif", ".ome.tiff"))
    if ome:
        sizes = {f"PhysicalSize{axis}{word}": value for axis in "XYZ" for word, value in (("", 1.0), ("Unit", "pixel"))}
        metadata |= {"Channel": {"Name": list(part.fields)}, "TimeIncrement": part.interval, **sizes}
    else:
        times = part.coordinates["time"]
        labels = [f"{name}, time {time:g}" for time in times for _ in range(members) for name in part.fields]
        limits = [limit for name in part.fields for limit in part.limits(name)]
        provenance = [f"{name}: {value}" for name, value in part.attributes.items()]
        metadata |= {"finterval": part.interval, "tunit": "model time", "unit": "pixel", "spacing": 1.0}
        metadata |= {"mode": "composite" if shape[2] > 1 else "grayscale", "Labels": labels, "Ranges": limits}
        metadata |= {"min": limits[-2], "max": limits[-1]}
        metadata["Info"] = "\n".join([f"channels: {', '.join(part.fields)}", *provenance])
    with tifffile.TiffWriter(path, bigtiff=large, imagej=not ome, ome=ome) as file:
        form: dict[str, Any] = {"photometric": "minisblack", "resolution": (1, 1), "resolutionunit": "NONE"}
        file.write(pages, shape=shape, dtype=np.float32, metadata=metadata, **form)


def _write_ome_zarr(path: Path, part: Part, frames: Iterator[Frame]) -> None:
    """As an image of OME-Zarr 0.5 (ngff.openmicroscopy.org), [t, c, z, y, x]: fields are channels, members slices.

    A large grid gets smaller levels, each with half the rows and columns.
    """
    members, rows, cols = (1, *part.shape)[-3:]
    dtype, fields, at = part.config.model.precision, part.fields, part.coordinates
    lines = _lines_per_chunk((rows, cols), dtype)
    root: Any = zarr.open_group(path, mode="w-", zarr_format=3)
    levels, datasets = [], []
    for level in range(1 + (min(rows, cols) // LEVEL_CELLS).bit_length()):
        size, cells = (rows >> level, cols >> level), 1 << level
        levels.append(
            root.create_array(
                str(level),
                shape=(len(part.frames), len(fields), members, *size),
                chunks=(1, 1, 1, min(lines, size[0]), size[1]),
                dtype=dtype,
                compressors=zarr.codecs.BloscCodec(cname="lz4", clevel=3, shuffle="shuffle"),
                dimension_names=tuple("tczyx"),
            )
        )
        middle = (cells - 1) / 2  # of the first cell
        scale = [part.interval, 1.0, 1.0, cells, cells]
        first = [at["time"][0], 0.0, 0.0, at["y"][0] + middle, at["x"][0] + middle]
        places = [
            {"type": "scale", "scale": [float(number) for number in scale]},
            {"type": "translation", "translation": [float(number) for number in first]},
        ]
        datasets.append({"path": str(level), "coordinateTransformations": places})
    kinds = zip("tczyx", ("time", "channel", "space", "space", "space"), strict=True)
    axes = [{"name": name, "type": kind} for name, kind in kinds]
    colors = zip(fields, CHANNEL_COLORS[-len(fields) :], strict=True)
    channels = [ome_channel(name, *part.limits(name), color) for name, color in colors]
    image = {"name": part.stack.path.stem, "axes": axes, "datasets": datasets}
    ome = {"version": "0.5", "multiscales": [image], "omero": {"channels": channels}}
    root.attrs.update(part.attributes | {"ome": ome})
    for number, frame in enumerate(frames):
        planes = np.stack([plane.reshape(members, rows, cols) for plane in frame]).astype(dtype)
        for array in levels:
            array[number] = planes
            planes = halved(planes)
    Folder(path).sync()


def _write_vtkhdf(path: Path, part: Part, frames: Iterator[Frame]) -> None:
    """As temporal ImageData of the VTKHDF format specification (docs.vtk.org), 2.0: points, [time, z, y, x].

    VTK 9.3 to 9.7 read an image with one z as [time, y, x], and no image with one y.
    """
    members, rows, cols = (1, *part.shape)[-3:]
    if rows == 1:
        raise UsageError("--crop: expected two rows or more, got one, which VTK cannot read; choose another format")
    count, at = len(part.frames), part.coordinates
    with h5py.File(path, "x", locking=False) as file:
        file.attrs.update(part.attributes)
        root = file.create_group("VTKHDF")
        root.attrs["Version"] = np.array([2, 0], np.int64)
        root.attrs["Type"] = np.bytes_("ImageData")
        root.attrs["WholeExtent"] = np.array([0, cols - 1, 0, rows - 1, 0, members - 1], np.int64)
        root.attrs["Origin"] = np.array([at["x"][0], at["y"][0], 0], np.float64)
        root.attrs["Spacing"] = np.ones(3)
        root.attrs["Direction"] = np.eye(3).reshape(-1)
        points, steps = root.create_group("PointData"), root.create_group("Steps")
        steps.attrs["NSteps"] = np.int64(count)
        steps["Values"] = at["time"]
        for name in part.fields:
            steps[f"PointDataOffsets/{name}"] = np.arange(count, dtype=np.int64)
            _create(points, name, part, (count, *part.shape))
        points[part.fields[-1]].attrs["Attribute"] = np.bytes_("Scalars")  # what is shown first; known since 2.6
        for number, frame in enumerate(frames):
            for name, plane in zip(part.fields, frame, strict=True):
                _store(points[name], (number,), plane)


def _write_openpmd(path: Path, part: Part, frames: Iterator[Frame]) -> None:
    """As openPMD 1.1.0 (github.com/openPMD/openPMD-standard): an iteration, with a mesh for each field, in a group."""
    axes, at = AXES[-len(part.shape) :], part.coordinates
    root = {
        "openPMD": "1.1.0",
        "basePath": "/data/%T/",
        "meshesPath": "meshes/",
        "iterationEncoding": "groupBased",
        "iterationFormat": "/data/%T/",
        "software": "gsio",
        "softwareVersion": gsio.__version__,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S +0000"),
    }
    mesh = {
        "geometry": np.bytes_("cartesian"),
        "dataOrder": np.bytes_("C"),
        "axisLabels": np.array(axes, "S"),
        "gridSpacing": np.ones(len(axes)),
        "gridGlobalOffset": np.array([0.0, at["y"][0], at["x"][0]])[-len(axes) :],
        "gridUnitSI": np.float64(1),
        "position": np.zeros(len(axes)),
        "unitSI": np.float64(1),
        "unitDimension": np.zeros(7),
        "timeOffset": np.float64(0),
    }
    with h5py.File(path, "x", locking=False) as file:
        file.attrs.update(part.attributes | {name: np.bytes_(value) for name, value in root.items()})
        file.attrs["openPMDextension"] = np.uint32(0)
        for step, time, frame in zip(at["step"], at["time"], frames, strict=True):
            iteration = file.create_group(f"data/{step}")
            iteration.attrs.update({"time": time, "dt": np.float64(part.config.model.dt), "timeUnitSI": np.float64(1)})
            meshes = iteration.create_group("meshes")
            for name, plane in zip(part.fields, frame, strict=True):
                record = _create(meshes, name, part, part.shape)
                record.attrs.update(mesh)
                _store(record, (), plane)


def _lines_per_chunk(shape: tuple[int, ...], dtype: str) -> int:
    """Return the rows of a slab of a plane [rows, cols]."""
    return Chunking.choose(FrameFormat.of(shape, "v", dtype), default_sizes()).lines_per_chunk


def _create(group: Any, name: str, part: Part, shape: tuple[int, ...]) -> Any:
    """Return a new array with a chunk for each slab of a plane, deflated after a byte shuffle."""
    dtype = part.config.model.precision  # other tools know no half precision
    lines = _lines_per_chunk(shape[-2:], dtype)
    chunks = (*[1] * (len(shape) - 2), lines, shape[-1])
    return group.create_dataset(name, shape, dtype, chunks=chunks, shuffle=True, compression="gzip", compression_opts=1)


def _store(array: Any, place: tuple[int, ...], planes: NDArray[Any]) -> None:
    """Put planes [(member,) row, col] into an array of `_create`; ISA-L is much faster than HDF5's own filter."""
    lines = array.chunks[-2]
    for member in np.ndindex(planes.shape[:-2]):
        for top in range(0, planes.shape[-2], lines):
            chunk = np.zeros(array.chunks[-2:], array.dtype)
            part = planes[member][top : top + lines]
            chunk[: len(part)] = part
            encoded = isal_zlib.compress(Shuffle(chunk.itemsize).encode(chunk), 1)
            array.id.write_direct_chunk((*place, *member, top, 0), encoded)


FORMATS: dict[str, Callable[[Path, Part, Iterator[Frame]], None]] = {
    ".openpmd.h5": _write_openpmd,
    ".h5": _write_output,
    ".hdf5": _write_output,
    ".ome.zarr": _write_ome_zarr,
    ".zarr": _write_output,
    ".ome.tif": _write_tiff,
    ".ome.tiff": _write_tiff,
    ".tif": _write_tiff,
    ".tiff": _write_tiff,
    ".vtkhdf": _write_vtkhdf,
}
