"""What a run tells: log lines, rates and the bar, spans and the summary, and what is said of the machine."""

import ctypes
import importlib.machinery
import io
import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from gsio import log, simulate, trace
from gsio.cli.doctor import findings
from gsio.config import Config
from gsio.machine import Driver, find_driver, how_to_install_cupy
from gsio.run import progress
from gsio.run.plan import choose_backend
from gsio.run.progress import Progress
from gsio.run.summary import Summary
from gsio.trace import CATEGORIES, Counter, Trace

Make = Callable[..., Config]
Interval = tuple[float, float]
COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-9][0-9;]*m")
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
ERASE = "\x1b[2K"
EVENT = structlog.get_logger()


@pytest.fixture(autouse=True)
def fresh_log() -> Iterator[None]:
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Return a stream that says it is a terminal."""
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    return stream


# Log lines


@pytest.mark.parametrize(("log_format", "is_terminal"), [("json", False), ("json", True)])
def test_events_are_json_lines_when_asked(
    log_format: log.LogFormat, is_terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = terminal(monkeypatch) if is_terminal else io.StringIO()
    log.configure(log_format, stream=stream)
    structlog.contextvars.bind_contextvars(run="r1")
    EVENT.info("run started", frames=3)
    EVENT.warning("slow disk")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert first.pop("timestamp")
    assert first == {"event": "run started", "level": "info", "frames": 3, "run": "r1"}
    assert (second["event"], second["level"]) == ("slow disk", "warning")


@pytest.mark.parametrize(("log_format", "is_terminal"), [("text", False), ("text", True)])
def test_events_are_lines_of_text_on_and_off_a_terminal(
    log_format: log.LogFormat, is_terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = terminal(monkeypatch) if is_terminal else io.StringIO()
    log.configure(log_format, stream=stream)
    EVENT.info("run started", frames=3)
    EVENT.warning("slow disk")
    assert stream.getvalue() == "gsio: run started frames=3\ngsio: warning: slow disk\n"


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({}, ["info", "warning", "error"]),
        ({"quiet": True}, ["warning", "error"]),
        ({"debug": True}, ["debug", "info", "warning", "error"]),
    ],
)
@pytest.mark.parametrize("log_format", ["json", "text"])
def test_quiet_leaves_warnings_and_debug_adds_commits(
    options: dict[str, bool], left: list[str], log_format: log.LogFormat
) -> None:
    stream = io.StringIO()
    log.configure(log_format, stream=stream, **options)
    for level in ("debug", "info", "warning", "error"):
        getattr(EVENT, level)(f"a {level} event")
    written = stream.getvalue().splitlines()
    assert len(written) == len(left)
    assert all(f"a {level} event" in line for level, line in zip(left, written, strict=True))


def test_lines_of_text_are_the_same_without_structlog_which_is_not_imported_for_them(tmp_path: Path) -> None:
    program = """
import sys
if sys.argv[1] == "with":
    import structlog
from gsio import log
log.configure("text")
log.name_run("r1")
log.log.debug("not shown")
log.log.info("run started", frames=3)
log.log.warning("slow\x1bdisk")
print("structlog" in sys.modules, log.bound())
"""
    told = {}
    for how in ("with", "without"):
        done = subprocess.run([sys.executable, "-c", program, how], capture_output=True, text=True, check=True)
        assert done.stdout == f"{how == 'with'} {{'run': 'r1'}}\n"
        told[how] = done.stderr
    assert told["with"] == told["without"] == "gsio: run started frames=3\ngsio: warning: slow\\x1bdisk\n"


def test_events_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("text")
    EVENT.info("run started")
    assert capsys.readouterr() == ("", "gsio: run started\n")


# Throughput and the bar


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Replace the clock of the trace by one whose `now` a test sets."""
    stopped = SimpleNamespace(now=100.0)
    monkeypatch.setattr(trace, "time", SimpleNamespace(**{**vars(time), "perf_counter": lambda: stopped.now}))
    return stopped


# A run that has committed 40 of 100 frames.
NOW = Progress(
    frames_total=100, steps_per_frame=50, first=0, frames_committed=40, frames_durable=20, cells=2_000_000,
    frame_nbytes=8_000_000, nbytes=80_000_000, nbytes_before=0, frames_per_block=8, blocks_in_use=3, seconds=20.0,
)  # fmt: skip


