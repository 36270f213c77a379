"""Set-up of structlog: events go to stderr as lines of text or, when asked, of JSON."""

import io
import logging
import sys
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import EventDict, WrappedLogger

from gsio.inputs import printable

LogFormat = Literal["text", "json"]


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
    level = logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO
    level = logging.CRITICAL if silent else level
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


def _line(logger: WrappedLogger, method: str, event: EventDict) -> str:
    """Render an event as text: its name, then its values."""
    level = event.pop("level")
    prefix = "gsio: " if level in ("info", "debug") else f"gsio: {level}: "
    values = " ".join(f"{key}={value}" for key, value in event.items() if key not in ("event", "run"))
    return printable(f"{prefix}{event['event']} {values}".rstrip())
