"""A message's story in the words of `show`."""

import json
from typing import Any

from streams_queue.durations import moment, spelt
from streams_queue.story import HOLDS, Story


def facts_of(story: Story) -> list[tuple[str, str]]:
    """The story for people: what there is to say, and no more."""
    now = story["now"]

    def when(name: str) -> str | None:
        return None if story[name] is None else moment(story[name], now)

    said = {
        "id": story["id"],
        "status": _status_in_words(story),
        "in": ", ".join(story["places"]) or "no queue",
        "waits for": _hold_in_words(story),
        "position": None if story["position"] is None else f"{story['position']}, {story['ahead']} ahead",
        "priority": story["priority"],
        "enqueued": when("enqueued_at"),
        "due": when("due_at"),
        "died": when("died_at"),
        "lost": when("lost_at"),
        "attempts": _attempts_in_words(story),
        "holder": story["holder"],
        "lock": _with_ttl(story["lock"], story["lock_ttl"]),
        "failed": when("failed_at"),
        "reason": story["reason"],
        "error": story["error"],
        "ttl left": None if story["ttl"] is None else spelt(story["ttl"]),
        "data": None if story["data"] is None else _pretty(story["data"]),
    }
    if story["end"] is not None:
        said["finished"] = _with_ttl(story["end"]["status"], story["end"]["ttl"])
        said["result"] = None if story["end"]["result"] is None else _pretty(story["end"]["result"])
    return [(name, str(value)) for name, value in said.items() if value is not None]


def _status_in_words(story: Story) -> str:
    has_body = story["data"] is not None
    return str(story["status"]) if has_body or story["end"] else f"{story['status']}: its body ran out"


def _hold_in_words(story: Story) -> str | None:
    if story["waits_for"] is None:
        return None
    until = "" if story["waits_until"] is None else f" at {moment(story['waits_until'], story['now'])}"
    return HOLDS[story["waits_for"]] + until


def _attempts_in_words(story: Story) -> str | None:
    if story["attempts"] is None:
        return None
    words = f"{story['retries']} retries, {story['crashes']} crashes, {story['deliveries']} deliveries"
    return f"{story['attempts']} ({words})"


def _with_ttl(words: str | None, ttl: float | None) -> str | None:
    if words is None:
        return None
    return words if ttl is None else f"{words} (for {spelt(ttl)} more)"


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)
