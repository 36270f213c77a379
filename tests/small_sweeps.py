"""Small sweeps, for the tests of sweeps and of the pages that show them."""

from pathlib import Path

from gsio.sweep.description import load_sweep
from gsio.sweep.plan import Plan
from gsio.sweep.result import begin

SHARED = """
[grid]
rows = 12
cols = 17
[run]
frames = 5
steps_per_frame = 3
backend = "numba"
threads = 1
"""
NOISE = """
[initial]
kind = "noise"
"""


def begun(text: str, output: Path) -> Plan:
    """Write the description of a sweep beside its result, which has no member yet, and return the plan."""
    path = output.with_suffix(".toml")
    path.write_text(text)
    return begin(load_sweep(path), output)
