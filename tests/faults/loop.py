"""A loop outside gsio: it saves frames and states, flushes in the middle of chunks, and goes on where it stopped."""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

import gsio
from gsio.errors import GsioError

SHAPE = 24, 32


class State(NamedTuple):
    """What the loop goes on from."""

    u: np.ndarray
    v: np.ndarray


def step(state: State) -> State:
    """Return the next state: any function that keeps values between 0 and 1, and gives the same bits each time."""
    u = np.float32(0.5) * (state.u + np.roll(state.v, 1, 0))
    return State(u, np.float32(3.9) * state.v * (1 - state.v) * np.float32(0.5) + np.float32(0.5) * u)


def loop(arguments: list[str]) -> int:
    """Do what the arguments say, and return the exit code that gsio's own command would have."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-o", dest="path", type=Path)
    parser.add_argument("-n", dest="frames", type=int)
    parser.add_argument("--compression")
    parser.add_argument("--shard-frames", type=int, default=0)
    parser.add_argument("--resume", default="no")
    parser.add_argument("--discard-after", type=int)
    parser.add_argument("--overwrite", action="store_true")
    how = vars(parser.parse_args(arguments))
    path, frames = how.pop("path"), how.pop("frames")
    rng = np.random.default_rng(1)
    initial = State(rng.random(SHAPE, np.float32), rng.random(SHAPE, np.float32))
    try:
        with gsio.FrameWriter(path, SHAPE, fields="u,v", threads=2, **how) as out:
            state = out.checkpoint or initial
            for n in range(len(out), frames):
                state = step(state)
                out.append(u=state.u, v=state.v, time=0.5 * n, step=3 * n)
                if n % 13 == 4:
                    out.flush()
                if n % 10 == 8 or n == frames - 1:
                    out.save(state)
    except GsioError as error:
        sys.stderr.write(f"gsio: error: {error}\n")
        return error.exit_code
    return 0
