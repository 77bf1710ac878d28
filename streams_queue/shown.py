"""What is shown of a message: everything but its secrets."""

import json
import math
from collections.abc import Mapping
from typing import Any

import msgspec

from streams_queue.codec import _is_too_deep
from streams_queue.model import Message
from streams_queue.redaction import cleared, scrubbed

BODIES = 100
"""Messages whose bodies are in memory at the same time, at most: each may take a megabyte."""

TOO_DEEP = "(nested too deep to be shown)"


def data_of(message: Message[Any]) -> dict[str, Any]:
    """The payload, its secrets hidden."""
    data = message.data if isinstance(message.data, dict) else msgspec.to_builtins(message.data, str_keys=True)
    shallow = {name: _shallow(value) for name, value in data.items()}
    shown: dict[str, Any] = cleared(shallow, data)
    return shown


def error_of(message: Message[dict[str, Any]]) -> str | None:
    """The error's text, the message's secrets hidden."""
    return None if message.error is None else scrubbed(message.error, message.data)


def result_of(encoded: bytes) -> Any:
    """A handler's result, its secrets hidden."""
    value = msgspec.json.decode(encoded)
    return cleared(_shallow(value), value)


def json_of(value: Any) -> str:
    """The value as JSON in one line of printable ASCII; what JSON cannot hold (bytes, NaN) as the nearest it can."""
    return json.dumps(for_json(value)).replace("\x7f", "\\u007f")


def json_text(value: Any) -> str:
    """The value as JSON in several lines for people to read and to change: what is not printable is escaped."""
    lines = json.dumps(for_json(value), indent=2, ensure_ascii=False).split("\n")
    return "\n".join("".join(map(_as_json, line)) if not line.isprintable() else line for line in lines)


def _as_json(char: str) -> str:
    return char if char.isprintable() else json.dumps(char)[1:-1].replace("\x7f", "\\u007f")


def for_json(value: Any) -> Any:
    """The value as JSON can hold it."""
    match value:
        case bytes():
            return value.decode(errors="backslashreplace")
        case float() if not math.isfinite(value):
            return None
        case Mapping():
            return {str(key): for_json(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [for_json(item) for item in value]
    return value


def _shallow(value: Any) -> Any:
    return TOO_DEEP if isinstance(value, (dict, list, tuple)) and _is_too_deep(value) else value
