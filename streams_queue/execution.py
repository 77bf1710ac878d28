"""One delivery: decode, handler, outcome, exactly one transition."""

import asyncio
import contextvars
import logging
import traceback
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Generic, TypeVar

import msgspec

from streams_queue import failpoints, redaction
from streams_queue.answers import Delivery, Failure
from streams_queue.backoff import LONGEST, retry_delay
from streams_queue.batching import Batcher
from streams_queue.codec import Codec, Fields, decode_values, encoded_key
from streams_queue.errors import InvalidMessage, StreamsQueueError
from streams_queue.model import Lease, Message, Payload, Status
from streams_queue.observation import Result
from streams_queue.queue import RESULT_LIMIT
from streams_queue.transitions import Transitions

logger = logging.getLogger(__name__)

Handler = Callable[[Message[Payload]], Awaitable[Any]]
Item = TypeVar("Item")
Answer = TypeVar("Answer")

NOT_WRITTEN = ("stale", "gone")
"""What a finishing transition answers to somebody who has lost the message, or whose message was taken out."""

ERROR_LIMIT = 2000
"""Characters of an error's text that are kept."""

CANCELLED_AGAIN_AFTER = 1.0
"""Seconds after which a handler that went on in spite of its cancellation is cancelled once more."""


class Retry(Exception):  # an instruction, not an error
    """Raise it in a handler to have the message tried again later; it counts as a retry, unless it pauses a key.

    Args:
        delay: seconds until then; None: the worker's back-off.
        key: pauses this key for the delay, for all workers: the value of the payload's field that `Limits.key` names,
            as when a chat platform asks for patience in one chat. Nothing is charged, however often. A message of this
            key keeps its place in line and goes first; another one waits for the delay by itself.

    Raises:
        InvalidMessage: the key is empty, cannot be encoded, or is of a type that no payload's field has; the delay is
            NaN.
    """

    def __init__(self, delay: float | None = None, key: str | float | bytes | None = None) -> None:
        super().__init__("retry" if delay is None else f"retry in {delay:g} s")
        self.delay = None if delay is None else float(delay)
        if delay != delay:  # noqa: PLR0124  (NaN alone is not what it is)
            raise InvalidMessage(f"delay {delay!r} is not a number of seconds")
        self.key = b"" if key is None else encoded_key(key)
        """As a payload holds it; empty without one."""


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
    key: bytes = b""
    """Paused for the delay; then nothing is charged."""


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
        self._completes: Batcher[tuple[Lease, bytes], str] = Batcher(_persistent(self._complete))
        self._retries: Batcher[Failure, str] = Batcher(_persistent(self._retry))
        self._dead_letters: Batcher[Failure, str] = Batcher(_persistent(self._dead_letter))
        self._releases: Batcher[Lease, str] = Batcher(_persistent(self._release))

    @property
    def prefix(self) -> str:
        """Of the queue."""
        return self._transitions.keys.prefix

    def settle(self, lease: Lease, outcome: Outcome) -> Awaitable[str]:
        """The status that the message has now, or ``stale`` or ``gone`` where nothing was written."""
        match outcome:
            case Completed(result):
                return self._completes.submit((lease, result))
            case Failed(delay, reason, error, key):
                return self._retries.submit(Failure(lease, delay, reason, error, key))
            case Rejected(reason, error):
                return self._dead_letters.submit(Failure(lease, 0.0, reason, error))

    def release(self, lease: Lease) -> Awaitable[str]:
        """Hand the message back uncharged."""
        return self._releases.submit(lease)

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


def _persistent(
    send: Callable[[Sequence[Item]], Awaitable[Sequence[str]]],
) -> Callable[[Sequence[Item]], Awaitable[Sequence[str]]]:
    async def send_until_answered(items: Sequence[Item]) -> Sequence[str]:
        pause, warned = 0.1, False
        while True:
            try:
                return await send(items)
            except StreamsQueueError as error:
                if not warned:
                    logger.warning("%d outcomes cannot be written at present, trying on: %s", len(items), error)
                warned = True
                await asyncio.sleep(pause)
                pause = min(pause * 2, 2.0)

    return send_until_answered


