"""What pages and programs read of a queue: bounded, a page at a time."""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from streams_queue.answers import Hold, Page, Place, Working
from streams_queue.codec import text
from streams_queue.dashboard.problems import bad
from streams_queue.durations import seconds_of
from streams_queue.errors import InvalidMessage
from streams_queue.keys import valid_id
from streams_queue.letters import AnyQueue, Reason, Record, Wanted, read_letters, server_time
from streams_queue.shown import BODIES, data_of
from streams_queue.story import read_line

LETTERS = 50
"""Messages on a page."""

LOOKED_AT = 2000
"""Messages that are looked at for one page, at most: where few are what is wanted, the page has a way to go on."""

HELD = 100
"""Messages that are shown as held by workers, at most, for each priority."""

KEYS = 50
"""Keys that wait and are shown, at most."""

_WORKER = re.compile(r"(?P<host>.+)-(?P<pid>\d+)-(?P<began>[0-9a-f]{8})(?P<random>[0-9a-f]{8})")
_HIDDEN_ID = "~"
_MOST_OF_USER = 10**9
_EARLIEST, _LATEST = Place("", -math.inf), Place("", math.inf)


class Worker(NamedTuple):
    """A worker, as its name tells; `host`, `pid` and `began` are None where it is another program's."""

    name: str
    host: str | None
    pid: int | None
    began: float | None
    """Epoch seconds, by the worker's own clock."""
    seen: Working


class Found(NamedTuple):
    """Some messages, how many were looked at for them, and where to go on."""

    records: list[Record]
    looked_at: int
    after: str | None
    """A cursor; None at the end."""
    now: float


def ref(id: str) -> str:
    """An id as it stands in an address or a form: an outsider's may have any bytes."""
    try:
        return valid_id(id)
    except InvalidMessage:
        return _HIDDEN_ID + _packed(id)


def id_of(reference: str) -> str:
    """The id that a reference, or whoever typed it, means."""
    if not reference.startswith(_HIDDEN_ID):
        return reference
    return _unpacked(reference.removeprefix(_HIDDEN_ID), "id")


def _packed(id: str) -> str:
    return id.encode(errors="surrogateescape").hex()


def _unpacked(packed: str, what: str) -> str:
    try:
        raw = bytes.fromhex(packed)
    except ValueError:
        raise bad(f"{what} {packed!r:.80} cannot be read: take it as the answer before had it") from None
    return raw.decode(errors="surrogateescape")


def cursor(place: Place) -> str:
    """A place, as a page passes it on to the next."""
    return f"{place.score!r}_{_packed(place.id)}"


def place_of(text: str) -> Place:
    """The place that a cursor names."""
    score, _, packed = text.partition("_")
    try:
        found = float(score)
    except ValueError:
        found = math.nan
    if math.isnan(found):
        raise bad(f"cursor {text!r:.80} cannot be read: take it as the answer before had it")
    return Place(_unpacked(packed, "cursor"), found)


def wanted_of(values: Mapping[str, str]) -> Wanted:
    """The dead letters that filters mean: `reason`, `older_than`, `newer_than` and `text`; an empty one is none."""
    reason = values.get("reason") or None
    if reason is not None and reason not in tuple(Reason):
        raise bad(f"reason {reason!r:.80} is unknown: use one of {', '.join(Reason)}")
    return Wanted(
        reason=None if reason is None else Reason(reason),
        older_than=_duration(values, "older_than"),
        newer_than=_duration(values, "newer_than"),
        text=values.get("text") or None,
    )


def _duration(values: Mapping[str, str], name: str) -> float | None:
    value = values.get(name)
    if not value:
        return None
    try:
        return seconds_of(value)
    except ValueError as error:
        raise bad(f"{name}: {error}") from None