def test_throughput_is_that_since_the_loop_began() -> None:
    assert NOW.throughput._asdict() == pytest.approx(
        {
            "frames": 40,
            "steps_per_second": 100.0,
            "gcells_per_second": 0.2,
            "gigabytes_in": 0.016,
            "gigabytes_out": 0.004,
            "ratio": 4.0,
            "blocks_in_flight": 3,
            "seconds_left": 30.0,
        }
    )


def test_throughput_of_a_resumed_run_is_that_of_its_own_frames() -> None:
    now = replace(NOW, first=20, nbytes_before=60_000_000).throughput
    assert (now.frames, now.steps_per_second, now.gigabytes_out, now.seconds_left) == (40, 50.0, 0.001, 60.0)


@pytest.mark.parametrize("seconds", [0.0, 20.0])
def test_throughput_before_the_first_frame_is_finite(seconds: float) -> None:
    now = replace(NOW, frames_committed=0, nbytes=0, seconds=seconds).throughput
    assert now.seconds_left is None
    assert (now.frames, now.steps_per_second, now.gigabytes_in, now.gigabytes_out, now.ratio) == (0, 0, 0, 0, 0)


@pytest.mark.parametrize("frames", [0, 1, 40, 100])
@pytest.mark.parametrize("nbytes", [0, 80_000_000])
@pytest.mark.parametrize("seconds", [0.0, 10.0])
def test_progress_events_are_strict_json(
    frames: int, nbytes: int, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    stream = io.StringIO()
    log.configure("json", stream=stream)
    with progress.run_progress(quiet=False) as observe:
        observe(replace(NOW, frames_committed=frames, nbytes=nbytes, seconds=seconds))
    (line,) = stream.getvalue().splitlines()
    event = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert event["event"] == "progress"
    assert event["frames"] == frames
    assert (event["seconds_left"] is None) == (frames == 0)


def test_an_event_every_ten_seconds_off_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    counts = []
    with structlog.testing.capture_logs() as events, progress.run_progress(quiet=False) as observe:
        for seconds in (0, 5, 9, 10, 11, 19, 20, 25, 31):
            observe(replace(NOW, seconds=float(seconds)))
            counts.append(len(events))
    assert counts == [0, 0, 0, 1, 1, 1, 2, 2, 3]


def test_quiet_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = terminal(monkeypatch)
    monkeypatch.setattr(sys, "stderr", stream)
    with structlog.testing.capture_logs() as events, progress.run_progress(quiet=True) as observe:
        observe(replace(NOW, seconds=1000.0))
    assert stream.getvalue() == ""
    assert events == []


def draw(
    now: Progress, monkeypatch: pytest.MonkeyPatch, *, no_color: bool = False, columns: int = 80
) -> tuple[str, list[str], str]:
    """Return what the bar writes to a terminal: as written, as lines of text, and what is written at its end."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": "24"}.items():
        monkeypatch.setenv(name, value)
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    stream = terminal(monkeypatch)
    monkeypatch.setattr(sys, "stderr", stream)
    with progress.run_progress(quiet=False) as observe:
        observe(now)
        drawn = stream.getvalue()
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", CONTROL.sub("", drawn)) if line.strip()]
    return drawn, lines, stream.getvalue()[len(drawn) :]


@pytest.mark.parametrize("frames", [0, 1, 999_999, 1_000_000])
def test_the_bar_and_its_two_lines_fit_in_80_columns(frames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    after_two_hours = replace(
        NOW, frames_total=1_000_000, frames_committed=frames, steps_per_frame=1000, seconds=7200.0
    )
    _, lines, after = draw(after_two_hours, monkeypatch)
    assert max(map(len, lines)) <= 80
    assert len(lines) == 3  # none is wrapped
    (first,) = [line for line in lines if f"frame {frames}/1000000" in line]
    (traffic,) = [line for line in lines if "GB/s" in line]
    assert first.endswith("left" if frames < 1_000_000 else "durable … 0 s")  # nor cut off
    assert traffic.endswith("3 blocks in flight")
    assert after[after.rindex(lines[-1][-1]) :].count(ERASE) == 3  # and the bar goes away


@pytest.mark.parametrize("no_color", [False, True])
def test_the_bar_honours_no_color(no_color: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, _, _ = draw(NOW, monkeypatch, no_color=no_color)
    assert bool(COLOUR.search(drawn)) is not no_color


def test_the_bar_tells_two_days_from_one(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    for days in (1, 2):
        now = replace(NOW, frames_committed=1, seconds=days * 86_400 / 99)  # 1 of 100 frames
        shown.append(re.search(r"cell/s +(.*) left", "\n".join(draw(now, monkeypatch, no_color=True)[1])))
    if None in shown:
        pytest.fail("no time left is shown")
    assert shown[0][1] != shown[1][1]


def test_a_real_run_shows_its_throughput(make_config: Make, tmp_path: Path) -> None:
    seen: list[Progress] = []
    simulate(make_config(), tmp_path / "run.h5", watch=seen.append)
    assert seen
    for now in seen:
        assert 0 <= now.frames_committed <= 5
        assert all(value is None or (math.isfinite(value) and value >= 0) for value in now.throughput)


# Counters and spans


def count(intervals: list[Interval], *, leave_first: bool = False) -> Counter:
    """Return a counter that each interval, one thread each, has entered and left in the order of time."""
    counter = Counter()
    events = [(start, leave_first, None) for start, _ in intervals]
    ends = [(end, not leave_first, start) for start, end in intervals]
    for now, _, since in sorted([*events, *ends], key=lambda event: event[:2]):
        if since is None:
            counter.enter(now)
        else:
            counter.leave(since, now)
    return counter


@pytest.mark.parametrize(
    ("intervals", "busy", "total"),
    [
        ([], 0, 0),
        ([(1, 4)], 3, 3),
        ([(0, 3), (1, 2)], 3, 4),
        ([(0, 1), (2, 4)], 3, 3),
        ([(0, 1), (1, 3)], 3, 3),
        ([(0, 2), (1, 3)], 3, 4),
        ([(0, 2), (0, 2), (0, 2)], 2, 6),
        ([(0, 2), (1, 3), (5, 6), (5, 8), (6, 7)], 6, 9),
    ],
    ids=["none", "one", "nested", "disjoint", "touching", "overlapping", "equal", "mixed"],
)
@pytest.mark.parametrize("leave_first", [False, True])
def test_a_counter_has_union_and_sum(intervals: list[Interval], busy: float, total: float, leave_first: bool) -> None:
    counter = count(intervals, leave_first=leave_first)
    assert (counter.busy, counter.total) == (busy, total)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 10)), max_size=12), st.booleans())
def test_a_counter_has_union_and_sum_of_any_intervals(starts: list[tuple[int, int]], leave_first: bool) -> None:
    intervals = [(start, start + length) for start, length in starts]
    counter = count([(float(start), float(end)) for start, end in intervals], leave_first=leave_first)
    assert counter.busy == len({second for start, end in intervals for second in range(start, end)})
    assert counter.total == sum(end - start for start, end in intervals)


def counted(spans: Trace) -> dict[str, float]:
    names = ("wait", "encode", "write", "io")
    return {name: getattr(spans, name).total for name in names if getattr(spans, name).total}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("advance", {}),
        ("stage", {}),
        ("wait_block", {"wait": 2.0}),
        ("encode", {"encode": 2.0, "io": 2.0}),
        ("write", {"write": 2.0, "io": 2.0}),
        ("commit", {"write": 2.0, "io": 2.0}),
    ],
)
def test_a_span_counts_with_no_profiler_attached(name: str, expected: dict[str, float], clock: SimpleNamespace) -> None:
    assert name in CATEGORIES
    spans = Trace()
    with spans.span(name, 7):
        clock.now += 2.0
    assert counted(spans) == expected


def test_nested_spans_share_the_io_counter(clock: SimpleNamespace) -> None:
    spans = Trace()
    with spans.span("encode", 0):
        clock.now += 1.0
        with spans.span("write", 0):
            clock.now += 2.0
    assert (spans.encode.busy, spans.write.busy, spans.io.busy, spans.io.total) == (3.0, 2.0, 3.0, 5.0)


def test_a_span_that_fails_is_counted_and_hides_nothing(clock: SimpleNamespace) -> None:
    spans = Trace()
    with pytest.raises(OSError, match="disk"), spans.span("write", 0):
        clock.now += 2.0
        raise OSError("disk")
    assert spans.write.busy == 2.0


def test_a_span_has_one_of_the_constant_names() -> None:
    with pytest.raises(KeyError):
        Trace().span("think", 0)


LARGE_RUN = {
    "output": Path("production.h5"),
    "device": "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition, CUDA 13.0",
    "first": 0,
    "frames": 10_000_000,
    "cells": 10**18,
    "wall_seconds": 654_321.987,
    "loop_seconds": 654_320.123,
    "compute_seconds": 600_000.5,
    "link_seconds": 54_321.0,
    "encode_seconds": 333_333.3,
    "write_seconds": 222_222.2,
    "wait_seconds": 111_111.1,
    "bottleneck": "compute",
    "hidden": 0.987,
    "nbytes_in": 10**14,
    "nbytes_out": 4 * 10**13,
}


def test_the_summary_of_a_large_run_is_short() -> None:
    lines = str(Summary(**LARGE_RUN)).splitlines()
    assert len(lines) <= 12
    assert [line for line in lines if len(line) > 80] == []


def test_the_summary_says_what_the_run_took() -> None:
    text = str(Summary(**LARGE_RUN))
    assert "10000000 frames" in text
    assert re.search(r"40000\.0+ GB.*2\.50", text)
    for name, seconds in {
        "wall": "654321.98",
        "compute": "600000.5",
        "link": "54321.0",
        "encode": "333333.3",
        "write": "222222.2",
        "waited": "111111.1",
    }.items():
        assert re.search(rf"^{name} +{re.escape(seconds)}", text, re.MULTILINE)
    assert re.search(r"^bottleneck +compute.*99%", text, re.MULTILINE)


def test_the_summary_of_an_empty_file_is_finite() -> None:
    text = str(Summary(**{**LARGE_RUN, "nbytes_out": 0, "compute_seconds": 0.0, "cells": 0}))
    assert "inf" not in text
    assert "nan" not in text


# What is said of the machine


def use_driver(
    monkeypatch: pytest.MonkeyPatch, gpus: tuple[str, ...] = ("NVIDIA H200",), version: int = 12_040, failure: int = 0
) -> None:
    """Put a stand-in for libcuda in place, with these GPUs; cuInit returns `failure`."""

    def set_number(pointer: Any, number: int) -> int:
        pointer._obj.value = number
        return 0

    def set_name(buffer: Any, length: int, ordinal: int) -> int:
        buffer.value = gpus[ordinal].encode()[: length - 1]
        return 0

    library = SimpleNamespace(
        cuInit=lambda flags: failure,
        cuDriverGetVersion=lambda pointer: set_number(pointer, version),
        cuDeviceGetCount=lambda pointer: set_number(pointer, len(gpus)),
        cuDeviceGetName=set_name,
    )
    monkeypatch.setattr(ctypes, "CDLL", lambda name, *_, **__: library)


def use_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, *_: object, **__: object) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", refuse)


def use_cupy(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None = None, capability: tuple[int, int] = (9, 0)
) -> None:
    """Put a stand-in for CuPy in place, which fails with `error` at its first call."""

    def call(result: Any) -> Callable[..., Any]:
        def answer(*_: Any) -> Any:
            if error is not None:
                raise error
            return result

        return answer

    cupy: Any = ModuleType("cupy")
    cupy.__spec__ = importlib.machinery.ModuleSpec("cupy", None)
    cupy.__version__ = "13.4.0"
    cupy.cuda = SimpleNamespace(
        runtime=SimpleNamespace(
            memGetInfo=call((140 * 10**9, 150 * 10**9)),
            runtimeGetVersion=call(12_090),
            getDeviceProperties=call({"major": capability[0], "minor": capability[1]}),
        )
    )
    cupy.RawKernel = lambda source, name, *_, **__: SimpleNamespace(compile=call(None))
    monkeypatch.setitem(sys.modules, "cupy", cupy)


def hide_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)


def test_no_library_is_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    use_no_driver(monkeypatch)
    assert find_driver() is None


def test_a_driver_that_does_not_start_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    use_driver(monkeypatch, failure=100)
    assert find_driver() is None


@pytest.mark.parametrize("gpus", [(), ("NVIDIA H200",), ("NVIDIA H200", "NVIDIA L4")])
@pytest.mark.parametrize(("version", "cuda"), [(12_040, (12, 4)), (13_000, (13, 0)), (12_110, (12, 11))])
def test_the_driver_names_its_version_and_gpus(
    gpus: tuple[str, ...], version: int, cuda: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_driver(monkeypatch, gpus, version)
    assert find_driver() == Driver(cuda, gpus)


@pytest.mark.parametrize(
    ("cuda", "extra"), [((12, 0), "cuda12"), ((12, 9), "cuda12"), ((13, 0), "cuda13"), ((14, 1), "cuda13")]
)
def test_the_cupy_to_install_is_one_the_driver_runs(cuda: tuple[int, int], extra: str) -> None:
    command = how_to_install_cupy(Driver(cuda, ("NVIDIA H200",)))
    assert command.startswith("pip install ")
    assert f"gsio[{extra}]" in command


@pytest.mark.parametrize("gpus", [None, ()])
def test_auto_without_a_gpu_is_numba_and_says_nothing(
    gpus: tuple[str, ...] | None, make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    if gpus is None:
        use_no_driver(monkeypatch)
    else:
        use_driver(monkeypatch, gpus)
    with structlog.testing.capture_logs() as events:
        assert choose_backend(make_config({"run.backend": "auto"})) == "numba"
    assert events == []


@pytest.mark.parametrize("broken", [None, RuntimeError("cudaErrorInsufficientDriver: too old\nsecond line")])
def test_auto_with_a_gpu_but_no_cupy_warns_once(
    broken: Exception | None, make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_driver(monkeypatch, version=13_000)
    if broken is None:
        hide_cupy(monkeypatch)
    else:
        use_cupy(monkeypatch, broken)
    with structlog.testing.capture_logs() as events:
        assert choose_backend(make_config({"run.backend": "auto"})) == "numba"
    (event,) = events
    assert event["log_level"] == "warning"
    for fact in (
        "NVIDIA H200",
        "CPU",
        "pip install 'gsio[cuda13]'",
        "cudaErrorInsufficientDriver" if broken else "CuPy",
    ):
        assert fact in event["event"]
    assert "\n" not in event["event"]


def test_auto_with_a_gpu_and_cupy_is_cupy(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    use_driver(monkeypatch)
    use_cupy(monkeypatch)
    with structlog.testing.capture_logs() as events:
        assert choose_backend(make_config({"run.backend": "auto"})) == "cupy"
    assert events == []


def test_auto_with_a_gpu_too_old_warns_and_is_numba(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    use_driver(monkeypatch)
    use_cupy(monkeypatch, capability=(7, 5))
    with structlog.testing.capture_logs() as events:
        assert choose_backend(make_config({"run.backend": "auto"})) == "numba"
    (event,) = events
    assert event["log_level"] == "warning"
    for fact in ("NVIDIA H200", "CPU", "8.0", "7.5"):
        assert fact in event["event"]


@pytest.mark.parametrize("backend", ["cupy", "numba", "numpy"])
def test_a_named_backend_is_taken_as_it_is(backend: str, make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    use_no_driver(monkeypatch)
    assert choose_backend(make_config({"run.backend": backend})) == backend


def test_doctor_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    use_no_driver(monkeypatch)
    found = dict(findings())
    assert list(found) == ["python", "cores", "memory", "disk", "gpu"]
    assert "CPU" in found["gpu"]
    assert ".".join(map(str, sys.version_info[:3])) in found["python"]
    assert str(Path.cwd()) in found["disk"]


def test_doctor_with_a_gpu_but_no_cupy_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    use_driver(monkeypatch, ("NVIDIA H200", "NVIDIA L4"))
    hide_cupy(monkeypatch)
    found = dict(findings())
    for fact in ("NVIDIA H200", "NVIDIA L4", "12.4"):
        assert fact in found["gpu"]
    assert "not installed" in found["cupy"]
    assert "pip install 'gsio[cuda12]'" in found["cupy"]
    assert "nvrtc" not in found


def test_doctor_with_a_cupy_that_does_not_start_gives_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    use_driver(monkeypatch)
    use_cupy(monkeypatch, RuntimeError("cudaErrorInsufficientDriver: too old\nsecond line"))
    found = dict(findings())
    for fact in ("cudaErrorInsufficientDriver", "pip install 'gsio[cuda12]'"):
        assert fact in found["cupy"]
    assert all("\n" not in finding for finding in found.values())


def test_doctor_with_a_working_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    use_driver(monkeypatch)
    use_cupy(monkeypatch)
    found = dict(findings())
    assert "13.4.0" in found["cupy"]
    assert "140.0 GB" in found["gpu memory"]
    assert "150.0 GB" in found["gpu memory"]
    assert "compiles" in found["nvrtc"]


def test_doctor_survives_an_error_without_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    use_driver(monkeypatch)
    use_cupy(monkeypatch, RuntimeError())
    assert "pip install" in dict(findings())["cupy"]
