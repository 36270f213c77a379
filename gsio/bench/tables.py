"""Tables of measurements: rows in processes of their own, interleaved repeats, medians and spread."""

import json
import os
import signal
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from gsio.bench.machine import facts
from gsio.errors import UsageError
from gsio.files import new_file, require_folder, require_new
from gsio.processes import python_module, with_parent

Measurement = dict[str, Any]  # numbers and texts by key


class Options(NamedTuple):
    """Options of the command; `device` is gpu or cpu, and 0 for `repeats` or `timeout` means the value of the table.

    `devices` names several GPUs, for the tables that compare them with one.
    """

    device: str
    only: str
    repeats: int
    timeout: float
    folder: Path | None
    frames: int
    quick: bool
    devices: str = ""


class Row(NamedTuple):
    """The name of a row, and the arguments of its measurement, which JSON can hold."""

    name: str
    arguments: list[Any]


class Column(NamedTuple):
    """The medians of a key, with their spread if `spread`, and divided by the median of the first row if `relative`."""

    title: str
    key: str
    format: str = ".4g"
    spread: bool = False
    relative: bool = False


class Table(NamedTuple):
    """The rows and columns of a table; a plot shows the first column of numbers."""

    title: str
    rows: list[Row]
    columns: list[Column]
    repeats: int = 3
    timeout: float = 600


class Results(NamedTuple):
    """The measurements of each row, or the reason why the row was not run."""

    name: str
    table: Table
    found: dict[str, list[Measurement]]
    reasons: dict[str, str]


def measure_table(name: str, options: Options, log: Callable[[str], None]) -> Results:
    """Measure all rows once, then all again, so that a drift of the machine affects all rows alike."""
    table: Table = import_module(f"gsio.bench.{name}").table(options)
    repeats = options.repeats or (1 if options.quick else table.repeats)
    rows = [row for row in table.rows if options.only in row.name]
    table = table._replace(rows=rows, repeats=repeats)
    found: dict[str, list[Measurement]] = {row.name: [] for row in rows}
    reasons: dict[str, str] = {}
    for repeat in range(repeats):
        for row in rows:
            if row.name in reasons:
                continue
            try:
                found[row.name].append(measure_row(name, options, row.arguments, table.timeout))
            except RuntimeError as error:
                reasons[row.name] = str(error)
            log(f"{repeat + 1}/{repeats} {row.name} {reasons.get(row.name, '')}".rstrip())
    return Results(name, table, found, reasons)


def measure_row(name: str, options: Options, arguments: list[Any], timeout: float) -> Measurement:
    """Measure one row in a process of its own and empty its files; raise RuntimeError with the reason of a failure."""
    timeout = options.timeout or timeout
    # Without this variable JAX takes three quarters of the memory, of which the reference needs a part.
    environ = with_parent() | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    folder = tempfile.mkdtemp(dir=options.folder)
    command = python_module("gsio.bench", json.dumps([name, folder, options.device, *arguments]))
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ, start_new_session=True
    ) as process:
        try:
            out, errors = process.communicate(timeout=timeout)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)  # and the compilers that the process started
            if isinstance(error, subprocess.TimeoutExpired):
                raise RuntimeError(f"longer than {timeout:g} s") from None
            raise
        finally:
            empty(Path(folder))
    if process.returncode:
        last = (errors.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
        raise RuntimeError(last.partition("Error: ")[2] or last)
    found: Measurement = json.loads(out.splitlines()[-1])
    return found


def empty(place: Path) -> None:
    """Empty a file, or all files in a folder, without deleting them.

    After ten thousand deletions within minutes, creating a file took 0.5 ms, and the folder was locked meanwhile.
    """
    for path in (place, *place.rglob("*")):
        if path.is_file():
            os.truncate(path, 0)


def median(found: list[Measurement], key: str) -> float:
    """Return the median of a key."""
    return float(statistics.median(one[key] for one in found))


def report(name: str, options: Options, json_path: Path | None, plots: Path | None, log: Callable[[str], None]) -> str:
    """Measure a table and return it as Markdown below a description of the machine; write JSON and plots if asked.

    Raises
    ------
    UsageError
        matplotlib, which the plots need, is not installed; or a file that is to be written exists.
    """
    drawn = [name, *["roofline"] * (name == "compute")]
    pictures = [f"{picture}.{ending}" for picture in drawn for ending in ("png", "svg")]
    if plots:
        require_folder("--plot", plots, pictures)
    if json_path:
        require_new("--json", json_path, apart_from=[plots / picture for picture in pictures] if plots else [])
    if plots and find_spec("matplotlib") is None:
        raise UsageError("--plot: expected matplotlib to be installed; get it with pip install 'gsio[plots]'")
    machine = facts()
    with tempfile.TemporaryDirectory(prefix="gsio-bench-", dir=options.folder) as folder:
        options = options._replace(folder=Path(folder))
        results = measure_table(name, options, log)
        roofs = None
        if plots and name == "compute":
            roofs = measure_row("roofline", options, [], results.table.timeout)
    if json_path:
        reasons = results.reasons
        rows = [{"name": row, "found": found, "reason": reasons.get(row)} for row, found in results.found.items()]
        contents = {"table": name, "title": results.table.title, "machine": machine, "rows": rows}
        with new_file("--json", json_path) as temporary:
            temporary.write_text(json.dumps(contents, indent=1, ensure_ascii=False) + "\n")
    if plots:
        from gsio.bench.plots import plot

        for path in plot(results, plots, machine, roofs):
            log(f"wrote {path}")
    head = [f"{what}: {finding}" for what, finding in machine.items()]
    medians = f"{results.table.title}; medians of {results.table.repeats}"
    return "\n".join(["\\\n".join([*head, medians]), "", *markdown(results)])


def markdown(results: Results) -> Iterator[str]:
    """Yield the lines of a table in Markdown."""
    columns = results.table.columns
    yield "| | " + " | ".join(column.title for column in columns) + " |"
    yield "|---" * (len(columns) + 1) + "|"
    first = next((found for name, found in results.found.items() if found and name not in results.reasons), [])
    for name, found in results.found.items():
        if name in results.reasons:
            yield f"| {name} | not run: {results.reasons[name]} " + "| " * (len(columns) - 1) + "|"
        else:
            yield f"| {name} | " + " | ".join(_cell(column, found, first) for column in columns) + " |"


def _cell(column: Column, found: list[Measurement], first: list[Measurement]) -> str:
    values = [one[column.key] for one in found if column.key in one]
    if not values or isinstance(values[0], str):
        return values[0] if values else ""
    middle = statistics.median(values) / (median(first, column.key) if column.relative else 1)
    text = format(middle, column.format)
    if column.spread and len(values) > 1:
        text += f" ({min(values):{column.format}} – {max(values):{column.format}})"
    return text
