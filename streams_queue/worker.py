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
from collections.abc import Callable, Collection, Coroutine, Iterable, Sequence
from typing import Any, Generic

import anyio
import anyio.abc

from streams_queue import failpoints
from streams_queue.answers import Claimed, Delivery
from streams_queue.batches import Batch, BatchHandler, Gathering, Member, handle_together
from streams_queue.claiming import HAND_BACK_WITHIN, Claimer
from streams_queue.crew import Crew
from streams_queue.errors import ConfigurationError, StreamsQueueError
from streams_queue.execution import (
    NOT_WRITTEN,
    Deadlines,
    Execution,
    Handler,
    Outcome,
    Policy,
    Settlement,
    end_of,
    handle,
    is_suspect,
)
from streams_queue.inspection import report
from streams_queue.leases import LeaseKeeper
from streams_queue.logs import MessageLog
from streams_queue.maintenance import Maintenance
from streams_queue.model import Lease, Payload
from streams_queue.observation import Observation, Run, Watch
from streams_queue.queue import Queue
from streams_queue.sharding import ShardedQueue
from streams_queue.slots import ONE, Room, Slots
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
        self._transitions = queue.transitions
        self._executions: dict[Lease, Execution[Payload]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._broken: BaseException | None = None
        self._alone = False
        self._running = False
        self._answered_at = -math.inf
        self._signed_at = math.inf
        self._losses = 0
        """Deliveries that were lost, and not counted yet."""
        self._lost_some = asyncio.Event()
        self._stopping = asyncio.Event()
        self._chief: Worker[Payload] | None = None
        """The worker whose part this one is: it works on one of the shards."""

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
        self._running, self._answered_at, self._broken = True, -math.inf, None
        self.consumer = consumer_name() if self._chief is None else self._chief.consumer
        try:
            await self.queue.open()
            if isinstance(self.queue, ShardedQueue):
                await self._work_on_shards(self.queue, burst)
            else:
                await self._join()
                self._say_at_work(self.queue.keys.prefix)
                await self._work_on(_Run(self), burst)
        finally:
            self._running, self._signed_at = False, math.inf
            self._stopping.clear()
            self._slots.quit(self)

    def _say_at_work(self, queue: str) -> None:
        level = logging.INFO if self._chief is None else logging.DEBUG
        logger.log(level, "worker %s works on queue %s", self.consumer, queue)

    async def _join(self) -> None:
        self._slots.join(self)
        try:
            await self._transitions.join(self.consumer, self._lease)
            if self._one_at_a_time_per is not None:
                await self._transitions.one_at_a_time_per(self._one_at_a_time_per)
        except asyncio.CancelledError:
            # Redis may have carried it out: a consumer that nobody is would stand there until it is pruned.
            with anyio.move_on_after(HAND_BACK_WITHIN, shield=True):
                try:
                    await self._transitions.prune(self.consumer, idle=_NEVER)
                except StreamsQueueError as error:
                    logger.debug("consumer %s may be left over until it is pruned: %s", self.consumer, error)
            raise

    async def _work_on(self, run: "_Run[Payload]", burst: bool) -> None:
        run.keeper.start()
        try:
            async with anyio.create_task_group() as background:
                if self._chief is None:
                    background.start_soon(report, self.queue.connection, self.queue.keys.prefix)
                background.start_soon(run.maintenance.run)
                background.start_soon(self._give_signs, run.keeper)
                background.start_soon(self._count_losses)
                background.start_soon(self._keep_time)
                background.start_soon(self._look_at_schema)
                try:
                    async with anyio.create_task_group() as claiming:
                        # In a task of its own: who cancels this one does not cut off a claim under way.
                        claiming.start_soon(self._claim, run, claiming.cancel_scope, burst)
                        try:
                            await self._stopping.wait()
                        finally:
                            run.claimer.hurry()
                        claiming.cancel_scope.cancel()
                    with anyio.move_on_after(self._grace):
                        await self._all_done()
                finally:
                    await self._end_handlers(run)
                background.cancel_scope.cancel()
        finally:
            run.keeper.stop()
            await self._leave(run)
        if self._broken is not None:
            raise self._broken

    # ---- the shards of one queue

    async def _work_on_shards(self, queue: ShardedQueue[Payload], burst: bool) -> None:
        crew = Crew(self._hire, self._stopping, lambda: self._grace)
        async with anyio.create_task_group() as background:
            for connection in {shard.connection for shard in queue.shards}:
                background.start_soon(report, connection, queue.keys.prefix)
            background.start_soon(self._give_signs)
            self._say_at_work(f"{queue.keys.prefix}, in all of its {len(queue.shards)} shards")
            await crew.work(lambda: queue.shards, burst=burst)
            background.cancel_scope.cancel()
        if crew.error is not None:
            raise crew.error

    def _hire(self, shard: Queue[Payload]) -> "Worker[Payload]":
        """A part of this worker, for one shard: its slots and all that it was told are this one's."""
        member = Worker(
            shard, lease=self._lease, poll_interval=self._poll_interval, one_at_a_time_per=self._one_at_a_time_per
        )
        member._chief, member._slots, member.policy = self, self._slots, self.policy
        member._handler, member._gathering = self._handler, self._gathering and self._gathering.beside()
        member.observation.queue, member.observation.observers = self.queue.keys.prefix, self.observation.observers
        self._slots.join(member)
        return member

    # ---- taking messages into free slots

    async def _claim(self, run: "_Run[Payload]", scope: anyio.CancelScope, burst: bool) -> None:
        upkept = False  # by this burst, with nothing coming into line
        while True:
            if self._alone:
                self._hand_over()
            with await self._slots.room(self, alone=self._alone, intake=self._gathering or ONE) as room:
                ended = self._slots.ended
                claimed = await run.claimer.claim(room, self._executions)
                over = self._start(run, claimed, room)
            await run.give_back(over)
            if claimed.wait:
                await anyio.sleep(min(claimed.wait, self._poll_interval))  # the limits may be others by then
            elif claimed.looked_at:
                upkept = False
            elif burst and self._executions:
                self._hand_over()
                await self._slots.change(self._poll_interval)
            elif burst and upkept:
                with anyio.move_on_after(self._poll_interval):
                    if await self._slots.rest(self, ended):
                        return scope.cancel()
            elif burst:
                upkept = not await run.claimer.patiently(lambda: run.maintenance.round(full=True))
            elif claimed.paused:
                await self._slots.change(self._poll_interval)
            else:
                await self._idle(run)

    async def _idle(self, run: "_Run[Payload]") -> None:
        """Wait until there is something that a claim finds."""
        nothing = True
        while nothing and not self._alone and not self._full_of_batches and not run.maintenance.messages_wait:
            left = math.inf
            if self._gathering is not None and self._slots.full:
                left = self._gathering.left - READ_LATE
            if left <= 0:
                await anyio.sleep(min(BETWEEN_CLAIMS, left + READ_LATE))
                break
            with self._slots.no_room(self, intake=self._gathering or ONE) as room:
                claimed = await run.claimer.wait(room, self._executions, left)
                over = self._start(run, claimed, room)
            await run.give_back(over)
            nothing = not claimed.looked_at
            if claimed.wait:
                await anyio.sleep(min(claimed.wait, self._poll_interval))
        run.maintenance.messages_wait = False

    @property
    def _full_of_batches(self) -> bool:
        """Whether the last slot went with a batch that was handed over: what a read brings would have to go back."""
        return self._gathering is not None and not self._gathering.begun and self._slots.full

    def _answered(self) -> None:
        self._answered_at = time.monotonic()
        if self._chief is not None:
            self._chief._answered()

    def _renewed(self) -> None:
        if self._slots.full:  # else it claims, and that is to be answered
            self._answered()

    def _start(self, run: "_Run[Payload]", claimed: Claimed, room: Room) -> Sequence[Delivery]:
        """Begin with what there is room for; what there is none for any more is to go back."""
        room.take(len(claimed.deliveries))  # a batch may have been handed over meanwhile, and its room with it
        deliveries, over = claimed.deliveries[: room.free], claimed.deliveries[room.free :]
        self.observation.ask()
        run.keeper.hold(delivery.lease for delivery in deliveries)
        for delivery in deliveries:
            failpoints.hit("after_read")
            self._executions[delivery.lease] = self._begin(run, delivery, room)
        # A suspect runs with nothing beside it. For one that waits while all workers are busy, the one whose turn it is
        # to look after the queue runs empty.
        turn = run.maintenance.in_turn or not self._slots.running
        self._alone = any(map(is_suspect, deliveries)) or (claimed.suspects_wait and turn)
        room.stays_alone = self._alone
        return over

    def _begin(self, run: "_Run[Payload]", delivery: Delivery, room: Room) -> Execution[Payload]:
        if self._gathering is not None:
            batch = self._gathering.open_batch()
            if not batch.members:
                self._spawn(run, room, self._work_together(run, batch, self._gathering.handler), "batch")
            return batch.add(delivery, run.settlement, self.policy)
        assert self._handler is not None
        execution: Execution[Payload] = Execution(delivery, run.settlement, self.policy)
        self._spawn(run, room, self._work(run, execution, self._handler), f"message {delivery.lease.id}")
        return execution

    def _spawn(self, run: "_Run[Payload]", room: Room, work: Coroutine[Any, Any, None], name: str) -> None:
        room.fill(1)
        task = run.loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _hand_over(self) -> None:
        if self._gathering is not None:
            self._gathering.hand_over()

    # ---- working on one, or on a batch

    async def _work(self, run: "_Run[Payload]", execution: Execution[Payload], handler: Handler[Payload]) -> None:
        try:
            outcome = execution.decode(self.queue.codec) or await self._handle(run, execution, handler)
            await self._settle(execution, outcome)
        except asyncio.CancelledError:
            # The lease is lost, the grace period over, or the worker cancelled. `release` knows which.
            with anyio.move_on_after(HAND_BACK_WITHIN, shield=True):
                await execution.release()
            raise
        finally:
            self._let_go(run, execution.lease)

    async def _work_together(self, run: "_Run[Payload]", batch: Batch[Payload], handler: BatchHandler[Payload]) -> None:
        try:
            await batch.gather(self.queue.codec)
            outcomes = batch.refused | await self._handle_together(run, batch, handler)
            await asyncio.gather(*(self._settle(member, outcome) for member, outcome in outcomes.items()))
        except asyncio.CancelledError:
            with anyio.move_on_after(HAND_BACK_WITHIN, shield=True):
                await asyncio.gather(*(member.release() for member in batch.members))
            raise
        finally:
            for member in batch.members:
                self._let_go(run, member.lease)

    async def _settle(self, execution: Execution[Payload], outcome: Outcome) -> None:
        if execution.settled is None:  # the handler may have settled it by a call of the documented API
            await execution.settle(outcome)
        if execution.settled in NOT_WRITTEN:
            self._say_lost(execution.lease, taken_out=execution.settled == "gone")

    async def _handle(self, run: "_Run[Payload]", execution: Execution[Payload], handler: Handler[Payload]) -> Outcome:
        if not self.observation.listening:
            return await handle(execution, handler, run.deadlines, run.ending)
        watch = Watch(self.observation, [self._run_of(execution)])
        outcome = None
        try:
            outcome = await handle(execution, handler, run.deadlines, run.ending)
        finally:
            watch.end([end_of(execution, outcome)])
        return outcome

    async def _handle_together(
        self, run: "_Run[Payload]", batch: Batch[Payload], handler: BatchHandler[Payload]
    ) -> dict[Member[Payload], Outcome]:
        members = batch.at_work
        if not members:
            return {}
        handling = handle_together(batch, members, handler, run.deadlines, run.ending)
        if not self.observation.listening:
            return await handling
        watch = Watch(self.observation, [self._run_of(member) for member in members])
        outcomes: dict[Member[Payload], Outcome] = {}
        try:
            outcomes = await handling
        finally:
            watch.end([end_of(member, outcomes.get(member)) for member in members])
        return outcomes

    def _run_of(self, execution: Execution[Payload]) -> Run:
        return Run(self.observation, execution.lease, execution.message, execution.fields)

    def _let_go(self, run: "_Run[Payload]", lease: Lease) -> None:
        run.keeper.drop(lease)
        del self._executions[lease]

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._slots.leave()
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._broken = error
            self.stop(0)

    def _lost(self, lease: Lease) -> None:
        execution = self._executions.get(lease)
        if execution is None or execution.settled is not None or execution.lost:
            return
        execution.lost = True
        execution.interrupt()
        self._say_lost(lease)

    def _say_lost(self, lease: Lease, *, taken_out: bool = False) -> None:
        logger.warning("worker %s lost message %s: its outcome is not written", self.consumer, lease.id)
        if not taken_out:
            self._losses += 1
            self._lost_some.set()

    async def _keep_time(self) -> None:
        """Know the server's clock, where somebody wants to know how long messages wait."""
        while True:
            if self.observation.ask():
                try:
                    self.observation.set_clock(await self._transitions.time())
                except StreamsQueueError as error:
                    logger.debug("the server's clock could not be read: %s", error)
            await anyio.sleep(CLOCK_EVERY)

    async def _look_at_schema(self) -> None:
        """Stop where a newer engine has given the queue another layout."""
        while True:
            await anyio.sleep(SCHEMA_EVERY)
            try:
                error = self._transitions.too_new(await self._transitions.schema())
            except StreamsQueueError as unread:
                logger.debug("the number of the layout could not be read: %s", unread)
                continue
            if error is not None:
                logger.error("worker %s stops: %s", self.consumer, error)
                self._broken = error
                return self.stop()

    async def _count_losses(self) -> None:
        while True:
            await self._lost_some.wait()
            self._lost_some.clear()
            with anyio.CancelScope(shield=True):
                await self._count_lost()

    async def _count_lost(self) -> None:
        """In `P:stats`: each once or, where Redis does not answer, not at all."""
        lost, self._losses = self._losses, 0
        if not lost:
            return
        try:
            await self._transitions.count("lost_leases", lost)
        except StreamsQueueError as error:
            logger.warning("%d lost messages of worker %s are not in the statistics: %s", lost, self.consumer, error)

    # ---- leaving

    async def _end_handlers(self, run: "_Run[Payload]") -> None:
        """Interrupt those that are left. One that does not heed it keeps this worker, but not its message."""
        with anyio.CancelScope(shield=True):
            self._hand_over()
            for execution in self._executions.values():
                if execution.settled is None:
                    execution.interrupt()
            cancelled = await _outlast(self._tasks, HAND_BACK_WITHIN)
            cancelled |= await _outlast([run.loop.create_task(self._give_back_stubborn(run))])
            cancelled |= await _outlast(self._tasks)
            run.deadlines.close()
            self._executions.clear()  # of a task that was cancelled before it began
        if cancelled:
            raise asyncio.CancelledError

    async def _give_back_stubborn(self, run: "_Run[Payload]") -> None:
        leases, stubborn = [], 0
        for lease, execution in self._executions.items():
            if execution.settled == "releasing":
                continue  # the server does not answer
            execution.lost = True
            stubborn += execution.runs and execution.settled is None
            run.keeper.drop(lease)
            leases.append(lease)
        if stubborn:
            logger.error("handlers of %d messages of worker %s do not heed their cancellation", stubborn, self.consumer)
        if leases:
            await run.claimer.release(leases)

    async def _all_done(self) -> None:
        self._hand_over()
        await self._slots.until(lambda: not self._tasks)

    async def _leave(self, run: "_Run[Payload]") -> None:
        with anyio.move_on_after(HAND_BACK_WITHIN, shield=True):
            try:
                await run.settlement.drain()
                await self._count_lost()
                await run.claimer.hand_back_unseen(())
                await run.maintenance.resign()
                await self._transitions.prune(self.consumer, idle=_NEVER)
            except StreamsQueueError as error:
                logger.warning("worker %s could not take its leave, it will be pruned later: %s", self.consumer, error)
        with anyio.CancelScope(shield=True):
            await run.claimer.close()

    async def _give_signs(self, keeper: LeaseKeeper | None = None) -> None:
        while True:
            self._signed_at = time.monotonic()
            if keeper is not None:
                keeper.sign()
            await anyio.sleep(self._lease / 3)


_NEVER = 10 * 365 * 86400.0


def _whole(concurrency: int) -> int:
    if not isinstance(concurrency, int) or concurrency < 1:  # type: ignore[redundant-expr]  # 1.5 comes untyped
        raise ConfigurationError(f"concurrency={concurrency!r} is not a whole number above 0")
    return concurrency


async def _outlast(tasks: Collection[asyncio.Task[None]], seconds: float = math.inf) -> bool:
    """Wait for all of them, `seconds` at most, whoever cancels the calling task; whether somebody did."""
    cancelled, deadline = False, time.monotonic() + seconds
    while (pending := [task for task in tasks if not task.done()]) and (left := deadline - time.monotonic()) > 0:
        try:
            await asyncio.wait(pending, timeout=left if left < math.inf else None)
        except asyncio.CancelledError:
            cancelled = True
    return cancelled


class _Run(Generic[Payload]):
    """The parts of one call of `Worker.run`."""

    def __init__(self, worker: Worker[Payload]) -> None:
        queue, transitions, consumer = worker.queue, worker.queue.transitions, worker.consumer
        self.claimer = Claimer(
            queue.connection, transitions, consumer, worker._lease, worker._poll_interval, worker._answered
        )
        self.settlement = Settlement(transitions, consumer, worker.policy)
        self.deadlines = Deadlines(worker.policy.timeout)
        self.keeper = LeaseKeeper(queue.settings, queue.keys, consumer, worker._lease, worker._lost, worker._renewed)
        self.maintenance = Maintenance(transitions, consumer, worker._lease, worker.policy)
        self.loop = asyncio.get_running_loop()
        self._host = asyncio.current_task()
        self._cancelled_before = self._cancellations()

    async def give_back(self, deliveries: Iterable[Delivery]) -> None:
        """Hand these back uncharged. It is done before the next claim, which would miss what is still on its way."""
        await asyncio.gather(*(self.settlement.release(delivery.lease) for delivery in deliveries))

    def ending(self) -> bool:
        """Whether the worker's own task was cancelled, as at the end of `asyncio.run`."""
        return self._cancellations() > self._cancelled_before

    def _cancellations(self) -> int:
        return self._host.cancelling() if self._host is not None else 0


def consumer_name() -> str:
    """A name that no other worker bears, nor this process's next one.

    Host, process, and sixteen hexadecimal digits: eight of the time in epoch seconds, eight at random.
    """
    host = re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname())[:60]
    return f"{host}-{os.getpid()}-{int(time.time()):08x}{uuid.uuid4().hex[:8]}"
