"""Damaged, foreign and malicious inputs of every command that reads: one line, exit code 2, 65 or 74, at once.

Each case makes an input and a command line from its number, so that any case can be repeated alone:
`python tests/test_hostile.py FOLDER NUMBER`. Many cases share a process, which says of each how long it took and how
much memory; a process that hangs or dies is one failed case.
"""

import contextlib
import ctypes
import io
import json
import os
import random
import re
import resource
import select
import shutil
import socket
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
from PIL import Image

import gsio
from gsio.cli import main
from gsio.errors import Interrupted
from gsio.run.progress import Progress
from gsio.testing import small_blocks

SEED = 18
SHORT, LONG = 88, 128  # cases; LONG: for each further round
DEADLINE = 10.0  # seconds
MOST_NBYTES = 512 << 20  # beyond what the process held before
CODES = {0, 2, 65, 74}
SMALL = {
    "grid.rows": 12, "grid.cols": 17, "run.frames": 16, "run.steps_per_frame": 2, "run.backend": "numpy",
    "initial.kind": "noise", "output.fields": "u,v",
}  # fmt: skip
OUTPUTS: dict[str, dict[str, Any]] = {
    "deflate.h5": {"output.compression": "deflate"},
    "lz4.h5": {"output.compression": "lz4"},
    "none.h5": {"output.compression": "none"},
    "batch.h5": {"model.feed": [0.03, 0.04], "output.store": "uint8"},
    "lz4.zarr": {"output.compression": "lz4"},
    "shards.zarr": {"output.compression": "zstd", "output.shard_frames": 4},
    "none.zarr": {"output.compression": "none", "output.pyramid": 2},
}
STOPPED = ("stopped.h5", "stopped.zarr")  # with a journal, a checkpoint and a status
RUN = ["run", "-r", "12", "-c", "17", "-n", "2", "-e", "1", "--backend", "numpy", "-q", "-o", "new.h5"]
SLOW = {"run.frames": 10_000, "run.steps_per_frame": 20}  # of those that are stopped
BOMB = 1 << 30  # bytes that a few MB become


def stop(progress: Progress) -> None:
    """End the run that this function watches."""
    raise Interrupted("stopped by the test")


def make_outputs(folder: Path) -> None:
    """Make the intact outputs that cases damage."""
    for name, changes in OUTPUTS.items():
        gsio.simulate(gsio.load_config(overrides={**SMALL, **changes}, environ={}), folder / name)
    for name in STOPPED:
        config = gsio.load_config(overrides={**SMALL, **SLOW}, environ={})
        # Many blocks, so that a run which is to stop does so before its end.
        many = small_blocks(block_bytes=8 * 2 * 12 * 17 * 4, chunk_bytes=4 << 20)
        with many, contextlib.suppress(Interrupted):
            gsio.simulate(config, folder / name, watch=stop)


# What a case is made of. Each function works in the folder of its case, and returns the command line.


