"""A dead letter's payload, changed by somebody who does not see its secrets."""

from collections.abc import Mapping
from typing import Any

from streams_queue.codec import DEEPEST, Fields, _is_too_deep, changed_fields
from streams_queue.errors import InvalidMessage
from streams_queue.queue import Queue
from streams_queue.redaction import HIDDEN
from streams_queue.shown import TOO_DEEP

_NEW: Any = object()
"""Stands for what was shown where nothing was."""


def check_depth(data: Mapping[str, Any]) -> None:
    """Refuse what is nested too deep to be gone through, or to be stored.

    Raises:
        InvalidMessage: it is.
    """
    for name, value in data.items():
        if isinstance(value, (dict, list)) and _is_too_deep(value):
            raise InvalidMessage(f"payload field {name!r} is nested deeper than {DEEPEST} levels: make it flatter")


def restored(given: Any, shown: Any, original: Any, where: str = "the payload") -> Any:
    """What was given, with every part that is as it was `shown` as it was originally: hidden values stay.

    Raises:
        InvalidMessage: a hidden value's sign stands where nothing was hidden.
    """
    if _same(given, shown):
        return original
    if isinstance(given, dict):
        return _restored_mapping(given, shown, original, where)
    if isinstance(given, list):
        return _restored_list(given, shown, original, where)
    if isinstance(given, str) and (HIDDEN in given or given == TOO_DEEP):
        raise InvalidMessage(
            f"{where} was changed and has {HIDDEN} in it, which stands for something that is not shown: leave it as it "
            "was, or write it out"
        )
    return given


def _restored_mapping(given: dict[str, Any], shown: Any, original: Any, where: str) -> dict[str, Any]:
    known = isinstance(shown, Mapping) and isinstance(original, Mapping) and len(shown) == len(original)
    names = dict(zip(shown, original, strict=True)) if known else {}  # a name may have a secret in it, too
    found: dict[str, Any] = {}
    for name, value in given.items():
        if HIDDEN in name and name not in names:
            raise InvalidMessage(f"the name {name!r} has {HIDDEN} in it, which stands for something that is not shown")
        real = names.get(name, name)
        there = name in names
        found[real] = restored(
            value, shown[name] if there else _NEW, original[real] if there else _NEW, f"{where}, {name!r}"
        )
    return found


def _restored_list(given: list[Any], shown: Any, original: Any, where: str) -> Any:
    kind = type(original) if isinstance(original, (tuple, set, frozenset)) else list
    before, hidden = (list(shown), list(original)) if isinstance(shown, list) else ([], [])
    if len(given) != len(before):  # something was added or taken out: each is known by how it was shown
        order = [next((n for n, old in enumerate(before) if _same(item, old)), -1) for item in given]
    else:
        order = list(range(len(given)))
    return kind(
        restored(item, before[n] if n >= 0 else _NEW, hidden[n] if n >= 0 else _NEW, f"{where}, item {place}")
        for place, (item, n) in enumerate(zip(given, order, strict=True), 1)
    )


def _same(given: Any, shown: Any) -> bool:
    # 1, 1.0 and True are equal, and not the same.
    if isinstance(given, dict) and isinstance(shown, dict):
        return given.keys() == shown.keys() and all(_same(given[name], shown[name]) for name in given)
    if isinstance(given, list) and isinstance(shown, list):
        return len(given) == len(shown) and all(map(_same, given, shown))
    return type(given) is type(shown) and bool(given == shown)


async def amend(queue: Queue[dict[str, Any]], id: str, died: float, fields: Fields, data: dict[str, Any]) -> str:
    """Give a dead letter this payload: ``amended``, ``missing``, or ``changed`` where it died again meanwhile.

    Raises:
        InvalidMessage: the payload cannot be stored, or is too large.
    """
    queue.codec.encode(data)
    before = queue.codec.decode(id, fields).data
    changes = {name: value for name, value in data.items() if not (name in before and _same(value, before[name]))}
    written, removed = changed_fields(fields, changes, before.keys() - data.keys())
    return await queue.transitions.amend(id, died, written, removed)
