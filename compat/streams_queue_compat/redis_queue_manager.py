"""`RedisQueueManager`, as documented: a queue by prefix, with its manual calls and its processor."""

import asyncio
import logging
import math
import time
import traceback
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, ClassVar

from streams_queue.answers import Failure, NewMessage
from streams_queue.backoff import retry_delay
from streams_queue.codec import Codec, decode_values, encode_values, number
from streams_queue.errors import ConfigurationError, InvalidMessage
from streams_queue.execution import Execution, current
from streams_queue.keys import Keys, valid_id
from streams_queue.listener import Event
from streams_queue.model import Lease, Message, Status
from streams_queue.outcomes import Policy, Reject, Retry
from streams_queue.redaction import scrubbed
from streams_queue.settings import Settings
from streams_queue.worker import Worker
from streams_queue_compat.callbacks import (
    STATUS_COMPLETED,
    STATUS_ERROR,
    STATUS_PROCESSING,
    STATUS_QUEUED,
    STATUS_RETRY,
    Callback,
    Hearer,
)
from streams_queue_compat.documented import documented, in_its_loop
from streams_queue_compat.engine import Engine
from streams_queue_compat.logs import MANAGER, log_attempt
from streams_queue_compat.processor import Processor
from streams_queue_compat.values import storable

__all__ = [
    "STATUS_COMPLETED",
    "STATUS_ERROR",
    "STATUS_PROCESSING",
    "STATUS_QUEUED",
    "STATUS_RETRY",
    "RedisQueueManager",
]

logger = logging.getLogger(MANAGER)

LEASE = 30.0
"""Seconds: the queue's lease, which processors renew. What is held by hand is locked for ``lock_expiry`` instead."""

MAX_DELIVERIES = 3
NO_LIMIT = 10 * 365 * 86400.0
"""Seconds: a process function may take as long as it likes, as it always could."""

SHORTEST_POLL = 0.01
RESULT_TTL = 300
DEAD_LETTER_TTL = 30 * 86400

_LOCK_POLL = 0.1
_MAX_PAYLOAD = 1 << 20
_ENGINE_OWNED = ("status", "retry_count", "dedup_key")


