"""What somebody has to do for the whole queue: promote, sweep, reconcile, prune."""

import asyncio
import logging
import math

from streams_queue import failpoints
from streams_queue.errors import StreamsQueueError
from streams_queue.execution import Policy
from streams_queue.transitions import Reconciled, Transitions, Turn

logger = logging.getLogger(__name__)

INTERVAL = 1.0
"""Seconds between two rounds."""

TURN = 3.0
"""Seconds (or one lease, if that is shorter) for which one worker keeps the upkeep to itself; when it dies another
takes over after that."""

FULL_PASS = 60.0
"""Seconds between two full passes over main, when nothing hints at a difference before."""

ADOPTED_TTL = 3600
"""Seconds that an old producer's message lives: the documented ``default_ttl``."""


class Maintenance:
    """The upkeep of a queue. Every worker offers it, one at a time does it.

    Nothing depends on that: two at once do no harm, since each step is one transition.

    Args:
        lease: seconds, the queue's.
    """

    def __init__(self, transitions: Transitions, consumer: str, lease: float, policy: Policy) -> None:
        self._transitions = transitions
        self._consumer = consumer
        self.lease = lease
        self._policy = policy
        self.in_turn = False
        """Whether this worker is the one that looks after the queue now."""
        self._turn = min(TURN, lease / 2)
        self._answered_at = -math.inf
        self._sweep_at = 0.0
        self._prune_at = 0.0
        self._pass_at = 0.0
        self._difference = 0
        self._gap = INTERVAL

    async def run(self) -> None:
        """Look after the queue until cancelled."""
        failing = False
        while True:
            try:
                await self._take_turn()
                if self.in_turn:
                    await self.round()
                failing = False
            except StreamsQueueError as error:
                if not failing:
                    logger.warning("the queue cannot be looked after at present: %s", error)
                failing = True
            await asyncio.sleep(min(INTERVAL, self.lease / 6))

    async def _take_turn(self) -> None:
        """A turn is over before leases run out that are renewed in time: so where the server was frozen or away for
        as long as that, a turn begins anew, and holders have a lease to renew before anybody sweeps.

        Where this worker has seen the server answer all the time, only another maintainer has gone: no need to wait.
        """
        turn = await self._transitions.turn(self._consumer, self._turn)
        unseen, self._answered_at = self._now() - self._answered_at, self._now()
        self.in_turn = turn is not Turn.ANOTHERS
        if turn is Turn.BEGINS and unseen > self.lease / 2:
            self._sweep_at = self._now() + self.lease

    async def resign(self) -> None:
        """Leave the upkeep to another worker at once."""
        await self._transitions.unlock(self._transitions.keys.maintainer, self._consumer)

    async def round(self, *, full: bool = False) -> int:
        """Do what is due (everything, when `full`); the number of messages that came into line by it."""
        now, maintainer = self._now(), self._consumer if self.in_turn else ""
        moved = await self.promote()
        moved += await self.reconcile(full=full)
        if full or now >= self._sweep_at:
            self._sweep_at = now + max(INTERVAL, self.lease / 6)
            moved += await self.sweep(maintainer)
        if now >= self._prune_at:
            self._prune_at = now + FULL_PASS
            await self._transitions.prune("", idle=max(FULL_PASS, 10 * self.lease))
        return moved

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    async def promote(self) -> int:
        """Everything that is due, in line."""
        more, moved = True, 0
        while more:
            more, promoted = await self._transitions.promote()
            moved += promoted
            if promoted:
                failpoints.hit("mid_promote")
        return moved

    async def sweep(self, maintainer: str = "") -> int:
        """Everything that dead workers held, handed back or given up; for a maintainer only while its turn lasts."""
        more_dead, more_unlocked, moved = True, True, 0
        while more_dead or more_unlocked:
            swept = await self._transitions.sweep(
                max_deliveries=self._policy.max_deliveries,
                dead_letter_ttl=self._policy.dead_letter_ttl,
                maintainer=maintainer,
            )
            # Each look ends with its own lap: laps of different lengths seldom end in the same call.
            more_dead, more_unlocked = more_dead and swept.more_dead, more_unlocked and swept.more_unlocked
            moved += swept.recovered
            if swept.recovered or swept.dead:
                logger.warning("%d messages of dead workers handed back, %d given up", swept.recovered, swept.dead)
                failpoints.hit("mid_sweep")
        return moved

    async def reconcile(self, *, full: bool = False) -> int:
        """What outsiders put into main, given an entry; a full pass where the counts ask for it, and once a minute."""
        now = self._now()
        newest = await self._step("")
        changed = newest.difference != self._difference
        if not (full or changed or now >= self._pass_at):
            return newest.adopted
        adopted, self._difference = await self._full_pass()
        # Ids that wait for their body, or that a lock taken by hand holds up, differ for a while: look less and less
        # often.
        self._gap = INTERVAL if changed or adopted else min(2 * self._gap, FULL_PASS)
        self._pass_at = now + (self._gap if self._difference else FULL_PASS)
        return newest.adopted + adopted

    async def _full_pass(self) -> tuple[int, int]:
        cursor, adopted, difference = "0", 0, 0
        while True:
            step = await self._step(cursor)
            adopted += step.adopted
            cursor, difference = step.cursor, step.difference
            if cursor == "0":
                return adopted, difference
            if self.in_turn and self._now() - self._answered_at > self._turn / 3:
                await self._take_turn()  # a pass over a long queue takes longer than one

    async def _step(self, cursor: str) -> Reconciled:
        return await self._transitions.reconcile(
            cursor, adopted_ttl=ADOPTED_TTL, dedup_expiry=self._policy.dedup_expiry
        )
