"""What overlapped in a run: timelines with known answers, and any intervals against counting seconds on a grid."""

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gsio.profile.overlap import ENCODE_AND_WRITE, Pair, Report, gaps, intersection, length, overlap, union
from gsio.trace.timeline import DEVICE, Interval, Recording

SOLVER, ENCODER, WRITER = 1, 2, 3
pairs = st.lists(st.tuples(st.integers(0, 30), st.integers(-2, 10)).map(lambda pair: (pair[0], sum(pair))), max_size=12)


def seconds(spans: Iterable[Pair]) -> set[int]:
    """Return the whole seconds that intervals with whole ends cover: the oracle."""
    return {second for begin, end in spans for second in range(int(begin), int(end))}


def is_union(spans: list[Pair]) -> bool:
    apart = all(before[1] < after[0] for before, after in itertools.pairwise(spans))
    return apart and all(begin < end for begin, end in spans)


@pytest.mark.parametrize(
    ("intervals", "expected"),
    [
        ([], []),
        ([(1, 4)], [(1, 4)]),
        ([(0, 9), (2, 3)], [(0, 9)]),
        ([(5, 6), (0, 1)], [(0, 1), (5, 6)]),
        ([(0, 1), (1, 2)], [(0, 2)]),
        ([(0, 2), (1, 3), (5, 6)], [(0, 3), (5, 6)]),
        ([(1, 1), (3, 2)], []),
    ],
    ids=["none", "one", "nested", "disjoint", "touching", "overlapping", "empty"],
)
def test_the_union_of_intervals(intervals: list[Pair], expected: list[Pair]) -> None:
    assert union(intervals) == expected


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([], [(0, 1)], []),
        ([(0, 9)], [(2, 3), (5, 6)], [(2, 3), (5, 6)]),
        ([(0, 1)], [(2, 3)], []),
        ([(0, 1)], [(1, 2)], []),
        ([(0, 2), (3, 5)], [(1, 4)], [(1, 2), (3, 4)]),
        ([(0, 2)], [(0, 2)], [(0, 2)]),
    ],
    ids=["empty", "nested", "disjoint", "touching", "across", "equal"],
)
def test_what_two_unions_have_in_common(one: list[Pair], other: list[Pair], expected: list[Pair]) -> None:
    assert intersection(one, other) == expected
    assert intersection(other, one) == expected


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([], [(0, 10)]),
        ([(0, 10)], []),
        ([(-5, 20)], []),
        ([(2, 3)], [(0, 2), (3, 10)]),
        ([(0, 4), (6, 10)], [(4, 6)]),
        ([(-3, -1), (12, 13)], [(0, 10)]),
    ],
)
def test_the_gaps_of_a_union(spans: list[Pair], expected: list[Pair]) -> None:
    assert gaps(spans, 0, 10) == expected


@settings(deadline=None)
@given(pairs, pairs, st.integers(0, 20), st.integers(0, 25))
def test_arithmetic_agrees_with_counting_seconds(one: list[Pair], other: list[Pair], begin: int, span: int) -> None:
    a, b, window = union(one), union(other), set(range(begin, begin + span))
    assert is_union(a)
    assert seconds(a) == seconds(one)
    assert length(a) == len(seconds(one))
    assert is_union(intersection(a, b))
    assert seconds(intersection(a, b)) == seconds(one) & seconds(other)
    assert is_union(gaps(a, begin, begin + span))
    assert seconds(gaps(a, begin, begin + span)) == window - seconds(one)


def recorded(*intervals: tuple[str, int, float, float], begin: float = 0, end: float = 10) -> Recording:
    return Recording("test", begin, end, [Interval(name, thread, 0, *times) for name, thread, *times in intervals])


