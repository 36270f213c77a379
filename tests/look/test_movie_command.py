"""`gsio movie` and `Stack.movie`: which frames a movie has, how they look, and what happens to damaged ones."""

import os
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
import pytest
from patience import DEADLINE
from PIL import Image
from playwright.sync_api import BrowserContext

import gsio
from gsio.cli import main
from gsio.config import Config
from gsio.draw.movie import FORMS
from gsio.draw.picture import PAPER, palette
from gsio.errors import DataError, UsageError
from gsio.reader import frames as reading
from gsio.reader import movie as making
from gsio.reader.pictures import Drawing, drawing
from gsio.run.status import open_committed
from gsio.testing import small_blocks

Make = Callable[..., Config]
Captured = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch

ROWS, COLS, FRAMES = 24, 34, 9
SMOOTH = {"grid.rows": ROWS, "grid.cols": COLS, "run.frames": FRAMES, "run.steps_per_frame": 40}


@pytest.fixture
def make_source(make_config: Make, tmp_path: Path, monkeypatch: Patch, capsys: Captured) -> Callable[..., Path]:
    """Return a function that makes an output with a frame in each chunk; the working folder is its folder."""
    monkeypatch.chdir(tmp_path)

    def make(name: str = "run.h5", **changes: Any) -> Path:
        with small_blocks(block_bytes=8 * ROWS * COLS, chunk_bytes=4 * ROWS * COLS):
            named = {key.replace("__", "."): value for key, value in changes.items()}
            gsio.simulate(make_config({**SMOOTH, "output.compression": "auto", **named}), Path(name))
        capsys.readouterr()
        return Path(name)

    return make


@pytest.fixture
def source(make_source: Callable[..., Path]) -> Path:
    return make_source()


def colours(path: str | Path) -> list[np.ndarray]:
    """Return red, green and blue of each picture of a movie with exact colours, [row, col, colour]."""
    with Image.open(path) as file:
        return [np.asarray((file.seek(place), file.convert("RGB"))[1]) for place in range(file.n_frames)]


def drawn(source: Path, **options: Any) -> list[np.ndarray]:
    """Return red, green and blue of the pictures of frames, as `gsio frames` makes them."""
    with gsio.open_stack(source) as stack:
        plan = drawing(stack, **options)
        return [
            palette(plan.cmap)[plan.canvas(number, plan.selection.read(number))] for number in plan.selection.frames
        ]


def damage(source: Path, number: int) -> None:
    """Overwrite a few bytes in the middle of a chunk."""
    with gsio.open_stack(source) as stack:
        info = stack.root["v"].id.get_chunk_info(number)
    with source.open("r+b") as file:
        file.seek(info.byte_offset + info.size // 2)
        file.write(b"\xff" * 8)


def length(path: str | Path) -> int:
    with av.open(str(path)) as file:
        return sum(1 for _ in file.decode(video=0))


@pytest.mark.parametrize("ending", FORMS)
def test_every_ending(ending: str, source: Path, capsys: Captured) -> None:
    assert main(["movie", str(source), "-o", f"run{ending}", "--fps", "10"]) == 0
    assert capsys.readouterr() == (f"run{ending}: {FRAMES} frames, 0.9 seconds\n", "")
    if ending == ".webp":
        assert len(colours("run.webp")) == FRAMES
    else:
        assert length(f"run{ending}") == FRAMES
    assert sorted(path.name for path in Path().glob("*run*") if ending in path.name) == [f"run{ending}"]


def test_a_movie_shows_the_same_pictures_as_gsio_frames(source: Path) -> None:
    for options in ({}, {"limits": "0.1:0.3"}, {"limits": "frame"}, {"cmap": "magma", "crop": "3:15,4:30"}):
        arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
        assert main(["movie", str(source), "-o", "run.gif", "--overwrite", "-q", *arguments]) == 0
        for expected, found in zip(drawn(source, **options), colours("run.gif"), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_the_colours_of_a_video_are_near_those_of_the_pictures(source: Path) -> None:
    assert main(["movie", str(source), "-o", "run.mp4", "--size", "340x240", "-q"]) == 0
    expected = drawn(source, scale=10)
    with av.open("run.mp4") as file:
        for picture, frame in zip(expected, file.decode(video=0), strict=True):
            assert np.abs(picture - frame.to_ndarray(format="rgb24").astype(int)).mean() < 3


@pytest.mark.parametrize(
    ("arguments", "numbers"),
    [
        (["--every", "4"], range(0, FRAMES, 4)),
        (["--frames", "2:8:2"], range(2, 8, 2)),
        (["--frames", "1:9:2", "--every", "2"], range(1, 9, 4)),
        (["--frames", "-1"], range(FRAMES - 1, FRAMES)),
    ],
)
def test_which_frames(arguments: list[str], numbers: range, source: Path) -> None:
    assert main(["movie", str(source), "-o", "run.gif", "--limits", "0:0.5", "-q", *arguments]) == 0
    expected = drawn(source, limits="0:0.5")
    for number, found in zip(numbers, colours("run.gif"), strict=True):
        np.testing.assert_array_equal(found, expected[number])


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "run.zarr"},
        {"output__store": "uint8"},
        {"name": "run.zarr", "output__store": "float16"},
        {"model__precision": "float64"},
        {"model__feed": (0.03, 0.04, 0.05)},
        {"output__fields": "u,v"},
    ],
    ids=str,
)
def test_every_kind_of_output(changes: dict[str, Any], make_source: Callable[..., Path]) -> None:
    source = make_source(**changes)
    assert main(["movie", str(source), "-o", "run.gif", "--fields", changes.get("output__fields", "v"), "-q"]) == 0
    expected = drawn(source, fields=changes.get("output__fields", "v"))
    for picture, found in zip(expected, colours("run.gif"), strict=True):
        np.testing.assert_array_equal(found, picture)


