"""The page as an ASGI application: who may ask, and a table of addresses with the function that answers each.

Every request is a GET. An address holds numbers and the names of fields, and never a path; nothing in an answer names a
path of the machine.
"""

import json
import re
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Set
from contextlib import aclosing, contextmanager
from functools import partial
from importlib.resources import files
from typing import Any, NamedTuple
from urllib.parse import parse_qs

import trio

from gsio.frames.content import NAME
from gsio.log import log
from gsio.look.live import Live, event
from gsio.look.proxies import Proxies, Wanted, make_proxies
from gsio.look.source import GROUP, WINDOW_CELLS, Snapshot, Source, finite, values_at, window

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

REQUESTS = 24  # requests that are answered at once; a browser has six connections
LISTENERS = 24  # clients listen to events at once
THREADS = 4  # these read frames
STRANGE = 403, 405, 421  # answers to those who may not ask; their connections end, because few are free
PIECE_SECONDS = 0.1  # the time to read a piece of a curve, which is sent at once
NUMBER = r"([0-9]{1,9})"
RANGE = r"([0-9]{1,9}):([0-9]{1,9}):([0-9]{1,9})"
FIELD = f"({NAME})"
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
    """What a request gets: bytes, or events one after another."""

    body: bytes | AsyncGenerator[bytes, None]
    kind: str = BYTES
    headers: tuple[tuple[str, str], ...] = ()
    status: int = 200


class Refused(Exception):  # noqa: N818 - an answer, not a fault
    """A request that gets no more than a status and a line of text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Busy:
    """A number of requests of one kind, at most `most` at once; others are refused."""

    def __init__(self, most: int) -> None:
        self._most, self._now = most, 0

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Count a request while it is answered."""
        if self._now >= self._most:
            raise Refused(503, "too many requests at once; try again")
        self._now += 1
        try:
            yield
        finally:
            self._now -= 1


class Route(NamedTuple):
    """An address, the function that answers, and the requests that count together with this one."""

    pattern: re.Pattern[str]
    answer: Callable[..., Awaitable[Answer]]
    busy: Busy


