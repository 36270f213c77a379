"""The staging of planes on an NVIDIA GPU, by the kernels of ``stage.cu``."""

from typing import Any

import cupy
import numpy as np

from gsio.compute.cuda.sources import STAGE, STAGE_THREADS, read, stage_options
from gsio.frames.format import FrameFormat
from gsio.frames.layout import STATISTICS

# Cells that a warp takes at once, the most cells of a piece of a row, and the pieces of a row if those are smaller.
WARP_CELLS, PIECE_CELLS, PIECES = 128, 2048, 8
PLANE = np.dtype([("rows", "<i8"), ("cols", "<i8"), *((n, "<i4") for n in ("piece", "pieces", "whole"))], align=True)


class Stage:
    """Packs one plane after another, and takes its statistics; all orders go to the current stream."""

    def __init__(self, frame: FrameFormat, *, whole: bool = True) -> None:
        """Compile the kernels for planes of `frame`, on the current device.

        A plane is `whole`, or else it is the part of a band. The mean of a part is not set; its row sums are.
        """
        module = cupy.RawModule(code=read(*STAGE), options=stage_options(frame))
        self._stage, self._summarise = map(module.get_function, ("stage", "summarise"))
        cols = frame.shape[-1]
        piece = WARP_CELLS * min(PIECE_CELLS // WARP_CELLS, -(-cols // (PIECES * WARP_CELLS)))
        plane = np.zeros((), PLANE)
        plane["rows"], plane["cols"], plane["whole"] = frame.cells // cols, cols, whole
        plane["piece"], plane["pieces"] = piece, -(-cols // piece)
        self._plane = plane.view(f"V{plane.itemsize}")
        self._partial = cupy.empty((STAGE_THREADS, len(STATISTICS)), np.float64)
        self._sums = cupy.empty((int(plane["pieces"]), int(plane["rows"])), np.float64)
        self._row_sums = cupy.empty(int(plane["rows"]), np.float64)

    def __call__(self, field: Any, data: Any, statistics: Any, row_sums: Any = None) -> None:
        """Pack `field` into `data`, and set its `statistics` and, if the plane is not whole, its `row_sums`."""
        self._stage((STAGE_THREADS,), (STAGE_THREADS,), (field, data, self._partial, self._sums, self._plane))
        row_sums = self._row_sums if row_sums is None else row_sums
        arguments = (self._partial, self._sums, row_sums, statistics, self._plane)
        self._summarise((1,), (STAGE_THREADS,), arguments)
