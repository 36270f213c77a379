"""FrameWriter: any loop that owns arrays saves its frames in the files of gsio, without waiting for the storage."""

import atexit
import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import cached_property
from operator import index
from pathlib import Path
from time import perf_counter as clock
from types import TracebackType
from typing import Any, get_args

import numpy as np
from msgspec.structs import asdict, replace

from gsio.compute.staging import Plane, can_hold, plane_of
from gsio.config import AUTO, one_of, parse_bytes
from gsio.config.units import shortened
from gsio.errors import DataError, GsioError, UsageError, storage_errors
from gsio.frames.content import Content, Dtype, axes_of, quantities_of, quantity_of
from gsio.frames.metadata import attributes_of_caller
from gsio.log import configure_unless_done, log
from gsio.reader import Stack
from gsio.run import checkpoints, trees
from gsio.run.appender import Appender
from gsio.run.output import ARGUMENTS, Resume, check_output, place_of, restart
from gsio.run.plan import content_with_codec
from gsio.run.summary import Summary
from gsio.streams import say
from gsio.writer.formats import format_of
from gsio.writer.journal import Journal

Described = Mapping[str, Any]  # the words "long_name" and "units"


class FrameWriter:
    """A file or Zarr group that grows by the frames that a loop appends; a context manager that closes it.

    `append` copies a frame and returns. Threads compress and write the frames, in order, and `append` waits only where
    all blocks of the pool are full. The file is one of `gsio run`: `gsio info`, `verify`, `repair`, `export` and `view`
    work on it, also while the loop goes on. Several threads may call the methods.

    Parameters
    ----------
    path
        The file or folder to make; its ending, .h5, .hdf5 or .zarr, names the format.
    shape
        The shape of a frame, one to four axes.
    fields
        The names of the fields of a frame: "v", "u,v", a sequence of names, or a mapping from each name to its
        "long_name" and "units".
    dtype
        The type of the stored values; None: that of the first frame. Floats can be stored as "uint8" or "uint16",
        which stand for 0 to 1. The series stats/NAME_error has the largest error of each frame that is not stored
        exactly.
    coords
        A mapping from the name of each axis to its evenly spaced coordinates, or to (coordinates, {"units": …}).
    time
        The "long_name" and "units" of the time that `append` gets.
    compression, level, keep_bits, shard_frames, pyramid
        As in the section `output` of a configuration.
    attrs
        More attributes of the file as a whole: texts, numbers, and lists of these. A file that goes on keeps its own.
    resume
        Go on with the output at `path`: "auto" begins a missing one, "must" raises UsageError. `checkpoint` then has
        the state to go on from, and `len` the number of its frame.
    discard_after
        With `resume="must"`: keep only this number of the committed frames.
    overwrite
        Replace the file, or the Zarr group of gsio, at `path`, which is an error otherwise.
    memory
        The most memory of the blocks in which frames wait, such as "512MiB"; by default it fits the machine.
    threads
        Threads that encode; 0: one for each core.

    Attributes
    ----------
    checkpoint
        The state that `save` got last, of which the output has all frames; None if there is none.

    Raises
    ------
    UsageError
        An argument cannot be used, the output exists, or another program writes it.
    DataError
        The output or its checkpoint is damaged, or holds other frames than these arguments say.
    StorageError
        The output cannot be opened, or the one that is extended cannot be made whole; no frame is lost.
    """

    def __init__(
        self,
        path: Path | str,
        shape: Sequence[int],
        *,
        fields: str | Sequence[str] | Mapping[str, Described] = "v",
        dtype: Any = None,
        coords: Mapping[str, Any] | None = None,
        time: Described | None = None,
        compression: str = AUTO,
        level: int = 1,
        keep_bits: int = 0,
        shard_frames: int = 0,
        pyramid: int = 0,
        attrs: Mapping[str, Any] | None = None,
        resume: Resume = "no",
        discard_after: int | None = None,
        overwrite: bool = False,
        memory: str = "",
        threads: int = 0,
    ) -> None:
        configure_unless_done()
        self.path = place_of(path, resume)
        self._began, self._process = clock(), os.getpid()
        self._overwrite, self._threads, self._memory = overwrite, threads, memory
        if resume not in get_args(Resume):
            raise UsageError(f"resume: expected {one_of(get_args(Resume))}, got {shortened(resume)}")
        how: dict[str, Any] = {"overwrite": overwrite, "resume": resume, "discard_after": discard_after}
        how["words"] = ARGUMENTS
        check_output(self.path, **how)
        if memory:
            parse_bytes("memory", str(memory))
        if not isinstance(threads, int) or threads < 0:
            raise UsageError(f"threads: expected 0 or more, got {shortened(threads)}")
        self._attributes = attributes_of_caller({} if attrs is None else attrs)
        self._dtype = None if dtype is None else _name_of(dtype)
        kind: Any = self._dtype or "float32"
        try:
            content = Content(
                fields=quantities_of(fields), axes=axes_of(shape, coords), precision=kind, store=kind,
                keep_bits=keep_bits, compression=compression, level=level, shard_frames=shard_frames, pyramid=pyramid,
                time=quantity_of("time", {} if time is None else time),
            ).checked()  # fmt: skip
        except ValueError as error:
            raise UsageError(str(error)) from None
        self._content = content_with_codec(content, self.path)
        with storage_errors(self.path, "states"), ExitStack() as opened:
            self._journal = opened.enter_context(Journal(self.path, ARGUMENTS.output))
            self._before = restart(self.path, self._journal, self._check_same, checkpoints.load_states, **how)
            self._release = opened.pop_all()  # unlocks the journal
        self._lock = threading.RLock()  # of all below
        self._open: Appender | None = None  # from the first frame on, whose dtype is that of the output
        self._where = ""  # the arrays of the first frame are
        self._kinds: list[Any] = []  # of the last frame: the dtype and the device of each array
        self._inside = threading.Lock()  # while the thread that has `_lock` is inside a call
        self._closed, self._seconds = False, 0.0
        atexit.register(self._exit)

    @property
    def frames_committed(self) -> int:
        """The number of frames that the output holds."""
        if self._open is not None:
            return self._open.session.frames_committed
        return self._before.frames if self._before is not None else 0

    @property
    def waited_seconds(self) -> float:
        """The seconds for which `append` has waited for a free block."""
        return self._open.session.trace.wait.total if self._open is not None else 0.0

    @cached_property
    def checkpoint(self) -> Any:
        """The state that `save` got last, of which the output has all frames; None if there is none."""
        state = self._before.checkpoint if self._before is not None else None
        return None if state is None else trees.restore(state.structure, state.leaves)

    def __len__(self) -> int:
        """Return the number of frames before the next one: those before `checkpoint`, and those appended since."""
        if self._open is not None:
            return self._open.appended
        return self._before.computed_from if self._before is not None else 0

    def __bool__(self) -> bool:
        """Return True, also before the first frame."""
        return True

    def append(self, /, *planes: Any, time: float | None = None, step: int | None = None, **named: Any) -> None:
        """Save a frame: one array for each field, in their order or by name.

        Each array, of any library that shares arrays by ``__array__`` or DLPack, may be changed or donated as soon as
        `append` returns. `time` and `step` are those of the frame; by default both are its number.

        Raises
        ------
        UsageError
            The arrays are not those of a frame of this output, or the output is closed.
        StorageError
            The storage has failed; the message has the number of frames that are safe.
        DataError
            A frame that the output has already differs from it.
        """
        self._require_open()
        arrays, moment = self._planes(planes, named), _moment(time, step)
        with self._lock, self._alone():
            kinds = [(array.dtype, array.device) for array in arrays]
            if kinds != self._kinds:
                self._check_kinds(arrays)
                self._kinds = kinds
            self._opened(arrays[0].dtype).put(arrays, *moment)

    def flush(self) -> None:
        """Return when the disk has all frames that were appended; raises as `append`."""
        self._require_open()
        with self._lock, self._alone():
            self._require_open()
            if (opened := self._open) is not None:
                opened.submit()
        if opened is not None:
            opened.flush()  # other threads can append meanwhile

    def save(self, state: Any) -> None:
        """Keep the state after the last frame, so that the loop can go on from it: a dict, list, tuple or other tree.

        The arrays of `state` are copied. The copy becomes the checkpoint of the output when the disk has its frames.
        Raises UsageError if the state has something that no checkpoint can hold, and else as `append`.
        """
        self._require_open()
        structure, leaves = trees.flatten(state)
        with self._lock, self._alone():
            if self._open is None and self._before is None:
                raise UsageError("save: expected a frame before the first state; append the frame first")
            opened = self._opened(np.dtype(self._content.precision))
            opened.save(checkpoints.SavedState(opened.output_id, len(self), structure, leaves))

    def summary(self) -> Summary:
        """Return what the loop took so far, and what bounds it."""
        if self._open is None:
            raise UsageError("summary: expected a frame; append one first")
        return self._open.summary(self._seconds or clock() - self._began)

    def close(self) -> None:
        """Commit all frames and close the output as "complete"; raises as `append`. A second call does nothing."""
        self._close("complete")

    def __enter__(self) -> "FrameWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if kind is None:
            self._close("complete")
            return
        try:
            self._close("stopped")
        except GsioError as other:
            log.warning(f"{self.path}: {other}")  # the error of the loop is the one to raise

    def __repr__(self) -> str:
        shape = " × ".join(map(str, self._content.shape))
        state = "closed" if self._closed else "open"
        names = ", ".join(self._content.fields)
        return f"<gsio.FrameWriter {self.path}: {len(self)} frames of {names}, {shape}, {state}>"

    def _planes(self, planes: Sequence[Any], named: Mapping[str, Any]) -> list[Plane]:
        """Return the arrays of a frame in the order of the fields; raise UsageError if they are not those."""
        names = list(self._content.fields)
        is_dict = any(isinstance(plane, Mapping) for plane in planes)
        if is_dict or (named and (planes or named.keys() != set(names))) or (not named and len(planes) != len(names)):
            got = ", ".join([*map(_kind, planes), *named]) or "none"
            raise UsageError(f"append: expected an array for each of {', '.join(names)}, got {got}")
        arrays = [plane_of(array) for array in planes or (named[name] for name in names)]
        for name, array in zip(names, arrays, strict=True):
            if array.shape != self._content.shape:
                raise UsageError(f"append: expected {name} of the shape {self._content.shape}, got {array.shape}")
        return arrays

    def _check_kinds(self, arrays: Sequence[Plane]) -> None:
        """Raise UsageError if the output cannot hold arrays like these; the first frame opens the output."""
        self._opened(np.result_type(*(array.dtype for array in arrays)), arrays[0])
        self._where = self._where or arrays[0].where
        if others := [array.where for array in arrays if array.where != self._where]:
            raise UsageError(
                f"append: expected arrays in {self._where}, as in the first frame, got one in {others[0]}; copy it"
            )
        expected = self._content.precision
        wrong = next((array for array in arrays if not can_hold(np.dtype(expected), array.dtype)), None)
        if wrong is not None:
            raise UsageError(
                f"append: expected values that {expected} can hold, as in the first frame, got {wrong.dtype}; "
                f"convert them, or convert the first frame to {np.result_type(expected, wrong.dtype)}"
            )

    def _alone(self) -> threading.Lock:
        """Return the lock of one call; raise UsageError where a signal handler comes in the middle of another call."""
        if self._inside.locked():
            raise UsageError("a signal handler called the writer inside another call; let it set a flag for the loop")
        return self._inside  # no function of Python releases it: Ctrl-C could come there

    def _require_open(self) -> None:
        if os.getpid() != self._process:  # a process that was forked has none of the threads
            raise UsageError(f"'{self.path}' is open in process {self._process}; expected a call in that process")
        if self._closed:
            raise UsageError(f"'{self.path}' is closed; expected an open writer")

    def _opened(self, found: np.dtype[Any], first: Plane | None = None) -> Appender:
        """Return the output for frames of a dtype; the first call creates it, or opens the one that is extended."""
        self._require_open()
        if self._open is None:
            content = self._content
            if self._before is None:
                content = _with_dtype(content, found, self._dtype, self.path)
            library, device = (first.library, first.device) if first is not None else ("", None)
            self._open = Appender(
                self.path, content, self._journal, self._before, self._attributes, library, device,
                self._lock, overwrite=self._overwrite, memory=self._memory, threads=self._threads,
            )  # fmt: skip
            self._content = content
        return self._open

    def _check_same(self, stack: Stack) -> None:
        """Raise DataError unless this writer can extend an output; take from it what no argument says."""
        if "config" in stack.attributes:
            raise DataError(f"resume: '{self.path}' is an output of 'gsio run', which goes on with it; choose another")
        there = stack.content
        here = asdict(self._content) | {"precision": there.precision}
        if self._dtype is None:
            here["store"] = there.store
        arguments = {"axes": "coords" if self._content.shape == there.shape else "shape", "store": "dtype"}
        differing = [name for name, value in here.items() if value != getattr(there, name)]
        if differing or [*self._content.fields] != [*there.fields]:  # in this order: arrays come without names
            what = ", ".join(arguments.get(name, name) for name in differing) or "order of its fields"
            raise DataError(
                f"resume: '{self.path}' differs in its {what}; open the writer as before, or choose another name"
            )
        self._content = there

    def _close(self, status: str) -> None:
        if os.getpid() != self._process:  # a process that was forked has neither the threads nor the output
            return
        with self._lock, self._alone():
            if self._closed:
                return
            atexit.unregister(self._exit)
            with storage_errors(self.path, "frames"), self._release:
                try:
                    if self._open is None and self._before is not None and status == "complete":
                        if self._before.is_complete:
                            self._journal.remove()  # a kill has left it
                        else:  # a kill came after the last frame
                            self._opened(np.dtype(self._content.precision))
                finally:
                    self._closed = True
                if self._open is not None:
                    self._open.close(status)
            self._seconds = clock() - self._began

    def _exit(self) -> None:
        """Close the output at the end of the program, and say so."""
        if os.getpid() != self._process:
            return
        with suppress(GsioError):
            self._close("stopped")
        say(f"gsio: '{self.path}' was not closed by the program; {self.frames_committed} frames are safe", err=True)