def test_members_and_fields_become_tiles(make_source: Callable[..., Path]) -> None:
    source = make_source(model__feed=(0.03, 0.04), output__fields="u,v")
    with gsio.open_stack(source) as stack:
        stack.movie("one.gif", fields="v", members="1")
        stack.movie("all.gif", fields="u,v")
    one, everything = colours("one.gif")[0], colours("all.gif")[0]
    assert one.shape == (ROWS, COLS, 3)
    assert everything.shape[0] * everything.shape[1] > 4 * ROWS * COLS


def test_a_value_that_is_not_finite_gets_the_first_colour(source: Path) -> None:
    with h5py.File(source, "r+") as file:
        file["v"][2, 5:9] = np.nan
    assert main(["movie", str(source), "-o", "run.gif", "-q"]) == 0
    found = colours("run.gif")
    assert len(found) == FRAMES
    assert (found[2][5:9] == palette()[0]).all()


@pytest.mark.parametrize("limits", ["auto", "frame"])
def test_all_pictures_have_one_size_whatever_is_written_below(limits: str, source: Path) -> None:
    """The time grows from 40 to 360, and the line below is wider than the grid."""
    written = ["--timestamp", "--colorbar", "--limits", limits]
    assert main(["movie", str(source), "-o", "run.mp4", *written, "-q"]) == 0
    assert main(["movie", str(source), "-o", "run.gif", *written, "-q"]) == 0
    found = colours("run.gif")
    assert len({picture.shape for picture in found}) == 1
    edges = [picture[:, -2:] for picture in found]
    assert all((edge == palette()[PAPER]).all() for edge in edges)  # nothing is cut off
    with av.open("run.mp4") as file:
        stream = file.streams.video[0]
        assert {(frame.width, frame.height) for frame in file.decode(stream)} == {(stream.width, stream.height)}


@pytest.mark.parametrize(
    ("size", "found"),
    [("68x48", (68, 48)), ("100x100", (68, 48)), ("34x1000", (34, 24)), ("17x12", (18, 12)), ("1020x720", (1020, 720))],
)
def test_a_picture_is_as_large_as_fits(size: str, found: tuple[int, int], source: Path) -> None:
    assert main(["movie", str(source), "-o", "run.mp4", "--size", size, "-q"]) == 0
    with av.open("run.mp4") as file:
        assert (file.streams.video[0].width, file.streams.video[0].height) == found


def test_a_size_counts_what_is_written_below(source: Path) -> None:
    for size in ("640x480", "400x1000"):
        assert main(["movie", str(source), "-o", "run.gif", "--size", size, "--colorbar", "--overwrite", "-q"]) == 0
        rows, cols, _ = colours("run.gif")[0].shape
        most_cols, most_rows = map(int, size.split("x"))
        assert cols <= most_cols
        assert rows <= most_rows
        assert cols > most_cols - 2 * COLS or rows > most_rows - 2 * ROWS


