"""Initial states of every kind, and the refusal of what cannot be one."""

import os
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from gsio.config import load_config
from gsio.errors import UsageError
from gsio.model.gray_scott import step
from gsio.run.initial import initial_state, rates
from gsio.run.simulate import simulate

ROWS, COLS = 5, 7
SIZES = st.integers(1, 40)
SEEDS = st.integers(0, 2**31 - 1)
examples = settings(max_examples=60, deadline=None, database=None)


def state(kind: str, rows: int = ROWS, cols: int = COLS, **initial: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return u and v at time 0; `initial` are keys of [initial]."""
    changes = {"grid.rows": rows, "grid.cols": cols, "initial.kind": kind}
    changes |= {f"initial.{key}": str(value) if key == "path" else value for key, value in initial.items()}
    u, v, *_ = initial_state(load_config(overrides=changes, environ={}))
    assert u.dtype == v.dtype == np.float64
    assert u.shape == v.shape == (rows, cols)
    return u, v


def refusal(kind: str, path: Path, **initial: Any) -> str:
    with pytest.raises(UsageError) as refused:
        state(kind, path=path, **initial)
    message = str(refused.value)
    assert message.startswith("initial.path: ")
    assert str(path) in message
    assert "\n" not in message
    return message


def save_output(path: Path, fields: str = "u,v") -> Path:
    changes = {
        "grid.rows": ROWS,
        "grid.cols": COLS,
        "initial.kind": "noise",
        "model.precision": "float64",
        "run.frames": 3,
        "run.steps_per_frame": 2,
        "run.backend": "numpy",
        "output.fields": fields,
        "output.threads": 1,
    }
    simulate(load_config(overrides=changes, environ={}), path)
    return path


def save_picture(path: Path, pixels: NDArray[Any]) -> Path:
    Image.fromarray(pixels).save(path)
    return path


# school


def test_school_sets_the_rectangle_of_the_courses() -> None:
    u, v = state("school", 1080, 1920)
    expected = np.zeros((1080, 1920))
    expected[468:536, 840:960] = 1
    np.testing.assert_array_equal(v, expected)
    np.testing.assert_array_equal(u, 1 - expected)


def test_school_on_a_small_grid_sets_what_is_left_of_the_rectangle() -> None:
    u, v = state("school", 16, 32)
    assert np.argwhere(v == 1).tolist() == [[3, 14], [3, 15]]
    np.testing.assert_array_equal(u, 1 - v)


@pytest.mark.parametrize(
    ("rows", "cols", "cells"), [(1, 1, 0), (2, 3, 0), (6, 100, 0), (7, 16, 0), (100, 1, 0), (10, 200, 13), (16, 3, 0)]
)
def test_school_on_a_tiny_grid_sets_what_there_is(rows: int, cols: int, cells: int) -> None:
    u, v = state("school", rows, cols)
    assert v.sum() == cells
    np.testing.assert_array_equal(u, 1 - v)


# square


def test_square_is_centred_and_has_the_given_values() -> None:
    u, v = state("square", 10, 21, size=4, u=0.3, v=0.6)
    inside = np.zeros((10, 21), bool)
    inside[3:7, 8:12] = True
    np.testing.assert_array_equal(u, np.where(inside, 0.3, 1))
    np.testing.assert_array_equal(v, np.where(inside, 0.6, 0))


@examples
@given(rows=SIZES, cols=SIZES, size=st.integers(1, 90))
def test_square_fits_any_grid(rows: int, cols: int, size: int) -> None:
    u, v = state("square", rows, cols, size=size, u=0.5, v=0.25)
    inside = v == 0.25
    assert inside.sum() == min(size, rows) * min(size, cols)
    np.testing.assert_array_equal(u, np.where(inside, 0.5, 1))
    np.testing.assert_array_equal(v, np.where(inside, 0.25, 0))
    for side in (inside.any(axis=1), inside.any(axis=0)):
        before, after = side.argmax(), side[::-1].argmax()
        assert after - before in (0, 1)


# spots


def test_spots_follow_from_the_seed() -> None:
    first, again, other = (state("spots", 40, 60, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@examples
@given(rows=st.integers(1, 12), cols=st.integers(1, 12), radius=st.integers(0, 15), seed=SEEDS)
def test_a_spot_is_a_disc_about_a_cell(rows: int, cols: int, radius: int, seed: int) -> None:
    u, v = state("spots", rows, cols, count=1, radius=radius, seed=seed, u=0.5, v=0.25)
    y, x = np.mgrid[:rows, :cols]
    discs = ((y - row) ** 2 + (x - col) ** 2 <= radius**2 for row in range(rows) for col in range(cols))
    assert any(np.array_equal(v, np.where(disc, 0.25, 0)) for disc in discs)
    np.testing.assert_array_equal(u, np.where(v == 0.25, 0.5, 1))


@examples
@given(rows=SIZES, cols=SIZES, count=st.integers(0, 30), radius=st.integers(0, 100), seed=SEEDS)
def test_spots_fit_any_grid(rows: int, cols: int, count: int, radius: int, seed: int) -> None:
    u, v = state("spots", rows, cols, count=count, radius=radius, seed=seed, u=0.5, v=0.25)
    assert set(np.unique(u)) <= {0.5, 1}
    np.testing.assert_array_equal(v, np.where(u == 0.5, 0.25, 0))
    assert (v > 0).any() == (count > 0)


def test_spots_lie_all_over_the_grid() -> None:
    v = state("spots", 20, 30, count=5000, radius=0)[1]
    assert (v > 0).all()


# noise


def test_noise_stays_within_its_amplitude_and_reaches_it() -> None:
    for field, middle in zip(state("noise", 60, 80, u=0.6, v=0.3, amplitude=0.1), (0.6, 0.3), strict=True):
        assert 0.09 < np.abs(field - middle).max() <= 0.1
        assert field.mean() == pytest.approx(middle, abs=0.01)


def test_noise_follows_from_the_seed() -> None:
    first, again, other = (state("noise", seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.equal(first, other).any()


@pytest.mark.parametrize("kind", ["noise", "spots"])
def test_each_member_follows_from_a_seed_of_its_own(kind: str) -> None:
    changes = {"grid.rows": ROWS, "grid.cols": COLS, "initial.kind": kind}
    for seeds in ([3], [3, 4, 3]):
        config = load_config(overrides={**changes, "initial.seed": seeds}, environ={})
        assert config.members == len(seeds)
        shape = (len(seeds), ROWS, COLS)[len(seeds) == 1 :]
        for found, field in zip(initial_state(config)[:2], range(2), strict=True):
            assert found.shape == shape
            alone = [state(kind, seed=seed)[field] for seed in seeds]
            np.testing.assert_array_equal(found.reshape(-1, ROWS, COLS), alone)


def test_noise_without_amplitude_is_uniform() -> None:
    u, v = state("noise", u=0.6, v=0.3, amplitude=0.0)
    assert (u == 0.6).all()
    assert (v == 0.3).all()


# image


def test_image_of_the_grids_size_gives_v_exactly(tmp_path: Path) -> None:
    pixels = np.arange(0, 245, 7, np.uint8).reshape(ROWS, COLS)
    u, v = state("image", path=save_picture(tmp_path / "grey.png", pixels))
    np.testing.assert_array_equal(v, pixels / 255)
    np.testing.assert_array_equal(u, 1 - v)


def test_image_is_resized_to_the_grid(tmp_path: Path) -> None:
    pixels = np.zeros((30, 50), np.uint8)
    pixels[:, 25:] = 255
    v = state("image", 10, 40, path=save_picture(tmp_path / "halves.png", pixels))[1]
    assert (v[:, :18] == 0).all()
    assert (v[:, 22:] == 1).all()


def test_image_in_colour_is_taken_as_grey(tmp_path: Path) -> None:
    v = state("image", path=save_picture(tmp_path / "red.png", np.full((9, 9, 3), (255, 0, 0), np.uint8)))[1]
    assert v == pytest.approx(np.full((ROWS, COLS), 0.299), abs=1 / 255)


def test_image_of_16_bits_is_scaled_like_one_of_8(tmp_path: Path) -> None:
    v = state("image", path=save_picture(tmp_path / "deep.png", np.full((9, 9), 0x8000, np.uint16)))[1]
    assert v == pytest.approx(np.full((ROWS, COLS), 0.5), abs=1 / 255)


def disc(ink: int, ground: int) -> NDArray[Any]:
    """Return grey and alpha of a square of `ink` in a corner, transparent elsewhere, where the colour is `ground`."""
    pixels = np.zeros((ROWS, COLS, 2), np.uint8)
    pixels[..., 0] = ground
    pixels[:2, :2] = ink, 255
    return pixels


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
@pytest.mark.parametrize(("ink", "shown", "ground"), [(255, 1, 0), (102, 0.4, 0), (0, 0, 1)])
def test_what_is_transparent_is_the_ground(mode: str, ink: int, shown: float, ground: int, tmp_path: Path) -> None:
    picture = Image.fromarray(disc(ink, ink))
    if mode == "P":
        flat = Image.fromarray(np.where(np.asarray(picture)[..., 1], 0, 1).astype(np.uint8), "P")
        flat.putpalette([ink] * 6)
        flat.info["transparency"] = 1
        picture = flat
    path = tmp_path / "disc.png"
    (picture if mode in ("LA", "P") else picture.convert(mode)).save(path)
    v = state("image", path=path)[1]
    np.testing.assert_allclose(v[:2, :2], shown)
    assert (v[2:] == ground).all()
    assert (v[:, 2:] == ground).all()


def test_a_picture_with_nothing_to_see_is_the_ground(tmp_path: Path) -> None:
    v = state(
        "image", path=save_picture(tmp_path / "none.png", np.full((ROWS, COLS, 4), (255, 255, 255, 0), np.uint8))
    )[1]
    assert (v == 0).all()


def photograph(path: Path, pixels: NDArray[Any], orientation: int) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    return path


def test_a_photograph_is_turned_as_viewers_turn_it(tmp_path: Path) -> None:
    pixels = np.arange(0, 245, 7, np.uint8).reshape(COLS, ROWS)
    path = photograph(tmp_path / "turned.png", pixels, 6)  # a quarter to the right
    np.testing.assert_array_equal(state("image", path=path)[1], np.rot90(pixels, -1) / 255)
    changes = {"grid.rows": ROWS, "grid.cols": COLS, "model.feed": {"path": str(path), "stop": 0.05}}
    feed, _ = rates(load_config(overrides=changes, environ={}))
    np.testing.assert_array_equal(feed, np.rot90(pixels, -1) / 255 * 0.05)


def test_a_picture_may_be_as_large_as_the_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    monkeypatch.setattr("gsio.run.initial.MAX_PIXELS", 10)
    path = save_picture(tmp_path / "grey.png", np.arange(0, 245, 7, np.uint8).reshape(ROWS, COLS))
    assert state("image", path=path)[1].max() == 238 / 255
    assert Image.MAX_IMAGE_PIXELS == 10
    path = save_picture(tmp_path / "larger.png", np.zeros((ROWS, COLS + 1), np.uint8))
    assert "at most 35 pixels, got 5 × 8" in refusal("image", path)


def test_a_picture_is_refused_by_its_declared_size(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (30_000, 30_000)).save(path)
    tracemalloc.start()
    try:
        assert "30000 × 30000" in refusal("image", path)
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["image", "file"])
def test_what_is_no_regular_file_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    for name in ("pipe", "endless"):
        refusal(kind, tmp_path / name)


def test_the_rates_are_there_without_the_initial_file(tmp_path: Path) -> None:
    changes = {"initial.kind": "file", "initial.path": str(tmp_path / "gone.npz"), "model.feed": [0.03, 0.04]}
    feed, kill = rates(load_config(overrides=changes, environ={}))
    assert feed.tolist() == [[[0.03]], [[0.04]]]
    assert kill.tolist() == 0.054


def test_missing_picture_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refusal("image", tmp_path / "none.png")


def test_picture_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.png"
    path.write_text("not a picture")
    assert "expected a picture" in refusal("image", path)


def test_half_a_picture_is_refused(tmp_path: Path) -> None:
    path = save_picture(tmp_path / "half.png", np.random.default_rng(0).integers(0, 255, (40, 50), np.uint8))
    path.write_bytes(path.read_bytes()[:800])
    assert "truncated" in refusal("image", path)


# file


def test_file_gives_the_arrays_of_an_npz(tmp_path: Path) -> None:
    u, v = np.random.default_rng(0).random((2, ROWS, COLS))
    np.savez(tmp_path / "state.npz", u=u, v=v)
    np.testing.assert_array_equal(state("file", path=tmp_path / "state.npz"), (u, v))


def test_file_takes_integers_and_float32(tmp_path: Path) -> None:
    u, v = np.ones((ROWS, COLS), np.int64), np.full((ROWS, COLS), 0.1, np.float32)
    np.savez(tmp_path / "state.npz", u=u, v=v)
    np.testing.assert_array_equal(state("file", path=tmp_path / "state.npz"), (u, v.astype(np.float64)))


@pytest.mark.parametrize(("frame", "steps"), [(0, 2), (1, 4), (2, 6), (-1, 6)])
def test_file_gives_a_frame_of_an_output(frame: int, steps: int, tmp_path: Path) -> None:
    path = save_output(tmp_path / "run.h5")
    u, v = state("noise")
    for _ in range(steps):
        u, v = step(u, v, np.array(0.014), np.array(0.054), load_config(environ={}).model, "periodic")
    np.testing.assert_array_equal(state("file", path=path, frame=frame), (u, v))


def test_file_gives_a_frame_of_a_zarr_output(tmp_path: Path) -> None:
    in_hdf5, in_zarr = (state("file", path=save_output(tmp_path / name), frame=1) for name in ("run.h5", "run.zarr"))
    np.testing.assert_array_equal(in_zarr, in_hdf5)


def test_an_npz_is_refused_by_its_declared_sizes(tmp_path: Path) -> None:
    header = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little")
    header += repr({"descr": "<f8", "fortran_order": False, "shape": (2**27,)}).ljust(117).encode() + b"\n"
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in "uv":
            with archive.open(f"{name}.npy", "w") as file:
                file.write(header)
                for _ in range(64):
                    file.write(bytes(1 << 20))
    tracemalloc.start()
    try:
        assert "got 134217728" in refusal("file", tmp_path / "bomb.npz")
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["none.npz", "none.h5", ""])
def test_missing_file_is_refused(name: str, tmp_path: Path) -> None:
    assert "no file" in refusal("file", tmp_path / name)


@pytest.mark.parametrize("field", ["u", "v"])
@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.ones((COLS, ROWS)), ["5 × 7", "7 × 5"]),
        (np.ones((1, ROWS, COLS)), ["5 × 7", "1 × 5 × 7"]),
        (np.ones(ROWS * COLS), ["5 × 7", "35"]),
        (np.full((ROWS, COLS), np.nan), ["finite", "NaN"]),
        (np.full((ROWS, COLS), -np.inf), ["finite", "infinity"]),
        (np.full((ROWS, COLS), "a"), ["cannot read"]),
        (np.full((ROWS, COLS), None), ["cannot read"]),
    ],
    ids=["transposed", "stack", "flat", "nan", "infinity", "text", "objects"],
)
def test_arrays_that_are_no_state_are_refused(
    field: str, array: NDArray[Any], words: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "state.npz"
    arrays: dict[str, Any] = {"u": np.ones((ROWS, COLS)), "v": np.zeros((ROWS, COLS)), field: array}
    np.savez(path, **arrays)
    message = refusal("file", path)
    for word in words:
        assert word in message
    if "cannot read" not in words:
        assert f" {field} " in message or message.endswith(f" {field}")


@pytest.mark.parametrize("field", ["u", "v"])
def test_npz_without_a_field_is_refused(field: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "state.npz", **{"uv".replace(field, ""): np.ones((ROWS, COLS))})
    assert f"{field} is not a file in the archive" in refusal("file", tmp_path / "state.npz")


def corrupt_npz(path: Path, damage: str) -> None:
    np.savez(path, u=np.ones((ROWS, COLS)), v=np.zeros((ROWS, COLS)))
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(content[:200])
    elif damage == "a flipped bit":
        content[200] ^= 1
        path.write_bytes(content)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_text("not an archive")
    elif damage == "an npy":
        with path.open("wb") as file:
            np.save(file, np.ones((ROWS, COLS)))


@pytest.mark.parametrize("damage", ["truncated", "a flipped bit", "empty", "text", "an npy"])
def test_corrupt_npz_is_refused(damage: str, tmp_path: Path) -> None:
    corrupt_npz(tmp_path / "state.npz", damage)
    assert "cannot read" in refusal("file", tmp_path / "state.npz")


@pytest.mark.parametrize("fields", ["v", "u"])
def test_output_with_one_field_is_refused(fields: str, tmp_path: Path) -> None:
    message = refusal("file", save_output(tmp_path / "run.h5", fields))
    assert f"holds only {fields}" in message
    assert "fields=u,v" in message


def test_frame_out_of_range_is_refused(tmp_path: Path) -> None:
    assert "below 3, got 3" in refusal("file", save_output(tmp_path / "run.h5"), frame=3)


def test_output_of_another_shape_is_refused(tmp_path: Path) -> None:
    message = refusal("file", save_output(tmp_path / "run.h5"), rows=ROWS + 1)
    assert "6 × 7" in message
    assert "5 × 7" in message


def test_hdf5_of_another_program_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["u"] = file["v"] = np.ones((1, ROWS, COLS))
    assert "it is not an output of gsio" in refusal("file", tmp_path / "other.h5")


def test_hdf5_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.h5").write_text("not HDF5")
    assert "cannot read" in refusal("file", tmp_path / "run.h5")
