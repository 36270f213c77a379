"""Plots of a table: bars, and a roofline for the time steps."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from gsio.bench.roofline import OPERATIONS
from gsio.bench.tables import Measurement, Results, median
from gsio.files import new_file

COLOURS = "#0072b2", "#e69f00", "#009e73"  # people with any colour vision can tell these apart: Okabe & Ito


def plot(results: Results, folder: Path, facts: dict[str, str], roofs: Measurement | None) -> list[Path]:
    """Write the plots of a table into `folder` as PNG and SVG, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = {results.name: bars(results, facts)}
    if roofs:
        figures["roofline"] = roofline(results, facts, roofs)
    paths = []
    for name, figure in figures.items():
        for ending in ("png", "svg"):
            paths.append(folder / f"{name}.{ending}")
            with new_file("--plot", paths[-1]) as temporary:
                figure.savefig(temporary, dpi=150, bbox_inches="tight")
    return paths


def measured(results: Results) -> dict[str, list[Measurement]]:
    """Return the measurements of the rows that ran."""
    return {name: found for name, found in results.found.items() if found and name not in results.reasons}


def bars(results: Results, facts: dict[str, str]) -> Figure:
    """Draw a bar for each row and each column with a spread, and a line from its smallest to its largest value."""
    rows = measured(results)
    columns = [column for column in results.table.columns if column.spread]
    figure = Figure(figsize=(9, 1.2 + 0.22 * len(rows) * (1 + len(columns))))
    axes: Any = figure.subplots()
    height = 0.8 / len(columns)
    for i, column in enumerate(columns):
        values = [[one[column.key] for one in found] for found in rows.values()]
        middles = [median(found, column.key) for found in rows.values()]
        spread = [
            [middle - min(several) for middle, several in zip(middles, values, strict=True)],
            [max(several) - middle for middle, several in zip(middles, values, strict=True)],
        ]
        places = [row + (i - (len(columns) - 1) / 2) * height for row in range(len(rows))]
        axes.barh(places, middles, height, xerr=spread, label=column.title, color=COLOURS[i % len(COLOURS)], capsize=2)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel(columns[0].title if len(columns) == 1 else "")
    axes.set_title(results.table.title, fontsize="small", wrap=True)
    if len(columns) > 1:
        axes.legend(fontsize="small")
    figure.text(0, 0, "\n".join(facts.values()), fontsize=5, verticalalignment="top", wrap=True)
    return figure


def roofline(results: Results, facts: dict[str, str], roofs: Measurement) -> Figure:
    """Draw the operations a second of each row over those it does with a byte of the fields read or written."""
    figure = Figure(figsize=(8, 5))
    axes: Any = figure.subplots()
    rows = {name: found for name, found in measured(results).items() if "traffic" in found[0]}
    intensities = {name: OPERATIONS / found[0]["traffic"] for name, found in rows.items()}
    ridge = roofs["operations"] / roofs["bandwidth"]
    ends = min([1, *intensities.values()]) / 2, 2 * max([ridge, *intensities.values()])
    axes.plot(
        [ends[0], ridge, ends[1]],
        [ends[0] * roofs["bandwidth"], roofs["operations"], roofs["operations"]],
        color="black",
        label=f"{roofs['bandwidth']:.0f} GB/s copied, {roofs['operations']:.0f} Gflop/s in a product of matrices",
    )
    for i, (name, found) in enumerate(rows.items()):
        marker = "osD^vP*X"[i // 10 % 8]
        axes.plot(intensities[name], OPERATIONS * median(found, "rate"), marker, label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("operations per byte, where every pass reads and writes both fields once")
    axes.set_ylabel("Gflop/s")
    axes.legend(fontsize=6, loc="upper left", bbox_to_anchor=(1, 1))
    figure.text(0, 0, "\n".join(facts.values()), fontsize=5, verticalalignment="top", wrap=True)
    return figure
