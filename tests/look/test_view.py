"""`gsio view`, `gsio run --view` and `gsio.view`: how a person gets to the page, and how it ends."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from client import Client
from patience import DEADLINE

import gsio
from gsio.cli import main
from gsio.config import Config

Make = Callable[..., Config]
ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)/\?token=([\w-]{32})\n")
SMALL = ["-r", "12", "-c", "17", "-n", "5", "-e", "2", "--backend", "numpy"]
# A browser that keeps what it is told, and what is in the file that it is told of.
BROWSER = """
import json, pathlib, sys, urllib.parse
file = pathlib.Path(urllib.parse.urlsplit(sys.argv[1]).path)
modes = [oct(path.stat().st_mode & 0o777) for path in (file, file.parent)]
told = pathlib.Path(sys.argv[0]).with_name("told.part")
told.write_text(json.dumps([sys.argv[1], file.read_text(), modes]))
told.rename(told.with_name("told"))
"""


@pytest.fixture
def output(make_config: Make, tmp_path: Path) -> Path:
    gsio.simulate(make_config(), tmp_path / "run.h5")
    return tmp_path / "run.h5"


@contextmanager
def command(*arguments: object, **variables: str) -> Iterator["subprocess.Popen[str]"]:
    """Start gsio without a display, unless `variables` name one."""
    hidden = ("DISPLAY", "WAYLAND_DISPLAY", "SSH_CONNECTION")
    environment = {name: value for name, value in os.environ.items() if name not in hidden} | variables
    line = [sys.executable, "-m", "gsio", *map(str, arguments)]
    streams: Any = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(line, env=environment, text=True, stdin=subprocess.DEVNULL, **streams) as process:
        try:
            yield process
        finally:
            process.kill()


def client_of(stream: Any) -> Client:
    """Return who may ask the server whose address is the next line of a stream."""
    found = ADDRESS.fullmatch(line := stream.readline())
    assert found, line
    return Client(int(found[1]), found[2])


def wait_until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + DEADLINE
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


def is_closed(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_the_page_is_there_until_a_signal(number: int, code: int, output: Path) -> None:
    with command("view", output) as view:
        client = client_of(view.stdout)
        assert client.output()["frames"] == 5
        with client.events() as events:
            assert next(events)[0] == "output"
            view.send_signal(number)
            assert view.wait(DEADLINE) == code
        assert is_closed(client.port)
        _, errors = view.communicate()
    hint = f"This machine shows no browser. Where yours is, run: ssh -L {client.port}:127.0.0.1:{client.port} "
    assert errors.startswith(hint)
    assert errors.splitlines()[-1] == ("The page has ended." if code == 0 else "gsio: error: interrupted")
    assert client.headers["Cookie"][-32:] not in errors


def test_a_browser_is_led_to_the_page_by_a_file_that_nobody_else_can_read(output: Path, tmp_path: Path) -> None:
    browser = tmp_path / "browser.py"
    browser.write_text(BROWSER)
    with command("view", output, DISPLAY=":99", BROWSER=f"{sys.executable} {browser} %s") as view:
        client = client_of(view.stdout)
        wait_until((tmp_path / "told").exists)
        address, text, modes = json.loads((tmp_path / "told").read_text())
        token = client.headers["Cookie"][-32:]
        assert token not in address
        assert f"url=http://127.0.0.1:{client.port}/?token={token}" in text
        assert modes == ["0o600", "0o700"]
        file = Path(address.removeprefix("file://"))
        assert file.exists()
        assert client.get(f"/?token={token}").status == 200
        wait_until(lambda: not file.exists())
        view.send_signal(signal.SIGINT)
        assert view.wait(DEADLINE) == 0
    assert not file.parent.exists()


def test_what_cannot_be_shown_is_refused_in_a_line(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*arguments: object) -> str:
        assert main(["view", "--no-browser", *map(str, arguments)]) in (2, 65)
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        return captured.err

    assert "no such file" in refused(output, output.with_name("none.h5"))
    (other := output.with_name("other.h5")).write_bytes(b"not HDF5")
    assert "cannot read" in refused(other)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "--port: " in refused(output, "--port", taken.getsockname()[1])
    assert "--port: expected 0 to 65535" in refused(output, "--port", 99999)
    assert "it is a folder, and no Zarr group" in refused(output.parent)
    assert "expected --allow-others" in refused(output, "--host", "0.0.0.0")
    assert "--host, --port: 192.0.2.1" in refused(output, "--host", "192.0.2.1", "--allow-others")


def test_other_machines_are_let_in_only_with_plain_words(output: Path) -> None:
    with command("view", output, "--no-browser", "--host", "0.0.0.0", "--allow-others") as view:
        assert view.stdout is not None
        found = re.fullmatch(r"http://(\S+):(\d+)/\?token=([\w-]{32})\n", view.stdout.readline())
        assert found
        client = Client(int(found[2]), found[3])
        assert client.get("/outputs", Host=f"{found[1]}:{found[2]}").status == 200
        assert Client(int(found[2])).get("/outputs", Host=found[1]).status == 403
        view.send_signal(signal.SIGINT)
        _, errors = view.communicate(timeout=DEADLINE)
    assert "Nothing is encrypted: whoever reads this address on the network can see these outputs.\n" in errors


# A run that is shown, and goes on until it is told to end.
SHOWN = """
import sys
from pathlib import Path
import gsio
from gsio.look.beside import shown

