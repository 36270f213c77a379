"""PyTorch: `torch`, a convolution of the padded fields, eager; `torch-compile`, a step of slices made one kernel."""

from typing import Any

import numpy as np
import torch
from torch.nn.functional import conv2d, pad

from gsio.compute.host import ArraySolver, initial_arrays, nth_device
from gsio.config import Config
from gsio.frames.layout import BlockLayout
from gsio.model.gray_scott import Field
from gsio.model.start import Start

PADDING = {"periodic": "circular", "neumann": "replicate", "zero": "constant"}


def solver(config: Config, layout: BlockLayout, start: Start) -> ArraySolver[Any]:
    """Return the solver of one of PyTorch's GPUs, or of the CPU if it has none."""
    gpus = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    device = nth_device(gpus or [torch.device("cpu")], config.run.device)
    u, v, c = initial_arrays(config, layout, start, lambda field: torch.from_numpy(field).to(device))
    weights = torch.tensor(c.weights, dtype=u.dtype, device=device)[None, None]
    compiled = config.run.backend == "torch-compile"

    def around(f: Any) -> Any:
        p = pad(f.reshape(-1, 1, *f.shape[-2:]), (1, 1, 1, 1), PADDING[config.grid.boundary])  # which takes 4 axes only
        return (c.around(p) if compiled else conv2d(p, weights)).reshape(f.shape)

    def step(u: Any, v: Any) -> Any:
        return c.step(u, v, around(u), around(v))

    one = torch.compile(step) if compiled else step

    def advance(state: Any, steps: int) -> Any:
        # TF32 has 10 bits of mantissa.
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            for _ in range(steps):
                state = one(*state)
        return state

    def copy(state: Any, i: int) -> Field:
        return np.asarray(state[i].cpu())

    name = torch.cuda.get_device_name(device) if gpus else "CPU"
    device_name = f"{name}, PyTorch {torch.__version__}"
    return ArraySolver(config.run.backend, device_name, config, layout, (u, v), advance, copy)
