"""Writing outcomes down: gathered in batches, and sent until Redis answers."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from streams_queue.answers import Failure
from streams_queue.batching import Batcher
from streams_queue.errors import StreamsQueueError
from streams_queue.model import Lease
from streams_queue.outcomes import Completed, Failed, Outcome, Policy, Rejected
from streams_queue.transitions import Transitions

logger = logging.getLogger(__name__)

Item = TypeVar("Item")


class Settlement:
    """The finishing transitions of one consumer: outcomes gathered in batches, sent until Redis answers.

    Sending again is safe, since a finish that was applied knows itself.
    """

    def __init__(self, transitions: Transitions, consumer: str, policy: Policy) -> None:
        self._transitions = transitions
        self._consumer = consumer
        self._policy = policy
        self._asked_for_keys = False
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
        answers = await self._transitions.retry(
            self._consumer,
            items,
            max_retries=policy.max_retries,
            dead_letter_ttl=policy.dead_letter_ttl,
            dedup_expiry=policy.dedup_expiry,
        )
        if not self._asked_for_keys and any(failure.key for failure in items):
            await self._say_where_no_key_is_paused()
        return answers

    async def _say_where_no_key_is_paused(self) -> None:
        try:
            limits = await self._transitions.limits()
        except StreamsQueueError as error:
            logger.debug("whether keys can be paused is not known: %s", error)
            return
        self._asked_for_keys = True
        if limits.key is None:
            logger.warning(
                "a handler raised Retry(key=...), but queue %s tells no keys apart: only that message waits. Remedy: "
                "set_limits(Limits(key=...)), or streams-queue limits set --key",
                self.prefix,
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
