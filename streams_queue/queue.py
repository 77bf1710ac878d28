"""The queue as its callers see it: enqueue, look, wait, remove, and the dead letters."""

import os
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Any, Generic, Self, TypedDict, cast, overload

import anyio

from streams_queue import tracing
from streams_queue.answers import Answered, Enqueued, NewMessage, Outdated, Refused
from streams_queue.arguments import Conditions, check_priority, check_replicas, positive, whole
from streams_queue.batching import Batcher
from streams_queue.codec import Codec
from streams_queue.connection import Connection
from streams_queue.dead_letters import DeadLetters
from streams_queue.door import Resharded
from streams_queue.errors import (
    ConfigurationError,
    InvalidMessage,
    QueueUnavailable,
)
from streams_queue.keys import Keys, tagged, valid_id
from streams_queue.limits import Limits, to_meta
from streams_queue.listener import Listener
from streams_queue.model import Message, Payload, Priority, Receipt, Stats
from streams_queue.refusals import rejection
from streams_queue.results import Results
from streams_queue.settings import Settings
from streams_queue.transitions import Transitions

_NAMED = 3
"""Ids that an error's text names at most."""


class Options(TypedDict, total=False):
    """The arguments of `Queue` that a queue of any kind takes alike."""

    ttl: float | None
    dedup_expiry: float
    result_ttl: float
    dead_letter_ttl: float
    max_payload: int


