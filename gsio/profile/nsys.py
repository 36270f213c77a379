"""Nsight Systems: how a run is recorded with `nsys`, and how its export is read.

The export is a database, whose tables exist only if they have rows. gsio reads these tables, which the "SQLite Schema
Reference" of Nsight Systems describes; times are in nanoseconds:

NVTX_EVENTS                       start, end, eventType (59: a pushed and popped range, 75: the name of a domain), text,
                                  textId, domainId, globalTid (its lowest 24 bits: the thread)
StringIds                         id, value: what a textId stands for, as for every registered string
CUPTI_ACTIVITY_KIND_KERNEL        start, end
CUPTI_ACTIVITY_KIND_GRAPH_TRACE   start, end: CUDA graphs as a whole, which then have no kernels of their own; with
                                  --cuda-graph-trace=node it is the other way round
CUPTI_ACTIVITY_KIND_MEMCPY        start, end, copyKind (2: from the device to the host)
"""

import os
import re
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Mapping
from contextlib import closing, suppress
from importlib.metadata import version as installed
from pathlib import Path

import psutil

from gsio.errors import DataError, UsageError
from gsio.processes import Terminated, with_parent
from gsio.trace import CATEGORIES
from gsio.trace.timeline import DEVICE, Interval, Recording, recording

# Record only the frame loop, and trace each CUDA graph as one item: tracing single kernels slows the run down.
FLAGS = (
    "--trace=cuda,nvtx",
    "--sample=none",
    "--cpuctxsw=none",
    "--cuda-graph-trace=graph",
    "--capture-range=nvtx",
    "--nvtx-capture=loop@gsio",
    "--capture-range-end=stop",
    "--kill=none",
    "--force-overwrite=true",
)
# Nsight Systems up to LAST_DEAF_NSYS records no ranges of the package nvtx from FIRST_SILENT_NVTX on.
LAST_DEAF_NSYS = 2023
FIRST_SILENT_NVTX = (0, 2, 12)
NAMED = "SELECT start, end, globalTid & 16777215 AS thread, domainId, {name} AS name FROM NVTX_EVENTS {join}"
DEVICE_QUERIES = {
    "CUPTI_ACTIVITY_KIND_KERNEL": ("compute", "SELECT start, end FROM CUPTI_ACTIVITY_KIND_KERNEL"),
    "CUPTI_ACTIVITY_KIND_GRAPH_TRACE": ("compute", "SELECT start, end FROM CUPTI_ACTIVITY_KIND_GRAPH_TRACE"),
    "CUPTI_ACTIVITY_KIND_MEMCPY": ("copy", "SELECT start, end FROM CUPTI_ACTIVITY_KIND_MEMCPY WHERE copyKind = 2"),
}


def find() -> str | None:
    """Return the path of `nsys`, or None if it is not on PATH."""
    return shutil.which("nsys")


def describe(nsys: str) -> tuple[str, str | None]:
    """Return the version of `nsys`, and the reason why it cannot record gsio's ranges, or None if it can."""
    answer = subprocess.run([nsys, "--version"], capture_output=True, text=True, check=False).stdout.strip()
    found = re.search(r"\d{4}(\.\d+)+", answer)
    name = found[0] if found else answer.partition("\n")[0] or "of an unknown version"
    binding = installed("nvtx")
    if (
        found is None
        or int(name[:4]) > LAST_DEAF_NSYS
        or tuple(map(int, re.findall(r"\d+", binding)[:3])) < FIRST_SILENT_NVTX
    ):
        return name, None
    return name, (
        f"nsys {name} records no ranges of nvtx {binding}; expected Nsight Systems {LAST_DEAF_NSYS + 1} or later, or "
        f"else pip install 'nvtx<{'.'.join(map(str, FIRST_SILENT_NVTX))}'"
    )


def record(nsys: str, report: Path, command: list[str], environment: Mapping[str, str] = os.environ) -> int:
    """Run `command` under `nsys`, leave a report of its frame loop at `report`, and return its exit code.

    When this process is stopped or ends, a command of gsio stops too, with a checkpoint.
    """
    arguments = [nsys, "profile", *FLAGS, f"--output={report}", *command]
    with subprocess.Popen(arguments, env=with_parent(environment)) as process:
        while True:
            try:
                return process.wait()
            except Terminated as error:
                if error.number == signal.SIGTERM:  # a terminal that closes signals all its processes itself
                    _terminate_below(process.pid)
            except KeyboardInterrupt:  # the terminal signalled the run too, which stops in its own way
                continue


def _terminate_below(pid: int) -> None:
    """Send SIGTERM to all descendants of a process, or to the process itself if it has none."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for each in process.children(recursive=True) or [process]:
            with suppress(psutil.NoSuchProcess):
                each.terminate()


def export(nsys: str, report: Path, database: Path) -> None:
    """Export `report` to the SQLite file `database`; raise DataError if nsys made no report, or cannot export it."""
    if not report.is_file():
        raise DataError(f"expected nsys to make {report}, got nothing; see what it says above")
    arguments = [nsys, "export", "--type=sqlite", "--force-overwrite=true", f"--output={database}", str(report)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode or not database.is_file():
        told = " ".join((done.stderr or done.stdout).split())
        raise DataError(f"expected 'nsys export' to read {report}, got exit code {done.returncode}: {told}")


def read(path: Path) -> Recording:
    """Return the work of the device and the ranges of the domain `gsio` in an export of Nsight Systems.

    The export is expected to hold one process with such a domain. All frame numbers are 0: they are not read.

    Raises
    ------
    UsageError
        There is no such file.
    DataError
        The file is no such export, or holds neither ranges of gsio nor work of a device.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file; expected one that 'nsys export --type sqlite' made")
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            intervals = _ranges(database, tables)
            for table in tables & DEVICE_QUERIES.keys():
                name, query = DEVICE_QUERIES[table]
                intervals += [_interval(name, DEVICE, *times) for times in database.execute(query)]
    except (sqlite3.DatabaseError, TypeError, ValueError, OverflowError) as error:  # SQLite, and values of another type
        raise DataError(
            f"{path}: expected what 'nsys export --type sqlite' makes, got another file ({error})"
        ) from None
    if not intervals:
        raise DataError(
            f"{path}: expected ranges of gsio or work of a device, got neither; record with nsys profile -t cuda,nvtx"
        )
    spans = [interval for interval in intervals if interval.thread > DEVICE]
    whole = recording("Nsight Systems", spans or intervals)
    ordered = sorted(intervals, key=lambda interval: interval.begin)
    return whole._replace(intervals=[interval for interval in ordered if interval.name != "loop"])


def _ranges(database: sqlite3.Connection, tables: set[str]) -> list[Interval]:
    """Return the ranges of the domain `gsio`; if the export does not name domains, all ranges with gsio's names."""
    if "NVTX_EVENTS" not in tables:
        return []
    named = NAMED.format(name="text", join="")
    if "StringIds" in tables:
        named = NAMED.format(name="COALESCE(text, value)", join="LEFT JOIN StringIds ON textId = id")
    domains = {row[3] for row in database.execute(f"{named} WHERE eventType = 75") if row[4] == "gsio"}
    ranges = database.execute(f"{named} WHERE eventType = 59 AND end IS NOT NULL")
    return [
        _interval(name, thread, start, end)
        for start, end, thread, domain, name in ranges
        if name in CATEGORIES and (domain in domains or not domains)
    ]


def _interval(name: str, thread: int, start: int, end: int) -> Interval:
    return Interval(name, thread, 0, start / 1e9, end / 1e9)