class Case:
    """A folder, and dice that fall the same way each time."""

    def __init__(self, outputs: Path, number: int) -> None:
        self.outputs = outputs
        self.dice = random.Random(f"{SEED} {number}")

    def copy(self, *names: str) -> Path:
        """Return the path of a copy of an output, one of `names`, with what lies beside it."""
        name = self.dice.choice(names)
        for path in self.outputs.glob(f"{name}*"):
            (shutil.copytree if path.is_dir() else shutil.copyfile)(path, path.name)
        return Path(name)

    def any_output(self) -> Path:
        return self.copy(*OUTPUTS, *STOPPED)

    def resume(self, path: Path) -> list[str]:
        """Return the command by which a stopped output gets a few more frames."""
        with np.load(f"{self.outputs / path}.checkpoint.npz") as intact:
            frames = int(intact["frames"]) + 4
        same = [f"--set={key}={value}" for key, value in (SMALL | SLOW | {"run.frames": frames}).items()]
        return ["run", *same, "-q", "--log-format", "text", "--resume", "-o", str(path)]

    def command(self, path: Path) -> list[str]:
        """Return a command that reads an output."""
        target = self.dice.choice(["t.h5", "t.zarr", "t.tif", "t.vtkhdf", "t.openpmd.h5"])
        reads = ["--set", "initial.kind=file", "--set", f"initial.path={path}"]
        return self.dice.choice([
            ["info", str(path)],
            ["verify", str(path)],
            ["verify", str(path)],
            ["export", str(path), target],
            ["export", str(path), target, "--frames=3:9", "--crop=2:9,3:14"],
            ["frames", str(path), "-o", self.dice.choice(["pictures", "one.png", "f%d.tif"]), "--colorbar"],
            ["movie", str(path), "-o", self.dice.choice(["t.mp4", "t.gif", "t.webm"]), "--timestamp"],
            [*RUN, *reads],
            *([["repair", str(path)], self.resume(path)] if "stopped" in path.name else []),
        ])  # fmt: skip

    def damage(self, path: Path) -> None:
        """Change some bytes of a file."""
        data = bytearray(path.read_bytes())
        dice, size = self.dice, len(data)
        where = dice.randrange(max(1, min(size, dice.choice([100, 4000, size]))))
        count = dice.choice([1, 4, 64, 1000])
        match dice.randrange(6):
            case 0:
                for _ in range(count if size else 0):
                    data[dice.randrange(size)] ^= 1 << dice.randrange(8)
            case 1:
                data[where : where + count] = bytes(len(data[where : where + count]))
            case 2:
                data[where : where + count] = b"\xff" * len(data[where : where + count])
            case 3:
                del data[where:]
            case 4:
                data[where : where + count] = dice.randbytes(len(data[where : where + count]))
            case 5:
                del data[where : where + count]
        path.write_bytes(data)

    def replace(self, path: Path) -> None:
        """Put something that is no regular file, or that holds nothing, in place of a file."""
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        match self.dice.randrange(8):
            case 0 | 1:
                os.mkfifo(path)
            case 2:
                with socket.socket(socket.AF_UNIX) as end:
                    end.bind(str(path))
            case 3:
                path.symlink_to("/dev/zero")
            case 4:
                path.symlink_to(path.name)
            case 5:
                path.mkdir()
            case 6:
                path.touch()
            case 7:
                with path.open("wb") as file:
                    file.truncate(1 << 40)  # a hole


def damaged_file(case: Case) -> list[str]:
    path = case.any_output()
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    case.damage(case.dice.choice(files))
    return case.command(path)


def damaged_head(case: Case) -> list[str]:
    """Change bytes where HDF5 has its metadata: around its signatures."""
    path = case.copy(*(name for name in (*OUTPUTS, *STOPPED) if name.endswith(".h5")))
    data = bytearray(path.read_bytes())
    marks = [found.start() for found in re.finditer(rb"TREE|SNOD|HEAP|GCOL|OHDR|FRHP|\x89HDF|BTHD", data)]
    for _ in range(case.dice.choice([1, 3, 20])):
        place = case.dice.choice(marks) + case.dice.randrange(200)
        if place < len(data):
            data[place] = case.dice.choice([0, 1, 255, case.dice.randrange(256)])
    path.write_bytes(data)
    return case.command(path)


def special_file(case: Case) -> list[str]:
    path = case.any_output()
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    likely = [p for p in files if p.name in ("zarr.json", "c.0", "c.0.0.0")] or files
    case.replace(case.dice.choice([path, case.dice.choice(files), case.dice.choice(likely)]))
    return case.command(path)


def special_beside(case: Case) -> list[str]:
    path = case.copy(*STOPPED)
    beside = case.dice.choice([".journal", ".status.json", ".checkpoint.npz", ".checkpoint_prev.npz"])
    (case.replace if case.dice.random() < 0.5 else _damage_if_there(case))(Path(f"{path}{beside}"))
    return case.dice.choice([["info", "--follow", str(path)], ["repair", str(path)], case.resume(path)])


