"""Batches: messages gathered for a handler that takes a list, and an outcome for each of them."""

import asyncio
import inspect
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic

from streams_queue import redaction
from streams_queue.answers import Delivery
from streams_queue.codec import Codec, decode_values
from streams_queue.execution import Execution, encoded_result, failed_outcome, log_failure
from streams_queue.model import Message, Payload
from streams_queue.outcomes import Completed, Outcome, Policy, Rejected
from streams_queue.settlement import Settlement
from streams_queue.supervision import Deadlines, HandlerTask, supervised

BatchHandler = Callable[[list[Message[Payload]]], Awaitable[Sequence[Any] | None]]

SHOWN_IDS = 3
"""Ids of a batch's messages that the log names when all of them failed at once."""


class Member(Execution[Payload]):
    """A message of a batch: its handler is the batch's."""

    def __init__(self, delivery: Delivery, settlement: Settlement, policy: Policy, batch: "Batch[Payload]") -> None:
        super().__init__(delivery, settlement, policy)
        self._batch = batch

    @property
    def runs(self) -> bool:
        """Whether the batch's handler is at work."""
        return self._batch.runs

    def interrupt(self) -> None:
        """The handler need not finish this message; it is cancelled once there is none that it should."""
        self.interrupted = True
        self._batch.reconsider()


class Batch(HandlerTask, Generic[Payload]):
    """Messages that are gathered, and then worked on together."""

    def __init__(self, size: int, wait: float) -> None:
        super().__init__()
        self.members: list[Member[Payload]] = []
        self.refused: dict[Member[Payload], Rejected] = {}
        """Those that cannot be decoded: the handler does not see them."""
        self._size = size
        self._closed = asyncio.Event()
        self._due = self.loop.time() + wait
        self._closing = self.loop.call_at(self._due, self.close)

    @property
    def room(self) -> int:
        """How many messages it still takes."""
        return 0 if self._closed.is_set() else self._size - len(self.members)

    @property
    def left(self) -> float:
        """Seconds until its handler begins; infinite, once it waits for nothing more."""
        return math.inf if self._closed.is_set() else max(0.0, self._due - self.loop.time())

    @property
    def at_work(self) -> list[Member[Payload]]:
        """Those that the handler is to work on."""
        return [member for member in self.members if not member.lost and member not in self.refused]

    def add(self, delivery: Delivery, settlement: Settlement, policy: Policy) -> Member[Payload]:
        """Take a message in."""
        member = Member(delivery, settlement, policy, self)
        self.members.append(member)
        if len(self.members) >= self._size:
            self.close()
        return member

    def close(self) -> None:
        """Wait for no further messages."""
        self._closing.cancel()
        self._closed.set()

    async def gather(self, codec: Codec[Payload]) -> None:
        """Wait until it is full or has waited long enough, and read its messages."""
        await self._closed.wait()
        if self.interrupted:
            raise asyncio.CancelledError
        self.refused = {m: refusal for m in self.members if (refusal := m.decode(codec)) is not None}

    def interrupt(self) -> None:
        """As a handler's, also while messages are gathered."""
        self.close()
        super().interrupt()

    def reconsider(self) -> None:
        """Interrupt it, if all its messages are to be."""
        if all(member.interrupted for member in reversed(self.members) if member not in self.refused):
            self.interrupt()


class Gathering(Generic[Payload]):
    """A batch handler, and the batch that is gathered for it.

    Args:
        size: messages in a batch at most.
        wait: seconds that it waits for further messages after the first.
    """

    def __init__(self, handler: BatchHandler[Payload], size: int, wait: float) -> None:
        self.handler = handler
        self.size = size
        self._wait = wait
        self._batch: Batch[Payload] | None = None

    def beside(self) -> "Gathering[Payload]":
        """The same handler, with batches of their own."""
        return Gathering(self.handler, self.size, self._wait)

    @property
    def begun(self) -> int:
        """For how many messages there is room in the batch that is gathered."""
        return 0 if self._batch is None else self._batch.room

    @property
    def left(self) -> float:
        """Seconds until it is handed over; infinite where none is gathered."""
        return math.inf if self._batch is None else self._batch.left

    def open_batch(self) -> Batch[Payload]:
        """Where the next message is to be added."""
        if self._batch is None or not self._batch.room:
            self._batch = Batch(self.size, self._wait)
        return self._batch

    def hand_over(self) -> None:
        """What has been gathered waits for nothing more."""
        if self._batch is not None:
            self._batch.close()
        self._batch = None


async def handle_together(
    batch: Batch[Payload],
    members: Sequence[Member[Payload]],
    handler: BatchHandler[Payload],
    deadlines: Deadlines,
    ending: Callable[[], bool],
) -> dict[Member[Payload], Outcome]:
    """Run the handler with these messages of a batch, and name the outcome of each."""
    scrub = _Scrub(members)
    try:
        messages = [member.message for member in members]
        answers = _one_for_each(await supervised(batch, handler, messages, deadlines, ending), len(members))
    except asyncio.CancelledError:
        raise
    except BaseException as error:  # noqa: BLE001  (as in `handle`)
        log_failure(_failed(members), error, scrub)
        return {member: failed_outcome(member, error, scrub) for member in members}
    return {member: _outcome(member, answer, scrub) for member, answer in zip(members, answers, strict=True)}


def _one_for_each(answer: Any, count: int) -> Sequence[Any]:
    wanted = f"a batch handler returns None, or a list with an outcome for each of its {count} messages"
    if answer is None:
        return [None] * count
    if not isinstance(answer, (list, tuple)):
        raise TypeError(f"{wanted}, not {type(answer).__name__}")
    if len(answer) != count:
        _close(answer)
        raise ValueError(f"{wanted}, not {len(answer)} outcomes")
    return answer


def _outcome(member: Member[Any], answer: Any, scrub: Callable[[str], str]) -> Outcome:
    """What a handler may do with one message by raising, it does here by returning what it would have raised."""
    if inspect.isawaitable(answer):
        _close([answer])
        answer = TypeError(f"its outcome is a {type(answer).__name__} that nobody awaited: use asyncio.gather")
    elif isinstance(answer, type) and issubclass(answer, BaseException):
        answer = _raised(answer)
    if not isinstance(answer, BaseException):
        return Completed(encoded_result(member.message.id, answer))
    log_failure(_failed([member]), answer, scrub)
    return failed_outcome(member, answer, scrub)


def _raised(error: type[BaseException]) -> BaseException:
    """What `raise` makes of a class."""
    try:
        return error()
    except BaseException as raised:  # noqa: BLE001
        return raised


def _close(answers: Sequence[Any]) -> None:
    """Coroutines that are never to run say so when they are thrown away, unless they are closed."""
    for answer in answers:
        if inspect.iscoroutine(answer):
            answer.close()


def _failed(members: Sequence[Member[Any]]) -> str:
    first = members[0].message
    if len(members) == 1:
        return f"message {first.id} failed in attempt {first.attempts}"
    ids = ", ".join(member.message.id for member in members[:SHOWN_IDS])
    return f"a batch of {len(members)} messages failed: {ids}{', ...' if len(members) > SHOWN_IDS else ''}"


class _Scrub:
    """Takes the secrets of all messages of a batch out of a text: they are looked for once, and only if need be."""

    def __init__(self, members: Sequence[Member[Any]]) -> None:
        self._members = members
        self._scrub: Callable[[str], str] | None = None

    def __call__(self, words: str) -> str:
        if self._scrub is None:
            self._scrub = redaction.scrubber([decode_values(member.fields) for member in self._members])
        return self._scrub(words)