class Queue(Generic[Payload]):
    """A queue of messages under one key prefix. Use it as ``async with queue:``, in one event loop.

    Args:
        prefix: of every key, ``chat_api`` for example. On Redis Cluster it carries a hash tag: ``{chat_api}``.
        url: ``redis(s)://``, ``unix://``, ``redis+sentinel://``, ``redis+cluster://`` or ``embedded://[dir]``;
        without one,
            the environment says (``STREAMS_QUEUE_URL``, ``REDIS_URL``, ``REDIS_HOST`` ...).
        payload: a msgspec Struct that payloads are validated against and handed back as; None for dicts.
        ttl: seconds that a message may wait, from when it is due; None: it does not expire.
        dedup_expiry: seconds that a dedup slot lasts at most, from when its message is due.
        result_ttl: seconds that a handler's result can be read.
        dead_letter_ttl: seconds that a dead letter is kept.
        max_payload: bytes of one message's names and values.

    Raises:
        ConfigurationError: a bad prefix, URL or environment variable, or a number that is not positive.
    """

    @overload
    def __init__(
        self: "Queue[dict[str, Any]]",
        prefix: str,
        *,
        url: str | None = ...,
        payload: None = ...,
        ttl: float | None = ...,
        dedup_expiry: float = ...,
        result_ttl: float = ...,
        dead_letter_ttl: float = ...,
        max_payload: int = ...,
    ) -> None: ...

    @overload
    def __init__(
        self,
        prefix: str,
        *,
        url: str | None = ...,
        payload: type[Payload],
        ttl: float | None = ...,
        dedup_expiry: float = ...,
        result_ttl: float = ...,
        dead_letter_ttl: float = ...,
        max_payload: int = ...,
    ) -> None: ...

    def __init__(
        self,
        prefix: str,
        *,
        url: str | None = None,
        payload: type[Payload] | None = None,
        ttl: float | None = None,
        dedup_expiry: float = 3600,
        result_ttl: float = 300,
        dead_letter_ttl: float = 30 * 86400,
        max_payload: int = 1 << 20,
    ) -> None:
        self.keys = Keys(prefix)
        self.settings = Settings.resolve(url)
        self.ttl = positive("ttl", ttl) if ttl is not None else None
        self.dedup_expiry = whole("dedup_expiry", dedup_expiry)
        self.result_ttl = whole("result_ttl", result_ttl)
        self.dead_letter_ttl = whole("dead_letter_ttl", dead_letter_ttl)
        self.codec: Codec[Payload] = Codec(payload, whole("max_payload", max_payload))
        self.use(Connection(self.settings))
        # By replicas: who waits for them delays nobody else.
        self._enqueues: dict[int, _Enqueues] = {}
        self._check_prefix()

    def __repr__(self) -> str:
        return f"Queue({self.keys.prefix!r}, url={self.settings.display!r})"

    def use(self, connection: Connection) -> None:
        """Reach Redis over this connection, which others may use, too: who closes the queue, closes it."""
        self.connection = connection
        self.transitions = Transitions(connection, self.keys)
        self.listener = Listener(connection, self.keys, self.transitions)

    def _check_prefix(self) -> None:
        if self.connection.is_cluster and not self.keys.has_hash_tag:
            raise ConfigurationError(
                f"on Redis Cluster all keys of a queue must live on one node: prefix {self.keys.prefix!r} has no hash "
                f"tag, use {tagged(self.keys.prefix)!r}"
            )

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Connect. Harmless when open already.

        Raises:
            QueueUnavailable: nothing answers there.
            UnsupportedServer: the server is older than Redis 6.2.
            ConfigurationError: it refuses the credentials, TLS fails, or a newer engine wrote the queue.
        """
        if self.connection.is_open:
            return
        await self.connection.open()
        try:
            await self.transitions.check_schema()
        except BaseException:
            await self.connection.close()
            raise

    async def close(self) -> None:
        """Send what was submitted, then disconnect."""
        await self.drain()
        await self.listener.stop()
        await self.connection.close()

    async def drain(self) -> None:
        """Return when what was submitted so far was sent."""
        for batcher in list(self._enqueues.values()):
            await batcher.drain()

    async def enqueue(
        self,
        payload: Payload | Mapping[str, Any],
        *,
        id: str | None = None,
        priority: Priority = "normal",
        delay: float | None = None,
        at: datetime | float | None = None,
        unique_key: str | None = None,
        ttl: float | None = None,
        replicas: int = 0,
    ) -> Receipt:
        """Put a message in the queue; when this returns, Redis has it, and as many of its replicas as asked for.

        Calls that run side by side share round trips. O(log n).

        Args:
            payload: a dict, or the queue's Struct. Values come back as they were put in.
            id: a name of your own, ``[A-Za-z0-9_.:-]{1,128}``; a UUID4 otherwise.
            priority: of two waiting messages the higher is taken first, but for the shares of the lower priorities.
            delay: seconds by the server's clock before it stands in line.
            at: when it comes into line instead, by the server's clock: epoch seconds, or a datetime with a time zone. A
                time that is past means now.
            unique_key: while an unfinished message holds the same key, that one is returned as a duplicate.
            ttl: seconds it may wait, instead of the queue's.
            replicas: how many of the server's replicas must have it in memory, too. Waits for them for half of the
                client's timeout.

        Returns:
            The receipt. A known id is a duplicate: of an unfinished message, of a dead letter, and for as long as its
            marker lasts of a finished one; nothing is added then, and the first payload stays.

        Raises:
            InvalidMessage: the id, an argument or the payload was refused; nothing was written.
            QueueFull: the queue has as many unfinished messages as it may; nothing was written.
            RateLimited: as many were accepted lately as may be, of all or of this key; nothing was written.
            QueueUnavailable: the server cannot take it now. After a lost reply it may have been taken: call again with
                the same ``id``, and it is in the queue once. Where too few replicas confirmed it in time, it is in the
                queue, and the text says so: a duplicate waits for the replicas again.
        """
        conditions = Conditions.checked(priority, delay, at, self.ttl if ttl is None else ttl)
        fields = self.codec.encode(payload)
        own_id = valid_id(id) if id is not None else self._new_ids([fields])[0]
        home = self._home(own_id, fields)
        batcher = home._batcher(replicas)
        slot = home._slot(unique_key) if unique_key is not None else None
        message = conditions.message(own_id, slot, fields)
        if tracing.is_on():
            accepted = await tracing.send(self.keys.prefix, [message], lambda traced: self._accept(batcher, *traced))
        else:
            accepted = self._accepted(await batcher.submit(message))
        if unconfirmed := self._unconfirmed(replicas, [accepted]):
            raise unconfirmed
        return _receipt(accepted[0], own_id=None if id is not None else message.id)

    async def enqueue_many(
        self,
        payloads: Sequence[Payload | Mapping[str, Any]],
        *,
        priority: Priority = "normal",
        delay: float | None = None,
        at: datetime | float | None = None,
        ttl: float | None = None,
        replicas: int = 0,
    ) -> list[Receipt]:
        """Put messages in the queue in this order, up to 500 a round trip.

        All are checked before the first is written. After `QueueUnavailable` the first ones may be in the queue; where
        its text says that too few of ``replicas`` confirmed some, all of them are.

        Raises:
            InvalidMessage: one of them was refused for what it is; nothing was written.
            QueueFull: a limit of the queue refused one. Those before it are in the queue, that one and all after it
                are not: the error's ``receipts`` has for each its receipt, or None. In a `ShardedQueue` this holds for
                each shard. Where too few replicas confirmed the former, the error's ``__cause__`` is the
                `QueueUnavailable` that says so.
            RateLimited: the same, for another limit.
            QueueUnavailable: the server cannot take them now.
        """
        check_replicas(replicas)
        conditions = Conditions.checked(priority, delay, at, self.ttl if ttl is None else ttl)
        encoded = [self.codec.encode(payload) for payload in payloads]
        ids = self._new_ids(encoded)
        messages = [conditions.message(id, None, fields) for id, fields in zip(ids, encoded, strict=True)]
        send = partial(self._accept_all, replicas=replicas)
        return await (tracing.send(self.keys.prefix, messages, send) if tracing.is_on() else send(messages))

    async def position(self, id: str) -> int | None:
        """The message's place: 1 for the first, messages being worked on counted; None when it is in no queue.

        Those that wait for a retry or a due time stand behind all others. In a `ShardedQueue` it is the place in the
        message's shard: there is none in the whole. O(log n).
        """
        ((position, _),) = await self.transitions.positions([id])
        return position

    async def ahead(self, id: str) -> int | None:
        """How many messages will be taken before this one, as things stand; None when it is in no queue.

        What is being worked on does not count; higher priorities do, and the slots that lower ones are given meanwhile.
        Limits at work are not in it: those that wait for their key's turn count as if it came in time.
        Right to one message where none arrives and workers take one at a time; who fills several slots takes them in
        one step. A message handed back or recovered is the first of its priority. In a `ShardedQueue` it
        counts within the message's shard. O(log n), and the number of live workers.
        """
        ((_, ahead),) = await self.transitions.positions([id])
        return ahead

    async def get(self, id: str) -> Message[Payload] | None:
        """The message; None when there is none, or it is finished.

        Raises:
            InvalidMessage: its payload does not fit the queue's Struct.
        """
        (fields,) = await self.transitions.read([id])
        return self.codec.decode(id, fields) if "timestamp" in fields else None

    async def update(self, id: str, changes: Mapping[str, Any]) -> bool:
        """Write some fields of the payload; False when there is no such message.

        Raises:
            InvalidMessage: a value cannot be stored, or the queue has a payload type, whose fields belong together.
        """
        fields, types = self.codec.encode_changes(changes)
        if not fields:
            return await self.get(id) is not None
        return await self.transitions.update(id, fields, types)

    async def remove(self, id: str) -> bool:
        """Take the message out, wherever it stands; False when there is none.

        A handler that works on it is cancelled at its next renewal, and what it reports is not written.
        """
        return (await self.transitions.remove([id]))[0]

    async def set_priority(self, id: str, priority: Priority) -> bool:
        """Give a waiting message another priority; False when it does not wait: processing, finished, dead, unknown.

        It takes the place of a new arrival in that line, and so its `position` is the last, too. One that waits for a
        retry or a due time goes on waiting, and comes into that line then. One that has this priority stays where it
        is. O(log n).

        Raises:
            InvalidMessage: there is no such priority.
        """
        check_priority(priority)
        (answer,) = await self.transitions.prioritise([id], priority)
        return answer in {"changed", "same"}

    async def length(self) -> int:
        """Messages accepted and not finished: main, retry and scheduled. O(number of workers)."""
        stats = await self.stats()
        return stats.main + stats.retry + stats.scheduled

    async def stats(self) -> Stats:
        """Counts of this moment and counters since the queue began. O(number of workers)."""
        return await self.transitions.stats()

    async def pause(self) -> None:
        """Have workers take no more messages; what they hold they finish. Enqueueing goes on."""
        await self.transitions.pause(True)

    async def resume(self) -> None:
        """Have workers take messages again."""
        await self.transitions.pause(False)

    async def limits(self) -> Limits:
        """The limits in force."""
        return await self.transitions.limits()

    async def set_limits(self, limits: Limits) -> None:
        """Have these limits from now on, and no others: for every producer and every worker of this queue.

        Raises:
            ConfigurationError: these are no limits, or the shards of a `ShardedQueue` cannot have them.
        """
        self.check_limits(limits)
        await self.transitions.limit(limits)

    def check_limits(self, limits: Limits) -> None:
        """Nothing, where this queue can have these limits. Asks no server.

        Raises:
            ConfigurationError: as for `set_limits`.
        """
        to_meta(limits)

    async def result(self, id: str, timeout: float | None = None) -> Any:
        """Wait for the message's end: the value that its handler returned (as JSON holds it).

        None also when the handler's value took more than 64 KiB. A waiting call makes no requests but one every 5 s.

        Args:
            id: of the message.
            timeout: seconds; None waits as long as it takes.

        Raises:
            HandlerFailed: it is a dead letter.
            Expired: its TTL ran out.
            Removed: somebody took it out.
            NotFound: nothing is known of it, or no longer: a result lasts ``result_ttl``.
            TimeoutError: it is not finished yet.
        """
        # asyncio's own timeout cancels once, which `asyncio.wait_for` of Python 3.11, used by redis-py, may swallow.
        with anyio.fail_after(timeout):
            return await Results(self.keys.prefix, self.transitions, self.listener).wait(id)

    @property
    def dead_letters(self) -> DeadLetters[Payload]:
        """The messages that were given up."""
        return DeadLetters(self.transitions, self.codec, self.dedup_expiry)

    def _new_ids(self, payloads: Sequence[Sequence[bytes]]) -> list[str]:
        """An id for each of these encoded payloads."""
        return _uuids(len(payloads))

    def _home(self, id: str, fields: Sequence[bytes]) -> "Queue[Payload]":  # noqa: ARG002
        """The queue that keeps the message: this one, where it has no shards."""
        return self

    def _slot(self, unique_key: str) -> str:
        try:
            return self.keys.slot(unique_key)
        except (AttributeError, UnicodeEncodeError) as error:
            raise InvalidMessage(f"unique_key {unique_key!r:.200} is not text that can be encoded") from error

    async def _accept(self, batcher: "_Enqueues", message: NewMessage) -> tuple[Enqueued, int]:
        return self._accepted(await batcher.submit(message))

    def _accepted(self, answer: tuple[Answered, int]) -> tuple[Enqueued, int]:
        if isinstance(answer[0], Outdated):
            raise Resharded(f"queue {self.keys.prefix!r} has another number of shards by now", answer[0].version)
        if isinstance(answer[0], Refused):
            raise rejection(self.keys.prefix, answer[0])
        return cast("tuple[Enqueued, int]", answer)

    async def _accept_all(self, messages: Sequence[NewMessage], *, replicas: int) -> list[Receipt]:
        answers = [
            row if isinstance(row[0], Refused) else self._accepted(row)
            for row in await self._send(messages, replicas=replicas, in_order=True)
        ]
        refused = next((answer for answer, _ in answers if isinstance(answer, Refused)), None)
        accepted = answers if refused is None else [row for row in answers if isinstance(row[0], Enqueued)]
        unconfirmed = self._unconfirmed(replicas, cast("list[tuple[Enqueued, int]]", accepted))
        receipts = [
            _receipt(answer, own_id=new.id) if isinstance(answer, Enqueued) else None
            for (answer, _), new in zip(answers, messages, strict=True)
        ]
        if refused is not None:
            raise rejection(self.keys.prefix, refused, receipts) from unconfirmed
        if unconfirmed:
            raise unconfirmed
        return cast("list[Receipt]", receipts)

    def _batcher(self, replicas: int) -> "_Enqueues":
        check_replicas(replicas)
        if replicas not in self._enqueues:
            self._enqueues[replicas] = Batcher(partial(self._send, replicas=replicas))
        return self._enqueues[replicas]

    async def _send(
        self, messages: Sequence[NewMessage], *, replicas: int, in_order: bool = False
    ) -> Sequence[tuple[Answered, int]]:
        return await self.transitions.enqueue_on_replicas(
            messages, dedup_expiry=self.dedup_expiry, replicas=replicas, in_order=in_order
        )

    def _unconfirmed(self, replicas: int, accepted: Sequence[tuple[Enqueued, int]]) -> QueueUnavailable | None:
        """What to raise where too few replicas have confirmed a message."""
        short = [(answer.id, confirmed) for answer, confirmed in accepted if confirmed < replicas]
        if not short:
            return None
        names = ", ".join(repr(id) for id, _ in short[:_NAMED])
        more = f" and {len(short) - _NAMED} more" if len(short) > _NAMED else ""
        confirmed = min(confirmed for _, confirmed in short)
        return QueueUnavailable(
            f"queue {self.keys.prefix!r} has {names}{more}, but {confirmed} of {replicas} replicas confirmed it within "
            f"{self.connection.replica_timeout:g} s. To wait for them again, call enqueue with the same id: "
            "nothing is added then"
        )


_Enqueues = Batcher[NewMessage, tuple[Answered, int]]


def _uuids(count: int) -> list[str]:
    """So many UUID4s; the system is asked for random bytes once for all of them."""
    random = os.urandom(16 * count)
    return [str(uuid.UUID(bytes=random[at : at + 16], version=4)) for at in range(0, len(random), 16)]


def _receipt(answer: Enqueued, own_id: str | None) -> Receipt:
    # A batch is sent again when its reply was lost: an id that we made ourselves is no duplicate of itself.
    return Receipt(answer.id, answer.duplicate and answer.id != own_id, answer.status)
