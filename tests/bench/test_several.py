"""The table of several GPUs, whose solvers are those of the CPU here: its rows, its ratios, and wrong answers."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gsio.bench import devices
from gsio.bench.tables import Options
from gsio.cli import main
from gsio.compute.peers import numpy as reference
from gsio.config import Config, load_config
from gsio.errors import UsageError
from gsio.frames.content import Content
from gsio.frames.layout import BlockLayout
from gsio.model.gray_scott import step

OPTIONS = Options("gpu", "", 0, 0, None, 1000, quick=False, devices="0,1")


class Gpus:
    """GPUs in the place of gsio's solvers, each of which takes 1 ms for a step of 1000 rows; several add an error."""

    def __init__(self, error: float) -> None:
        self._error = error

    def __call__(self, config: Config, numbers: Sequence[int]) -> Any:
        layout = BlockLayout.of_frames(Content.of(config).frame(shuffle=False), 1)
        solver = reference.solver(config, layout, devices.start_of(config))
        of_step = config.grid.rows * 1e-6 / len(numbers)
        error = self._error if len(numbers) > 1 else 0.0
        return SimpleNamespace(
            advance=solver.advance, field=lambda name: solver.field(name) + np.float32(error), tiling="tiles",
            seconds=lambda steps, times: steps * times * of_step, bands=[SimpleNamespace(depth=4)],
        )  # fmt: skip


def measure(monkeypatch: pytest.MonkeyPatch, library: str, *, weak: bool, error: float = 0.0) -> dict[str, Any]:
    monkeypatch.setattr(devices, "solver_of", Gpus(error))
    monkeypatch.setattr(devices, "free", lambda: None)
    return devices.measure(Path(), "gpu", library, 20, 12, weak, [0, 1])


@pytest.mark.parametrize(("quick", "rows"), [(False, 10), (True, 2)])
def test_rows_have_names_of_their_own_and_grids(quick: bool, rows: int) -> None:
    table = devices.table(OPTIONS._replace(quick=quick))
    assert len({row.name for row in table.rows}) == len(table.rows) == rows
    for row in table.rows:
        library, grid_rows, cols, _, numbers = json.loads(json.dumps(row.arguments))
        assert (library in devices.SPEEDS, numbers) == (True, [0, 1])
        load_config(overrides={"grid.rows": grid_rows, "grid.cols": cols}, environ={})


@pytest.mark.parametrize("weak", [False, True])
def test_several_gpus_are_compared_with_one(weak: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    found = measure(monkeypatch, "gsio", weak=weak)
    assert (found["ratio"], found["each"]) == (pytest.approx(2), pytest.approx(1))
    assert found["one"] == pytest.approx(12e-3)
    assert (found["error"], found["cut"]) == (0, "tiles, halos of 4")


def test_an_answer_that_is_not_that_of_one_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="expected the answer of one GPU, got an error of"):
        measure(monkeypatch, "gsio", weak=False, error=1e-6)


def test_jax_computes_the_same_equations() -> None:
    config = devices.config_of(20, 12, [0])
    start = devices.start_of(config)
    u, v = (np.float64(field) for field in start[:2])
    for _ in range(devices.STEPS):
        u, v = step(u, v, start.feed, start.kill, config.model, "periodic")
    speed, cut, found = devices.of_jax(20, 12, [0])
    assert speed > 0
    assert cut.startswith("JAX ")
    np.testing.assert_allclose(found, v, rtol=1e-5)


@pytest.mark.parametrize(("text", "got"), [("1", 1), ("all", 0)])
def test_one_gpu_is_not_several(text: str, got: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "find_driver", lambda: None)
    with pytest.raises(UsageError, match=f"expected two GPUs or more, got {got}"):
        devices.table(OPTIONS._replace(devices=text))


def test_the_command_takes_the_numbers_of_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "scaling", "--devices", "0,0"]) == 2
    assert "--devices: expected all, or numbers of GPUs such as 0,1, each once" in capsys.readouterr().err
