"""The page as an ASGI application: who may ask, and a table of addresses with the function that answers each.

Every request is a GET. An address holds numbers and the names of fields, and never a path; nothing in an answer names a
path of the machine.
"""

import json
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial
from importlib.resources import files
from typing import Any, NamedTuple
from urllib.parse import parse_qs

import structlog
import trio

from gsio.look.live import Live
from gsio.look.source import Snapshot, Source

log = structlog.get_logger()

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

REQUESTS = 64  # requests that are answered at once
STREAMS = 24  # event streams at once
NUMBER = r"(\d{1,9})"
FIELD = r"([uv])"
HEADERS = (
    ("Content-Security-Policy",
     "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'self' http://localhost:* http://127.0.0.1:*"),
    ("X-Content-Type-Options", "nosniff"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
)  # fmt: skip
KINDS = {
    "html": "text/html; charset=utf-8", "js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml", "png": "image/png", "txt": "text/plain; charset=utf-8",
}  # fmt: skip
BYTES, JSON, TEXT, EVENTS = "application/octet-stream", "application/json", KINDS["txt"], "text/event-stream"


class Answer(NamedTuple):
    """What a request gets: bytes, or pieces of a stream of events."""

    body: bytes | AsyncIterator[bytes]
    kind: str = BYTES
    headers: tuple[tuple[str, str], ...] = ()
    status: int = 200


class Refused(Exception):  # noqa: N818 - an answer, not a fault
    """A request that gets no more than a status and a line of text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class App:
    """The application; `token` opens the page once, and a cookie does afterwards.

    Attributes
    ----------
    hosts
        The names under which the page may be asked for.
    opened
        Is set when somebody has opened the page with the token.
    """

    def __init__(self, sources: list[Source], live: Live, token: str, port: int, hosts: frozenset[str]) -> None:
        self._sources, self._live, self._token, self._hosts = sources, live, token, hosts
        self._cookie = f"gsio-{port}"
        self._requests, self._streams = trio.CapacityLimiter(REQUESTS), trio.CapacityLimiter(STREAMS)
        self.opened = trio.Event()
        self._static = _static_files()
        self._routes: list[tuple[re.Pattern[str], Callable[..., Any]]] = [
            (re.compile(pattern), function)
            for pattern, function in (
                (r"/", self._index),
                (r"/page/([\w.-]+)", self._page),
                (r"/outputs", self._outputs),
                (r"/colours", self._colours),
                (r"/events", self._events),
                (rf"/outputs/{NUMBER}/series", self._series),
                (rf"/outputs/{NUMBER}/chunk/{FIELD}/{NUMBER}/{NUMBER}", self._chunk),
            )
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, as ASGI has it; hypercorn wants an exception for every scope that is not known."""
        if scope["type"] != "http":
            raise NotImplementedError(f"this application answers requests of HTTP, not {scope['type']}")
        try:
            answer = await self._answer(scope)
        except Refused as refused:
            answer = Answer(f"{refused}\n".encode(), TEXT, status=refused.status)
        except Exception as error:
            log.warning(f"a request failed: {type(error).__name__}: {error}")
            answer = Answer(b"the server failed to answer\n", TEXT, status=500)
        await _send(answer, scope["method"], receive, send)

    async def _answer(self, scope: Scope) -> Answer:
        query = self._check(scope)
        for pattern, function in self._routes:
            if (found := pattern.fullmatch(scope["path"])) is not None:
                answer: Answer = await function(query, *found.groups())
                return answer
        raise Refused(404, "there is nothing at this address")

    def _check(self, scope: Scope) -> dict[str, str]:
        """Return the query of a request; raise Refused unless it may be answered."""
        headers: dict[str, str] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1").lower(), value.decode("latin-1"))
        if _name_of(headers.get("host", "")) not in self._hosts:
            raise Refused(421, "this page is not known by that name; gsio view --allow-host NAME allows it")
        if scope["method"] not in ("GET", "HEAD"):
            raise Refused(405, "expected GET")
        query = {name: values[-1] for name, values in parse_qs(scope["query_string"].decode("latin-1")).items()}
        if scope["path"] == "/" and self._is_token(query.get("token", "")):
            return query
        cookies = (part.strip().partition("=") for part in headers.get("cookie", "").split(";"))
        if not any(name == self._cookie and self._is_token(value) for name, _, value in cookies):
            raise Refused(403, "open the address that gsio view has printed, with its token")
        site, mode = headers.get("sec-fetch-site", "none"), headers.get("sec-fetch-mode", "")
        if site not in ("none", "same-origin") and mode != "navigate":
            raise Refused(403, "another page may not ask here")
        query.pop("token", None)
        return query

    def _is_token(self, text: str) -> bool:
        return secrets.compare_digest(text.encode(), self._token.encode())

    async def _index(self, query: dict[str, str]) -> Answer:
        """Return the page, or the cookie to whoever has the token.

        A browser sends a strict cookie only where a page of the same site leads to it. A redirect does not count when
        the first link was in a file or on another site, so this is a page that leads to the next.
        """
        if "token" not in query:
            return await self._page(query, "index.html")
        self.opened.set()
        body = b"<!doctype html><title>gsio</title><meta http-equiv=refresh content='0; url=./'><a href='./'>gsio</a>\n"
        cookie = f"{self._cookie}={self._token}; HttpOnly; SameSite=Strict; Path=/"
        return Answer(body, KINDS["html"], (("Set-Cookie", cookie),))

    async def _page(self, query: dict[str, str], name: str) -> Answer:
        if name not in self._static:
            raise Refused(404, "there is no such file of the page")
        body = await trio.to_thread.run_sync(self._static[name].read_bytes)
        return Answer(body, KINDS[name.rpartition(".")[2]], (("Cache-Control", "no-cache"),))

    async def _outputs(self, query: dict[str, str]) -> Answer:
        return _json([source.describe() for source in self._sources])

    async def _colours(self, query: dict[str, str]) -> Answer:
        return _json(await trio.to_thread.run_sync(_colour_maps))

    async def _events(self, query: dict[str, str]) -> Answer:
        return Answer(self._limited(self._live.events()), EVENTS)

    async def _limited(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async with self._streams:
            async for piece in pieces:
                yield piece

    async def _series(self, query: dict[str, str], number: str) -> Answer:
        now, first = self._now(number), _whole(query.get("from", "0"))
        named = {name: values[first : now.frames].tolist() for name, values in now.series.items()}
        stats = {name.removeprefix("stats/"): _finite(values) for name, values in named.items() if name[:6] == "stats/"}
        return _json({"from": first, "time": named["time"], "step": named["step"], "stats": stats})

    async def _chunk(self, query: dict[str, str], number: str, field: str, chunk: str, slab: str) -> Answer:
        frames = self._field(number, field)
        if int(chunk) * frames.frames_per_chunk >= len(frames) or int(slab) >= frames.slabs:
            raise Refused(404, "there is no such chunk")
        body, encoding = await self._read(partial(frames.for_page, int(chunk), int(slab)))
        return Answer(body, BYTES, (("Content-Encoding", encoding),) if encoding else ())

    async def _read(self, function: Callable[[], Any]) -> Any:
        try:
            return await trio.to_thread.run_sync(function, limiter=self._requests)
        except (OSError, ValueError, LookupError) as error:
            raise Refused(410, f"the frame cannot be read: {getattr(error, 'strerror', None) or error}") from None

    def _now(self, number: str) -> Snapshot:
        if int(number) >= len(self._sources):
            raise Refused(404, "there is no such output")
        now = self._sources[int(number)].now
        if now is None:
            raise Refused(404, "the output does not exist yet, or no longer")
        return now

    def _field(self, number: str, field: str) -> Any:
        now = self._now(number)
        if field not in now.fields:
            raise Refused(404, "the output has no such field")
        return now.fields[field]


async def _send(answer: Answer, method: str, receive: Receive, send: Send) -> None:
    """Send an answer; the stream of one ends when the client goes away."""
    headers = {**dict(HEADERS), "Cache-Control": "no-store", "Content-Type": answer.kind, **dict(answer.headers)}
    streamed = not isinstance(answer.body, bytes)
    if not streamed:
        headers["Content-Length"] = str(len(answer.body))  # type: ignore[arg-type]
    start = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": start})
    if method == "HEAD" or not streamed:
        await send({"type": "http.response.body", "body": b"" if method == "HEAD" else answer.body})
        return
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_until_gone, receive, nursery.cancel_scope)
        async for piece in answer.body:  # type: ignore[union-attr]
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        nursery.cancel_scope.cancel()


async def _until_gone(receive: Receive, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def _static_files() -> dict[str, Any]:
    """Return the files of the page by name; nothing else can be asked for."""
    folder = files("gsio.look") / "page"
    with suppress(FileNotFoundError):
        return {file.name: file for file in folder.iterdir() if file.name.rpartition(".")[2] in KINDS}
    return {}


def _colour_maps() -> dict[str, Any]:
    from base64 import b64encode

    from gsio.draw.colours import DEFAULT, NAMES, table

    return {"default": DEFAULT, "maps": {name: b64encode(table(name).tobytes()).decode() for name in NAMES}}


def _json(value: Any) -> Answer:
    return Answer(json.dumps(value, allow_nan=False).encode(), JSON)


def _finite(values: list[Any]) -> list[Any]:
    """Return values as JSON can hold them: None stands for those that are not finite."""
    return [value if abs(value) < float("inf") else None for value in values]


def _whole(text: str) -> int:
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise Refused(400, "expected a whole number")
    return int(text)


def _name_of(host: str) -> str:
    """Return the name in a Host header, without its port."""
    return re.sub(r":\d{1,5}$", "", host).lower()
