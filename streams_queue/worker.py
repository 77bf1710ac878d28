"""The worker: slots, claiming, renewing, draining. It knows transitions and executions, and no Redis command."""

import asyncio
import inspect
import logging
import math
import os
import re
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Generic

import anyio
import anyio.abc

from streams_queue.batches import BatchHandler, Gathering
from streams_queue.consumer import Consumer, Terms
from streams_queue.crew import Crew
from streams_queue.errors import ConfigurationError
from streams_queue.execution import Handler
from streams_queue.inspection import report
from streams_queue.limits import Limits
from streams_queue.logs import MessageLog
from streams_queue.model import Payload
from streams_queue.observation import Observation
from streams_queue.outcomes import Policy
from streams_queue.queue import Queue
from streams_queue.sharding import ShardedQueue
from streams_queue.slots import Slots
from streams_queue.tracing import HandlerSpans

logger = logging.getLogger(__name__)

READ_LATE = 0.1
"""Seconds by which a blocking read may end too late: a server that has nothing to do looks at its clock so seldom."""

BETWEEN_CLAIMS = 0.02
"""Seconds between two claims for a batch in the last slot whose time is nearly up: a read might outlast it."""

CLOCK_EVERY = 60.0
"""Seconds between two looks at the server's clock, while somebody observes."""

SCHEMA_EVERY = 10.0
"""Seconds between two looks at the layout's number: a newer engine may take the queue over while this one works."""


