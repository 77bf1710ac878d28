"""How a worker comes by messages: claim, wait, and never lose sight of what was delivered to it."""

import logging
import math
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import Any, TypeVar

import anyio

from streams_queue import failpoints
from streams_queue.answers import Claimed
from streams_queue.connection import Connection
from streams_queue.door import NotJoined
from streams_queue.errors import StreamsQueueError
from streams_queue.model import Lease
from streams_queue.slots import Room
from streams_queue.transitions import Transitions

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

HAND_BACK_WITHIN = 0.8
"""Seconds that each step of a worker's leaving takes at most: with the server there, what it holds is back in less than
one, and a server that does not answer keeps nobody.
"""

_PAUSES = (0.1, 2.0)
"""Seconds before the first new attempt while the server is away, and before the last ones."""

_NOTHING = Claimed(paused=False, suspects_wait=False, looked_at=0, deliveries=[])


class Claimer:
    """Takes messages for one consumer.

    What Redis delivered and the consumer does not know of (a reply that was lost) is found again in the list of its
    pending entries. A claim under way is not cancelled, since its reply would be such a one: what it brings after a
    cancellation goes back, uncharged. After `hurry` it is cut off where the server does not answer.

    Args:
        lease: seconds.
        block: seconds that `wait` waits at most.
        answered: called when Redis has answered a claim or a read.
        one_at_a_time_per: as the worker asks for it, also of a queue whose keys were gone.
    """

    def __init__(
        self,
        connection: Connection,
        transitions: Transitions,
        consumer: str,
        lease: float,
        block: float,
        answered: Callable[[], None],
        one_at_a_time_per: str | None = None,
    ) -> None:
        self._connection = connection
        self._transitions = transitions
        self._consumer = consumer
        self._lease = lease
        self._block = block
        self._answered = answered
        self._one_at_a_time_per = one_at_a_time_per
        self._reader: Any = None
        self._shield = anyio.CancelScope()
        self._in_a_hurry = False

    def hurry(self) -> None:
        """Wait for no claim any longer than a worker's leaving may take."""
        self._in_a_hurry = True
        self._shield.deadline = anyio.current_time() + HAND_BACK_WITHIN

    def _shielded(self) -> anyio.CancelScope:
        self._shield = anyio.CancelScope(shield=True)
        if self._in_a_hurry:
            self.hurry()
        return self._shield

    async def claim(self, room: Room, held: Collection[Lease]) -> Claimed:
        """Messages for the slots of the room, none if nothing waits. `held`: what the consumer works on now."""
        asked = time.monotonic()
        claimed = None
        with self._shielded():
            try:
                claimed = await self._transitions.claim(self._consumer, room.free, alone=room.alone)
            except StreamsQueueError as error:
                logger.debug("a claim failed, looking for what it may have brought: %s", error)
        if claimed is None:
            return await self._adopt_unseen(room, held)
        self._answered()
        return await self._still_held(await self._unless_cancelled(claimed), asked)

    async def wait(self, room: Room, held: Collection[Lease], seconds: float = math.inf) -> Claimed:
        """One blocking read, of so many seconds at most, and what it brought: between read and adoption an entry has an
        idle time, but no lock.

        Slots for it are taken when it is there; what finds none goes back, uncharged.
        """
        if self._reader is None:
            self._reader = self._connection.reader(self._block)
        try:
            entries = await self._transitions.wait(self._reader, self._consumer, min(self._block, seconds))
        except StreamsQueueError as error:
            logger.debug("a read broke off, looking for what it may have brought: %s", error)
            # redis-py's client of a Cluster may go on asking a node that is gone; a new one asks who has the slot.
            await self._drop_reader()
            return await self._adopt_unseen(room, held)
        self._answered()
        return await self._adopt(_unknown(entries, held), room)

    async def hand_back_unseen(self, held: Collection[Lease]) -> None:
        """Give back what a cancelled read may have left behind."""
        entries = await self._unseen(held)
        if entries:
            await self._transitions.adopt(self._consumer, entries, 0)

    async def release(self, leases: Sequence[Lease]) -> None:
        """Hand messages back uncharged, also when cancelled."""
        with anyio.move_on_after(HAND_BACK_WITHIN, shield=True):
            try:
                await self._transitions.release(self._consumer, leases)
            except StreamsQueueError as error:
                logger.warning(
                    "%d messages of %s could not be handed back, they wait for their lease: %s",
                    len(leases),
                    self._transitions.where,
                    error,
                )

    async def close(self) -> None:
        """Give up the connection for reading."""
        await self._drop_reader()

    async def _drop_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            await self._connection.drop(reader)

    async def _adopt_unseen(self, room: Room, held: Collection[Lease]) -> Claimed:
        room.give_back()
        return await self._adopt(await self.patiently(lambda: self._unseen(held)), room)

    async def _unseen(self, held: Collection[Lease]) -> list[str]:
        return _unknown(await self._transitions.pending(self._consumer), held)

    async def _adopt(self, entries: Sequence[str], room: Room) -> Claimed:
        if not entries:
            return _NOTHING
        failpoints.hit("after_read")
        asked = time.monotonic()

        async def adopt() -> Claimed:
            room.take(len(entries))
            try:
                with self._shielded():
                    return await self._transitions.adopt(self._consumer, entries, room.free)
            except StreamsQueueError:
                room.give_back()
                raise
            return _NOTHING  # cut off in a hurry

        claimed = await self._unless_cancelled(await self.patiently(adopt))
        return await self._still_held(claimed, asked)

    async def _still_held(self, claimed: Claimed, asked: float) -> Claimed:
        """Without what was lost before the answer was read: nobody renews what a blocked loop does not know of."""
        while claimed.deliveries and time.monotonic() - asked > self._lease / 3:
            asked = time.monotonic()
            leases = [delivery.lease for delivery in claimed.deliveries]
            held = await self.patiently(partial(self._transitions.renew, self._consumer, leases))
            still = [delivery for delivery, holds in zip(claimed.deliveries, held, strict=True) if holds]
            claimed = claimed._replace(deliveries=still)
        return claimed

    async def _unless_cancelled(self, claimed: Claimed) -> Claimed:
        if claimed.deliveries and anyio.current_effective_deadline() == -math.inf:
            await self.release([delivery.lease for delivery in claimed.deliveries])
            return _NOTHING
        return claimed

    async def patiently(self, call: Callable[[], Awaitable[Answer]]) -> Answer:
        """The call's answer, however long the server is away: said once, not a thousand times."""
        pause, warned = _PAUSES[0], False
        while True:
            try:
                answer = await call()
            except StreamsQueueError as error:
                if isinstance(error, NotJoined) and await self._joined_again():
                    continue
                if not warned:
                    logger.warning(
                        "the server is unavailable, worker %s of %s waits: %s",
                        self._consumer,
                        self._transitions.where,
                        error,
                    )
                warned = True
                await anyio.sleep(pause)
                pause = min(pause * 2, _PAUSES[1])
            else:
                if warned:
                    logger.warning(
                        "the server is available again, worker %s of %s goes on",
                        self._consumer,
                        self._transitions.where,
                    )
                return answer

    async def _joined_again(self) -> bool:
        """After a flush, or groups destroyed by hand: they are made anew, at 0."""
        try:
            await self._transitions.join(self._consumer, self._lease, self._one_at_a_time_per)
        except StreamsQueueError:
            return False  # the caller waits, and says why
        logger.warning("the keys of %s were gone: worker %s joined again", self._transitions.where, self._consumer)
        return True


def _unknown(entries: Sequence[str], held: Collection[Lease]) -> list[str]:
    """Those of them that are not worked on: a group that was made anew delivers to a holder what it holds, too."""
    known = {lease.entry for lease in held}
    return [entry for entry in entries if entry not in known]