def test_a_run_whose_every_number_is_known() -> None:
    report = overlap(
        recorded(
            ("wait_block", SOLVER, 0, 1),
            ("advance", SOLVER, 1, 2),
            ("compute", DEVICE, 1, 4),
            ("copy", DEVICE, 4, 5),
            ("wait_block", SOLVER, 4, 5.5),
            ("advance", SOLVER, 5.5, 6),
            ("encode", ENCODER, 5, 8),
            ("compute", DEVICE, 6, 8),
            ("copy", DEVICE, 7, 9),
            ("write", WRITER, 7, 8.5),
            ("commit", WRITER, 8.5, 9.5),
        )
    )
    busy = {name: (lane.busy, lane.hidden) for name, lane in report.lanes.items()}
    assert busy == {
        "compute": (5, 5),
        "copy": (3, 1),
        "encode": (3, 2),
        "write": (2.5, 1),
        ENCODE_AND_WRITE: (4.5, 2),
    }
    assert (report.idle_before, report.idle_between, report.idle_after) == (1, 2, 2)
    (gap,) = report.gaps
    assert (gap.begin, gap.end) == (4, 6)
    assert gap.host == {"wait_block": 0.75, "advance": 0.25, "encode": 0.5}
    assert (report.blocks, report.bound, report.notes) == (2, "", [])


def test_gaps_of_fifty_microseconds_or_less_are_not_listed() -> None:
    intervals = [("compute", DEVICE, 0, 4), ("compute", DEVICE, 4.00005, 6), ("compute", DEVICE, 6.001, 10)]
    report = overlap(recorded(*intervals, ("encode", ENCODER, 0, 1)))
    assert [(gap.begin, gap.end, gap.host) for gap in report.gaps] == [(6, 6.001, {})]
    assert report.idle_between == pytest.approx(0.00105)


def test_only_what_is_within_the_loop_counts() -> None:
    intervals = [("compute", DEVICE, 0, 20), ("encode", ENCODER, 4, 6), ("encode", ENCODER, 14, 30)]
    report = overlap(recorded(*intervals, begin=5, end=15))
    assert report.lanes["compute"].busy == 10
    assert (report.lanes["encode"].busy, report.lanes["encode"].hidden) == (2, 2)
    assert (report.idle_before, report.idle_between, report.idle_after) == (0, 0, 0)


def test_gaps_are_told_from_the_begin_of_the_loop() -> None:
    intervals = [("compute", DEVICE, 101, 102), ("compute", DEVICE, 103, 104), ("wait_block", SOLVER, 102, 103)]
    report = overlap(recorded(*intervals, begin=100, end=104))
    assert [(gap.begin, gap.end, gap.host) for gap in report.gaps] == [(2, 3, {"wait_block": 1})]


def test_each_gap_is_told_with_what_the_host_did_in_it() -> None:
    device = [("compute", DEVICE, second, second + 1) for second in (0, 2, 5, 9)]
    host = [("wait_block", SOLVER, 1.5, 4), ("advance", SOLVER, 6, 7), ("wait_block", SOLVER, 8, 10)]
    report = overlap(recorded(*device, *host, ("write", WRITER, 0, 10)))
    assert [(gap.begin, gap.end, gap.host) for gap in report.gaps] == [
        (1, 2, {"wait_block": 0.5, "write": 1}),
        (3, 5, {"wait_block": 0.5, "write": 1}),
        (6, 9, pytest.approx({"advance": 1 / 3, "wait_block": 1 / 3, "write": 1})),
    ]


BUSY = {
    "compute": [("compute", DEVICE, 0, 9.5), ("encode", ENCODER, 1, 2), ("write", WRITER, 2, 3)],
    "copy": [("compute", DEVICE, 0, 3), ("copy", DEVICE, 1, 10), ("encode", ENCODER, 1, 2)],
    "encode": [("compute", DEVICE, 0, 3), ("encode", ENCODER, 0, 9), ("encode", 5, 0.5, 10), ("write", WRITER, 0, 5)],
    "write": [("compute", DEVICE, 0, 3), ("encode", ENCODER, 0, 3), ("write", WRITER, 1, 9), ("commit", WRITER, 9, 10)],
    "": [("compute", DEVICE, 0, 5), ("copy", DEVICE, 5, 6), ("encode", ENCODER, 6, 8), ("write", WRITER, 8, 10)],
}