def test_a_large_gif_is_made_smaller_unless_asked_otherwise(make_source: Callable[..., Path]) -> None:
    source = make_source(grid__rows=80, grid__cols=1300, run__frames=2)
    for arguments, shape in (([], (39, 640, 3)), (["--size", "1300x1300"], (80, 1300, 3))):
        assert main(["movie", str(source), "-o", "run.gif", "--overwrite", "-q", *arguments]) == 0
        assert colours("run.gif")[0].shape == shape


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-o", "run.avi"], "--output: expected a name that ends in .mp4, .webm"),
        (["-o", "missing/run.mp4"], "the folder 'missing' does not exist"),
        (["-o", "a.mp4", "--lossless"], "--lossless: expected a name that ends in .mkv"),
        (["-o", "a.mp4", "--every", "0"], "--every: expected 1 or more, got 0"),
        (["-o", "a.mp4", "--fps", "0"], "--fps: expected 0.01"),
        (["-o", "a.mp4", "--size", "640"], "--size: expected WxH, two numbers from 2 to 16383, got '640'"),
        (["-o", "a.mp4", "--size", "20000x20"], "--size: expected WxH"),
        (["-o", "a.mp4", "--size", "20x20", "--colorbar"], "--size: expected room for what is written"),
        (["-o", "a.mp4", "--cmap", "nothing"], "--cmap: expected navia, "),
        (["-o", "a.mp4", "--limits", "1:0"], "--limits: expected auto, frame, or LO:HI"),
        (["-o", "a.mp4", "--frames", "99:"], "--frames: expected"),
        (["-o", "a.gif", "--crf", "20"], "--crf: expected it with"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_what_cannot_be_used_is_refused_in_a_line(
    arguments: list[str], words: str, source: Path, capsys: Captured
) -> None:
    before = sorted(Path().iterdir())
    assert main(["movie", str(source), *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize("name", ["a:b.mp4", "file:run.webm", "%05d.gif", "<\n'\".apng"])
def test_a_name_is_a_name_and_no_address(name: str, source: Path) -> None:
    assert main(["movie", str(source), "-o", name, "-q"]) == 0
    assert Path(name).stat().st_size


def test_no_movie_is_put_into_an_output(make_source: Callable[..., Path]) -> None:
    source = make_source("run.zarr")
    Path("link").symlink_to(source)
    before = sorted(source.rglob("*"))
    for target in ("run.zarr/run.mp4", "link/run.mp4", "./run.zarr/v/run.mp4"):
        assert main(["movie", str(source), "-o", target, "--overwrite"]) == 2
    assert sorted(source.rglob("*")) == before


def test_damaged_frames_are_named_and_the_movie_has_the_others(source: Path, capsys: Captured) -> None:
    expected = drawn(source, limits="0:0.5")
    damage(source, 0)
    damage(source, 5)
    assert main(["movie", str(source), "-o", "run.gif", "--limits", "0:0.5", "--quiet"]) == 65
    out, error = capsys.readouterr()
    assert out == ""
    assert "gsio: warning: a picture is left out: run.h5: frame 0: a chunk cannot be decoded" in error
    assert "a picture is left out: run.h5: frame 5: " in error
    assert error.endswith("gsio: error: run.h5: 2 of 9 frames cannot be read; 'run.gif' has the others\n")
    assert error.count("\n") == 3
    for number, found in zip((1, 2, 3, 4, 6, 7, 8), colours("run.gif"), strict=True):
        np.testing.assert_array_equal(found, expected[number])


def test_without_a_frame_that_can_be_read_there_is_no_movie(source: Path, capsys: Captured) -> None:
    damage(source, 3)
    Path("run.mp4").write_text("precious")
    assert main(["movie", str(source), "-o", "run.mp4", "--frames", "3", "--overwrite"]) == 65
    assert "none of 1 frames can be read; nothing was written" in capsys.readouterr().err
    assert Path("run.mp4").read_text() == "precious"
    assert not list(Path().glob(".run*"))


def test_a_run_is_shown_as_far_as_it_is_committed(make_config: Make, tmp_path: Path, monkeypatch: Patch) -> None:
    """While the run waits in the middle, a movie of its output is made."""
    monkeypatch.chdir(tmp_path)
    reached, go_on = threading.Event(), threading.Event()
    committed = 0

    def watch(progress: Any) -> None:
        nonlocal committed
        if progress.frames_committed >= 3:
            committed = progress.frames_committed
            reached.set()
            go_on.wait(DEADLINE)
            raise InterruptedError

    def run() -> None:
        with small_blocks(block_bytes=8 * ROWS * COLS, chunk_bytes=4 * ROWS * COLS), suppress(InterruptedError):
            gsio.simulate(make_config({**SMOOTH, "run.frames": 10**5}), Path("run.h5"), watch=watch)

    running = threading.Thread(target=run)
    running.start()
    try:
        assert reached.wait(DEADLINE)
        with open_committed(Path("run.h5")) as shown:
            shown.root.close()  # the index of HDF5 can be older than the journal, which has the places of the chunks
            assert np.isfinite(shown.v[-1]).all()
        assert main(["movie", "run.h5", "-o", "run.mp4", "-q"]) == 0
    finally:
        go_on.set()
        running.join(DEADLINE)
    with gsio.open_stack("run.h5") as stack:
        assert 3 <= committed <= length("run.mp4") <= stack.frames < 10**5


@pytest.mark.parametrize("cores", [1, 3])
def test_few_chunks_are_in_memory_at_a_time(cores: int, source: Path, monkeypatch: Patch) -> None:
    decoded, read, shown, most = reading.Frames.decoded, [], [], []

    def counted(field: reading.Frames, number: int) -> Any:
        read.append(number)
        return decoded(field, number)

    def noted(*arguments: Any) -> Iterator[Any]:
        for picture in pictures(*arguments):
            most.append(len(read) - len(shown))
            shown.append(picture)
            yield picture

    pictures = making._canvases
    monkeypatch.setattr(reading.Frames, "decoded", counted)
    monkeypatch.setattr(reading, "usable_cores", lambda: cores)
    monkeypatch.setattr(making, "_canvases", noted)
    assert main(["movie", str(source), "-o", "run.mp4", "-q"]) == 0
    assert len(read) == len(shown) == FRAMES
    assert max(most) <= 4 * cores


def test_an_interrupt_leaves_nothing(source: Path, monkeypatch: Patch, capsys: Captured) -> None:
    canvas, before = Drawing.canvas, sorted(Path().iterdir())

    def interrupted(plan: Drawing, number: int, frame: Any) -> Any:
        if number == 6:
            raise KeyboardInterrupt
        return canvas(plan, number, frame)

    monkeypatch.setattr(Drawing, "canvas", interrupted)
    assert main(["movie", str(source), "-o", "run.mp4"]) == 130
    assert capsys.readouterr().err.strip() == "gsio: error: interrupted; nothing was written"
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize("ending", FORMS)
def test_a_full_disk_is_an_error_of_the_storage(
    ending: str, make_source: Callable[..., Path], capsys: Captured
) -> None:
    source = make_source(initial__kind="noise", run__steps_per_frame=1)
    before, limits = sorted(Path().iterdir()), resource.getrlimit(resource.RLIMIT_FSIZE)
    arguments = ["movie", str(source), "-o", f"run{ending}", "--size", "340x240"]
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        code = main(arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 74
    error = capsys.readouterr().err
    assert f"storage failed: {os.strerror(27)}; make space" in error
    assert error.count("\n") == 1
    assert sorted(Path().iterdir()) == before


def test_in_python(source: Path) -> None:
    with gsio.open_stack(source) as stack:
        assert stack.movie("run.mp4", every=2, fps=5, limits=(0.0, 0.5)) == 5
        with pytest.raises(UsageError, match=r"'run.mp4' exists; choose another name"):
            stack.movie(Path("run.mp4"))
        assert stack.movie("run.mp4", overwrite=True) == FRAMES
        assert stack.movie("run.mkv", lossless=True) == FRAMES
    damage(source, 1)
    with gsio.open_stack(source) as stack, pytest.raises(DataError, match="1 of 9 frames cannot be read"):
        stack.movie("rest.mp4")
    assert length("rest.mp4") == FRAMES - 1


@pytest.mark.parametrize("ending", [".mp4", ".webm"])
def test_a_browser_plays_it(ending: str, source: Path, tmp_path: Path, context: BrowserContext) -> None:
    assert main(["movie", str(source), "-o", f"run{ending}", "--fps", "3", "-q"]) == 0
    page = tmp_path / "page.html"
    page.write_text(f'<video id="movie" src="run{ending}" muted></video>')
    shown = context.new_page()
    shown.goto(page.as_uri())
    shown.wait_for_function("movie.readyState >= 3 || movie.error")  # canplay
    found = shown.evaluate("[movie.error?.message, movie.videoWidth, movie.videoHeight, movie.duration]")
    assert found == [None, COLS, ROWS, pytest.approx(FRAMES / 3, abs=0.01)]
