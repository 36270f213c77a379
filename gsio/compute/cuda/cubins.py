"""Compiled kernels, each kept in a file of the user for later runs.

CuPy keeps kernels too, but to find them it loads the compiler and lets it read an empty source for each set of options.
The kernels of a run load in less time.
"""

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cupy
from crc32c import crc32c
from cupy.cuda import runtime

from gsio.compute.cuda.sources import read
from gsio.machine import cache_folder


def load_module(names: tuple[str, ...], options: tuple[str, ...], *, cooperative: bool = False) -> Any:
    """Return the kernels in source files, compiled with `options` for the current device, as a `cupy.RawModule`.

    Raises what CuPy raises if they cannot be compiled. The first use of a kernel loads a file, and raises if it fails.
    """
    source = read(*names)
    versions = cupy.__version__, runtime.runtimeGetVersion(), runtime.driverGetVersion()
    known = repr((versions, cupy.cuda.Device().compute_capability, options, source))
    name = hashlib.sha256(known.encode()).hexdigest()[:32]
    with suppress(OSError, RuntimeError):  # there is no place for the file, or the user has no home
        path = _find(cache_folder() / "kernels", name) or _compile(cache_folder() / "kernels", name, source, options)
        return cupy.RawModule(path=os.fspath(path), options=options, enable_cooperative_groups=cooperative)
    return cupy.RawModule(code=source, options=options, enable_cooperative_groups=cooperative)


def _find(folder: Path, name: str) -> Path | None:
    """Return the file with the kernels of a name, or None if there is none whose content matches its checksum."""
    for path in folder.glob(f"{name}-*.cubin"):
        if path.stem.endswith(_checksum(path.read_bytes())):
            return path
    return None


def _compile(folder: Path, name: str, source: str, options: tuple[str, ...]) -> Path:
    """Compile kernels as CuPy does, keep them in a file, whose name ends in their checksum, and return its path."""
    from cupy.cuda import compiler

    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder) as temporary:  # made first: without a place for the file, CuPy compiles
        cubin, _ = compiler.compile_using_nvrtc(source, (*options, "-ftz=true"))
        path = folder / f"{name}-{_checksum(cubin)}.cubin"
        Path(temporary, path.name).write_bytes(cubin)
        Path(temporary, path.name).replace(path)
    return path


def _checksum(cubin: bytes) -> str:
    return f"{crc32c(cubin):08x}"
