"""What others see of a run while it goes on: how busy each resource is, and which one bounds the run."""

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from patience import DEADLINE

import gsio
from gsio.config import Config
from gsio.errors import Interrupted
from gsio.frames.block import BlockPool
from gsio.run import status
from gsio.run.pipeline import Pipeline
from gsio.run.plan import layout_of
from gsio.run.progress import Occupied, Progress
from gsio.run.status import follow, open_committed, status_file
from gsio.testing import KeepingWriter, random_block, small_blocks
from gsio.trace import Counter, Trace
from gsio.writer.session import Session
from gsio.writer.status_file import read_status

Make = Callable[..., Config]
NOW = Progress(
    frames_total=100, steps_per_frame=50, first=0, frames_committed=40, frames_durable=20, cells=2_000_000,
    frame_nbytes=8_000_000, nbytes=80_000_000, nbytes_before=0, frames_per_block=8, blocks_in_use=3, seconds=20.0,
    occupied=Occupied(compute=16.0, link=1.0, encode=8.0, write=2.0, wait=4.0),
)  # fmt: skip
LATER = replace(NOW, seconds=22.0, occupied=Occupied(compute=16.5, link=1.0, encode=8.2, write=4.0, wait=5.5))
SHARES_OF_LATER = {"compute": 0.25, "link": 0.0, "encode": 0.1, "write": 1.0, "wait": 0.75}


@pytest.mark.parametrize(
    ("occupied", "bottleneck"),
    [
        (Occupied(compute=3.0, write=2.0, wait=9.0), "compute"),
        (Occupied(compute=1.0, link=2.0), "link"),
        (Occupied(compute=1.0, encode=2.0, write=1.5), "encode"),
        (Occupied(wait=1.0), ""),
        (Occupied(), ""),
    ],
)
def test_the_bottleneck_is_the_resource_that_was_busy_longest(occupied: Occupied, bottleneck: str) -> None:
    assert occupied.bottleneck == bottleneck


def test_shares_are_from_0_to_1() -> None:
    shares = Occupied(compute=3.0, write=0.5).since(Occupied(link=1.0)).shares(2.0)
    assert shares == {"compute": 1.0, "link": 0.0, "encode": 0.0, "write": 0.25, "wait": 0.0}
    assert set(Occupied().shares(0.0).values()) == {0.0}


def test_a_counter_counts_the_threads_that_are_inside() -> None:
    counter = Counter()
    counter.enter(10.0)
    counter.enter(12.0)
    counter.update(13.0)
    assert (counter.busy, counter.total) == (3.0, 4.0)
    counter.leave(10.0, 14.0)
    counter.leave(12.0, 15.0)
    counter.update(20.0)
    assert (counter.busy, counter.total) == (5.0, 7.0)


def test_a_counter_bears_threads_that_come_out_of_order() -> None:
    counter = Counter()
    counter.enter(11.0)
    counter.enter(10.0)
    counter.leave(11.0, 12.0)
    counter.leave(10.0, 13.0)
    assert counter.total == 4.0
    assert 2.0 <= counter.busy <= 3.0


def test_the_status_has_the_shares_since_the_one_before_and_of_the_whole_loop_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "STATUS_SECONDS", 0.0)
    path = tmp_path / "run.h5"
    with status_file(path, lambda: LATER) as observe:
        observe(NOW)
        observe(LATER)
        between = read_status(path)
    assert (between["state"], between["bottleneck"]) == ("running", "write")
    assert between["occupied"] == pytest.approx(SHARES_OF_LATER)
    last = read_status(path)
    assert (last["state"], last["bottleneck"]) == ("complete", "compute")
    assert last["occupied"] == pytest.approx({k: v / 22.0 for k, v in LATER.occupied._asdict().items()}, abs=1e-3)


