"""The names that a configuration may choose from, and where the code behind each name is.

A new codec or backend is one file and one row of a table here. The tables hold data only: the module of a row is
imported when it is used.
"""

from typing import NamedTuple

AUTO = "auto"  # the plan of a run chooses


class Backend(NamedTuple):
    """Where the solver of a backend is, and its needs.

    Attributes
    ----------
    module
        The module within gsio.compute.
    copies
        Grids that the solver has in host memory, each of the computed dtype; temporary arrays are counted.
    extra
        The extra of gsio that installs the library of the backend. It is "" if no library is needed, and with CuPy,
        for which 'gsio doctor' names the package.
    solver
        The class or function of the module that makes the solver.
    cuda
        Whether the backend needs a GPU that CuPy can use.
    several
        The module within gsio.compute of the class `BandsSolver`, which shares a grid among several GPUs; "": there is
        none.
    tuned
        Whether the solver takes `recall`, which returns stored tunings.
    encodes
        Whether the backend encodes chunks where the codec has kernels.
    compiles
        Whether the backend needs the compiler of Numba; its solver takes `recall` and `remember`.
    itemsize
        Bytes of a computed value; 0: those of `model.precision`.
    exchange_seconds, cells_per_second
        About how long the exchange of a halo takes, and how fast the solver is: they decide how deep a halo is. Both
        are 0 if the solver cannot compute a band on each rank.
    pass_seconds
        About how long it takes, for each cell, that an exchange ends a pass of many steps over the memory.
    pass_steps
        The steps of a pass, where these are always the same.
    """

    module: str
    copies: int
    extra: str = ""
    solver: str = "solver"
    cuda: bool = False
    several: str = ""
    tuned: bool = False
    encodes: bool = False
    compiles: bool = False
    itemsize: int = 0
    exchange_seconds: float = 0.0
    cells_per_second: float = 0.0
    pass_seconds: float = 0.0
    pass_steps: int = 1


BACKENDS = {
    "cupy": Backend(
        "cuda.solver",
        0,
        solver="CudaSolver",
        cuda=True,
        several="cuda.bands",
        tuned=True,
        encodes=True,
        exchange_seconds=5e-5,
        cells_per_second=1e12,
        pass_steps=8,
    ),
    "numba": Backend(
        "cpu", 4, solver="CpuSolver", compiles=True, exchange_seconds=2e-4, cells_per_second=2.5e9, pass_seconds=2e-9
    ),
    "numpy": Backend("peers.numpy", 12, itemsize=8, exchange_seconds=1e-4, cells_per_second=2e7),
    "cupy-arrays": Backend("peers.cupy_arrays", 2, cuda=True),
    "jax": Backend("peers.jax", 8, "jax"),
    "jax-convolve": Backend("peers.jax", 8, "jax"),
    "jax-scan": Backend("peers.jax", 8, "jax"),
    "torch": Backend("peers.torch", 8, "torch"),
    "torch-compile": Backend("peers.torch", 8, "torch"),
    "cupynumeric": Backend("peers.cupynumeric", 8, "cupynumeric"),
}

# The module within gsio.codec that makes each codec, under the name of the codec in capitals. A format takes the first
# codec that it can hold where a configuration does not choose.
CODECS = {"deflate": "deflate", "lz4": "blosc", "zstd": "blosc", "none": "raw"}
