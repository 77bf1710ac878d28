"""What the API takes and answers. The description that programs read is made from these."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from streams_queue.dashboard.history import Minute, Pace
from streams_queue.limits import LONGEST_PERIOD, MOST, MOST_AT_ONCE

Duration = Annotated[str, Meta(pattern=r"^\s*\d+(\.\d+)?[smhd]?\s*$", examples=["15m"], max_length=32)]
Cursor = Annotated[
    str,
    Meta(
        description="`next` of the answer before",
        pattern=r"^-?(inf|[0-9]{1,20}(\.[0-9]{1,20})?(e[+-]?[0-9]{1,3})?)_([0-9a-f]{2})*$",
        max_length=4096,
    ),
]
Limit = Annotated[int, Meta(ge=1, le=100, description="How many at most")]
Id = Annotated[
    str,
    Meta(
        pattern=r"^([^~][\s\S]*|~([0-9a-f]{2})+)$",
        max_length=1024,
        description="A message's id; one of an outsider's that is no text as `~` and its bytes in hexadecimal",
    ),
]


# ---- what is asked for


class LinePage(msgspec.Struct, forbid_unknown_fields=True):
    """Which part of the line."""

    after: Cursor | UnsetType = UNSET
    limit: Limit = 50


class OfUser(msgspec.Struct, forbid_unknown_fields=True):
    """Whose messages."""

    user: Annotated[str, Meta(min_length=1, max_length=1024, description="The `user_id` in their payload")]
    after: Cursor | UnsetType = UNSET


class DeadPage(msgspec.Struct, forbid_unknown_fields=True):
    """Which dead letters."""

    reason: Literal["error", "timeout", "rejected", "crash", "undecodable"] | UnsetType = UNSET
    older_than: Annotated[Duration, Meta(description="Dead for longer than this")] | UnsetType = UNSET
    newer_than: Annotated[Duration, Meta(description="Dead for less than this")] | UnsetType = UNSET
    text: Annotated[str, Meta(max_length=1024, description="Words in the error or the payload")] | UnsetType = UNSET
    after: Cursor | UnsetType = UNSET
    limit: Limit = 50


class Ids(msgspec.Struct, forbid_unknown_fields=True):
    """Dead letters to be changed."""

    ids: Annotated[list[Id], Meta(min_length=1, max_length=10_000)]


class Amendment(msgspec.Struct, forbid_unknown_fields=True):
    """Another payload for a dead letter. Parts that are as they are shown, ``***`` among them, stay as they are."""

    id: Id
    data: dict[str, Any]
    died_at: float | None = None
    """Refuse where it died at another time than this: somebody requeued it meanwhile."""
    requeue: bool = False


Key = Annotated[str, Meta(min_length=1, max_length=1024)]
Messages = Annotated[float, Meta(ge=1, le=MOST, multiple_of=1)]  # JSON's 3.0 is a whole number, too
AtOnce = Annotated[float, Meta(ge=1, le=MOST_AT_ONCE, multiple_of=1)]
Share = Annotated[float, Meta(ge=0, lt=1)]


class NewRate(msgspec.Struct, forbid_unknown_fields=True):
    """So many messages in each period of so many seconds."""

    count: Messages
    per: Annotated[float, Meta(ge=0.001, le=LONGEST_PERIOD)] = 1.0


class LimitsChange(msgspec.Struct, forbid_unknown_fields=True):
    """What is to change of a queue's limits: null takes one away, what is not named stays as it is."""

    key: Key | UnsetType | None = UNSET
    max_length: Messages | UnsetType | None = UNSET
    accept: NewRate | UnsetType | None = UNSET
    accept_per_key: NewRate | UnsetType | None = UNSET
    work: NewRate | UnsetType | None = UNSET
    work_per_key: NewRate | UnsetType | None = UNSET
    concurrency_per_key: AtOnce | UnsetType | None = UNSET
    normal_share: Share | UnsetType | None = UNSET
    low_share: Share | UnsetType | None = UNSET


class Prioritise(msgspec.Struct, forbid_unknown_fields=True):
    """The priority that a waiting message is to have."""

    priority: Literal["high", "normal", "low"]


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """Nothing need be said."""


# ---- what is answered


class Token(msgspec.Struct, frozen=True):
    """What a change without a password has in its header X-CSRF-Token, beside the cookie that came with this answer."""

    token: str


class Counts(msgspec.Struct, frozen=True):
    """Messages by where they stand."""

    waiting: int
    processing: int
    retry: int
    scheduled: int
    dead: int
    lost: int
    parked: int
    """Of those that wait, those that wait for their key."""


class Queue(msgspec.Struct, frozen=True):
    """A queue, as the dashboard saw it last."""

    queue: str
    trouble: str | None
    """Why it cannot be looked at now; what follows is older then."""
    seen_at: float | None
    """Epoch seconds of the last look, by the server's clock."""
    counts: Counts | None
    oldest_waiting_seconds: float | None
    paused: bool | None
    workers: int | None
    pace: Pace


class Queues(msgspec.Struct, frozen=True):
    """All queues."""

    queues: list[Queue]
    trouble: str | None
    """Why queues could not be looked for."""


class QueueDetails(msgspec.Struct, frozen=True):
    """A queue and its counters since it began."""

    summary: Queue
    counters: dict[str, int]
    died: dict[str, int]
    """Dead letters by reason."""
    edits: dict[str, int]
    """What outsiders did to the documented keys, by kind."""


