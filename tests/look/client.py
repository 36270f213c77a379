"""A browser for tests: it asks the server of a page, and decodes chunks as the page does."""

import http.client
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from patience import DEADLINE


class Response(NamedTuple):
    """The status, the headers and the body of an answer; `body` is decompressed, as a browser does."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """Somebody who asks a server of this machine; `server` has a port and a token, which not everybody knows."""

    def __init__(self, port: int, token: str = "") -> None:
        self.port = port
        self.headers = {"Cookie": f"gsio-{port}={token}"} if token else {}

    def get(self, address: str, method: str = "GET", **headers: str) -> Response:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        connection.request(method, address, headers={**self.headers, **headers})
        answer = connection.getresponse()
        body, names = answer.read(), {name.lower(): value for name, value in answer.getheaders()}
        connection.close()
        return Response(answer.status, names, zlib.decompress(body) if body and "content-encoding" in names else body)

    @contextmanager
    def events(self, address: str = "/events") -> Iterator[Iterator[tuple[str, Any]]]:
        """Give the events of a stream: the name and the data of each."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        connection.request("GET", address, headers=self.headers)
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        try:
            yield _events(answer)
        finally:
            answer.close()
            connection.close()

    def output(self, number: int = 0) -> dict[str, Any]:
        found: dict[str, Any] = self.get("/outputs").json[number]
        return found

    def chunk(self, output: dict[str, Any], field: str, number: int, slab: int) -> NDArray[Any]:
        """Return a chunk, [frame, line, …] for a single grid or [frame, member, row, col]."""
        address = f"/outputs/{output['number']}/chunk/{field}/{number}/{slab}"
        body, how = self.get(address).body, output["chunk"]
        dtype = np.dtype(how["dtype"])
        if how["layout"] == "planes":  # all first bytes of the values, then all second bytes, …
            values = np.ascontiguousarray(np.frombuffer(body, np.uint8).reshape(dtype.itemsize, -1).T).view(dtype)
        else:
            values = np.frombuffer(body, dtype)
        if how["scale"] is not None:
            values = (values * np.float64(how["scale"])).astype(output["dtype"])
        rest = (output["rows"], output["cols"]) if output["members"] > 1 else (output["cols"],)
        return values.reshape(how["frames"], how["rows"], *rest)

    def frame(self, output: dict[str, Any], field: str, frame: int) -> NDArray[Any]:
        """Return a frame, [member, row, col], put together from its chunks."""
        how, shape = output["chunk"], [output[name] for name in ("members", "rows", "cols")]
        number, place = divmod(frame, how["frames"])
        lines = np.concatenate([self.chunk(output, field, number, slab)[place] for slab in range(how["slabs"])])
        return lines[: shape[0] if shape[0] > 1 else shape[1]].reshape(shape)


def _events(answer: http.client.HTTPResponse) -> Iterator[tuple[str, Any]]:
    name = "message"
    for line in answer:
        key, _, value = line.decode().rstrip("\n").partition(": ")
        if key == "event":
            name = value
        elif key == "data":
            yield name, json.loads(value)
            name = "message"
