"""The result of a sweep: what it holds, how others open it, and what happens to members that fail."""

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray

import gsio
from gsio.cli import main
from gsio.errors import DataError, UsageError
from gsio.sweep.description import load_sweep
from gsio.sweep.plan import Plan, read_plan
from gsio.sweep.result import State, begin, read_states
from gsio.sweep.status import status_of_sweep
from gsio.sweep.tasks import run_tasks
from gsio.testing import small_blocks

pytestmark = pytest.mark.numba
Write = Callable[..., Path]
ENDINGS = (".zarr", ".h5")
PLANE = 12 * 17 * 4  # bytes of a frame


def swept(path: Path, ending: str = ".zarr") -> tuple[Plan, Path]:
    output = path.with_suffix(ending)
    plan = begin(load_sweep(path), output)
    run_tasks(output)
    return plan, output


def opened(output: Path, **options: Any) -> xarray.Dataset:
    engine = "zarr" if output.is_dir() else "h5netcdf"
    return xarray.open_dataset(output, engine=engine, **options)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_member_has_the_bits_of_the_same_run_alone(ending: str, precision: str, write: Write, tmp_path: Path) -> None:
    numbers = random.Random(f"{ending} {precision}")
    feeds, kills = ([numbers.uniform(low, low + 0.03) for _ in range(4)] for low in (0.02, 0.045))
    text = f"""
    [model]
    precision = "{precision}"
    [output]
    fields = "u,v"
    [sweep]
    batch = 5
    grid.boundary = {{ values = ["periodic", "neumann", "zero"] }}
    model.feed = {{ values = {feeds} }}
    model.kill = {{ values = {kills} }}
    initial.seed = {{ values = [1, 2] }}
    """
    plan, output = swept(write(text), ending)
    with opened(output) as found:
        for member in numbers.sample(range(plan.count), 15):
            alone = tmp_path / f"{member}.h5"
            gsio.simulate(plan.member(member), alone)
            with gsio.open_stack(alone) as stack:
                for name in "uv":
                    values = found[name].values[plan.place(member)]
                    assert values.dtype == precision
                    assert values.tobytes() == np.array(stack.fields[name]).tobytes()


@pytest.mark.parametrize("ending", ENDINGS)
def test_xarray_finds_a_member_by_its_values(ending: str, write: Write) -> None:
    plan, output = swept(write(), ending)
    with opened(output) as found:
        assert found.v.dims == ("feed", "kill", "time", "y", "x")
        near = found.sel(feed=0.031, kill=0.06, method="nearest")
        assert (float(near.feed), float(near.kill), int(near.status)) == (pytest.approx(0.03), 0.06, State.COMPLETE)
        np.testing.assert_array_equal(near.v, found.v[1, 1])
        np.testing.assert_array_equal(found.time, [3, 6, 9, 12, 15])
        assert found.feed.attrs["long_name"] == "model.feed"
    assert plan.count == 8


@pytest.mark.parametrize("ending", ENDINGS)
def test_keys_that_vary_together_label_the_axis_of_members(ending: str, write: Write) -> None:
    text = "[sweep]\ncombine = 'zip'\ngrid.boundary = { values = ['zero', 'periodic'] }\n"
    text += "model.dt = { values = [1.0, 0.5] }"
    _, output = swept(write(text), ending)
    with opened(output) as found:
        assert found.v.dims == ("member", "time", "y", "x")
        assert list(found.boundary.values) == ["zero", "periodic"]
        np.testing.assert_array_equal(found.interval, [3, 1.5])  # which differs, so that members share no model time
        np.testing.assert_array_equal(found.time, [1, 2, 3, 4, 5])
        np.testing.assert_array_equal(found.set_xindex("dt").sel(dt=0.5).v, found.v[1])


@pytest.mark.parametrize("options", ['store = "uint8"', "shard_frames = 4", "keep_bits = 9", 'compression = "none"'])
def test_a_result_has_the_values_of_a_run_however_they_are_stored(options: str, write: Write, tmp_path: Path) -> None:
    plan, output = swept(write(f"[output]\n{options}\n[sweep]\nmodel.feed = {{ values = [0.02, 0.03] }}"))
    gsio.simulate(plan.member(1), tmp_path / "alone.zarr")
    alone = xarray.open_dataset(tmp_path / "alone.zarr", engine="zarr")
    with opened(output) as found, alone:
        np.testing.assert_array_equal(found.v[1], alone.v)
        assert found.v.dtype == alone.v.dtype


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    "sizes",
    [
        {"block_bytes": 4 * PLANE, "chunk_bytes": 2 * PLANE},  # a chunk has two frames, and the last chunk one
        {"block_bytes": PLANE, "chunk_bytes": PLANE, "large_bytes": PLANE - 1, "slab_bytes": PLANE * 5 // 12},
    ],
    ids=["chunks", "slabs"],
)
def test_a_result_has_the_values_of_a_run_however_they_are_cut(
    sizes: dict[str, int], ending: str, write: Write, tmp_path: Path
) -> None:
    with small_blocks(**sizes):
        plan, output = swept(write("[sweep]\nbatch = 2\nmodel.feed = { values = [0.02, 0.03] }"), ending)
        assert len(plan.tasks) == (2 if "slab_bytes" in sizes else 1)  # a frame that is cut fills a block alone
    gsio.simulate(plan.member(1), tmp_path / "alone.h5")
    with opened(output) as found, gsio.open_stack(tmp_path / "alone.h5") as alone:
        np.testing.assert_array_equal(found.v[1], np.array(alone.v))


