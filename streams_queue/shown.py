"""What is shown of a message: everything but its secrets."""

from typing import Any

import msgspec

from streams_queue.codec import _is_too_deep
from streams_queue.model import Message
from streams_queue.redaction import cleared, scrubbed

BODIES = 100
"""Messages whose bodies are in memory at the same time, at most: each may take a megabyte."""

TOO_DEEP = "(nested too deep to be shown)"


def data_of(message: Message[dict[str, Any]]) -> dict[str, Any]:
    """The payload, its secrets hidden."""
    shallow = {name: _shallow(value) for name, value in message.data.items()}
    shown: dict[str, Any] = cleared(shallow, message.data)
    return shown


def error_of(message: Message[dict[str, Any]]) -> str | None:
    """The error's text, the message's secrets hidden."""
    return None if message.error is None else scrubbed(message.error, message.data)


def result_of(encoded: bytes) -> Any:
    """A handler's result, its secrets hidden."""
    value = msgspec.json.decode(encoded)
    return cleared(_shallow(value), value)


def _shallow(value: Any) -> Any:
    return TOO_DEEP if isinstance(value, (dict, list, tuple)) and _is_too_deep(value) else value
