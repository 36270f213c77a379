"""The loops of `library.py`: 3 × 3 slices of padded fields, as users of JAX, PyTorch, CuPy and NumPy write them."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import gsio
from gsio.compute.host import initial_arrays
from gsio.model.gray_scott import PADDING, Coefficients
from gsio.run.initial import initial_state
from gsio.run.plan import layout_of

Array = Any  # of one of the libraries
State = tuple[Array, Array]  # u and v
Frame = NDArray[np.float32]
Context = Callable[[], AbstractContextManager[Any]]


class Library(NamedTuple):
    """What the measurements need from a library.

    `step` returns the state of the next frame, and `touch` adds 1 to the first cell of v; both may reuse the memory of
    the old state. `change` negates an array an even number of times and adds 1; it too may reuse memory. `array` makes
    an array on the device, `copy` copies one there, and `host` waits for one and returns its values. `stream` makes a
    stream, if the library has them, and returns what enters it.
    """

    array: Callable[[Frame], Array]
    step: Callable[[State], State]
    touch: Callable[[State], State]
    change: Callable[[Array, int], Array]
    copy: Callable[[Array], Array]
    host: Callable[[Array], Frame]
    stream: Callable[[], Context]


def started(config: gsio.Config) -> tuple[Frame, Frame, Coefficients]:
    """Return u and v at the start of a run, and the constants of a step."""
    return initial_arrays(config, layout_of(config), initial_state(config), np.asarray)


def jax(config: gsio.Config) -> Library:
    """JAX: all steps of a frame are one program, whose arguments are donated."""
    import jax
    import jax.numpy as jnp

    c, mode = started(config)[2], PADDING[config.grid.boundary]

    def one(_: int, state: State) -> State:
        return c.step(*state, *(c.around(jnp.pad(f, 1, mode)) for f in state))

    def change(x: Array, times: int) -> Array:
        return jax.lax.fori_loop(0, times, lambda _, y: -y, x) + 1

    return Library(
        jnp.array,
        jax.jit(lambda state: jax.lax.fori_loop(0, config.run.steps_per_frame, one, state), donate_argnums=0),
        jax.jit(lambda state: (state[0], state[1].at[0, 0].add(1)), donate_argnums=0),
        jax.jit(change, donate_argnums=0),
        jax.jit(jnp.copy),
        jax.device_get,
        lambda: nullcontext,  # JAX chooses its streams itself
    )


def torch(config: gsio.Config, how: str = "graph") -> Library:
    """PyTorch: a step is a compiled kernel, and all steps of a frame are one CUDA graph, whose arrays change in place.

    With `how` "steps" the loop calls each step, which makes new tensors; with "eager" it is not compiled either.
    """
    import torch
    from torch.nn.functional import pad

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    mode = {"periodic": "circular", "neumann": "replicate", "zero": "constant"}[config.grid.boundary]
    u, v, c = started(config)

    def one(u: Array, v: Array) -> State:
        return c.step(u, v, *(c.around(pad(f[None, None], (1, 1, 1, 1), mode)[0, 0]) for f in (u, v)))

    def stream() -> Context:
        return partial(torch.cuda.stream, torch.cuda.Stream()) if device.type == "cuda" else nullcontext

    array = partial(torch.tensor, device=device)
    step = partial(steps, one if how == "eager" else torch.compile(one), config.run.steps_per_frame)
    if how == "graph" and device.type == "cuda":
        step = captured(step, (array(u), array(v)))
    return Library(array, step, touch, change, torch.clone, lambda x: x.cpu().numpy(), stream)


def captured(step: Callable[[State], State], state: State) -> Callable[[State], State]:
    """Return `step` as a CUDA graph of PyTorch that changes the arrays of `state` in place."""
    import torch

    step(state)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for array, result in zip(state, step(state), strict=True):
            array.copy_(result)

    def replay(given: State) -> State:
        if given is not state:
            for array, value in zip(state, given, strict=True):
                array.copy_(value)
        graph.replay()
        return state

    return replay


def cupy(config: gsio.Config) -> Library:
    """CuPy: array code as in NumPy."""
    import cupy

    def stream() -> Context:
        own = cupy.cuda.Stream(non_blocking=True)
        return lambda: own

    return numpy_like(config, cupy)._replace(host=lambda x: x.get(), stream=stream)


def numpy(config: gsio.Config) -> Library:
    """NumPy: array code."""
    return numpy_like(config, np)


def numpy_like(config: gsio.Config, xp: Any) -> Library:
    """Return the loop in array code of the module `xp`; each step makes new arrays."""
    c, mode = started(config)[2], PADDING[config.grid.boundary]

    def one(u: Array, v: Array) -> State:
        return c.step(u, v, *(c.around(xp.pad(f, 1, mode)) for f in (u, v)))

    step = partial(steps, one, config.run.steps_per_frame)
    return Library(xp.array, step, touch, change, xp.copy, lambda x: x, lambda: nullcontext)


def steps(one: Callable[..., State], number: int, state: State) -> State:
    """Advance by a number of steps, each a call."""
    for _ in range(number):
        state = one(*state)
    return state


def touch(state: State) -> State:
    """Add 1 to the first cell of v, in place."""
    state[1][0, 0] += 1
    return state


def change(x: Array, times: int) -> Array:
    """Negate `x` an even number of times, and add 1, in place."""
    for _ in range(times):
        x *= -1
    x += 1
    return x


LIBRARIES: dict[str, Callable[[gsio.Config], Library]] = {
    "jax": jax,
    "torch": torch,
    "torch-steps": partial(torch, how="steps"),
    "torch-eager": partial(torch, how="eager"),
    "cupy": cupy,
    "numpy": numpy,
}