RUNS_AWAY = """
[grid]
rows = 12
cols = 17
[run]
frames = 12
steps_per_frame = 1
backend = "numba"
threads = 1
[initial]
kind = "file"
path = "start.npz"
[sweep]
model.feed = { values = [0.0, 0.3, 0.6, 0.9] }
model.kill = { values = [0.05] }
"""


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_member_that_diverges_is_marked_and_stops_no_other(
    ending: str, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = np.full((12, 17), 0.5)
    start[5, 5] = 1.2  # u v² runs away from here with the larger feeds only
    np.savez(tmp_path / "start.npz", u=np.ones_like(start), v=start)
    path = write(RUNS_AWAY, shared="")
    output = path.with_suffix(ending)
    assert main(["sweep", str(path), "-o", str(output)]) == 70
    assert (
        f"of 4 members, 2 diverged, and the others are complete; see 'gsio sweep status {output}'"
        in capsys.readouterr().err
    )
    plan, states = read_plan(output), read_states(output)
    assert list(states["status"]) == [State.COMPLETE, State.COMPLETE, State.DIVERGED, State.DIVERGED]
    assert states["frames"][0] == 12 > states["frames"][2] > 2
    with opened(output) as found:
        for member in range(4):
            alone, frames = tmp_path / f"{member}.h5", states["frames"][member]
            if member < 2:
                gsio.simulate(plan.member(member), alone)
            else:
                with pytest.raises(gsio.errors.DivergenceError, match=f"frame {frames},"):
                    gsio.simulate(plan.member(member), alone)
            values = found.v.values[plan.place(member)]
            with gsio.open_stack(alone) as stack:
                assert values[:frames].tobytes() == np.array(stack.v).tobytes()
            assert np.isnan(values[frames:]).all()
    before = read_states(output)
    assert main(["sweep", str(path), "-o", str(output)]) == 70  # and a member that diverges is not tried again
    assert all((before[name] == after).all() for name, after in read_states(output).items())
    assert main(["sweep", "status", str(output)]) == 0
    shown = capsys.readouterr().out
    assert "4 members: 2 complete, 2 diverged; 0 of 1 tasks are left" in shown
    assert "diverged    member 3 (feed 0.9, kill 0.05), after" in shown


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_member_that_fails_is_tried_again(ending: str, write: Write, tmp_path: Path) -> None:
    text = "[sweep]\ninitial.path = { values = ['a.npz', 'b.npz'] }\nmodel.feed = { values = [0.02, 0.03] }"
    values = {"u": np.ones((12, 17)), "v": np.zeros((12, 17))}
    np.savez(tmp_path / "a.npz", **values)
    path = write(text, shared=RUNS_AWAY.partition("[sweep]")[0].replace("start.npz", "a.npz"))
    _, output = swept(path, ending)
    assert list(read_states(output)["status"]) == [State.COMPLETE] * 2 + [State.FAILED] * 2
    with pytest.raises(gsio.errors.DivergenceError, match="of 4 members, 2 failed, and the others are complete"):
        status_of_sweep(output).check(output)
    np.savez(tmp_path / "b.npz", **values)
    swept(path, ending)
    status_of_sweep(output).check(output)
    with opened(output) as found:
        assert (found.status == State.COMPLETE).all()
        assert (found.v == 0).all()


def test_another_sweep_never_mixes_with_a_result(write: Write, bytes_of: Callable[[Path], Any]) -> None:
    _, output = swept(write())
    before = bytes_of(output)
    same = write().read_text()
    for text, words in (
        (same.replace("count = 4", "count = 5"), "sweep.model.feed is "),
        (f"{same}[model]\ndt = 0.5\n", "model.dt is 1.0 there, and 0.5 now"),
        (same.replace("frames = 5", "frames = 6"), "run.frames is 5 there, and 6 now"),
    ):
        with pytest.raises(UsageError, match=f"is the result of another sweep: {words}"):
            begin(load_sweep(write(text, shared="")), output)
    assert bytes_of(output) == before


def test_what_is_no_result_is_refused(write: Write, tmp_path: Path) -> None:
    taken = tmp_path / "taken.zarr"
    taken.mkdir()
    with pytest.raises(UsageError, match="exists, without the plan of a sweep"):
        begin(load_sweep(write()), taken)
    with pytest.raises(DataError, match="expected the result of a sweep"):
        status_of_sweep(tmp_path / "nothing.zarr")
    assert list(taken.iterdir()) == []


@pytest.mark.parametrize("ending", ENDINGS)
def test_ten_thousand_members_are_planned_and_listed_by_a_look_at_a_few_files(
    ending: str, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    side = "{ from = 0.0, to = 0.1, count = 100 }"
    text = f"[sweep]\nbatch = 1\nmodel.feed = {side}\nmodel.kill = {side}"
    path = write(text)
    output = path.with_suffix(ending)
    opens: list[str] = []

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if counts and event == "open" and str(output) in str(arguments[0]):
            opens.append(str(arguments[0]))

    counts = False
    sys.addaudithook(hear)
    for _ in range(2):  # the plan is made, and then found
        assert main(["sweep", str(path), "-o", str(output), "--engine", "print"]) == 0
        assert len(capsys.readouterr().out.splitlines()) == 10_000
    run_tasks(output, [17, 4711])
    counts = True
    status = status_of_sweep(output)
    counts = False
    assert status.counts() == {"complete": 2, "diverged": 0, "failed": 0, "running": 0, "pending": 9998}
    assert len(opens) < 10
    assert main(["sweep", "status", str(output), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tasks_left"] == 9998
    assert found["member"][4711]["state"] == "complete"
