"""Values as the old code took them, made ones that the engine gives back as they were put in."""

import json
from collections.abc import Mapping
from typing import Any


def storable(values: Mapping[str, Any]) -> dict[str, Any]:
    """Lists, dicts, tuples and sets as JSON has them, and the text of what is no plain value: as they were stored."""
    return {name: _storable(value) for name, value in values.items()}


def _storable(value: Any) -> Any:
    match value:
        case None | str() | bytes() | bytearray() | memoryview() | bool() | int() | float():
            return value
        case list() | dict():
            return _as_json(value)
        case tuple():
            items = _as_json(list(value))
            return tuple(items)
        case set() | frozenset():
            items = _as_json(list(value))
            return items if any(isinstance(item, list) for item in items) else type(value)(items)
    return str(value)


def _as_json(value: Any) -> Any:
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError, RecursionError):
        return value  # refused with its reason when it is encoded
