"""The worker: slots, claiming, renewing, draining. It knows transitions and executions, and no Redis command."""

import asyncio
import inspect
import logging
import os
import re
import socket
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

import anyio
import anyio.abc

from streams_queue.errors import ConfigurationError, QueueUnavailable, StreamsQueueError
from streams_queue.execution import Execution, Handler, Policy, Rejected, Settlement, decoded, handle
from streams_queue.leases import LeaseKeeper
from streams_queue.maintenance import Maintenance
from streams_queue.model import Lease, Payload
from streams_queue.queue import Queue
from streams_queue.transitions import Delivery, NotJoined

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

HAND_BACK_WITHIN = 2.0
"""Seconds that a cancelled worker takes at most to hand back what it holds."""


class Worker(Generic[Payload]):
    """Works on a queue's messages, ``concurrency`` at a time. Start more of them, anywhere, to go faster.

    Each message is handed to one worker at a time while its lease holds, and at least once in all. A handler that
    returns completes its message; one that raises has it tried again.

    Args:
        queue: opened by `run` where it is not.
        concurrency: handlers that run at the same time.
        lease: seconds after which the messages of a worker that died go to another. How long a handler runs has nothing
            to do with it. All workers of a queue use the same.
        max_retries: how often a failed message is tried again before it is a dead letter.
        retry_delay: seconds before the first retry; twice as long before each further one.
        max_deliveries: after the death of so many workers that held it, a message is a dead letter.
        timeout: seconds that a handler may take.
        grace: seconds that `stop` lets handlers finish.
        poll_interval: seconds that an idle worker waits in one read; a new message ends the wait.

    Raises:
        ConfigurationError: a number that is not positive.
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
    ) -> None:
        positive = {
            "lease": lease, "max_deliveries": max_deliveries, "timeout": timeout, "poll_interval": poll_interval,
        }  # fmt: skip
        for name, value in positive.items():
            if not 0 < value < float("inf"):
                raise ConfigurationError(f"{name}={value!r} is not a number above 0")
        for name, value in {"max_retries": max_retries, "retry_delay": retry_delay, "grace": grace}.items():
            if not 0 <= value < float("inf"):
                raise ConfigurationError(f"{name}={value!r} is not a number from 0 on")
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
        self.concurrency = concurrency
        self._lease = lease
        self._grace = grace
        self._poll_interval = poll_interval
        self._handler: Handler[Payload] | None = None
        self._transitions = queue.transitions
        self._executions: dict[Lease, Execution[Payload] | None] = {}
        self._changed = asyncio.Event()
        self._stopping = asyncio.Event()

    @property
    def concurrency(self) -> int:
        """Handlers that run at the same time. May be set at any time; what runs already goes on.

        Raises:
            ConfigurationError: set to something that is not a whole number above 0.
        """
        return self._concurrency

    @concurrency.setter
    def concurrency(self, handlers: int) -> None:
        if not isinstance(handlers, int) or handlers < 1:  # type: ignore[redundant-expr]  # 1.5 comes untyped
            raise ConfigurationError(f"concurrency={handlers!r} is not a whole number above 0")
        self._concurrency = handlers

    def handler(self, function: Handler[Payload]) -> Handler[Payload]:
        """Decorator: the coroutine function that works on a message.

        Raises:
            ConfigurationError: it is no coroutine function, or there is a handler already.
        """
        if not inspect.iscoroutinefunction(function):
            raise ConfigurationError(f"handler {function!r} is not a coroutine function: write `async def`")
        if self._handler is not None:
            raise ConfigurationError("this worker has a handler already: one worker, one handler")
        self._handler = function
        return function

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
            ConfigurationError: no handler, or workers of this queue live with another lease.
            QueueUnavailable: the server cannot be reached at the start.
        """
        if self._handler is None:
            raise ConfigurationError("this worker has no handler: decorate one with @worker.handler")
        await self.queue.open()
        await self._transitions.join(self.consumer, self._lease)
        logger.info("worker %s works on queue %s", self.consumer, self.queue.keys.prefix)
        settlement = Settlement(self._transitions, self.consumer, self.policy)
        maintenance = Maintenance(self._transitions, self.consumer, self._lease, self.policy)
        keeper = LeaseKeeper(self.queue.settings, self.queue.keys, self.consumer, self._lease, self._lost)
        keeper.start()
        try:
            async with anyio.create_task_group() as background:
                background.start_soon(maintenance.run)
                background.start_soon(self._give_signs, keeper)
                async with anyio.create_task_group() as handlers:
                    run = _Run(self._handler, settlement, keeper, handlers)
                    async with anyio.create_task_group() as claiming:
                        claiming.start_soon(self._cancel_when_stopped, claiming.cancel_scope)
                        await self._claim(run, maintenance if burst else None)
                        claiming.cancel_scope.cancel()
                    await self._drain()
                background.cancel_scope.cancel()
        finally:
            keeper.stop()
            await self._leave(maintenance)

    # ---- claiming

    async def _claim(self, run: "_Run[Payload]", burst: Maintenance | None) -> None:
        reader = self.queue.connection.reader(self._poll_interval)
        while True:
            free = await self._free_slots()
            claimed = await self._patiently(lambda free=free: self._transitions.claim(self.consumer, free))  # type: ignore[misc]
            self._start(run, claimed.deliveries)
            if claimed.looked_at:
                continue
            if burst is not None:
                if not self._executions and not await burst.round(full=True):
                    return
                await self._wait_for_change(self._poll_interval)
            elif claimed.paused:
                await self._wait_for_change(self._poll_interval)
            else:
                self._start(run, await self._wait_for_entries(reader))

    async def _wait_for_entries(self, reader: Any) -> list[Delivery]:
        """One blocking read. Between the read and the adoption the entries have no lock, only their idle time."""
        try:
            entries = await self._transitions.wait(reader, self.consumer, self._poll_interval)
        except QueueUnavailable as error:
            logger.info("reading broke off, looking for what was delivered meanwhile: %s", error)
            entries = await self._patiently(self._unheld_entries)
        if not entries:
            return []
        free = max(0, self._concurrency - len(self._executions))
        claimed = await self._patiently(lambda: self._transitions.adopt(self.consumer, entries, free))
        return claimed.deliveries

    async def _unheld_entries(self) -> list[str]:
        held = {lease.entry for lease in self._executions}
        return [entry for entry in await self._transitions.pending(self.consumer) if entry not in held]

    async def _joined_again(self) -> bool:
        """After a flush, or groups destroyed by hand: they are made anew, at 0."""
        try:
            await self._transitions.join(self.consumer, self._lease)
        except StreamsQueueError:
            return False  # the caller waits, and says why
        logger.warning("the queue's keys were gone: worker %s joined again", self.consumer)
        return True

    async def _patiently(self, call: Callable[[], Awaitable[Answer]]) -> Answer:
        """The call's answer, however long the server is away: said once, not a thousand times."""
        pause, warned = 0.1, False
        while True:
            try:
                answer = await call()
            except StreamsQueueError as error:
                if isinstance(error, NotJoined) and await self._joined_again():
                    continue
                if not warned:
                    logger.warning("the server is unavailable, worker %s waits: %s", self.consumer, error)
                warned = True
                await anyio.sleep(pause)
                pause = min(pause * 2, 2.0)
            else:
                if warned:
                    logger.warning("the server is available again, worker %s goes on", self.consumer)
                return answer

    # ---- slots

    async def _free_slots(self) -> int:
        while len(self._executions) >= self._concurrency:
            await self._wait_for_change(None)
        return self._concurrency - len(self._executions)

    async def _wait_for_change(self, timeout: float | None) -> None:
        self._changed.clear()
        with anyio.move_on_after(timeout):
            await self._changed.wait()

    def _start(self, run: "_Run[Payload]", deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            self._executions[delivery.lease] = None
            run.keeper.hold(delivery.lease)
            run.handlers.start_soon(self._work, run, delivery)

    async def _work(self, run: "_Run[Payload]", delivery: Delivery) -> None:
        try:
            execution = decoded(delivery, self.queue.codec, run.settlement, self.policy)
            if isinstance(execution, Rejected):
                await run.settlement.settle(delivery.lease, execution)
                return
            self._executions[delivery.lease] = execution
            await self._execute(run, execution)
        finally:
            run.keeper.drop(delivery.lease)
            del self._executions[delivery.lease]
            self._changed.set()

    async def _execute(self, run: "_Run[Payload]", execution: Execution[Payload]) -> None:
        with execution.scope:
            try:
                outcome = await handle(execution, run.handler, self.policy.timeout)
            except asyncio.CancelledError:
                # Ours: the lease is lost, the grace period over, or the worker cancelled. `release` knows which.
                with anyio.move_on_after(HAND_BACK_WITHIN, shield=True):
                    await execution.release()
                raise
            if execution.settled is None and await execution.settle(outcome) is False and not execution.lost:
                self._log_lost(execution.lease)

    # ---- losing and leaving

    def _lost(self, lease: Lease) -> None:
        execution = self._executions.get(lease)
        if execution is None or execution.settled is not None or execution.lost:
            return
        execution.lost = True
        execution.scope.cancel()
        self._log_lost(lease)

    def _log_lost(self, lease: Lease) -> None:
        logger.warning("worker %s lost message %s to another: its outcome is not written", self.consumer, lease.id)

    async def _cancel_when_stopped(self, scope: anyio.CancelScope) -> None:
        await self._stopping.wait()
        scope.cancel()

    async def _drain(self) -> None:
        with anyio.move_on_after(self._grace):
            while self._executions:
                await self._wait_for_change(None)
        for execution in self._executions.values():
            if execution is not None:
                execution.scope.cancel()

    async def _leave(self, maintenance: Maintenance) -> None:
        with anyio.move_on_after(HAND_BACK_WITHIN, shield=True):
            try:
                await maintenance.resign()
                await self._transitions.prune(self.consumer, idle=_NEVER)
            except StreamsQueueError as error:
                logger.warning("worker %s could not take its leave, it will be pruned later: %s", self.consumer, error)

    async def _give_signs(self, keeper: LeaseKeeper) -> None:
        while True:
            keeper.sign()
            await anyio.sleep(self._lease / 3)


_NEVER = 10 * 365 * 86400.0


class _Run(Generic[Payload]):
    """What one call of `Worker.run` hands to its parts."""

    def __init__(
        self,
        handler: Handler[Payload],
        settlement: Settlement,
        keeper: LeaseKeeper,
        handlers: anyio.abc.TaskGroup,
    ) -> None:
        self.handler = handler
        self.settlement = settlement
        self.keeper = keeper
        self.handlers = handlers


def consumer_name() -> str:
    """A name that no other worker bears, nor this process's next one: host, process, and eight random digits."""
    host = re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname())[:60]
    return f"{host}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
