"""The origin of an output, in attributes of the file as a whole."""

import datetime
import os
import platform
import shlex
import socket
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from gsio._version import __version__, commit
from gsio.config import Config
from gsio.frames.content import Content
from gsio.frames.metadata import Attributes

PACKAGES = ("numpy", "numba", "h5py", "zarr", "isal", "cupy-cuda12x", "cupy-cuda13x")


def now() -> str:
    """Return the present UTC time in ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def command_line() -> str:
    """Return the command of this process as one line that can be pasted into a shell."""
    words = sys.argv
    if words[:1] == [os.fspath(Path(__file__).parents[1] / "__main__.py")]:
        words = [sys.executable, "-m", "gsio", *words[1:]]
    return " ".join(map(_quoted, words))


def _quoted(word: str) -> str:
    """Quote a word for bash and zsh; bytes that a line cannot show, a newline or a name not in UTF-8, are escaped."""
    if word.isprintable():
        return shlex.quote(word)
    shown = (chr(byte) if 32 <= byte < 127 and byte not in b"\\'" else f"\\x{byte:02x}" for byte in os.fsencode(word))
    return f"$'{''.join(shown)}'"


def history_line() -> str:
    """Return the line that a command adds to the attribute `history`: the time in UTC, and the command."""
    return f"{now()} {command_line()}"


def root_attributes(recorded: Config | Content, backend: str, device: str, output_id: str = "") -> Attributes:
    """Return the attributes of the file as a whole: conventions and provenance.

    The output of a run records its configuration, and any other output its content. An output that goes on keeps its
    `output_id`.
    """
    title, name = "Gray-Scott reaction-diffusion simulation", "config"
    if isinstance(recorded, Content):
        title, name = f"frames of {', '.join(recorded.fields)}", "content"
    return {
        "Conventions": "CF-1.12",
        "title": title,
        "source": f"gsio {__version__}",
        "history": history_line(),
        "output_id": output_id or os.urandom(16).hex(),
        "gsio_version": __version__,
        "gsio_commit": commit(),
        name: recorded.to_toml(),
        "argv": command_line(),
        "versions": ", ".join([f"python {platform.python_version()}", *_versions()]),
        "backend": backend,
        "device": device,
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "started": now(),
    }


def _versions() -> list[str]:
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return found