async def letters(queue: AnyQueue, wanted: Wanted, after: str | None, limit: int) -> Found:
    """The dead letters that are meant, the newest first, from a cursor on."""
    now = await server_time(queue)
    since, until = wanted.since(now), wanted.until(now)
    place = place_of(after) if after else Place("", until)
    found: list[Record] = []
    looked_at = 0
    while looked_at < LOOKED_AT:
        count = BODIES if wanted.by_body else min(BODIES, limit)
        page = await queue.transitions.page("dlq", place, count, newest_first=True)
        within = [place for place in page.places if since <= place.score <= until]
        for letter, at in zip(await read_letters(queue, Page(page.now, within)), within, strict=True):
            place, looked_at = at, looked_at + 1
            if wanted.takes(letter):
                found.append(letter)
            if len(found) == limit:
                return Found(found, looked_at, cursor(place), now)
        if len(within) < count:
            return Found(found, looked_at, None, now)
    return Found(found, looked_at, cursor(place), now)


async def line(queue: AnyQueue, after: str | None, limit: int) -> Found:
    """The line, those first that came first, from a cursor on. Positions are those of this moment."""
    page = await queue.transitions.page("main", place_of(after) if after else _EARLIEST, limit)
    if not page.places:
        return Found([], 0, None, page.now)
    records: list[Record] = [*await read_line(queue, page)]
    more = cursor(page.places[-1]) if len(page.places) == limit else None
    return Found(records, len(page.places), more, page.now)


class OfUser(NamedTuple):
    """A user's unfinished messages; `indexed` where the queue keeps an index, else the line was looked through."""

    ids: list[str]
    indexed: bool
    looked_at: int
    after: str | None


async def of_user(queue: AnyQueue, user: str, after: str | None) -> OfUser:
    """The unfinished messages of a user: by the queue's index, or those in line whose ``user_id`` is this one."""
    place = place_of(after) if after else _EARLIEST
    passed = int(min(max(place.score, 0), _MOST_OF_USER))  # a cursor of the index says how many came before
    try:
        indexed = await queue.transitions.of_user(user, LETTERS, passed)
    except UnicodeEncodeError:
        raise bad("the user's id cannot be encoded") from None
    if indexed is not None:
        more = cursor(Place("", float(passed + LETTERS))) if len(indexed) == LETTERS else None
        return OfUser(indexed, True, len(indexed), more)
    found, looked_at = [], 0
    while looked_at < LOOKED_AT:
        page = await queue.transitions.page("main", place, BODIES)
        ids = [place.id for place in page.places]
        for id, fields in zip(ids, await queue.transitions.read(ids), strict=True):
            if text(fields.get("user_id")) == user:
                found.append(id)
        looked_at += len(ids)
        if len(ids) < BODIES:
            return OfUser(found, False, looked_at, None)
        place = page.places[-1]
    return OfUser(found, False, looked_at, cursor(place))


class WaitingKey(NamedTuple):
    """A key of which messages are parked: its value, None where the body of the first of them ran out."""

    value: Any
    first: str
    messages: int
    hold: Hold


async def waiting_keys(queue: AnyQueue) -> tuple[int, list[WaitingKey]]:
    """How many messages wait for their keys, and some of these keys, those with the most messages first."""
    parked = await queue.transitions.parked(KEYS)
    keys = sorted(parked.keys, key=lambda key: -key.messages)[:KEYS]
    field = (await queue.limits()).key if keys else None
    found = []
    for key, fields in zip(keys, await queue.transitions.read([key.first for key in keys]), strict=True):
        data = data_of(queue.codec.decode(key.first, fields)) if "timestamp" in fields else {}
        found.append(WaitingKey(data.get(field or ""), key.first, key.messages, key.hold))
    return parked.messages, found


async def workers(queue: AnyQueue) -> list[Worker]:
    """Who works on the queue, those first that gave a sign of life last."""
    found = []
    for seen in await queue.transitions.workers(HELD):
        match = _WORKER.fullmatch(seen.name)
        found.append(
            Worker(
                name=seen.name,
                host=match and match["host"],
                pid=int(match["pid"]) if match else None,
                began=float(int(match["began"], 16)) if match else None,
                seen=seen,
            )
        )
    return sorted(found, key=lambda worker: (worker.seen.idle, worker.name))
