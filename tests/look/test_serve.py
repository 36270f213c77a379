"""Nobody else gets in: what a server refuses, whoever asks, and that it lives on."""

import random
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from client import Client
from patience import DEADLINE

import gsio
from gsio.config import Config
from gsio.look import serve
from gsio.look.app import LISTENERS
from gsio.look.serve import CONNECTIONS, Server, listen

Make = Callable[..., Config]
ADDRESSES = [
    "/", "/outputs", "/colours", "/events", "/page/index.html", "/outputs/0/series", "/outputs/0/chunk/v/0/0",
    "/outputs/0/window/v/0/0/0:12:1/0:17:1", "/outputs/0/proxies/v/0/0", "/outputs/0/proxy/v/0/0",
    "/outputs/0/point/v/0/1/1",
]  # fmt: skip
NOWHERE = [
    "/page/", "/page/../serve.py", "/page/..%2fserve.py", "/page/%2e%2e/serve.py", "/page/serve.py", "//etc/passwd",
    "/../../../../etc/passwd", "/page/%00", "/page/index.html%00.js", "/outputs/0", "/outputs/1/series",
    "/outputs/-1/series", "/outputs/0/chunk/v/0", "/outputs/0/chunk/w/0/0", "/outputs/0/chunk/u/0/0",
    "/outputs/0/chunk/v/5/0", "/outputs/0/chunk/v/0/1", "/outputs/0/chunk/v/00000000000000000000/0",
    "/outputs/0/chunk/v/%D9%A1/0", "/outputs/0/proxies/v/1/0", "/outputs/0/proxies/v/0/1", "/outputs/0/proxy/v/0/5",
    "/outputs/0/point/v/0/12/0", "/outputs/0/point/v/0/0/17", "/outputs/0/window/v/0/0/1:2/1:2", "/favicon.ico",
]  # fmt: skip
MALFORMED = [
    "series?from=-1",
    "series?from=x",
    *(f"window/v/0/0/{part}" for part in ("0:13:1/0:1:1", "2:2:1/0:1:1", "0:1:0/0:1:1")),
]
SECRET = 32  # characters of a token


@pytest.fixture
def server(make_config: Make, tmp_path: Path) -> Iterator[Server]:
    gsio.simulate(make_config(), tmp_path / "run.h5")
    with Server([tmp_path / "run.h5"], listen(), ["Hub.Example"]) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Client:
    return Client(server.port, server.token)


def test_whoever_has_no_token_gets_nothing(server: Server) -> None:
    wrong = [Client(server.port), *(Client(server.port, token) for token in ("x", "x" * SECRET, server.token[:-1]))]
    for stranger in wrong:
        for address in (*ADDRESSES, *NOWHERE, "/?token=", "/?token=x", f"/outputs?token={server.token}"):
            refused = stranger.get(address)
            assert (refused.status, "set-cookie" in refused.headers) == (403, False)
            assert refused.body == b"open the address that gsio view has printed, with its token\n"


def test_the_token_gives_a_cookie_that_opens_the_page(server: Server) -> None:
    assert server.url == f"http://127.0.0.1:{server.port}/?token={server.token}"
    assert not server.opened.is_set()
    answer = Client(server.port).get(f"/?token={server.token}")
    assert answer.status == 200
    assert server.opened.is_set()
    assert b"url=./" in answer.body
    assert server.token.encode() not in answer.body
    cookie, *properties = answer.headers["set-cookie"].split("; ")
    assert properties == ["HttpOnly", "SameSite=Strict"]
    stranger = Client(server.port)
    stranger.headers["Cookie"] = f"other=1; {cookie}"
    assert stranger.get("/outputs").status == 200


def test_every_answer_forbids_what_other_pages_could_do(client: Client) -> None:
    for answer in (
        *(client.get(address, "HEAD") for address in ADDRESSES),
        client.get("/nothing"),
        Client(client.port).get("/"),
    ):
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'self'; ")
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] in ("no-store", "no-cache")
        assert "server" not in answer.headers
        assert not any(name.startswith("access-control") for name in answer.headers)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost:80", "LOCALHOST", "[::1]:9", "hub.example", "hub.example:443"]
)
def test_the_names_of_this_machine_and_those_allowed_are_answered(client: Client, host: str) -> None:
    assert client.get("/outputs", Host=host).status == 200


@pytest.mark.parametrize("host", ["", "evil.example", "127.0.0.1.evil.example", "localhost@evil", "[::2]", "127.0.0.2"])
def test_other_names_are_refused(client: Client, host: str) -> None:
    assert client.get("/outputs", Host=host).status in (400, 421)
    assert client.get(f"/?token={client.headers['Cookie'][-SECRET:]}", Host=host).status in (400, 421)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_only_get_is_answered(client: Client, method: str) -> None:
    assert [client.get(address, method).status for address in ADDRESSES] == [405] * len(ADDRESSES)


def test_head_is_get_without_the_bytes(client: Client) -> None:
    answer = client.get("/outputs", "HEAD")
    assert (answer.status, answer.body) == (200, b"")


