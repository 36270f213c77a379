"""What others hand to gsio is read here: regular files only, and no more bytes than a bound that is known before.

A pipe would make a reader wait for ever, a device never ends, and a small file can hold an array or a text that takes
gigabytes or hours to unfold. All functions raise OSError or ValueError, whatever is wrong with a file.
"""

import errno
import io
import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path
    from zipfile import ZipFile

    import numpy as np
    from numpy.typing import NDArray

    Check = Callable[[str, tuple[int, ...], np.dtype[Any]], object]

METADATA_NBYTES = 8 << 20  # the limit for the JSON of an output
TOML_NBYTES = 1 << 20  # the limit for a configuration
KINDS = {stat.S_ISLNK: "a link", stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
# tomllib takes quadratic time for a key of many parts: 500 000 of them would take minutes.
LONG_KEY = r"""(?:(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){32}"""
AT_ONCE = 4 << 20  # bytes
NUMBERS = "fiub"  # kinds of dtype: real numbers and truth values
# Control characters, line separators, marks that turn the direction of a text, and halves of characters.
HARMFUL = "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"


def open_regular(path: "Path", most_nbytes: int | None = None, *, follow: bool = True) -> io.BufferedReader:
    """Open a regular file for reading; to open anything else would wait, or do something to a device.

    Raises OSError, with the reason as its `strerror`, if there is no such file, if the path leads to something else, if
    the file has more than `most_nbytes` bytes, or if it is a link and `follow` is False, as for files that gsio makes.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | (0 if follow else os.O_NOFOLLOW)
    try:
        _check_regular(os.stat(path, follow_symlinks=follow), most_nbytes)  # noqa: PTH116 - a path can hold a null
        fd = os.open(path, flags)
    except ValueError as error:  # a null character, or half of a character
        raise OSError(errno.EINVAL, f"expected the name of a file ({error})") from None
    try:
        _check_regular(os.fstat(fd), most_nbytes)
        return os.fdopen(fd, "rb")
    except BaseException:
        os.close(fd)
        raise


def _check_regular(found: os.stat_result, most_nbytes: int | None) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = next((name for test, name in KINDS.items() if test(found.st_mode)), "a device")
        raise OSError(errno.EINVAL, f"expected a regular file, found {kind}")
    if most_nbytes is not None and found.st_size > most_nbytes:
        raise OSError(errno.EFBIG, f"expected at most {most_nbytes} bytes, found {found.st_size}")


def read_regular(path: "Path", most_nbytes: int, *, follow: bool = True) -> bytes:
    """Return what a regular file holds; raises as `open_regular`."""
    with open_regular(path, most_nbytes, follow=follow) as file:
        data = file.read(min(os.fstat(file.fileno()).st_size, most_nbytes) + 1)
    if len(data) > most_nbytes:  # a file that grows, or one of /proc
        raise OSError(errno.EFBIG, f"expected at most {most_nbytes} bytes, found more")
    return data


def parse_json(data: bytes) -> Any:
    """Return what JSON stands for; raises ValueError if `data` is none, or nested too deeply."""
    import json

    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("expected JSON, found too many brackets in each other") from None


def parse_toml(data: bytes | str) -> dict[str, Any]:
    """Return what TOML stands for, in UTF-8, with or without a byte order mark; raises ValueError if `data` is none."""
    import tomllib

    text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
    if len(text) > TOML_NBYTES:
        raise ValueError(f"expected at most {TOML_NBYTES} characters, found {len(text)}")
    if re.search(LONG_KEY, text):
        raise ValueError("expected a key of few parts, found one of 32 or more")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("expected few brackets in each other, found too many") from None


def read_npy(path: "Path", check: "Check") -> "NDArray[Any]":
    """Return the array of an .npy; `check` is told its name, "", shape and dtype before any of its values is read.

    Raises OSError or ValueError if the file cannot be read, and whatever `check` raises.
    """
    with open_regular(path) as file:
        return _array(file, "", check, NUMBERS)


def read_npz(
    path: "Path",
    names: Iterable[str] | None = None,
    check: "Check" = lambda *_: None,
    *,
    kinds: str = NUMBERS,
    compressed: bool = True,
) -> "dict[str, NDArray[Any]]":
    """Return arrays of an .npz by name; `check` is told the name, shape and dtype of each before its values are read.

    Parameters
    ----------
    names
        The arrays that are wanted; None: all of the file, in its order.
    kinds
        The kinds of dtype that are allowed, as NumPy names them; never objects.
    compressed
        Whether arrays may be compressed. Those that are not take together no more memory than the file has bytes.

    Raises
    ------
    OSError, ValueError, KeyError
        The file cannot be read, or has no array of that name; and whatever `check` raises.
    """
    import zipfile

    with open_regular(path) as file:
        patient: Any = _Patient(file)
        try:
            archive = zipfile.ZipFile(patient)
        except (zipfile.BadZipFile, NotImplementedError, EOFError, LookupError) as error:
            raise ValueError(f"expected an .npz: {error}") from None
        nbytes = sum(found.file_size for found in archive.infolist())
        if not compressed and nbytes > os.fstat(file.fileno()).st_size:
            raise ValueError("expected an .npz of arrays that are not compressed, found more bytes than the file has")
        if names is None:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
        return {name: _member(archive, name, check, kinds, compressed=compressed) for name in names}


class _Patient:
    """A file that refuses large reads: the directory of a zip with a million names would take gigabytes."""

    def __init__(self, file: io.BufferedReader) -> None:
        self.seek, self.tell, self.seekable, self._read = file.seek, file.tell, file.seekable, file.read

    def read(self, size: int = -1) -> bytes:
        data = self._read(min(size, AT_ONCE) if size >= 0 else AT_ONCE)
        if len(data) == AT_ONCE:
            raise ValueError("expected an .npz of few arrays, found a directory of many")
        return data


def _member(archive: "ZipFile", name: str, check: "Check", kinds: str, *, compressed: bool) -> "NDArray[Any]":
    import zipfile
    import zlib

    try:
        found = archive.getinfo(f"{name}.npy")
    except KeyError:
        raise KeyError(f"{name} is not a file in the archive") from None
    allowed = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)[: 1 + compressed]  # others unfold without a bound
    if found.compress_type not in allowed:
        raise ValueError(f"{name}: expected an array that NumPy saved, found one that is compressed in another way")
    try:
        with archive.open(found) as file:
            return _array(file, name, check, kinds)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, LookupError, RuntimeError, zlib.error) as error:
        raise ValueError(f"{name}: {error}") from None


def _array(file: Any, name: str, check: "Check", kinds: str) -> "NDArray[Any]":
    import numpy as np

    try:
        version = np.lib.format.read_magic(file)
        header = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}[version[0]]
        shape, by_columns, dtype = header(file)
    except (KeyError, TypeError, SyntaxError, MemoryError, RecursionError, AttributeError) as error:
        raise ValueError(f"expected the header of an .npy, found another ({error})") from None
    if dtype.kind not in kinds or dtype.hasobject or dtype.names:
        raise ValueError(f"expected real numbers, got {dtype}")
    if any(size < 0 for size in shape):
        raise ValueError(f"expected a shape, got {shape}")
    check(name, shape, dtype)
    try:
        array = np.empty(shape, dtype, order="F" if by_columns else "C")
    except (MemoryError, OverflowError, ValueError) as error:
        raise ValueError(f"expected an array that fits into memory, got one of shape {shape}: {error}") from None
    rest: Any = array.reshape(-1, order="A").view(np.uint8).data if array.size else b""
    while rest:
        data = file.read(min(len(rest), 1 << 20))
        if not data:
            raise ValueError(f"expected {array.nbytes} bytes of values, got {array.nbytes - len(rest)}")
        rest[: len(data)], rest = data, rest[len(data) :]
    if file.read(1):  # at its end a zip compares its checksum
        raise ValueError(f"expected {array.nbytes} bytes of values, got more")
    return array


def portable(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes that every format can hold: texts, numbers and lists of whole numbers, as gsio writes."""

    def whole(value: object) -> bool:
        return isinstance(value, int) and abs(value) < 2**63

    def held(value: object) -> bool:
        return isinstance(value, float) or whole(value) or (isinstance(value, list) and all(map(whole, value)))

    found = {name: characters(value) if isinstance(value, str) else value for name, value in attributes.items()}
    return {name: value for name, value in found.items() if isinstance(value, str) or held(value)}


def characters(text: str) -> str:
    """Return `text` with a mark in place of null characters and of halves of characters, which few formats hold."""
    return text.encode(errors="replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


def printable(text: str) -> str:
    """Return `text` with what a terminal would take for a command, or show as another text, spelled out.

    Line ends and tabs stay.
    """
    return re.sub(HARMFUL, lambda found: found[0].encode("unicode_escape").decode(), text)
