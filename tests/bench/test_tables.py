"""Benchmarks: rows in processes of their own, answers checked before they are timed, rows that cannot run."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gsio.bench import compute, scaling, startup, storage, tables, transfer, verdict
from gsio.bench.check import checked_solver
from gsio.bench.tables import Column, Options, Results, Row, Table, markdown
from gsio.cli import main
from gsio.compute.peers import numpy as reference
from gsio.config import Config, load_config
from gsio.frames.layout import BlockLayout
from gsio.model.start import Start

QUICK = Options(device="cpu", only="", repeats=0, timeout=0, folder=None, frames=1000, quick=True)
Captured = pytest.CaptureFixture[str]


def results_of(found: dict[str, list[dict[str, Any]]], reasons: dict[str, str]) -> Results:
    columns = [
        Column("s", "seconds", ".2f", spread=True),
        Column("ratio", "seconds", relative=True),
        Column("on", "on"),
    ]
    return Results("test", Table("", [Row(name, []) for name in found], columns), found, reasons)


def test_cells_hold_the_median_the_spread_and_the_ratio_to_the_first_row_that_ran() -> None:
    found = {
        "broken": [],
        "a": [{"seconds": 2.0, "on": "CPU"}, {"seconds": 1.0, "on": "CPU"}, {"seconds": 4.0, "on": "CPU"}],
        "b": [{"seconds": 5.0, "on": "GPU"}],
    }
    lines = list(markdown(results_of(found, {"broken": "no such library"})))
    assert lines == [
        "| | s | ratio | on |",
        "|---|---|---|---|",
        "| broken | not run: no such library | | |",
        "| a | 2.00 (1.00 – 4.00) | 1 | CPU |",
        "| b | 5.00 | 2.5 | GPU |",
    ]


@pytest.mark.parametrize("table", [verdict, compute, startup, storage, transfer, scaling])
@pytest.mark.parametrize("device", ["gpu", "cpu"])
@pytest.mark.parametrize("quick", [True, False])
def test_every_row_has_its_own_name_and_a_valid_configuration(table: Any, device: str, quick: bool) -> None:
    rows = table.table(QUICK._replace(device=device, quick=quick)).rows
    assert len({row.name for row in rows}) == len(rows) > 0
    for row in rows:
        changes = next(argument for argument in json.loads(json.dumps(row.arguments)) if isinstance(argument, dict))
        load_config(overrides=changes, environ={})


@pytest.mark.parametrize("value", [np.nan, 0.5])
def test_wrong_fields_are_refused_before_anything_is_timed(value: float, make_config: Any) -> None:
    def wrong(config: Config, layout: BlockLayout, start: Start) -> Any:
        return reference.solver(config, layout, start._replace(v=np.full_like(start.v, value)))

    with pytest.raises(ValueError, match="expected the reference's fields within 2e-06, got an error of"):
        checked_solver(make_config(), "cpu", wrong)


def test_rows_are_repeated_in_turn_and_one_that_fails_is_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []

    def measure_row(name: str, options: Options, arguments: list[Any], timeout: float) -> dict[str, Any]:
        measured.append(arguments[0])
        if arguments[0] == "jax":
            raise RuntimeError("no reason")
        return {"rate": 1.0}

    monkeypatch.setattr(tables, "measure_row", measure_row)
    found = tables.measure_table("compute", QUICK._replace(repeats=2, only="slices"), lambda line: None)
    assert measured == ["jax", "jax-scan", "jax-scan"]
    assert found.reasons == {"270 × 480, JAX slices, fori_loop": "no reason"}


def test_a_row_that_takes_too_long_or_fails_says_so(tmp_path: Path) -> None:
    options = QUICK._replace(folder=tmp_path)
    with pytest.raises(RuntimeError, match=r"longer than 0.01 s"):
        tables.measure_row("compute", options._replace(timeout=0.01), ["numba", {}], 10)
    with pytest.raises(RuntimeError, match=r"^run\.backend: expected auto, .* got 'cuda'$"):
        tables.measure_row("compute", options, ["cuda", {}], 60)


def test_a_table_as_markdown_json_and_plots(tmp_path: Path, capsys: Captured) -> None:
    pytest.importorskip("matplotlib")
    where = ["--json", str(tmp_path / "table.json"), "--plot", str(tmp_path / "plots")]
    assert main(["bench", "compute", "--device", "cpu", "--quick", "--only", "gsio, CPU", *where]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^processor: .*\d+ cores usable", printed)
    assert re.search(r"^\| 270 × 480, gsio, CPU \| [\d.]+ \| \d\.\de-\d\d \|", printed, re.MULTILINE)
    row = json.loads((tmp_path / "table.json").read_text())["rows"][0]
    assert row["found"][0]["rate"] > 0
    names = {f"{name}.{ending}" for name in ("compute", "roofline") for ending in ("png", "svg")}
    assert {path.name for path in (tmp_path / "plots").iterdir()} == names


def test_the_verdict_saves_and_compares_every_frame(capsys: Captured) -> None:
    assert main(["bench", "verdict", "--device", "cpu", "--quick", "--frames", "2", "--only", "gsio, CPU"]) == 0
    assert re.search(
        r"^\| gsio, CPU \| [\d.e-]+ \| [\d.e-]+ \| [\d.e-]+ \| 1 \|", capsys.readouterr().out, re.MULTILINE
    )


def test_plots_without_matplotlib_name_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setattr(tables, "find_spec", lambda name: None)
    assert main(["bench", "compute", "--plot", "plots"]) == 2
    assert "get it with pip install 'gsio[plots]'" in capsys.readouterr().err
