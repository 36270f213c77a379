"""Checkpoints: the whole state of a run after some frame, from which it goes on as if it had never stopped.

A checkpoint is an .npz beside the output: the output and frame that it belongs to, and u, v and the configuration of a
run, or the state of another loop. It is written under a temporary name, synced and renamed; the previous one stays as
``_prev``. A CRC-32 of each array shows damage.
"""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from operator import index
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from gsio.config import Config
from gsio.errors import DataError
from gsio.files import publish, set_aside, sync_folder, temporary_beside
from gsio.inputs import open_regular, read_npz
from gsio.log import log
from gsio.model.gray_scott import Field
from gsio.reader import Stack
from gsio.run.trees import KINDS

# Keys that may differ between the sessions of one run: how long it is, where it is computed, and when it stops.
KEYS_THAT_MAY_CHANGE = {
    "run.frames", "run.backend", "run.device", "run.devices", "run.threads", "run.checkpoint_every", "run.max_walltime",
    "output.threads", "output.memory",
}  # fmt: skip


class Checkpoint(NamedTuple):
    """The state after `frames` frames: u and v of the layout's shape, in the precision of the run.

    `output_id` is the identity of the output, `config` the configuration as TOML, and `rates` the crc32c of feed and
    kill, which may come from files.
    """

    output_id: str
    frames: int
    u: NDArray[Any]
    v: NDArray[Any]
    config: str
    rates: int


class SavedState(NamedTuple):
    """The state of another loop after `frames` frames, as `gsio.run.trees.flatten` makes `structure` and `leaves`."""

    output_id: str
    frames: int
    structure: str
    leaves: list[NDArray[Any]]


def paths_of(output: Path) -> tuple[Path, Path]:
    """Return the paths of the newest checkpoint of an output and of the previous one."""
    return Path(f"{output}.checkpoint.npz"), Path(f"{output}.checkpoint_prev.npz")


def save(output: Path, checkpoint: Checkpoint | SavedState) -> None:
    """Put a checkpoint beside `output`, durably; raises OSError if storage fails, and the previous one stays.

    A file of another kind that has the name of a checkpoint gets another name.
    """
    values = checkpoint._asdict()
    values |= {f"leaf_{i}": leaf for i, leaf in enumerate(values.pop("leaves", ()))}
    path, previous = paths_of(output)
    temporary = temporary_beside(path)
    try:
        with temporary.open("xb") as file:
            np.savez(file, allow_pickle=False, **values)
            file.flush()
            os.fsync(file.fileno())
        for taken in (path, previous):
            if os.path.lexists(taken) and not is_checkpoint(taken):
                log.warning(f"'{taken}' is no checkpoint, and is kept as '{set_aside(taken).name}'")
        publish("--output", temporary, path, replaces=is_checkpoint, keep=previous)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def load(output: Path, output_id: str | None = None) -> list[Checkpoint]:
    """Return the intact checkpoints of a run, or those that name `output_id`, the newest first.

    Raises DataError if all checkpoints are damaged.
    """
    return [each for each in _load(output, output_id) if isinstance(each, Checkpoint)]


def load_states(output: Path, output_id: str | None = None) -> list[SavedState]:
    """Return the intact states that name `output_id`, the newest first; raises as `load`."""
    return [each for each in _load(output, output_id) if isinstance(each, SavedState)]


def _load(output: Path, output_id: str | None) -> list[Checkpoint | SavedState]:
    found, damaged = [], []
    for path in paths_of(output):
        try:
            found.append(_read(path))
        except FileNotFoundError:
            continue
        except Exception as error:  # NumPy and zipfile tell of a damaged file in many ways
            damaged.append(f"'{path}' is damaged ({error})")
    if damaged and not found:
        raise DataError(f"{' and '.join(damaged)}; delete them to compute again from the first frame, the frames stay")
    return [each for each in found if output_id in (None, each.output_id)]


def _read(path: Path) -> Checkpoint | SavedState:
    # A checkpoint is not compressed: all arrays together cannot be larger than the file.
    values: dict[str, Any] = read_npz(path, kinds=KINDS, compressed=False)
    output_id, frames = str(values["output_id"]), index(values["frames"].item())
    if "structure" in values:
        leaves = [values[f"leaf_{i}"] for i in range(len(values) - 3)]
        return SavedState(output_id, frames, str(values["structure"]), leaves)
    u, v = values["u"], values["v"]
    if u.dtype.kind not in "fiu" or (u.shape, u.dtype) != (v.shape, v.dtype):
        raise ValueError("u and v are not numbers of one shape and type")
    return Checkpoint(output_id, frames, u, v, str(values["config"]), index(values["rates"].item()))


