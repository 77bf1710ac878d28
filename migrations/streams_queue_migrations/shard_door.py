"""The resharder's door to one shard: a typed coroutine for each of its Lua files."""

from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

from streams_queue.answers import id_of
from streams_queue.codec import fields_of, number
from streams_queue.connection import Connection
from streams_queue.keys import Keys, registry_prefix
from streams_queue.scripts import Script
from streams_queue_migrations.door import Door

PAGE = 500
"""Ids that one look reads."""

BYTES = 4 << 20
"""Bytes of bodies that are under way at once, give or take one of them."""

HOLD = 60.0
"""Seconds for which a message that is being moved is held: as long it stays where it is if the mover dies."""

PROOF = 7 * 86400
"""Seconds that the proof of a message's leaving lasts: so long a move that was killed can be finished."""

MOVERS = "reshard:"
"""What the name of whoever holds messages to move them begins with (``lua/leave.lua``)."""

_HOME = __name__.rpartition(".")[0]

TURN = Script("turn", ("count", "settled", "version", "least"), keys=("registry",), home=_HOME)
FENCE = Script("fence", ("version",), home=_HOME)
ROLL = Script("roll", ("queue", "cursor", "limit", "field"), home=_HOME)
LEAVE = Script("leave", ("owner", "hold_ms", "max_bytes", "version"), ("id",), ("message", "lock"), home=_HOME)
ARRIVE = Script(
    "arrive", ("owner", "from", "version"), ("id", "set", "score", "ttl_ms", "slot_ms", "hindrance", "count"),
    ("arriving",), home=_HOME,
)  # fmt: skip
PART = Script(
    "part", ("owner", "proof_ttl", "version"), ("id", "digest"), ("message", "lock", "done", "moved"), home=_HOME
)
SETTLE = Script(
    "settle", ("version",), ("id", "action", "owner"), ("message", "lock", "done", "arriving", "moved"), home=_HOME
)

SCRIPTS = (TURN, FENCE, ROLL, LEAVE, ARRIVE, PART, SETTLE)


class Row(NamedTuple):
    """A message that stands in a set, and what it goes by: its key's field and the types of its values."""

    id: str
    flat: list[bytes]


class Held(NamedTuple):
    """A message that the resharder holds, with all that is to be written elsewhere. Times in milliseconds, as PTTL."""

    id: str
    set: str
    score: str
    ttl: int
    slot_ttl: int
    digest: str
    hindrance: str
    """What holds back its key, as `leave` says it."""
    flat: list[bytes]


class Arrival(NamedTuple):
    """A body that nobody sees yet: the shard that it came from, and who brought it."""

    id: str
    source: int
    owner: str