@pytest.mark.parametrize("bound", BUSY)
def test_the_resource_that_is_busy_all_the_time_bounds_the_run(bound: str) -> None:
    assert overlap(recorded(*BUSY[bound])).bound == bound


def test_many_threads_that_idle_bound_nothing() -> None:
    turns = [("encode", 10 + second, second, second + 1) for second in range(10)]
    report = overlap(recorded(("compute", DEVICE, 0, 3), *turns))
    assert report.lanes["encode"].busy == 10
    assert report.lanes["encode"].occupied == pytest.approx(0.1)
    assert report.bound == ""


@pytest.mark.parametrize(("encoding", "bound"), [(0.3, "write"), (0.7, "encode")])
def test_threads_that_encode_and_write_are_bound_by_what_they_do_more(encoding: float, bound: str) -> None:
    spans = []
    for second in range(10):
        for thread in (ENCODER, 5):
            spans.append(("encode", thread, second, second + encoding))
            spans.append(("write", thread, second + encoding, second + 1))
    report = overlap(recorded(("compute", DEVICE, 0, 3), *spans, ("commit", WRITER, 9, 9.5)))
    assert report.bound == bound


def test_without_a_device_advancing_is_computing() -> None:
    report = overlap(recorded(("advance", SOLVER, 0, 9), ("encode", ENCODER, 2, 4), ("encode", ENCODER, 9, 10)))
    assert report.lanes["compute"].busy == 9
    assert report.lanes["encode"].hidden == 2
    assert report.bound == "compute"
    (note,) = report.notes
    assert "advance" in note


def test_without_spans_of_the_host_the_device_is_told_of() -> None:
    report = overlap(recorded(("compute", DEVICE, 0, 4), ("compute", DEVICE, 5, 10), ("copy", DEVICE, 3, 5)))
    assert set(report.lanes) == {"compute", "copy"}
    assert report.lanes["copy"].hidden == 1
    (note,) = report.notes
    assert "gsio doctor" in note


def test_of_nothing_there_is_a_report() -> None:
    report = overlap(recorded(begin=0, end=0))
    assert (report.lanes, report.bound, report.gaps) == ({}, "", [])
    assert "nan" not in str(report)


def some_report() -> Report:
    return overlap(
        recorded(
            ("advance", SOLVER, 0, 1),
            ("compute", DEVICE, 0.5, 4),
            ("compute", DEVICE, 5, 9),
            ("wait_block", SOLVER, 4, 4.8),
            ("copy", DEVICE, 3, 5),
            ("encode", ENCODER, 4, 6),
            ("write", WRITER, 6, 7),
        )
    )


def test_the_report_is_a_few_lines_that_say_the_numbers() -> None:
    lines = str(some_report()).splitlines()
    assert len(lines) <= 15
    assert max(map(len, lines)) <= 120
    text = {line[:14].strip(): line[14:].split() for line in lines}
    assert text["compute"] == ["7.500", "75.0%"]
    assert text["copy"] == ["2.000", "20.0%", "50.0%"]
    assert text["encode"] == ["2.000", "20.0%", "50.0%", "1", "thread,", "20%", "occupied"]
    assert text["encode, write"] == ["3.000", "30.0%", "66.7%"]
    assert text["device idle"][0] == "25.00%"
    assert " ".join(text["gaps"]).startswith("1 over 50 µs, 1000.00 ms in all, the longest 1000.00 ms at 4.000 s")
    assert "encode 100%, wait_block 80%" in " ".join(text["gaps"])
    assert text["bound by"][0] == "nothing:"
