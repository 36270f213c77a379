"""The result of a sweep: one Zarr group or HDF5 file, made before any member is computed.

`v[axes of the sweep, time, y, x]` has a coordinate for each key that varies; members that are not there yet are NaN.
`status` and `frames` say how far each member is. Both lie uncompressed in one piece of a file, so that each task sets
its own members in place, at the same time as others: a few bytes at a known offset, which a kill writes or does not.
"""

import os
from collections.abc import Callable, Iterable
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gsio.codec import CODECS
from gsio.config import Config
from gsio.errors import DataError, UsageError
from gsio.files import publish, remove, remove_temporaries, require_new, temporary_beside
from gsio.frames.content import Content
from gsio.frames.metadata import Attributes, coordinate_attributes, field_attributes, frame_steps
from gsio.reader.stack import open_hdf5
from gsio.sweep.description import MEMBER, Description, coordinate
from gsio.sweep.pieces import fill_of, virtual_field
from gsio.sweep.plan import BEGINNING, Plan, check_same, folder_of, has_plan, locked, make_plan, read_plan, record
from gsio.writer import format_of

OF_A_RUN = ("coordinates", "quantization", "quantization_nsb", "comment")  # attributes that name arrays of a run


class State(IntEnum):
    """What has become of a member."""

    PENDING = 0
    COMPLETE = 1
    DIVERGED = 2
    FAILED = 3


STATES: dict[str, np.dtype[Any]] = {"status": np.dtype("u1"), "frames": np.dtype("<i4")}


class Array(NamedTuple):
    """An array of a result; without `values`, it is the stack of a field."""

    dimensions: tuple[str, ...]
    values: NDArray[Any] | None
    attributes: Attributes


def arrays_of(plan: Plan) -> dict[str, Array]:
    """Return the arrays of a result by name: coordinates, states and fields."""
    content, axes = Content.of(plan.config), tuple(axis.name for axis in plan.axes)
    found: dict[str, Array] = {}
    for axis in plan.axes:
        if axis.name == MEMBER:
            found[MEMBER] = Array((MEMBER,), np.arange(axis.size), {"long_name": "number of the member"})
        for key, values in axis.keys.items():
            name = coordinate(key, plan.keys)
            found[name] = Array((axis.name,), _column(values), {"long_name": key})
    found |= _times(plan, content, axes)
    for axis_of_frame in content.axes:
        name = axis_of_frame.name
        found[name] = Array((name,), axis_of_frame.values, coordinate_attributes(name, axis_of_frame))
    states = np.zeros(plan.shape, STATES["status"])
    meanings = " ".join(state.name.lower() for state in State)
    flags = {"flag_values": np.array(list(State), np.uint8), "flag_meanings": meanings}
    found["status"] = Array(axes, states, {"long_name": "state of the member", **flags})
    frames = {"long_name": "frames of the member", "units": "1"}
    found["frames"] = Array(axes, states.astype(STATES["frames"]), frames)
    beside = [name for name, array in found.items() if name not in array.dimensions]
    for field in plan.layout.frame.fields:
        attributes = field_attributes(field, content, plan.layout)
        known = {name: value for name, value in attributes.items() if name not in OF_A_RUN}
        if beside:
            known["coordinates"] = " ".join(beside)
        found[field] = Array((*axes, "time", "y", "x"), None, known)
    return found


def _column(values: tuple[Any, ...]) -> NDArray[Any]:
    """Return the values of a coordinate: numbers, or texts."""
    numbers = all(isinstance(value, (int, float)) for value in values)
    return np.array(values) if numbers else np.array([str(value) for value in values], np.dtypes.StringDType())


def _times(plan: Plan, content: Content, axes: tuple[str, ...]) -> dict[str, Array]:
    """Return the time and step of each frame, or, where members differ, the time between two frames of each."""
    if not {"model.dt", "run.steps_per_frame"} & plan.keys.keys():
        steps = frame_steps(plan.config, 0, plan.config.run.frames)
        times = Array(("time",), steps * plan.config.model.dt, coordinate_attributes("time", content.time))
        return {"time": times, "step": Array(("time",), steps, coordinate_attributes("step", content.step))}

    def interval(config: Config) -> float:
        return config.run.steps_per_frame * config.model.dt

    numbers = np.arange(1, plan.config.run.frames + 1)
    intervals = np.array([interval(config) for config in plan.members]).reshape(plan.shape)
    return {
        "time": Array(("time",), numbers, {"long_name": "model time in intervals of the member", "axis": "T"}),
        "interval": Array(axes, intervals, {"long_name": "model time between two frames", "units": "1"}),
    }


def create(plan: Plan, output: Path) -> None:
    """Create the result, without a member; raises TakenError if something has its name."""
    make: Callable[[Plan, Path, Path], None] = _create_zarr if format_of(output).is_folder else _create_hdf5
    temporary = temporary_beside(output, output.suffix)
    try:
        make(plan, temporary, output)
        publish("--output", temporary, output)
    finally:
        if os.path.lexists(temporary):
            remove(temporary)


def _attributes(plan: Plan) -> Attributes:
    return {
        "Conventions": "CF-1.12",
        "title": "Gray-Scott reaction-diffusion simulations, a sweep",
        "config": plan.config.to_toml(),
        "sweep": ", ".join(plan.keys),
    }


