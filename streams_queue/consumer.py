"""A consumer: takes the messages of one queue into its worker's slots, and works on them. It knows no Redis command."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Collection, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic

import anyio

from streams_queue import failpoints
from streams_queue.answers import Claimed, Delivery
from streams_queue.batches import Batch, BatchHandler, Gathering, Member, handle_together
from streams_queue.claiming import HAND_BACK_WITHIN, Claimer
from streams_queue.errors import StreamsQueueError
from streams_queue.execution import NOT_WRITTEN, Execution, Handler, end_of, handle, is_suspect
from streams_queue.leases import LeaseKeeper
from streams_queue.maintenance import Maintenance
from streams_queue.model import Lease, Payload
from streams_queue.observation import Observation, Run, Watch
from streams_queue.outcomes import Outcome, Policy
from streams_queue.queue import Queue
from streams_queue.settlement import Settlement
from streams_queue.slots import ONE, Room, Slots
from streams_queue.supervision import Deadlines

logger = logging.getLogger(__name__)

READ_LATE = 0.1
"""Seconds by which a blocking read may end too late: a server that has nothing to do looks at its clock so seldom."""

BETWEEN_CLAIMS = 0.02
"""Seconds between two claims for a batch in the last slot whose time is nearly up: a read might outlast it."""

CLOCK_EVERY = 60.0
"""Seconds between two looks at the server's clock, while somebody observes."""

SCHEMA_EVERY = 10.0
"""Seconds between two looks at the layout's number: a newer engine may take the queue over while this one works."""

_NEVER = 10 * 365 * 86400.0


@dataclass(frozen=True)
class Terms(Generic[Payload]):
    """What all consumers of one worker go by."""

    name: str
    """Of each of them, in its queue's consumer group."""
    slots: Slots
    policy: Policy
    handler: Handler[Payload] | None
    gathering: Gathering[Payload] | None
    """Instead of a handler, in a worker on batches."""
    lease: float
    grace: float
    poll_interval: float
    one_at_a_time_per: str | None
    observation: Observation
    answered: Callable[[], None]
    """Called when Redis has answered a claim or a read; with all slots taken, a renewal."""


