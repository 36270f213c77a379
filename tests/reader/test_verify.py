"""`gsio verify`: it passes what is intact, and names every kind of damage and where it is."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import crc32c
import h5py
import numpy as np
import pytest
from cuts import OUTPUTS

import gsio
from gsio.cli import main
from gsio.config import Config
from gsio.reader import Frames
from gsio.testing import small_blocks
from gsio.writer.journal import read_journal
from gsio.writer.status_file import status_of

Make = Callable[..., Config]
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def make_output(make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Return a function that makes an output of 16 frames, three of them a chunk where there are chunks."""
    small_blocks(block_bytes=6 * 2 * 12 * 17 * 4, chunk_bytes=3 * 12 * 17 * 4)

    def make(name: str, compression: str) -> Path:
        changes = {"run.frames": 16, "initial.kind": "noise", "output.fields": "u,v"}
        gsio.simulate(make_config({**changes, "output.compression": compression}), tmp_path / name)
        return tmp_path / name

    return make


def place_of(path: Path, field: str, frame: int) -> tuple[Path, int, int]:
    """Return the file that holds a frame, and where its chunk begins there and ends."""
    if path.is_dir():
        chunk = path / field / f"c.{frame // 3}.0.0"
        return chunk, 0, chunk.stat().st_size
    with h5py.File(path) as file:
        data = file[field]
        stored = data.id.get_chunk_info_by_coord((frame // 3 * 3, 0, 0))
        return path, stored.byte_offset, stored.byte_offset + stored.size


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 16]))


@pytest.mark.parametrize(("name", "compression"), OUTPUTS)
def test_what_is_intact_passes(
    name: str, compression: str, make_output: Callable[[str, str], Path], capsys: Captured
) -> None:
    assert main(["verify", str(make_output(name, compression))]) == 0
    assert "16 frames, all intact" in capsys.readouterr().out