class ShardDoor(Door):
    """The transitions of a shard, and those that move messages out of it and into it.

    They go by a version of the registry, and are refused where the shard knows of a later one: a mover that was stopped
    for long must not go on by a number of shards that is no more.

    Args:
        version: of the registry; 0, the first, is enough for who only looks.
    """

    def __init__(self, connection: Connection, keys: Keys, version: int = 0) -> None:
        super().__init__(connection, keys)
        self.shards_version = version

    async def fence(self) -> None:
        """From now on it takes messages only of those who know this version of the registry."""
        await self._run(FENCE, (self.shards_version,))

    async def known_version(self) -> int:
        """The version of the registry that the shard knows of."""
        return int(number(await self.command("HGET", self.keys.meta, "shards_version")))

    async def roll(self, queue: str, cursor: str, field: str) -> tuple[str, list[Row]]:
        """A page of a set: (where to go on, its messages)."""
        after, rows = await self._run(ROLL, (queue, cursor, PAGE, field))
        name = field.encode()
        return after.decode(), [
            Row(id_of(id), [name, value, b"_sq_types", types] if field else []) for id, value, types in rows
        ]

    async def leave(self, owner: str, ids: Sequence[str]) -> tuple[list[Held], dict[str, str]]:
        """Hold what waits: (what is held now, and the others: ``busy``, ``later``, ``gone``, ``expired``)."""
        keys = self._keys_of(LEAVE, ids)
        replies = await self._run(
            LEAVE, (owner, round(HOLD * 1000), BYTES, self.shards_version), [(id,) for id in ids], keys
        )
        held: list[Held] = []
        others: dict[str, str] = {}
        for id, (state, *found) in zip(ids, replies, strict=True):
            if state == b"held":
                set, score, ttl, slot_ttl, digest, hindrance, flat = found
                texts = (digest.decode(), hindrance.decode())
                held.append(Held(id, set.decode(), score.decode(), ttl, slot_ttl, *texts, list(flat)))
            else:
                others[id] = state.decode()
        return held, others

    async def arrive(self, owner: str, source: int, former: Keys, held: Sequence[Held]) -> list[bool]:
        """Write bodies that nobody sees yet; False for one that a later mover has brought."""
        rows = [(one.id, one.set, one.score, one.ttl, one.slot_ttl, one.hindrance, len(one.flat) // 2) for one in held]
        tails = [_at_home(one.flat, former, self.keys) for one in held]
        keys = self._keys_of(ARRIVE, [one.id for one in held])
        head = (owner, source, self.shards_version)
        return [bool(new) for new in await self._run(ARRIVE, head, rows, keys, tails)]

    async def part(self, owner: str, held: Sequence[Held]) -> list[str]:
        """Take out what is held and did not change: ``moved``, ``changed`` or ``lost`` for each."""
        keys = self._keys_of(PART, [one.id for one in held])
        replies = await self._run(
            PART, (owner, PROOF, self.shards_version), [(one.id, one.digest) for one in held], keys
        )
        return [reply.decode() for reply in replies]

    async def settle(self, ids: Sequence[str]) -> list[str]:
        """Have bodies that nobody sees be messages: ``entered``, ``known``, ``expired`` or ``settled`` for each."""
        rows, keys = [(id, "enter", "") for id in ids], self._keys_of(SETTLE, ids)
        replies = await self._run(SETTLE, (self.shards_version,), rows, keys)
        return [reply.decode() for reply in replies]

    async def discard(self, arrivals: Sequence[Arrival]) -> None:
        """Have bodies that nobody sees be gone, unless another mover has brought them anew."""
        rows = [(arrival.id, "discard", arrival.owner) for arrival in arrivals]
        keys = self._keys_of(SETTLE, [arrival.id for arrival in arrivals])
        await self._run(SETTLE, (self.shards_version,), rows, keys)

    async def has_moved(self, ids: Sequence[str]) -> list[bool]:
        """For each, whether there is proof that it has left this shard."""
        return [bool(await self.command("EXISTS", self.keys.moved(id))) for id in ids]

    async def arrivals(self) -> AsyncIterator[Arrival]:
        """Bodies that nobody sees yet. Reads the whole database."""
        start = len(self.keys.arriving(""))
        async for keys in self.scan(f"{self.keys.arriving('')}*", kind="hash"):
            for key in keys:
                move = await self.command("HGET", key, "_sq_move")
                if move is not None:
                    *_, owner, source = move.decode().split()
                    yield Arrival(key.decode(errors="surrogateescape")[start:], int(source), owner)


class RegistryDoor(Door):
    """What changes the number of shards that all programs go by."""

    @classmethod
    def of(cls, connection: Connection, name: str) -> "RegistryDoor":
        """That of the sharded queue with this name."""
        return cls(connection, Keys(registry_prefix(name)))

    async def turn(self, count: int, *, settled: int | None = None, least: int = 0) -> bool:
        """Go by this number from now on; or, where that is so, have nothing be moved any more.

        Args:
            count: of shards.
            settled: the version by which all was moved.
            least: the version that shards know of: a registry that fell back behind it, catches up.

        Returns:
            Whether all programs go by this number now.
        """
        head = (count, int(settled is not None), settled or 0, least)
        flat: Any = await self._run(TURN, head, (), [self.keys.registry], house=False)
        return fields_of(flat).get("count") == b"%d" % count


def _at_home(flat: Sequence[bytes], former: Keys, now: Keys) -> list[bytes]:
    """A hash as it is to be in another shard: it has no entry there, and its dedup slot bears another name."""
    words = list(flat)
    slots = f"{former.prefix}:dedup:".encode()
    for at in range(0, len(words), 2):
        name, value = words[at : at + 2]
        if name == b"_sq_entry":
            words[at + 1] = value[:1]
        elif name == b"dedup_key" and value.startswith(slots):
            words[at + 1] = f"{now.prefix}:dedup:".encode() + value.removeprefix(slots)
    return words