class Consumer(Generic[Payload]):
    """Works on one queue, once, from its joining to its leaving."""

    def __init__(self, queue: Queue[Payload], terms: Terms[Payload]) -> None:
        self._queue = queue
        self._transitions = queue.transitions
        self._terms = terms
        self._name = terms.name
        self._slots = terms.slots
        self._gathering = terms.gathering and terms.gathering.beside()
        self._observation = terms.observation.beside()
        self._executions: dict[Lease, Execution[Payload]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._broken: BaseException | None = None
        self._alone = False
        self._losses = 0
        """Deliveries that were lost, and not counted yet."""
        self._lost_some = asyncio.Event()
        self._stopping = asyncio.Event()
        self._grace = terms.grace
        self._loop = asyncio.get_running_loop()
        self._host: asyncio.Task[Any] | None = None
        self._cancelled_before = 0
        self._claimer = Claimer(
            queue.connection, self._transitions, self._name, terms.lease, terms.poll_interval, terms.answered,
            terms.one_at_a_time_per,
        )  # fmt: skip
        self._settlement = Settlement(self._transitions, self._name, terms.policy)
        self._deadlines = Deadlines(terms.policy.timeout)
        self._keeper = LeaseKeeper(queue.settings, queue.keys, self._name, terms.lease, self._lost, self._renewed)
        self._maintenance = Maintenance(self._transitions, self._name, terms.lease, terms.policy)
        self._slots.join(self)

    def stop(self, grace: float | None = None) -> None:
        """Claim nothing more; `run` returns when the handlers are done, or after so many seconds."""
        if grace is not None:
            self._grace = grace
        self._stopping.set()

    async def run(self, *, burst: bool = False) -> None:
        """Work until stopped; with `burst`, until there is nothing left to do in any queue of the worker.

        Raises:
            ConfigurationError: as `Worker.run`.
            QueueUnavailable: the queue cannot be joined.
        """
        self._host = asyncio.current_task()
        self._cancelled_before = self._cancellations()
        try:
            await self._join()
            logger.debug("worker %s has joined queue %s", self._name, self._queue.keys.prefix)
            await self._work_off(burst)
        finally:
            self._slots.quit(self)

    async def _join(self) -> None:
        try:
            await self._transitions.join(self._name, self._terms.lease, self._terms.one_at_a_time_per)
        except asyncio.CancelledError:
            # Redis may have carried it out: a consumer that nobody is would stand there until it is pruned.
            with anyio.move_on_after(HAND_BACK_WITHIN, shield=True):
                try:
                    await self._transitions.prune(self._name, idle=_NEVER)
                except StreamsQueueError as error:
                    logger.debug("consumer %s may be left over until it is pruned: %s", self._name, error)
            raise

    async def _work_off(self, burst: bool) -> None:
        self._keeper.start()
        try:
            async with anyio.create_task_group() as background:
                background.start_soon(self._maintenance.run)
                background.start_soon(self._give_signs)
                background.start_soon(self._count_losses)
                background.start_soon(self._keep_time)
                background.start_soon(self._look_at_schema)
                try:
                    async with anyio.create_task_group() as claiming:
                        # In a task of its own: who cancels this one does not cut off a claim under way.
                        claiming.start_soon(self._claim, claiming.cancel_scope, burst)
                        try:
                            await self._stopping.wait()
                        finally:
                            self._claimer.hurry()
                        claiming.cancel_scope.cancel()
                    with anyio.move_on_after(self._grace):
                        await self._all_done()
                finally:
                    await self._end_handlers()
                background.cancel_scope.cancel()
        finally:
            self._keeper.stop()
            await self._leave()
        if self._broken is not None:
            raise self._broken

    # ---- taking messages into free slots

    async def _claim(self, scope: anyio.CancelScope, burst: bool) -> None:
        upkept = False  # by this burst, with nothing coming into line
        while True:
            if self._alone:
                self._hand_over()
            with await self._slots.room(self, alone=self._alone, intake=self._gathering or ONE) as room:
                ended = self._slots.ended
                claimed = await self._claimer.claim(room, self._executions)
                over = self._start(claimed, room)
            await self._give_back(over)
            if claimed.wait:
                await anyio.sleep(min(claimed.wait, self._terms.poll_interval))  # the limits may be others by then
            elif claimed.looked_at:
                upkept = False
            elif burst and self._executions:
                self._hand_over()
                await self._slots.change(self._terms.poll_interval)
            elif burst and upkept:
                with anyio.move_on_after(self._terms.poll_interval):
                    if await self._slots.rest(self, ended):
                        return scope.cancel()
            elif burst:
                upkept = not await self._claimer.patiently(lambda: self._maintenance.round(full=True))
            elif claimed.paused:
                await self._slots.change(self._terms.poll_interval)
            else:
                await self._idle()

    async def _idle(self) -> None:
        """Wait until there is something that a claim finds."""
        nothing = True
        while nothing and not self._alone and not self._full_of_batches and not self._maintenance.messages_wait:
            left = math.inf
            if self._gathering is not None and self._slots.full:
                left = self._gathering.left - READ_LATE
            if left <= 0:
                await anyio.sleep(min(BETWEEN_CLAIMS, left + READ_LATE))
                break
            with self._slots.no_room(self, intake=self._gathering or ONE) as room:
                claimed = await self._claimer.wait(room, self._executions, left)
                over = self._start(claimed, room)
            await self._give_back(over)
            nothing = not claimed.looked_at
            if claimed.wait:
                await anyio.sleep(min(claimed.wait, self._terms.poll_interval))
        self._maintenance.messages_wait = False

    @property
    def _full_of_batches(self) -> bool:
        """Whether the last slot went with a batch that was handed over: what a read brings would have to go back."""
        return self._gathering is not None and not self._gathering.begun and self._slots.full

    def _start(self, claimed: Claimed, room: Room) -> Sequence[Delivery]:
        """Begin with what there is room for; what there is none for any more is to go back."""
        room.take(len(claimed.deliveries))  # a batch may have been handed over meanwhile, and its room with it
        deliveries, over = claimed.deliveries[: room.free], claimed.deliveries[room.free :]
        self._observation.ask()
        self._keeper.hold(delivery.lease for delivery in deliveries)
        for delivery in deliveries:
            failpoints.hit("after_read")
            self._executions[delivery.lease] = self._begin(delivery, room)
        # A suspect runs with nothing beside it. For one that waits while all workers are busy, the one whose turn it is
        # to look after the queue runs empty.
        turn = self._maintenance.in_turn or not self._slots.running
        self._alone = any(map(is_suspect, deliveries)) or (claimed.suspects_wait and turn)
        room.stays_alone = self._alone
        return over

    def _begin(self, delivery: Delivery, room: Room) -> Execution[Payload]:
        if self._gathering is not None:
            batch = self._gathering.open_batch()
            if not batch.members:
                self._spawn(room, self._work_together(batch, self._gathering.handler), "batch")
            return batch.add(delivery, self._settlement, self._terms.policy)
        assert self._terms.handler is not None
        execution: Execution[Payload] = Execution(delivery, self._settlement, self._terms.policy)
        self._spawn(room, self._work(execution, self._terms.handler), f"message {delivery.lease.id}")
        return execution

    def _spawn(self, room: Room, work: Coroutine[Any, Any, None], name: str) -> None:
        room.fill(1)
        task = self._loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _hand_over(self) -> None:
        if self._gathering is not None:
            self._gathering.hand_over()

    # ---- working on one, or on a batch

    async def _work(self, execution: Execution[Payload], handler: Handler[Payload]) -> None:
        try:
            outcome = execution.decode(self._queue.codec) or await self._handle(execution, handler)
            await self._settle(execution, outcome)
        except asyncio.CancelledError:
            # The lease is lost, the grace period over, or the worker cancelled. `release` knows which.
            with anyio.move_on_after(HAND_BACK_WITHIN, shield=True):
                await execution.release()
            raise
        finally:
            self._let_go(execution.lease)

    async def _work_together(self, batch: Batch[Payload], handler: BatchHandler[Payload]) -> None:
        try:
            await batch.gather(self._queue.codec)
            outcomes = batch.refused | await self._handle_together(batch, handler)
            await asyncio.gather(*(self._settle(member, outcome) for member, outcome in outcomes.items()))
        except asyncio.CancelledError:
            with anyio.move_on_after(HAND_BACK_WITHIN, shield=True):
                await asyncio.gather(*(member.release() for member in batch.members))
            raise
        finally:
            for member in batch.members:
                self._let_go(member.lease)

    async def _settle(self, execution: Execution[Payload], outcome: Outcome) -> None:
        if execution.settled is None:  # the handler may have settled it by a call of the documented API
            await execution.settle(outcome)
        if execution.settled in NOT_WRITTEN:
            self._say_lost(execution.lease, taken_out=execution.settled == "gone")

    async def _handle(self, execution: Execution[Payload], handler: Handler[Payload]) -> Outcome:
        if not self._observation.listening:
            return await handle(execution, handler, self._deadlines, self._ending)
        watch = Watch(self._observation, [self._run_of(execution)])
        outcome = None
        try:
            outcome = await handle(execution, handler, self._deadlines, self._ending)
        finally:
            watch.end([end_of(execution, outcome)])
        return outcome

    async def _handle_together(
        self, batch: Batch[Payload], handler: BatchHandler[Payload]
    ) -> dict[Member[Payload], Outcome]:
        members = batch.at_work
        if not members:
            return {}
        handling = handle_together(batch, members, handler, self._deadlines, self._ending)
        if not self._observation.listening:
            return await handling
        watch = Watch(self._observation, [self._run_of(member) for member in members])
        outcomes: dict[Member[Payload], Outcome] = {}
        try:
            outcomes = await handling
        finally:
            watch.end([end_of(member, outcomes.get(member)) for member in members])
        return outcomes

    def _run_of(self, execution: Execution[Payload]) -> Run:
        return Run(self._observation, execution.lease, execution.message, execution.fields)

    def _let_go(self, lease: Lease) -> None:
        self._keeper.drop(lease)
        del self._executions[lease]

    async def _give_back(self, deliveries: Iterable[Delivery]) -> None:
        """Hand these back uncharged. It is done before the next claim, which would miss what is still on its way."""
        await asyncio.gather(*(self._settlement.release(delivery.lease) for delivery in deliveries))

    def _ending(self) -> bool:
        """Whether this consumer's own task was cancelled, as at the end of `asyncio.run`."""
        return self._cancellations() > self._cancelled_before

    def _cancellations(self) -> int:
        return self._host.cancelling() if self._host is not None else 0

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._slots.leave()
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._broken = error
            self.stop(0)

    def _renewed(self) -> None:
        if self._slots.full:  # else it claims, and that is to be answered
            self._terms.answered()

    def _lost(self, lease: Lease) -> None:
        execution = self._executions.get(lease)
        if execution is None or execution.settled is not None or execution.lost:
            return
        execution.lost = True
        execution.interrupt()
        self._say_lost(lease)

    def _say_lost(self, lease: Lease, *, taken_out: bool = False) -> None:
        logger.warning("worker %s lost message %s: its outcome is not written", self._name, lease.id)
        if not taken_out:
            self._losses += 1
            self._lost_some.set()

    async def _keep_time(self) -> None:
        """Know the server's clock, where somebody wants to know how long messages wait."""
        while True:
            if self._observation.ask():
                try:
                    self._observation.set_clock(await self._transitions.time())
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
                logger.error("worker %s stops: %s", self._name, error)
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
            logger.warning("%d lost messages of worker %s are not in the statistics: %s", lost, self._name, error)

    async def _give_signs(self) -> None:
        """To the thread that renews the leases: this loop runs."""
        while True:
            self._keeper.sign()
            await anyio.sleep(self._terms.lease / 3)

    # ---- leaving

    async def _end_handlers(self) -> None:
        """Interrupt those that are left. One that does not heed it keeps this worker, but not its message."""
        with anyio.CancelScope(shield=True):
            self._hand_over()
            for execution in self._executions.values():
                if execution.settled is None:
                    execution.interrupt()
            cancelled = await _outlast(self._tasks, HAND_BACK_WITHIN)
            cancelled |= await _outlast([self._loop.create_task(self._give_back_stubborn())])
            cancelled |= await _outlast(self._tasks)
            self._deadlines.close()
            self._executions.clear()  # of a task that was cancelled before it began
        if cancelled:
            raise asyncio.CancelledError

    async def _give_back_stubborn(self) -> None:
        leases, stubborn = [], 0
        for lease, execution in self._executions.items():
            if execution.settled == "releasing":
                continue  # the server does not answer
            execution.lost = True
            stubborn += execution.runs and execution.settled is None
            self._keeper.drop(lease)
            leases.append(lease)
        if stubborn:
            logger.error("handlers of %d messages of worker %s do not heed their cancellation", stubborn, self._name)
        if leases:
            await self._claimer.release(leases)

    async def _all_done(self) -> None:
        self._hand_over()
        await self._slots.until(lambda: not self._tasks)

    async def _leave(self) -> None:
        with anyio.move_on_after(HAND_BACK_WITHIN, shield=True):
            try:
                await self._settlement.drain()
                await self._count_lost()
                await self._claimer.hand_back_unseen(())
                await self._maintenance.resign()
                await self._transitions.prune(self._name, idle=_NEVER)
            except StreamsQueueError as error:
                logger.warning("worker %s could not take its leave, it will be pruned later: %s", self._name, error)
        with anyio.CancelScope(shield=True):
            await self._claimer.close()


async def _outlast(tasks: Collection[asyncio.Task[None]], seconds: float = math.inf) -> bool:
    """Wait for all of them, `seconds` at most, whoever cancels the calling task; whether somebody did."""
    cancelled, deadline = False, time.monotonic() + seconds
    while (pending := [task for task in tasks if not task.done()]) and (left := deadline - time.monotonic()) > 0:
        try:
            await asyncio.wait(pending, timeout=left if left < math.inf else None)
        except asyncio.CancelledError:
            cancelled = True
    return cancelled
