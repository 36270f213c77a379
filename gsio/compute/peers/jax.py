"""JAX: a step is a function of arrays, the steps of a frame one compiled loop that reuses the memory of its arguments.

Backends: `jax`, 3 × 3 slices of the padded field in a `fori_loop`; `jax-convolve`, a convolution instead of the slices;
`jax-scan`, the slices in a `scan`. Members of a batch are the axis of `vmap`.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.signal import convolve2d

from gsio.compute.host import ArraySolver, initial_arrays, nth_device
from gsio.config import Config
from gsio.frames.layout import BlockLayout
from gsio.model.gray_scott import OF_MEMBERS, PADDING
from gsio.model.start import Start


def solver(config: Config, layout: BlockLayout, start: Start) -> ArraySolver[Any]:
    """Return the solver of one of JAX's devices: GPUs, if it has any."""
    backend = config.run.backend
    if config.model.precision == "float64":
        jax.config.update("jax_enable_x64", True)  # else every float64 becomes float32
    device = nth_device(jax.devices(), config.run.device)
    u, v, c = initial_arrays(config, layout, start, partial(jax.device_put, device=device))

    def around(f: Any) -> Any:
        p = jnp.pad(f, 1, PADDING[config.grid.boundary])
        if backend == "jax-convolve":
            return convolve2d(p, jnp.array(c.weights, f.dtype), mode="valid", precision="highest")
        return c.around(p)

    def step(u: Any, v: Any, *rates: Any) -> Any:
        return c._replace(**dict(zip(OF_MEMBERS, rates, strict=True))).step(u, v, around(u), around(v))

    rates = [getattr(c, name) for name in OF_MEMBERS]
    if u.ndim == 3:
        step = jax.vmap(step, (0, 0, *(0 if np.ndim(rate) == 3 else None for rate in rates)))

    @partial(jax.jit, static_argnums=2, donate_argnums=0)
    def advance(state: Any, rates: Any, steps: int) -> Any:
        if backend == "jax-scan":
            return lax.scan(lambda state, _: (step(*state, *rates), None), state, length=steps)[0]
        return lax.fori_loop(0, steps, lambda _, state: step(*state, *rates), state)

    to_host = np.array if device.platform == "cpu" else np.asarray  # whose memory, on the CPU, is that of the state
    return ArraySolver(
        backend,
        f"{device.device_kind}, JAX {jax.__version__}",
        config,
        layout,
        (u, v),
        lambda state, steps: advance(state, rates, steps),
        lambda state, i: to_host(state[i]),
    )
