"""Values that leave 0 to 1: time steps that are too long are refused, and what leaves all the same is reported."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import gsio
from gsio.cli import main
from gsio.compute import open_solver
from gsio.config import Config
from gsio.errors import DivergenceError, UsageError
from gsio.model.gray_scott import MARGIN, values_outside
from gsio.run.initial import initial_state
from gsio.run.plan import layout_of

Make = Callable[..., Config]

STIFF = {"initial.kind": "square", "initial.u": 1.0, "initial.v": 1.0, "output.fields": "u,v", "run.steps_per_frame": 1}
ABOVE = {"model.stencil": "five-point", "model.diffusion_u": 0.2, "model.diffusion_v": 0.1, "initial.kind": "square"}


def warnings(events: list[Any]) -> list[str]:
    return [event["event"] for event in events if event["log_level"] == "warning"]


def map_in_file(path: Path, largest: float) -> dict[str, str]:
    values = np.full((12, 17), 0.01)
    values[7, 3] = largest
    np.save(path, values)
    return {"path": str(path)}


@pytest.mark.parametrize(
    ("feed", "kill"),
    [
        (0.06, 0.062),
        ([0.01, 0.06], 0.062),
        ({"along": "y", "start": 0.06, "stop": 0.01}, [0.062, 0.05]),
        ("file", {"along": "x", "start": 0.0, "stop": 0.062}),
        ("file", [0.062, 0.06]),
    ],
    ids=str,
)
def test_a_step_too_long_for_the_largest_feed_is_refused_before_anything_is_touched(
    feed: Any, kill: Any, make_config: Make, tmp_path: Path
) -> None:
    folder = tmp_path / "output"
    folder.mkdir()
    if feed == "file":
        feed = map_in_file(tmp_path / "feed.npy", 0.06)
    rates = {"model.feed": feed, "model.kill": kill}
    with pytest.raises(UsageError, match=r"^model\.dt: 1\.23 is unstable .* expected at most 1\.20481,"):
        gsio.simulate(make_config({**ABOVE, **rates, "model.dt": 1.23}), folder / "run.h5")
    assert list(folder.iterdir()) == []
    config = make_config({**ABOVE, **rates, "model.dt": 1.20481, "run.frames": 40})
    summary = gsio.simulate(config, folder / "run.h5")
    assert summary is not None
    assert summary.frames == 40


def test_whoever_opens_a_solver_is_refused_too(make_config: Make, tmp_path: Path) -> None:
    kill = map_in_file(tmp_path / "kill.npy", 0.9)
    config = make_config({"model.kill": kill, "model.feed": 0.4, "model.dt": 1.5})
    with pytest.raises(UsageError, match=r"feed \+ kill\)"):
        open_solver(config.run.backend, config, layout_of(config), 1, initial_state)


@pytest.mark.parametrize("name", ["run.h5", "run.zarr"])
def test_the_first_frame_that_leaves_is_reported_once_by_the_run_and_by_verify(
    name: str, make_config: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compression = "zstd" if name.endswith("zarr") else "deflate"
    with structlog.testing.capture_logs() as events:
        summary = gsio.simulate(make_config({**STIFF, "output.compression": compression}), tmp_path / name)
    assert summary is not None
    assert summary.outside == "v is 1.932 at frame 0, outside 0 to 1"
    (warning,) = warnings(events)
    assert warning.startswith(summary.outside)
    lines = str(summary).splitlines()
    assert f"warning     {summary.outside}" in lines
    assert len(lines) <= 12
    with gsio.open_stack(tmp_path / name) as stack:
        assert stack.v[0].max() == pytest.approx(1.932, abs=1e-3)
    assert main(["verify", str(tmp_path / name)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"warning: {summary.outside}; the frames are as they were computed",
        f"{tmp_path / name}: 5 frames, all intact",
    ]


def test_a_start_outside_is_reported_once(make_config: Make, tmp_path: Path) -> None:
    np.savez(tmp_path / "start.npz", u=np.full((12, 17), 1.25), v=np.full((12, 17), -0.1))
    start = {"initial.kind": "file", "initial.path": str(tmp_path / "start.npz")}
    config = make_config({**start, "output.fields": "u,v", "run.checkpoint_every": 1})
    with structlog.testing.capture_logs() as events:
        gsio.simulate(config, tmp_path / "run.h5")
    (warning,) = warnings(events)
    assert warning.startswith("u is 1.2")
    assert "at frame 0, outside 0 to 1" in warning
    assert "the initial state starts outside" in warning


def test_a_run_that_diverges_says_where_its_values_left(make_config: Make, tmp_path: Path) -> None:
    np.savez(tmp_path / "start.npz", u=np.full((12, 17), 1.0), v=np.full((12, 17), 3.0))
    start = {"initial.kind": "file", "initial.path": str(tmp_path / "start.npz")}
    with pytest.raises(DivergenceError, match=r"safe \(v is 11\.8 at frame 0, outside 0 to 1\); lower model\.dt"):
        gsio.simulate(make_config({**start, **STIFF, "initial.kind": "file", "run.frames": 60}), tmp_path / "run.h5")


def test_a_run_within_reports_nothing(make_config: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with structlog.testing.capture_logs() as events:
        summary = gsio.simulate(make_config({"run.frames": 50}), tmp_path / "run.h5")
    assert summary is not None
    assert warnings(events) == []
    assert "warning" not in str(summary)
    assert main(["verify", str(tmp_path / "run.h5")]) == 0
    assert "warning" not in capsys.readouterr().out


@given(values=arrays(np.float64, (7, 2, 2), elements=st.floats(-1e300, 1e300)))
def test_the_frame_and_value_that_are_named_are_the_first_outside(values: np.ndarray) -> None:
    least, largest = values.min(axis=2), values.max(axis=2)
    outside = (values < -MARGIN) | (values > 1 + MARGIN)
    frames = np.flatnonzero(outside.any(axis=(1, 2)))
    found = values_outside(least, largest, "uv", first=100)
    if len(frames):
        first = frames[0]
        named = [
            f"{name} is {value:.4g} at frame {100 + first}, outside 0 to 1"
            for name, field in zip("uv", values[first], strict=True)
            for value in field
            if value < -MARGIN or value > 1 + MARGIN
        ]
        assert found in named
    else:
        assert found == ""