class App:
    """The application.

    Parameters
    ----------
    token, port
        The token in the address that opens the page, and in the cookie afterwards, whose name has the port.
    hosts
        The names under which the page may be asked for; None: all.
    opened
        Is called when somebody opens the page with the token.
    """

    def __init__(
        self,
        sources: list[Source],
        live: Live,
        proxies: Proxies,
        token: str,
        port: int,
        hosts: Set[str] | None,
        opened: Callable[[], object],
    ) -> None:
        self._sources, self._live, self._proxies, self._token, self._hosts = sources, live, proxies, token, hosts
        self._cookie = f"gsio-{port}"
        self._threads, self._patient = trio.CapacityLimiter(THREADS), trio.CapacityLimiter(1)
        self._opened = opened
        self._static = _static_files()
        requests, listeners = Busy(REQUESTS), Busy(LISTENERS)
        self._routes = [
            Route(re.compile(pattern), function, busy)
            for pattern, function, busy in (
                (r"/", self._index, requests),
                (r"/page/([A-Za-z0-9_.-]+)", self._page, requests),
                (r"/outputs", self._outputs, requests),
                (r"/colours", self._colours, requests),
                (r"/events", self._events, listeners),
                (rf"/outputs/{NUMBER}/axes", self._axes, requests),
                (rf"/outputs/{NUMBER}/series", self._series, requests),
                (rf"/outputs/{NUMBER}/chunk/{FIELD}/{NUMBER}/{NUMBER}", self._chunk, requests),
                (rf"/outputs/{NUMBER}/window/{FIELD}/{NUMBER}/{NUMBER}/{RANGE}/{RANGE}", self._window, requests),
                (rf"/outputs/{NUMBER}/proxies/{FIELD}/{NUMBER}/{NUMBER}", self._group, requests),
                (rf"/outputs/{NUMBER}/proxy/{FIELD}/{NUMBER}/{NUMBER}", self._proxy, requests),
                (rf"/outputs/{NUMBER}/point/{FIELD}/{NUMBER}/{NUMBER}/{NUMBER}", self._point, listeners),
            )
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, as ASGI has it; hypercorn wants an exception for a scope that is not known."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
            return
        if scope["type"] != "http":
            raise NotImplementedError(f"this application answers requests of HTTP, not {scope['type']}")
        try:
            query = self._check(scope)
            route, groups = self._find(scope["path"])
            with route.busy.entered():
                await _send(await route.answer(query, *groups), scope["method"], receive, send)
        except Refused as refused:
            headers = (("Connection", "close"),) if refused.status in STRANGE else ()
            answer = Answer(f"{refused}\n".encode(), TEXT, headers, refused.status)
            await _send(answer, scope["method"], receive, send)
        except Exception as error:
            log.warning(f"the page: a request failed: {type(error).__name__}: {error}")
            raise

    def _find(self, path: str) -> tuple["Route", tuple[str, ...]]:
        for route in self._routes:
            if (found := route.pattern.fullmatch(path)) is not None:
                return route, found.groups()
        raise Refused(404, "there is nothing at this address")

    def _check(self, scope: Scope) -> dict[str, str]:
        """Return the query of a request; raise Refused unless it may be answered."""
        headers: dict[str, str] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1").lower(), value.decode("latin-1"))
        if self._hosts is not None and _name_of(headers.get("host", "")) not in self._hosts:
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
        self._opened()
        body = (
            b'<!doctype html><html lang="en"><title>gsio</title><link rel="icon" href="./page/favicon.svg">'
            b'<meta http-equiv="refresh" content="0; url=./"><a href="./">Open the page</a></html>\n'
        )
        # A cookie without a path is for the folder of this address.
        cookie = f"{self._cookie}={self._token}; HttpOnly; SameSite=Strict"
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
        return Answer(self._live.events(), EVENTS)

    async def _axes(self, query: dict[str, str], number: str) -> Answer:
        return _json(self._now(number).axes)

    async def _series(self, query: dict[str, str], number: str) -> Answer:
        now, first = self._now(number), query.get("from", "0")
        if not re.fullmatch(NUMBER, first):
            raise Refused(400, "expected a whole number, as in ?from=10")
        named = {name: values[int(first) : now.frames].tolist() for name, values in now.series.items()}
        stats = {name.removeprefix("stats/"): finite(values) for name, values in named.items() if name[:6] == "stats/"}
        return _json({"from": int(first), "time": finite(named["time"]), "step": named["step"], "stats": stats})

    async def _chunk(self, query: dict[str, str], number: str, field: str, chunk: str, slab: str) -> Answer:
        now = self._shown(number, field)
        frames = now.fields[field]
        _expect(int(chunk) * frames.frames_per_chunk < now.frames and int(slab) < frames.slabs, "no such chunk")
        body, encoding = await self._read(frames.for_page, int(chunk), int(slab))
        return Answer(body, BYTES, (("Content-Encoding", encoding),) if encoding else ())

    async def _window(
        self, query: dict[str, str], number: str, field: str, member: str, frame: str, *bounds: str
    ) -> Answer:
        now = self._shown(number, field, member, frame)
        top, bottom, row_step, left, right, col_step = map(int, bounds)
        _, rows, cols = now.shape
        if not (top < bottom <= rows and left < right <= cols and row_step and col_step):
            raise Refused(400, f"expected rows of 0:{rows}:1 and columns of 0:{cols}:1")
        lines, columns = range(top, bottom, row_step), range(left, right, col_step)
        if len(lines) * len(columns) > WINDOW_CELLS:
            raise Refused(400, f"expected at most {WINDOW_CELLS} cells, got {len(lines)} × {len(columns)}")
        found = await self._read(window, now, field, int(member), int(frame), lines, columns)
        return Answer(found.astype(found.dtype.newbyteorder("<"), copy=False).tobytes())

    async def _group(self, query: dict[str, str], number: str, field: str, member: str, group: str) -> Answer:
        now = self._shown(number, field, member)
        _expect(int(group) * GROUP < now.frames_of(int(member)), "no such group of frames")
        wanted = Wanted(now, field, int(member), int(group))
        return Answer(await self._read(self._proxies.group, wanted), BYTES, (("Content-Encoding", "deflate"),))

    async def _proxy(self, query: dict[str, str], number: str, field: str, member: str, frame: str) -> Answer:
        now = self._shown(number, field, member, frame)
        (found,) = await self._read(make_proxies, now, field, int(member), range(int(frame), int(frame) + 1))
        return Answer(found)

    async def _point(self, query: dict[str, str], number: str, field: str, member: str, row: str, col: str) -> Answer:
        now = self._shown(number, field, member)
        _expect(int(row) < now.shape[1] and int(col) < now.shape[2], "no such cell")
        return Answer(self._values(now, field, (int(member), int(row), int(col))), EVENTS)

    async def _values(self, now: Snapshot, field: str, cell: tuple[int, int, int]) -> AsyncGenerator[bytes, None]:
        """Yield the values of a cell in all frames, coarse to fine, a few times a second."""
        chunks = _coarse_to_fine(-(-now.frames_of(cell[0]) // now.fields[field].frames_per_chunk))

        def some() -> tuple[list[int], list[Any]]:
            frames: list[int] = []
            values: list[Any] = []
            end = time.monotonic() + PIECE_SECONDS
            for chunk in chunks:
                here, found = values_at(now, field, cell, chunk)
                frames += here
                values += found
                if time.monotonic() > end:
                    break
            return frames, values

        while True:
            frames, values = await trio.to_thread.run_sync(some, limiter=self._patient)
            if not frames:
                break
            yield event("", {"frames": frames, "values": values})
        yield event("done", {})

    async def _read(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function in a thread, while the work ahead rests; a frame that cannot be read has gone."""
        try:
            with self._proxies.answering():
                return await trio.to_thread.run_sync(partial(function, *arguments), limiter=self._threads)
        except (OSError, ValueError, LookupError) as error:
            raise Refused(410, f"the frame cannot be read: {_reason(error)}") from None

    def _now(self, number: str) -> Snapshot:
        _expect(int(number) < len(self._sources), "no such number")
        now = self._sources[int(number)].now
        if now is None:
            raise Refused(404, "the output does not exist yet, or no longer")
        return now

    def _shown(self, number: str, field: str, member: str = "0", frame: str = "0") -> Snapshot:
        """Return what is known of an output that has this field, member and frame."""
        now = self._now(number)
        _expect(field in now.fields, "no such field")
        _expect(int(member) < now.shape[0], "no such member")
        _expect(int(frame) < now.frames_of(int(member)), "no such frame")
        return now


def _coarse_to_fine(count: int) -> Iterator[int]:
    """Yield the numbers below `count`, each once: first 0, then those between the ones before."""
    step = 1 << (count - 1).bit_length() if count > 1 else 1
    yield from range(min(count, 1))
    while step > 1:
        yield from range(step // 2, count, step)
        step //= 2


def _expect(true: bool, text: str) -> None:
    if not true:
        raise Refused(404, f"the output has {text}")


def _reason(error: Exception) -> str:
    """Return why something cannot be read, without the path of a file."""
    return getattr(error, "strerror", None) or str(error)


async def _send(answer: Answer, method: str, receive: Receive, send: Send) -> None:
    """Send an answer; its events end when the client goes away."""
    body = answer.body
    headers = {**dict(HEADERS), "Cache-Control": "no-store", "Content-Type": answer.kind, **dict(answer.headers)}
    if isinstance(body, bytes):
        headers["Content-Length"] = str(len(body))
    start = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": start})
    if method == "HEAD" or isinstance(body, bytes):
        await send({"type": "http.response.body", "body": body if method != "HEAD" else b""})
        return
    async with aclosing(body) as pieces, trio.open_nursery() as nursery:
        nursery.start_soon(_until_gone, receive, nursery.cancel_scope)
        async for piece in pieces:
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
    return {file.name: file for file in folder.iterdir() if file.name.rpartition(".")[2] in KINDS}


def _colour_maps() -> dict[str, Any]:
    from base64 import b64encode

    from gsio.draw.colours import DEFAULT, NAMES, table

    return {"default": DEFAULT, "maps": {name: b64encode(table(name).tobytes()).decode() for name in NAMES}}


def _json(value: Any) -> Answer:
    return Answer(json.dumps(value, allow_nan=False).encode(), JSON)


def _name_of(host: str) -> str:
    """Return the name in a Host header, without its port."""
    return re.sub(r":\d{1,5}$", "", host).lower()
