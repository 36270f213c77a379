"""The result of a sweep as the page gets it: exact values of each member, its state, and the axes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
from client import Client
from small_sweeps import NOISE, SHARED, begun

from gsio.cli import main
from gsio.look.serve import Server
from gsio.look.source import Source
from gsio.sweep.plan import Plan
from gsio.sweep.result import read_states
from gsio.sweep.tasks import run_tasks
from gsio.testing import small_blocks

pytestmark = pytest.mark.numba
Show = Callable[[Path], Client]
ENDINGS = ".zarr", ".h5"
PLANE = "[sweep]\nbatch = 3\nmodel.feed = { values = [0.02, 0.03, 0.04] }\nmodel.kill = { values = [0.05, 0.06] }\n"
FRAME = 12 * 17 * 4  # bytes


@pytest.fixture
def planned(tmp_path: Path) -> Callable[..., tuple[Plan, Path]]:
    """Return a function from the text of a sweep to its plan, and its result, which has no member yet."""

    def planned(text: str, ending: str = ".zarr", shared: str = SHARED, name: str = "sweep") -> tuple[Plan, Path]:
        output = tmp_path / f"{name}{ending}"
        return begun(shared + text, output), output

    return planned


@pytest.fixture
def show(served: Callable[..., Server]) -> Show:
    """Return a function that serves an output, and gives a client who may ask."""

    def show(path: Path) -> Client:
        server = served(path)
        return Client(server.port, server.token)

    return show


def window(client: Client, field: str, member: int, frame: int) -> Any:
    return client.get(f"/outputs/0/window/{field}/{member}/{frame}/0:12:1/0:17:1")


def check_members(client: Client, plan: Plan, output: Path) -> None:
    """Compare each frame of each member that the page gets with what xarray reads."""
    known, engine = read_states(output)["frames"], "zarr" if output.is_dir() else "h5netcdf"
    with xarray.open_dataset(output, engine=engine, mask_and_scale=False) as found:
        for member, frames in enumerate(known):
            for field in plan.layout.frame.fields:
                values = found[field].values[plan.place(member)]
                if scale := found[field].attrs.get("scale_factor"):
                    values = values * np.float32(scale)
                for frame in range(frames):
                    assert window(client, field, member, frame).body == values[frame].tobytes()
                assert window(client, field, member, frames).status == 404
                proxies = client.get(f"/outputs/0/proxies/{field}/{member}/0")
                assert len(proxies.body) == frames * (8 + 12 * 17) or (proxies.status, frames) == (404, 0)
                check_point(client, field, member, values[:frames, 3, 4])


def check_point(client: Client, field: str, member: int, expected: np.ndarray) -> None:
    if not len(expected):
        assert client.get(f"/outputs/0/point/{field}/{member}/3/4").status == 404
        return
    with client.events(f"/outputs/0/point/{field}/{member}/3/4") as events:
        found = next(events)[1]
    assert dict(zip(found["frames"], found["values"], strict=True)) == dict(enumerate(expected.tolist()))


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        (PLANE, {}),
        (PLANE, {"block_bytes": 4 * FRAME, "chunk_bytes": 2 * FRAME}),
        (PLANE, {"block_bytes": FRAME, "chunk_bytes": FRAME, "large_bytes": FRAME - 1, "slab_bytes": FRAME * 5 // 12}),
        ('[output]\nfields = "u,v"\nstore = "uint8"\n' + PLANE, {}),
    ],
    ids=["whole", "chunks", "slabs", "uint8"],
)
def test_each_member_has_its_exact_values(
    text: str, sizes: dict[str, int], ending: str, planned: Callable[..., tuple[Plan, Path]], show: Show
) -> None:
    with small_blocks(**sizes):
        plan, output = planned(NOISE + text, ending)
        run_tasks(output)
    client = show(output)
    described = client.output()
    assert (described["state"], described["states"], described["frames"]) == ("complete", "1" * 6, 5)
    check_members(client, plan, output)


def test_shards_are_read(planned: Callable[..., tuple[Plan, Path]], show: Show) -> None:
    plan, output = planned(f"{NOISE}[output]\nshard_frames = 4\n{PLANE}")
    run_tasks(output)
    check_members(show(output), plan, output)


@pytest.mark.parametrize("ending", ENDINGS)
def test_members_that_diverged_failed_or_are_pending_show_the_frames_they_have(
    ending: str, planned: Callable[..., tuple[Plan, Path]], show: Show, tmp_path: Path
) -> None:
    start = np.full((12, 17), 0.5)
    start[5, 5] = 1.2  # u v² runs away from here with the larger feeds only
    np.savez(tmp_path / "start.npz", u=np.ones_like(start), v=start)
    text = """
    [initial]
    kind = "file"
    path = "start.npz"
    [sweep]
    batch = 4
    initial.path = { values = ["start.npz", "missing.npz"] }
    model.kill = { values = [0.05, 0.06] }
    model.feed = { values = [0.0, 0.9] }
    """
    shared = SHARED.replace("frames = 5", "frames = 12").replace("frame = 3", "frame = 1")
    plan, output = planned(text, ending, shared)
    client = show(output)
    assert (client.output()["state"], client.output()["states"]) == ("waiting", "0" * 8)
    check_members(client, plan, output)
    run_tasks(output, [0])
    assert Source(0, output).look()
    partial = show(output).output()
    assert (partial["state"], partial["states"]) == ("stopped", "12120000")
    assert partial["parts"] == {str(member): int(read_states(output)["frames"][member]) for member in (1, 3)}
    run_tasks(output)
    client = show(output)
    assert (client.output()["state"], client.output()["states"]) == ("failed", "12123333")
    check_members(client, plan, output)


def test_axes_have_the_values_of_their_keys(
    planned: Callable[..., tuple[Plan, Path]], show: Show, tmp_path: Path
) -> None:
    _, output = planned(NOISE + PLANE)
    assert show(output).get("/outputs/0/axes").json == [
        {"name": "feed", "size": 3, "keys": {"feed": [0.02, 0.03, 0.04]}},
        {"name": "kill", "size": 2, "keys": {"kill": [0.05, 0.06]}},
    ]
    together = "grid.boundary = { values = ['zero', 'periodic'] }\nmodel.dt = { values = [1.0, 0.5] }"
    _, output = planned(f"[sweep]\ncombine = 'zip'\n{together}", name="zip")
    keys = {"boundary": ["zero", "periodic"], "dt": [1.0, 0.5]}
    assert show(output).get("/outputs/0/axes").json == [{"name": "member", "size": 2, "keys": keys}]
    batch = ["run", "-q", "-r12", "-c17", "-n2", "-e1", "--backend=numpy", "--set", "model.feed=[0.02, 0.03]"]
    assert main([*batch, "-o", str(tmp_path / "batch.h5")]) == 0
    keys = {"feed": [0.02, 0.03]}
    assert show(tmp_path / "batch.h5").get("/outputs/0/axes").json == [{"name": "member", "size": 2, "keys": keys}]


def test_a_damaged_result_ends_no_server_and_no_answer_names_a_path(
    planned: Callable[..., tuple[Plan, Path]], show: Show
) -> None:
    _, output = planned(NOISE + PLANE, ".h5")
    run_tasks(output)
    client = show(output)
    (output.parent / "sweep.h5.tasks" / "task000000.h5").write_bytes(b"no HDF5")
    (output.parent / "sweep.h5.tasks" / "task000001.h5").unlink()
    for member in (0, 5):
        refused = window(client, "v", member, 0)
        assert (refused.status, refused.body) == (
            410,
            b"the frame cannot be read: the file of its task cannot be read\n",
        )
    assert client.get("/outputs/0/chunk/v/0/0").status == 410  # the page asks for windows of members


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("command", [["view"], ["info"], ["frames", "-o", "f"], ["movie", "-o", "m.gif"]])
def test_commands_that_need_a_run_say_what_shows_a_sweep(
    command: list[str], ending: str, planned: Callable[..., tuple[Plan, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    _, output = planned(NOISE + PLANE, ending)
    output.with_name(f"{output.name}.tasks").rename(output.with_name("away"))
    assert main([*command, str(output)]) == 65
    (line,) = capsys.readouterr().err.splitlines()
    assert "the result of a sweep, which 'gsio sweep' and 'gsio view' show if its folder '.tasks' is beside it" in line


def test_a_damaged_plan_is_said_to_be_damaged(
    planned: Callable[..., tuple[Plan, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    _, output = planned(NOISE + PLANE, ".zarr")
    (output.with_name(f"{output.name}.tasks") / "plan.json").write_text("{}")
    assert main(["view", "--no-browser", str(output)]) == 65
    (line,) = capsys.readouterr().err.splitlines()
    assert "expected the result of a sweep, with its plan in" in line
