"""The summary at the end of a run, in at most twelve lines."""

from dataclasses import dataclass
from pathlib import Path

from gsio.run.progress import Progress
from gsio.trace import Trace


@dataclass(frozen=True)
class Summary:
    """What a session of a run took to add `frames` frames to the `first` ones of its output.

    Times are in seconds; all but `wall_seconds` are those of the frame loop. `compute` and `link` are times in which
    the device was busy, or in which a loop outside gsio was outside of `append`. `encode` and `write` are times in
    which at least one thread was, and `wait` is the time for which computing waited for a free block. `cells` counts
    time steps of single cells; 0: nobody knows them. `hidden` is the share of I/O (encode, write, link) during which
    the device computed. `outside` is the first value that is not from 0 to 1, in words; "" if there is none. `bands`
    says how several devices or ranks share the grid, and `balance` which of them was the slowest.
    """

    output: Path
    device: str
    first: int
    frames: int
    cells: int
    wall_seconds: float
    loop_seconds: float
    compute_seconds: float
    link_seconds: float
    encode_seconds: float
    write_seconds: float
    wait_seconds: float
    bottleneck: str
    hidden: float
    nbytes_in: int
    nbytes_out: int
    outside: str = ""
    bands: str = ""
    balance: str = ""

    def __str__(self) -> str:
        ratio = self.nbytes_in / self.nbytes_out if self.nbytes_out else 0.0
        speed = self.cells / max(self.compute_seconds, 1e-9) / 1e9
        return "\n".join([
            f"{self.output}: {self.frames} frames{f' after {self.first}' if self.first else ''}, "
            f"{self.nbytes_out / 1e9:.3f} GB ({ratio:.2f} times smaller than raw)",
            f"device      {self.device}",
            *([f"bands       {self.bands}"] if self.bands else []),
            *([f"balance     {self.balance}"] if self.balance else []),
            f"wall        {self.wall_seconds:9.3f} s, of which the frame loop {self.loop_seconds:.3f} s",
            f"compute     {self.compute_seconds:9.3f} s   "
            + (f"{speed:.2f} Gcell/s" if self.cells else "outside of append"),
            f"link        {self.link_seconds:9.3f} s",
            f"encode      {self.encode_seconds:9.3f} s   {self.nbytes_in / 1e9 / self.loop_seconds:.2f} GB/s in",
            f"write       {self.write_seconds:9.3f} s   {self.nbytes_out / 1e9 / self.loop_seconds:.2f} GB/s out",
            f"waited      {self.wait_seconds:9.3f} s for a free block",
            f"bottleneck  {self.bottleneck}; {self.hidden:.0%} of the I/O was hidden under compute",
            *([f"warning     {self.outside}"] if self.outside else []),
        ])  # fmt: skip


def summarise(
    now: Progress,
    trace: Trace,
    device: str,
    output: Path,
    wall_seconds: float,
    bands: str = "",
    balance: str = "",
) -> Summary:
    """Return what a session took: its last progress, and the spans of its trace."""
    occupied = now.occupied
    io = max(trace.io.busy, occupied.link)
    exposed = max(0.0, now.seconds - occupied.compute)
    return Summary(
        output=output,
        device=device,
        first=now.first,
        frames=now.frames_added,
        cells=now.cell_steps,
        wall_seconds=wall_seconds,
        loop_seconds=now.seconds,
        compute_seconds=occupied.compute,
        link_seconds=occupied.link,
        encode_seconds=trace.encode.busy,
        write_seconds=occupied.write,
        wait_seconds=occupied.wait,
        bottleneck=occupied.bottleneck,
        hidden=min(1.0, max(0.0, 1 - exposed / io)) if io else 1.0,
        nbytes_in=now.nbytes_in,
        nbytes_out=now.nbytes_out,
        outside=now.outside,
        bands=bands,
        balance=balance,
    )
