"""The check of the values of a run: a warning at the first one outside 0 to 1, an error at one that is not finite."""

from gsio.errors import DivergenceError
from gsio.frames.block import Block
from gsio.frames.layout import STATISTICS
from gsio.log import log
from gsio.model.gray_scott import values_outside


class ValueCheck:
    """Looks at the statistics of blocks, in frame order.

    `outside` is the first value that is not from 0 to 1, in words, or "". An initial state can hold such values, so
    the run goes on.
    """

    def __init__(self, steps_per_frame: int) -> None:
        self.outside = ""
        self._steps_per_frame = steps_per_frame

    def cut(self, block: Block) -> bool:
        """Cut `block` before its first frame that is not finite; return whether it has one."""
        bad = block.statistics[: block.count, :, STATISTICS.index("nonfinite")].any(axis=1)
        if diverged := bool(bad.any()):
            block.count = int(bad.argmax())
            kept = -(-block.count // block.layout.chunks.frames_per_chunk)
            block.chunks = {place: chunk for place, chunk in block.chunks.items() if place[0] < kept}
        if not self.outside:
            minimum, maximum = (block.statistics[: block.count, :, STATISTICS.index(name)] for name in ("min", "max"))
            self.outside = values_outside(minimum, maximum, block.layout.frame.fields, block.first)
            if self.outside:
                log.warning(
                    f"{self.outside}: model.dt is too long, or the initial state starts outside; the run goes on"
                )
        return diverged

    def error(self, frame: int) -> DivergenceError:
        """Return the error that says that `frame` is not finite."""
        return DivergenceError(
            f"the fields hold non-finite values at frame {frame}, step {(frame + 1) * self._steps_per_frame}; "
            f"the {frame} frames before it are safe{f' ({self.outside})' if self.outside else ''}; "
            "lower model.dt or check the initial state"
        )
