"""What the user of this connection may do: every command asked for by name, every script run, on scratch keys."""

import math
import secrets
import shlex
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

from streams_queue import scripts
from streams_queue.answers import Failure, NewMessage, Place
from streams_queue.cli.doctor.check import Check, Verdict
from streams_queue.cli.doctor.commands import commands_in
from streams_queue.cli.doctor.roles import READS, SCRIPTS_OF, Role, commands_of
from streams_queue.connection import Connection
from streams_queue.door import NotJoined
from streams_queue.errors import ConfigurationError
from streams_queue.keys import Keys, name_of_sharded
from streams_queue.limits import Limits
from streams_queue.model import Lease
from streams_queue.scripts import Script
from streams_queue.translation import translated
from streams_queue_migrations import door, shard_door
from streams_queue_migrations.door import NO_ENTRIES, START, Door
from streams_queue_migrations.shard_door import MOVERS, Arrival, Held, RegistryDoor, ShardDoor

_CONSUMER = "doctor"
_IDS = ("taken", "finished", "retried", "dead", "released")
_SECONDS = 60
_KEPT = "a key"
_FEW = 6
"""Names of missing permissions that a role is told with, at most, where another role is nearer."""

_SUBCOMMANDS = {
    "XGROUP": (("CREATE", _KEPT, "x", "x"), ("CREATECONSUMER", _KEPT, "x", "x"), ("DELCONSUMER", _KEPT, "x", "x")),
    "XINFO": (("GROUPS", _KEPT), ("CONSUMERS", _KEPT, "x")),
    "MEMORY|USAGE": ((_KEPT,),),
    "CLUSTER|SLOTS": ((),),
}
"""How commands are asked for that are allowed one by one below their names."""

_LISTENS = frozenset({"SUBSCRIBE", "UNSUBSCRIBE"})
_SENT_ANYWAY = frozenset({"PING", "COMMAND"})
_LEAVES_NOTHING = frozenset({
    "ASKING", "CLUSTER|SLOTS", "EVAL", "EVALSHA", "INFO", "MEMORY|USAGE", "PUBLISH", "SCAN", "SELECT", "WAIT",
})  # fmt: skip


def scratch_of(prefix: str) -> Keys | None:
    """Keys for trying things out, which belong to nobody and which whoever may use the queue's may use, too.

    No key of a queue begins with ``P:doctor:``, and nobody makes up the same name. None where the prefix is too long
    for it.
    """
    try:
        return Keys(f"{prefix}:doctor:{secrets.token_hex(8)}")
    except ConfigurationError:
        return None


async def look_at_access(connection: Connection, prefix: str, wanted: Role | None) -> list[Check]:
    """Whether this user may do what a role has to, or any role where none is named.

    Raises:
        QueueUnavailable: the server does not answer, or takes no writes now.
    """
    keys = scratch_of(prefix)
    if keys is None:
        reason = "The prefix is too long for a scratch one below it, so no script was tried."
        return [Check("access", Verdict.UNKNOWN, reason)]
    tried = _Trial(connection, keys)
    user = connection.settings.address.username or "default"
    try:
        await tried.run()
    finally:
        await tried.clear()
    return [_verdict(tried, user, prefix, wanted)]


