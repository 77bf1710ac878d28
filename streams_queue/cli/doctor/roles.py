"""Who does what with a queue, and the rights that each needs: taken from the scripts, not listed by hand."""

from collections.abc import Sequence
from enum import StrEnum

from streams_queue import scripts
from streams_queue.cli.doctor.commands import commands_in
from streams_queue.keys import registry_prefix
from streams_queue.scripts import SCRIPTS, Script
from streams_queue_migrations import door, shard_door


class Role(StrEnum):
    """Whom a server's user stands for.

    A producer puts messages in, follows them, reads their results and takes them out. A worker does what workers do,
    and its handlers what producers do. A maintainer does what the command line does, `worker` left out. A viewer looks.
    """

    PRODUCER = "producer"
    WORKER = "worker"
    MAINTAINER = "maintainer"
    VIEWER = "viewer"


READS = frozenset({
    "EXISTS", "GET", "HGET", "HGETALL", "HKEYS", "HMGET", "MGET", "TIME", "TTL", "TYPE", "XINFO", "XLEN", "XPENDING",
    "XRANGE", "ZCARD", "ZCOUNT", "ZMSCORE", "ZRANGE", "ZRANGEBYSCORE", "ZRANK", "ZREVRANGE", "ZREVRANGEBYSCORE",
    "ZSCORE",
})  # fmt: skip
"""Commands that write nothing. A script with another one is not for viewers."""

ALL_SCRIPTS = (*SCRIPTS, *door.SCRIPTS, *shard_door.SCRIPTS)
_LOOKS = tuple(script for script in ALL_SCRIPTS if commands_in(script) <= READS)
_OF_PEOPLE = frozenset({
    scripts.EXAMINE, scripts.PAGE, scripts.REQUEUE, scripts.AMEND, scripts.OF_USER, scripts.WORKERS, scripts.PARKED,
})  # fmt: skip

SCRIPTS_OF: dict[Role, tuple[Script, ...]] = {
    Role.PRODUCER: (
        scripts.ENQUEUE, scripts.POSITION, scripts.READ, scripts.UPDATE, scripts.REMOVE, scripts.WATCH, scripts.STATS,
        scripts.FIRST_OF_USER, scripts.PRIORITISE, scripts.KNOWN, scripts.REGISTER,
    ),
    Role.WORKER: tuple(script for script in SCRIPTS if script not in _OF_PEOPLE),
    Role.MAINTAINER: (
        *_LOOKS, scripts.ENQUEUE, scripts.UPDATE, scripts.REMOVE, scripts.REQUEUE, scripts.AMEND,
        scripts.PRIORITISE, scripts.LIMIT, scripts.LOCK, scripts.UNLOCK, *door.SCRIPTS, *shard_door.SCRIPTS,
    ),
    Role.VIEWER: _LOOKS,
}  # fmt: skip

_TO_CONNECT = frozenset({"PING", "COMMAND", "SELECT", "EVALSHA", "EVAL", "HGET"})
_TO_FIND_NODES = frozenset({"CLUSTER|SLOTS", "ASKING"})
"""On a Cluster: who has the slot, and going where it is on its way to."""
_TO_WAIT = frozenset({"SUBSCRIBE", "UNSUBSCRIBE", "WAIT"})

_BESIDE: dict[Role, frozenset[str]] = {
    Role.PRODUCER: _TO_WAIT,
    Role.WORKER: _TO_WAIT | {"INFO"},
    Role.MAINTAINER: frozenset({"INFO", "MEMORY|USAGE", "SCAN", "ZREVRANGE"}),
    Role.VIEWER: frozenset({"ZREVRANGE"}),
}
"""What Python sends beside the scripts, and what no script of the role has."""

PASSWORD = "#SHA256-OF-THE-PASSWORD"  # noqa: S105  (what a person replaces: as it stands, the server refuses it)


def commands_of(role: Role, *, on_cluster: bool = False) -> frozenset[str]:
    """The commands that the role cannot do without."""
    nodes = _TO_FIND_NODES if on_cluster else frozenset[str]()
    return _TO_CONNECT.union(nodes, _BESIDE[role], *(commands_in(script) for script in SCRIPTS_OF[role]))


def of_shards(name: str) -> list[str]:
    """What prefixes of a sharded queue look like to a server: of what its shards have in common, and of any shard."""
    return [registry_prefix(name), f"{{{name}:[0-9]*}}"]


def rule(role: Role, user: str, prefixes: Sequence[str], *, on_cluster: bool = False) -> list[str]:
    """The command that makes such a user of these queues, in its words; the password is for a person to fill in.

    The same on all servers: Redis 7's read-only key patterns would deny a viewer the scripts, whose keys a server takes
    for written.
    """
    return [
        "ACL", "SETUSER", user, "reset", "on", PASSWORD, *(f"~{prefix}:*" for prefix in prefixes), "resetchannels",
        *(f"&{prefix}:*" for prefix in prefixes),
        *(f"+{command.lower()}" for command in sorted(commands_of(role, on_cluster=on_cluster))),
    ]  # fmt: skip