def _damage_if_there(case: Case) -> Callable[[Path], None]:
    return lambda path: case.damage(path) if path.exists() else case.replace(path)


def hostile_status(case: Case) -> list[str]:
    path = case.copy(*STOPPED)
    beside = Path(f"{path}.status.json")
    status = json.loads(beside.read_bytes())
    mutate(case.dice, status)
    if status.get("state") == "running":
        status["state"] = "stopped"  # else it is rightly waited for
    beside.write_text(json.dumps(status))
    return ["info", "--follow", str(path)]


def hostile_journal(case: Case) -> list[str]:
    """Change the head of a journal, and give it the checksum that it needs."""
    path = case.copy(*STOPPED)
    beside = Path(f"{path}.journal")
    line, _, records = beside.read_bytes().partition(b"\n")
    head, end = json.JSONDecoder().raw_decode(line.decode())
    mutate(case.dice, head)
    text = json.dumps(head).encode()
    checksum = b" %08x" % _crc32c(text) if line[end:].strip() else b""
    beside.write_bytes(text + checksum + b"\n" + records)
    return case.dice.choice([["info", "--follow", str(path)], ["repair", str(path)], case.resume(path)])


def _crc32c(data: bytes) -> int:
    from crc32c import crc32c

    return int(crc32c(data))


VALUES: list[Any] = [
    None, True, -1, 0, 1, 2**31, 2**63, 10**400, -1.5, 1e308, "", "\x1b[31mred\x07", "a\0b", "\ud800", "x" * 100_000,
    [], {}, [[]], ["v"] * 1000, [2**40, 2**40, 2**40], {"name": "blosc"}, "float64", "|O", "<U9",
]  # fmt: skip


