"""The migration's only door to Redis: one typed coroutine for each of its Lua files, and plain reads."""

from collections.abc import AsyncIterator, Mapping
from typing import Any, NamedTuple

from streams_queue.door import BATCH
from streams_queue.model import Stats
from streams_queue.scripts import Script
from streams_queue.transitions import SCHEMA, Transitions

PAGE = 500
"""Ids that one call looks at."""

_NO_WORKERS = (b"returned", b"locked", b"suspects")
"""Consumers that only keep what waits (``lua/include/house.lua``)."""

_SHA1 = "[0-9a-f]" * 40
"""A pattern: an application may well have keys ``P:user:...`` of its own."""

_HOME = __name__.rpartition(".")[0]
_LAST = ("last_h", "last_n", "last_l")

LOOK_AT = Script("look_at", ("queue", "cursor", "limit", "samples", "texts", *_LAST), home=_HOME)
STRAYS = Script("strays", (), ("id",), home=_HOME)
MARK = Script("mark", ("owner", "ttl", "action"), home=_HOME)
PREPARE = Script("prepare", ("schema", "index_users"), home=_HOME)
RETIME = Script("retime", ("limit",), home=_HOME)
ENTER = Script("enter", ("begins", "limit", "adopted_ttl", "dedup_expiry"), home=_HOME)
KEEP = Script("keep", ("queue", "cursor", "limit", "adopted_ttl", "dead_letter_ttl"), home=_HOME)
DOOMED = Script("doomed", ("limit", "grace_ms"), home=_HOME)
SET_ASIDE = Script("set_aside", ("kept_for",), ("id",), home=_HOME)
TIDY = Script("tidy", ("priority", "after", "limit"), home=_HOME)
CONCLUDE = Script("conclude", ("summary",), home=_HOME)
STRIP = Script("strip", ("queue", "cursor", "limit"), home=_HOME)
DISMANTLE = Script("dismantle", keys=("maintainer",), home=_HOME)

SCRIPTS = (LOOK_AT, STRAYS, MARK, PREPARE, RETIME, ENTER, KEEP, DOOMED, SET_ASIDE, TIDY, CONCLUDE, STRIP, DISMANTLE)

START = "0"
"""The cursor at which a pass begins, and ends."""

NO_ENTRIES = ("", "", "")
"""The last entries of the three priorities before any was seen."""


class Seen(NamedTuple):
    """One page of one set, as it stands."""

    cursor: str
    ids: int
    found: dict[str, int]
    examples: list[tuple[str, str]]
    last: tuple[str, str, str]
    difference: int
    """Ids in main less entries in the streams."""


class Entered(NamedTuple):
    """What one page of main needed."""

    ended: bool
    ids: int
    entered: int
    ordered: int
    bodiless: int


class Kept(NamedTuple):
    """What one page of another set needed."""

    cursor: str
    ids: int
    kept: int
    left: int
    bodiless: int


class Stripped(NamedTuple):
    """What one page meant for going back."""

    cursor: str
    ids: int
    prioritised: int
    scheduled: int
    escaped: int
    typed: int


class Consumer(NamedTuple):
    """Who reads a stream: seconds since its last sign of life, entries it holds."""

    name: str
    idle: float
    pending: int


