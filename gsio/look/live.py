"""What happens to the outputs: their files are looked at a few times a second, and whoever listens hears of changes."""

import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import trio

from gsio.look.proxies import Proxies
from gsio.look.source import Source

LOOK_SECONDS = 0.25
QUIET_SECONDS = 15.0  # a listener gets something at least as often


class Live:
    """The state of all outputs as events: each listener gets the newest state of an output, and may miss older ones."""

    def __init__(self, sources: Sequence[Source], proxies: Proxies) -> None:
        self._sources, self._proxies = sources, proxies
        self._versions, self._proxied = [1] * len(sources), [0] * len(sources)
        self._changed = trio.Event()

    async def watch(self) -> None:
        """Look at the outputs until cancelled."""
        while True:
            changed = [await trio.to_thread.run_sync(self._look, place) for place in range(len(self._sources))]
            self._versions = [version + new for version, new in zip(self._versions, changed, strict=True)]
            if any(changed):
                self._changed.set()
                self._changed = trio.Event()
            await trio.sleep(LOOK_SECONDS)

    def _look(self, place: int) -> bool:
        """Look at one output, and return whether there is news."""
        source, before = self._sources[place], self._proxied[place]
        if (changed := source.look()) and source.now is not None:
            self._proxies.follow(source.now)
        self._proxied[place] = 0 if source.now is None else self._proxies.ready(source.now)
        return changed or self._proxied[place] != before

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Yield the state of each output, and again whenever it has changed."""
        seen, there = [0] * len(self._sources), [False] * len(self._sources)
        while True:
            changed = self._changed
            for place, source in enumerate(self._sources):
                if seen[place] == self._versions[place]:
                    continue
                seen[place], was_there, there[place] = self._versions[place], there[place], source.now is not None
                if was_there and not there[place]:
                    yield event("gone", {"number": source.number})
                yield event("output", self._state(place))
            with trio.move_on_after(QUIET_SECONDS) as waiting:
                await changed.wait()
            if waiting.cancelled_caught:
                yield b": still here\n\n"

    def _state(self, place: int) -> dict[str, Any]:
        source = self._sources[place]
        return source.describe() | {"progress": source.progress, "proxied": self._proxied[place]}


def event(name: str, value: Any) -> bytes:
    """Return a server-sent event; "" is the name of a plain message."""
    return (f"event: {name}\n" * bool(name) + f"data: {json.dumps(value, allow_nan=False)}\n\n").encode()
