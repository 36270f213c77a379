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
    tuned
        Whether the solver takes `recall`, which returns stored tunings.
    encodes
        Whether the backend encodes chunks where the codec has kernels.
    compiles
        Whether the backend needs the compiler of Numba; its solver takes `recall` and `remember`.
    itemsize
        Bytes of a computed value; 0: those of `model.precision`.
    """

    module: str
    copies: int
    extra: str = ""
    solver: str = "solver"
    cuda: bool = False
    tuned: bool = False
    encodes: bool = False
    compiles: bool = False
    itemsize: int = 0


BACKENDS = {
    "cupy": Backend("cuda.solver", 0, solver="CudaSolver", cuda=True, tuned=True, encodes=True),
    "numba": Backend("cpu", 4, solver="CpuSolver", compiles=True),
    "numpy": Backend("peers.numpy", 12, itemsize=8),
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
