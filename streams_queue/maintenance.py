"""What somebody has to do for the whole queue: promote, sweep, reconcile, prune."""

import asyncio
import logging
import math
import random
from collections.abc import Awaitable, Callable

import anyio

from streams_queue import failpoints
from streams_queue.answers import Turn
from streams_queue.errors import StreamsQueueError
from streams_queue.outcomes import Policy
from streams_queue.reconciliation import ADOPTED_TTL, Reconciliation
from streams_queue.transitions import Transitions

logger = logging.getLogger(__name__)

INTERVAL = 1.0
"""Seconds after which a worker asks at the earliest whether it is its turn (or a sixth of the lease, if less)."""

SPREAD = (1.0, 1.4)
"""What each of these waits is multiplied by, at random, so that a fleet does not march in step."""

ROUND = 0.8
"""Seconds from one round to the next of the one in turn (a sixth of the lease, where that is less): what it could not
know of, as a message with a short delay, comes into line no later than that.
"""

SHORTEST = 0.02
"""Seconds between two looks at what is due, at least."""

MARGIN = 0.002
"""Seconds: clocks do not go alike, and a look that comes too early is one in vain."""

TURN = 3.0
"""Seconds (or one lease, if that is shorter) for which one worker keeps the upkeep to itself; when it dies another
takes over after that."""

PRUNE_EVERY = 60.0
"""Seconds between two looks at consumers that have gone, and at what outsiders have done."""

PROMOTE_WITHIN = 0.5
"""Seconds of a round that promoting takes at most; a new round follows at once where more is due."""


HINTS = {"claimed_elsewhere": "an old worker runs beside the new ones?"}
"""What a kind of outside edit may be the sign of."""


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
        self.messages_wait = False
        """Whether a claim finds what a blocking read does not: what was handed back, and what must run alone."""
        self._turn = min(TURN, lease / 2)
        self._answered_at = -math.inf
        self._sweep_at = 0.0
        self._prune_at = 0.0
        self._more_due = False
        self._due_at = math.inf
        self._pending = True
        self._edits: dict[str, int] | None = None
        self._edits_seen_at = 0.0
        self._reconciliation = Reconciliation(transitions, policy)

    async def run(self) -> None:
        """Look after the queue until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._patiently, self._turns)
            tasks.start_soon(self._patiently, self._passes)

    async def _patiently(self, work: Callable[[], Awaitable[float]]) -> None:
        """Do this again and again, after the seconds that it asks for; a server that is away is said once."""
        failing = False
        while True:
            pause = self._interval()
            try:
                pause = await work()
                failing = False
            except StreamsQueueError as error:
                if not failing:
                    logger.warning("%s cannot be looked after at present: %s", self._transitions.where, error)
                failing = True
            await asyncio.sleep(pause)

    def _interval(self) -> float:
        return min(INTERVAL, self.lease / 6) * random.uniform(*SPREAD)

    async def _turns(self) -> float:
        ends = self._now() + min(ROUND, self.lease / 6)
        await self._take_turn()
        if not self.in_turn:
            return self._interval()
        await self._sweep_and_prune(full=False)
        if self._more_due:
            return 0.0
        while self._due_at < ends:
            await asyncio.sleep(max(SHORTEST, self._due_at - self._now()))
            await self._promote()
        return max(0.0, ends - self._now())

    async def _passes(self) -> float:
        """Beside the rounds: a pass over a long queue holds up nothing."""
        if self.in_turn:
            await self._reconciliation.keep_on()
        return self._interval()

    async def _take_turn(self) -> None:
        """A turn is over before leases run out that are renewed in time: so where the server was frozen or away for
        as long as that, a turn begins anew, and holders have a lease to renew before anybody sweeps.

        Where this worker has seen the server answer all the time, only another maintainer has gone: no need to wait.
        Where it has not, a turn that goes on began by a call of its own whose answer was lost.
        """
        done = await self._transitions.upkeep(
            self._consumer, self._turn, adopted_ttl=ADOPTED_TTL, dedup_expiry=self._policy.dedup_expiry
        )
        unseen, self._answered_at = self._now() - self._answered_at, self._now()
        self.in_turn, self.messages_wait = done.turn is not Turn.ANOTHERS, done.waiting
        if self.in_turn and unseen > self.lease / 2:
            self._sweep_at = self._now() + self.lease
        if self.in_turn:
            self._more_due, self._pending = done.more_due, done.pending
            self._look_again_in(done.next_due)
            self._reconciliation.looked_at_newest(done.newest)
        if done.promoted:
            failpoints.hit("mid_promote")

    async def resign(self) -> None:
        """Leave the upkeep to another worker at once."""
        await self._transitions.unlock(self._transitions.keys.maintainer, self._consumer)

    async def round(self, *, full: bool = False) -> int:
        """Do what is due (everything, when `full`); the number of messages that came into line by it."""
        moved = await self.promote(PROMOTE_WITHIN if not full else math.inf)
        moved += await (self._reconciliation.look_at_all() if full else self._reconciliation.look_at_newest())
        self._pending = True
        return moved + await self._sweep_and_prune(full)

    async def _sweep_and_prune(self, full: bool) -> int:
        now, moved = self._now(), 0
        if full or (self._pending and now >= self._sweep_at):
            self._sweep_at = now + max(ROUND, self.lease / 6) - ROUND / 10  # a round is not always as long
            moved = await self.sweep(self._consumer if self.in_turn else "")
        if now >= self._prune_at:
            self._prune_at = now + PRUNE_EVERY
            await self._transitions.prune("", idle=max(PRUNE_EVERY, 10 * self.lease))
            await self._look_at_edits(now)
        return moved

    async def _look_at_edits(self, now: float) -> None:
        """Say which outside edits were counted since the last look; the first look has nothing to compare with."""
        edits = (await self._transitions.stats()).edits
        before, seen_at = self._edits, self._edits_seen_at
        self._edits, self._edits_seen_at = edits, now
        if before is None:
            return
        grown = [(count - before.get(kind, 0), kind) for kind, count in edits.items()]
        words = [f"{more} {kind}" + (f" ({HINTS[kind]})" if kind in HINTS else "") for more, kind in grown if more > 0]
        if words:
            logger.warning(
                "outside edits of queue %s in the last %.0f s: %s",
                self._transitions.keys.prefix, now - seen_at, ", ".join(words),
            )  # fmt: skip

    async def glance(self) -> int:
        """A bounded piece of it, for a queue that has no worker: a round, and a step of a pass."""
        return await self.round() + await self._reconciliation.advance()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    async def promote(self, within: float) -> int:
        """What is due, in line, as far as one gets in `within` seconds."""
        deadline, moved = self._now() + within, 0
        self._more_due = True
        while self._more_due and self._now() < deadline:
            moved += await self._promote()
        return moved

    async def _promote(self) -> int:
        done = await self._transitions.promote()
        self._more_due = done.more_due
        self._look_again_in(done.next_due)
        if done.promoted:
            failpoints.hit("mid_promote")
        return done.promoted

    def _look_again_in(self, seconds: float | None) -> None:
        self._due_at = math.inf if seconds is None else self._now() + seconds + MARGIN

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
            self.messages_wait |= swept.recovered > 0
            if swept.recovered or swept.dead:
                logger.warning(
                    "%d messages of dead workers handed back, %d given up: %s",
                    swept.recovered,
                    swept.dead,
                    self._transitions.where,
                )
                failpoints.hit("mid_sweep")
        return moved
