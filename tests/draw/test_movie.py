"""Pictures become a movie: what stock readers find in the file."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from gsio.draw.colours import table
from gsio.draw.movie import FORMS, LOSSLESS, form_of, write_movie
from gsio.errors import UsageError

PICTURES = [".gif", ".apng", ".webp"]  # every colour is exact; FFmpeg does not read an animation in WebP
VIDEOS = [".mp4", ".webm", ".mkv"]
COLOURS = table("viridis")


def canvases(count: int, rows: int = 36, cols: int = 50) -> list[np.ndarray]:
    """Return smooth waves, each picture unlike the others."""
    y, x = np.mgrid[:rows, :cols]
    return [(127 * (1 + np.sin(x / 25 + number) * np.cos(y / 20))).astype(np.uint8) for number in range(count)]


def write(path: Path, pictures: list[np.ndarray], fps: float = 30, *, lossless: bool = False, crf: int | None = None):
    assert write_movie(path, pictures, COLOURS, form_of(path, fps, crf, lossless=lossless), fps) == len(pictures)
    return path


def decoded(path: Path) -> list[np.ndarray]:
    """Return red, green and blue of each picture, [row, col, colour]."""
    if path.suffix in PICTURES:
        with Image.open(path) as file:
            return [np.asarray((file.seek(place), file.convert("RGB"))[1]) for place in range(file.n_frames)]
    with av.open(str(path)) as file:
        return [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]


@pytest.mark.parametrize("ending", VIDEOS)
def test_a_video_has_the_frames_the_duration_and_the_tags_of_its_colours(ending: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"a{ending}", canvases(12), fps=25)
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        assert (stream.width, stream.height, stream.pix_fmt) == (50, 36, "yuv420p")
        assert stream.average_rate == 25
        assert file.duration / av.time_base == pytest.approx(12 / 25, abs=0.002)
        context = stream.codec_context
        assert (context.colorspace, context.color_primaries, context.color_trc) == (1, 1, 1)  # BT.709
        assert context.color_range == 1  # 16 to 235
        assert sum(1 for _ in file.decode(stream)) == 12


@pytest.mark.parametrize("ending", VIDEOS)
def test_the_colours_of_a_video_are_those_of_the_table(ending: str, tmp_path: Path) -> None:
    pictures = canvases(5)
    found = decoded(write(tmp_path / f"a{ending}", pictures, crf=10))
    errors = [np.abs(COLOURS[there] - rgb.astype(int)) for there, rgb in zip(pictures, found, strict=True)]
    assert np.mean(errors) < 3
    flat = [np.full((36, 50), level, np.uint8) for level in range(0, 256, 15)]
    for level, rgb in zip(flat, decoded(write(tmp_path / f"flat{ending}", flat, crf=10)), strict=True):
        assert np.abs(COLOURS[level] - rgb.astype(int)).max() <= 4


@pytest.mark.parametrize("ending", [*PICTURES, *LOSSLESS])
def test_other_forms_keep_every_colour(ending: str, tmp_path: Path) -> None:
    pictures = canvases(7, 35, 51)
    path = write(tmp_path / f"a{ending}", pictures, fps=20, lossless=ending in LOSSLESS)
    found = decoded(path)
    assert len(found) == 7
    for there, rgb in zip(pictures, found, strict=True):
        np.testing.assert_array_equal(COLOURS[there], rgb)
    if ending in PICTURES:
        with Image.open(path) as file:
            assert file.info["loop"] == 0  # for ever
            durations = [(file.seek(place), file.load(), file.info["duration"])[2] for place in range(7)]
            assert sum(durations) == 350


def test_neighbours_of_unlike_colours_do_not_make_a_third(tmp_path: Path) -> None:
    """As the ink of a caption beside its paper: the mean of two indices would be some colour of the map."""
    colours = COLOURS.copy()
    colours[[0, 255]] = [0, 0, 0], [255, 255, 255]
    stripes = np.tile(np.array([0, 255], np.uint8), (32, 16))
    path = tmp_path / "a.mkv"
    write_movie(path, [stripes], colours, form_of(path, 30, 1), 30)
    (rgb,) = decoded(path)
    assert np.ptp(rgb.astype(int), axis=-1).max() <= 6  # grey


@pytest.mark.parametrize("ending", VIDEOS)
@pytest.mark.parametrize("size", [(1, 1), (15, 22), (22, 15), (35, 51)])
def test_a_video_of_an_odd_size_repeats_the_last_row_and_column(
    ending: str, size: tuple[int, int], tmp_path: Path
) -> None:
    pictures = canvases(3, *size)
    found = decoded(write(tmp_path / f"a{ending}", pictures, crf=5))
    rows, cols = size
    assert [rgb.shape for rgb in found] == [(rows + rows % 2, cols + cols % 2, 3)] * 3
    padded = np.pad(pictures[0], ((0, rows % 2), (0, cols % 2)), "edge")
    assert np.abs(COLOURS[padded] - found[0].astype(int)).mean() < 5


@pytest.mark.parametrize("ending", FORMS)
def test_a_movie_of_one_picture(ending: str, tmp_path: Path) -> None:
    assert len(decoded(write(tmp_path / f"a{ending}", canvases(1)))) == 1


def test_without_a_picture_there_is_no_file(tmp_path: Path) -> None:
    assert write(tmp_path / "a.mp4", []).exists() is False


def test_the_index_of_an_mp4_is_before_the_frames(tmp_path: Path) -> None:
    data = write(tmp_path / "a.mp4", canvases(3)).read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize("fps", [0.01, 0.5, 29.97, 120, 1000])
def test_any_number_of_frames_a_second(fps: float, tmp_path: Path) -> None:
    with av.open(str(write(tmp_path / "a.mp4", canvases(6), fps))) as file:
        assert file.streams.video[0].average_rate == Fraction(fps).limit_denominator(1001)
        assert file.duration / av.time_base == pytest.approx(6 / fps, abs=1e-3)


def test_a_smaller_crf_makes_a_larger_file(tmp_path: Path) -> None:
    for ending in VIDEOS:
        sizes = [write(tmp_path / f"{crf}{ending}", canvases(8), crf=crf).stat().st_size for crf in (5, 40)]
        assert sizes[0] > sizes[1]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("a.avi", {}, "--output: expected a name that ends in .mp4, .webm, .mkv, .gif, .apng, .webp"),
        ("a", {}, "--output: expected a name that ends in"),
        ("a.mp4", {"lossless": True}, "--lossless: expected a name that ends in .mkv"),
        ("a.mp4", {"fps": 0}, "--fps: expected 0.01 to 1000"),
        ("a.mp4", {"fps": float("nan")}, "--fps: expected 0.01 to 1000"),
        ("a.gif", {"fps": 60}, "--fps: expected 0.01 to 50 with .gif, got 60"),
        ("a.mp4", {"crf": 52}, "--crf: expected 1 to 51 with .mp4, got 52"),
        ("a.mp4", {"crf": 0}, "--crf: expected 1 to 51 with .mp4, got 0"),
        ("a.gif", {"crf": 20}, "--crf: expected it with .mp4, .webm and .mkv only, got it with .gif"),
        ("a.mkv", {"crf": 20, "lossless": True}, "--crf: .* got it with --lossless"),
    ],
)
def test_what_cannot_be_used_is_refused(name: str, options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        form_of(Path(name), **{"fps": 30, **options})


def test_without_pyav_a_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(UsageError, match=r"pip install 'gsio\[movie\]'"):
        form_of(Path("a.mp4"), 30)
