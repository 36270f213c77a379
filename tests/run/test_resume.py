"""Long runs: checkpoints, going on where a run stopped, wrecks, and what a watcher sees of them."""

import errno
import json
import os
import shutil
import struct
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from patience import DEADLINE

import gsio
from gsio.cli import main
from gsio.compute.host import ArraySolver
from gsio.config import Config, parse_interval, parse_walltime
from gsio.errors import DataError, Interrupted, StorageError, UsageError
from gsio.export import export
from gsio.frames.sizes import default_sizes
from gsio.reader import open_stack
from gsio.reader.verify import problems
from gsio.run import checkpoints
from gsio.run.metrics import metrics
from gsio.run.progress import Progress
from gsio.run.repair import repair
from gsio.run.status import follow
from gsio.testing import small_blocks
from gsio.writer.journal import Journal, journal_of, read_journal
from gsio.writer.status_file import read_status

Make = Callable[..., Config]
OUTPUTS = [
    *(("run.h5", compression) for compression in ("deflate", "lz4", "zstd", "none")),
    *(("run.zarr", compression) for compression in ("lz4", "zstd", "none")),
]
LONG = {"run.frames": 60, "run.backend": "numpy", "initial.kind": "noise", "output.fields": "u,v"}


@pytest.fixture(autouse=True)
def many_blocks() -> None:
    """Have many blocks in a short run: of 8 frames, with chunks of 4."""
    small_blocks(block_bytes=8 * 12 * 17 * 4 * 2, chunk_bytes=4 * 12 * 17 * 4)


KILLED = """
import os, sys, threading
from pathlib import Path
import gsio
from gsio.compute.host import ArraySolver
from gsio.config import Config
from gsio.frames.block import BlockPool
from gsio.run import checkpoints
from gsio.testing import small_blocks

output, resume, frames, *sizes = *sys.argv[1:3], *map(int, sys.argv[3:])
small_blocks(*sizes)
saved = threading.Event()
saved.set()
releasing, keeping = BlockPool.release, ArraySolver.snapshot
saving, filling = checkpoints.save, ArraySolver.fill

def release(self, block):  # it is committed
    releasing(self, block)
    if block.first + block.count >= frames:
        os._exit(9)

def snapshot(self):
    saved.clear()
    return keeping(self)

def save(*arguments):
    saving(*arguments)
    saved.set()

def fill(self, block):  # no checkpoint is skipped because the one before is not written yet
    saved.wait(60)
    filling(self, block)

BlockPool.release, ArraySolver.snapshot = release, snapshot
checkpoints.save, ArraySolver.fill = save, fill
gsio.simulate(Config.from_toml(sys.stdin.read()), Path(output), resume=resume)
"""


def kill_after(frames: int, config: Config, output: Path, resume: str = "no") -> None:
    """Let a process leave, as it is, what it has written of a run when so many frames are committed."""
    sizes = default_sizes()
    numbers = map(str, (frames, sizes.block_bytes, sizes.chunk_bytes))
    command = [sys.executable, "-c", KILLED, str(output), resume, *numbers]
    run = subprocess.run(command, input=config.to_toml(), text=True)
    assert run.returncode == 9


def contents(path: Path) -> dict[str, Any]:
    """Return all frames and series of an output, and the bytes of its checkpoint."""
    with open_stack(path) as stack:
        assert list(problems(stack)) == []
        names = ["step", "time", "integrity/crc32c", *(f"stats/{f}_{s}" for f in "uv" for s in ("min", "max", "mean"))]
        found = {name: stack.series(name).tobytes() for name in names}
        found |= {name: field[:].tobytes() for name, field in stack.fields.items()}
    state = checkpoints.load(path)[0]
    return found | {"checkpoint": (state.frames, state.u.tobytes(), state.v.tobytes(), state.config, state.rates)}


@pytest.mark.parametrize(("name", "compression"), OUTPUTS)
@pytest.mark.parametrize("every", [8, "1h"])
def test_a_killed_run_goes_on_as_if_it_had_not_been(
    name: str, compression: str, every: Any, make_config: Make, tmp_path: Path
) -> None:
    config = make_config({**LONG, "output.compression": compression, "run.checkpoint_every": every})
    kill_after(30, config, tmp_path / name)
    assert len(checkpoints.load(tmp_path / name)) == (2 if every == 8 else 0)
    (tmp_path / f".{name}-0123456789abcdef.tmp").touch()  # which the kill left
    summary = gsio.simulate(config, tmp_path / name, resume="must")
    assert summary is not None
    assert summary.first >= 30
    assert summary.first + summary.frames == 60
    (tmp_path / "whole").mkdir()
    gsio.simulate(config, tmp_path / "whole" / name)
    assert contents(tmp_path / name) == contents(tmp_path / "whole" / name)
    beside = {f"{name}{end}" for end in ("", ".checkpoint.npz", ".status.json")}
    assert {path.name for path in tmp_path.iterdir()} - {f"{name}.checkpoint_prev.npz"} == beside | {"whole"}


@pytest.mark.parametrize(("name", "compression"), OUTPUTS)
@pytest.mark.parametrize("frames", [3, 24, 31])
def test_a_finished_run_is_extended(
    name: str, compression: str, frames: int, make_config: Make, tmp_path: Path
) -> None:
    changes = {**LONG, "output.compression": compression}
    gsio.simulate(make_config({**changes, "run.frames": frames}), tmp_path / name)
    longer = make_config({**changes, "run.backend": "numpy", "output.threads": 3})
    gsio.simulate(longer, tmp_path / name, resume="auto")
    with open_stack(tmp_path / name) as stack:
        assert list(problems(stack)) == []
        assert stack.frames == 60
        extended = {field: stack.fields[field][:] for field in "uv"}
    (tmp_path / "whole").mkdir()
    gsio.simulate(make_config(changes), tmp_path / "whole" / name)
    with open_stack(tmp_path / "whole" / name) as stack:
        for field in "uv":
            np.testing.assert_array_equal(extended[field], stack.fields[field][:])


