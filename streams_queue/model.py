"""What the engine speaks of: messages, receipts, statuses, and the table of transitions."""

from enum import StrEnum
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import msgspec

from streams_queue.redaction import redacted

Payload = TypeVar("Payload")

Priority = Literal["high", "normal", "low"]
LETTERS: dict[str, str] = {"high": "h", "normal": "n", "low": "l"}
PRIORITIES: dict[str, Priority] = {"h": "high", "n": "normal", "l": "low"}


class Status(StrEnum):
    """Where a message is in its life.

    A ``StrEnum``: ``receipt.status == "queued"`` holds.
    """

    SCHEDULED = "scheduled"
    """Waits for the time its producer asked for. `enqueue` puts it there, `promote` takes it out."""
    QUEUED = "queued"
    """Waits in line. `enqueue`, `promote`, `release`, `sweep`, `requeue` and `reconcile` put it there, `prioritise`
    moves it, `claim` takes it out."""
    PROCESSING = "processing"
    """A worker holds it. `claim` and `adopt` put it there; every finishing transition, `release` and `sweep` take it
    out."""
    RETRY = "retry"
    """Waits for its next attempt. `retry` puts it there, `promote` takes it out."""
    COMPLETED = "completed"
    """Done. `complete` puts it there; a marker stays for a while."""
    ERROR = "error"
    """A dead letter. `retry` (past its limit), `dead_letter` and `sweep` put it there; `requeue` takes it out."""
    REMOVED = "removed"
    """Taken out by a caller (`remove`)."""
    EXPIRED = "expired"
    """Its body ran out before anybody worked on it."""


FINAL = frozenset({Status.COMPLETED, Status.ERROR, Status.REMOVED, Status.EXPIRED})
"""Statuses after which nothing happens by itself."""


class Transition(NamedTuple):
    """One line of the table: from which statuses, to which; ``None`` stands for "not in the queue"."""

    before: frozenset[Status | None]
    after: frozenset[Status | None]


def _transition(before: set[Status | None], after: set[Status | None]) -> Transition:
    return Transition(frozenset(before), frozenset(after))


_GONE: set[Status | None] = {Status.EXPIRED}

TRANSITIONS: dict[str, Transition] = {
    "enqueue": _transition({None}, {Status.QUEUED, Status.SCHEDULED}),
    "claim": _transition({Status.QUEUED}, {Status.PROCESSING, *_GONE}),
    "adopt": _transition({Status.QUEUED}, {Status.PROCESSING, Status.QUEUED, *_GONE}),
    "renew": _transition({Status.PROCESSING}, {Status.PROCESSING}),
    "complete": _transition({Status.PROCESSING}, {Status.COMPLETED}),
    "retry": _transition({Status.PROCESSING}, {Status.RETRY, Status.QUEUED, Status.ERROR}),
    "dead_letter": _transition({Status.PROCESSING}, {Status.ERROR}),
    "release": _transition({Status.PROCESSING}, {Status.QUEUED}),
    "sweep": _transition({Status.PROCESSING}, {Status.QUEUED, Status.ERROR, *_GONE}),
    "promote": _transition({Status.RETRY, Status.SCHEDULED}, {Status.QUEUED, *_GONE}),
    "remove": _transition(
        {Status.SCHEDULED, Status.QUEUED, Status.PROCESSING, Status.RETRY, Status.ERROR}, {Status.REMOVED}
    ),
    "requeue": _transition({Status.ERROR}, {Status.QUEUED, *_GONE}),
    "prioritise": _transition({Status.QUEUED}, {Status.QUEUED}),
    "reconcile": _transition(
        {None, Status.QUEUED, Status.PROCESSING, Status.RETRY, Status.ERROR}, {Status.QUEUED, *_GONE}
    ),
}
"""Every way a message moves: one Lua file each. `docs/life-of-a-message.md` draws it."""


class Receipt(msgspec.Struct, frozen=True):
    """The answer to an enqueue: the message is in Redis now."""

    id: str
    duplicate: bool
    """True when nothing was added: an unfinished message with this id or dedup slot exists, or one finished lately."""
    status: Status
    """Of the message with this ``id``: for a duplicate, of the one that was there before."""


class Lease(msgspec.Struct, frozen=True):
    """One delivery of one message to one consumer: what a finishing transition proves its right with."""

    id: str
    entry: str
    """The priority's letter and the stream entry."""
    delivery: str
    """The delivery's number: it never goes down, whatever is charged or handed back."""


class Message(msgspec.Struct, Generic[Payload], frozen=True, kw_only=True):
    """A message as it stands in Redis at the moment of reading. Its repr hides secrets."""

    id: str
    data: Payload
    """What was put in: a dict, or the Struct that the queue was made with."""
    status: Status
    attempts: int
    """Runs charged so far, the present one included: failures of the handler and crashes of workers."""
    deliveries: int
    """How often it was handed to a worker, uncharged deliveries included."""
    retries: int
    """Failures of the handler that were followed by another attempt (the documented ``retry_count``)."""
    priority: Priority
    enqueued_at: float
    """Epoch seconds: the server's time of the enqueue, or the ``timestamp`` that a documented producer gave."""
    error: str | None
    """The last error, if there was one."""
    reason: str | None
    """Why it is a dead letter: ``error``, ``timeout``, ``rejected``, ``crash`` or ``undecodable``; else None."""
    due_at: float | None
    """Epoch seconds of the next attempt, while it waits for a retry."""
    died_at: float | None
    """Epoch seconds at which it was given up, of a dead letter."""

    def __repr__(self) -> str:
        data: Any = self.data
        shown = redacted(msgspec.to_builtins(data) if isinstance(data, msgspec.Struct) else data)
        return f"Message(id={self.id!r}, status={self.status.value!r}, attempts={self.attempts}, data={shown!r:.500})"


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """A queue's counts at one moment, and its counters since it began (``P:stats``)."""

    main: int
    """Accepted, unfinished and not waiting for a due time; those being worked on included."""
    processing: int
    retry: int
    scheduled: int
    dead: int
    lost: int
    """Ids on ``P:lost``: their bodies ran out."""
    parked: int
    """Of `main`, those that a worker met before it was their key's turn (`Limits`)."""
    high: int
    """Of `main`, those of high priority, being worked on included."""
    low: int
    """The same of low priority. All others are normal."""
    paused: bool
    oldest_waiting: float | None
    """Seconds that the oldest message which no worker holds has stood in line: since it was accepted, or since its
    retry or its delay was due. None where none waits. What an outsider put into main counts from when it was found."""
    workers: int
    """Workers that gave a sign within a lease."""
    counters: dict[str, int]
    """``total_messages``, ``retry_count``, ``dlq_messages`` (documented), ``completed_messages``, ``removed_messages``,
    ``expired_messages``, ``requeued_messages``, ``recovered_messages``, ``adopted_messages``, ``duplicate_messages``
    ``lost_leases`` and whatever else programs count there. One that is not a number is left out."""
    died: dict[str, int]
    """Dead letters by the reason for which they were given up, requeued ones included; a reason that was never met is
    left out. In `counters` each has the prefix ``dead_``."""
    edits: dict[str, int]
    """What outsiders did to the documented keys and the engine has mended, by kind: ``added``, ``entry_lost``,
    ``taken_out``, ``unlocked``, ``locked``, ``two_places``, ``damaged``, ``claimed_elsewhere``; a kind that was never
    seen is left out. In `counters` each has the prefix ``outside_``."""