class Load(msgspec.Struct, frozen=True):
    """What an autoscaler looks at. `slots` is null: only workers know how many they have."""

    queue: str
    waiting: int
    processing: int
    retry: int
    scheduled: int
    dead: int
    lost: int
    oldest_waiting_seconds: float
    """0 where none waits."""
    workers: int
    """Those that gave a sign within a lease."""
    slots: int | None
    paused: bool


class History(msgspec.Struct, frozen=True):
    """The last hour by the minute, as far as the dashboard saw it."""

    began_at: float | None
    """Epoch seconds of the first look."""
    minutes: list[Minute]


class Held(msgspec.Struct, frozen=True):
    """A message that a worker holds."""

    id: str
    delivery: int


class Worker(msgspec.Struct, frozen=True):
    """A worker. `host`, `pid` and `began_at` come from its name, and are null where that is another program's."""

    name: str
    host: str | None
    pid: int | None
    began_at: float | None
    """Epoch seconds, by its own clock."""
    seconds_since_sign: float
    holds: int
    held: list[Held]
    """Some of them."""


class Workers(msgspec.Struct, frozen=True):
    """Who works on a queue."""

    workers: list[Worker]


WaitsFor = Literal["pause", "rate", "turn"]
"""Its key is paused, its key's rate is spent, or others of its key come first."""


class InLine(msgspec.Struct, frozen=True):
    """A message in line; what its body tells is null where that ran out."""

    position: int | None
    id: str
    status: str | None
    waits_for: WaitsFor | None
    """Of its key, where it is parked: the end of a pause, room in a rate, or its turn."""
    priority: str | None
    enqueued_at: float | None
    age: float | None
    attempts: int | None
    error: str | None


class Line(msgspec.Struct, frozen=True):
    """Some of the line, those first that came first."""

    messages: list[InLine]
    next: str | None
    """Where to go on; null at the end."""


class UsersMessages(msgspec.Struct, frozen=True):
    """A user's unfinished messages."""

    ids: list[str]
    indexed: bool
    """Whether the queue keeps an index of users; else those in line were looked through."""
    looked_at: int
    next: str | None


class Letter(msgspec.Struct, frozen=True):
    """A dead letter, its secrets hidden; what its body tells is null where that ran out."""

    id: str
    shard: int | None
    """Where the queue has shards: two may have one of an own id."""
    died_at: float | None
    age: float | None
    reason: str | None
    attempts: int | None
    error: str | None
    data: dict[str, Any] | None


class Letters(msgspec.Struct, frozen=True):
    """Some dead letters, the newest first."""

    letters: list[Letter]
    looked_at: int
    next: str | None


class End(msgspec.Struct, frozen=True):
    """What is left of a finished message."""

    status: str
    result: Any
    ttl: float | None


class Story(msgspec.Struct, frozen=True):
    """All that is known of a message, its secrets hidden. What does not apply is null."""

    id: str
    status: str
    places: list[str]
    waits_for: WaitsFor | None
    """Of its key, where it is parked: the end of a pause, room in a rate, or its turn."""
    waits_until: float | None
    """Epoch seconds; null for a turn, which comes when another message ends."""
    position: int | None
    ahead: int | None
    priority: str | None
    attempts: int | None
    retries: int | None
    crashes: int | None
    deliveries: int | None
    holder: str | None
    enqueued_at: float | None
    failed_at: float | None
    reason: str | None
    error: str | None
    data: dict[str, Any] | None
    due_at: float | None
    died_at: float | None
    lost_at: float | None
    lock: str | None
    lock_ttl: float | None
    ttl: float | None
    end: End | None
    now: float


class Outcome(msgspec.Struct, frozen=True):
    """What became of one."""

    id: str
    outcome: Literal["requeued", "deleted", "missing", "expired"]


class Outcomes(msgspec.Struct, frozen=True):
    """What became of each."""

    outcomes: list[Outcome]


class Amended(msgspec.Struct, frozen=True):
    """What became of it."""

    id: str
    requeued: bool


class Rate(msgspec.Struct, frozen=True):
    """So many messages in each period."""

    count: int
    per: float
    """Seconds."""


class Limits(msgspec.Struct, frozen=True):
    """A queue's limits; null is none. Of a queue with shards those of the whole."""

    key: str | None
    max_length: int | None
    accept: Rate | None
    accept_per_key: Rate | None
    work: Rate | None
    work_per_key: Rate | None
    concurrency_per_key: int | None
    normal_share: float
    low_share: float


class WaitingKey(msgspec.Struct, frozen=True):
    """A key of which messages are parked."""

    value: Any
    """Null where the body of the first of them ran out."""
    messages: int
    first: str
    """The id of the first of them."""
    waits_for: WaitsFor
    waits_until: float | None
    """Epoch seconds; null for a turn."""


class WaitingKeys(msgspec.Struct, frozen=True):
    """The keys that messages wait for, those with the most first; there may be more than are named."""

    parked: int
    """Messages that wait for their keys."""
    keys: list[WaitingKey]


class Prioritised(msgspec.Struct, frozen=True):
    """What became of it."""

    id: str
    priority: Literal["high", "normal", "low"]
    changed: bool
    """False where it had this priority before."""


class Paused(msgspec.Struct, frozen=True):
    """Whether workers take nothing new."""

    paused: bool
