"""Bands on GPUs have the bits of one GPU. Several bands can share a GPU, so that most tests need only one."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from banding import FRAMES, blocks_of, layout_for

import gsio
from gsio import codec
from gsio.compute.solver import fields
from gsio.compute.statistics import tree
from gsio.config import Config
from gsio.frames.block import Block
from gsio.reader import open_stack
from gsio.reader.verify import problems
from gsio.run.initial import initial_state

MakeConfig = Callable[..., Config]
pytestmark = pytest.mark.gpu
RAMP = {"along": "y", "start": 0.02, "stop": 0.05}


def several(count: int) -> list[int]:
    """Return so many GPUs; skip the test if there are fewer."""
    from cupy.cuda import runtime

    if runtime.getDeviceCount() < count:
        pytest.skip(f"needs {count} GPUs")
    return list(range(count))


def changes_of(seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the changes of a random configuration, and what else varies."""
    chance = random.Random(seed)
    changes = {
        "run.backend": "cupy",
        "initial.kind": "noise",
        "grid.rows": chance.choice([97, 240, 301, 1080]),
        "grid.cols": chance.choice([64, 121, 322, 1924]),
        "grid.boundary": ["periodic", "neumann", "zero"][seed % 3],
        "model.stencil": chance.choice(["oono-puri", "five-point", "patra-karttunen"]),
        "model.dt": 0.25,
        "model.precision": chance.choice(["float32", "float32", "float64"]),
        "model.feed": chance.choice([0.03, 0.03, RAMP, [0.02, 0.03, 0.04, 0.05, 0.06]]),
        "model.kill": chance.choice([0.06, {**RAMP, "along": "x"}]),
        "run.steps_per_frame": chance.choice([1, 7, 32, 100]),
        "output.fields": chance.choice(["v", "u,v"]),
        "output.store": chance.choice(["computed", "computed", "uint8"]),
    }
    layout = {
        "compression": chance.choice(["deflate", "lz4", "none"]),
        "per_chunk": chance.choice([1, FRAMES]),
        "encodes": chance.choice([True, True, False]),
    }
    layout["encodes"] &= layout["compression"] != "none"
    return changes, layout


def check(config: Config, devices: list[int], layout_options: dict[str, Any], **options: bool) -> None:
    from gsio.compute.cuda.bands import BandsSolver
    from gsio.compute.cuda.solver import CudaSolver

    layout, start = layout_for(config, len(devices), **layout_options), initial_state(config)
    one, bands = CudaSolver(config, layout, start), BandsSolver(config, layout, start, devices, **options)
    expected, found = blocks_of(one, layout), blocks_of(bands, layout)
    one.advance(45)
    bands.advance(45)
    for mine, theirs, name in zip(fields(bands), fields(one), "uv", strict=True):
        wrong = np.argwhere(mine != theirs)
        assert not len(wrong), f"{name}: {len(wrong)} cells differ, the first at {wrong[0]}, bands {bands.bands}"
    for number, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        for place, pair in enumerate(zip(mine, theirs, strict=True)):
            assert pair[0] == pair[1], f"part {place} of block {number}: {first_difference(*pair)}, {bands.bands}"
        assert len(mine) == len(theirs)


def first_difference(mine: bytes, theirs: bytes) -> str:
    if len(mine) != len(theirs):
        return f"{len(mine)} bytes instead of {len(theirs)}"
    wrong = np.flatnonzero(np.frombuffer(mine, np.uint8) != np.frombuffer(theirs, np.uint8))
    return f"{len(wrong)} of {len(mine)} bytes differ, the first is number {wrong[0]}"


@pytest.mark.parametrize("seed", range(24))
def test_bands_on_one_gpu_have_its_bits(seed: int, make_config: MakeConfig) -> None:
    changes, layout = changes_of(seed)
    check(make_config(changes), [0] * (2, 3, 5)[seed % 7 % 3], layout, direct=seed % 4 != 0)


@pytest.mark.parametrize("seed", range(100, 120))
def test_bands_on_two_gpus_have_the_bits_of_one(seed: int, make_config: MakeConfig) -> None:
    changes, layout = changes_of(seed)
    check(make_config(changes), several(2), layout, direct=seed % 3 != 0)


@pytest.mark.parametrize("fields_saved", ["v", "u,v"])
@pytest.mark.parametrize(("rows", "cols"), [(61, 3), (60, 64), (1080, 1920), (33, 5001)])
def test_the_mean_is_the_tree_of_the_rows(rows: int, cols: int, fields_saved: str, make_config: MakeConfig) -> None:
    from gsio.compute.cuda.solver import CudaSolver

    config = make_config(
        {"run.backend": "cupy", "grid.rows": rows, "grid.cols": cols, "initial.kind": "noise", "run.steps_per_frame": 1,
         "output.fields": fields_saved}
    )  # fmt: skip
    layout = layout_for(config, 1, "none", encodes=False)
    solver = CudaSolver(config, layout, initial_state(config))
    block = Block(layout, solver.allocate(layout.block_nbytes))
    block.count = FRAMES
    solver.fill(block)
    solver.wait(block)
    values = np.array(codec.values(block)).swapaxes(0, 1)  # [frame, field, row, col]
    expected = tree(values.sum(axis=-1, dtype=np.float64)) / (rows * cols)
    np.testing.assert_allclose(block.statistics[:, :, 2], expected, rtol=1e-14)
    np.testing.assert_array_equal(block.statistics[:, :, 0], values.min(axis=(2, 3)))
    np.testing.assert_array_equal(block.statistics[:, :, 1], values.max(axis=(2, 3)))


def contents(path: Path) -> dict[str, Any]:
    """Return the decoded frames and the series of an output."""
    with open_stack(path) as stack:
        assert list(problems(stack)) == []
        frames = {"v": stack.v[:]}
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            file.visititems(
                lambda name, item: frames.setdefault(name, item[()])
                if isinstance(item, h5py.Dataset) and item.ndim < 3 else None
            )  # fmt: skip
    return frames


@pytest.mark.parametrize("name", ["run.h5", "run.zarr"])
def test_a_run_goes_on_with_another_number_of_gpus(name: str, make_config: MakeConfig, tmp_path: Path) -> None:
    several(2)
    job = {
        "run.backend": "cupy", "grid.rows": 1080, "grid.cols": 1920, "initial.kind": "spots", "run.frames": 40,
        "output.compression": "lz4",
    }  # fmt: skip
    gsio.simulate(make_config(job), tmp_path / f"one-{name}")
    expected = contents(tmp_path / f"one-{name}")
    for first, then in (("", "all"), ("all", ""), ("all", "1,0")):
        output = tmp_path / f"{first}-{then}-{name}"
        gsio.simulate(make_config({**job, "run.frames": 17, "run.devices": first}), output)
        gsio.simulate(make_config({**job, "run.devices": then}), output, resume="must")
        found = contents(output)
        assert found.keys() == expected.keys()
        for key, values in expected.items():
            np.testing.assert_array_equal(found[key], values, err_msg=f"{key}, {first!r} then {then!r}")
