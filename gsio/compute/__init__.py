"""Solvers: they advance u and v, and know nothing of files."""

import os
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import cast

import structlog
from msgspec.structs import replace

from gsio.compute.solver import Solver
from gsio.config import Backend, Config
from gsio.errors import UsageError
from gsio.frames.layout import FrameLayout
from gsio.machine import available_memory, find_driver, how_to_install_cupy, one_line
from gsio.model.gray_scott import check_stability
from gsio.model.start import Start

# Array code in other libraries, to compare with: the module of each, which is also the extra that installs the library.
ROUTES = {
    "numpy": "numpy",
    "cupy-arrays": "cupy_arrays",
    "jax": "jax",
    "jax-convolve": "jax",
    "jax-scan": "jax",
    "torch": "torch",
    "torch-compile": "torch",
    "cupynumeric": "cupynumeric",
}
OLDEST = 8, 0  # compute capability, for copies that do not wait and barriers in two halves

log = structlog.get_logger()


def choose_backend(config: Config) -> Backend:
    """Return the backend of the run; `auto` is the GPU if there is one that can be used, else Numba."""
    if config.run.backend != "auto":
        return config.run.backend
    driver = find_driver()
    if driver is None or not driver.gpus:
        return _on_cpu()
    device = min(config.run.device, len(driver.gpus) - 1)  # `open_solver` refuses a GPU that is not there
    gpu = driver.gpus[device]
    try:
        reason = _too_old(device)
    except Exception as error:
        found = "CuPy is not installed" if find_spec("cupy") is None else f"CuPy does not start: {one_line(error)}"
        log.warning(f"{gpu} is not used, the CPU is: {found}; get it with {how_to_install_cupy(driver)}")
        return _on_cpu()
    if reason:
        log.warning(f"{gpu} is not used, the CPU is: {reason}")
        return _on_cpu()
    return "cupy"


def _on_cpu() -> Backend:
    """Return the backend that `auto` is without a GPU: Numba, or NumPy where Numba may not compile."""
    if _numba_compiles():
        return "numba"
    log.warning("NUMBA_DISABLE_JIT is set: the backend is numpy, which is slow; unset the variable to use numba")
    return "numpy"


def _numba_compiles() -> bool:
    """Return whether Numba compiles; with NUMBA_DISABLE_JIT, it would have Python run what is written for LLVM."""
    try:
        return not int(os.environ.get("NUMBA_DISABLE_JIT", "0"))
    except ValueError:  # Numba warns, and compiles
        return True


def with_backend(config: Config) -> Config:
    """Return `config` with the backend of the run in place of `auto`."""
    return replace(config, run=replace(config.run, backend=choose_backend(config)))


def _too_old(device: int) -> str | None:
    """Return why a GPU cannot be used, or None if it can."""
    import cupy

    properties = cupy.cuda.runtime.getDeviceProperties(device)
    found = properties["major"], properties["minor"]
    if found >= OLDEST:
        return None
    return f"expected a GPU of compute capability {OLDEST[0]}.{OLDEST[1]} (Ampere) or later, got {found[0]}.{found[1]}"


def open_solver(config: Config, layout: FrameLayout, blocks: int, start: Callable[[Config], Start]) -> Solver:
    """Return the solver of the run, at what `start` returns once it is known that there is memory for it.

    Raises
    ------
    UsageError
        The backend cannot be used here, the grid does not fit into memory (with `blocks` blocks of frames), the
        initial state cannot be read, or the time step is too long for the rates.
    """

    def begin() -> Start:
        beginning = start(config)
        check_stability(config.model, beginning.feed, beginning.kill)
        return beginning

    backend = choose_backend(config)
    # That live in host memory; the temporary arrays of array code among them.
    fields = {"numba": 4, "numpy": 12, "cupy": 0, "cupy-arrays": 2}.get(backend, 8)
    itemsize = 8 if backend == "numpy" else layout.computed.itemsize
    # The initial state is two float64 fields; maps of feed and kill are two more, and two of the precision of the run.
    # What is staged waits in `blocks` blocks, once raw and once encoded.
    maps = 2 * config.model.maps
    needed = layout.cells * ((2 + maps) * 8 + (fields + maps) * itemsize) + 2 * blocks * layout.block_nbytes
    check_memory("host", needed, available_memory())
    if backend == "cupy":
        _check_cuda(config, layout)
        from gsio.compute.cuda.solver import CudaSolver

        return CudaSolver(config, layout, begin())
    if backend == "numba":
        if not _numba_compiles():
            what = "run.backend: numba cannot be used with NUMBA_DISABLE_JIT"
            raise UsageError(f"{what}; unset the variable, or choose the backend numpy")
        from gsio.compute.cpu import CpuSolver

        return CpuSolver(config, layout, begin())
    if backend == "cupy-arrays":
        _check_cuda(config, layout)
    module = ROUTES[backend]
    try:
        solver = import_module(f"gsio.compute.peers.{module}").solver
    except ImportError as error:
        what = f"run.backend: {backend} cannot be used here: {one_line(error)}"
        raise UsageError(f"{what}; get it with pip install 'gsio[{module}]'") from None
    return cast(Solver, solver(config, layout, begin()))


def tune(config: Config, layout: FrameLayout, start: Start) -> Iterator[tuple[str, float]]:
    """Yield ways to cut the grid of a run into tiles and the Gcell/s measured of each; the fastest is kept for later.

    Raises
    ------
    UsageError
        There is no GPU that can be used, the grid does not fit it, or the initial state cannot be read.
    """
    _check_cuda(config, layout)
    from gsio.compute.cuda.solver import tune

    for tiling, speed in tune(config, layout, start):
        yield str(tiling), speed


def _check_cuda(config: Config, layout: FrameLayout) -> None:
    """Raise UsageError if a run cannot be done on its GPU."""
    try:
        from gsio.compute.cuda.solver import count_devices, free_bytes, needed_bytes

        devices = count_devices()
    except Exception as error:  # CuPy reports a missing driver or library in many ways
        raise UsageError(f"run.backend: cupy cannot be used here: {one_line(error)}; see 'gsio doctor'") from None
    if config.run.device >= devices:
        raise UsageError(f"run.device: expected a GPU below {devices}, got {config.run.device}")
    if reason := _too_old(config.run.device):
        raise UsageError(f"run.device: {reason}")
    check_memory("device", needed_bytes(config, layout), free_bytes(config.run.device))


def check_memory(where: str, needed: int, available: int) -> None:
    """Raise UsageError if a run needs more memory than there is."""
    if needed > available:
        raise UsageError(
            f"grid.rows × grid.cols: the run needs {needed / 1e9:.1f} GB of {where} memory, "
            f"{available / 1e9:.1f} GB are available; use a smaller grid"
        )
