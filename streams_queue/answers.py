"""What the scripts take and answer, as types: one for each shape, and how it is read from a reply."""

from collections.abc import Sequence
from enum import IntEnum
from typing import Any, Literal, NamedTuple

from streams_queue.codec import STATUSES, Fields, fields_of
from streams_queue.model import Lease, Priority, Status


class NewMessage(NamedTuple):
    """What `enqueue` writes: `fields` is the flat list of names and values, `slot` the dedup key or None, `listener`
    the channel on which the message's transitions are told, if any, and `at`, epoch seconds by the server's clock, says
    when it is due, in place of a delay.
    """

    id: str
    priority: Priority
    delay: float
    ttl: float | None
    slot: str | None
    fields: Sequence[bytes]
    listener: str = ""
    at: float | None = None


class Enqueued(NamedTuple):
    """What `enqueue` answers: the id that stands in Redis now, its status, and whether it was there before."""

    id: str
    status: Status
    duplicate: bool


class Refused(NamedTuple):
    """What `enqueue` answers for a message that it did not take: the name of the limit, its value as in ``P:meta``, and
    seconds until a rate has room for one more.
    """

    limit: str
    value: str
    retry_after: float | None


class Outdated(NamedTuple):
    """What `enqueue` answers for a message that goes by this version of the number of shards; there is a newer one."""

    version: int


Answered = Enqueued | Refused | Outdated


class Delivery(NamedTuple):
    """A message handed to a consumer: its lease and its hash."""

    lease: Lease
    fields: Fields


class Claimed(NamedTuple):
    """What `claim` and `adopt` answer. `looked_at` counts entries, those included that were not for running.

    `suspects_wait`: there are messages that may have killed a worker, for a consumer that holds nothing else.
    """

    paused: bool
    suspects_wait: bool
    looked_at: int
    deliveries: list[Delivery]
    wait: float = 0.0
    """Seconds for which the queue's rate is spent."""


class Failure(NamedTuple):
    """A delivery that failed: seconds until the next attempt, the reason's class and the error's text."""

    lease: Lease
    delay: float
    reason: str
    error: str
    key: bytes = b""
    """The key that is to be paused for the delay, if one is."""


class Turn(IntEnum):
    """Whose turn it is to look after the queue."""

    ANOTHERS = 0
    BEGINS = 1
    GOES_ON = 2


class Swept(NamedTuple):
    """What one `sweep` did, and whether its two looks at what is pending got to their ends."""

    more_dead: bool
    more_unlocked: bool
    recovered: int
    dead: int


class Reconciled(NamedTuple):
    """What one `reconcile` did. `difference`: ids in main less entries in the streams, zero in a quiet queue."""

    cursor: str
    adopted: int
    expired: int
    difference: int


class Promoted(NamedTuple):
    """What one `promote` did. `next_due`: seconds until something is due, None where nothing waits for a time."""

    more_due: bool
    promoted: int
    next_due: float | None


class Upkeep(NamedTuple):
    """What one `upkeep` did. `waiting`: messages that no blocking read brings are to be claimed; `pending`: somebody
    holds messages, or they were handed back. Of the rest nothing was done where it is another's turn.
    """

    turn: Turn
    waiting: bool
    pending: bool
    more_due: bool
    promoted: int
    newest: Reconciled
    next_due: float | None
    """Seconds until something is due; None where nothing waits for a time."""


class Place(NamedTuple):
    """An id in a sorted set, and its score; `shard` says in which shard, where the queue has some."""

    id: str
    score: float
    shard: int | None = None


class Page(NamedTuple):
    """Some places of a sorted set, one after the other, and the server's time."""

    now: float
    places: list[Place]


class Oldest(NamedTuple):
    """The server's time, and since when the message waits that has stood in line for the longest, if one waits."""

    now: float
    since: float | None


class Held(NamedTuple):
    """A message that a worker holds, and the number of this delivery."""

    id: str
    delivery: int


class Working(NamedTuple):
    """A worker: its name, seconds since its last sign of life, how many messages it holds, and some of them."""

    name: str
    idle: float
    pending: int
    held: list[Held]


class Hold(NamedTuple):
    """Why a message is parked: its key is paused, its key's rate is spent, or others of its key come first."""

    reason: Literal["pause", "rate", "turn"]
    until: float | None
    """Epoch seconds; None for a turn, which comes when another message ends."""


class ParkedKey(NamedTuple):
    """A key of which messages are parked: the id of the first, how many there are, and why."""

    first: str
    messages: int
    hold: Hold


class Parked(NamedTuple):
    """How many messages are parked, and for which keys, some of them: those first that a time holds up."""

    messages: int
    keys: list[ParkedKey]


class Examined(NamedTuple):
    """All that is known of a message. A TTL is None where there is none, or no key."""

    now: float
    fields: Fields
    ttl: float | None
    lock: str
    lock_ttl: float | None
    marker: bytes
    marker_ttl: float | None
    scores: dict[str, float]
    """Its score in each of ``main``, ``parked``, ``retry``, ``scheduled``, ``dlq`` and ``lost`` that holds it."""
    hold: Hold | None
    """Why it is parked, where it is."""


def id_of(raw: bytes) -> str:
    """An id, also one that some other program wrote in no encoding at all: the client sends it back as it came."""
    return raw.decode(errors="surrogateescape")


def enqueued_of(id: bytes, word: bytes, *more: bytes) -> Enqueued | Refused:
    """What `enqueue` replies for a message."""
    if id:
        return Enqueued(id_of(id), status_of(word), bool(more))
    value, wait = more
    return Refused(word.decode(), value.decode(errors="replace"), float(wait) if wait else None)


def claimed_of(reply: Any) -> Claimed:
    """What `claim` and `adopt` reply."""
    paused, suspects_wait, looked_at, rows, wait_ms = reply
    deliveries = [
        Delivery(Lease(id_of(id), entry.decode(), number.decode()), fields_of(flat)) for id, entry, number, flat in rows
    ]
    return Claimed(bool(paused), bool(suspects_wait), looked_at, deliveries, wait_ms / 1000)


def examined_of(reply: list[Any]) -> Examined:
    """What `examine` replies for a message."""
    now, flat, ttl, lock, lock_ttl, marker, marker_ttl, scores, held = reply
    places = zip(("main", "parked", "retry", "scheduled", "dlq", "lost"), scores, strict=True)
    found = {name: float(score) for name, score in places if score}
    return Examined(
        now=float(now), fields=fields_of(flat), ttl=_left(ttl), lock=lock.decode(errors="replace"),
        lock_ttl=_left(lock_ttl), marker=marker, marker_ttl=_left(marker_ttl),
        scores=found, hold=_hold_of(*held) if "parked" in found else None,
    )  # fmt: skip


def parked_of(reply: list[Any]) -> Parked:
    """What `parked` replies."""
    messages, rows = reply
    return Parked(messages, [ParkedKey(id_of(id), count, _hold_of(*held)) for id, count, *held in rows])


def _hold_of(paused: bytes, wake: bytes) -> Hold:
    if paused:
        return Hold("pause", float(paused))
    return Hold("rate", float(wake)) if wake else Hold("turn", None)


def _left(ttl: int) -> float | None:
    return float(ttl) if ttl >= 0 else None


def status_of(raw: bytes) -> Status:
    """A status by its name in Redis."""
    return STATUSES.get(raw, Status.QUEUED)  # or an outsider's word for it