def _moment(time: Any, step: Any) -> tuple[float | None, int | None]:
    """Return the time and the step of a frame as a file holds them; raise UsageError for other values."""
    try:
        if step is None or -(2**63) <= index(step) < 2**63:
            return None if time is None else float(time), None if step is None else index(step)
    except (TypeError, ValueError):
        pass
    raise UsageError(
        f"append: expected a number as time and a whole one as step, got {shortened(time)} and {shortened(step)}"
    )


def _with_dtype(content: Content, found: np.dtype[Any], wanted: str | None, path: Path) -> Content:
    """Return `content` for frames of a dtype, stored as they are or as `wanted`."""
    if wanted is not None and can_hold(np.dtype(wanted), found):
        found = np.dtype(wanted)
    if found == np.float16 and wanted is None and not format_of(path).float16:
        found = np.dtype(np.float32)
    try:
        return content_with_codec(replace(content, precision=found.name, store=wanted or found.name).checked(), path)
    except ValueError:
        raise UsageError(
            f"append: expected values that can be stored as dtype='{wanted}', got {found.name}; convert the frames"
        ) from None


def _kind(plane: Any) -> str:
    """Return what the caller gave as an array, for a message."""
    return "a dict, which append(**frame) takes" if isinstance(plane, Mapping) else "an array"


def _name_of(dtype: Any) -> str:
    """Return the name of a dtype of the caller; raise UsageError if no file can hold its values."""
    with suppress(TypeError):
        dtype = np.dtype(dtype).name.replace("bool", "uint8")
    if dtype not in get_args(Dtype):
        raise UsageError(f"dtype: expected one of {', '.join(get_args(Dtype))}, got {shortened(dtype)}")
    return str(dtype)
