"""cuPyNumeric: slices of padded arrays, as in NumPy; Legate spreads them over the GPUs and nodes it is started with."""

import atexit
import weakref
from importlib import import_module
from multiprocessing.pool import ThreadPool
from typing import Any

import h5py  # noqa: F401 - before Legate, which brings another HDF5, or h5py would find that one
import numpy

from gsio.compute.host import ArraySolver, initial_arrays, set_outside
from gsio.config import Config
from gsio.errors import UsageError
from gsio.frames.layout import BlockLayout
from gsio.model.gray_scott import Coefficients, Field
from gsio.model.start import Start

# Legate answers, and takes memory back from, no thread but the one that starts it; a run computes in another.
thread = ThreadPool(1)
try:
    np = thread.apply(import_module, ["cupynumeric"])
except ImportError:
    thread.terminate()
    raise


@atexit.register
def finish() -> None:
    """End Legate and its thread with the process."""
    thread.apply(import_module("legate.core").get_legate_runtime().finish)
    thread.terminate()


def solver(config: Config, layout: BlockLayout, start: Start) -> ArraySolver[None]:
    """Return the solver of all GPUs and nodes that Legate has."""
    if config.run.device:
        what = f"run.device: expected 0 with cupynumeric, got {config.run.device}"
        raise UsageError(f"{what}; say which GPUs in LEGATE_CONFIG or to the launcher")
    fields: list[Any] = []  # u and v, padded
    constants: list[Coefficients] = []

    def begin() -> None:
        *values, c = initial_arrays(config, layout, start, np.array)
        constants.append(c)
        for field in values:
            p = np.zeros((*field.shape[:-2], field.shape[-2] + 2, field.shape[-1] + 2), field.dtype)
            p[..., 1:-1, 1:-1] = field
            fields.append(p)

    def advance(steps: int) -> None:
        for _ in range(steps):
            for p in fields:
                set_outside(p, config.grid.boundary)
            inside = [p[..., 1:-1, 1:-1] for p in fields]
            around = [constants[0].around(p) for p in fields]
            for field, new in zip(inside, constants[0].step(*inside, *around), strict=True):
                field[:] = new

    def copy(i: int) -> Field:
        return numpy.asarray(fields[i][..., 1:-1, 1:-1]).copy()

    def end() -> None:
        fields.clear()
        constants.clear()

    thread.apply(begin)
    made = ArraySolver(
        "cupynumeric",
        "Legate, cuPyNumeric",
        config,
        layout,
        None,
        lambda _, steps: thread.apply(advance, [steps]),
        lambda _, i: thread.apply(copy, [i]),
    )
    weakref.finalize(made, thread.apply, end).atexit = False  # then Legate has ended
    return made
