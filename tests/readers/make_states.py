"""Makes outputs of every compression and store in every state, for `test_states`; a process of its own.

It forks a process for each run, which has imported everything. A run that goes on is one that stopped itself, by
SIGSTOP, right after a commit. A line on stdin kills all of these, and an answer on stdout says that they are dead.
"""

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import structlog

import gsio
import gsio.run.simulate
import gsio.writer.hdf5
import gsio.writer.zarr.store
import gsio.writer.zarr.writer
from gsio.testing import small_blocks

ROWS, COLS, FRAMES, FEW = 6, 9, 60, 8
SIGNALS = {"running": signal.SIGSTOP, "stopped": signal.SIGTERM, "complete": None}
COMPRESSIONS = {".h5": ("deflate", "lz4", "zstd", "none"), ".zarr": ("lz4", "zstd", "none")}
STORES = {".h5": ("computed", "uint8", "uint16"), ".zarr": ("computed", "float16", "uint8", "uint16")}
NAMES = [
    f"{compression}-{store}{ending}"
    for ending in COMPRESSIONS
    for compression in COMPRESSIONS[ending]
    for store in STORES[ending]
]


def run(path: Path, number: int | None) -> None:
    """Run until some frames are committed, then send this process a signal; or to the end."""
    sent, heard = threading.Event(), threading.Event()

    def look(logger: Any, method: str, event: structlog.typing.EventDict) -> str:
        if method == "warning":  # which says that the signal has come
            heard.set()
        elif event["event"] == "block committed" and event["frame"] >= FEW and number is not None and not sent.is_set():
            sent.set()
            os.kill(os.getpid(), number)
            heard.wait()  # this is the thread of the writer: what is not yet computed will not be
        raise structlog.DropEvent

    structlog.configure(processors=[look], wrapper_class=structlog.make_filtering_bound_logger(10))
    compression, _, store = path.stem.partition("-")
    plane = ROWS * COLS * {"computed": 4, "float16": 2, "uint16": 2, "uint8": 1}[store]
    small_blocks(block_bytes=4 * 2 * plane, chunk_bytes=2 * plane)  # some blocks in a short run
    changes = {"output.compression": compression, "output.store": store, "output.fields": "u,v"}
    sizes = {"grid.rows": ROWS, "grid.cols": COLS, "run.frames": FRAMES, "run.steps_per_frame": 3}
    kind = {"run.backend": "numpy", "run.threads": 1, "output.threads": 1, "initial.kind": "noise"}
    gsio.simulate(gsio.load_config(overrides=changes | sizes | kind, environ={}), path)


def main(folder: Path) -> None:
    gsio.writer.zarr.writer.PUBLISH_SECONDS = 0
    os.fsync = gsio.writer.zarr.store.Folder.sync = lambda _: None  # type: ignore[method-assign] - a disk can take seconds
    alive = []
    for state, number in SIGNALS.items():
        (folder / state).mkdir()
        for name in NAMES:
            pid = os.fork()
            if pid == 0:
                os.dup2(os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
                try:
                    run(folder / state / name, number)
                except gsio.GsioError as error:
                    os._exit(0 if state == "stopped" and isinstance(error, gsio.errors.Interrupted) else 1)
                os._exit(0 if state == "complete" else 1)
            _, status = os.waitpid(pid, os.WUNTRACED)
            if state == "running" and os.WIFSTOPPED(status):
                alive.append(pid)
            elif state == "running" or os.waitstatus_to_exitcode(status):
                sys.exit(f"the run of {state}/{name} ended with {status}: {(folder / 'log').read_text()}")
    for answer in ("made", "killed"):
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()
        sys.stdin.readline()
        while alive:
            pid = alive.pop()
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


main(Path(sys.argv[1]))