class _Trial:
    """What the user was denied, by the names that `ACL SETUSER` knows: commands, ``~keys`` and ``&channels``."""

    def __init__(self, connection: Connection, keys: Keys) -> None:
        self._connection = connection
        self._keys = keys
        self._door = Door(connection, keys)
        self._may_write = True
        self.denied: set[str] = set()
        self.stopped: dict[str, str] = {}
        """Scripts that did not run to their ends, and why."""
        self.ran = 0

    async def run(self) -> None:
        """Ask for everything. Where what is written could not be taken away again, nothing is."""
        await self._ask_for("DEL")
        self._may_write = not self.denied
        wanted = {command for role in Role for command in self.needed(role)} - _SENT_ANYWAY - _LISTENS
        await self._ask_for(*sorted(wanted if self._may_write else wanted & (READS | _LEAVES_NOTHING)))
        await self._listen()
        for script, step in self._steps():
            if self._may_write or commands_in(script) <= READS:
                try:
                    await step()
                    self.ran += 1
                except (ConfigurationError, NotJoined) as error:  # the latter where `join` was denied before
                    self.stopped[script.name] = str(error)

    def needed(self, role: Role) -> frozenset[str]:
        """What the role needs here."""
        return commands_of(role, on_cluster=self._connection.is_cluster)

    async def clear(self) -> None:
        """Leave nothing behind."""
        if self._may_write:
            keys = self._keys
            of_ids = (keys.message, keys.lock, keys.done, keys.arriving, keys.moved)
            await self._door.command(
                "DEL", *keys.house, keys.maintainer, keys.registry, keys.user("x"), keys.slot("x"), keys.message(""),
                *(key(id) for id in (*_IDS, "x") for key in of_ids),
            )  # fmt: skip

    async def _ask_for(self, *commands: str) -> None:
        names = [command.partition("|")[0] for command in commands]
        rows = await self._connection.ask("COMMAND INFO", *names, near=self._keys.main)
        for command, row in zip(commands, rows, strict=True):
            for words in self._forms(command, row or ["", 2, [], 0]):
                refusal = await self._connection.refusal(*words, near=self._keys.main)
                if refusal is not None:
                    self.denied.add(_named(refusal, words, self._keys))

    def _forms(self, command: str, row: Sequence[Any]) -> Iterator[list[str]]:
        """The command with as many words as it wants, a scratch key where a key belongs. What it does is no matter.

        `row` is what COMMAND INFO says of it: name, number of words, flags, place of the first key.
        """
        name = command.split("|")
        key = self._keys.message("")
        if command in _SUBCOMMANDS:
            for rest in _SUBCOMMANDS[command]:
                yield [*name, *(key if word is _KEPT else word for word in rest)]
        elif command == "PUBLISH":
            yield [command, self._keys.channel("x"), "x"]
        elif command == "INFO":
            yield [command, "server"]
        else:
            yield [command, *(key if place == row[3] else "x" for place in range(1, abs(row[1])))]

    async def _listen(self) -> None:
        reader = self._connection.reader(1.0)
        name = self._keys.channel("x")
        sent = "SUBSCRIBE"
        try:
            with translated():
                async with reader.pubsub() as channel:
                    await channel.subscribe(name)
                    await channel.get_message(timeout=1.0)
                    sent = "UNSUBSCRIBE"
                    await channel.unsubscribe(name)
                    await channel.get_message(timeout=1.0)
        except ConfigurationError as error:
            self.denied.add(_named(str(error), [sent], self._keys))
        finally:
            await self._connection.drop(reader)

    def _steps(self) -> Iterator[tuple[Script, Callable[[], Awaitable[Any]]]]:
        """Every script once, in an order in which each finds something to do."""
        at, keys, names = self._door, self._keys, scripts
        new = [
            NewMessage(id, "normal", 0.0, _SECONDS, keys.slot("x") if id == "dead" else None, [b"user_id", b"x"])
            for id in _IDS
        ]
        limits = {"dead_letter_ttl": _SECONDS, "dedup_expiry": _SECONDS}

        async def taken(act: Callable[[Lease], Awaitable[Any]]) -> None:
            claimed = await at.claim(_CONSUMER, 1)
            await act(claimed.deliveries[0].lease if claimed.deliveries else Lease("x", "n0-1", "1"))

        def failed(lease: Lease) -> list[Failure]:
            return [Failure(lease, 0.0, "error", "tried out")]

        yield names.JOIN, lambda: at.join(_CONSUMER, 30.0)
        yield names.ENQUEUE, lambda: at.enqueue(new, dedup_expiry=_SECONDS, index_users=True)
        yield names.CLAIM, lambda: at.claim(_CONSUMER, 1)
        yield names.ADOPT, lambda: at.adopt(_CONSUMER, ["n0-1"], 1)
        yield names.RENEW, lambda: taken(lambda lease: at.renew(_CONSUMER, [lease]))
        yield names.COMPLETE, lambda: taken(lambda lease: at.complete(_CONSUMER, [(lease, b"1")], result_ttl=1))
        yield names.RETRY, lambda: taken(lambda lease: at.retry(_CONSUMER, failed(lease), max_retries=9, **limits))
        yield (
            names.DEAD_LETTER,
            lambda: taken(lambda lease: at.dead_letter(_CONSUMER, failed(lease), dead_letter_ttl=_SECONDS)),
        )
        yield names.PROMOTE, at.promote
        yield names.PRIORITISE, lambda: at.prioritise(_IDS, "high")
        yield names.RELEASE, lambda: taken(lambda lease: at.release(_CONSUMER, [lease]))
        yield names.REQUEUE, lambda: at.requeue(_IDS, dedup_expiry=_SECONDS)
        yield names.LOCK, lambda: at.lock(keys.maintainer, _CONSUMER, 1.0, shared=True)
        yield (
            names.UPKEEP,
            lambda: at.upkeep(_CONSUMER, 1.0, adopted_ttl=_SECONDS, dedup_expiry=_SECONDS),
        )
        yield names.SWEEP, lambda: at.sweep(max_deliveries=3, dead_letter_ttl=_SECONDS, maintainer=_CONSUMER)
        yield names.UNLOCK, lambda: at.unlock(keys.maintainer, _CONSUMER)
        yield names.RECONCILE, lambda: at.reconcile(START, adopted_ttl=_SECONDS, dedup_expiry=_SECONDS)
        yield names.UPDATE, lambda: at.update("released", [b"x", b"x"], b"")
        yield names.LIMIT, lambda: at.limit(Limits())
        yield names.KNOWN, lambda: at.known("x", None)
        yield names.REGISTER, lambda: at.register("1", "", 1, "x")
        yield names.READ, lambda: at.read(_IDS)
        yield names.EXAMINE, lambda: at.examine(_IDS)
        yield names.PAGE, lambda: at.page("main", Place("", -math.inf), 1)
        yield names.STATS, at.stats
        yield names.POSITION, lambda: at.positions(_IDS)
        yield names.WATCH, lambda: at.watch(keys.channel("x"), _IDS)
        yield names.FIRST_OF_USER, lambda: at.first_of_user("x")
        yield names.OF_USER, lambda: at.of_user("x", 1)
        yield names.OLDEST, at.oldest
        yield names.WORKERS, lambda: at.workers(1)
        yield names.PARKED, lambda: at.parked(1)
        yield names.AMEND, lambda: at.amend("dead", 0.0, [b"x", b"x"], [])
        yield from self._moves()
        yield from self._reshards()
        yield names.REMOVE, lambda: at.remove(_IDS)
        yield names.PRUNE, lambda: at.prune(_CONSUMER, 0.0)
        # Its method goes on to read the names of all keys of the database.
        yield door.DISMANTLE, lambda: at._run(door.DISMANTLE, (), (), [keys.maintainer])

    def _moves(self) -> Iterator[tuple[Script, Callable[[], Awaitable[Any]]]]:
        """Those of a migration, but for the last, which leaves nothing."""
        at = self._door
        yield door.LOOK_AT, lambda: at.look_at("main", START, NO_ENTRIES, samples=1, texts=True)
        yield door.STRAYS, lambda: at.strays(list(_IDS))
        yield door.MARK, lambda: at.mark(_CONSUMER, 1.0, "take")
        yield door.PREPARE, lambda: at.prepare(index_users=False)
        yield door.RETIME, at.retime
        yield door.ENTER, lambda: at.enter(begins=True, adopted_ttl=_SECONDS, dedup_expiry=_SECONDS)
        yield door.KEEP, lambda: at.keep("dlq", START, adopted_ttl=_SECONDS, dead_letter_ttl=_SECONDS)
        yield door.DOOMED, lambda: at.doomed(grace=0.0)
        yield door.SET_ASIDE, lambda: at.set_aside(["x"], kept_for=_SECONDS)
        yield door.TIDY, lambda: at.tidy("n", "-")
        yield door.CONCLUDE, lambda: at.conclude(b"{}")
        yield door.STRIP, lambda: at.strip("main", START)

    def _reshards(self) -> Iterator[tuple[Script, Callable[[], Awaitable[Any]]]]:
        """Those that change the number of shards."""
        at, owner = ShardDoor(self._connection, self._keys), f"{MOVERS}{_CONSUMER}"
        held = [Held("x", "main", "1", -1, -2, "", "", [b"timestamp", b"1", b"_sq_entry", b"n"])]
        yield shard_door.TURN, lambda: RegistryDoor(self._connection, self._keys).turn(1)
        yield shard_door.FENCE, at.fence
        yield shard_door.ROLL, lambda: at.roll("main", START, "user_id")
        yield shard_door.LEAVE, lambda: at.leave(owner, ["x"])
        yield shard_door.ARRIVE, lambda: at.arrive(owner, 0, self._keys, held)
        yield shard_door.PART, lambda: at.part(owner, held)
        yield shard_door.SETTLE, lambda: at.discard([Arrival("x", 0, owner)])


