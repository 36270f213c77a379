"""Timelines: what is kept of a run, for how long, and the file that Perfetto opens."""

import itertools
import json
import threading
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gsio import simulate
from gsio.config import Config
from gsio.errors import DataError, DivergenceError, UsageError
from gsio.testing import small_blocks
from gsio.trace import Trace, timeline
from gsio.trace.timeline import DEVICE, Interval, Timeline

Make = Callable[..., Config]


def events_of(path: Path, phase: str) -> list[dict[str, Any]]:
    return [event for event in json.loads(path.read_text())["traceEvents"] if event["ph"] == phase]


def test_a_span_is_kept_with_its_thread_and_frame() -> None:
    kept = Timeline()
    with Trace(kept).span("encode", 12):
        pass
    (interval,) = kept.recording().intervals
    assert interval[:3] == ("encode", threading.get_native_id(), 12)
    assert interval.begin <= interval.end


def test_a_span_that_fails_is_kept() -> None:
    kept = Timeline()
    with pytest.raises(OSError, match="disk"), Trace(kept).span("write", 3):
        raise OSError("disk")
    assert [interval.name for interval in kept.recording().intervals] == ["write"]


@pytest.mark.parametrize(("begin", "kept"), [(5.0, [(5.0, 7.0)]), (0.0, [])])
def test_a_device_is_kept_if_it_told_when(begin: float, kept: list[tuple[float, float]]) -> None:
    trace = Trace(Timeline())
    trace.device("copy", 4, begin, 2.0)
    assert trace.timeline is not None
    found = trace.timeline.recording().intervals
    assert found == [Interval("copy", DEVICE, 4, *times) for times in kept]


def test_the_last_intervals_are_kept_and_the_part_of_which_none_is_missing_is_told() -> None:
    kept = Timeline(most=3)
    for second in range(5):
        kept.add(Interval("write", 1, second, float(second), second + 0.5))
    kept.add(Interval("loop", 2, 0, 0.0, 5.0))
    source, begin, end, intervals = kept.recording()
    assert [interval.frame for interval in intervals] == [3, 4]
    assert (begin, end) == (2.5, 5.0)
    assert "the last 2.5 of 5.0 s" in source


def test_a_run_of_many_threads_keeps_all_that_fits() -> None:
    kept = Timeline(most=1000)
    trace = Trace(kept)

    def work() -> None:
        for frame in range(400):
            with trace.span("encode", frame):
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(kept.recording().intervals) == 1000


def test_the_file_says_what_every_thread_did_in_microseconds(tmp_path: Path) -> None:
    kept = Timeline()
    for interval in (
        Interval("loop", 9, 0, 100.0, 101.0),
        Interval("advance", 7, 0, 100.0, 100.25),
        Interval("compute", DEVICE, 0, 100.125, 100.5),
        Interval("copy", DEVICE, 0, 100.5, 100.625),
        Interval("stage", 8, 0, 100.25, 100.625),
        Interval("encode", 8, 0, 100.625, 100.75),
        Interval("commit", 6, 0, 100.75, 101.0),
    ):
        kept.add(interval)
    path = tmp_path / "run.json"
    kept.write(path)
    rows = {(event["pid"], event["tid"]): event["args"]["name"] for event in events_of(path, "M") if "tid" in event}
    shown = {
        (rows[event["pid"], event["tid"]], event["name"], event["ts"], event["dur"]) for event in events_of(path, "X")
    }
    assert shown == {
        ("solver", "advance", 0.0, 250_000.0),
        ("compute", "compute", 125_000.0, 375_000.0),
        ("copy", "copy", 500_000.0, 125_000.0),
        ("encode 1", "stage", 250_000.0, 375_000.0),
        ("encode 1", "encode", 625_000.0, 125_000.0),
        ("writer", "commit", 750_000.0, 250_000.0),
    }
    assert all(event["args"] == {"frame": 0} for event in events_of(path, "X"))


