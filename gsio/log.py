"""Events go to structlog, and from there to stderr as lines of text or, when asked, of JSON.

To import structlog takes as long as half of the rest of a run's start. Lines of text do not need it: as long as
nobody has configured structlog, they are written here, the same as structlog would write them.
"""

import io
import sys
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Literal, TextIO

from gsio.inputs import printable

LogFormat = Literal["text", "json"]

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}  # those of the standard library
SILENT = 50

_run = ContextVar("run", default="")  # the id of the run
_waiting: tuple[int, TextIO | None] | None = None  # the level and the stream of lines until structlog is configured


def configure(
    log_format: LogFormat,
    *,
    quiet: bool = False,
    debug: bool = False,
    silent: bool = False,
    stream: TextIO | None = None,
) -> None:
    """Send events to `stream`, by default stderr.

    `quiet` keeps warnings only, and `silent` nothing; `debug` adds each commit.
    """
    global _waiting
    level = LEVELS["debug" if debug else "warning" if quiet else "info"]
    _waiting = SILENT if silent else level, stream
    if log_format == "json" or "structlog" in sys.modules:
        _configure_structlog(log_format, *_waiting)


def configure_unless_done() -> None:
    """Keep warnings only, if a program has called gsio that has said nothing about logging."""
    if "structlog" in sys.modules:
        import structlog

        done = structlog.is_configured()
    else:
        done = _waiting is not None
    if not done:
        configure("text", quiet=True)


def name_run(name: str) -> None:
    """Add the id of a run to all later events of this context."""
    _run.set(name)


def bound() -> dict[str, Any]:
    """Return the values that are added to the events of this context: the id of the run, and those of structlog."""
    of_structlog = sys.modules["structlog"].contextvars.get_contextvars() if "structlog" in sys.modules else {}
    return ({"run": name} if (name := _run.get()) else {}) | of_structlog


def _emit(method: str, event: str, values: dict[str, Any]) -> None:
    known = sys.modules.get("structlog")
    if _waiting is not None and (known is None or not known.is_configured()):
        level, stream = _waiting
        if LEVELS[method] >= level:
            line = _line(None, method, {**bound(), **values, "level": method, "event": event})
            _opened(stream).write(line + "\n")
            _opened(stream).flush()
        return
    import structlog

    getattr(structlog.get_logger(), method)(event, **bound() | values)


class _Log:
    """The methods of a logger: each takes the name of an event, and its values."""

    def __getattr__(self, method: str) -> Callable[..., None]:
        if method not in LEVELS:
            raise AttributeError(f"expected one of {', '.join(LEVELS)}, got '{method}'")
        return lambda event, **values: _emit(method, event, values)


log = _Log()


def _configure_structlog(log_format: LogFormat, level: int, stream: TextIO | None) -> None:
    import structlog

    processors: list[Any] = [structlog.contextvars.merge_contextvars, structlog.processors.add_log_level]
    if log_format == "text":
        processors.append(_line)
    else:
        processors += [structlog.processors.TimeStamper(fmt="iso"), structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: structlog.PrintLogger(_opened(stream)),  # sys.stderr can be replaced later
        cache_logger_on_first_use=False,
    )


def _opened(stream: TextIO | None) -> TextIO:
    """Return the stream for events. Without a stderr, as in some services, events are dropped."""
    return stream or sys.stderr or io.StringIO()


def _line(logger: Any, method: str, event: Any) -> str:
    """Render an event as text: its name, then its values."""
    level = event.pop("level")
    prefix = "gsio: " if level in ("info", "debug") else f"gsio: {level}: "
    values = " ".join(f"{key}={value}" for key, value in event.items() if key not in ("event", "run"))
    return printable(f"{prefix}{event['event']} {values}".rstrip())