def test_a_page_of_another_site_may_lead_here_and_ask_nothing(client: Client) -> None:
    for site in ("cross-site", "same-site"):
        asked = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors"}
        assert client.get("/outputs", **asked).status == 403
        assert client.get("/outputs", **{**asked, "Sec-Fetch-Mode": "navigate"}).status == 200
    assert client.get("/outputs", **{"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}).status == 200


def test_no_address_leads_elsewhere(client: Client, tmp_path: Path) -> None:
    for address in NOWHERE:
        answer = client.get(address)
        assert answer.status == 404, address
        assert str(tmp_path).encode() not in answer.body
    assert [client.get(f"/outputs/0/{address}").status for address in MALFORMED] == [400] * len(MALFORMED)


def test_no_answer_names_a_path_of_the_machine(client: Client, tmp_path: Path) -> None:
    for address in ADDRESSES:
        if address not in ("/events", "/outputs/0/point/v/0/1/1"):
            assert str(tmp_path).encode() not in client.get(address).body
    with client.events() as events:
        assert str(tmp_path) not in str(next(events))


def test_a_websocket_is_refused(client: Client) -> None:
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        "Sec-WebSocket-Version": "13",
    }
    assert client.get("/outputs", **upgrade).status >= 400
    assert client.get("/outputs").status == 200


def request_of(dice: random.Random, client: Client) -> bytes:
    """Return a request that is malformed in some way, or not meant for this server."""
    method = dice.choice(["GET", "GET", "HEAD", "POST", "get", "G" * 300, "\0", "PRI"])
    address = dice.choice(
        [*ADDRESSES, *NOWHERE, "*", "http://evil.example/outputs", "/" + "a" * 20_000, "/?" + "token=x&" * 500]
    )
    address = "".join(character if dice.random() > 0.03 else chr(dice.randrange(256)) for character in address)
    lines = [f"{method} {address} {dice.choice(['HTTP/1.1', 'HTTP/1.1', 'HTTP/1.0', 'HTTP/2.0', 'HTTP/9', ''])}"]
    lines += dice.sample(
        [
            "Host: localhost", f"Host: localhost:{client.port}", f"Cookie: {client.headers['Cookie']}",
            "Cookie: ;;==;\xff", "Content-Length: 99999999999999",
            "Content-Length: -1", "Transfer-Encoding: chunked", "Connection: close",
            "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAA",
            "Expect: 100-continue", "Range: bytes=0-1", "X: " + "y" * dice.choice([1, 30_000]), ": nothing", "Host : x",
        ],
        dice.randrange(8),
    )  # fmt: skip
    text = "\r\n".join(lines) + dice.choice(["\r\n\r\n", "\r\n\r\n", "\r\n\r\n", "\n\n", "\r\n", ""])
    data = text.encode("latin-1") + dice.randbytes(dice.choice([0, 0, 10, 70_000]))
    return dice.randbytes(dice.randrange(2000)) if dice.random() < 0.1 else data


def test_malformed_requests_get_nothing_and_change_nothing(client: Client, tmp_path: Path) -> None:
    client.get("/outputs/0/proxies/v/0/0")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*")}
    memory, dice = psutil.Process().memory_info().rss, random.Random(20)
    requests = [request_of(dice, client) for _ in range(1000)]

    def send(data: bytes) -> bytes:
        """Return the status of the answer; "" if the server closes the connection."""
        with socket.create_connection(("127.0.0.1", client.port), timeout=DEADLINE) as connection:
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                return connection.recv(12)[9:]
            except TimeoutError:
                raise
            except OSError:  # a connection that the server has closed can be reset, or not be connected any more
                return b""

    with ThreadPoolExecutor(32) as threads:  # the server waits a while for the rest of some requests
        statuses = list(threads.map(send, requests))
    for data, status in zip(requests, statuses, strict=True):
        if client.headers["Cookie"].encode() not in data:
            assert status in (b"", b"100", b"101", b"400", b"403", b"404", b"405", b"421", b"431", b"501"), data
    assert {b"400", b"403", b"421", b"405"} <= {*statuses}
    assert b"500" not in statuses
    assert client.get("/outputs").status == 200
    assert {path: path.read_bytes() for path in tmp_path.rglob("*")} == before
    assert psutil.Process().memory_info().rss - memory < 100 << 20


@pytest.mark.parametrize("known", [False, True])
def test_clients_that_take_no_answer_keep_nobody_out(
    known: bool, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "IDLE_SECONDS", 0.5)
    cookie = f"Cookie: {client.headers['Cookie']}\r\n" if known else ""
    request = f"GET /page/uPlot.esm.js HTTP/1.1\r\nHost: localhost\r\n{cookie}\r\n".encode()
    silent = [socket.socket() for _ in range(CONNECTIONS)]
    for connection in silent:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", client.port))
        connection.sendall(100 * request)
    until = time.monotonic() + DEADLINE
    while client.get("/outputs").status == 503:  # those who know the token can be too many at once
        assert known
        assert time.monotonic() < until
    for connection in silent:
        connection.close()


def test_no_connection_changes_to_http_2(client: Client) -> None:
    cookie = f"Cookie: {client.headers['Cookie']}\r\n"
    upgrade = "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    asked = f"GET /outputs HTTP/1.1\r\nHost: localhost\r\n{cookie}{upgrade}\r\n".encode()
    for data in (preface, asked + preface):
        with socket.create_connection(("127.0.0.1", client.port), timeout=DEADLINE) as connection:
            connection.sendall(data + b"\0\0\0\4\0\0\0\0\0")  # empty settings
            answer = connection.makefile("rb").read()  # until the server closes the connection
        assert answer.partition(b"\r\n\r\n")[2] == b""
    assert client.get("/outputs").status == 200


def test_streams_are_few_and_end_with_their_client(client: Client) -> None:
    request = f"GET /events HTTP/1.1\r\nHost: localhost\r\nCookie: {client.headers['Cookie']}\r\n\r\n".encode()
    connections = []
    for _ in range(LISTENERS):
        connections.append(socket.create_connection(("127.0.0.1", client.port), timeout=DEADLINE))
        connections[-1].sendall(request)
        assert b"200" in connections[-1].recv(4096)
    assert client.get("/events").status == 503
    assert client.get("/outputs").status == 200
    for connection in connections:
        connection.close()
    until = time.monotonic() + DEADLINE
    while client.get("/events", "HEAD").status == 503:
        assert time.monotonic() < until
