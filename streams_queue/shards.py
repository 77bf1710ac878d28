"""What callers ask of a queue, asked of its shards: one answer, merged of theirs."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, NoReturn, TypeVar

import anyio
import msgspec

from streams_queue.answers import (
    Answered,
    Examined,
    NewMessage,
    Oldest,
    Outdated,
    Page,
    Parked,
    Place,
    Working,
)
from streams_queue.codec import Fields, field_of, value_in
from streams_queue.connection import Connection
from streams_queue.door import BATCH, Resharded
from streams_queue.errors import ConfigurationError, InvalidMessage, QueueUnavailable
from streams_queue.keys import Keys, registry_prefix
from streams_queue.limits import Limits, Rate
from streams_queue.model import Priority, Stats, Status
from streams_queue.routing import hash_for, hash_in, jump
from streams_queue.transitions import Transitions

T = TypeVar("T")

_MARGIN = 0.25
"""Seconds above the client's timeout, whose own error comes first where it is the last one."""

_NAMED = 5
"""Shards that an error's text names at most."""


class Routing(NamedTuple):
    """How messages find their shards."""

    shards: int
    key: str | None
    """The field of the payload that a message goes by; None: all go by their ids."""
    former: int | None = None
    """How many shards there were before their number was changed: what finished then left its trace there."""
    moving: bool = False
    """Whether messages may still be in the shards that they had then."""

    @property
    def in_use(self) -> int:
        """How many shards may hold messages."""
        return max(self.shards, self.former or 0) if self.moving else self.shards

    @property
    def known(self) -> int:
        """How many shards may have heard of messages."""
        return max(self.shards, self.former or 0)

    def home(self, id: str, flat: Sequence[bytes]) -> int:
        """The shard of a message with these fields, names and values one after the other.

        Raises:
            InvalidMessage: the id was made for another key.
        """
        value = value_in(flat, self.key) if self.key is not None else None
        return jump(hash_for(id, value), self.shards)

    def holders(self, id: str) -> Sequence[int]:
        """The shards that can know of a message with this id, the likeliest first; all, where the id is an own one."""
        hash = hash_in(id)
        if hash is None:
            return range(self.known)
        now, before = jump(hash, self.shards), jump(hash, self.former or self.shards)
        return [now] if now == before else [now, before]

    def former_home(self, id: str, flat: Sequence[bytes]) -> int | None:
        """The shard that the message had before, where that was another one."""
        before = self._replace(shards=self.former or self.shards).home(id, flat)
        return before if before != self.home(id, flat) else None


