"""`gsio profile`: records one run, by gsio and where possible by Nsight Systems, and reports its overlap."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gsio.config import Config, with_absolute_paths
from gsio.errors import DataError, GsioError, UsageError
from gsio.files import new_file, publish, require_new, temporary_beside
from gsio.log import log
from gsio.profile import nsys
from gsio.profile.lanes import check_plot, draw_lanes
from gsio.profile.overlap import Report, overlap
from gsio.run.output import beside, check_output
from gsio.run.plan import with_codec
from gsio.run.progress import Observe
from gsio.run.simulate import simulate
from gsio.trace import timeline

FAILED = {GsioError.exit_code, *(kind.exit_code for kind in GsioError.__subclasses__()), 130, 143}


def profile(
    config: Config,
    output: Path | None,
    *,
    overwrite: bool = False,
    to_timeline: Path | None = None,
    plot: Path | None = None,
    report: Path | None = None,
    quiet: bool = False,
    watch: Observe | None = None,
) -> list[Report]:
    """Run `config` and return a report of its overlap by gsio, and a second one by Nsight Systems if nsys is on PATH.

    Parameters
    ----------
    output
        The output of the run; None: a file in the working folder, which is removed at the end.
    to_timeline, plot, report
        Files to make: the timeline for Perfetto, a picture of the lanes, the report of Nsight Systems (.nsys-rep). A
        file that exists is an error.
    quiet, watch
        Under nsys the run is a process of its own, and `quiet` hides its progress. Without nsys the run calls `watch`,
        as in `gsio.simulate`.

    Raises
    ------
    UsageError
        A file cannot be made, or `report` is asked for and there is no nsys; nothing was touched.
    GsioError
        The run failed, with its exit code.
    """
    tool = nsys.find()
    if report is not None and tool is None:
        raise UsageError("--report: expected nsys on PATH, got none; install Nsight Systems or leave the option out")
    made = [output, *beside(output)] if output is not None else []
    if report is not None:
        require_new("--report", report, endings=[".nsys-rep"], apart_from=made)
    if plot is not None:
        check_plot(plot, apart_from=made)
    if to_timeline is not None:
        others = [path for path in (plot, report) if path is not None]
        require_new("--timeline", to_timeline, apart_from=[*made, *others])
    with _output(output) as (run, folder):
        check_output(run, overwrite=overwrite)
        recorded = folder / "timeline.json"
        if tool is None:
            simulate(config, run, overwrite=overwrite, timeline=recorded, watch=watch)
            reports = [overlap(timeline.read(recorded))]
        else:
            options = ["--overwrite"] * overwrite + ["--quiet"] * quiet
            reports = _under_nsys(tool, config, run, options, folder, report)
        if to_timeline is not None:
            with new_file("--timeline", to_timeline) as copy:
                shutil.copyfile(recorded, copy)
        if plot is not None:
            draw_lanes(plot, timeline.read(recorded), _title(with_codec(config, run)))
    return reports


def read_report(path: Path) -> Report:
    """Return what overlapped in a run that was recorded before.

    `path` is a timeline (.json) of ``gsio run --timeline``, a report of Nsight Systems (.nsys-rep), or what
    ``nsys export --type sqlite`` made of one.

    Raises
    ------
    UsageError
        There is no such file, or nsys, which has to read its own report, is not on PATH.
    DataError
        The file is neither of these.
    """
    if path.suffix == ".json":
        return overlap(timeline.read(path))
    if path.suffix != ".nsys-rep":
        return overlap(nsys.read(path))
    if (tool := nsys.find()) is None:
        raise UsageError(f"--read: expected nsys on PATH, which exports '{path}'; install Nsight Systems")
    with tempfile.TemporaryDirectory(prefix="gsio-profile-") as folder:
        nsys.export(tool, path, Path(folder) / "report.sqlite")
        return overlap(nsys.read(Path(folder) / "report.sqlite"))


def disagreement(reports: list[Report]) -> float:
    """Return the largest difference between two reports in the busy share of a lane."""
    shares = [{name: report.share(lane.busy) for name, lane in report.lanes.items()} for report in reports]
    names = {name for share in shares for name in share}
    return max((abs(shares[0].get(name, 0.0) - shares[1].get(name, 0.0)) for name in names), default=0.0)


@contextmanager
def _output(output: Path | None) -> Iterator[tuple[Path, Path]]:
    """Give the path of the output, and a folder for files that are removed at the end."""
    if output is None:  # on the disk of the working folder, where runs are saved too
        with tempfile.TemporaryDirectory(prefix="gsio-profile-", dir=Path.cwd()) as folder:
            yield Path(folder) / "run.h5", Path(folder)
    else:
        with tempfile.TemporaryDirectory(prefix="gsio-profile-") as folder:
            yield output, Path(folder)


def _under_nsys(
    tool: str, config: Config, output: Path, options: list[str], folder: Path, report: Path | None
) -> list[Report]:
    """Run `config` in a process of its own, which leaves its timeline in `folder`, and return both reports.

    nsys replaces any file that has the name of its report, so the report gets its name, `report`, at the end.
    """
    _, deaf = nsys.describe(tool)
    if deaf:
        log.warning(deaf)
    resolved, recorded, database = (folder / name for name in ("config.toml", "timeline.json", "report.sqlite"))
    resolved.write_text(with_absolute_paths(config).to_toml(), encoding="utf-8")
    command = [sys.executable, "-m", "gsio", "run", str(resolved), f"--output={output}", f"--timeline={recorded}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GSIO_")}
    found = folder / "report.nsys-rep" if report is None else temporary_beside(report, report.suffix)
    try:
        code = nsys.record(tool, found, [*command, *options], environment)
        if report is not None and found.is_file():
            publish("--report", found, report)
    finally:
        if report is not None:
            found.unlink(missing_ok=True)
            found = report
    if code in FAILED or not recorded.is_file():  # nsys can end with a code of its own after a complete run
        failure = GsioError(f"expected a whole run under nsys, got one that ended with exit code {code}, as told above")
        failure.exit_code = code or GsioError.exit_code
        raise failure
    reports = [overlap(timeline.read(recorded))]
    try:
        nsys.export(tool, found, database)
        reports.append(overlap(nsys.read(database)))
    except DataError as error:
        log.warning(f"the report of Nsight Systems is left out: {error}")
    return reports


def _title(config: Config) -> str:
    grid, run = config.grid, config.run
    return (
        f"gsio: {run.frames} frames of {grid.rows} × {grid.cols} {config.model.precision}, "
        f"{run.steps_per_frame} steps apart, compression {config.output.compression}"
    )
