"""Durations and times, as people write and read them."""

import math
import re
from datetime import UTC, datetime

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")


def seconds_of(text: str) -> float:
    """Seconds, from ``90``, ``90s``, ``15m``, ``2h`` or ``3d``.

    Raises:
        ValueError: it is none of these.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no duration: write for example 90s, 15m, 2h or 3d")
    return float(match[1]) * _UNITS[match[2] or "s"]


def spelt(seconds: float) -> str:
    """A duration in its two largest units: ``2h 5m``, ``4.2s``."""
    if not math.isfinite(seconds):
        return str(seconds)
    if abs(seconds) < 60:
        return f"{seconds:.1f}s"
    rest, parts = abs(round(seconds)), []
    for unit, size in reversed(_UNITS.items()):
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count}{unit}")
    return ("-" if seconds < 0 else "") + " ".join(parts[:2])


def ago(time: float, now: float) -> str:
    """How long ago that was, or in how long it will be."""
    return f"{spelt(now - time)} ago" if time <= now else f"in {spelt(time - now)}"


def stamp(time: float) -> str:
    """A time in full: ``2026-01-31 12:00:00Z``."""
    try:
        return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return f"{time:.0f}"


def moment(time: float, now: float) -> str:
    """A time in full and how far off it is: ``2026-01-31 12:00:00Z (3m 2s ago)``."""
    return f"{stamp(time)} ({ago(time, now)})"
