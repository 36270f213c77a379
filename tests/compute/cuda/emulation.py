"""The kernel of the CUDA solver on the CPU: compiled as C++, with a fiber for each thread, for the simulated device."""

import ctypes
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from simulation import Simulation

from gsio.compute.cuda.sources import read

COMPILER = shutil.which("g++")
FLAGS = (
    "-std=c++17", "-O1", "-march=native", "-ffp-contract=off", "-w", "-U_FORTIFY_SOURCE", "-shared", "-fPIC",
    "-Wl,-Bsymbolic",
)  # fmt: skip
LAUNCH = """
extern "C" void launch(int grid, size_t shared, unsigned seed, real* u, real* v, real* next_u, real* next_v, real* feed,
                       real* keep_v, unsigned* flags, const Plan* plan, const Coefficients* constants)
{
    emulation::run(grid, THREADS, shared, seed, [=] {
        advance(u, v, next_u, next_v, feed, keep_v, flags, *plan, *constants);
    });
}
"""
SHARED, STATIC = "Cells* shared = (Cells*)emulation::now->block->memory.data();", "emulation::now->block->statics"


def compile_kernel(options: tuple[str, ...], folder: Path) -> Any:
    """Return the function `launch` of the kernel with these options."""
    assert COMPILER
    name = re.sub(r"\W", "", "".join(options))
    library = folder / f"{name}.so"
    if not library.exists():
        places = iter(range(0, 1024, 256))
        tiles = read("tiles.cu").replace("extern __shared__ Cells shared[];", SHARED)
        tiles = re.sub(
            r"__shared__ ([\w ]+) (\w+)(\[\d\]|);",
            lambda found: f"auto& {found[2]} = *({found[1]}(*){found[3]})({STATIC} + {next(places)});",
            tiles,
        )
        source = folder / f"{name}.cpp"
        source.write_text((Path(__file__).parent / "emulation.hpp").read_text() + read("stencil.cu") + tiles + LAUNCH)
        defines = [option for option in options if option.startswith("-D")]
        subprocess.run([COMPILER, *FLAGS, *defines, source, "-o", library], check=True)
    return ctypes.CDLL(str(library)).launch


class Emulation(Simulation):
    """A simulated device whose time steps are those of the real kernel."""

    def __init__(self, seed: int, folder: Path, multiprocessors: int) -> None:
        super().__init__(seed)
        self.folder, runtime = folder, self.cuda.runtime
        properties = runtime.getDeviceProperties(0) | {"multiProcessorCount": multiprocessors}
        runtime.getDeviceProperties = lambda _: properties

    def advance(self, options: Any, grid: Any, *arguments: Any) -> None:
        *arrays, plan, constants = arguments
        pointers = [ctypes.c_void_p(array.data.ptr) for array in arrays]
        structs = [ctypes.c_void_p(struct.ctypes.data) for struct in (plan, constants)]
        seed, shared = ctypes.c_uint(self.random.getrandbits(32)), ctypes.c_size_t(1 << 18)
        compile_kernel(options, self.folder)(grid[0], shared, seed, *pointers, *structs)
