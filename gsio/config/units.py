"""Values with a unit: sizes, intervals and times."""

import re
from collections.abc import Sequence
from typing import Any

from gsio.errors import UsageError


def parse_bytes(key: str, text: str) -> int:
    """Return a size in bytes. `text` is the value of `key`: a number and one of the units MB, GB, MiB and GiB."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([MG])(i?)B\s*", text)
    if found is None:
        raise UsageError(f"{key}: expected a number and a unit, such as 512MiB or 2GB, got {shortened(text)}")
    number, unit, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** {"M": 2, "G": 3}[unit])


def parse_interval(key: str, value: int | str) -> tuple[int, float]:
    """Return an interval as (frames, seconds), one of them 0. `value`, of `key`, is a number of frames or a time."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", str(value))
    if found is None or ("." in found[1] and not found[2]):
        raise UsageError(
            f"{key}: expected a number of frames, or a time such as 90s, 15m or 2h, got {shortened(value)}"
        )
    number, unit = found.groups()
    return (0, float(number) * {"s": 1, "m": 60, "h": 3600}[unit]) if unit else (int(number), 0.0)


def parse_walltime(key: str, text: str) -> float:
    """Return a time in seconds. `text` is the value of `key`: hours, minutes and seconds, such as 1:30:00."""
    found = re.fullmatch(r"\s*(\d+):([0-5]?\d):([0-5]?\d)\s*", text)
    if found is None:
        raise UsageError(f"{key}: expected hours, minutes and seconds, such as 1:30:00, got {shortened(text)}")
    hours, minutes, seconds = map(int, found.groups())
    return float(3600 * hours + 60 * minutes + seconds)


def parse_devices(key: str, value: int | str) -> tuple[int, ...] | None:
    """Return numbers of GPUs; `value`, of `key`, lists them, or is "" for none of them, or "all", which is None."""
    if value == "all":
        return None
    found = re.fullmatch(r"(\s*\d{1,4}\s*(,\s*\d{1,4}\s*)*)?", str(value))
    numbers = [int(number) for number in str(value).split(",")] if found is not None and found[0] else []
    if found is None or len(set(numbers)) < len(numbers):
        raise UsageError(f"{key}: expected all, or numbers of GPUs such as 0,1, each once, got {shortened(value)}")
    return tuple(numbers)


def one_of(names: Sequence[str]) -> str:
    """Return names for a sentence: "a, b or c"."""
    return f"{', '.join(names[:-1])} or {names[-1]}"


def shortened(value: Any) -> str:
    """Return a value for a message, cut if it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print thousands of digits
        return "a number that is too long"
    return text if len(text) <= 60 else f"{text[:40]}… ({len(text)} characters)"