class RedisQueueManager:
    """A queue under one prefix. The documented methods; none of them lets an error out: it is logged instead.

    The attributes may be set at any time and count from then on. An instance works in any number of event loops, each
    with a connection of its own.

    Args:
        prefix: of every key; on Redis Cluster the keys' own is ``{prefix}``, which keeps them on one node.
        default_ttl: seconds that a message may wait; None: it does not expire.
    """

    _indexes_users: ClassVar[bool] = False

    def __init__(self, prefix: str, default_ttl: float | None = 3600) -> None:
        self._name = Keys(prefix).prefix
        self._settled: Keys | None = None
        self.default_ttl = default_ttl
        self.max_retries = 3
        self.retry_delay_base = 5.0
        self.lock_expiry = 300.0
        self.dedup_expiry = 3600.0
        self._codec: Codec[dict[str, Any]] = Codec(None, _MAX_PAYLOAD)
        self._engines: dict[asyncio.AbstractEventLoop, Engine] = {}
        self._processor: Processor | None = None

    # ---- names of keys, as documented

    @property
    def prefix(self) -> str:
        """Of every key: on Redis Cluster with a hash tag."""
        return self._keys.prefix

    @property
    def queue_main_key(self) -> str:
        """ZSET of every message accepted and not finished."""
        return self._keys.main

    @property
    def queue_retry_key(self) -> str:
        """ZSET of messages that wait for a retry."""
        return self._keys.retry

    @property
    def queue_dlq_key(self) -> str:
        """ZSET of dead letters."""
        return self._keys.dlq

    @property
    def stats_key(self) -> str:
        """HASH of counters."""
        return self._keys.stats

    @property
    def msg_prefix(self) -> str:
        """What stands before the id in the key of a message."""
        return self._keys.message("")

    @property
    def dedup_prefix(self) -> str:
        """What stands before the digest in the key of a dedup slot."""
        return f"{self.prefix}:dedup:"

    @property
    def lock_prefix(self) -> str:
        """What stands before the id in the key of a lock."""
        return self._keys.lock("")

    # ---- enqueue and look

    @documented(lambda: None)
    async def enqueue(self, message_data: Mapping[str, Any], callback: Callback | None = None) -> str | None:
        """Put a message in the queue.

        The id is ``request_id`` where that is given. While an unfinished message of the same ``user_id`` and
        ``message`` holds the dedup slot, nothing is added. O(log n).

        Args:
            message_data: one field of the hash a key.
            callback: told of ``queued``, ``processing``, ``retry``, ``completed`` and ``error``, also when another
            process
                does the work.

        Returns:
            The id, the existing one for a duplicate; None when it was refused, by a limit of the queue too, or Redis
            is away.
        """
        engine = await self._engine()
        message = self._new(message_data, engine.queue.listener.channel if callback else "")
        if callback is None:
            return (await engine.accept(message)).id
        hearer = Hearer({"timestamp": time.time(), **message_data, "request_id": message.id}, callback)
        listener = engine.queue.listener
        await listener.start()
        listener.hear(message.id, hearer)
        accepted = None
        try:
            accepted = await engine.accept(message)
        finally:
            if accepted is None or accepted.id != message.id:
                listener.forget(message.id, hearer)
        if accepted.id == message.id:
            engine.in_background(asyncio.create_task(hearer.accepted()))
        return accepted.id

    @documented(lambda: -1)
    async def get_position(self, message_id: str) -> int:
        """1-based rank in main, else main's length and the rank in retry, else -1. O(log n)."""
        engine = await self._engine()
        return await engine.queue.position(message_id) or -1

    @documented(lambda: None)
    async def get_message(self, message_id: str) -> dict[str, Any] | None:
        """The message's fields; None when there is no such message."""
        engine = await self._engine()
        fields = await engine.fields(message_id)
        return decode_values(fields) if "timestamp" in fields else None

    @documented(lambda: False)
    async def update_message(self, message_id: str, updates: Mapping[str, Any]) -> bool:
        """Write some fields and begin the message's time to live anew; False when there is no such message."""
        engine = await self._engine()
        _refuse_engine_fields(updates)
        fields, types = encode_values(storable(updates))
        delivery = engine.held(message_id)
        if delivery is not None and not await engine.keep(delivery, self._lock_expiry):
            return False
        return await engine.transitions.update(message_id, self._codec.flatten(fields), types)

    @documented(lambda: 0)
    async def get_queue_length(self, include_retry: bool = True, include_dlq: bool = False) -> int:
        """Messages in main, and in retry and dlq where asked for. O(number of workers)."""
        stats = await (await self._engine()).queue.stats()
        return stats.main + (stats.retry if include_retry else 0) + (stats.dead if include_dlq else 0)

    @documented(dict[str, int])
    async def get_stats(self) -> dict[str, int]:
        """The counters of the stats hash, and ``main_queue_length``, ``retry_queue_length`` and ``dlq_length``."""
        stats = await (await self._engine()).queue.stats()
        lengths = {"main_queue_length": stats.main, "retry_queue_length": stats.retry, "dlq_length": stats.dead}
        return {**stats.counters, **lengths}

    # ---- finish: fenced where this process holds the message, an order from outside where it does not

    @documented(lambda: False)
    async def remove_message(self, message_id: str) -> bool:
        """Take the message out and free its dedup slot; by whoever works on it, the documented way to finish it."""
        execution = self._execution_of(message_id)
        if execution is not None:
            return await in_its_loop(execution, execution.complete())
        engine = await self._engine()
        delivery = engine.held(message_id)
        if delivery is None:
            return await engine.queue.remove(message_id)
        done = [(delivery.lease, b"")]
        (answer,) = await engine.transitions.complete(engine.consumer, done, result_ttl=engine.queue.result_ttl)
        if answer != "completed":
            return False
        engine.let_go(message_id)
        return True

    @documented(lambda: False)
    async def move_to_dlq(self, message_id: str, error: str) -> bool:
        """Make the message a dead letter."""
        execution = self._execution_of(message_id)
        if execution is not None:
            return await in_its_loop(execution, execution.give_up(str(error)))
        engine = await self._engine()
        failure = Failure(_lease_of(engine, message_id), 0.0, "rejected", str(error))
        (answer,) = await engine.transitions.dead_letter(
            engine.consumer, [failure], dead_letter_ttl=engine.queue.dead_letter_ttl
        )
        if answer != "error":
            return False
        engine.let_go(message_id)
        return True

    @documented(lambda: False)
    async def retry_message(self, message_id: str) -> bool:
        """Have the message tried again after ``retry_delay_base * 2 ** retry_count`` seconds.

        Past ``max_retries`` it becomes a dead letter. False when there is no such message, or its lease is lost.
        """
        execution = self._execution_of(message_id)
        if execution is not None:
            return await in_its_loop(execution, execution.fail(""))
        engine = await self._engine()
        retries = int(number((await engine.fields(message_id)).get("retry_count")))
        delay = retry_delay(self.retry_delay_base, retries + 1)
        policy = self._policy()
        (answer,) = await engine.transitions.retry(
            engine.consumer,
            [Failure(_lease_of(engine, message_id), delay, "error", "")],
            max_retries=policy.max_retries,
            dead_letter_ttl=policy.dead_letter_ttl,
            dedup_expiry=policy.dedup_expiry,
        )
        if answer not in ("retry", "error"):
            return False
        engine.let_go(message_id)
        return True

    @documented(lambda: None)
    async def get_next_message(self) -> str | None:
        """The id of the next message to work on, leased for ``lock_expiry`` seconds; None when there is none.

        The same id again until it is finished by `remove_message`, `retry_message` or `move_to_dlq`. `update_message`
        renews the lease. Where this process dies, another gets the message when the lease has run out.
        """
        return await (await self._engine()).next_held(self._lease, self._lock_expiry)

    # ---- locks

    @documented(lambda: False)
    async def try_acquire_lock(self, message_id: str, owner: str, timeout: float = 0) -> bool:
        """Take ``P:lock:{id}`` for ``lock_expiry`` seconds, waiting up to `timeout` seconds for it.

        True for a message that this process works on: its lease is this lock. A lock on a waiting message keeps workers
        away from it.
        """
        execution = self._execution_of(message_id)
        if execution is not None:
            return not execution.lost
        engine = await self._engine()
        delivery = engine.held(message_id)
        if delivery is not None:
            return await engine.keep(delivery, self._lock_expiry)
        deadline = asyncio.get_running_loop().time() + timeout
        while not await engine.transitions.lock(self._lock_key(message_id), owner, self._lock_expiry):
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                return False
            await asyncio.sleep(min(_LOCK_POLL, left))
        return True

    @documented(lambda: False)
    async def release_lock(self, message_id: str, owner: str) -> bool:
        """Free the lock; False when somebody else holds it. The lease of a message being worked on stays as it is."""
        if self._execution_of(message_id) is not None:
            return True
        engine = await self._engine()
        if engine.held(message_id) is not None:
            return True
        return await engine.transitions.unlock(self._lock_key(message_id), owner)

    @documented(lambda: False)
    async def clear_deduplication_key(self, user_id: str, message: str) -> bool:
        """Free the slot of this user and text; False when it was free."""
        return await (await self._engine()).transitions.free(self._keys.slot(f"{user_id}:{message}"))

    @documented(lambda: False)
    async def clear_deduplication_key_by_id(self, message_id: str) -> bool:
        """Free the slot that this message holds; False when there is no such message, or another holds it."""
        engine = await self._engine()
        slot = (await engine.fields(message_id)).get("dedup_key", b"").decode(errors="replace")
        return slot.startswith(self.dedup_prefix) and await engine.transitions.unlock(slot, message_id)

    # ---- the processor

    async def start_processor(self, process_func: Callable[[str], Awaitable[Any]], poll_interval: float = 1.0) -> None:
        """Work on messages in the background, one at a time: ``await process_func(id)`` for each.

        A function that returns has finished its message; one that raises has it tried again. Starting twice is logged.

        Args:
            process_func: gets the id; the calls of this manager that it makes on it are its outcome.
            poll_interval: seconds that an idle processor waits at most before it looks again.
        """
        if self._processor is not None and self._processor.running:
            logger.warning("the processor of %s runs already", self._name)
            return
        self._processor = Processor(lambda: self._worker(process_func, poll_interval))
        self._processor.start()
        logger.info("the processor of %s started", self._name)

    async def stop_processor(self, timeout: float = 5.0) -> None:
        """Stop working: what is not done after `timeout` seconds is handed back. Stopping twice is logged."""
        if self._processor is None or not self._processor.running:
            logger.warning("no processor of %s runs", self._name)
            return
        await self._processor.stop(timeout)
        logger.info("the processor of %s stopped", self._name)

    async def close(self) -> None:
        """Disconnect this event loop. Not in the old documentation, and not needed at the end of a program."""
        engine = self._engines.pop(asyncio.get_running_loop(), None)
        if engine is not None:
            await engine.close()

    # ---- inside

    @documented(lambda: None)
    async def _report(self, message_id: str, status: Status, detail: bytes) -> None:
        """Tell those who listen to a message that this process works on of its end, ahead of the call that ends it."""
        engine = await self._engine()
        delivery = self._execution_of(message_id) or engine.held(message_id)
        if delivery is not None:
            await engine.report(Event(message_id, status, detail), delivery.fields)

    async def _worker(
        self,
        process_func: Callable[[str], Awaitable[Any]],
        poll_interval: float,
        *,
        concurrency: int = 1,
        timeout: float = NO_LIMIT,
        one_at_a_time_per: str | None = None,
    ) -> Worker[dict[str, Any]]:
        engine = await self._engine()
        worker = Worker(
            engine.queue,
            concurrency=concurrency,
            lease=self._lease,
            max_retries=self.max_retries,
            retry_delay=self.retry_delay_base,
            timeout=timeout,
            poll_interval=max(SHORTEST_POLL, poll_interval),
            one_at_a_time_per=one_at_a_time_per,
        )

        @worker.handler
        async def process(message: Message[dict[str, Any]]) -> Any:
            worker.policy.max_retries = self.max_retries
            worker.policy.retry_delay = self.retry_delay_base
            worker.policy.dedup_expiry = max(1, round(self.dedup_expiry))
            try:
                return await process_func(message.id)
            except (Retry, Reject):
                raise
            except Exception as error:  # the engine logs it too, with its traceback, under its own name
                words = scrubbed("".join(traceback.format_exception_only(error)), message.data)
                log_attempt(logger, message, words)
                raise

        return worker

    async def _engine(self) -> Engine:
        loop = asyncio.get_running_loop()
        engine = self._engines.get(loop)
        if engine is None:
            self._settled = Keys(Settings.resolve().prefix(self._name))
            engine = self._engines[loop] = Engine(self.prefix, self._policy, index_users=self._indexes_users)
            for ended in [other for other in list(self._engines) if other.is_closed()]:
                engine.take_over(self._engines.pop(ended))
        await engine.open()
        return engine

    def _execution_of(self, id: str) -> Execution[Any] | None:
        """The delivery of this message that the calling handler works on."""
        execution = current.get()
        if execution is None or (execution.prefix, execution.message.id) != (self.prefix, id):
            return None
        return execution

    @property
    def _keys(self) -> Keys:
        """Those on the server that the environment names, which it may do as late as before the first call."""
        return self._settled or Keys(Settings.resolve().prefix(self._name))

    @property
    def _lock_expiry(self) -> float:
        expiry: Any = self.lock_expiry
        if not (isinstance(expiry, (int, float)) and 0 < expiry < math.inf):
            raise ConfigurationError(f"lock_expiry={expiry!r} is not a number above 0")
        return expiry

    @property
    def _lease(self) -> float:
        return min(LEASE, self._lock_expiry)

    def _lock_key(self, id: str) -> str:
        if not id:
            raise InvalidMessage("a lock without an id: name the message")
        return self._keys.lock(id)

    def _policy(self) -> Policy:
        return Policy(
            max_retries=self.max_retries,
            retry_delay=self.retry_delay_base,
            max_deliveries=MAX_DELIVERIES,
            timeout=NO_LIMIT,
            result_ttl=RESULT_TTL,
            dead_letter_ttl=DEAD_LETTER_TTL,
            dedup_expiry=max(1, round(self.dedup_expiry)),
        )

    def _new(self, message_data: Mapping[str, Any], channel: str) -> NewMessage:
        if not isinstance(message_data, Mapping):
            raise InvalidMessage(f"message_data is a {type(message_data).__name__}: give a dict")
        _refuse_engine_fields(message_data)
        id = valid_id(str(message_data.get("request_id") or uuid.uuid4()))
        data = {name: value for name, value in message_data.items() if name not in _ENGINE_OWNED}
        if data.get("timestamp") is None:
            data.pop("timestamp", None)  # the engine writes the server's time
        data |= {"request_id": id, "_has_callback": bool(channel)}
        user_id, text = data.get("user_id"), data.get("message")
        return NewMessage(
            id=id,
            priority="normal",
            delay=0.0,
            ttl=self.default_ttl,
            slot=self._keys.slot(f"{user_id}:{text}") if user_id and text else None,
            fields=self._codec.with_types(*encode_values(storable(data))),
            listener=channel,
        )


def _lease_of(engine: Engine, id: str) -> Lease:
    delivery = engine.held(id)
    # An order from outside bears a name of its own: sent again after a lost reply it counts once.
    return Lease(id, "", uuid.uuid4().hex) if delivery is None else delivery.lease


def _refuse_engine_fields(values: Mapping[str, Any]) -> None:
    for name in values:
        if str(name).startswith("_sq_"):
            raise InvalidMessage(f"field {name!r} belongs to the engine: choose another name")