class Worker(Generic[Payload]):
    """Works on a queue's messages, ``concurrency`` at a time. Start more of them, anywhere, to go faster.

    Each message is handed to one worker at a time while its lease holds, and at least once in all. A handler that
    returns completes its message; one that raises has it tried again.

    Args:
        queue: opened by `run` where it is not. Of a `ShardedQueue` all shards are taken from, each in its turn.
        concurrency: handlers that run at the same time, over all shards; a batch handler runs for as many batches.
        lease: seconds after which the messages of a worker that died go to another. How long a handler runs has nothing
            to do with it. All workers of a queue use the same.
        max_retries: how often a failed message is tried again before it is a dead letter.
        retry_delay: seconds before the first retry; twice as long before each further one.
        max_deliveries: after the death of so many workers that held it, a message is a dead letter. Before the last
            time it runs alone in its worker, so that those beside it do not share its fate; with 1 there is no time
            before the last, and they do.
        timeout: seconds that a handler may take.
        grace: seconds that `stop` lets handlers finish.
        poll_interval: seconds that an idle worker waits in one read; a new message ends the wait.
        one_at_a_time_per: a field of the payload, ``"user_id"`` for example. Messages with the same value are worked on
            one after the other in order of arrival, whatever their priority, over all workers of the queue, while
            others pass. A message that is tried again takes its place anew. The queue keeps to it (`Limits`) after this
            worker has gone.

    Raises:
        ConfigurationError: a number that is not positive, or a name that is none.
    """

    def __init__(
        self,
        queue: Queue[Payload],
        *,
        concurrency: int = 32,
        lease: float = 30.0,
        max_retries: int = 3,
        retry_delay: float = 5.0,
        max_deliveries: int = 3,
        timeout: float = 600.0,
        grace: float = 30.0,
        poll_interval: float = 1.0,
        one_at_a_time_per: str | None = None,
    ) -> None:
        positive: dict[str, Any] = {
            "lease": lease, "max_deliveries": max_deliveries, "timeout": timeout, "poll_interval": poll_interval,
        }  # fmt: skip
        for name, value in positive.items():
            if not (isinstance(value, (int, float)) and 0 < value < math.inf):
                raise ConfigurationError(f"{name}={value!r} is not a number above 0")
        not_negative: dict[str, Any] = {"max_retries": max_retries, "retry_delay": retry_delay, "grace": grace}
        for name, value in not_negative.items():
            if not (isinstance(value, (int, float)) and 0 <= value < math.inf):
                raise ConfigurationError(f"{name}={value!r} is not a number from 0 on")
        if one_at_a_time_per is not None:
            Limits(key=one_at_a_time_per)
        self.queue = queue
        self.consumer = consumer_name()
        self.policy = Policy(
            max_retries=max_retries,
            retry_delay=retry_delay,
            max_deliveries=max_deliveries,
            timeout=timeout,
            result_ttl=queue.result_ttl,
            dead_letter_ttl=queue.dead_letter_ttl,
            dedup_expiry=queue.dedup_expiry,
        )
        self._slots = Slots(_whole(concurrency))
        self._lease = lease
        self._grace = grace
        self._poll_interval = poll_interval
        self._one_at_a_time_per = one_at_a_time_per
        self._handler: Handler[Payload] | None = None
        self._gathering: Gathering[Payload] | None = None
        """Instead of a handler, in a worker on batches."""
        self.message_log = MessageLog()
        self.observation = Observation(queue.keys.prefix, self.message_log, HandlerSpans())
        self._running = False
        self._answered_at = -math.inf
        self._signed_at = math.inf
        self._stopping = asyncio.Event()

    @property
    def concurrency(self) -> int:
        """Handlers that run at the same time. May be set at any time; what runs already goes on.

        Raises:
            ConfigurationError: set to something that is not a whole number above 0.
        """
        return self._slots.limit

    @concurrency.setter
    def concurrency(self, handlers: int) -> None:
        self._slots.limit = _whole(handlers)

    @property
    def ready(self) -> bool:
        """Whether it gets messages, or could: Redis has answered a claim or an idle read of it in the last half of a
        lease and `poll_interval`; with all slots taken, a renewal.

        False before `run` has joined the queue, once the worker stops, and a little after the server has gone away. A
        paused queue makes no difference.
        """
        silence = time.monotonic() - self._answered_at
        at_work = self._running and not self._stopping.is_set()
        return at_work and silence <= self._lease / 2 + self._poll_interval

    @property
    def live(self) -> bool:
        """Whether its event loop runs: False once it gave no sign for a lease, as in a handler that blocks or a
        deadlock. True while the worker is not at work. May be asked from another thread, and should be.
        """
        return self.silence <= self._lease

    @property
    def silence(self) -> float:
        """Seconds since the last sign of its event loop, which gives three a lease; 0 while it is not at work."""
        return max(0.0, time.monotonic() - self._signed_at)

    @property
    def busy(self) -> int:
        """Handlers that run now, those included whose outcome is being written, and the batch that is gathered."""
        return self._slots.running

    def handler(self, function: Handler[Payload]) -> Handler[Payload]:
        """Decorator: the coroutine function that works on a message.

        Raises:
            ConfigurationError: it is no coroutine function, or there is a handler already.
        """
        self._check_handler(function)
        self._handler = function
        return function

    def batch(self, size: int = 100, wait: float = 0.05) -> Callable[[BatchHandler[Payload]], BatchHandler[Payload]]:
        """Decorator: the coroutine function that works on a list of messages, in the order of their delivery.

        It returns None, and all are completed; or a list as long as the one it was given, with an outcome for each:
        an exception (`Retry` and `Reject` included) is for that message what raising it is for a handler of one, any
        other value completes it as its result. If it raises, takes too long, or returns anything else, all of them
        have failed. A message that was lost meanwhile is left out, whatever its outcome; the handler is cancelled when
        all of them are.

        Args:
            size: messages in a list at most.
            wait: seconds after the first message that the list is handed over, though it is not full.

        Raises:
            ConfigurationError: ``size`` is no whole number above 0, ``wait`` no number from 0 on; and as `handler`.
        """
        if not isinstance(size, int) or size < 1:  # type: ignore[redundant-expr]  # what is decorated without a call
            raise ConfigurationError(
                f"size={size!r} is not a whole number above 0: write @worker.batch(size=100, wait=0.05)"
            )
        seconds: Any = wait
        if not (isinstance(seconds, (int, float)) and 0 <= seconds < math.inf):
            raise ConfigurationError(f"wait={wait!r} is not a number of seconds from 0 on")

        def decorate(function: BatchHandler[Payload]) -> BatchHandler[Payload]:
            self._check_handler(function)
            self._gathering = Gathering(function, size, wait)
            return function

        return decorate

    def _check_handler(self, function: Callable[..., Any]) -> None:
        if not inspect.iscoroutinefunction(function):
            raise ConfigurationError(f"handler {function!r} is not a coroutine function: write `async def`")
        if self._handler is not None or self._gathering is not None:
            raise ConfigurationError("this worker has a handler already: one worker, one handler")

    def stop(self, grace: float | None = None) -> None:
        """Claim nothing more; `run` returns when the handlers are done, or after the grace period.

        What is not done by then is handed back: another worker takes it at once, and nothing is charged.

        Args:
            grace: seconds, instead of the worker's.
        """
        if grace is not None:
            self._grace = grace
        self._stopping.set()

    async def run(self, *, burst: bool = False) -> None:
        """Work until stopped; with ``burst``, until there is nothing left to do now.

        When cancelled it hands back what it holds. It rides out a server that is away, and installs no signal handlers.

        Raises:
            ConfigurationError: no handler, workers of this queue live with another lease, it runs already, or a newer
                engine gave the queue another layout; where that happens meanwhile, it stops as by `stop` first.
            QueueUnavailable: the server cannot be reached at the start.
        """
        if self._handler is None and self._gathering is None:
            raise ConfigurationError(
                "this worker has no handler: decorate one with @worker.handler or @worker.batch(...)"
            )
        if self._running:
            raise ConfigurationError("this worker runs already: make another one to run beside it")
        self._running, self._answered_at = True, -math.inf
        self.consumer = consumer_name()
        try:
            await self.queue.open()
            await self._work(burst)
        finally:
            self._running, self._signed_at = False, math.inf
            self._stopping.clear()

    async def _work(self, burst: bool) -> None:
        """With a consumer for each shard; a queue without shards is its own only one."""
        queue = self.queue
        if self._one_at_a_time_per is not None and isinstance(queue, ShardedQueue):
            await queue.transitions.one_at_a_time_per(self._one_at_a_time_per)  # agreed for shards to come, too
        crew = Crew(partial(Consumer, terms=self._terms()), self._stopping, lambda: self._grace)

        def shards() -> Sequence[Queue[Payload]]:
            return queue.shards if isinstance(queue, ShardedQueue) else [queue]

        async with anyio.create_task_group() as background:
            for connection in {shard.connection for shard in shards()}:
                background.start_soon(report, connection, queue.keys.prefix)
            background.start_soon(self._give_signs)
            extent = f", in all of its {len(queue.shards)} shards" if isinstance(queue, ShardedQueue) else ""
            logger.info("worker %s works on queue %s%s", self.consumer, queue.keys.prefix, extent)
            await crew.work(shards, burst=burst)
            background.cancel_scope.cancel()
        if crew.error is not None:
            raise crew.error

    def _terms(self) -> Terms[Payload]:
        return Terms(
            self.consumer,
            self._slots,
            self.policy,
            self._handler,
            self._gathering,
            self._lease,
            self._grace,
            self._poll_interval,
            self._one_at_a_time_per,
            self.observation,
            self._answered,
        )

    async def _give_signs(self) -> None:
        while True:
            self._signed()
            await anyio.sleep(self._lease / 3)

    def _signed(self) -> None:
        self._signed_at = time.monotonic()

    def _answered(self) -> None:
        self._answered_at = time.monotonic()


def _whole(concurrency: int) -> int:
    if not isinstance(concurrency, int) or concurrency < 1:  # type: ignore[redundant-expr]  # 1.5 comes untyped
        raise ConfigurationError(f"concurrency={concurrency!r} is not a whole number above 0")
    return concurrency


def consumer_name() -> str:
    """A name that no other worker bears, nor this process's next one.

    Host, process, and sixteen hexadecimal digits: eight of the time in epoch seconds, eight at random.
    """
    host = re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname())[:60]
    return f"{host}-{os.getpid()}-{int(time.time()):08x}{uuid.uuid4().hex[:8]}"
