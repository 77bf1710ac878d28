"""When to look at which part of main: the newest scores each second, all of it where the counts ask for that."""

import asyncio

from streams_queue.answers import Reconciled
from streams_queue.outcomes import Policy
from streams_queue.transitions import Transitions

FULL_PASS = 60.0
"""Seconds between two full passes over main, when nothing hints at a difference before."""

ADOPTED_TTL = 3600
"""Seconds that an old producer's message lives: the documented ``default_ttl``."""

_SHORTEST_GAP = 1.0
_REST, _LONG_REST = 1 / 3, 19.0
"""A pass rests after each step, for so many times what the step took: other commands have their turn. For long where
nothing hints at a difference."""


class Reconciliation:
    """Finds what outsiders put into main, and gives it an entry.

    An id added by hand makes main longer than the streams, one taken out makes it shorter. So a look at the newest
    scores, which finds nearly all of what is added, also says whether the difference has changed; then all of main is
    looked at, in steps, between which other work goes on.
    """

    def __init__(self, transitions: Transitions, policy: Policy) -> None:
        self._transitions = transitions
        self._policy = policy
        self._difference = 0
        self._cursor: str | None = None
        self._changed = False
        self._urgent = False
        self._worked = 0.0
        """Seconds that the steps of the pass have taken so far."""
        self._rested_at = 0.0
        self._next_at = 0.0
        self._gap = _SHORTEST_GAP

    async def look_at_newest(self) -> int:
        """What came lately; the number of messages given an entry."""
        newest = await self._step("")
        self.looked_at_newest(newest)
        return newest.adopted

    def looked_at_newest(self, newest: Reconciled) -> None:
        """Take note of such a look. Begins a pass where one is due."""
        self._changed |= newest.difference != self._difference
        self._difference = newest.difference
        now = _now()
        if self._cursor is None and (now >= self._next_at or (self._changed and now >= self._rested_at)):
            self._begin()

    async def advance(self) -> int:
        """One step of the pass under way, if there is one; the number of messages given an entry."""
        if self._cursor is None:
            return 0
        step = await self._step(self._cursor)
        self._cursor = step.cursor
        # What the step did itself changes the difference too, and that is no news.
        self._changed |= step.difference != self._difference - step.adopted - step.expired
        self._difference = step.difference
        if step.cursor == "0":
            self._end()
        return step.adopted

    async def keep_on(self) -> None:
        """Advance whatever pass is under way, and rest in between, until it is done."""
        while self._cursor is not None:
            began = _now()
            await self.advance()
            took = _now() - began
            self._worked += took
            await asyncio.sleep(took * (_REST if self._urgent or self._changed else _LONG_REST))

    async def look_at_all(self) -> int:
        """A whole pass at once; the number of messages given an entry."""
        adopted = await self.look_at_newest()
        self._begin()
        while self._cursor is not None:
            adopted += await self.advance()
        return adopted

    def _begin(self) -> None:
        self._gap = _SHORTEST_GAP if self._changed else min(2 * self._gap, FULL_PASS)
        self._urgent = self._changed or self._difference > 0
        self._cursor, self._changed, self._worked = "0", False, 0.0

    def _end(self) -> None:
        now = _now()
        # A long queue is not read all the time, whatever goes on.
        self._rested_at = now + 2 * self._worked
        # Ids that wait for their body, or that a lock taken by hand holds up, differ for a while: look less and less
        # often.
        self._next_at = max(self._rested_at, now + (self._gap if self._difference > 0 else FULL_PASS))
        self._cursor = None

    async def _step(self, cursor: str) -> Reconciled:
        return await self._transitions.reconcile(
            cursor, adopted_ttl=ADOPTED_TTL, dedup_expiry=self._policy.dedup_expiry
        )


def _now() -> float:
    return asyncio.get_running_loop().time()
