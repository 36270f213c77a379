"""What happens to the outputs: their files are looked at a few times a second, and whoever listens hears of changes."""

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import trio

from gsio.look.source import Source

LOOK_SECONDS = 0.25
QUIET_SECONDS = 15.0  # at most, between two pieces of a stream
IDENTITY = ("pid", "process_started", "host", "run")  # values of a status file that say nothing to a viewer


class Live:
    """The state of all outputs as events: each listener gets the newest state of an output, and may miss older ones."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self._versions = [1] * len(sources)
        self._changed = trio.Event()

    async def watch(self) -> None:
        """Look at the outputs until cancelled."""
        while True:
            for place, source in enumerate(self._sources):
                if await trio.to_thread.run_sync(source.look):
                    self._versions[place] += 1
                    self._changed.set()
            if self._changed.is_set():
                self._changed = trio.Event()
            await trio.sleep(LOOK_SECONDS)

    async def events(self) -> AsyncIterator[bytes]:
        """Yield the state of each output, and again whenever it has changed."""
        seen, there = [0] * len(self._sources), [False] * len(self._sources)
        while True:
            changed = self._changed
            for place, source in enumerate(self._sources):
                if seen[place] == self._versions[place]:
                    continue
                seen[place], was_there, there[place] = self._versions[place], there[place], source.now is not None
                if was_there and not there[place]:
                    yield _event("gone", {"number": source.number})
                yield _event("output", self._state(source))
            with trio.move_on_after(QUIET_SECONDS) as waiting:
                await changed.wait()
            if waiting.cancelled_caught:
                yield b": still here\n\n"

    def _state(self, source: Source) -> dict[str, Any]:
        progress = {name: value for name, value in source.progress.items() if name not in IDENTITY}
        return source.describe() | {"progress": progress, "proxied": 0}


def _event(name: str, value: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps(value, allow_nan=False)}\n\n".encode()
