"""What a run took, in at most twelve lines."""

from dataclasses import dataclass
from pathlib import Path

from gsio.run.pipeline import Pipeline


@dataclass(frozen=True)
class Summary:
    """What a run took for its `frames` frames after the `first`, which were there before.

    Times are in seconds, of the frame loop but for `wall_seconds`.

    `compute` and `link` are times the device was busy; `encode` and `write` times at least one thread was; `wait` is
    the time computing waited for a free block. `hidden` is the share of I/O (encode, write, link) that went on while
    the device computed. `outside` says what leaves 0 to 1 in the first frame where something does, or is "".
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

    def __str__(self) -> str:
        ratio = self.nbytes_in / self.nbytes_out if self.nbytes_out else 0.0
        speed = self.cells / max(self.compute_seconds, 1e-9) / 1e9
        return "\n".join([
            f"{self.output}: {self.frames} frames{f' after {self.first}' if self.first else ''}, "
            f"{self.nbytes_out / 1e9:.3f} GB ({ratio:.2f} times smaller than raw)",
            f"device      {self.device}",
            f"wall        {self.wall_seconds:9.3f} s, of which the frame loop {self.loop_seconds:.3f} s",
            f"compute     {self.compute_seconds:9.3f} s   {speed:.2f} Gcell/s",
            f"link        {self.link_seconds:9.3f} s",
            f"encode      {self.encode_seconds:9.3f} s   {self.nbytes_in / 1e9 / self.loop_seconds:.2f} GB/s in",
            f"write       {self.write_seconds:9.3f} s   {self.nbytes_out / 1e9 / self.loop_seconds:.2f} GB/s out",
            f"waited      {self.wait_seconds:9.3f} s for a free block",
            f"bottleneck  {self.bottleneck}; {self.hidden:.0%} of the I/O was hidden under compute",
            *([f"warning     {self.outside}"] if self.outside else []),
        ])  # fmt: skip


def summarise(pipeline: Pipeline, output: Path, wall_seconds: float) -> Summary:
    """Return what the run took."""
    trace, config, loop = pipeline.trace, pipeline.config, pipeline.finished - pipeline.started
    occupied = {
        "compute": pipeline.compute_seconds,
        "link": pipeline.link_seconds,
        "encode": trace.encode.total / pipeline.threads,
        "write": trace.write.busy,
    }
    io = max(trace.io.busy, pipeline.link_seconds)
    exposed = max(0.0, loop - pipeline.compute_seconds)
    frames = pipeline.frames_committed - pipeline.first
    return Summary(
        output=output,
        device=pipeline.solver.device,
        first=pipeline.first,
        frames=frames,
        cells=frames * config.run.steps_per_frame * pipeline.pool.layout.frame.cells,
        wall_seconds=wall_seconds,
        loop_seconds=loop,
        compute_seconds=pipeline.compute_seconds,
        link_seconds=pipeline.link_seconds,
        encode_seconds=trace.encode.busy,
        write_seconds=trace.write.busy,
        wait_seconds=trace.wait.busy,
        bottleneck=max(occupied, key=lambda name: occupied[name]),
        hidden=min(1.0, max(0.0, 1 - exposed / io)) if io else 1.0,
        nbytes_in=frames * pipeline.pool.layout.frame.frame_nbytes,
        nbytes_out=pipeline.writer.nbytes - pipeline.nbytes_before,
        outside=pipeline.outside,
    )