def test_a_row_of_the_device_never_overlaps_itself(tmp_path: Path) -> None:
    kept = Timeline()
    for begin, end in ((1.0, 2.0), (1.9999, 3.0), (2.5, 2.75)):
        kept.add(Interval("compute", DEVICE, 0, begin, end))
    kept.write(tmp_path / "run.json")
    times = [(event["ts"], event["ts"] + event["dur"]) for event in events_of(tmp_path / "run.json", "X")]
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(times))
    assert times[1] == (1_000_000.0, 2_000_000.0)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    kept = Timeline()
    kept.add(Interval("loop", 9, 0, 10.0, 12.0))
    kept.add(Interval("compute", DEVICE, 4, 10.5, 11.0))
    kept.add(Interval("encode", 7, 4, 11.0, 11.5))
    kept.write(tmp_path / "run.json")
    assert timeline.read(tmp_path / "run.json") == timeline.Recording(
        "spans and device events",
        0.0,
        2.0,
        [Interval("compute", DEVICE, 4, 0.5, 1.0), Interval("encode", 7, 4, 1.0, 1.5)],
    )


def test_a_timeline_of_nothing_is_a_file_too(tmp_path: Path) -> None:
    Timeline().write(tmp_path / "run.json")
    assert timeline.read(tmp_path / "run.json") == timeline.Recording("spans and device events", 0.0, 0.0, [])


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"traceEvents": []}', '{"otherData": 1, "traceEvents": [{"ph": "X"}]}']
)
def test_another_file_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(DataError, match="expected a timeline"):
        timeline.read(tmp_path / "run.json")


@pytest.mark.parametrize("compression", ["deflate", "none"])
def test_a_run_tells_when_each_block_was_computed_encoded_and_committed(
    compression: str, make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_blocks(block_bytes=1, chunk_bytes=1)  # a frame a block
    config = make_config({"run.frames": 6, "output.compression": compression, "output.threads": 2})
    simulate(config, tmp_path / "run.h5", timeline=tmp_path / "run.json")
    recorded = timeline.read(tmp_path / "run.json")
    frames = defaultdict(list)
    for name, thread, frame, begin, end in recorded.intervals:
        assert 0 <= begin <= end
        assert end <= recorded.end or name == "checkpoint"  # the last one is saved after the loop
        assert thread != DEVICE  # the CPU has no clock of its own
        frames[name].append(frame)
    for name in ("wait_block", "advance", "stage", "encode"):
        assert sorted(frames[name]) == list(range(6))
    assert frames["commit"][0] == 0
    assert set(timeline.thread_roles(recorded.intervals).values()) <= {
        "solver",
        "encode 1",
        "encode 2",
        "writer",
        "checkpoint",
    }


def test_a_run_that_fails_has_a_timeline(make_config: Make, tmp_path: Path) -> None:
    config = make_config({"run.frames": 50, "initial.kind": "file", "initial.path": str(diverging(tmp_path))})
    with pytest.raises(DivergenceError):
        simulate(config, tmp_path / "run.h5", timeline=tmp_path / "run.json")
    assert any(interval.name == "advance" for interval in timeline.read(tmp_path / "run.json").intervals)


def diverging(folder: Path) -> Path:
    """Return a start from which the fields grow without bound."""
    u, v = np.ones((12, 17)), np.zeros((12, 17))
    v[3, 4] = 1e30
    np.savez(folder / "start.npz", u=u, v=v)
    return folder / "start.npz"


@pytest.mark.parametrize("name", ["no-such-folder/run.json", "."])
def test_a_timeline_that_cannot_be_written_is_refused_before_the_run(
    name: str, make_config: Make, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="--timeline"):
        simulate(make_config(), tmp_path / "run.h5", timeline=tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_each_device_has_rows_of_its_own(tmp_path: Path) -> None:
    kept, numbers = Timeline(), range(3)
    intervals = [Interval(name, -n, 0, 1.0 + n, 1.5 + n) for n in numbers for name in ("compute", "copy")]
    for interval in intervals:
        kept.add(interval)
    path = tmp_path / "run.json"
    kept.write(path)
    rows = {event["tid"]: event["args"]["name"] for event in events_of(path, "M") if "tid" in event}
    assert [*rows.values()] == ["compute 0", "copy 0", "compute 1", "copy 1", "compute 2", "copy 2"]
    assert all(rows[event["tid"]].startswith(event["name"]) for event in events_of(path, "X"))
    assert [(i.name, i.thread) for i in timeline.read(path).intervals] == [(i.name, i.thread) for i in intervals]
