"""The sources of the kernels, their compiler options, and the constants that Python and CUDA share."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from gsio.compute.cuda.tiling import Device, Job, Tiling
from gsio.config import Config
from gsio.frames.layout import SEGMENT_BYTES, STREAM_BYTES, FrameLayout

SOURCES = Path(__file__).parent / "kernels"
ADVANCE = ("stencil.cu", "copies.cu", "tiles.cu")
STAGE = ("stage.cu",)
REALS = {4: "float", 8: "double"}
BOUNDARIES = {"periodic": 0, "neumann": 1, "zero": 2}
FLAG_STRIDE = 32  # words: flags lie in cache lines of their own
STAGE_THREADS = 256  # of a block, and blocks: one block merges a partial result of each
STAGE_DEFINES = (f"-DSTAGE_THREADS={STAGE_THREADS}",)
CHECKSUM_THREADS, CHECKSUM_WORDS = 256, 128  # of a block, and of each thread


class Codec(NamedTuple):
    """What the kernels of a codec need."""

    source: str
    threads: int  # that make a stream
    around: int  # bytes of a stream's slot beyond those before compression


# A stream of Blosc has its size before it, one of deflate its Adler-32, aligned; and a word more can be read.
CODECS = {"lz4": Codec("blosc.cu", 32, 8), "deflate": Codec("deflate.cu", 256, 32)}


def read(*names: str) -> str:
    """Return the source files of the given names as one, in this order."""
    return "".join((SOURCES / name).read_text() for name in names)


def kernel_options(
    config: Config, tiling: Tiling, job: Job, device: Device, centre: int, rates: int
) -> tuple[str, ...]:
    """Return the compiler's options for ``tiles.cu``.

    `centre` is that of `Coefficients`; `rates` says how the rates vary: 0 not at all, 1 by member, 2 by cell.
    """
    return (
        "-std=c++17",
        "-fmad=false",  # the source says what is fused: every copy of a cell has to be made alike
        f"-DREAL={REALS[job.itemsize]}",
        f"-DBOUNDARY={BOUNDARIES[config.grid.boundary]}",
        f"-DCENTRE={centre}",
        f"-DRATES={rates}",
        f"-DUNIT_DT={int(config.model.dt == 1)}",
        f"-DPASSES={0 if not tiling.at_once else 1 if tiling.tiles(job) <= device.multiprocessors else 2}",
        f"-DALIGNED={int(tiling.unit(job) == tiling.shape.cols)}",
        f"-DCOLS={tiling.shape.cols}",
        f"-DROWS={tiling.shape.rows}",
        f"-DWARPS={tiling.shape.warps}",
        f"-DFLAG_STRIDE={FLAG_STRIDE}",
    )


def stage_options(layout: FrameLayout) -> tuple[str, ...]:
    """Return the compiler's options for ``stage.cu``."""
    dropped = np.finfo(layout.dtype).nmant - layout.keep_bits if layout.keep_bits else 0
    return (
        "-std=c++17",
        "-fmad=false",  # the error is what a reader would find
        f"-DREAL={REALS[layout.computed.itemsize]}",
        f"-DSHUFFLE={int(layout.shuffle)}",
        f"-DITEMSIZE={layout.dtype.itemsize}",
        f"-DLEVELS={layout.levels}",
        f"-DDROPPED={dropped}",
        f"-DLOSSY={int(layout.lossy)}",
        *STAGE_DEFINES,
    )


def encode_options(codec: Codec) -> tuple[str, ...]:
    """Return the compiler's options for ``chunks.cu`` with the file of `codec`."""
    return (
        "-std=c++17",
        f"-DCHECKSUM_THREADS={CHECKSUM_THREADS}",
        f"-DCHECKSUM_WORDS={CHECKSUM_WORDS}",
        f"-DTHREADS={codec.threads}",
        f"-DSTREAM={STREAM_BYTES}",
        f"-DSEGMENT={SEGMENT_BYTES}",
    )
