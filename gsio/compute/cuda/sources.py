"""The sources of the kernels, their compiler options, and the constants that Python and CUDA share."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsio.codec.interface import Kernels
from gsio.compute.cuda.tiling import Device, Job, Tiling
from gsio.config import Config
from gsio.frames.format import FrameFormat

SOURCES = Path(__file__).parent / "kernels"
ADVANCE = ("stencil.cu", "copies.cu", "tiles.cu")
STAGE = ("stage.cu",)
FUSED_TILE, FUSED_STEPS = 32, 4  # of fused.cu: the side of a tile in cells, and the most steps of a launch
# The kernels that tiles.cu is measured against, and the options of each: a file has the name of its kernel.
RUNGS = {"naive": (), "fused": (f"-DTILE={FUSED_TILE}", f"-DSTEPS={FUSED_STEPS}")}
REALS = {4: "float", 8: "double"}
INTEGERS, SIGNS = {1: "char", 2: "short", 4: "int", 8: "long long"}, {"i": "signed", "u": "unsigned"}
BOUNDARIES = {"periodic": 0, "neumann": 1, "zero": 2}
FLAG_STRIDE = 32  # words between two flags: each lies in a cache line of its own
STAGE_THREADS = 256  # threads of a block, and also the most blocks: one block merges a partial result of each
STAGE_CELLS = 4  # that a thread of `stage` takes at once
SUMMARY_THREADS = 512  # threads of a block of `summarise`
STAGE_DEFINES = (
    f"-DSTAGE_THREADS={STAGE_THREADS}", f"-DSUMMARY_THREADS={SUMMARY_THREADS}", f"-DWORDS={STAGE_CELLS}",
)  # fmt: skip
# A row has at most MOST_PIECES pieces, or pieces of PIECE_CELLS cells if they would be longer.
MOST_PIECES, PIECE_CELLS = 8, 2048
PLANE = np.dtype([
    *((name, np.int64) for name in ("rows", "cols", "pitch")),
    *((name, np.int32) for name in ("lanes", "piece", "pieces", "whole")),
], align=True)  # fmt: skip
HALO_THREADS, HALO_BLOCKS = 256, 128  # of a block, and the most blocks that copy one piece
HALO = np.dtype([("rows", [("from", np.uint64), ("to", np.uint64), ("nbytes", np.int64)], 2)])
CHECKSUM_THREADS, CHECKSUM_WORDS = 256, 128  # threads of a block, and words of a thread


def read(*names: str) -> str:
    """Return the source files of the given names as one, in this order."""
    return "".join((SOURCES / name).read_text() for name in names)


def kernel_options(
    config: Config, tiling: Tiling, job: Job, device: Device, centre: int, rates: int
) -> tuple[str, ...]:
    """Return the compiler's options for ``tiles.cu``.

    `centre` is `Coefficients.centre`. `rates` is 0 if the rates are constant, 1 if they vary by member, 2 by cell.
    """
    return (
        "-std=c++17",
        "-fmad=false",  # The source fuses explicitly: every tile computes a cell in the same way.
        f"-DREAL={REALS[job.itemsize]}",
        f"-DBOUNDARY={BOUNDARIES[config.grid.boundary]}",
        f"-DCENTRE={centre}",
        f"-DRATES={rates}",
        f"-DUNIT_DT={int(config.model.dt == 1)}",
        f"-DPASSES={0 if not tiling.at_once else 1 if tiling.tiles(job) <= device.multiprocessors else 2}",
        f"-DREST={job.cols % tiling.shape.cols if config.grid.boundary == 'zero' else 0}",
        f"-DCOLS={tiling.shape.cols}",
        f"-DROWS={tiling.shape.rows}",
        f"-DWARPS={tiling.shape.warps}",
        f"-DFLAG_STRIDE={FLAG_STRIDE}",
    )


def stage_blocks(frame: FrameFormat) -> int:
    """Return the number of blocks that stage a plane."""
    return min(STAGE_THREADS, -(-frame.cells // (STAGE_THREADS * STAGE_CELLS)))


def stage_plane(frame: FrameFormat, *, whole: bool, pitch: int = 0) -> NDArray[np.void]:
    """Return the struct Plane of ``stage.cu``: how warps share the rows, which depends on the length of a row alone.

    `pitch` is the distance of the rows of a field in cells; 0: there is nothing between them.
    """
    cols, plane = frame.shape[-1], np.zeros((), PLANE)
    lanes = min(32, 1 << (-(-cols // STAGE_CELLS) - 1).bit_length())
    unit = lanes * STAGE_CELLS
    piece = min(PIECE_CELLS, -(-cols // (MOST_PIECES * unit)) * unit)
    plane["rows"], plane["cols"], plane["lanes"], plane["whole"] = frame.cells // cols, cols, lanes, whole
    plane["piece"], plane["pieces"], plane["pitch"] = piece, -(-cols // piece), pitch or cols
    return plane


def stage_dtype(frame: FrameFormat) -> np.dtype[Any]:
    """Return the dtype of the planes that ``stage.cu`` takes: as computed, but float32 for float16."""
    return np.dtype(np.float32) if frame.computed == np.float16 else frame.computed


def stage_options(frame: FrameFormat) -> tuple[str, ...]:
    """Return the compiler's options for ``stage.cu``."""
    dropped = np.finfo(frame.dtype).nmant - frame.keep_bits if frame.keep_bits else 0
    dtype = stage_dtype(frame)
    real = REALS[dtype.itemsize] if dtype.kind == "f" else f"{SIGNS[dtype.kind]} {INTEGERS[dtype.itemsize]}"
    return (
        "-std=c++17",
        "-fmad=false",  # The stored error is then the error that a reader finds.
        f"-DREAL={real}",
        f"-DINTEGER={int(dtype.kind != 'f')}",
        f"-DSHUFFLE={int(frame.shuffle)}",
        f"-DITEMSIZE={frame.dtype.itemsize}",
        f"-DLEVELS={frame.stored_one}",
        f"-DDROPPED={dropped}",
        f"-DLOSSY={int(frame.lossy)}",
        *STAGE_DEFINES,
    )


def encode_options(kernels: Kernels) -> tuple[str, ...]:
    """Return the compiler's options for ``chunks.cu`` with the file of `kernels`."""
    return (
        "-std=c++17",
        f"-DCHECKSUM_THREADS={CHECKSUM_THREADS}",
        f"-DCHECKSUM_WORDS={CHECKSUM_WORDS}",
        f"-DTHREADS={kernels.threads}",
        f"-DSEGMENT={kernels.segment}",
    )
