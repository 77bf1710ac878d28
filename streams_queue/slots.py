"""Slots: how many handlers may run at the same time in one worker, whether it takes from one queue or from many."""

import asyncio
import math
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

import anyio

PART = 25
"""Messages that one claim asks for, or a third of all slots where that is more: one part is claimed while another is
worked on and a third is settled.
"""


class Intake(Protocol):
    """How many messages a handler takes."""

    @property
    def size(self) -> int:
        """At most."""
        ...

    @property
    def begun(self) -> int:
        """How many more, at this moment, a handler takes that has its slot and waits for them."""
        ...


class _One:
    size = 1
    begun = 0


ONE: Intake = _One()
"""A handler takes one message."""


class Slots:
    """Room for handlers, shared by those who claim messages for it: its members, one for each queue.

    Slots are reserved before a claim, so that no two claims fill the same one. Who waits for room gets it in turn, and
    no more than an even part while others wait: a busy queue starves no other one.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0  # reserved by a claim under way, or running
        self.running = 0
        """Handlers that run now, those included whose outcome is being written."""
        self.ended = 0
        """Handlers that have ended so far."""
        self._turn = asyncio.Lock()  # first come, first served
        self._waiting = 0
        self._alone: object | None = None
        self._members: set[object] = set()
        self._resting: set[object] = set()
        self._changed = asyncio.Event()

    @property
    def limit(self) -> int:
        """Handlers that may run at the same time. May be set at any time; what runs already goes on."""
        return self._limit

    @limit.setter
    def limit(self, handlers: int) -> None:
        self._limit = handlers
        self.tell()

    @property
    def full(self) -> bool:
        """Whether there is no room at present."""
        return self._alone is not None or self._taken >= self._limit

    def join(self, member: object) -> None:
        """Count with this one."""
        self._members.add(member)

    def quit(self, member: object) -> None:
        """Count without this one from now on; what it runs still has its slots."""
        self._members.discard(member)
        self._resting.discard(member)
        self._end_alone(member)
        self.tell()

    async def room(self, member: object, *, alone: bool = False, intake: Intake = ONE) -> "Room":
        """Reserve slots for one claim; wait for them in turn, unless a handler has its slot and waits for messages.

        Args:
            member: who claims.
            alone: wait until no handler runs, and let nobody else have room until the member's room is closed.
            intake: of the member's handler.
        """
        if alone:
            await self._clear(member)
            return Room(self, member, self._reserve(self._part(intake.size)), alone=True, intake=intake)
        if intake.begun and self._alone is None and (self.full or self._turn.locked()):
            return self.no_room(member, intake=intake)
        self._waiting += 1
        try:
            async with self._turn:
                await self.until(lambda: not self.full)
                nobody_else = not self._taken and len(self._members) == 1
                fair = math.ceil((self._limit - self._taken) / self._waiting)
                slots = self._reserve(min(fair, self._part(intake.size)))
                return Room(self, member, slots, alone=nobody_else, intake=intake)
        finally:
            self._waiting -= 1

    def no_room(self, member: object, *, intake: Intake = ONE) -> "Room":
        """Reserve nothing, for one who only waits for messages."""
        return Room(self, member, 0, alone=False, intake=intake)

    async def rest(self, member: object, ended: int) -> bool:
        """Wait until all members have nothing to do: True; or until it makes sense to look again: False.

        A handler may have enqueued messages wherever it liked: only who has looked after the last one's end rests.

        Args:
            member: who has found nothing.
            ended: as many handlers had ended before it looked.
        """
        if ended == self.ended:
            self._resting.add(member)
            self.tell()
        await self.until(lambda: self._all_rest or (member not in self._resting and not self.running))
        return self._all_rest

    def leave(self) -> None:
        """A handler has ended."""
        self._taken -= 1
        self.running -= 1
        self.ended += 1
        self._resting.clear()
        self.tell()

    def tell(self) -> None:
        """Something has changed that somebody may wait for."""
        self._changed.set()

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait for a change that makes it true."""
        while not true():
            await self.change(None)

    async def change(self, timeout: float | None) -> None:
        """Wait for the next change, seconds at most."""
        self._changed.clear()
        with anyio.move_on_after(timeout):
            await self._changed.wait()

    def _part(self, size: int) -> int:
        return max(math.ceil(PART / size), math.ceil(self._limit / 3))

    @property
    def _all_rest(self) -> bool:
        return self._resting >= self._members

    async def _clear(self, member: object) -> None:
        if self._alone is not member:
            async with self._turn:
                await self.until(lambda: self._alone is None)
                self._alone = member
        try:
            await self.until(lambda: not self._taken)
        except BaseException:
            self._end_alone(member)
            raise

    def _end_alone(self, member: object) -> None:
        if self._alone is member:
            self._alone = None

    def _reserve(self, most: int) -> int:
        free = max(0, min(most, self._limit - self._taken))
        self._taken += free
        return free


class Room:
    """Slots that were reserved for one claim. What it does not fill goes back when the room is closed."""

    def __init__(self, slots: Slots, member: object, reserved: int, *, alone: bool, intake: Intake) -> None:
        self._slots = slots
        self._member = member
        self._reserved = reserved
        self._intake = intake
        self.alone = alone
        """Whether nothing runs in any slot, and nothing will before this is closed."""
        self.stays_alone = False
        """Whether nobody else gets room until the member's next one is closed, too."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._free_all()
        if not self.stays_alone:
            self._slots._end_alone(self._member)
        self._slots.tell()

    @property
    def free(self) -> int:
        """For how many messages there is room."""
        return self._reserved * self._intake.size + self._intake.begun

    def take(self, messages: int) -> None:
        """Reserve what these need beyond what is free, if it is to be had without waiting."""
        lacking = math.ceil((messages - self.free) / self._intake.size)
        if lacking > 0 and self._slots._alone in (None, self._member):
            self._reserved += self._slots._reserve(lacking)

    def fill(self, handlers: int) -> None:
        """So many handlers begin."""
        self._reserved -= handlers
        self._slots.running += handlers
        if handlers:
            self._slots._resting.clear()

    def give_back(self) -> None:
        """Reserve nothing any more: the server does not answer, others need not wait for it."""
        self._free_all()
        self.alone = False
        self._slots._end_alone(self._member)
        self._slots.tell()

    def _free_all(self) -> None:
        self._slots._taken -= self._reserved
        self._reserved = 0