with shown(Path(sys.argv[2]), wanted=True):
    gsio.simulate(gsio.Config.from_toml(sys.argv[1]), sys.argv[2])
    input()
"""


def test_a_page_beside_a_run_ends_with_it(make_config: Make, tmp_path: Path) -> None:
    line = [sys.executable, "-c", SHOWN, make_config().to_toml(), str(tmp_path / "run.h5")]
    streams: Any = dict.fromkeys(("stdin", "stderr"), subprocess.PIPE)
    with subprocess.Popen(line, text=True, **streams) as run:
        assert run.stderr is not None
        address = next(line for line in run.stderr if line.startswith("http"))
        found = ADDRESS.fullmatch(address)
        assert found
        client = Client(int(found[1]), found[2])
        with client.events() as events:
            assert next(output for _, output in events if output["state"] == "complete")["frames"] == 5
            _, errors = run.communicate("\n", timeout=DEADLINE)
    assert run.returncode == 0
    assert is_closed(client.port)
    assert errors.splitlines()[-1] == "The page has ended."


def test_a_run_starts_its_page_and_does_not_fail_because_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started = []

    def python_module(*arguments: str) -> list[str]:
        started.append(arguments)
        return (
            [str(tmp_path / "no such program")] if len(started) == 1 else [sys.executable, "-c", "raise SystemExit(70)"]
        )

    monkeypatch.setattr("gsio.look.beside.python_module", python_module)
    for name in ("run.h5", "again.h5"):
        assert main(["run", *SMALL, "-o", str(tmp_path / name), "--view", "-q"]) == 0
        assert started[-1] == ("gsio", "view", "--wait", "--", str(tmp_path / name))
    assert main(["run", *SMALL, "-o", str(tmp_path / "hidden.h5"), "-q"]) == 0
    assert len(started) == 2
    warning = f"gsio: warning: --view: the page could not be started: [Errno 2] No such file or directory: '{tmp_path}"
    assert capsys.readouterr().err.startswith(warning)


def test_a_notebook_gets_a_frame_with_the_page(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUPYTERHUB_SERVICE_PREFIX", raising=False)
    with gsio.view(output) as page:
        assert gsio.view(str(output)) is page
        found = re.search(r'src="http://localhost:(\d+)/\?token=([\w-]{32})"', page._repr_html_())
        assert found
        assert page.url == f"http://127.0.0.1:{found[1]}/?token={found[2]}"
        client = Client(int(found[1]), found[2])
        assert client.get("/outputs", Host="localhost:8888").json[0]["frames"] == 5
        assert client.get("/outputs", Host="hub.example").status == 421
    assert is_closed(client.port)
    with gsio.view(output) as again:
        assert again is not page


def test_a_hub_passes_requests_on(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", "/user/ada/")
    with gsio.view(output) as page:
        found = re.search(r'src="/user/ada/proxy/(\d+)/\?token=([\w-]{32})"', page._repr_html_())
        assert found
        assert Client(int(found[1]), found[2]).get("/outputs", Host="hub.example").status == 200
        assert Client(int(found[1])).get("/outputs", Host="hub.example").status == 403
