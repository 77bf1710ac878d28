"""Apply: an old queue -> one of this engine. May be killed at any moment and run again."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec

from streams_queue.errors import MigrationError
from streams_queue.model import LETTERS
from streams_queue.queue import Queue
from streams_queue.reconciliation import ADOPTED_TTL
from streams_queue_migrations.door import START, Door, sizes_in
from streams_queue_migrations.marking import marked
from streams_queue_migrations.model import QUEUES, Applied, Check, Finding, Progress, Verified
from streams_queue_migrations.planning import WATCH
from streams_queue_migrations.preflight import CHAT, preflight
from streams_queue_migrations.verifying import look_twice

GRACE = 5.0
"""Seconds in which an id may get its body: a program may add the one before the other."""

LOOKS = 10
"""How often the counts are read for one comparison."""

FURTHER = 20
"""How often that is done again while the sums do not add up: some two seconds in all."""

AT_ONCE = 2
"""Pages of main that are under way at once."""

SetAside = Callable[[str, str], None]
"""Called with each id that is about to be set aside, and the set it stands in; again where a run was killed then."""


async def apply(
    queue: Queue[Any], progress: Progress, set_aside: SetAside, *, force: bool = False, watch: float = WATCH
) -> Applied:
    """Move the queue in, and verify it. O(n), in calls of a few milliseconds. What arrives meanwhile is moved in too.

    Run again, it does what is left to do, and nothing on a queue that is moved.

    Args:
        queue: open.
        progress: told after each page.
        set_aside: told of each id without a body.
        force: go on although the preflight found that it could do harm, or another migration is under way.
        watch: seconds that the head of the line is watched for signs of old workers.

    Raises:
        MigrationError: the preflight refused, or another migration is under way; nothing was written.
        QueueUnavailable: the server does not answer any more; run it again.
        ConfigurationError: a newer engine wrote the queue, or access is denied.
    """
    door = Door(queue.connection, queue.keys)
    _refuse(queue.keys.prefix, await preflight(door, watch=watch), force=force)
    move = _Move(door, queue, progress, set_aside)
    async with marked(door, force=force):
        return await move.run()


def _refuse(prefix: str, findings: list[Finding], *, force: bool) -> None:
    reasons = [finding for finding in findings if finding.refuses and not (force and finding.name != "wrong_type")]
    if reasons:
        words = "; ".join(f"{finding.what} ({finding.remedy})" for finding in reasons)
        raise MigrationError(f"queue {prefix!r} is not migrated: {words}")


class _Move:
    """One run, and what it has done so far."""

    def __init__(self, door: Door, queue: Queue[Any], progress: Progress, set_aside: SetAside) -> None:
        self._door = door
        self._queue = queue
        self._progress = progress
        self._set_aside = set_aside
        self._done: Counter[str] = Counter()
        self._aside: Counter[str] = Counter()
        self._total = self._passed = 0

    async def run(self) -> Applied:
        began = time.monotonic()
        before, unaccounted = await self._door.sizes(), await self._unaccounted()
        moved_before = await self._door.prepare(index_users=self._queue.keys.prefix == CHAT)
        await self._pass()
        verified = await look_twice(self._door, self._progress, self._pass, moving=True)
        applied = Applied(
            prefix=self._queue.keys.prefix,
            before={queue: before[queue] for queue in QUEUES},
            set_aside=dict(self._aside),
            seconds=time.monotonic() - began,
            verified=await self._added_up(verified, unaccounted),
            **{name: self._done[name] for name in _COUNTS},
        )
        if applied.verified.clean and (applied.changed or not moved_before):
            await self._door.conclude(_summary(applied))
        return applied

    async def _pass(self) -> None:
        await self._retime()
        await self._enter()
        for queue in QUEUES[1:]:
            await self._keep(queue)
        await self._put_aside()
        sizes = await self._door.sizes()
        if sizes["entries"] > sizes["main"]:
            await self._tidy()

    async def _retime(self) -> None:
        more = True
        while more:
            more, changed = await self._door.retime()
            self._done["retimed"] += changed

    async def _enter(self) -> None:
        """Two pages are under way at once: the server does not wait for us in between."""
        self._total, self._passed = (await self._door.sizes())["main"], 0
        if await self._enter_page(begins=True):
            return
        pages = [asyncio.create_task(self._enter_pages()) for _ in range(AT_ONCE)]
        try:
            await asyncio.gather(*pages)
        finally:
            for task in pages:
                task.cancel()
            await asyncio.wait(pages)

    async def _enter_pages(self) -> None:
        while not await self._enter_page(begins=False):
            pass

    async def _enter_page(self, *, begins: bool) -> bool:
        """Whether it was the last."""
        page = await self._door.enter(begins=begins, adopted_ttl=ADOPTED_TTL, dedup_expiry=self._queue.dedup_expiry)
        self._passed += page.ids
        self._done.update(looked_at=page.ids, entered=page.entered, ordered=page.ordered)
        self._progress("main", self._passed, max(self._total, self._passed))
        return page.ended

    async def _keep(self, queue: str) -> None:
        total, done, cursor = (await self._door.sizes())[queue], 0, START
        while True:
            page = await self._door.keep(
                queue, cursor, adopted_ttl=ADOPTED_TTL, dead_letter_ttl=self._queue.dead_letter_ttl
            )
            cursor = page.cursor
            done += page.ids
            self._done.update(looked_at=page.ids, kept=page.kept, left=page.left)
            self._progress(queue, done, max(total, done))
            if cursor == START:
                return

    async def _put_aside(self) -> None:
        """Ids that have no body and had time to get one: on ``P:lost``, where people find them."""
        while True:
            waiting, doomed = await self._door.doomed(grace=GRACE)
            if not waiting:
                return
            if not doomed:
                await asyncio.sleep(GRACE / 10)
            for id, queue in doomed:
                if queue:
                    self._set_aside(id, queue)  # first: if we die now, they are told again
            answers = await self._door.set_aside([id for id, _ in doomed], kept_for=self._queue.dead_letter_ttl)
            self._aside.update(queue for (_, queue), aside in zip(doomed, answers, strict=True) if aside)

    async def _tidy(self) -> None:
        for letter in LETTERS.values():
            after = "-"
            while True:
                after, _, dropped = await self._door.tidy(letter, after)
                self._done["dropped"] += dropped
                if after == "-":
                    break

    async def _added_up(self, verified: Verified, before: tuple[int, int]) -> Verified:
        """Verified, with one check more: whoever was there, or came, is there or has left.

        What is lost stays lost, while what is not counted yet soon is: a difference is looked at for longer.
        """
        after = await self._unaccounted()
        for _ in range(FURTHER):
            if not _differ(before, after, self._done["left"]):
                break
            again = await self._unaccounted()
            after = min(after[0], again[0]), max(after[1], again[1])
        check = Check(
            name="sums", what="whoever was there, or came, is there or has left",
            violations=_differ(before, after, self._done["left"]),
            remedy="somebody added or took out ids meanwhile: old workers, a script, another migration? Run it again",
        )  # fmt: skip
        return msgspec.structs.replace(verified, checks=[*verified.checks, check])

    async def _unaccounted(self) -> tuple[int, int]:
        """Ids that stand in the sets, less what the counters say came and did not leave: the fewest and the most that
        some looks found. On a queue at rest they are one number.

        An old producer counts a message a moment after it has added it: the more are at it, the less is certain.
        """
        looks = []
        for _ in range(LOOKS):
            stats = await self._door.stats()
            came, *left = (stats.counters.get(f"{name}_messages", 0) for name in _CAME_AND_LEFT)
            looks.append(sum(sizes_in(stats).values()) - came + sum(left))
            await asyncio.sleep(random.uniform(0, 0.02))  # out of step with producers that march in step
        return min(looks), max(looks)


def _differ(before: tuple[int, int], after: tuple[int, int], left: int) -> int:
    """By how many ids two counts differ at least, each known from its fewest to its most."""
    return max(0, before[0] - left - after[1], after[0] - (before[1] - left))


_CAME_AND_LEFT = ("total", "completed", "removed", "expired")
_COUNTS = ("looked_at", "entered", "ordered", "retimed", "kept", "left", "dropped")


def _summary(applied: Applied) -> bytes:
    after = {f"{queue}_after": ids for queue, ids in applied.verified.ids.items()}
    before = {f"{queue}_before": ids for queue, ids in applied.before.items()}
    done = {name: getattr(applied, name) for name in _COUNTS}
    return msgspec.json.encode({**before, **after, **done, "set_aside": applied.set_aside, "clean": True})
