"""A codec of one file, once it is in the table, works from `gsio run` to `gsio verify`, in both formats."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from toy import TOY

import gsio
from gsio import codec, config
from gsio.cli import main
from gsio.config import Config
from gsio.export import export

Make = Callable[..., Config]
Captured = pytest.CaptureFixture[str]
OPTIONS = ["-r", "12", "-c", "17", "-e", "3", "--backend", "numpy", "--fields", "u,v", "-q", "--compression", "toy"]
# zarr-python says that others may not know its Zlib.
pytestmark = pytest.mark.filterwarnings("ignore:Numcodecs codecs")


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the toy codec to the table, also of the processes that gsio starts: it looks at outputs in these."""
    monkeypatch.setitem(codec.CODECS, "toy", TOY)
    monkeypatch.setitem(config.CODECS, "toy", "")
    (tmp_path / "sitecustomize.py").write_text("from gsio.codec import register\nfrom toy import TOY\nregister(TOY)\n")
    folders = [tmp_path, Path(__file__).parent, Path(gsio.__file__).parents[1], os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, folders)))


@pytest.fixture(params=["run.h5", "run.zarr"])
def output(toy: None, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    (tmp_path / "outputs").mkdir()
    return tmp_path / "outputs" / str(request.param)


def read(path: Path) -> dict[str, np.ndarray]:
    """Return the fields as the usual reader of the format gives them, without a plugin."""
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            return {name: file[name][:] for name in "uv"}
    group = zarr.open_group(path, mode="r")
    return {name: np.asarray(group[name][:]) for name in "uv"}


@pytest.mark.parametrize("resumed", [False, True])
def test_a_whole_run_goes_through_a_codec_of_one_file(
    resumed: bool, output: Path, make_config: Make, expected_frames: Callable[[Config], Any], capsys: Captured
) -> None:
    run = ["run", *OPTIONS, "-o", str(output)]
    if resumed:  # frame 5 shares a chunk with the frames before it, which are decoded and encoded again
        assert main([*run, "-n", "5"]) == 0
        assert main([*run, "-n", "9", "--resume"]) == 0
    else:
        assert main([*run, "-n", "9"]) == 0
    expected = expected_frames(make_config({"run.frames": 9, "output.fields": "u,v"}))
    for name, found in read(output).items():
        np.testing.assert_array_equal(found, expected[name])
    with gsio.open_stack(output) as stack:
        assert (stack.v.codec, stack.config.output.compression) == ("toy", "toy")
        np.testing.assert_array_equal(stack.v[:], expected["v"])
    assert main(["verify", str(output)]) == 0
    assert main(["info", str(output)]) == 0
    assert "compression toy" in capsys.readouterr().out


def test_its_outputs_are_exported_and_repaired(output: Path) -> None:
    assert main(["run", *OPTIONS, "-n", "9", "-o", str(output)]) == 0
    other = output.with_name("other" + output.suffix)
    assert export(output, other, compression="toy") == 9
    assert main(["repair", str(other)]) == 0
    for name, found in read(other).items():
        np.testing.assert_array_equal(found, read(output)[name])


def test_a_format_that_cannot_hold_it_says_what_it_can_hold(
    output: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setitem(codec.CODECS, "toy", TOY._replace(hdf5=None, zarr=None))
    assert main(["run", *OPTIONS, "-n", "9", "-o", str(output)]) == 2
    assert "has no toy; expected " in capsys.readouterr().err
    assert list(output.parent.iterdir()) == []


@pytest.mark.usefixtures("toy")
def test_a_level_that_it_lacks_is_refused(tmp_path: Path, capsys: Captured) -> None:
    assert main(["run", *OPTIONS, "-n", "9", "--set", "output.level=0", "-o", str(tmp_path / "run.h5")]) == 2
    assert "output.level: expected 1 to 9 with toy, got 0" in capsys.readouterr().err


@pytest.mark.parametrize("found", ["toy", "3"])
def test_a_codec_that_is_not_in_the_table_is_refused(found: str, capsys: Captured) -> None:
    assert main(["config", "show", "--set", f"output.compression={found}"]) == 2
    assert "output.compression: expected auto, deflate, lz4, zstd or none, got " in capsys.readouterr().err