def _named(refusal: str, words: list[str], keys: Keys) -> str:
    """What was denied. The texts differ from server to server: see tests/cli/test_doctor_access.py."""
    queue = keys.prefix.partition(":doctor:")[0]
    if "channel" in refusal:
        return f"&{queue}:*"
    if "access" in refusal and "key" in refusal:
        return f"~{queue}:*"
    return "|".join(words[:2]) if words[0] in {"XGROUP", "XINFO", "MEMORY", "CLUSTER"} else words[0]


def _lacks(tried: _Trial, role: Role) -> list[str]:
    """What the role cannot do without and was denied."""
    needed = tried.needed(role)
    return sorted(
        name for name in tried.denied if name[0] in "~&" or name in needed or name.partition("|")[0] in needed
    )


def _verdict(tried: _Trial, user: str, prefix: str, wanted: Role | None) -> Check:
    lacking = {role: lacks for role in Role if (lacks := _lacks(tried, role))}
    if wanted is not None:
        lacking = {role: lacks for role, lacks in lacking.items() if role is wanted}
    if not lacking:
        return _not_lacking(tried, user, wanted)
    few = {role: names for role, names in lacking.items() if len(names) <= _FEW}
    told = few or dict(sorted(lacking.items(), key=lambda item: len(item[1]))[:1])
    needs = "; ".join(f"a {role} needs {', '.join(names)}" for role, names in told.items())
    missing = sorted({name for names in told.values() for name in names})
    most = max(told, key=lambda role: len(told[role]))
    remedy = f"redis-cli ACL SETUSER {_allowing(user, missing)}; all of the rule: {_printing(most, user, prefix)}"
    fits = [] if wanted else [role.value for role in Role if role not in lacking]
    if not fits:
        return Check("access", Verdict.DANGER, f"User {user} lacks permissions: {needs}.", remedy)
    reason = f"User {user} may do what a {' or a '.join(fits)} does, not more: {needs}."
    return Check("access", Verdict.WARNING, reason, f"{remedy}; or say what the user is meant for: --role {fits[-1]}")


def _not_lacking(tried: _Trial, user: str, wanted: Role | None) -> Check:
    stopped = [
        f"{script.name} ({tried.stopped[script.name]})"
        for role in ([wanted] if wanted else Role)
        for script in SCRIPTS_OF[role]
        if script.name in tried.stopped
    ]
    if stopped:
        reason = f"User {user} could not run {stopped[0]}, though no command was denied."
        return Check("access", Verdict.UNKNOWN, reason)
    whom = f"a {wanted}" if wanted else "anybody"
    reason = f"User {user} may do what {whom} has to: {tried.ran} scripts were run on scratch keys, now gone."
    return Check("access", Verdict.OK, reason)


def _allowing(user: str, missing: list[str]) -> str:
    return shlex.join([user, *(name if name[0] in "~&" else f"+{name.lower()}" for name in missing)])


def _printing(role: Role, user: str, prefix: str) -> str:
    name = name_of_sharded(prefix)
    queue = ["--prefix", prefix] if name is None else ["--prefix", name, "--sharded"]
    return shlex.join(["streams-queue", "doctor", "--acl", role, "--user", user, *queue])