class Door(Transitions):
    """The transitions of a queue, and those that move it in and out."""

    async def look_at(self, queue: str, cursor: str, last: tuple[str, str, str], *, samples: int, texts: bool) -> Seen:
        """Look at one page; writes nothing."""
        head = (queue, cursor, PAGE, samples, int(texts), *last)
        after, ids, counts, examples, seen, difference = await self._run(LOOK_AT, head)
        names = [_text(name) for name in examples]
        return Seen(
            _text(after),
            ids,
            _counts(counts),
            list(zip(names[::2], names[1::2], strict=True)),
            _entries(seen),
            difference,
        )

    async def strays(self, ids: list[str]) -> list[int]:
        """For each: 0 where it has a place, 1 where it has none and ends by itself, 2 where it would stay."""
        return list(await self._run(STRAYS, (), [(id,) for id in ids]))

    async def mark(self, owner: str, lasts: float, action: str) -> tuple[str, str]:
        """``take`` the queue where it is nobody's, ``force`` that, ``renew`` or ``free`` it: (whose, until when)."""
        held_by, until = await self._run(MARK, (owner, lasts, action))
        return _text(held_by), _text(until)

    async def prepare(self, *, index_users: bool) -> bool:
        """Make the groups and note that a move is under way; True where one was completed before."""
        return bool(await self._run(PREPARE, (SCHEMA, int(index_users))))

    async def retime(self) -> tuple[bool, int]:
        """Give scores ahead of the clock the present time: (whether there are more, how many it were)."""
        more, changed = await self._run(RETIME, (PAGE,))
        return bool(more), changed

    async def enter(self, *, begins: bool, adopted_ttl: int, dedup_expiry: int) -> Entered:
        """Give the next page of main its entries; `begins` makes that the first. Several may be under way at once."""
        ended, *counts = await self._run(ENTER, (int(begins), PAGE, adopted_ttl, dedup_expiry))
        return Entered(bool(ended), *counts)

    async def keep(self, queue: str, cursor: str, *, adopted_ttl: int, dead_letter_ttl: int) -> Kept:
        """See to a page of the retries, the scheduled messages or the dead letters."""
        after, *counts = await self._run(KEEP, (queue, cursor, PAGE, adopted_ttl, dead_letter_ttl))
        return Kept(_text(after), *counts)

    async def doomed(self, *, grace: float) -> tuple[int, list[tuple[str, str]]]:
        """Ids noted as bodiless: (how many, those of them noted `grace` seconds ago and their sets, at most a page);
        the set is empty where it has a body now, or has left.
        """
        waiting, flat = await self._run(DOOMED, (PAGE, round(grace * 1000)))
        words = [_text(word) for word in flat]
        return waiting, list(zip(words[::2], words[1::2], strict=True))

    async def set_aside(self, ids: list[str], *, kept_for: int) -> list[bool]:
        """Put ids without a body on ``P:lost``; False for one that has a body now, or has left."""
        return [bool(aside) for aside in await self._run(SET_ASIDE, (kept_for,), [(id,) for id in ids])]

    async def tidy(self, priority: str, after: str) -> tuple[str, int, int]:
        """Drop a page's entries that no message goes by: (where to go on, entries looked at, dropped)."""
        on, looked_at, dropped = await self._run(TIDY, (priority, after, PAGE))
        return _text(on), looked_at, dropped

    async def conclude(self, summary: bytes) -> None:
        """Note that the move is done, and what it did."""
        await self._run(CONCLUDE, (summary,))

    async def strip(self, queue: str, cursor: str) -> Stripped:
        """Make a page's messages what the old queue knew."""
        after, *counts = await self._run(STRIP, (queue, cursor, PAGE))
        return Stripped(_text(after), *counts)

    async def dismantle(self) -> None:
        """Delete the engine's own keys."""
        await self._run(DISMANTLE, (), (), [self.keys.maintainer])
        async for keys in self.scan(f"{self.keys.prefix}:user:{_SHA1}", kind="zset"):
            await self.command("UNLINK", *keys)

    # ---- plain reads

    async def global_lock(self) -> str | None:
        """Who works on the whole queue, as the old code has it."""
        owner = await self.command("GET", self.keys.global_lock)
        return None if owner is None else _text(owner)

    async def command(self, *words: Any) -> Any:
        """One command of this queue's node."""
        with self._translated():
            return await self.connection.client.execute_command(*words)

    async def sizes(self) -> dict[str, int]:
        """How many ids stand in each set, and how many entries in the streams together (``entries``)."""
        entries = [await self.command("XLEN", stream) for stream in self.keys.streams.values()]
        return {**sizes_in(await self.stats()), "entries": sum(entries)}

    async def meta(self) -> dict[str, str]:
        """The agreements of the queue."""
        flat = await self.command("HGETALL", self.keys.meta)
        pairs: Mapping[bytes, bytes] = flat if isinstance(flat, dict) else dict(zip(flat[::2], flat[1::2], strict=True))
        return {_text(name): _text(value) for name, value in pairs.items()}

    async def kinds(self) -> dict[str, str]:
        """The type of each of the queue's keys that exists."""
        kinds = {key: _text(await self.command("TYPE", key)) for key in self.keys.house}
        return {key: kind for key, kind in kinds.items() if kind != "none"}

    async def wrong_kinds(self) -> list[tuple[str, str, str]]:
        """The queue's keys that are of another type than they should be: key, its type, and the right one."""
        keys = self.keys
        right = {**dict.fromkeys(keys.house, "zset"), **dict.fromkeys(keys.streams.values(), "stream")}
        right |= {keys.stats: "hash", keys.meta: "hash"}
        return [(key, kind, right[key]) for key, kind in (await self.kinds()).items() if kind != right[key]]

    async def consumers(self) -> list[Consumer]:
        """Every worker that reads the streams, or did."""
        found: list[Consumer] = []
        for stream in self.keys.streams.values():
            if _text(await self.command("TYPE", stream)) != "stream":
                continue
            with self._translated():
                for group in await self.connection.client.xinfo_groups(stream):
                    if group["name"] == b"workers":
                        found += [
                            Consumer(_text(row["name"]), row["idle"] / 1000, row["pending"])
                            for row in await self.connection.client.xinfo_consumers(stream, "workers")
                            if row["name"] not in _NO_WORKERS
                        ]
        return found

    async def head(self, set: str, count: int) -> list[str]:
        """The first ids of the set with this key."""
        return [_text(id) for id in await self.command("ZRANGE", set, 0, count - 1)]

    async def scan(self, pattern: str, kind: str | None = None) -> AsyncIterator[list[bytes]]:
        """Every key like this (of this type), some at a time; one may come twice. Reads the whole database."""
        with self._translated():
            batch: list[bytes] = []
            async for key in self.connection.client.scan_iter(pattern, count=BATCH, _type=kind):
                batch.append(key)
                if len(batch) == BATCH:
                    yield batch
                    batch = []
            if batch:
                yield batch


def sizes_in(stats: Stats) -> dict[str, int]:
    """How many ids stood in each set at that moment."""
    return {"main": stats.main, "retry": stats.retry, "scheduled": stats.scheduled, "dlq": stats.dead}


def _text(raw: bytes | str) -> str:
    return raw if isinstance(raw, str) else raw.decode(errors="surrogateescape")


def _counts(flat: list[Any]) -> dict[str, int]:
    return {_text(name): times for name, times in zip(flat[::2], flat[1::2], strict=True)}


def _entries(raw: list[bytes]) -> tuple[str, str, str]:
    high, normal, low = map(_text, raw)
    return high, normal, low
