"""A picture of the work of the device and of the threads of a run over time."""

from collections.abc import Iterable
from pathlib import Path

from gsio.errors import UsageError
from gsio.files import new_file, require_new
from gsio.profile.overlap import Pair, union
from gsio.trace.timeline import DEVICE, Recording, device_rows, thread_roles

# Colours that people with any colour vision can tell apart, also in print: Okabe & Ito, jfly.uni-koeln.de/color.
COLOURS = {
    "compute": "#0072b2",
    "copy": "#e69f00",
    "encode": "#009e73",
    "write": "#d55e00",
    "commit": "#cc79a7",
    "advance": "#56b4e9",
    "wait_block": "#d0d0d0",
}
PIXELS = 1500  # along the time axis
MAX_BARS = 100  # more bars of one kind in a row cannot be told apart


def check_plot(path: Path, apart_from: Iterable[Path] = ()) -> None:
    """Raise UsageError if no new picture can be drawn at `path`; see `gsio.files.require_new`."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UsageError("--plot: matplotlib is not installed; get it with: pip install 'gsio[plots]'") from None
    require_new("--plot", path, endings=(".png", ".svg"), apart_from=apart_from)


def draw_lanes(path: Path, recording: Recording, title: str, blocks: int = 20) -> None:
    """Draw a whole recording, and below it `blocks` blocks from its middle; the ending of `path` names the format.

    Raises UsageError if matplotlib is not installed or `path` exists, OSError if it cannot be written.
    """
    check_plot(path)
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    rows, origin = _rows(recording), recording.begin
    shown, zoom = _middle(recording, blocks)
    parts = {"the whole loop": (origin, recording.end), f"{shown} blocks from its middle": zoom}
    figure = Figure(figsize=(12, 2 + 0.45 * len(rows)), layout="constrained")
    for axes, (name, (begin, end)) in zip(figure.subplots(2, 1), parts.items(), strict=True):
        for row, drawn in enumerate(rows.values()):
            for kind, pairs in drawn.items():
                bars = _visible(pairs, begin, end)
                times = [((a - origin) * 1e3, (b - a) * 1e3) for a, b in bars]
                # A white edge separates neighbouring blocks, but would cover a thin bar.
                thin = 6 * (end - begin) / PIXELS
                widths = [0.5 if b - a > thin else 0 for a, b in bars]
                axes.broken_barh(
                    times, (row - 0.4, 0.8), facecolors=COLOURS[kind], edgecolors="white", linewidths=widths
                )
        axes.set_title(name, fontsize=9, loc="left")
        axes.set_xlim((begin - origin) * 1e3, (end - origin) * 1e3)
        axes.set_ylim(max(len(rows), 1) - 0.5, -0.5)
        axes.set_yticks(range(len(rows)), list(rows), fontsize=8)
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", labelsize=8)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.grid(axis="x", linewidth=0.4)
        axes.set_axisbelow(True)
        axes.set_xlabel("ms since the loop began", fontsize=8)
    seen = [kind for kind in COLOURS if any(kind in drawn for drawn in rows.values())]
    handles = [Patch(color=COLOURS[kind], label=kind) for kind in seen]
    figure.suptitle(title, fontsize=10)
    figure.legend(handles=handles, loc="outside lower center", ncols=len(seen), fontsize=8, frameon=False)
    with new_file("--plot", path) as temporary:
        figure.savefig(temporary, dpi=150)


def _rows(recording: Recording) -> dict[str, dict[str, list[Pair]]]:
    """Return the intervals of each row by kind; the rows are the device, then the threads along the way of a frame."""
    names = thread_roles(recording.intervals)
    on_device = any(interval.name == "compute" for interval in recording.intervals)
    encoders = sorted(
        {name for name in names.values() if name.startswith("encode")}, key=lambda name: (len(name), name)
    )
    devices = device_rows(recording.intervals)
    order = [*devices.values(), "solver", *encoders, "writer"]
    rows: dict[str, dict[str, list[Pair]]] = {name: {} for name in order}
    for name, thread, _, begin, end in recording.intervals:
        kind = "compute" if name == "advance" and not on_device else name
        if kind in COLOURS:
            row = devices[kind, thread] if thread <= DEVICE else names[thread]
            rows[row].setdefault(kind, []).append((begin, end))
    return {name: drawn for name, drawn in rows.items() if drawn}


def _middle(recording: Recording, blocks: int) -> tuple[int, Pair]:
    """Return the number of blocks, at most `blocks`, in the middle of a recording, and the time that spans them."""
    of = {name: [i for i in recording.intervals if i.name == name] for name in ("compute", "advance")}
    computed = of["compute"] or of["advance"]
    if not computed:
        return 0, (recording.begin, recording.end)
    shown = min(blocks, len(computed))
    first = (len(computed) - shown) // 2
    return shown, (computed[first].begin, computed[first + shown - 1].end)


def _visible(pairs: list[Pair], begin: float, end: float) -> list[Pair]:
    """Return the bars of one kind in a row, none thinner than a pixel; where they are too many to part, their union."""
    pixel = (end - begin) / PIXELS
    bars = [(a, max(b, a + pixel)) for a, b in pairs if a < end and begin < b]
    return bars if len(bars) <= MAX_BARS else union((a, b + pixel) for a, b in bars)