def test_the_status_of_a_run_that_never_began_is_strict_json(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    with status_file(path, lambda: replace(NOW, frames_committed=0, seconds=0.0, occupied=Occupied())):
        pass
    text = Path(f"{path}.status.json").read_text()
    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (found["bottleneck"], set(found["occupied"].values())) == ("", {0.0})


def test_summary_and_last_status_name_one_bottleneck(make_config: Make, tmp_path: Path) -> None:
    summary = gsio.simulate(make_config(), tmp_path / "run.h5")
    last = read_status(tmp_path / "run.h5")
    assert last["bottleneck"] == summary.bottleneck != ""
    for name in ("compute", "link", "write", "wait"):
        share = getattr(summary, f"{name}_seconds") / summary.loop_seconds
        assert last["occupied"][name] == pytest.approx(min(1.0, share), abs=2e-3)


class StuckSolver:
    """A solver whose first block takes until `go_on` is set."""

    backend = device = "stuck"

    def __init__(self, config: Config) -> None:
        self.go_on, self.layout = threading.Event(), layout_of(config)

    def fill(self, block: Any) -> None:
        assert self.go_on.wait(DEADLINE)
        block.data[: block.count] = random_block(self.layout, block.first, block.count).data[: block.count]

    def wait(self, block: Any) -> None:
        pass

    def snapshot(self) -> Callable[[], Any]:
        return lambda: None


def test_work_that_goes_on_is_counted(make_config: Make) -> None:
    config = make_config()
    solver, seen = StuckSolver(config), []
    pool = BlockPool(solver.layout, 3, lambda nbytes: random_block(solver.layout).buffer.copy())
    pipeline = Pipeline(config, solver, Session(KeepingWriter(), pool, Trace(), 2))

    def watch(now: Progress) -> None:
        seen.append(now)
        if now.occupied.compute > 0:
            solver.go_on.set()

    pipeline.run([watch])
    assert any(now.occupied.compute > 0 and now.frames_committed == 0 for now in seen)
    assert seen[0].occupied.bottleneck in ("", "compute")


@pytest.mark.parametrize(
    ("value", "shown"),
    [("write", ", bottleneck write"), (None, ""), ("", ""), ("\x1b[2J", ""), (["write"], ""), ({"a": 1}, "")],
)
def test_follow_names_the_bottleneck_if_the_status_has_one(
    value: Any, shown: str, make_config: Make, tmp_path: Path
) -> None:
    path = tmp_path / "run.h5"
    with small_blocks(), pytest.raises(Interrupted):
        gsio.simulate(make_config({"run.frames": 1_000_000_000}), path, watch=stop_after_a_frame)
    values = read_status(path)
    del values["occupied"], values["bottleneck"]  # as an older version wrote it
    if value is not None:
        values["bottleneck"] = value
    Path(f"{path}.status.json").write_text(json.dumps(values))
    frames, last = follow(path)
    assert frames.endswith(shown)
    assert ("bottleneck" in frames) == bool(shown)
    assert last.startswith("stopped after")


def stop_after_a_frame(now: Progress) -> None:
    if now.frames_committed:
        raise Interrupted("enough")


def test_a_running_output_is_read_at_the_places_that_its_journal_has(make_config: Make, tmp_path: Path) -> None:
    """HDF5 can be in the middle of a flush: with its file closed, the frames can still be read."""
    path, seen = tmp_path / "run.h5", []

    def watch(now: Progress) -> None:
        if now.frames_committed >= 3:
            with open_committed(path) as stack:
                assert stack.attributes["status"] == "running"
                stack.root.close()
                seen.append({name: field[:] for name, field in stack.fields.items()})
            raise InterruptedError

    changes = {"output.fields": "u,v", "initial.kind": "noise", "run.frames": 10**5}
    plane = 12 * 17 * 4
    with small_blocks(block_bytes=4 * plane, chunk_bytes=2 * plane), pytest.raises(InterruptedError):
        gsio.simulate(make_config(changes), path, watch=watch)
    with gsio.open_stack(path) as stack:
        for name, found in seen[0].items():
            assert 3 <= len(found) <= stack.frames
            assert (found == stack.fields[name][: len(found)]).all()
    assert set(seen[0]) == {"u", "v"}