def test_a_shard_that_is_not_full_is_written_again(make_config: Make, tmp_path: Path) -> None:
    changes = {**LONG, "output.compression": "lz4", "output.shard_frames": 16}
    gsio.simulate(make_config({**changes, "run.frames": 25}), tmp_path / "run.zarr")
    gsio.simulate(make_config(changes), tmp_path / "run.zarr", resume="must")
    with open_stack(tmp_path / "run.zarr") as stack:
        assert list(problems(stack)) == []
        assert stack.frames == 60


def test_a_complete_run_is_left_alone(make_config: Make, tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    gsio.simulate(make_config(LONG), path, resume="auto")
    before = path.read_bytes()
    assert gsio.simulate(make_config({**LONG, "run.frames": 50}), path, resume="must") is None
    assert path.read_bytes() == before
    assert not journal_of(path).exists()


def test_what_may_not_change_is_named(make_config: Make, tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    gsio.simulate(make_config(LONG), path)
    changed = make_config({**LONG, "model.feed": 0.02, "run.steps_per_frame": 4, "run.frames": 70})
    with pytest.raises(
        DataError, match=r"model\.feed = 0\.014 there, 0\.02 now, run\.steps_per_frame = 3 there, 4 now"
    ):
        gsio.simulate(changed, path, resume="auto")
    np.save(tmp_path / "feed.npy", np.full((12, 17), 0.02))
    maps = {**LONG, "model.feed": {"path": str(tmp_path / "feed.npy")}}
    gsio.simulate(make_config(maps), tmp_path / "maps.h5")
    np.save(tmp_path / "feed.npy", np.full((12, 17), 0.03))
    with pytest.raises(DataError, match="maps of feed or kill"):
        gsio.simulate(make_config({**maps, "run.frames": 70}), tmp_path / "maps.h5", resume="auto")


def test_bad_uses_of_resume_touch_nothing(make_config: Make, tmp_path: Path) -> None:
    config, path = make_config(LONG), tmp_path / "run.h5"
    with pytest.raises(UsageError, match="does not exist"):
        gsio.simulate(config, path, resume="must")
    with pytest.raises(UsageError, match="expected one of them"):
        gsio.simulate(config, path, resume="auto", overwrite=True)
    assert list(tmp_path.iterdir()) == []
    gsio.simulate(config, path)
    for beside in checkpoints.paths_of(path):
        beside.unlink(missing_ok=True)
    before = path.read_bytes()
    for how, message in (
        ({"resume": "auto"}, "expected it with --resume=must"),
        ({"resume": "must"}, "expected 0 to 60"),
    ):
        with pytest.raises(UsageError, match=message):
            gsio.simulate(config, path, discard_after=61, **how)
    assert path.read_bytes() == before


def test_an_output_without_a_checkpoint_is_computed_again_and_stays(make_config: Make, tmp_path: Path) -> None:
    config, path = make_config(LONG), tmp_path / "run.h5"
    gsio.simulate(config, path)
    for beside in checkpoints.paths_of(path):
        beside.unlink(missing_ok=True)
    summary = gsio.simulate(make_config({**LONG, "run.frames": 70}), path, resume="auto")
    assert summary is not None
    assert (summary.first, summary.frames) == (60, 10)
    gsio.simulate(make_config({**LONG, "run.frames": 70}), tmp_path / "whole.h5")
    assert contents(path)["v"] == contents(tmp_path / "whole.h5")["v"]


@pytest.mark.parametrize(("name", "compression"), OUTPUTS)
def test_committed_frames_stay_when_the_run_that_goes_on_is_stopped_before_it_reaches_them(
    name: str, compression: str, make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config({**LONG, "output.compression": compression, "run.checkpoint_every": "1h"})
    path, fill = tmp_path / name, ArraySolver.fill
    kill_after(40, config, path)

    def filling(solver: Any, block: Any) -> None:
        if block.first >= 16:
            raise MemoryError("the test")
        fill(solver, block)

    monkeypatch.setattr(ArraySolver, "fill", filling)
    for _ in range(2):  # each computes from the first frame
        with pytest.raises(MemoryError, match="the test"):
            gsio.simulate(config, path, resume="must")
        assert checkpoints.load(path) == []
        with open_stack(path) as stack:
            assert list(problems(stack)) == []
            assert stack.frames >= 40
    monkeypatch.undo()
    small_blocks(block_bytes=8 * 12 * 17 * 4 * 2, chunk_bytes=4 * 12 * 17 * 4)
    gsio.simulate(config, path, resume="must")
    (tmp_path / "whole").mkdir()
    gsio.simulate(config, tmp_path / "whole" / name)
    assert contents(path) == contents(tmp_path / "whole" / name)


def test_a_frame_that_is_computed_again_and_differs_ends_the_run(make_config: Make, tmp_path: Path) -> None:
    config, path = make_config({**LONG, "run.checkpoint_every": 8}), tmp_path / "run.h5"
    kill_after(40, config, path)
    newest, _ = checkpoints.load(path)
    newest.v[5, 5] += 0.25  # as another kind of device may round
    checkpoints.save(path, newest)
    before = path.read_bytes()
    with pytest.raises(
        DataError, match=rf"frame {newest.frames}, computed again, differs .*--discard-after {newest.frames}"
    ):
        gsio.simulate(config, path, resume="must")
    with open_stack(path) as stack:
        assert list(problems(stack)) == []
        assert stack.frames >= 40
    assert path.stat().st_size >= len(before)
    gsio.simulate(config, path, resume="must", discard_after=newest.frames)
    with open_stack(path) as stack:
        assert list(problems(stack)) == []
        assert stack.frames == 60


@pytest.mark.parametrize(("name", "compression"), OUTPUTS)
@pytest.mark.parametrize("keep", [0, 13])
def test_an_output_is_cut_on_purpose(keep: int, name: str, compression: str, make_config: Make, tmp_path: Path) -> None:
    changes = {**LONG, "run.checkpoint_every": 8, "output.compression": compression}
    path = tmp_path / name
    kill_after(40, make_config(changes), path)
    summary = gsio.simulate(make_config(changes), path, resume="must", discard_after=keep)
    assert summary is not None
    assert (summary.first, summary.frames) == (keep, 60 - keep)
    (tmp_path / "whole").mkdir()
    gsio.simulate(make_config(changes), tmp_path / "whole" / path.name)
    assert contents(path) == contents(tmp_path / "whole" / path.name)


def test_checkpoints_of_discarded_frames_are_gone_before_frames_replace_these(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.h5"
    gsio.simulate(make_config({**LONG, "run.checkpoint_every": 8}), path)
    fill = ArraySolver.fill

    def filling(solver: Any, block: Any) -> None:
        if block.first >= 24:
            raise MemoryError("the test")
        fill(solver, block)

    with monkeypatch.context() as patched, pytest.raises(MemoryError, match="the test"):
        patched.setattr(ArraySolver, "fill", filling)
        gsio.simulate(make_config(LONG), path, resume="must", discard_after=5)
    assert [state.frames for state in checkpoints.load(path) if state.frames > 24] == []
    gsio.simulate(make_config(LONG), path, resume="must")
    gsio.simulate(make_config(LONG), tmp_path / "whole.h5")
    assert contents(path) == contents(tmp_path / "whole.h5")


def test_a_link_to_an_output_has_the_lock_and_the_checkpoints_of_the_output(make_config: Make, tmp_path: Path) -> None:
    path, link = tmp_path / "run.h5", tmp_path / "elsewhere" / "link.h5"
    gsio.simulate(make_config({**LONG, "run.frames": 24}), path)
    link.parent.mkdir()
    link.symlink_to(path)
    with Journal(path), pytest.raises(UsageError, match="another run writes"):
        gsio.simulate(make_config(LONG), link, resume="must")
    summary = gsio.simulate(make_config(LONG), link, resume="must")
    assert summary is not None
    assert (summary.first, summary.frames) == (24, 36)
    assert [beside.name for beside in link.parent.iterdir()] == ["link.h5"]
    assert repair(link) == f"{path}: nothing to repair"


def test_a_part_of_a_run_is_not_gone_on_with(make_config: Make, tmp_path: Path) -> None:
    gsio.simulate(make_config(LONG), tmp_path / "run.h5")
    for name in ("part.h5", "part.zarr"):
        export(tmp_path / "run.h5", tmp_path / name, crop="2:10,3:9")
        for discard in (None, 0):
            with pytest.raises(DataError, match="is an export of a part of a run"):
                gsio.simulate(
                    make_config({**LONG, "run.frames": 70, "output.compression": "auto"}),
                    tmp_path / name, resume="must", discard_after=discard,
                )  # fmt: skip


def test_modules_of_the_user_are_not_those_of_the_reader(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gsio.simulate(make_config({**LONG, "run.frames": 24}), tmp_path / "run.h5")
    for name in ("random", "numpy", "trace"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a module of the user ran')")
    monkeypatch.chdir(tmp_path)
    assert repair(Path("run.h5")) == "run.h5: nothing to repair"
    gsio.simulate(make_config(LONG), Path("run.h5"), resume="must")
    with open_stack("run.h5") as stack:
        assert stack.frames == 60


def test_fewer_than_no_frames_cannot_be_kept(make_config: Make, tmp_path: Path) -> None:
    gsio.simulate(make_config(LONG), tmp_path / "run.h5")
    with pytest.raises(UsageError, match="expected 0 to 60"):
        gsio.simulate(make_config(LONG), tmp_path / "run.h5", resume="must", discard_after=-1)
    assert main(["run", "-o", str(tmp_path / "run.h5"), "--resume=must", "--discard-after=-1"]) == 2


@pytest.mark.parametrize(("name", "compression"), OUTPUTS)
@pytest.mark.parametrize("frames", [3, 25, 31, 32])
def test_a_run_that_is_extended_computes_only_what_is_new(
    name: str, compression: str, frames: int, make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed, fill = [], ArraySolver.fill

    def filling(solver: Any, block: Any) -> None:
        computed.append(block.count)
        fill(solver, block)

    monkeypatch.setattr(ArraySolver, "fill", filling)
    changes = {**LONG, "output.compression": compression}
    gsio.simulate(make_config({**changes, "run.frames": frames}), tmp_path / name)
    assert checkpoints.load(tmp_path / name)[0].frames == sum(computed) == frames
    gsio.simulate(make_config(changes), tmp_path / name, resume="must")
    assert sum(computed) == 60


def test_a_run_that_ends_before_a_shared_chunk_is_replaced_leaves_no_copy(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, path = {**LONG, "output.compression": "deflate"}, tmp_path / "run.h5"
    gsio.simulate(make_config({**changes, "run.frames": 26}), path)
    with h5py.File(path) as file:
        names = set(file)

    def fail(solver: Any, block: Any) -> None:
        raise MemoryError("the test")

    for _ in range(3):
        with monkeypatch.context() as patched, pytest.raises(MemoryError, match="the test"):
            patched.setattr(ArraySolver, "fill", fail)
            gsio.simulate(make_config(changes), path, resume="must")
        with h5py.File(path) as file:
            assert set(file) == names
        assert repair(path) == f"{path}: nothing to repair"
    gsio.simulate(make_config(changes), path, resume="must")
    gsio.simulate(make_config(changes), tmp_path / "whole.h5")
    assert contents(path) == contents(tmp_path / "whole.h5")


def test_a_kill_while_a_shared_chunk_is_replaced_leaves_the_frames_of_before(make_config: Make, tmp_path: Path) -> None:
    changes = {**LONG, "output.compression": "deflate"}
    path = tmp_path / "run.h5"
    gsio.simulate(make_config({**changes, "run.frames": 26}), path)  # its last chunk has room for two more
    with open_stack(path) as stack:
        before = stack.v[:]
    kill_after(28, make_config(changes), path, "must")
    tear(path)  # in the middle of the commit that replaced the chunk
    assert "rebuilt with" in repair(path)
    with open_stack(path) as stack:
        assert list(problems(stack)) == []
        np.testing.assert_array_equal(stack.v[:26], before)


@pytest.mark.parametrize(("name", "compression"), [("run.h5", "deflate"), ("run.zarr", "lz4")])
def test_a_run_that_shares_a_chunk_is_stopped_again_and_again_before_its_first_commit(
    name: str, compression: str, make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, long = tmp_path / name, {**LONG, "output.compression": compression}
    gsio.simulate(make_config({**long, "run.frames": 18}), path)  # two frames in the last chunk

    def stopping(solver: Any, block: Any) -> None:
        raise MemoryError("the test")

    for _ in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(ArraySolver, "fill", stopping)
            with pytest.raises(MemoryError, match="the test"):
                gsio.simulate(make_config(long), path, resume="must")
        with open_stack(path) as stack:
            assert stack.frames == 18
            assert list(problems(stack)) == []
    gsio.simulate(make_config(long), path, resume="must")
    (tmp_path / "whole").mkdir()
    gsio.simulate(make_config(long), tmp_path / "whole" / name)
    assert contents(path) == contents(tmp_path / "whole" / name)


def test_an_output_that_this_process_has_open_is_not_touched(make_config: Make, tmp_path: Path) -> None:
    output, longer = tmp_path / "run.h5", make_config(LONG | {"run.frames": 80})
    gsio.simulate(make_config(LONG), output)
    (tmp_path / "link.h5").symlink_to(output)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with h5py.File(output) as file:
        v = file["v"]
        for name in ("run.h5", "link.h5"):
            with pytest.raises(UsageError, match=r"this process has '.*run.h5' open; close it"):
                gsio.simulate(longer, tmp_path / name, resume="must")
        assert len(v) == 60
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    kept = h5py.File(output)["v"]  # its file is open as long as this is
    with pytest.raises(UsageError, match="close it"):
        gsio.simulate(longer, output, resume="auto")
    del kept
    with h5py.File(tmp_path / "another.h5", "w"), h5py.File("run.h5", "w", driver="core", backing_store=False):
        gsio.simulate(longer, output, resume="must")
    with open_stack(output) as stack:
        assert stack.frames == 80


@pytest.mark.parametrize("ending", ["h5", "zarr"])
def test_the_command_can_be_pasted_and_each_is_a_line_of_the_history(
    ending: str, make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / f"run.{ending}"
    compression = {"output.compression": "lz4"}
    words = [
        "gsio",
        "run",
        "a b.toml",
        "--set=initial.path='x$y'",
        "",
        "feed =\n[1]",
        "caf\xe9",
        "\udcff\\\x1b'",
        "--resume",
    ]
    monkeypatch.setattr(sys, "argv", words)
    gsio.simulate(make_config(compression), output)
    monkeypatch.setattr(sys, "argv", [*words, "-n", "7"])
    gsio.simulate(make_config(compression | {"run.frames": 7}), output, resume="must")
    monkeypatch.setattr(sys, "argv", [*words, "export"])
    assert main(["export", str(output), str(tmp_path / f"copy.{ending}")]) == 0
    with open_stack(tmp_path / f"copy.{ending}") as stack:
        lines = stack.attributes["history"].splitlines()
        commands = [line.split(" ", 1)[1] for line in lines]
        assert stack.attributes["argv"] == commands[0]
    for command, more in zip(commands, ([], ["-n", "7"], ["export"]), strict=True):
        script = f"printf '%s\\0' {command}"
        pasted = subprocess.check_output(["bash", "-c", script]).split(b"\0")[:-1]
        assert pasted == [os.fsencode(word) for word in [*words, *more]]


def test_the_command_of_the_module_can_be_pasted(tmp_path: Path) -> None:
    small = ["-r", "8", "-c", "8", "-n", "1", "--backend", "numpy", "--quiet", "--set", "initial.kind = 'noise'"]
    subprocess.run([sys.executable, "-m", "gsio", "run", *small, "-o", "first.h5"], cwd=tmp_path, check=True)
    with open_stack(tmp_path / "first.h5") as stack:
        command = stack.attributes["argv"]
    (tmp_path / "first.h5").unlink()
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    with open_stack(tmp_path / "first.h5") as stack:
        assert stack.attributes["argv"] == command


def test_a_bare_resume_does_not_take_what_follows_for_its_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text("[grid]\nrows = 12\ncols = 17\n[run]\nframes = 3\nsteps_per_frame = 2\n")
    for resume in ("--resume", "--resume=must"):
        assert main(["run", resume, "mine.toml", "--backend", "numpy", "-q", "-o", "run.h5"]) == 0


@pytest.mark.parametrize("damage", ["torn", "gone", "flipped"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(damage: str, make_config: Make, tmp_path: Path) -> None:
    config, path = make_config({**LONG, "run.checkpoint_every": 8}), tmp_path / "run.h5"
    kill_after(40, config, path)
    newest, previous = checkpoints.paths_of(path)
    before = [found.frames for found in checkpoints.load(path)]
    assert before[0] > before[1] > 0
    ruin(newest, damage)
    assert [found.frames for found in checkpoints.load(path)] == before[1:]
    ruin(previous, damage)
    if damage != "gone":
        with pytest.raises(DataError, match=r"is damaged.*is damaged.*delete them"):
            gsio.simulate(config, path, resume="auto")
        newest.unlink()
        previous.unlink()
    summary = gsio.simulate(config, path, resume="auto")
    assert summary is not None
    assert summary.first >= 40
    with open_stack(path) as stack:
        assert list(problems(stack)) == []
        assert stack.frames == 60


def ruin(path: Path, damage: str) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw if damage == "flipped" else raw[: len(raw) // 2])
    if damage == "gone":
        path.unlink()


@pytest.mark.parametrize(("name", "compression"), OUTPUTS)
def test_a_file_whose_metadata_are_torn_is_rebuilt_from_its_journal(
    name: str, compression: str, make_config: Make, tmp_path: Path
) -> None:
    config, path = make_config({**LONG, "output.compression": compression, "run.checkpoint_every": 8}), tmp_path / name
    kill_after(30, config, path)
    if path.suffix == ".h5":
        assert repair(path) == f"{path}: nothing to repair"
    tear(path)
    torn = path.read_bytes() if path.is_file() else (path / "zarr.json").read_bytes()
    records = read_journal(path)
    assert records is not None
    said = repair(path)
    assert f"rebuilt with {len(records.frames)} of {len(records.frames)} frames; the output as it was is" in said
    wreck = Path(said.rpartition(" is '")[2].rstrip("'"))
    assert torn == (wreck.read_bytes() if wreck.is_file() else (wreck / "zarr.json").read_bytes())
    with open_stack(path) as stack:
        assert list(problems(stack)) == []
        assert stack.frames == len(records.frames) >= 30
        assert stack.attributes["status"] == "stopped"
    tear(path)
    gsio.simulate(config, path, resume="must")
    with open_stack(path) as stack:
        assert list(problems(stack)) == []
        assert stack.frames == 60


@pytest.mark.parametrize("key", ["v", "x", "integrity/crc32c"])
def test_metadata_that_the_group_holds_too_may_be_missing(key: str, make_config: Make, tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    gsio.simulate(make_config({**LONG, "output.compression": "lz4", "run.frames": 30}), path)
    (path / key / "zarr.json").unlink()
    gsio.simulate(make_config({**LONG, "output.compression": "lz4"}), path, resume="must")
    with open_stack(path) as stack:
        assert list(problems(stack)) == []
        assert stack.frames == 60


def test_the_journal_of_a_wreck_stays_beside_it(make_config: Make, tmp_path: Path) -> None:
    """From one that is damaged in the middle a repair takes the frames before; those behind can still be found."""
    config, path = make_config({**LONG, "output.compression": "deflate"}), tmp_path / "run.h5"
    kill_after(30, config, path)
    records = read_journal(path)
    assert records is not None
    journal = bytearray(journal_of(path).read_bytes())
    journal[-records.frames[10:].nbytes + 20] ^= 0xFF
    journal_of(path).write_bytes(journal)
    tear(path)
    said = repair(path)
    assert "rebuilt with 10 of 10 frames" in said
    wreck = Path(said.rpartition(" is '")[2].rstrip("'"))
    assert journal_of(wreck).read_bytes() == journal
    gsio.simulate(config, path, resume="must")
    with open_stack(path) as stack:
        assert list(problems(stack)) == []
        assert stack.frames == 60


def tear(path: Path) -> None:
    """Destroy what says where the frames are: the superblock of HDF5, or the metadata of the group."""
    if path.is_dir():
        (path / "zarr.json").write_text("{")
    else:
        with path.open("r+b") as file:
            file.write(bytes(96))


def test_frames_behind_a_torn_one_are_kept(make_config: Make, tmp_path: Path) -> None:
    config, path = make_config({**LONG, "run.checkpoint_every": 8}), tmp_path / "run.h5"
    kill_after(40, config, path)
    records = read_journal(path)
    assert records is not None
    known = len(records.frames)
    with path.open("r+b") as file:
        file.write(bytes(96))
        for frame in (12, known - 1):  # chunks of four frames, the last one among them
            file.seek(int(records.frames["places"]["offset"][frame, 1, 0]) + 5)
            file.write(b"\xff\xff\xff\xff")
    assert f"rebuilt with {known - 4} of {known} frames, of which damaged: 12-15" in repair(path)
    with open_stack(path) as stack:
        assert [problem.partition(":")[0] for problem in problems(stack)] == [f"frame {i}" for i in range(12, 16)]
        assert np.isnan(stack.v[12:16]).all()
        assert stack.frames == known - 4
        np.testing.assert_array_equal(stack.series("integrity/crc32c"), records.frames["integrity/crc32c"][:-4])
    assert f"{path}: nothing to repair" == repair(path)
    gsio.simulate(config, path, resume="must")
    with open_stack(path) as stack:
        assert [problem.partition(":")[0] for problem in problems(stack)] == [f"frame {i}" for i in range(12, 16)]
        assert stack.frames == 60


def test_frames_that_a_power_cut_tore_behind_the_checkpoint_are_computed_again(
    make_config: Make, tmp_path: Path
) -> None:
    config, path = make_config({**LONG, "run.checkpoint_every": "1h"}), tmp_path / "run.h5"
    kill_after(40, config, path)
    records = read_journal(path)
    assert records is not None
    with path.open("r+b") as file:
        file.seek(int(records.frames["places"]["offset"][12, 1, 0]) + 5)
        file.write(b"\xff\xff\xff\xff")
    gsio.simulate(config, path, resume="must")
    gsio.simulate(config, tmp_path / "whole.h5")
    assert contents(path) == contents(tmp_path / "whole.h5")


@pytest.mark.parametrize("name", ["run.h5", "run.zarr"])
def test_the_journal_of_another_output_is_refused(name: str, make_config: Make, tmp_path: Path) -> None:
    path, kept = tmp_path / name, tmp_path / f"kept-{name}"
    gsio.simulate(make_config({**LONG, "output.compression": "lz4"}), path)
    path.rename(kept)
    for beside in tmp_path.glob(f"{name}.*"):
        beside.unlink()
    kill_after(30, make_config({**LONG, "output.compression": "lz4", "initial.seed": 5}), path)
    path.rename(tmp_path / f"other-{name}")
    kept.rename(path)
    for use in (
        lambda: repair(path),
        lambda: gsio.simulate(make_config({**LONG, "output.compression": "lz4"}), path, resume="must"),
    ):
        with pytest.raises(DataError, match=r"belongs to another output.*nothing was changed"):
            use()
        with open_stack(path) as stack:
            assert list(problems(stack)) == []
            assert stack.frames == 60
    tear(path)  # its frames are nowhere in the journal, but the journal cannot be told from its own
    if path.is_file():
        with pytest.raises(DataError, match=r"none of the \d+ frames that are known can be decoded; nothing"):
            repair(path)
    assert journal_of(path).exists()


def test_a_checkpoint_of_another_output_is_not_used(make_config: Make, tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    gsio.simulate(make_config({**LONG, "initial.seed": 5}), path)
    foreign = checkpoints.paths_of(path)[0].read_bytes()
    gsio.simulate(make_config(LONG), path, overwrite=True)
    checkpoints.paths_of(path)[0].write_bytes(foreign)
    gsio.simulate(make_config({**LONG, "run.frames": 70}), path, resume="must")
    gsio.simulate(make_config({**LONG, "run.frames": 70}), tmp_path / "whole.h5")
    assert contents(path) == contents(tmp_path / "whole.h5")


@pytest.mark.parametrize("place", [0, 40, 5000])
def test_a_damaged_journal_is_named_and_a_readable_output_repaired(
    place: int, make_config: Make, tmp_path: Path
) -> None:
    config, path = make_config(LONG), tmp_path / "run.h5"
    kill_after(30, config, path)
    with open_stack(path) as stack:
        frames = stack.frames
    raw = bytearray(journal_of(path).read_bytes())
    raw[min(place, raw.index(b"\n") - 3)] ^= 1
    journal_of(path).write_bytes(raw)
    with pytest.raises(DataError, match=r"run.h5.journal' is damaged"):
        gsio.simulate(config, path, resume="must")
    assert f"rebuilt with {frames} of {frames} frames" in repair(path)
    gsio.simulate(config, path, resume="must")
    with open_stack(path) as stack:
        assert list(problems(stack)) == []
        assert stack.frames == 60


@pytest.mark.parametrize("repaired", [False, True])
def test_empty_frames_behind_the_committed_ones_are_repaired(repaired: bool, make_config: Make, tmp_path: Path) -> None:
    config, path = make_config(LONG), tmp_path / "run.h5"
    kill_after(30, config, path)
    records = read_journal(path)
    assert records is not None
    with h5py.File(path, "r+") as file:  # as a kill leaves it that comes between the length and the index of a flush
        for field in "uv":
            file[field].resize(len(records.frames) + 8, axis=0)
    if repaired:  # for whoever reads it as it is
        assert f"rebuilt with {len(records.frames)} of {len(records.frames)} frames" in repair(path)
        with open_stack(path) as stack:
            assert list(problems(stack)) == []
            assert stack.frames == len(records.frames)
    gsio.simulate(config, path, resume="must")
    with open_stack(path) as stack:
        assert list(problems(stack)) == []
        assert stack.frames == 60


def test_a_chunk_that_a_torn_flush_left_beyond_the_end_is_not_written_to(make_config: Make, tmp_path: Path) -> None:
    """The index of the chunks can be flushed before the length of the field, and before the end of the file."""
    config, path = make_config({**LONG, "output.compression": "none"}), tmp_path / "run.h5"
    kill_after(30, config, path)
    with open_stack(path) as stack:
        frames = stack.frames
    with path.open("rb") as read:
        end_of_file = slice(40, 48)  # in a superblock of version 0
        end = read.read(48)[end_of_file]
    with h5py.File(path, "r+") as file:
        assert file.id.get_create_plist().get_version()[0] == 0
        for field in "uv":
            file[field].resize(frames + 4, axis=0)
            file[field].id.write_direct_chunk((frames, 0, 0), np.ones(4 * 12 * 17, np.float32))
    content = path.read_bytes()
    shapes = [struct.pack("<6Q", length, 12, 17, 2**64 - 1, 12, 17) for length in (frames + 4, frames)]
    assert content.count(shapes[0]) == 2
    content = content.replace(*shapes)
    path.write_bytes(content[: end_of_file.start] + end + content[end_of_file.stop :])
    gsio.simulate(config, path, resume="must")
    with open_stack(path) as stack:
        assert list(problems(stack)) == []
        assert stack.frames == 60


@pytest.mark.parametrize("name", ["step", "time", "stats/v_mean"])
def test_a_series_that_is_shorter_than_the_fields_is_repaired(name: str, make_config: Make, tmp_path: Path) -> None:
    config, path = make_config({**LONG, "run.checkpoint_every": 8}), tmp_path / "run.h5"
    kill_after(30, config, path)
    records = read_journal(path)
    assert records is not None
    with h5py.File(path, "r+") as file:  # as a run leaves it that fails when it goes on at its last checkpoint
        file[name].resize(24, axis=0)
    assert f"{name}: expected {len(records.frames)} values, found 24" in repair(path)
    with open_stack(path) as stack:
        assert list(problems(stack)) == []
        assert stack.frames == len(records.frames)


@pytest.mark.parametrize("name", ["step", "stats/v_mean"])
def test_a_series_that_is_not_that_of_the_journal_is_repaired(name: str, make_config: Make, tmp_path: Path) -> None:
    config, path = make_config({**LONG, "run.checkpoint_every": 8}), tmp_path / "run.h5"
    kill_after(30, config, path)
    records = read_journal(path)
    assert records is not None
    with h5py.File(path, "r+") as file:  # as a kill leaves it when a run that goes on has cut it, but not the fields
        file[name][24:] = 0
    assert f"{name}: expected the values that its journal knows" in repair(path)
    with open_stack(path) as stack:
        assert list(problems(stack)) == []
        assert stack.frames == len(records.frames)
        np.testing.assert_array_equal(stack.series(name), records.frames[name])


def test_a_journal_of_another_file_is_written_anew(make_config: Make, tmp_path: Path) -> None:
    config, path = make_config({**LONG, "run.checkpoint_every": 8}), tmp_path / "run.h5"
    kill_after(30, config, path)
    stale = journal_of(path).read_bytes()
    tear(path)
    repair(path)
    journal_of(path).write_bytes(stale)  # as a kill leaves it that comes between the file and its journal
    kill_after(50, config, path, "must")
    tear(path)
    repair(path)
    with open_stack(path) as stack:
        assert list(problems(stack)) == []
        assert stack.frames >= 50


def test_a_journal_that_cannot_begin_anew_stays_what_it_was(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, path = make_config(LONG), tmp_path / "run.h5"
    kill_after(30, config, path)
    before = journal_of(path).read_bytes()
    write = os.write

    def torn(fd: int, data: Any) -> int:
        if before[:20] != bytes(data[:20]):
            return write(fd, data)
        write(fd, data[: len(data) // 2])
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "write", torn)
    with pytest.raises(StorageError, match="Input/output error"):
        gsio.simulate(config, path, overwrite=True)
    assert journal_of(path).read_bytes() == before
    assert [found.name for found in tmp_path.iterdir() if found.name.startswith(".")] == []


def test_a_torn_record_ends_a_journal(make_config: Make, tmp_path: Path) -> None:
    kill_after(30, make_config(LONG), tmp_path / "run.h5")
    path = journal_of(tmp_path / "run.h5")
    whole = read_journal(tmp_path / "run.h5")
    assert whole is not None
    raw = path.read_bytes()
    path.write_bytes(raw[:-10])
    torn = read_journal(tmp_path / "run.h5")
    assert torn is not None
    assert len(torn.frames) == len(whole.frames) - 1
    path.write_bytes(raw[:20])
    with pytest.raises(DataError, match="is damaged"):
        read_journal(tmp_path / "run.h5")
    path.write_bytes(b"")
    assert read_journal(tmp_path / "run.h5") is None


def test_there_is_nothing_to_repair_in_an_intact_file_and_no_way_without_a_journal(
    make_config: Make, tmp_path: Path
) -> None:
    path = tmp_path / "run.h5"
    with pytest.raises(UsageError, match="does not exist"):
        repair(path)
    gsio.simulate(make_config(LONG), path)
    assert "nothing to repair" in repair(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"cannot be read .*there is no 'run.h5.journal'"):
        repair(path)
    assert [found.name for found in tmp_path.iterdir() if "journal" in found.name] == []


def test_two_runs_never_write_one_output(make_config: Make, tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    status = tmp_path / "run.h5.status.json"
    for text, who in (("", "'"), ('{"state": "running", "pid": 12, "host": "node7"}', "' \\(process 12 on node7\\)")):
        status.write_text(text)
        with Journal(path), pytest.raises(UsageError, match=f"another run writes .*run.h5{who}; wait"):
            gsio.simulate(make_config(LONG), path)
    gsio.simulate(make_config(LONG), path)


@pytest.mark.parametrize("slurm", [False, True])
def test_a_run_stops_in_time_and_goes_on(
    slurm: bool, make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, limit = tmp_path / "run.h5", {} if slurm else {"run.max_walltime": "0:00:05"}
    if slurm:
        monkeypatch.setenv("SLURM_JOB_END_TIME", "1700000000")
    with pytest.raises(Interrupted, match=r"stopped by the wall-time limit after \d+ of 100000000 frames.*--resume"):
        gsio.simulate(make_config({**LONG, **limit, "run.frames": 100_000_000}), path)
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    assert read_status(path)["state"] == "stopped"
    there = checkpoints.load(path)[0].frames
    with open_stack(path) as stack:
        assert stack.frames == there
    summary = gsio.simulate(make_config({**LONG, "run.frames": there + 8}), path, resume="must")
    assert summary is not None
    assert (summary.first, summary.frames) == (there, 8)


def test_fewer_frames_than_the_checkpoint_has_are_refused(make_config: Make, tmp_path: Path) -> None:
    path = tmp_path / "run.h5"

    def watch(progress: Progress) -> None:
        if progress.frames_committed:
            raise Interrupted("stopped by the test")

    with pytest.raises(Interrupted, match="stopped by the test"):
        gsio.simulate(make_config({**LONG, "run.frames": 100_000_000}), path, watch=watch)
    there = checkpoints.load(path)[0].frames
    with pytest.raises(UsageError, match=f"expected at least {there}, which are committed, got 7"):
        gsio.simulate(make_config({**LONG, "run.frames": 7}), path, resume="must")
    assert journal_of(path).exists()


def test_an_output_that_vanishes_ends_the_run(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gsio.run.limits.SPACE_SECONDS", 0.0)
    path, seen = tmp_path / "run.h5", []

    def watch(progress: Progress) -> None:
        seen.append(progress)
        path.unlink(missing_ok=True)

    with pytest.raises(StorageError, match="deleted, renamed or replaced"):
        gsio.simulate(make_config({**LONG, "run.frames": 100_000_000}), path, watch=watch)
    assert seen


def test_a_disk_that_will_be_full_is_told(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr("gsio.machine.shutil.disk_usage", lambda path: usage)
    gsio.simulate(make_config(LONG), tmp_path / "run.h5")
    assert "the disk may become full" in capsys.readouterr().err


def test_the_status_is_there_from_the_start_and_says_how_the_run_ended(make_config: Make, tmp_path: Path) -> None:
    path, seen = tmp_path / "run.h5", []
    gsio.simulate(make_config(LONG), path, watch=lambda progress: seen.append(read_status(path)))
    assert seen[0]["state"] == "running"
    assert (seen[0]["pid"], seen[0]["frames"]) == (os.getpid(), 60)
    assert {key: read_status(path)[key] for key in ("state", "frame", "frames")} == {
        "state": "complete", "frame": 60, "frames": 60,
    }  # fmt: skip
    assert list(follow(path)) == ["complete after 60 of 60 frames"]
    with pytest.raises(DataError, match="no run has left"):
        next(follow(tmp_path / "other.h5"))


def test_a_watcher_sees_committed_frames_without_opening_the_file(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.h5"
    kill_after(30, make_config(LONG), path)
    status = read_status(path) | {"state": "running", "pid": 2**22 - 1}
    (tmp_path / "run.h5.status.json").write_text(json.dumps(status))
    path.write_bytes(b"torn")
    records = read_journal(path)
    assert records is not None
    frames = len(records.frames)
    first, last = follow(path)
    assert first.startswith(f"frame {frames} of 60, step {3 * frames}, u ")
    assert last.startswith("killed after")


def test_prometheus_reads_the_rates(make_config: Make, tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client")
    found = []
    with socket_free() as port, metrics(port) as show:

        def watch(progress: Progress) -> None:
            show(progress)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
                found.append(page.read().decode())

        gsio.simulate(make_config(LONG), tmp_path / "run.h5", watch=watch)
    assert "gsio_steps_per_second" in found[0]
    assert "gsio_frames" in found[0]


@contextmanager
def socket_free() -> Any:
    """Give a port that is free."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    yield port


@pytest.mark.parametrize(
    ("value", "expected"),
    [("15m", (0, 900.0)), ("90s", (0, 90.0)), ("1.5h", (0, 5400.0)), (50, (50, 0.0)), ("0", (0, 0.0))],
)
def test_intervals(value: Any, expected: tuple[int, float]) -> None:
    assert parse_interval("run.checkpoint_every", value) == expected


def test_bad_intervals_and_limits_are_refused(make_config: Make) -> None:
    assert parse_walltime("run.max_walltime", "1:30:05") == 5405.0
    for key, value in (
        ("run.checkpoint_every", "soon"), ("run.checkpoint_every", "1.5"), ("run.checkpoint_every", -1),
        ("run.max_walltime", "90"), ("run.max_walltime", "1:75:00"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=rf"{key}: expected"):
            make_config({key: value})


def test_sigusr1_asks_for_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    options = ["-r", "64", "-c", "64", "-n", "100000000", "-e", "1", "--backend", "numpy", "--log-format", "json"]
    run = subprocess.Popen(
        [sys.executable, "-m", "gsio", "run", *options, "-o", str(path)], stderr=subprocess.PIPE, text=True
    )
    assert run.stderr is not None
    events = (json.loads(line)["event"] for line in run.stderr if line.startswith("{"))
    try:
        assert next(event for event in events if "disk" not in event) == "run started"
        while not path.with_name("run.h5.status.json").exists():  # the run listens by then
            assert run.poll() is None
        os.kill(run.pid, 10)
        assert next(event for event in events if event != "progress") == "checkpoint written"
        assert len(checkpoints.load(path)) == 1
    finally:
        run.terminate()
        run.communicate(timeout=DEADLINE)
    assert run.returncode == 75
    with open_stack(path) as stack:
        assert stack.frames == checkpoints.load(path)[0].frames
