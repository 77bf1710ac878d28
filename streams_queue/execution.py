"""One delivery: decode, handler, outcome, exactly one transition."""

import asyncio
import contextvars
import logging
import traceback
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar

import anyio
import msgspec

from streams_queue import failpoints, redaction
from streams_queue.backoff import LONGEST, retry_delay
from streams_queue.batching import Batcher
from streams_queue.codec import Codec, Fields, decode_values
from streams_queue.errors import InvalidMessage, StreamsQueueError
from streams_queue.model import Lease, Message, Payload
from streams_queue.queue import RESULT_LIMIT
from streams_queue.transitions import Delivery, Failure, Transitions

logger = logging.getLogger(__name__)

Handler = Callable[[Message[Payload]], Awaitable[Any]]
Item = TypeVar("Item")

NOT_WRITTEN = ("stale", "gone")
"""What a finishing transition answers to somebody who has lost the message, or whose message was taken out."""

ERROR_LIMIT = 2000
"""Characters of an error's text that are kept."""


class Retry(Exception):  # an instruction, not an error
    """Raise it in a handler to have the message tried again later; it counts as a retry.

    Args:
        delay: seconds until then; None: the worker's back-off.
    """

    def __init__(self, delay: float | None = None) -> None:
        super().__init__("retry" if delay is None else f"retry in {delay:g} s")
        self.delay = delay


class Reject(Exception):  # an instruction, not an error
    """Raise it in a handler to make the message a dead letter at once.

    Args:
        reason: the error's text that the dead letter shows.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)


class Policy(msgspec.Struct, kw_only=True):
    """What a worker does with outcomes. Times in seconds."""

    max_retries: int
    retry_delay: float
    max_deliveries: int
    timeout: float
    result_ttl: int
    dead_letter_ttl: int
    dedup_expiry: int


class Completed(msgspec.Struct, frozen=True):
    """The handler returned; the encoded result, empty without one."""

    result: bytes


class Failed(msgspec.Struct, frozen=True):
    """The handler raised, or took too long."""

    delay: float
    reason: str
    error: str


class Rejected(msgspec.Struct, frozen=True):
    """It must not be tried again."""

    reason: str
    error: str


Outcome = Completed | Failed | Rejected


class Settlement:
    """The finishing transitions of one consumer: outcomes gathered in batches, sent until Redis answers.

    Sending again is safe, since a finish that was applied knows itself.
    """

    def __init__(self, transitions: Transitions, consumer: str, policy: Policy) -> None:
        self._transitions = transitions
        self._consumer = consumer
        self._policy = policy
        self._completes: Batcher[tuple[Lease, bytes], str] = Batcher(self._complete)
        self._retries: Batcher[Failure, str] = Batcher(self._retry)
        self._dead_letters: Batcher[Failure, str] = Batcher(self._dead_letter)
        self._releases: Batcher[Lease, str] = Batcher(self._release)

    @property
    def prefix(self) -> str:
        """Of the queue."""
        return self._transitions.keys.prefix

    async def settle(self, lease: Lease, outcome: Outcome) -> str:
        """The status that the message has now, or ``stale`` or ``gone`` where nothing was written."""
        match outcome:
            case Completed(result):
                return await _persist(self._completes, (lease, result))
            case Failed(delay, reason, error):
                return await _persist(self._retries, Failure(lease, delay, reason, error))
            case Rejected(reason, error):
                return await _persist(self._dead_letters, Failure(lease, 0.0, reason, error))

    async def release(self, lease: Lease) -> str:
        """Hand the message back uncharged."""
        return await _persist(self._releases, lease)

    async def drain(self) -> None:
        """Return when what was submitted so far is written, or could not be."""
        for batcher in (self._completes, self._retries, self._dead_letters, self._releases):
            await batcher.drain()

    async def _complete(self, items: Sequence[tuple[Lease, bytes]]) -> Sequence[str]:
        return await self._transitions.complete(self._consumer, items, result_ttl=self._policy.result_ttl)

    async def _retry(self, items: Sequence[Failure]) -> Sequence[str]:
        policy = self._policy
        return await self._transitions.retry(
            self._consumer,
            items,
            max_retries=policy.max_retries,
            dead_letter_ttl=policy.dead_letter_ttl,
            dedup_expiry=policy.dedup_expiry,
        )

    async def _dead_letter(self, items: Sequence[Failure]) -> Sequence[str]:
        return await self._transitions.dead_letter(self._consumer, items, dead_letter_ttl=self._policy.dead_letter_ttl)

    async def _release(self, items: Sequence[Lease]) -> Sequence[str]:
        return await self._transitions.release(self._consumer, items)


async def _persist(batcher: Batcher[Item, str], item: Item) -> str:
    pause, warned = 0.1, False
    while True:
        try:
            return await batcher.submit(item)
        except StreamsQueueError as error:
            if not warned:
                logger.warning("an outcome cannot be written at present, trying on: %s", error)
            warned = True
            await anyio.sleep(pause)
            pause = min(pause * 2, 2.0)


class Execution(Generic[Payload]):
    """A delivery that a handler works on now. `current` finds it from inside the handler."""

    def __init__(self, delivery: Delivery, message: Message[Payload], settlement: Settlement, policy: Policy) -> None:
        self.lease, self.fields = delivery
        self.message = message
        self.scope = anyio.CancelScope()
        self.loop = asyncio.get_running_loop()
        """Where it is to be finished, whichever loop the handler may run in another thread."""
        self.lost = False
        """Another worker may have the message: cancelled, and nothing is written any more."""
        self.settled: str | None = None
        """The answer to the one finishing transition, once there was one."""
        self._settlement = settlement
        self._policy = policy

    @property
    def prefix(self) -> str:
        """Of the queue that the message is in: another may have one with the same id."""
        return self._settlement.prefix

    async def settle(self, outcome: Outcome) -> bool:
        """Finish the message; False when it is finished already, or lost."""
        if self.settled is not None or self.lost:
            return False
        self.settled = "settling"  # from here on a lost lease is no news: the transition proves who is right
        failpoints.hit("before_finish")
        self.settled = await self._settlement.settle(self.lease, outcome)
        failpoints.hit("after_finish")
        return self.settled not in NOT_WRITTEN

    async def complete(self, result: Any = None) -> bool:
        """Finish the message as done."""
        return await self.settle(Completed(encoded_result(self.message.id, result)))

    async def fail(self, error: str) -> bool:
        """Have the message tried again after the worker's back-off."""
        return await self.settle(Failed(self.next_delay(), "error", error))

    async def give_up(self, error: str) -> bool:
        """Make the message a dead letter."""
        return await self.settle(Rejected("rejected", error))

    async def release(self) -> None:
        """Hand the message back uncharged."""
        if self.settled is None and not self.lost:
            self.settled = "releasing"
            self.settled = await self._settlement.release(self.lease)

    def next_delay(self) -> float:
        """Seconds of back-off before the next attempt."""
        return retry_delay(self._policy.retry_delay, self.message.retries + 1)


