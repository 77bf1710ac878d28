"""Durations as options."""

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
