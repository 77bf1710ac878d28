"""A message's story: all that Redis holds of it. And the line, a page at a time."""

from typing import Any

import msgspec

from streams_queue.answers import Examined, Page
from streams_queue.codec import number, text
from streams_queue.queue import Queue
from streams_queue.shown import data_of, error_of, result_of

Story = dict[str, Any]

HOLDS = {"pause": "the end of its key's pause", "rate": "room in its key's rate", "turn": "its key's turn"}
"""What a parked message waits for, in words."""


async def story_of(queue: Queue[dict[str, Any]], id: str) -> Story | None:
    """The story, as its JSON has it; None when nothing is known of the message."""
    (found,) = await queue.transitions.examine([id])
    body, end = _body(queue, id, found), _end(found)
    if not (body or end or found.scores):
        return None
    ((position, ahead),) = await queue.transitions.positions([id])
    known = body or end or {}
    scores = found.scores
    return {
        "id": id,
        "status": known.get("status", "expired"),
        "places": sorted(scores),
        "waits_for": found.hold and found.hold.reason,
        "waits_until": found.hold and found.hold.until,
        "position": position,
        "ahead": ahead,
        **{name: (body or {}).get(name) for name in _BODY},
        "due_at": scores.get("retry", scores.get("scheduled")),
        "died_at": scores.get("dlq"),
        "lost_at": scores.get("lost"),
        "lock": found.lock or None,
        "lock_ttl": found.lock_ttl,
        "ttl": found.ttl,
        "end": end,
        "now": found.now,
    }


_BODY = (
    "priority", "attempts", "retries", "crashes", "deliveries", "holder", "enqueued_at", "failed_at", "reason", "error",
    "data",
)  # fmt: skip


def _body(queue: Queue[dict[str, Any]], id: str, found: Examined) -> dict[str, Any] | None:
    fields = found.fields
    if "timestamp" not in fields:
        return None
    message = queue.codec.decode(id, fields)
    return {
        "status": message.status.value,
        "priority": message.priority,
        "attempts": message.attempts,
        "retries": message.retries,
        "crashes": int(number(fields.get("_sq_crashes"))),
        "deliveries": message.deliveries,
        "holder": text(fields.get("_sq_owner")),
        "enqueued_at": message.enqueued_at,
        "failed_at": number(fields["last_error_time"]) if "last_error_time" in fields else None,
        "reason": message.reason,
        "error": error_of(message),
        "data": data_of(message),
    }


def _end(found: Examined) -> dict[str, Any] | None:
    """What the marker of a finished message says."""
    status, _, rest = found.marker.partition(b"\n")
    _, _, result = rest.partition(b"\n")
    if not status:
        return None
    try:
        shown = result_of(result) if result else None
    except msgspec.DecodeError:
        shown = None  # the engine writes JSON: this is somebody else's, and may hold anything
    return {"status": text(status), "result": shown, "ttl": found.marker_ttl}


async def read_line(queue: Queue[dict[str, Any]], page: Page) -> list[Story]:
    """The messages of a page of main; None for what a body that ran out told, and for the place of one that left."""
    ids = [place.id for place in page.places]
    records: list[Story] = []
    places = await queue.transitions.positions(ids)
    for id, found, (place, _) in zip(ids, await queue.transitions.examine(ids), places, strict=True):
        message = queue.codec.decode(id, found.fields) if "timestamp" in found.fields else None
        records.append(
            {
                "position": place,
                "id": id,
                "status": message and message.status.value,
                "waits_for": found.hold and found.hold.reason,
                "priority": message and message.priority,
                "enqueued_at": message and message.enqueued_at,
                "age": message and page.now - message.enqueued_at,
                "attempts": message and message.attempts,
                "error": message and error_of(message),
            }
        )
    return records
