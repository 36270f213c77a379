"""Solvers advance u and v, and know no files.

To add a backend, write a file that makes its solver, and add its row to `gsio.config.tables.BACKENDS`.
"""

import os
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, cast

from gsio.compute.solver import Solver
from gsio.config import BACKENDS, Config
from gsio.errors import UsageError
from gsio.frames.layout import BlockLayout
from gsio.machine import available_memory, one_line
from gsio.model.gray_scott import check_stability
from gsio.model.start import Start

OLDEST = 8, 0  # compute capability: the kernels need asynchronous copies and split barriers


def numba_compiles() -> bool:
    """Return whether Numba compiles; with NUMBA_DISABLE_JIT, Python would run code that is written for LLVM."""
    try:
        return not int(os.environ.get("NUMBA_DISABLE_JIT", "0"))
    except ValueError:  # Numba warns, and compiles
        return True


def why_too_old(device: int) -> str | None:
    """Return the reason that a GPU is too old for gsio, or None if the GPU can be used."""
    import cupy

    properties = cupy.cuda.runtime.getDeviceProperties(device)
    found = properties["major"], properties["minor"]
    if found >= OLDEST:
        return None
    return f"expected a GPU of compute capability {OLDEST[0]}.{OLDEST[1]} (Ampere) or later, got {found[0]}.{found[1]}"


def open_solver(
    backend: str,
    config: Config,
    layout: BlockLayout,
    blocks: int,
    start: Callable[[Config], Start],
    recall: Callable[[str], Any] = lambda name: None,
    *,
    remember: Callable[[str, Any], object] = lambda name, record: None,
) -> Solver:
    """Return the solver of a run in the state that `start` returns; `start` is called once the memory is known to do.

    `recall` returns what was kept under a name, or None: the tuning of ``gsio bench tune``, or what a solver gave to
    `remember`, which is how long its functions took to compile.

    Raises
    ------
    UsageError
        The backend cannot be used here, the grid does not fit into memory (with `blocks` blocks of frames), the
        initial state cannot be read, or the time step is too long for the rates.
    """
    row = BACKENDS[backend]
    check_memory("host", _host_bytes(backend, config, layout, blocks), available_memory())
    if row.cuda:
        _check_cuda(config, layout)
    if row.compiles and not numba_compiles():
        what = f"run.backend: {backend} cannot be used with NUMBA_DISABLE_JIT"
        raise UsageError(f"{what}; unset the variable, or choose the backend numpy")
    try:
        make = getattr(import_module(f"gsio.compute.{row.module}"), row.solver)
    except ImportError as error:
        if not row.extra:
            raise
        what = f"run.backend: {backend} cannot be used here: {one_line(error)}"
        raise UsageError(f"{what}; get it with pip install 'gsio[{row.extra}]'") from None
    begin = start(config)
    check_stability(config.model, begin.feed, begin.kill)
    kept: dict[str, Any] = {"recall": recall} if row.tuned or row.compiles else {}
    if row.compiles:
        kept["remember"] = remember
    return cast(Solver, make(config, layout, begin, **kept))


def _host_bytes(backend: str, config: Config, layout: BlockLayout, blocks: int) -> int:
    """Return the bytes of host memory that a run takes.

    The initial state is two float64 fields. Maps of feed and kill are two more, and two of the computed dtype. Staged
    frames wait in `blocks` blocks, once raw and once encoded.
    """
    row = BACKENDS[backend]
    maps = 2 * config.model.maps
    a_cell = (2 + maps) * 8 + (row.copies + maps) * (row.itemsize or layout.frame.computed.itemsize)
    return layout.frame.cells * a_cell + 2 * blocks * layout.block_nbytes


def tune(
    config: Config,
    layout: BlockLayout,
    start: Start,
    recall: Callable[[str], Any],
    remember: Callable[[str, Any], object],
) -> Iterator[tuple[str, float]]:
    """Yield ways to cut the grid of a run into tiles, each with its Gcell/s.

    At the end `remember` gets the name of the job and the record of its fastest tiling, which `recall` returns later.

    Raises
    ------
    UsageError
        No GPU can be used, the grid does not fit into its memory, or the initial state cannot be read.
    """
    _check_cuda(config, layout)
    from gsio.compute.cuda.solver import tune

    for tiling, speed in tune(config, layout, start, recall, remember):
        yield str(tiling), speed


def _check_cuda(config: Config, layout: BlockLayout) -> None:
    """Raise UsageError if a run cannot be done on its GPU."""
    try:
        from gsio.compute.cuda.solver import count_devices, free_bytes, needed_bytes

        devices = count_devices()
    except Exception as error:  # CuPy reports a missing driver or library in many ways
        raise UsageError(f"run.backend: cupy cannot be used here: {one_line(error)}; see 'gsio doctor'") from None
    if config.run.device >= devices:
        raise UsageError(f"run.device: expected a GPU below {devices}, got {config.run.device}")
    if reason := why_too_old(config.run.device):
        raise UsageError(f"run.device: {reason}")
    check_memory("device", needed_bytes(config, layout), free_bytes(config.run.device))


def check_memory(where: str, needed: int, available: int) -> None:
    """Raise UsageError if a run needs more than the available memory."""
    if needed > available:
        raise UsageError(
            f"grid.rows × grid.cols: the run needs {needed / 1e9:.1f} GB of {where} memory, "
            f"{available / 1e9:.1f} GB are available; use a smaller grid"
        )