def field_shape(plan: Plan) -> tuple[int, ...]:
    """Return the shape of the stack of a field."""
    return (*plan.shape, plan.config.run.frames, *plan.layout.frame.shape)


def _create_zarr(plan: Plan, path: Path, output: Path) -> None:
    import warnings

    import zarr

    frame, chunks, single = plan.layout.frame, plan.layout.chunks, (1,) * len(plan.shape)
    root = zarr.open_group(path, mode="w-", zarr_format=3)
    root.attrs.update(_attributes(plan))
    how = CODECS[chunks.codec].zarr
    assert how is not None  # the plan chose a codec that Zarr has
    compressors: Any = how(frame.dtype.itemsize, chunks.level) or None
    shards = (*single, chunks.frames_per_shard, *chunks.chunk_shape[1:]) if chunks.frames_per_shard else None
    options: dict[str, Any] = {"chunk_key_encoding": {"name": "default", "separator": "."}}
    for name, array in arrays_of(plan).items():
        options["dimension_names"] = array.dimensions
        if array.values is None:
            made = root.create_array(
                name, shape=field_shape(plan), dtype=frame.dtype, chunks=(*single, *chunks.chunk_shape),
                shards=shards, fill_value=fill_of(plan), compressors=compressors, **options,
            )  # fmt: skip
        else:
            values = array.values
            made = root.create_array(
                name, shape=values.shape, dtype=values.dtype, chunks=values.shape, compressors=None, **options,
                config={"write_empty_chunks": True},
            )  # fmt: skip
            made[...] = values
        made.attrs.update(
            {key: getattr(value, "tolist", lambda v=value: v)() for key, value in array.attributes.items()}
        )
    # zarr-python warns that consolidated metadata, and texts of any length, are extensions.
    with warnings.catch_warnings(category=UserWarning, action="ignore"):
        zarr.consolidate_metadata(root.store)


def _create_hdf5(plan: Plan, path: Path, output: Path) -> None:
    import h5py

    arrays = arrays_of(plan)
    with h5py.File(path, "w", libver="v110") as file:
        file.attrs.update(_attributes(plan))
        for name, array in arrays.items():
            if array.values is None:
                layout = virtual_field(plan, output, name, field_shape(plan))
                made = file.create_virtual_dataset(name, layout, fillvalue=fill_of(plan))
            elif array.values.dtype.kind == "T":
                made = file.create_dataset(name, data=array.values.astype(object), dtype=h5py.string_dtype())
            else:
                made = file.create_dataset(name, data=array.values)
            made.attrs.update(array.attributes)
            if array.dimensions == (name,):
                made.make_scale(name)
        for name, array in arrays.items():
            if array.dimensions != (name,):
                for place, dimension in enumerate(array.dimensions):
                    file[name].dims[place].attach_scale(file[dimension])


def read_states(output: Path) -> dict[str, NDArray[Any]]:
    """Return the state and the number of frames of each member, [member]; raises DataError as `read_plan`."""
    if not os.path.lexists(output):  # a sweep has its plan a moment before its result
        count = read_plan(output).count
        return {name: np.zeros(count, dtype) for name, dtype in STATES.items()}
    found = {}
    for name, dtype in STATES.items():
        path, offset, count = _region(output, name)
        found[name] = np.fromfile(path, dtype, count, offset=offset)
    return found


def set_states(output: Path, states: Iterable[tuple[int, State, int]]) -> None:
    """Record the state and the number of frames of members, which the result shows by now."""
    known = list(states)
    for place, name in ((2, "frames"), (1, "status")):  # the status last: it says that the rest is there
        path, offset, _ = _region(output, name)
        fd = os.open(path, os.O_WRONLY)
        try:
            for row in known:
                value = STATES[name].type(row[place]).tobytes()
                os.pwrite(fd, value, offset + row[0] * len(value))
            os.fsync(fd)
        finally:
            os.close(fd)


def _region(output: Path, name: str) -> tuple[Path, int, int]:
    """Return the file that has the values of an array of states, where they begin, and how many they are."""
    try:
        if format_of(output).is_folder:
            (path,) = (output / name).glob("c.*")
            return path, 0, path.stat().st_size // STATES[name].itemsize
        with open_hdf5(output) as file:
            array = file[name]
            return output, int(array.id.get_offset()), int(array.size)
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise DataError(f"'{output}': expected the result of a sweep: {error}") from None


def begin(description: Description, output: Path) -> Plan:
    """Return the plan of a sweep, and make its result, or find the one that is there already.

    Raises UsageError if the description or `output` cannot be used, also if it is the result of another sweep.
    """
    plan = make_plan(description, output)
    if not has_plan(output):
        if os.path.lexists(output) and not has_plan(output):  # another process can make both at this moment
            folder = folder_of(output)
            raise UsageError(
                f"--output: '{output}' exists, without the plan of a sweep in '{folder}'; choose another name"
            )
        require_new("--output", output, replaces=lambda path: has_plan(output))
        folder_of(output).mkdir(exist_ok=True)
    with locked(output, BEGINNING, wait=True):
        if has_plan(output):
            known = read_plan(output)
            check_same(plan, known, output)
            plan = known
        else:
            record(plan, output)
        if not os.path.lexists(output):
            remove_temporaries(output)  # which a kill has left
            create(plan, output)
    return plan
