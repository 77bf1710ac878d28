"""Dead letters, chosen and gone through a page at a time: memory does not grow with their number."""

import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

import anyio

from streams_queue import redaction
from streams_queue.answers import Page, Place
from streams_queue.door import BATCH, batches
from streams_queue.queue import Queue
from streams_queue.shown import BODIES, data_of, error_of

AnyQueue = Queue[dict[str, Any]]

Record = Mapping[str, Any]
"""One line of an answer, as its JSON has it."""


class Reason(StrEnum):
    """Why a message was given up."""

    ERROR = "error"
    TIMEOUT = "timeout"
    REJECTED = "rejected"
    CRASH = "crash"
    UNDECODABLE = "undecodable"


class Wanted(NamedTuple):
    """Which dead letters are meant; durations in seconds, None for any."""

    reason: Reason | None = None
    older_than: float | None = None
    newer_than: float | None = None
    text: str | None = None

    def since(self, now: float) -> float:
        """The earliest time of death."""
        return -math.inf if self.newer_than is None else now - self.newer_than

    def until(self, now: float) -> float:
        """The latest time of death."""
        return math.inf if self.older_than is None else now - self.older_than

    @property
    def by_body(self) -> bool:
        """Whether the messages must be read to know."""
        return self.reason is not None or self.text is not None

    def takes(self, letter: Record) -> bool:
        """Whether this one is meant, going by its body."""
        if self.reason is not None and letter["reason"] != self.reason.value:
            return False
        return self.text is None or any(self.text.casefold() in text.casefold() for text in _texts(letter))


def _texts(letter: Record) -> Iterator[str]:
    waiting = [letter["error"], letter["data"]]
    while waiting:
        match waiting.pop():
            case dict() as found:
                waiting += [*found, *found.values()]
            case list() as found:
                waiting += found
            case None | redaction.HIDDEN:
                pass
            case found:
                yield str(found)


async def server_time(queue: AnyQueue) -> float:
    """Now, by the server's clock, as times of death are."""
    return (await queue.transitions.page("dlq", Place("", -math.inf), 1)).now


async def read_letters(queue: AnyQueue, page: Page) -> list[Record]:
    """The dead letters of a page, as their JSON has them; reason, error and data are None where the body ran out."""
    letters: list[Record] = []
    for place, fields in zip(page.places, await queue.transitions.read_at(page.places), strict=True):
        message = queue.codec.decode(place.id, fields) if "timestamp" in fields else None
        letters.append(
            {
                "id": place.id,
                "shard": place.shard,
                "died_at": place.score,
                "age": page.now - place.score,
                "reason": message and message.reason,
                "attempts": message and message.attempts,
                "error": message and error_of(message),
                "data": message and data_of(message),
            }
        )
    return letters


async def newest(queue: AnyQueue, wanted: Wanted) -> AsyncIterator[list[Record]]:
    """The dead letters that are meant, the newest first, in pages."""
    now = await server_time(queue)
    walk = queue.transitions.walk(
        "dlq", newest_first=True, since=wanted.since(now), until=wanted.until(now), count=BODIES
    )
    async for page in walk:
        yield [letter for letter in await read_letters(queue, page) if wanted.takes(letter)]


class Chosen(NamedTuple):
    """Ids to be changed, and how many were looked at to find them."""

    ids: list[str]
    looked_at: int


async def oldest(queue: AnyQueue, wanted: Wanted, began: float) -> AsyncIterator[Chosen]:
    """The dead letters that are meant, the first to die first. Those that died after `began` are left out.

    So a message that is requeued and dies again is not met a second time.
    """
    count = BODIES if wanted.by_body else BATCH
    async for now, places in queue.transitions.walk(
        "dlq", since=wanted.since(began), until=wanted.until(began), count=count
    ):
        # A time in the future is no time of death, but some other program's clock.
        page = Page(now, [place for place in places if not began < place.score <= now])
        if wanted.by_body:
            ids = [letter["id"] for letter in await read_letters(queue, page) if wanted.takes(letter)]
        else:
            ids = [place.id for place in page.places]
        yield Chosen(ids, len(places))


async def named(ids: Sequence[str]) -> AsyncIterator[Chosen]:
    """The dead letters with these ids."""
    for batch in batches(ids):
        yield Chosen(batch, len(batch))


class Change(NamedTuple):
    """What is done to dead letters: a word for it, what its outcome is called, and how it is done to a batch."""

    verb: str
    done: str
    act: Callable[[AnyQueue, list[str]], Awaitable[list[str]]]


async def _requeue(queue: AnyQueue, ids: list[str]) -> list[str]:
    answers = await queue.transitions.requeue(ids, dedup_expiry=queue.dedup_expiry)
    return ["requeued" if answer == "queued" else answer for answer in answers]


async def _delete(queue: AnyQueue, ids: list[str]) -> list[str]:
    return ["deleted" if done else "missing" for done in await queue.transitions.remove(ids, only_dead=True)]


REQUEUE = Change("requeue", "requeued", _requeue)
DELETE = Change("delete", "deleted", _delete)


def rehearsed(change: Change) -> Change:
    """The change without changing anything: the outcomes that it would have."""

    async def look(queue: AnyQueue, ids: list[str]) -> list[str]:
        outcomes = []
        for batch in batches(ids, BODIES):
            for found in await queue.transitions.examine(batch):
                there = change.done if change is DELETE or "timestamp" in found.fields else "expired"
                outcomes.append(there if "dlq" in found.scores else "missing")
        return outcomes

    return change._replace(act=look)


class Pace:
    """At most so many a second; None for as fast as it goes."""

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._due = time.monotonic()
        self.batch = BATCH if rate is None else max(1, min(BATCH, int(rate / 4)))
        """How many may go at a time: a quarter of a second's."""

    async def turn(self, count: int) -> None:
        """Wait until `count` may go."""
        if self._rate is not None:
            await anyio.sleep(max(0.0, self._due - time.monotonic()))
            self._due = max(self._due, time.monotonic()) + count / self._rate


async def carry_out(
    queue: AnyQueue,
    change: Change,
    chosen: AsyncIterator[Chosen],
    outcomes: Counter[str],
    *,
    rate: float | None = None,
    advance: Callable[[int], None] | None = None,
    tell: Callable[[list[str], list[str]], None] | None = None,
) -> None:
    """Change what was chosen, and count the outcomes, so that after an error they say how far it got.

    `advance` hears how many were looked at, and `tell` of each batch's ids and outcomes.
    """
    pace = Pace(rate)
    async for ids, looked_at in chosen:
        for batch in batches(ids, pace.batch):
            await pace.turn(len(batch))
            answers = await change.act(queue, batch)
            outcomes.update(answers)
            if tell is not None:
                tell(batch, answers)
            if advance is not None:
                advance(len(batch))
        if advance is not None:
            advance(looked_at - len(ids))
