"""Starts runs and loops: a process that has imported everything, and forks one for each request, which saves time.

A request is a line of JSON on stdin; the answers are the id of the process that does it, and later how it ended.
"""

import ctypes
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zarr
from decoding import decodable
from loop import loop

import gsio.run.repair
import gsio.run.simulate
import gsio.writer.hdf5
import gsio.writer.zarr  # noqa: F401 - imported here, so that no run has to
from gsio.cli import main
from gsio.reader import open_stack
from gsio.reader.verify import problems
from gsio.testing import small_blocks


def look(path: str, target: str) -> int:
    """Put what stock readers find in an output into an .npz, and say what is wrong with it; a wreck may kill us."""
    import hdf5plugin  # noqa: F401 - for lz4 and zstd in HDF5

    root: Any = zarr.open_group(path, mode="r") if Path(path).is_dir() else h5py.File(path, "r")
    frames = root["v"].shape[0]
    with open_stack(Path(path)) as stack:
        wrong = list(problems(stack))
    sys.stderr.write("\n".join(wrong))
    np.savez(target, **{name: root[name][:frames] for name in ("u", "v", "time", "step")})
    return 1 if wrong else 0


def serve(request: dict[str, Any]) -> int:
    """Be the process of one request, and return its exit code."""
    os.setsid()
    for number, name in ((0, os.devnull), (1, request["log"]), (2, request["log"])):
        fd = os.open(name, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(fd, number)
        os.close(fd)
    if request.get("largest"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["largest"], resource.RLIM_INFINITY))
    library = ctypes.CDLL(None)
    if fault := request.get("fault"):
        library.inject(os.fsencode(fault["folder"]), *map(ctypes.c_int, (fault["kinds"],)), ctypes.c_long(fault["nth"]),
                       fault["action"], fault["lasts"])  # fmt: skip
    if request.get("seconds_back"):
        library.turn_back(ctypes.c_long(request["seconds_back"]))
    if "threads" in request:
        library.allow_threads(ctypes.c_long(request["threads"]))
    for what, error in request.get("lacking", {}).items():
        library.lack(int(what), error)
    if request.get("no_space_told"):
        library.tell_no_space()
    if request.get("no_proc"):
        library.lack_proc()
    arguments = request["arguments"]
    if arguments[0] == "look":
        return look(*arguments[1:])
    if arguments[0] == "decode":
        path, how, whole, target = arguments[1:]
        Path(target).write_text(json.dumps(decodable(Path(path), how, Path(whole))))
        return 0
    sys.argv = ["gsio", *arguments]
    code = loop(arguments[1:]) if arguments[0] == "loop" else main()
    if fault:
        calls = {1 << kind: library.calls_of(1 << kind) for kind in range(5)}
        Path(request["log"]).with_suffix(".calls").write_text(json.dumps(calls))
    return code


def answer(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


frame = 24 * 32 * 4
small_blocks(block_bytes=4 * 2 * frame, chunk_bytes=2 * frame)  # many blocks in a short run
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        sys.exit(serve(json.loads(line)))
    answer(pid)
    answer(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
