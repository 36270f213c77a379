"""Solvers advance u and v, and know no files.

To add a backend, write a file that makes its solver, and add its row to `gsio.config.tables.BACKENDS`.
"""

import os
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, cast

from msgspec.structs import replace

from gsio.compute.bands import Band
from gsio.compute.solver import Solver
from gsio.config import BACKENDS, Config, parse_devices
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
    band: Band | None = None,
) -> Solver:
    """Return the solver of a run in the state that `start` returns; `start` is called once the memory is known to do.

    `recall` returns what was kept under a name, or None: the tuning of ``gsio bench tune``, or what a solver gave to
    `remember`, which is how long its functions took to compile. With a `band`, the solver is a `RowsSolver` of the band
    and its halo, and `layout` has the rows of the band.

    Raises
    ------
    UsageError
        The backend cannot be used here, the grid does not fit into memory (with `blocks` blocks of frames), the
        initial state cannot be read, or the time step is too long for the rates.
    """
    row, devices = BACKENDS[backend], devices_of(backend, config)
    check_memory("host", _host_bytes(backend, config, layout, blocks, band), available_memory())
    if row.cuda:
        _check_cuda(config, layout, devices)
    if row.compiles and not numba_compiles():
        what = f"run.backend: {backend} cannot be used with NUMBA_DISABLE_JIT"
        raise UsageError(f"{what}; unset the variable, or choose the backend numpy")
    try:
        several = len(devices) > 1
        module = import_module(f"gsio.compute.{row.several if several else row.module}")
        make = getattr(module, "BandsSolver" if several else row.solver)
    except ImportError as error:
        if not row.extra:
            raise
        what = f"run.backend: {backend} cannot be used here: {one_line(error)}"
        raise UsageError(f"{what}; get it with pip install 'gsio[{row.extra}]'") from None
    begin = start(config)
    check_stability(config.model, begin.feed, begin.kill)
    more: dict[str, Any] = {"recall": recall} if row.tuned or row.compiles else {}
    if row.compiles:
        more["remember"] = remember
    if several:
        more["devices"] = devices
    else:
        config = replace(config, run=replace(config.run, device=devices[0]))
    if band is not None:
        config, begin = band.config(config), band.start(begin)
        more["own"] = None if band.batch else band.own
    return cast(Solver, make(config, layout, begin, **more))


def _host_bytes(backend: str, config: Config, layout: BlockLayout, blocks: int, band: Band | None) -> int:
    """Return the bytes of host memory that a run takes.

    The initial state is two float64 fields, of the whole grid also for a band. Maps of feed and kill are two more, and
    two of the computed dtype. Staged frames wait in `blocks` blocks, once raw and once encoded.
    """
    row = BACKENDS[backend]
    maps = 2 * config.model.maps
    cells, a_cell = layout.frame.cells, (row.copies + maps) * (row.itemsize or layout.frame.computed.itemsize)
    whole = cells if band is None else cells // len(band.lines) * band.all_lines
    return whole * (2 + maps) * 8 + cells * a_cell + 2 * blocks * layout.block_nbytes


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
    _check_cuda(config, layout, (config.run.device,))
    from gsio.compute.cuda.solver import tune

    for tiling, speed in tune(config, layout, start, recall, remember):
        yield str(tiling), speed


def devices_of(backend: str, config: Config) -> tuple[int, ...]:
    """Return the numbers of the devices of a run.

    Raises UsageError if there are several and the backend cannot use them, or if CuPy cannot count them.
    """
    devices = parse_devices("run.devices", config.run.devices)
    if devices is None and BACKENDS[backend].several:
        devices = tuple(range(_count_devices()))
    if devices is None or (devices and not BACKENDS[backend].several):
        able = next(name for name, row in BACKENDS.items() if row.several)
        raise UsageError(
            f"run.devices: expected the backend {able}, got {backend}; set the backend, or leave the key out"
        )
    return devices or (config.run.device,)


def _count_devices() -> int:
    """Return the number of GPUs; raise UsageError if CuPy does not find any."""
    try:
        from gsio.compute.cuda.solver import count_devices

        return count_devices()
    except Exception as error:  # CuPy reports a missing driver or library in many ways
        raise UsageError(f"run.backend: cupy cannot be used here: {one_line(error)}; see 'gsio doctor'") from None


def _check_cuda(config: Config, layout: BlockLayout, devices: tuple[int, ...]) -> None:
    """Raise UsageError if a run cannot be done on its GPUs."""
    there, key = _count_devices(), "run.devices" if config.run.devices != "" else "run.device"
    for device in devices:
        if device >= there:
            raise UsageError(f"{key}: expected a GPU below {there}, got {device}")
        if reason := why_too_old(device):
            raise UsageError(f"{key}: {reason}")
    from gsio.compute.cuda.bands import enough, needed_by_each
    from gsio.compute.cuda.solver import free_bytes

    free = list(map(free_bytes, devices))
    for needed, available in zip(needed_by_each(config, layout, devices), free, strict=True):
        advice = "use a smaller grid"
        if needed > available and (count := enough(config, layout, len(devices), min(free))):
            advice += f", or {count} GPUs with as much memory (--devices)"
        check_memory("device", needed, available, advice)


def check_memory(where: str, needed: int, available: int, advice: str = "use a smaller grid") -> None:
    """Raise UsageError, which ends with `advice`, if a run needs more than the available memory."""
    if needed > available:
        raise UsageError(
            f"grid.rows × grid.cols: the run needs {needed / 1e9:.1f} GB of {where} memory, "
            f"{available / 1e9:.1f} GB are available; {advice}"
        )