@pytest.mark.parametrize("frame", range(0, 16, 5))
@pytest.mark.parametrize(("name", "compression"), OUTPUTS)
def test_a_flipped_bit_in_any_frame_is_found(
    name: str, compression: str, frame: int, make_output: Callable[[str, str], Path], capsys: Captured
) -> None:
    path = make_output(name, compression)
    place, start, end = place_of(path, "u", frame)
    raw = compression == "none"
    inside = 100 + frame % 3 * 12 * 17 * 4
    flip(place, start + inside if raw else (start + end) // 2)
    assert main(["verify", str(path)]) == 65
    captured = capsys.readouterr()
    found = captured.out.splitlines()[0]
    if raw:
        assert found.startswith(f"frame {frame}: expected the checksum")
    else:
        assert any(found.startswith(("frame", "frames")) and str(near) in found for near in range(frame - 2, frame + 3))
    assert "problems" in captured.err


@pytest.mark.parametrize("redirected", [False, True])
def test_a_terminal_sees_a_bar_and_above_it_what_is_wrong_unless_redirected(
    redirected: bool, make_output: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    path = make_output("run.zarr", "lz4")
    (path / "v" / "c.2.0.0").unlink()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: not redirected)
    monkeypatch.setenv("TERM", "xterm")
    assert main(["verify", str(path)]) == 65
    captured = capsys.readouterr()
    assert "\x1b[2Kframes" in captured.err
    if redirected:
        assert captured.out.startswith("frames 6 to 8: ")
        assert captured.out.count("\n") == 1
    else:
        assert "\x1b[2Kframes 6 to 8: " in captured.err
        assert captured.out == ""


def test_a_missing_chunk_is_found(make_output: Callable[[str, str], Path], capsys: Captured) -> None:
    path = make_output("run.zarr", "lz4")
    (path / "v" / "c.2.0.0").unlink()
    assert main(["verify", str(path)]) == 65
    assert capsys.readouterr().out.startswith("frames 6 to 8: ")


def test_a_chunk_that_was_never_written_is_found(make_output: Callable[[str, str], Path], capsys: Captured) -> None:
    path = make_output("run.h5", "deflate")
    with h5py.File(path, "r+") as file:
        for name in ("u", "v"):
            file[name].resize(20, axis=0)
    assert main(["verify", str(path)]) == 65
    out = capsys.readouterr().out
    assert "expected 16 frames of a complete run, found 20" in out
    assert "frames 18 to 19: " in out


@pytest.mark.parametrize("compression", ["deflate", "none"])
def test_a_truncated_file_is_found(compression: str, make_output: Callable[[str, str], Path], capsys: Captured) -> None:
    path = make_output("run.h5", compression)
    os.truncate(path, path.stat().st_size * 2 // 3)
    assert main(["verify", str(path)]) == 65
    assert "truncated" in capsys.readouterr().err


def test_a_truncated_chunk_is_found(make_output: Callable[[str, str], Path], capsys: Captured) -> None:
    path = make_output("run.zarr", "none")
    os.truncate(path / "u" / "c.5.0.0", 100)
    assert main(["verify", str(path)]) == 65
    assert capsys.readouterr().out.startswith("frame 15: ")


@pytest.mark.parametrize("name", ["run.h5", "run.zarr"])
def test_a_wrong_time_axis_is_found(name: str, make_output: Callable[[str, str], Path], capsys: Captured) -> None:
    path = make_output(name, "lz4")
    if path.is_dir():
        times = np.fromfile(path / "time" / "c.0")
        times[7] = 1
        times.tofile(path / "time" / "c.0")
    else:
        with h5py.File(path, "r+") as file:
            file["time"][7] = 1
    assert main(["verify", str(path)]) == 65
    assert capsys.readouterr().out == "time: expected 24.0 at frame 7, found 1.0\n"


def test_a_shortened_run_is_found(make_output: Callable[[str, str], Path], capsys: Captured) -> None:
    path = make_output("run.zarr", "lz4")
    group = json.loads((path / "zarr.json").read_bytes())
    for array in group["consolidated_metadata"]["metadata"].values():
        if array["node_type"] == "array" and array["shape"][0] == 16:
            array["shape"][0] = 15
    (path / "zarr.json").write_text(json.dumps(group))
    assert main(["verify", str(path)]) == 65
    assert "expected 16 frames of a complete run, found 15" in capsys.readouterr().out


def test_a_frame_that_is_not_finite_is_found(make_output: Callable[[str, str], Path], capsys: Captured) -> None:
    path = make_output("run.h5", "none")
    with h5py.File(path, "r+") as file:
        file["v"][4, 2, 3] = np.nan
        frame = crc32c.crc32c(file["v"][4].tobytes(), crc32c.crc32c(file["u"][4].tobytes()))
        file["integrity/crc32c"][4] = frame
    assert main(["verify", str(path)]) == 65
    assert capsys.readouterr().out == "frame 4: expected finite values, found others\n"


@pytest.mark.parametrize("target", ["part.h5", "part.zarr"])
def test_a_part_of_an_output_passes(target: str, make_output: Callable[[str, str], Path], capsys: Captured) -> None:
    path = make_output("run.h5", "deflate")
    part = path.with_name(target)
    assert main(["export", str(path), str(part), "--frames", "2:9:2", "--crop", "1:8,2:9"]) == 0
    assert main(["verify", str(part)]) == 0
    assert "4 frames, all intact" in capsys.readouterr().out


@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize("name", ["run.h5", "run.zarr"])
def test_what_seems_wrong_while_a_run_writes_is_looked_at_again(
    name: str, damaged: bool, make_output: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    path = make_output(name, "lz4")
    monkeypatch.setattr("gsio.run.status.is_written", lambda output: True)
    monkeypatch.setattr("gsio.reader.verify.LOOK_SECONDS", 0)
    chunk, left = Frames.chunk, 3 if not damaged else 1000

    def torn(frames: Frames, number: int) -> np.ndarray:
        nonlocal left
        if number == 2 and (left := left - 1) >= 0:
            raise OSError("in the middle of a flush")
        return chunk(frames, number)

    monkeypatch.setattr(Frames, "chunk", torn)
    assert main(["verify", str(path)]) == (65 if damaged else 0)
    wrong = "frames 6 to 8: in the middle of a flush\n"
    assert capsys.readouterr().out == (wrong if damaged else f"{path}: 16 frames, all intact\n")


def test_a_running_output_has_the_frames_of_its_journal_and_a_killed_one_is_said_to_be(
    tmp_path: Path, capsys: Captured
) -> None:
    path = tmp_path / "run.h5"
    job = ["-r", "64", "-c", "64", "-n", "100000", "-e", "400", "--backend", "numpy", "-o", str(path)]
    gsio_run = [sys.executable, "-m", "gsio", "run", "--debug", "--log-format", "json", *job]
    with subprocess.Popen(gsio_run, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            committed = next(json.loads(line)["frame"] for line in process.stderr if "block committed" in line)
            process.send_signal(signal.SIGSTOP)  # while it computes the next block, which takes longer
            records = read_journal(path)
            assert records is not None
            assert len(records.frames) == committed
            with h5py.File(path, "r+", locking=False) as file:  # as in the middle of the next commit
                for name in ("v", "u", "time", "step", "integrity/crc32c"):
                    if name in file:
                        file[name].resize(committed + 1, axis=0)
            assert main(["verify", str(path)]) == 0
            assert main(["info", str(path)]) == 0
            assert main(["frames", str(path), "-o", str(tmp_path / "pictures")]) == 0
            out = capsys.readouterr().out.splitlines()
            assert out[0] == f"{path}: {committed} frames, all intact"
            assert out[1] == f"{path}: {committed} frames of 64 × 64, running"
            assert out[-1] == f"{tmp_path / 'pictures'}: {committed} pictures"
            assert len(list((tmp_path / "pictures").iterdir())) == committed
        finally:
            process.kill()
    assert main(["info", str(path)]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith(" of 64 × 64, killed")
    status = json.loads(status_of(path).read_text())
    status_of(path).write_text(json.dumps({**status, "pid": os.getpid()}))  # the number is given out again
    assert main(["info", str(path)]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith(", killed")
    status_of(path).write_text(json.dumps({**status, "host": "elsewhere"}))  # nobody knows
    assert main(["info", str(path)]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith(", running")