current: contextvars.ContextVar[Execution[Any] | None] = contextvars.ContextVar("streams_queue_execution", default=None)
"""The execution whose handler runs in this context."""


def is_suspect(delivery: Delivery) -> bool:
    """Whether so many workers died with this message that it must run alone: its next crash is its last."""
    return "_sq_suspect" in delivery.fields


def decoded(
    delivery: Delivery, codec: Codec[Payload], settlement: Settlement, policy: Policy
) -> Execution[Payload] | Rejected:
    """The execution of a delivery, or the outcome where its payload cannot be decoded."""
    try:
        message = codec.decode(delivery.lease.id, delivery.fields)
    except InvalidMessage as error:
        return Rejected("undecodable", _shortened(scrubbed(str(error), delivery.fields)))
    return Execution(delivery, message, settlement, policy)


async def handle(
    execution: Execution[Payload], handler: Handler[Payload], timeout: float, interrupted: Callable[[], bool]
) -> Outcome:
    """Run the handler and name its outcome.

    A cancellation of our own, which `interrupted` tells, goes through; one that the handler asked for itself is its
    failure, and ends with it.
    """
    failpoints.hit("before_handler")
    outcome = await _outcome(execution, handler, timeout, interrupted)
    task = asyncio.current_task()
    if task is not None and task.cancelling() and not interrupted():
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
        while task.uncancel():
            pass
    return outcome


async def _outcome(
    execution: Execution[Payload], handler: Handler[Payload], timeout: float, interrupted: Callable[[], bool]
) -> Outcome:
    token = current.set(execution)
    try:
        with anyio.move_on_after(timeout) as limit:
            return Completed(encoded_result(execution.message.id, await handler(execution.message)))
        assert limit.cancelled_caught
        return Failed(execution.next_delay(), "timeout", f"the handler took longer than {timeout:g} s")
    except asyncio.CancelledError:
        if interrupted():
            raise
        return Failed(execution.next_delay(), "error", "the handler raised CancelledError")
    except BaseException as error:  # noqa: BLE001
        # SystemExit and KeyboardInterrupt too: one message must not end a worker that holds others.
        return failure(execution, error)
    finally:
        current.reset(token)


def failure(execution: Execution[Any], error: BaseException) -> Failed | Rejected:
    """The outcome of a handler that raised this; logs what is no instruction, secrets left out."""
    if isinstance(error, Retry):
        delay = execution.next_delay() if error.delay is None else min(LONGEST, max(0.0, error.delay))
        return Failed(delay, "error", str(error))
    if isinstance(error, Reject):
        return Rejected("rejected", _shortened(scrubbed(_text_of(error), execution.fields)))
    trace = scrubbed("".join(traceback.format_exception(error)), execution.fields)
    logger.warning("message %s failed in attempt %d\n%s", execution.message.id, execution.message.attempts, trace)
    return Failed(execution.next_delay(), "error", _shortened(scrubbed(_described(error), execution.fields)))


def encoded_result(id: str, value: Any) -> bytes:
    """The handler's value as JSON; empty, with a warning, where it cannot be kept: the work is done all the same."""
    if value is None:
        return b""
    try:
        encoded = msgspec.json.encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        logger.warning("the result of message %s is not kept: %s", id, error)
        return b""
    if len(encoded) > RESULT_LIMIT:
        logger.warning("the result of message %s is not kept: %d bytes, %d are allowed", id, len(encoded), RESULT_LIMIT)
        return b""
    return encoded


def scrubbed(words: str, fields: Fields) -> str:
    """The text without the message's secrets."""
    return redaction.scrubbed(words, decode_values(fields))


def _described(error: BaseException) -> str:
    words = _text_of(error)
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001  (whatever the class of a handler's exception does)
        return "(its text cannot be had)"


def _shortened(words: str) -> str:
    # A lone surrogate cannot be written to Redis.
    words = words.encode(errors="replace").decode()
    return words if len(words) <= ERROR_LIMIT else words[: ERROR_LIMIT - 1] + "…"