class Shards(Transitions):
    """The transitions of a sharded queue, as far as its callers and those who look at it need them.

    What names messages by ids that the queue made goes to their shards alone, an id of a caller's own to all shards;
    what speaks of the queue goes to all. All shards are asked at the same time, and an error of one is the answer.
    What a worker does, it does in each shard: here it is a TypeError.
    """

    def __init__(self, connection: Connection, keys: Keys, routing: Routing, members: Sequence[Transitions]) -> None:
        super().__init__(connection, keys)
        self.routing = routing
        self.members = members
        """All shards that messages may be in or have been in: more than are in use, where their number has shrunk."""
        self.rerouted = _never
        """Called where a shard refused what was meant for another number of shards: returns when that is known."""
        self._whole = Transitions(connection, Keys(registry_prefix(keys.prefix)))

    def reroute(self, routing: Routing, members: Sequence[Transitions]) -> None:
        """Go by this from now on."""
        self.routing, self.members = routing, members

    def _translated(self) -> NoReturn:
        raise TypeError(f"queue {self.keys.prefix!r} is sharded: this is done in one of its shards")

    # ---- of some messages

    async def enqueue_on_replicas(
        self,
        messages: Sequence[NewMessage],
        *,
        dedup_expiry: int,
        index_users: bool = False,
        replicas: int,
        in_order: bool = False,
        anew: bool = False,
    ) -> list[tuple[Answered, int]]:
        """As `Transitions.enqueue_on_replicas`, in each shard what belongs there; their order in a shard is kept, and
        one that is refused there ends it there.
        """
        homes = [[self.routing.home(message.id, message.fields)] for message in messages]

        async def enqueue(shard: Transitions, mine: list[NewMessage]) -> Sequence[tuple[Answered, int]]:
            return await shard.enqueue_on_replicas(
                mine, dedup_expiry=dedup_expiry, index_users=index_users, replicas=replicas, in_order=in_order,
                anew=anew,
            )  # fmt: skip

        answers = [answer for (answer,) in await self._spread(messages, homes, enqueue)]
        outdated = {place: answer.version for place, (answer, _) in enumerate(answers) if isinstance(answer, Outdated)}
        if outdated:
            await self.rerouted(max(outdated.values()))
            again = await self.enqueue_on_replicas(
                [messages[place] for place in outdated],
                dedup_expiry=dedup_expiry, index_users=index_users, replicas=replicas, in_order=in_order, anew=anew,
            )  # fmt: skip
            for place, answer in zip(outdated, again, strict=True):
                answers[place] = answer
        return answers

    async def requeue(self, ids: Sequence[str], *, dedup_expiry: int) -> list[str]:
        """As `Transitions.requeue`."""
        return await self._of_ids(
            ids, lambda shard, mine: shard.requeue(mine, dedup_expiry=dedup_expiry), lambda answer: answer != "missing"
        )

    async def remove(self, ids: Sequence[str], *, only_dead: bool = False) -> list[bool]:
        """As `Transitions.remove`; an own id that several shards have is taken out of each."""
        return await self._of_ids(ids, lambda shard, mine: shard.remove(mine, only_dead=only_dead), bool)

    async def prioritise(self, ids: Sequence[str], priority: Priority) -> list[str]:
        """As `Transitions.prioritise`."""
        return await self._of_ids(
            ids, lambda shard, mine: shard.prioritise(mine, priority), lambda answer: answer != "missing"
        )

    async def update(self, id: str, fields: Sequence[bytes], types: bytes) -> bool:
        """As `Transitions.update`."""

        async def update(shard: Transitions, _: list[str]) -> list[bool]:
            return [await shard.update(id, fields, types)]

        return (await self._of_ids([id], update, bool))[0]

    async def amend(self, id: str, died: float, fields: Sequence[bytes], removed: Sequence[bytes]) -> str:
        """As `Transitions.amend`.

        Raises:
            InvalidMessage: what the message goes by is among the changes.
        """
        key = self.routing.key
        if key is not None and field_of(key).encode() in {*fields[::2], *removed}:
            raise key_stays(key)

        async def amend(shard: Transitions, _: list[str]) -> list[str]:
            return [await shard.amend(id, died, fields, removed)]

        return (await self._of_ids([id], amend, lambda answer: answer != "missing"))[0]

    async def positions(self, ids: Sequence[str]) -> list[tuple[int | None, int | None]]:
        """As `Transitions.positions`, each within the message's shard."""
        return await self._of_ids(ids, Transitions.positions, lambda answer: answer[0] is not None)

    async def watch(self, channel: str, ids: Sequence[str]) -> list[tuple[Status, bytes] | None]:
        """As `Transitions.watch`; the channel is that of a listener on the server that has the message."""
        return await self._of_ids(
            ids, lambda shard, mine: shard.watch(channel, mine), lambda answer: answer is not None
        )

    async def read(self, ids: Sequence[str]) -> list[Fields]:
        """As `Transitions.read`."""
        return await self._of_ids(ids, Transitions.read, bool)

    async def read_at(self, places: Sequence[Place]) -> list[Fields]:
        """As `Transitions.read_at`: each from its own shard."""
        homes = [self.routing.holders(place.id) if place.shard is None else [place.shard] for place in places]
        found = await self._spread([place.id for place in places], homes, Transitions.read)
        return [next(filter(None, several), several[0]) for several in found]

    async def examine(self, ids: Sequence[str]) -> list[Examined]:
        """As `Transitions.examine`."""
        return await self._of_ids(
            ids, Transitions.examine, lambda found: bool(found.fields or found.marker or found.scores)
        )

    # ---- of the whole queue

    async def check_schema(self) -> None:
        """As `Transitions.check_schema`, of every shard."""
        await self._all(Transitions.check_schema)

    async def page(self, set: Literal["main", "dlq"], after: Place, count: int, *, newest_first: bool = False) -> Page:
        """As `Transitions.page`, of all shards in one order: every shard is asked for as many."""
        pages = await self._all(lambda shard: shard.page(set, after, count, newest_first=newest_first))
        found = [place._replace(shard=shard) for shard, page in enumerate(pages) for place in page.places]
        places = sorted(found, key=_order, reverse=newest_first)
        return Page(max(page.now for page in pages), places[:count])

    async def dead_letters(self, start: int, count: int) -> list[Place]:
        """As `Transitions.dead_letters`, by time of death. O(shards · (start + count))."""
        page = await self.page("dlq", Place("", float("inf")), start + count, newest_first=True)
        return page.places[start:]

    async def stats(self) -> Stats:
        """As `Transitions.stats`, added up; see `added_up`."""
        return added_up(await self._all(Transitions.stats))

    async def oldest(self) -> Oldest:
        """As `Transitions.oldest`: of the shard where it has waited for the longest."""
        found = await self._all(Transitions.oldest)
        waiting = [oldest for oldest in found if oldest.since is not None]
        return max(waiting, key=lambda oldest: oldest.now - (oldest.since or 0.0), default=found[0])

    async def workers(self, limit: int) -> list[Working]:
        """As `Transitions.workers`; one that bears the same name in several shards is one."""
        merged: dict[str, Working] = {}
        for seen in (seen for found in await self._all(lambda shard: shard.workers(limit)) for seen in found):
            before = merged.get(seen.name, Working(seen.name, seen.idle, 0, []))
            held = [*before.held, *seen.held]
            merged[seen.name] = Working(seen.name, min(before.idle, seen.idle), before.pending + seen.pending, held)
        return list(merged.values())

    async def parked(self, limit: int) -> Parked:
        """As `Transitions.parked`, of all shards: a key has one."""
        found = await self._all(lambda shard: shard.parked(limit))
        return Parked(sum(parked.messages for parked in found), [key for parked in found for key in parked.keys])

    async def of_user(self, user_id: str, limit: int, first: int = 0) -> None:
        """None: a sharded queue keeps no index of users."""

    async def time(self) -> float:
        """As `Transitions.time`, by the first server's clock."""
        return await self.members[0].time()

    async def pause(self, paused: bool) -> None:
        """As `Transitions.pause`, in every shard."""
        await self._all(lambda shard: shard.pause(paused), news="the pause" if paused else "the end of the pause")

    async def limits(self) -> Limits:
        """The limits of the whole queue, as they were given."""
        return await self._whole.limits()

    async def limit(self, limits: Limits) -> None:
        """Have these limits from now on: each shard its part of them.

        Raises:
            ConfigurationError: they cannot be divided; see `part_of`.
            QueueUnavailable: some shards may not have them: the text names these. Sent again, they have.
        """
        part = part_of(limits, self.routing)
        await self._whole.limit(limits)
        await self._all(lambda shard: shard.limit(part), news="the new limits")

    # ---- how shards are asked

    async def _all(self, ask: Callable[[Transitions], Awaitable[T]], news: str = "") -> list[T]:
        """What each shard answers. Where some do not, the error says which; of a change, which may not have heard."""
        shards = self.members[: self.routing.in_use]
        answers = await asyncio.gather(*(_once(shard, ask(shard)) for shard in shards), return_exceptions=True)
        errors = {
            shard.keys.prefix: answer
            for shard, answer in zip(shards, answers, strict=True)
            if isinstance(answer, BaseException)
        }
        if errors:
            raise _error_of(errors, len(shards), news)
        return answers  # type: ignore[return-value]  # no exception among them

    async def _of_ids(
        self,
        ids: Sequence[str],
        ask: Callable[[Transitions, list[str]], Awaitable[Sequence[T]]],
        is_known: Callable[[T], bool],
    ) -> list[T]:
        def ask_once(shard: Transitions, mine: list[str]) -> Awaitable[Sequence[T]]:
            return _once(shard, ask(shard, mine), calls=-(-len(mine) // BATCH))

        answers = await self._spread(ids, [self.routing.holders(id) for id in ids], ask_once)
        return [next(filter(is_known, several), several[0]) for several in answers]

    async def _spread(
        self,
        items: Sequence[Any],
        homes: Sequence[Sequence[int]],
        ask: Callable[[Transitions, list[Any]], Awaitable[Sequence[T]]],
    ) -> list[list[T]]:
        """Ask each shard for its items: what each item's shards answered, in the order in which they are named."""
        groups: dict[int, list[int]] = {}
        for place, shards in enumerate(homes):
            for shard in shards:
                groups.setdefault(shard, []).append(place)
        order = sorted(groups)
        replies = await together(ask(self.members[shard], [items[place] for place in groups[shard]]) for shard in order)
        answers: list[dict[int, T]] = [{} for _ in items]
        for shard, reply in zip(order, replies, strict=True):
            for place, answer in zip(groups[shard], reply, strict=True):
                answers[place][shard] = answer
        return [[several[shard] for shard in named] for several, named in zip(answers, homes, strict=True)]


async def _never(version: int) -> None:
    raise Resharded("nobody knows of another number of shards", version)


def key_stays(key: str) -> InvalidMessage:
    """What to raise where somebody would change what a message goes by."""
    return InvalidMessage(
        f"{key!r} says in which shard a message is and cannot be changed: remove it, and enqueue another"
    )


async def _once(shard: Transitions, answer: Awaitable[T], calls: int = 1) -> T:
    """The answer, within the time of so many calls: a server that hangs is not asked again, as after a lost reply."""
    settings = shard.connection.settings
    try:
        with anyio.fail_after(calls * settings.timeout + _MARGIN):
            return await answer
    except TimeoutError:
        raise QueueUnavailable(
            f"queue {shard.keys.prefix!r}: {settings.display} did not answer within {settings.timeout:g} s"
        ) from None


def _error_of(errors: Mapping[str, BaseException], shards: int, news: str) -> BaseException:
    first = next(iter(errors.values()))
    if type(first) not in {QueueUnavailable, ConfigurationError}:
        return first
    prefixes = list(errors)
    names = ", ".join(prefixes[:_NAMED]) + (f" and {len(prefixes) - _NAMED} more" if len(prefixes) > _NAMED else "")
    if news:
        have = (
            f"{names} may not have {news}, the others of {shards} shards have"
            if len(errors) < shards
            else (f"no shard is known to have {news}")
        )
        return type(first)(f"{first}; {have}: send it again, which is safe")
    more = f"; without an answer: {names} of {shards} shards" if len(errors) > 1 else ""
    return type(first)(f"{first}{more}")


async def together(asked: Iterable[Awaitable[T]]) -> list[T]:
    """All answers, in order. After an error it waits for the others too, so that nothing goes on unseen."""
    answers = await asyncio.gather(*asked, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return answers  # type: ignore[return-value]  # no exception among them


def part_of(limits: Limits, routing: Routing) -> Limits:
    """The limits of each shard, that of the whole queue these.

    A rate of the queue is divided: all shards together reach it where each is as busy as any other. While messages are
    moved, work is done in the former shards, too. So is the length, rounded down. What holds per key stays as it is,
    since a key has one shard; so do shares.

    Raises:
        ConfigurationError: a limit per key goes by another key than the shards do, or the length is less than one
            message a shard.
    """
    per_key = [name for name in ("accept_per_key", "work_per_key", "concurrency_per_key") if getattr(limits, name)]
    if per_key and limits.key != routing.key:
        raise ConfigurationError(
            f"{', '.join(per_key)} cannot go by key={limits.key!r}: the queue's shards go by {routing.key!r}, and each "
            "would count for itself"
        )
    length = limits.max_length and limits.max_length // routing.shards
    if length == 0:
        raise ConfigurationError(
            f"max_length={limits.max_length} is less than one message for each of {routing.shards} shards"
        )
    accept, work = _part_of_rate(limits.accept, routing.shards), _part_of_rate(limits.work, routing.in_use)
    return msgspec.structs.replace(limits, max_length=length, accept=accept, work=work)


def _part_of_rate(rate: Rate | None, shards: int) -> Rate | None:
    if rate is None:
        return None
    count = -(-rate.count // shards)
    return Rate(count, rate.per * count * shards / rate.count)


def added_up(found: Sequence[Stats]) -> Stats:
    """The stats of shards as those of one queue.

    Counts and counters are sums. `oldest_waiting` is the longest. `workers` is the most that any shard has, since a
    worker works in all of them. `paused` is true where any shard is: some messages do not move.
    """
    waits = [stats.oldest_waiting for stats in found if stats.oldest_waiting is not None]
    sums = {name: sum(getattr(stats, name) for stats in found) for name in _COUNTS}
    return Stats(
        **sums,
        paused=any(stats.paused for stats in found),
        oldest_waiting=max(waits, default=None),
        workers=max(stats.workers for stats in found),
        counters=_summed(stats.counters for stats in found),
        died=_summed(stats.died for stats in found),
        edits=_summed(stats.edits for stats in found),
    )


_COUNTS = ("main", "processing", "retry", "scheduled", "dead", "lost", "parked", "high", "low")


def _summed(found: Iterable[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for counts in found:
        total.update(counts)
    return dict(total)


def _order(place: Place) -> tuple[float, bytes]:
    return place.score, place.id.encode(errors="surrogateescape")
