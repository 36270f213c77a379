"""Set-up of structlog: readable lines on a terminal, JSON lines off it, always on stderr."""

import io
import logging
import sys
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import EventDict, WrappedLogger

from gsio.inputs import printable

LogFormat = Literal["auto", "text", "json"]


def configure(log_format: LogFormat, *, quiet: bool = False, debug: bool = False, stream: TextIO | None = None) -> None:
    """Send events to `stream` (stderr if not given); `quiet` leaves warnings, `debug` adds an event for each commit."""
    as_text = log_format == "text" or (log_format == "auto" and _opened(stream).isatty())
    level = logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO
    processors: list[Any] = [structlog.contextvars.merge_contextvars, structlog.processors.add_log_level]
    if as_text:
        processors.append(_line)
    else:
        processors += [structlog.processors.TimeStamper(fmt="iso"), structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: structlog.PrintLogger(_opened(stream)),  # the stderr of the moment
        cache_logger_on_first_use=False,
    )


def _opened(stream: TextIO | None) -> TextIO:
    """Return where events go; a program without a stderr, as a service can be, hears none."""
    return stream or sys.stderr or io.StringIO()


def _line(logger: WrappedLogger, method: str, event: EventDict) -> str:
    """Render an event for a person: what happened, then what is known of it."""
    level = event.pop("level")
    prefix = "gsio: " if level in ("info", "debug") else f"gsio: {level}: "
    known = " ".join(f"{key}={value}" for key, value in event.items() if key not in ("event", "run"))
    return printable(f"{prefix}{event['event']} {known}".rstrip())
