"""Whole runs on a GPU."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

import gsio
from gsio.compute import choose_backend, open_solver
from gsio.config import Config
from gsio.errors import UsageError
from gsio.run import layout_of

Make = Callable[..., Config]
pytestmark = pytest.mark.gpu

RUN = {"grid.rows": 67, "grid.cols": 121, "run.frames": 300, "initial.kind": "spots", "output.fields": "u,v"}


def frames_of(config: Config, path: Path) -> tuple[np.ndarray, np.ndarray]:
    gsio.simulate(config, path)
    with h5py.File(path) as file:
        return file["u"][:], file["v"][:]


@pytest.mark.parametrize("compression", ["deflate", "none"])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_run_saves_the_frames_of_the_reference(
    compression: str, precision: str, make_config: Make, tmp_path: Path
) -> None:
    changes = {**RUN, "output.compression": compression, "model.precision": precision}
    found = frames_of(make_config({**changes, "run.backend": "cupy"}), tmp_path / "gpu.h5")
    expected = frames_of(make_config({**changes, "run.backend": "numpy"}), tmp_path / "numpy.h5")
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-3 if precision == "float32" else 1e-11)


def test_frames_are_the_same_every_time_and_for_any_number_of_threads(make_config: Make, tmp_path: Path) -> None:
    once = frames_of(make_config({**RUN, "run.backend": "cupy", "output.threads": 1}), tmp_path / "once.h5")
    again = frames_of(make_config({**RUN, "run.backend": "cupy", "output.threads": 7}), tmp_path / "again.h5")
    for mine, theirs in zip(once, again, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_auto_is_the_gpu(make_config: Make) -> None:
    assert choose_backend(make_config({"run.backend": "auto"})) == "cupy"


def test_a_grid_too_large_for_the_gpu_is_refused(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gsio.compute.cuda.free_bytes", lambda device: 1_000_000)
    config = make_config({"run.backend": "cupy", "grid.rows": 1000, "grid.cols": 1000})
    with pytest.raises(UsageError, match=r"device memory, 0\.0 GB are available"):
        open_solver(config, layout_of(config), 3)


def test_a_gpu_that_is_not_there_is_refused(make_config: Make) -> None:
    config = make_config({"run.backend": "cupy", "run.device": 999})
    with pytest.raises(UsageError, match=r"run\.device"):
        open_solver(config, layout_of(config), 3)
