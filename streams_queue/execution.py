"""One delivery: decode, handler, outcome, exactly one transition."""

import asyncio
import contextvars
import logging
import traceback
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Generic

import msgspec

from streams_queue import failpoints, redaction
from streams_queue.answers import Delivery
from streams_queue.backoff import LONGEST, retry_delay
from streams_queue.codec import Codec, Fields, decode_values
from streams_queue.errors import InvalidMessage
from streams_queue.model import Message, Payload, Status
from streams_queue.observation import Result
from streams_queue.outcomes import Completed, Failed, Outcome, Policy, Reject, Rejected, Retry
from streams_queue.settlement import Settlement
from streams_queue.supervision import Deadlines, Ended, HandlerTask, supervised

logger = logging.getLogger(__name__)

Handler = Callable[[Message[Payload]], Awaitable[Any]]

NOT_WRITTEN = ("stale", "gone")
"""What a finishing transition answers to somebody who has lost the message, or whose message was taken out."""

RESULT_LIMIT = 64 << 10
"""Bytes of an encoded result that are kept; a larger one is not, and `Queue.result` then answers None."""

ERROR_LIMIT = 2000
"""Characters of an error's text that are kept."""


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