def mutate(dice: random.Random, tree: Any) -> None:
    """Change, remove or add a value somewhere in what JSON holds."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, value in items:
            places.append((node, key))
            walk(value)

    walk(tree)
    for _ in range(dice.choice([1, 1, 3])):
        node, key = dice.choice(places)
        if dice.random() < 0.25 and isinstance(node, dict):
            node.pop(key, None)
        else:
            with contextlib.suppress(IndexError):
                node[key] = dice.choice(VALUES)


def hostile_zarr(case: Case) -> list[str]:
    path = case.copy(*(name for name in OUTPUTS if name.endswith(".zarr")), "stopped.zarr")
    group = json.loads((path / "zarr.json").read_bytes())
    part = case.dice.choice(["everything", "attributes", "v", "time", "stats/v_min"])
    arrays = group["consolidated_metadata"]["metadata"]
    mutate(case.dice, {"everything": group, "attributes": group["attributes"]}.get(part) or arrays[part])
    (path / "zarr.json").write_text(json.dumps(group))
    return case.command(path)


def deep_json(case: Case) -> list[str]:
    path = case.copy("lz4.zarr")
    (path / "zarr.json").write_bytes(case.dice.choice([b"[" * 10**6, b'{"attributes":' * 10**5, b"\xff" * 100]))
    return case.dice.choice([case.command(path), [*RUN[:-1], str(path), "--overwrite"]])


def bomb(case: Case, path: Path) -> bytes:
    """Return a chunk that becomes a thousand times its bytes."""
    if "lz4" in path.name or path.suffix == ".zarr":
        return struct.pack("<BBBBIII", 2, 1, 0x21, 4, 2**31 - 1, 2**31 - 1, case.dice.choice([16, 5000])) + bytes(5000)
    packer = zlib.compressobj(9)
    return b"".join([*(packer.compress(bytes(1 << 24)) for _ in range(BOMB >> 24)), packer.flush()])


def bomb_chunk(case: Case) -> list[str]:
    path = case.copy("deflate.h5", "lz4.h5", "lz4.zarr", "shards.zarr")
    if path.is_dir():
        place = case.dice.choice(sorted((path / "v").glob("c.*")))
        data = bomb(case, path)
        offset, size = (case.dice.choice([number, 2**63, 2**64 - 2, len(data)]) for number in (0, 2**40))
        tail = struct.pack("<8Q", *[offset, size] * 4)
        place.write_bytes(data + tail + struct.pack("<I", _crc32c(tail)))
    else:
        with h5py.File(path, "r+") as file:
            file["v"].id.write_direct_chunk((0, 0, 0), bomb(case, path), case.dice.choice([0, 0, 1]))
    return case.command(path)


HDF5_NAMES = ["v", "u", "time", "step", "y", "x", "stats", "stats/v_min", "stats/u_mean", "integrity/crc32c"]
HDF5_ATTRIBUTES = ["config", "status", "ended", "history", "gsio_version", "argv", "device"]


def hostile_hdf5(case: Case) -> list[str]:
    path = case.copy("deflate.h5", "lz4.h5", "none.h5", "batch.h5", "stopped.h5")
    dice = case.dice
    with h5py.File(path, "r+") as file:
        name = dice.choice(HDF5_NAMES)
        old = file[name]
        shape, dtype = (old.shape, old.dtype) if isinstance(old, h5py.Dataset) else ((3,), np.dtype("f8"))
        del file[name]
        match dice.randrange(12):
            case 0:
                pass
            case 1:
                file[name] = h5py.ExternalLink("/etc/passwd", "/v")
            case 2:
                file[name] = h5py.SoftLink(dice.choice(["/nowhere", f"/{name}", "/time", "/"]))
            case 3:
                layout = h5py.VirtualLayout(shape, dtype)
                layout[...] = h5py.VirtualSource("other.h5", "v", shape)
                file.create_virtual_dataset(name, layout)
            case 4:
                file.create_dataset(name, shape, dtype, external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])
            case 5:
                file.create_dataset(name, (2**40, *shape[1:]), dtype, chunks=(1, *shape[1:]))
            case 6:
                file.create_dataset(name, (2**31,) * 3, "f4", chunks=(2**9,) * 3, compression="gzip")
            case 7:
                file.create_dataset(name, shape, dice.choice(["S4", "c16", ">f4", "i1", "f2"]))
            case 8:
                file.create_dataset(name, (), dtype)
            case 9:
                file.create_dataset(name, (*shape[::-1], 2), dtype)
            case 10:
                file.create_group(f"{name}/deeper")
            case 11:
                file.create_dataset(name, shape, dtype, chunks=shape, compression="lzf")
    return case.command(path)


def hostile_attributes(case: Case) -> list[str]:
    path = case.copy("deflate.h5", "none.h5", "batch.h5", "stopped.h5", "stopped.h5")
    dice = case.dice
    with h5py.File(path, "r+") as file:
        name = dice.choice(HDF5_ATTRIBUTES)
        text = file.attrs["config"]
        values = [
            "\x1b]0;title\x07\x1b[2J", "", b"\xff\xfe", 5, -1.5, np.zeros(2000), h5py.Empty("f4"), ["a", "b"],
            "[" * 5000, f"{text}\nmore = 1", text.replace("12", "0"), text.replace("17", "2147483647"),
            text.replace("noise", "none"), text.replace("fields", "field"), "x" * (2 << 20), "a." * 300_000 + "b = 1",
            text.replace('"u,v"', '"u"'), "\u202eevil",
        ]  # fmt: skip
        del file.attrs[name]
        if dice.random() < 0.9:
            file.attrs[name] = dice.choice(values)
        if dice.random() < 0.3:
            file["v"].attrs["scale_factor"] = dice.choice(["a", 0.0, np.nan, np.ones(3), 2.0])
    return case.command(path)


def hostile_committed(case: Case) -> list[str]:
    path = case.copy("none.h5", "deflate.h5")
    with h5py.File(path, "r+") as file:
        if "frames_committed" in file:
            del file["frames_committed"]
        file["frames_committed"] = case.dice.choice([-1, 2**62, 17, 3.5, "a", np.ones(3)])
    return case.command(path)


def many_objects(case: Case) -> list[str]:
    path = case.copy("deflate.h5")
    with h5py.File(path, "r+") as file:
        group = file.create_group(case.dice.choice(["many", "stats/many"]))
        for number in range(12_000):
            group[str(number)] = h5py.SoftLink("/v") if number % 2 else file["time"]
    return case.command(path)


def foreign_file(case: Case) -> list[str]:
    path = Path(case.dice.choice(["a.h5", "a.zarr", "a.hdf5", "a", "a\x1b[31m.h5"]))
    match case.dice.randrange(5):
        case 0:
            with h5py.File(path, "w") as file:
                file["v"] = np.ones((3, 4, 5))
        case 1:
            path.write_bytes(case.dice.randbytes(3000))
        case 2:
            path.mkdir()
            (path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
        case 3:
            case.replace(path)
        case 4:
            Image.new("L", (17, 12)).save(path, "PNG")
    return case.command(path)


def start(path: Path | str, kind: str = "file") -> list[str]:
    return [*RUN, "--set", f"initial.kind={kind}", "--set", f"initial.path={path}"]


def save_npz(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def npy(shape: Any, dtype: str = "<f8", data: bytes = b"", text: str = "") -> bytes:
    """Return an .npy with any header."""
    header = text or repr({"descr": dtype, "fortran_order": False, "shape": shape})
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header.encode() + b"\n" + data


def hostile_npz(case: Case) -> list[str]:
    whole = npy((12, 17), data=np.ones((12, 17)).tobytes())
    other = case.dice.choice([
        npy((2**28,), data=bytes(1 << 27)), npy((2**62, 2**62)), npy((-12, -17)), npy((10**5, 10**5), "<f16"),
        npy((12, 17), "|O", b"cposix\nsystem\n"), npy((12, 17), "<U100000000"), npy((12, 17), "<M8[s]", bytes(1632)),
        npy((12, 17), "[('a', 'f8')]"), npy((), text="[" * 9000), npy((), text="{}"), npy("abc"), npy((12.5, 17)),
        npy((12, 17), data=bytes(100)), npy((12, 17), data=bytes(10**6)), npy((12, 17)), npy((True, 17)), b"",
        b"\x93NUMPY", b"\x93NUMPY\x03\x00" + struct.pack("<I", 2**31) + b"{", b"\x93NUMPY\x07\x00\x00\x00",
    ])  # fmt: skip
    method = case.dice.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    save_npz(Path("a.npz"), {"u.npy": whole, "v.npy": other}, method)
    if case.dice.random() < 0.3:
        case.damage(Path("a.npz"))
    if case.dice.random() < 0.2:
        Path("run.npy").write_bytes(other)
        return [*RUN, "-f", '{path = "run.npy", stop = 0.05}']
    return start("a.npz")


def hostile_checkpoint(case: Case) -> list[str]:
    path = case.copy(*STOPPED)
    with np.load(f"{path}.checkpoint.npz") as found:
        parts = {name: found[name] for name in found.files}
    name = case.dice.choice(list(parts))
    parts[name] = case.dice.choice([
        np.array("[" * 5000), np.array(-1), np.array(2**40), np.zeros(3), np.zeros((12, 17), "c16"), np.array("a"),
        np.zeros((3, 3)), np.array(np.nan), parts["u"].astype("f2"), np.array([]),
    ])  # fmt: skip
    for beside in Path().glob(f"{path}.checkpoint*"):
        (np.savez_compressed if case.dice.random() < 0.2 else np.savez)(beside, **parts)
    return case.resume(path)


def hostile_picture(case: Case) -> list[str]:
    path, dice = Path("a.png"), case.dice
    kind = dice.choice(["PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP", "PPM", "TGA", "JPEG2000"])
    match dice.randrange(5):
        case 0:  # a picture that says it is huge
            Image.new("L", (64, 64)).save(path)
            data = bytearray(path.read_bytes())
            sizes = [(2**31 - 1, 2**31 - 1), (60_000, 60_000), (0, 0), (2**24, 5)]
            data[16:24] = struct.pack(">II", *dice.choice(sizes))
            data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
            path.write_bytes(data)
        case 1:  # one that is
            Image.new(dice.choice(["1", "L"]), (30_000, 30_000)).save(path)
        case 2:
            picture = Image.frombytes("RGB", (40, 30), dice.randbytes(3600))
            picture.save(path, kind)
            case.damage(path)
        case 3:
            case.replace(path)
        case 4:
            path.write_bytes(dice.choice([b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nquit\n", b"", b"GIF89a"]))
    if dice.random() < 0.3:
        return [*RUN, "-k", '{path = "a.png", stop = 0.05}']
    return start(path, "image")


def hostile_toml(case: Case) -> list[str]:
    path, dice = Path("a.toml"), case.dice
    texts = [
        "[model]\nfeed = " + "[" * 5000, "[model]\nfeed = " + "{a=" * 3000, "a." * 400_000 + "b = 1", "#" * (3 << 20),
        "x = [" + "{}," * 300_000 + "]", "[grid]\nrows = " + "9" * 5000, "[grid]\nrows = 0x" + "f" * 5000, "[grid",
        "[initial]\npath = 'a\\u0000b'\nkind = 'file'", "[model]\nfeed = {path = '/dev/zero'}", "[grid]\nrows = nan",
        "[model]\nfeed = {path = '~nobody/x.png'}", "[initial]\nkind = 'file'\npath = '/dev/stdin'", "grid = 5", "\0",
        "[model]\nfeed = 1979-05-27", "[grid]\nrows = inf", "[grid]\n\"\x1b[31m\" = 1", "[model.feed]\nalong = {}",
    ]  # fmt: skip
    path.write_bytes(dice.choice([text.encode() for text in texts] + [b"\xff\xfe[\0g\0", dice.randbytes(500)]))
    if dice.random() < 0.25:
        case.replace(path)
    return dice.choice([["config", "show", str(path)], [*RUN, str(path)]])


def hostile_timeline(case: Case) -> list[str]:
    event = {"ph": "X", "name": "encode", "pid": 1, "tid": 3, "ts": 1, "dur": 2, "args": {"frame": 0}}
    data = {"otherData": {"source": "spans", "seconds": 1.0}, "traceEvents": [event, dict(event)]}
    path = Path(case.dice.choice(["a.json", "a.sqlite"]))
    mutate(case.dice, data)
    path.write_text(json.dumps(data))
    if case.dice.random() < 0.5:
        (case.replace if case.dice.random() < 0.5 else case.damage)(path)
    return ["profile", "--read", str(path)]


KINDS: list[Callable[[Case], list[str]]] = [
    damaged_file, damaged_head, special_file, special_beside, hostile_status, hostile_journal, hostile_zarr, deep_json,
    bomb_chunk, hostile_hdf5, hostile_attributes, hostile_committed, many_objects, foreign_file, hostile_npz,
    hostile_checkpoint, hostile_picture, hostile_toml, hostile_timeline, damaged_head, hostile_zarr, hostile_hdf5,
]  # fmt: skip


# The process that runs cases, and the one that watches it.


class Ended(NamedTuple):
    """What became of a case."""

    number: int
    kind: str
    arguments: list[str]
    code: int
    seconds: float
    nbytes: int  # more than before, at most
    text: str  # on stderr

    @property
    def wrong(self) -> str:
        """Return what is wrong, or ""."""
        errors = len(re.findall(r"^(?:gsio|overlap): error: ", self.text, re.MULTILINE))
        others = [line for line in self.text.splitlines() if not re.match(r"(?:gsio|overlap): \w", line)]
        found = {
            "the exit code": self.code not in CODES,
            "more or fewer lines than one": self.code >= 0 and (errors != (self.code != 0) or others),
            "a terminal's commands": "\x1b" in self.text,
            "the time": self.seconds > DEADLINE,
            "the memory": self.nbytes > MOST_NBYTES,
        }
        return ", ".join(name for name, true in found.items() if true)


def play(outputs: Path, number: int) -> dict[str, Any]:
    """Run one case in this process, in a folder of its own."""
    folder = outputs.parent / f"case-{number}"
    folder.mkdir()
    os.chdir(folder)
    kind = KINDS[number % len(KINDS)]
    arguments = kind(Case(outputs, number))
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forgets how much memory there was at most
    before, began = _memory("VmRSS"), time.perf_counter()
    with _caught() as text:
        code = main(arguments)
    seconds, nbytes = time.perf_counter() - began, _memory("VmHWM") - before
    os.chdir(outputs)
    shutil.rmtree(folder)
    return Ended(number, kind.__name__, arguments, code, seconds, nbytes, "".join(text))._asdict()


def _memory(name: str) -> int:
    return int(re.search(rf"^{name}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)[1]) << 10  # type: ignore[index]


@contextlib.contextmanager
def _caught() -> Iterator[list[str]]:
    """Keep what is said on stderr, also by libraries in C, and whether stdout has what a terminal would obey."""
    text: list[str] = []
    kept = os.dup(2)
    with os.fdopen(os.memfd_create("err"), "w+b") as file:
        os.dup2(file.fileno(), 2)
        out = io.StringIO()
        try:
            with contextlib.redirect_stdout(out):
                yield text
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            text += [file.read().decode(errors="replace"), "\x1b" if "\x1b" in out.getvalue() else ""]


def work(outputs: Path, numbers: list[int]) -> None:
    """Run cases, and say of each that it begins, and what became of it."""
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    say = os.fdopen(os.dup(1), "w")
    for number in numbers:
        print(json.dumps({"begins": number}), file=say, flush=True)
        print(json.dumps(play(outputs, number)), file=say, flush=True)


def watch(outputs: Path, numbers: list[int]) -> Iterator[Ended]:
    """Yield what becomes of cases, which processes run one after another."""
    todo = list(numbers)
    while todo:
        command = [sys.executable, "-W", "ignore", __file__, str(outputs), *map(str, todo)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            began = None
            while todo:
                ready, _, _ = select.select([process.stdout], [], [], 60 if began is None else DEADLINE * 3)
                line = process.stdout.readline() if ready else b""
                if not line:  # it hangs, or it is dead
                    code = -14 if not ready else process.wait()
                    process.kill()
                    number, seconds = todo.pop(0), time.monotonic() - (began or 0)
                    yield Ended(number, KINDS[number % len(KINDS)].__name__, [], code, seconds, 0, "")
                    break
                found = json.loads(line)
                if "begins" in found:
                    began = time.monotonic()
                    continue
                todo.pop(0)
                yield Ended(**found)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "outputs"
    folder.mkdir()
    make_outputs(folder)
    return folder


@pytest.mark.timeout(3600)
def test_hostile_inputs_are_refused_in_a_line(
    outputs: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    count = SHORT + (request.config.getoption("--rounds") - 1) * LONG
    ended = list(watch(outputs, list(range(count))))
    codes = Counter(case.code for case in ended)
    slowest, largest = max(case.seconds for case in ended), max(case.nbytes for case in ended)
    figures = f"exit codes {dict(codes)}, slowest {slowest:.1f} s, most memory {largest >> 20} MiB"
    with capsys.disabled():
        sys.stdout.write(f"\n{len(ended)} inputs: {figures}\n")
    wrong = [f"{case.number} {case.kind}: {case.wrong}: {case}" for case in ended if case.wrong]
    assert not wrong, "\n".join(wrong)
    assert codes[65] > count / 4
    assert codes[2] > count / 10


if __name__ == "__main__":
    work(Path(sys.argv[1]), [int(number) for number in sys.argv[2:]])
