"""The first rungs of the ladder of kernels as solvers; the production kernel is measured against them."""

from collections.abc import Callable
from typing import Any

import numpy as np

from gsio.compute.cuda.sources import FUSED_STEPS, FUSED_TILE, RUNGS, read
from gsio.compute.host import ArraySolver, initial_arrays
from gsio.config import Config
from gsio.frames.layout import BlockLayout
from gsio.model.gray_scott import Field
from gsio.model.start import Start

MAX_STEPS = {"naive": 1, "fused": FUSED_STEPS}  # of a launch


def solver_of(rung: str, config: Config, layout: BlockLayout, start: Start) -> ArraySolver[Any]:
    """Return the solver of a rung: the default stencil on a periodic grid, float32, dt 1 and constant rates."""
    import cupy

    kernel, model = cupy.RawKernel(read(f"{rung}.cu"), rung, options=RUNGS[rung]), config.model
    u, v, _ = initial_arrays(config, layout, start, cupy.asarray)
    both = [[u, v], [cupy.empty_like(u), cupy.empty_like(v)]]
    rates: Any = model.diffusion_u, model.diffusion_v, model.feed, model.feed + model.kill  # type: ignore[operator]
    numbers = [*map(np.int32, u.shape), *map(np.float32, rates)]
    launch = _launch_fused if rung == "fused" else _launch_naive
    stream, graphs = cupy.cuda.Stream(non_blocking=True), {}
    kernel.compile()
    cupy.cuda.runtime.deviceSynchronize()  # the arrays were filled on another stream

    def advance(now: int, steps: int) -> int:
        launches = -(-steps // MAX_STEPS[rung])
        with stream:
            if (now, steps) not in graphs:  # one launch of all steps
                stream.begin_capture()
                for i in range(launches):
                    old, new = both[(now + i) % 2], both[(now + i + 1) % 2]
                    launch(kernel, u.shape, [*old, *new, *numbers], min(MAX_STEPS[rung], steps - i * MAX_STEPS[rung]))
                graphs[now, steps] = stream.end_capture()
            graphs[now, steps].launch(stream)
        return (now + launches) % 2

    def copy(now: int, i: int) -> Field:
        with stream:
            return np.asarray(both[now][i].get())

    return ArraySolver(rung, "CUDA", config, layout, 0, advance, copy)


def _launch_naive(kernel: Callable[..., None], shape: tuple[int, int], arguments: list[Any], steps: int) -> None:
    kernel((-(-shape[1] // 32), -(-shape[0] // 8)), (32, 8), tuple(arguments))


def _launch_fused(kernel: Callable[..., None], shape: tuple[int, int], arguments: list[Any], steps: int) -> None:
    kernel((-(-shape[1] // FUSED_TILE), -(-shape[0] // FUSED_TILE)), (256,), (*arguments, np.int32(steps)))