def discard(output: Path, frames: int) -> None:
    """Delete, durably, the checkpoints that lie behind the first `frames` frames, which the output keeps."""
    for path in paths_of(output):
        with suppress(Exception):  # a damaged one is of no use
            if is_checkpoint(path) and read_npz(path, ["frames"], compressed=False)["frames"].item() > frames:
                path.unlink()
    sync_folder(output.parent)


def is_checkpoint(path: Path) -> bool:
    """Return whether `path` is a checkpoint: a zip file that begins with one of its arrays, or an empty file."""
    try:
        with open_regular(path, follow=False) as file:
            head = file.read(64)
    except OSError:
        return False
    end = 30 + int.from_bytes(head[26:28], "little")  # the name of the first array in zip's local header ends here
    name = head[30:end].decode(errors="replace")
    return not head or (head.startswith(b"PK\3\4") and name.removesuffix(".npy") in Checkpoint._fields)


def rates_checksum(feed: NDArray[np.float64], kill: NDArray[np.float64]) -> int:
    """Return the crc32c of the feed and kill rates of a run."""
    return int(crc32c(np.ascontiguousarray(kill).tobytes(), crc32c(np.ascontiguousarray(feed).tobytes())))


def check_same_run(config: Config, before: Stack) -> None:
    """Raise DataError, which names the keys, unless a run of `config` can extend the output `before`."""
    now, then = (_flat(msgspec.to_builtins(of)) for of in (config, before.config))
    differing = [key for key in now if key not in KEYS_THAT_MAY_CHANGE and now[key] != then.get(key)]
    if differing:
        keys = ", ".join(f"{key} = {then.get(key)} there, {now[key]} now" for key in differing)
        raise DataError(
            f"--resume: '{before.path}' has another configuration: {keys}; use the same, or another --output"
        )


def _flat(layer: dict[str, Any]) -> dict[str, Any]:
    return {f"{section}.{key}": value for section, values in layer.items() for key, value in values.items()}


class Checkpointer:
    """Takes snapshots of the state when a checkpoint is due, and makes the functions that save them.

    The solver's thread takes, between two blocks. The session of the output saves, once the frames before a snapshot
    are safe. No snapshot is taken while the one before is not saved yet, except for the last one.

    Parameters
    ----------
    first
        The frame from which the run computes.
    every
        Frames, and seconds, from one checkpoint to the next; 0: neither counts.
    snapshot
        Keeps the state as it is now, and returns a function that waits for u and v. None: there are no checkpoints.
    save
        Makes a checkpoint of u and v after a number of frames.
    """

    def __init__(
        self,
        first: int = 0,
        every: tuple[int, float] = (0, 0.0),
        snapshot: Callable[[], Callable[[], tuple[Field, Field]]] | None = None,
        save: Callable[[int, Field, Field], None] = lambda frames, u, v: None,
    ) -> None:
        self._every_frames, self._every_seconds = every
        self._snapshot, self._save = snapshot, save
        self._taken, self._taken_at = first, time.monotonic()
        self._asked = False
        self._saving = False  # a snapshot waits, or is being saved

    def ask(self) -> None:
        """Take a snapshot before the next block."""
        self._asked = True

    def is_due(self, first: int) -> bool:
        """Return whether a checkpoint after `first` frames is due; the answer to a request is given once."""
        if self._saving or first == self._taken:
            return False
        now = time.monotonic()
        late = 0 < self._every_frames <= first - self._taken or 0 < self._every_seconds <= now - self._taken_at
        asked, self._asked = self._asked, False
        return late or asked

    def take(self, first: int) -> Callable[[], None] | None:
        """Take a snapshot of the state after `first` frames, and return the function that makes a checkpoint of it.

        The solver does not wait for the snapshot. The result is None if there are no checkpoints.
        """
        if self._snapshot is None:
            return None
        self._taken, self._taken_at, self._saving = first, time.monotonic(), True
        fields = self._snapshot()

        def save() -> None:
            self._save(first, *fields())
            self._saving = False
            log.info("checkpoint written", frame=first)

        return save
