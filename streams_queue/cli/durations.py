"""Durations and times as options."""

import math
from datetime import datetime

import typer

from streams_queue.durations import seconds_of


def duration(text: str) -> float:
    """Seconds, from ``90``, ``90s``, ``15m``, ``2h`` or ``3d``.

    Raises:
        typer.BadParameter: it is none of these.
    """
    try:
        return seconds_of(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def time(text: str) -> float:
    """Epoch seconds, from themselves or from ``2026-12-24T18:00:00+01:00``.

    Raises:
        typer.BadParameter: it is neither, or has no time zone.
    """
    try:
        seconds = float(text)
    except ValueError:
        seconds = _iso(text)
    if not math.isfinite(seconds):
        raise typer.BadParameter(f"{text!r} is no time")
    return seconds


def _iso(text: str) -> float:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no time: write for example 2026-12-24T18:00:00+01:00, or epoch seconds"
        ) from None
    if found.utcoffset() is None:
        raise typer.BadParameter(f"{text!r} has no time zone: add Z, or an offset as in {text}+01:00")
    return found.timestamp()