class HandlerTask:
    """The task that a handler runs in, and the reasons for which it is cancelled."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        """Where it is to be finished, whichever loop the handler may run in another thread."""
        self.interrupted = False
        """The worker wants the handler to end: what it did not do by then is for another run."""
        self.too_slow = False
        self._task: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def runs(self) -> bool:
        """Whether its handler is at work."""
        return self._task is not None

    def begin(self) -> asyncio.Task[Any]:
        """From here on the calling task, which it gives, can be interrupted."""
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        if self.interrupted:
            self._cancel()
        return task

    def end(self) -> None:
        """The handler is over: nothing cancels the task any more."""
        self._task = None
        if self._timer is not None:
            self._timer.cancel()

    def interrupt(self) -> None:
        """Cancel the handler, now or when it begins."""
        self.interrupted = True
        self._cancel()

    def time_out(self) -> None:
        """Cancel the handler: it took too long."""
        self.too_slow = True
        self._cancel()

    def _cancel(self) -> None:
        if self._task is None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(CANCELLED_AGAIN_AFTER, self._cancel)
        self._task.cancel()


class Execution(HandlerTask, Generic[Payload]):
    """A delivery that a handler works on now, in a task of its own. `current` finds it from inside the handler."""

    message: Message[Payload]
    """Once it is decoded."""

    def __init__(self, delivery: Delivery, settlement: Settlement, policy: Policy) -> None:
        super().__init__()
        self.lease, self.fields = delivery
        self.lost = False
        """Another worker may have the message: nothing is written any more."""
        self.settled: str | None = None
        """The answer to the one finishing transition, once there was one."""
        self._settlement = settlement
        self._policy = policy

    @property
    def prefix(self) -> str:
        """Of the queue that the message is in: another may have one with the same id."""
        return self._settlement.prefix

    def decode(self, codec: Codec[Payload]) -> "Rejected | None":
        """Read the message; the outcome, where its payload cannot be decoded."""
        try:
            self.message = codec.decode(self.lease.id, self.fields)
        except InvalidMessage as error:
            words = _shortened(scrubbed(str(error), self.fields))
            logger.warning("message %s cannot be decoded: %s", self.lease.id, words)
            return Rejected("undecodable", words)
        return None

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


class Deadlines:
    """One timer for all handlers: each has as long as the others, so who began first is late first.

    Args:
        timeout: seconds that a handler may take.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._due: dict[HandlerTask, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, handler_task: HandlerTask) -> None:
        """Its handler begins now."""
        due = self._loop.time() + self.timeout
        self._due[handler_task] = due
        if self._timer is None:
            self._timer = self._loop.call_at(due, self._look)

    def end(self, handler_task: HandlerTask) -> None:
        """Its handler has ended."""
        self._due.pop(handler_task, None)

    def close(self) -> None:
        """Nobody is late any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        while self._due:
            handler_task, due = next(iter(self._due.items()))
            if due > self._loop.time():
                self._timer = self._loop.call_at(due, self._look)
                return
            del self._due[handler_task]
            handler_task.time_out()


def is_suspect(delivery: Delivery) -> bool:
    """Whether so many workers died with this message that it must run alone: its next crash is its last."""
    return "_sq_suspect" in delivery.fields


async def handle(
    execution: Execution[Payload], handler: Handler[Payload], deadlines: Deadlines, ending: Callable[[], bool]
) -> Outcome:
    """Run the handler and name its outcome."""
    token = current.set(execution)
    try:
        value = await supervised(execution, handler, execution.message, deadlines, ending)
        return Completed(encoded_result(execution.message.id, value))
    except asyncio.CancelledError:
        raise
    except BaseException as error:  # noqa: BLE001
        # SystemExit and KeyboardInterrupt too: one message must not end a worker that holds others.
        return failure(execution, error)
    finally:
        current.reset(token)


class Ended(Exception):  # a handler's end, not an error
    """What `supervised` raises for a handler that took too long, or that cancelled itself."""

    def __init__(self, reason: str, words: str) -> None:
        super().__init__(words)
        self.reason = reason


async def supervised(
    handler_task: HandlerTask,
    handler: Callable[[Item], Awaitable[Answer]],
    given: Item,
    deadlines: Deadlines,
    ending: Callable[[], bool],
) -> Answer:
    """What the handler returns.

    The cancellation of an interrupted handler goes through, and so does that of a loop that is `ending`. One that the
    handler asked for itself is its failure, and ends with it.

    Raises:
        Ended: it took too long, or raised CancelledError itself.
        whatever the handler raises.
    """
    failpoints.hit("before_handler")
    task = handler_task.begin()
    deadlines.begin(handler_task)
    try:
        return await handler(given)
    except asyncio.CancelledError:
        if handler_task.interrupted or ending():
            raise
        if handler_task.too_slow:
            raise Ended("timeout", f"the handler took longer than {deadlines.timeout:g} s") from None
        raise Ended("error", "the handler raised CancelledError") from None
    finally:
        deadlines.end(handler_task)
        handler_task.end()
        if task.cancelling() and not ending():
            await _forget_cancellation(task)


async def _forget_cancellation(task: asyncio.Task[Any]) -> None:
    """One that has not come through yet must not end what follows the handler."""
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(0)
    while task.uncancel():
        pass


def failure(execution: Execution[Any], error: BaseException) -> Failed | Rejected:
    """The outcome of a handler that raised this; logs what is no instruction, secrets left out."""
    scrub = partial(scrubbed, fields=execution.fields)
    message = execution.message
    log_failure(f"message {message.id} failed in attempt {message.attempts}", error, scrub)
    return failed_outcome(execution, error, scrub)


def failed_outcome(execution: Execution[Any], error: BaseException, scrub: Callable[[str], str]) -> Failed | Rejected:
    """What this error means for the message. `scrub` takes the secrets out of a text."""
    match error:
        case Retry(delay=delay, key=key):
            delay = execution.next_delay() if delay is None else min(LONGEST, max(0.0, delay))
            return Failed(delay, "error", str(error), key)
        case Reject():
            return Rejected("rejected", _shortened(scrub(_text_of(error))))
        case Ended(reason=reason):
            return Failed(execution.next_delay(), reason, str(error))
    return Failed(execution.next_delay(), "error", _shortened(scrub(_described(error))))


def log_failure(what: str, error: BaseException, scrub: Callable[[str], str]) -> None:
    """Say what failed, with the traceback; nothing of instructions, nor of a handler that was ended."""
    if isinstance(error, (Retry, Reject, Ended)):
        return
    trace = scrub("".join(traceback.format_exception(error)))
    shown = "\n".join(f"    {redaction.printable(line)}" for line in trace.splitlines())  # no text can pose as a record
    logger.warning("%s\n%s", what, shown)


def end_of(execution: Execution[Any], outcome: Outcome | None) -> tuple[Result, str, str]:
    """How a run ended, why, and its error's text; without an outcome it was interrupted."""
    if execution.settled is None and not execution.lost and isinstance(outcome, Completed):
        return "completed", "", ""
    if execution.lost or execution.settled in NOT_WRITTEN:
        return "lost", "", ""
    match outcome:
        case None:
            return "handed_back", "", ""
        case Failed(key=key) if key:
            return "handed_back", "", ""
        case Failed(_, reason, error):
            return "failed", reason, error
        case Rejected(reason, error):
            return "rejected", reason, error
    match execution.settled:  # a handler that returned may have settled its message before, by the documented API
        case Status.RETRY:
            return "failed", "error", ""
        case Status.ERROR:
            return "rejected", "rejected", ""
    return "completed", "", ""


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
