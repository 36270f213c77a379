"""The commands of gsio work on what a FrameWriter has saved, and while it saves."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from appending import ENDINGS, SHAPE, frame, frames, stored, verified, wait_until

import gsio
from gsio.cli import main
from gsio.look.source import Source
from gsio.run.status import follow
from gsio.testing import small_blocks

FORMATS = [".h5", ".zarr", ".tif", ".ome.tif", ".ome.zarr", ".vtkhdf", ".openpmd.h5"]
# The names are those that a method, a series or a keyword of Python has too.
CASES: dict[str, tuple[tuple[int, ...], list[str]]] = {
    "line.zarr": ((7,), ["a", "a_min"]),
    "plane.h5": (SHAPE, ["V", "v_error", "lambda", "self"]),
    "space.zarr": ((3, 4, 5), ["frames", "path"]),
    "batch.h5": ((2, 3, 4, 5), ["config", "data", "x_"]),
}


def planes(number: int, shape: tuple[int, ...], names: list[str]) -> dict[str, np.ndarray]:
    return {name: frame(100 * place + number, shape) for place, name in enumerate(names)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outputs")
    for name, (shape, fields) in CASES.items():
        nbytes = 4 * int(np.prod(shape))
        with (
            small_blocks(block_bytes=5 * nbytes * len(fields), chunk_bytes=2 * nbytes),
            gsio.FrameWriter(folder / name, shape, fields=fields, time={"units": "s"}, attrs={"author": "A"}) as out,
        ):
            for number in range(7):
                out.append(**planes(number, shape, fields), time=number / 2, step=10 * number)  # type: ignore[arg-type]
    return folder


@pytest.mark.parametrize("name", CASES)
def test_info_and_verify(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    shape, fields = CASES[name]
    assert main(["info", str(folder / name)]) == main(["verify", str(folder / name)]) == 0
    said = capsys.readouterr().out
    assert f"7 frames of {' × '.join(map(str, shape))}, complete" in said
    assert "7 frames, all intact" in said
    assert all(f"[fields.{field}]" in said for field in fields)


@pytest.mark.parametrize("name", CASES)
def test_export_to_every_format(folder: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape, fields = CASES[name]
    for ending in FORMATS:
        code = main(["export", str(folder / name), str(tmp_path / f"x{ending}")])
        said = capsys.readouterr()
        if (len(shape), ending) == (1, ".vtkhdf"):
            assert (code, "which VTK cannot read" in said.err) == (2, True)
        else:
            assert (code, said.err) == (0, "")
    for ending in (".h5", ".zarr"):
        with verified(tmp_path / f"x{ending}") as stack:
            assert stack.attributes["author"] == "A"
            assert stack.content.time.units == "s"
            np.testing.assert_array_equal(stack.series("step"), 10 * np.arange(7))
            for field in fields:
                expected = [planes(number, shape, fields)[field] for number in range(7)]
                np.testing.assert_array_equal(stack.fields[field][:], expected)
    everything = [plane for number in range(7) for plane in planes(number, shape, fields).values()]
    for ending in (".tif", ".ome.tif"):
        np.testing.assert_array_equal(
            np.sort(tifffile.imread(tmp_path / f"x{ending}").ravel()), np.sort(everything, None)
        )


@pytest.mark.parametrize("name", CASES)
def test_pictures_movies_and_the_page(folder: Path, name: str, tmp_path: Path) -> None:
    shape, fields = CASES[name]
    path = folder / name
    with gsio.open_stack(path) as stack:
        for field in fields:
            picture = np.asarray(stack.picture(3, field, limits="frame"))
            values = stack.frame(field, 3)
            assert picture.size >= values.size
            assert len(np.unique(picture)) >= len(np.unique(values)) // 2
        assert all(field in stack._repr_html_() for field in fields[-1:])
    assert main(["frames", str(path), "-o", str(tmp_path / "pictures"), "--fields", fields[0]]) == 0
    assert len(list((tmp_path / "pictures").iterdir())) >= 7
    assert main(["movie", str(path), "-o", str(tmp_path / "movie.gif")]) == 0
    source = Source(0, path)
    assert source.look()
    found = source.describe()
    before = int(np.prod(shape[:-2]))
    assert [found[key] for key in ("state", "frames", "fields", "members", "rows", "cols")] == [
        "complete", 7, fields, before, shape[-2] if len(shape) > 1 else 1, shape[-1],
    ]  # fmt: skip
    with gsio.view(path) as page:
        assert page.url.startswith("http://")


def command(*words: object) -> str:
    done = subprocess.run([sys.executable, "-m", "gsio", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@ENDINGS
def test_a_loop_that_goes_on_can_be_followed_and_read(tmp_path: Path, ending: str) -> None:
    path, source = tmp_path / f"run{ending}", Source(0, tmp_path / f"run{ending}")
    with gsio.FrameWriter(path, SHAPE, fields="u,v") as out:
        for number in range(3):
            out.append(frame(number), frame(number))
        out.flush()
        wait_until(lambda: Path(f"{path}.status.json").exists())
        lines = follow(path)
        low, high = frame(2).min(), frame(2).max()
        assert next(lines).startswith(f"frame 3, step 2, u {low:.4g} to {high:.4g}, v {low:.4g} to {high:.4g}")
        assert "3 frames of 12 × 17, running" in command("info", path)
        assert "3 frames, all intact" in command("verify", path)
        command("export", path, tmp_path / "copy.zarr")
        assert source.look()
        assert (source.describe()["state"], source.describe()["frames"]) == ("running", 3)
        for number in range(3, 7):
            out.append(frame(number), frame(number))
        out.flush()
        assert next(lines).startswith("frame 7, step 6, ")
    assert list(lines) == ["complete after 7 frames"]
    np.testing.assert_array_equal(stored(tmp_path / "copy.zarr"), frames(3))
    assert source.look()
    assert (source.describe()["state"], source.describe()["frames"]) == ("complete", 7)


def stopped(path: Path, **options: Any) -> None:
    """Save nine frames, and stop, so that the journal stays."""
    with pytest.raises(KeyError), gsio.FrameWriter(path, SHAPE, **options) as out:
        for number in range(9):
            out.append(frame(number), time=number / 4)
        raise KeyError


@pytest.mark.usefixtures("blocks")
def test_repair_saves_the_frames_of_a_torn_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.h5"
    stopped(path, fields={"v": {"long_name": "speed", "units": "m s-1"}}, attrs={"author": "A"}, time={"units": "s"})
    with path.open("r+b") as file:
        file.write(bytes(100))  # the head of the file
    assert main(["verify", str(path)]) == 65
    assert main(["repair", str(path)]) == 0
    assert "rebuilt with 9 of 9 frames" in capsys.readouterr().out
    with verified(path) as stack:
        np.testing.assert_array_equal(stack.v[:], frames(9))
        np.testing.assert_array_equal(stack.times, np.arange(9) / 4)
        assert (stack.content.fields["v"].units, stack.content.time.units) == ("m s-1", "s")
        assert stack.attributes["author"] == "A"


@pytest.mark.usefixtures("blocks")
def test_repair_marks_the_frames_of_a_lost_chunk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.zarr"
    stopped(path)
    (path / "v" / "c.4.0.0").unlink()
    assert main(["repair", str(path)]) == 0
    assert "9 of 9 frames, of which damaged: 4" in capsys.readouterr().out
    found, expected = np.asarray(zarr.open_group(path, mode="r")["v"]), frames(9)
    expected[4] = np.nan
    np.testing.assert_array_equal(found, expected)
    shutil.rmtree(path)
