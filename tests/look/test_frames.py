"""`gsio frames`: which pictures are made, under which names, and what happens where a frame cannot be read."""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import gsio
from gsio.cli import main
from gsio.config import Config
from gsio.draw.picture import PAPER, STEPS, index, palette
from gsio.errors import DataError
from gsio.look.frames import write_frames
from gsio.reader import frames as reading
from gsio.reader.pictures import Drawing
from gsio.testing import small_blocks

Make = Callable[..., Config]
Captured = pytest.CaptureFixture[str]

ROWS, COLS, FRAMES = 12, 17, 7


@pytest.fixture
def source(make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An output of seven frames with a frame in each chunk; the working folder is its folder."""
    monkeypatch.chdir(tmp_path)
    changes = {"grid.rows": ROWS, "grid.cols": COLS, "run.frames": FRAMES, "run.backend": "numpy"}
    with small_blocks(block_bytes=8 * ROWS * COLS, chunk_bytes=4 * ROWS * COLS):
        gsio.simulate(make_config(changes | {"initial.kind": "noise"}), Path("run.h5"))
    yield Path("run.h5")


def pixels(path: str | Path) -> Any:
    with Image.open(path) as picture:
        assert picture.mode == "P"
        return np.asarray(picture)


def v_of(source: Path) -> Any:
    with gsio.open_stack(source) as stack:
        return np.array(stack.v)


def damage(source: Path, number: int) -> None:
    """Overwrite a few bytes in the middle of a chunk."""
    with gsio.open_stack(source) as stack:
        info = stack.root["v"].id.get_chunk_info(number)
    with source.open("r+b") as file:
        file.seek(info.byte_offset + info.size // 2)
        file.write(b"\xff" * 8)


def made(folder: str | Path) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


@pytest.mark.parametrize("name", ["frame.png", "frame.tif", "frame.tiff"])
def test_one_picture_shows_the_last_frame(name: str, source: Path, capsys: Captured) -> None:
    assert main(["frames", str(source), "-o", name]) == 0
    assert capsys.readouterr() == (f"{name}: 1 picture\n", "")
    last = v_of(source)[-1]
    np.testing.assert_array_equal(pixels(name), index(last, last.min(), last.max()))
    with Image.open(name) as picture:
        assert picture.getpalette() == palette().ravel().tolist()
        assert picture.format == ("PNG" if name.endswith("png") else "TIFF")


@pytest.mark.parametrize(
    ("target", "names"),
    [
        ("new/deeper", [f"frame_{number:05d}.png" for number in range(FRAMES)]),
        ("f%d.tif", [f"f{number}.tif" for number in range(FRAMES)]),
        ("v_%03d_of_run.png", [f"v_{number:03d}_of_run.png" for number in range(FRAMES)]),
    ],
)
def test_many_pictures_have_names_that_sort(target: str, names: list[str], source: Path, capsys: Captured) -> None:
    assert main(["frames", str(source), "-o", target, "-q"]) == 0
    assert capsys.readouterr() == ("", "")
    folder = Path(target) if "new" in target else Path()
    assert set(names) <= set(made(folder))
    v = v_of(source)
    for number, name in enumerate(names):
        np.testing.assert_array_equal(pixels(folder / name), index(v[number], v.min(), v.max()))


def test_colours_keep_their_meaning_over_time_unless_each_frame_has_its_own(source: Path) -> None:
    v = v_of(source)
    for limits, ranges in {
        "auto": [(v[2:5].min(), v[2:5].max())] * 3,
        "frame": [(frame.min(), frame.max()) for frame in v[2:5]],
        "0.1:0.3": [(0.1, 0.3)] * 3,
    }.items():
        assert main(["frames", str(source), "-o", "out", "--frames", "2:5", "--limits", limits, "--overwrite"]) == 0
        for number, (low, high) in enumerate(ranges, start=2):
            np.testing.assert_array_equal(pixels(f"out/frame_{number:05d}.png"), index(v[number], low, high))


def test_a_scale_a_map_a_caption(source: Path) -> None:
    plain, scaled = Path("plain.png"), Path("scaled.png")
    write_frames(source, plain, frames="3")
    write_frames(source, scaled, frames="3", scale=20, cmap="viridis", colorbar=True, timestamp=True)
    whole = pixels(scaled)
    np.testing.assert_array_equal(whole[: 20 * ROWS], np.kron(pixels(plain), np.ones((20, 20), np.uint8)))
    below = whole[20 * ROWS :]
    assert (below >= PAPER).mean() > 0.5
    assert len(np.unique(below[below < PAPER])) > STEPS / 4
    with Image.open(scaled) as picture:
        assert picture.getpalette() == palette("viridis").ravel().tolist()
    write_frames(source, Path("half.png"), frames="3", scale=0.5)
    assert pixels("half.png").shape == (6, 8)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-o", "one.png", "--frames", "2:4"], "expected one frame for 'one.png', got 2; choose one with --frames"),
        (["-o", "one.png", "--frames", ":"], "such as 'one_%05d.png'"),
        (["-o", "movie.jpg"], "expected a folder, or a name that ends in .png, .tif, .tiff, got 'movie.jpg'"),
        (["-o", "missing/frame.png"], "the folder 'missing' does not exist"),
        (["-o", "missing/frame_%d.png"], "the folder 'missing' does not exist"),
        (["-o", "run.h5/pictures"], "'run.h5"),
        (["-o", "run.h5"], "expected a folder"),
        (["-o", "out", "--scale", "1.5"], "--scale: expected a fraction of 1, or a whole number, got 1.5"),
        (["-o", "out", "--scale", "1e6"], "--scale: expected a picture of at most"),
        (["-o", "out", "--cmap", "nothing"], "--cmap: expected navia, "),
        (["-o", "out", "--limits", "1:0"], "--limits: expected auto, frame, or LO:HI"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_what_cannot_be_used_is_refused_in_a_line(
    arguments: list[str], words: str, source: Path, capsys: Captured
) -> None:
    before = made(".")
    assert main(["frames", str(source), *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert made(".") == before


def test_no_picture_is_put_into_the_output(make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    gsio.simulate(make_config({"run.frames": 2, "output.compression": "auto"}), Path("run.zarr"))
    before = sorted(Path("run.zarr").rglob("*"))
    Path("link").symlink_to("run.zarr")
    for target in (
        "run.zarr",
        "run.zarr/v",
        "run.zarr/new",
        "run.zarr/frame.png",
        "link",
        "link/f%d.png",
        "./run.zarr/a/b",
    ):
        assert main(["frames", "run.zarr", "-o", target, "--overwrite"]) == 2
    assert sorted(Path("run.zarr").rglob("*")) == before


def test_a_picture_is_replaced_only_when_asked(source: Path, capsys: Captured) -> None:
    Path("out").mkdir()
    Path("out/frame_00002.png").write_text("precious")
    Path("out/notes.txt").write_text("precious")
    assert main(["frames", str(source), "-o", "out"]) == 2
    assert (
        "'out/frame_00002.png' exists; choose another name, or replace it with --overwrite" in capsys.readouterr().err
    )
    assert made("out") == ["frame_00002.png", "notes.txt"]
    assert main(["frames", str(source), "-o", "out", "--overwrite"]) == 0
    assert pixels("out/frame_00002.png").shape == (ROWS, COLS)
    assert Path("out/notes.txt").read_text() == "precious"
    assert len(made("out")) == FRAMES + 1


def test_a_damaged_frame_is_named_and_the_others_are_drawn(source: Path, capsys: Captured) -> None:
    damage(source, 3)
    damage(source, 5)
    assert main(["frames", str(source), "-o", "out"]) == 65
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("gsio: warning: a picture is left out: run.h5: frame ") == 2
    assert "run.h5: frame 3: a chunk cannot be decoded" in error
    assert "run.h5: frame 5: a chunk cannot be decoded" in error
    assert error.endswith("gsio: error: run.h5: 2 of 7 frames cannot be read; the others are drawn\n")
    assert error.count("\n") == 3
    assert made("out") == [f"frame_{number:05d}.png" for number in (0, 1, 2, 4, 6)]


def test_a_frame_that_repair_found_missing_is_left_out(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    damage(source, 3)
    assert main(["repair", str(source)]) == 0
    assert main(["frames", str(source), "-o", "out"]) == 65
    assert "a picture is left out: run.h5: frame 3: 'gsio repair' found the values missing" in capsys.readouterr().err
    assert made("out") == [f"frame_{number:05d}.png" for number in (0, 1, 2, 4, 5, 6)]


@pytest.mark.parametrize("cores", [1, 5])
def test_so_many_frames_are_in_memory_as_there_are_threads(
    cores: int, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, inside, most = threading.Lock(), 0, 0
    decoded = reading.Frames.decoded
    together = threading.Barrier(min(cores, FRAMES), timeout=20)

    def counted(field: reading.Frames, number: int) -> Any:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        if number < cores:
            together.wait()
        with lock:
            inside -= 1
        return decoded(field, number)

    monkeypatch.setattr(reading.Frames, "decoded", counted)
    monkeypatch.setattr(reading, "usable_cores", lambda: cores)
    assert write_frames(source, Path("out")) == FRAMES
    assert most == cores


def test_a_full_disk_is_an_error_of_the_storage(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    def full(*arguments: Any, **named: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "write_bytes", full)
    for target in ("out", "out/%d.tif"):
        assert main(["frames", str(source), "-o", target]) == 74
        assert "storage failed: No space left on device" in capsys.readouterr().err
    assert made("out") == []


def test_an_interrupt_leaves_whole_pictures(source: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    canvas = Drawing.canvas

    def interrupted(plan: Drawing, number: int, frame: Any) -> Any:
        if number == FRAMES - 1:
            raise KeyboardInterrupt
        return canvas(plan, number, frame)

    monkeypatch.setattr(Drawing, "canvas", interrupted)
    assert main(["frames", str(source), "-o", "out", "-q"]) == 130
    assert capsys.readouterr().err.strip() == "gsio: error: interrupted; the pictures that were written are whole"
    assert {pixels(Path("out", name)).shape for name in made("out")} <= {(ROWS, COLS)}


def test_in_python_frames_that_cannot_be_read_are_an_error_at_the_end(source: Path) -> None:
    damage(source, 0)
    with pytest.raises(DataError, match="1 of 7 frames cannot be read"):
        write_frames(source, Path("out"))
    assert len(made("out")) == FRAMES - 1
    with pytest.raises(DataError):
        write_frames(Path("nothing.h5"), Path("other"))
    assert not Path("other").exists()
