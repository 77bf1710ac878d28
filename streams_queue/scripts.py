"""The Lua scripts: what each takes, and its text.

A script's contract stands in its header (``lua/*.lua``) and, for the arguments, in its `Script` here; a test compares
the two.
"""

import hashlib
from functools import cache
from importlib.resources import files
from typing import NamedTuple


class Script(NamedTuple):
    """What one Lua file takes: names of its leading arguments, of each message's, and of each message's keys."""

    name: str
    head: tuple[str, ...] = ()
    each: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    idempotent: bool = True
    """Whether it may be sent again when a reply did not come."""
    home: str = "streams_queue"
    """The package whose ``lua/`` has its file. What files include is the engine's, wherever they stand."""

    @property
    def source(self) -> str:
        """Its text, with what it includes put in place."""
        return source(self.name, self.home)

    @property
    def sha(self) -> str:
        """What the server calls it."""
        return sha(self.name, self.home)


ENQUEUE = Script(
    "enqueue", ("dedup_expiry", "index_users", "replicas", "in_order", "anew", "shards_version"),
    ("id", "priority", "delay", "at", "ttl", "listener", "deduplicated", "count"), ("message", "done", "slot"),
)  # fmt: skip
CLAIM = Script("claim", ("consumer", "lock_ms", "max_messages", "max_bytes", "alone"), idempotent=False)
ADOPT = Script("adopt", ("consumer", "max_messages"), ("entry",), idempotent=False)
RENEW = Script("renew", ("consumer", "lock_ms"), ("id", "entry", "delivery"), ("message", "lock"))
COMPLETE = Script(
    "complete", ("consumer", "result_ttl"), ("id", "entry", "delivery", "result"), ("message", "lock", "done")
)
RETRY = Script(
    "retry", ("consumer", "max_retries", "dead_letter_ttl", "dedup_expiry"),
    ("id", "entry", "delivery", "delay", "reason", "error", "key"), ("message", "lock", "done"),
)  # fmt: skip
DEAD_LETTER = Script(
    "dead_letter", ("consumer", "dead_letter_ttl"), ("id", "entry", "delivery", "reason", "error"),
    ("message", "lock", "done"),
)  # fmt: skip
RELEASE = Script("release", ("consumer",), ("id", "entry", "delivery"), ("message", "lock"))
SWEEP = Script("sweep", ("consumer", "max_deliveries", "dead_letter_ttl", "limit"), keys=("maintainer",))
PROMOTE = Script("promote", ("limit",))
REMOVE = Script("remove", ("only_dead",), ("id",), ("message", "lock", "done"))
REQUEUE = Script("requeue", ("dedup_expiry",), ("id",), ("message", "lock", "done"))
PRIORITISE = Script("prioritise", ("priority",), ("id",), ("message",))
RECONCILE = Script("reconcile", ("cursor", "limit", "adopted_ttl", "dedup_expiry"))
UPKEEP = Script("upkeep", ("consumer", "turn_ms", "limit", "adopted_ttl", "dedup_expiry"), keys=("maintainer",))
JOIN = Script("join", ("consumer", "lease_ms", "schema"))
PRUNE = Script("prune", ("consumer", "idle_ms"))
UPDATE = Script("update", ("id", "types"), keys=("message",), idempotent=True)
READ = Script("read", (), ("id",), ("message",))
EXAMINE = Script("examine", (), ("id",), ("message", "lock", "done"))
PAGE = Script("page", ("set", "score", "id", "newest_first", "limit"))
STATS = Script("stats")
POSITION = Script("position", (), ("id",))
WATCH = Script("watch", ("channel",), ("id",), ("message", "done"))
FIRST_OF_USER = Script("first_of_user", keys=("user",))
OF_USER = Script("of_user", ("limit", "first"), keys=("user",))
OLDEST = Script("oldest")
WORKERS = Script("workers", ("limit",))
AMEND = Script("amend", ("id", "died", "removed"), keys=("message",))
LIMIT = Script("limit")
LOCK = Script("lock", ("owner", "ttl_ms", "shared"), keys=("lock",), idempotent=False)
UNLOCK = Script("unlock", ("owner",), keys=("lock",))
KNOWN = Script("known", ("id", "deduplicated"), keys=("message", "done", "slot"))
PARKED = Script("parked", ("limit",))
REGISTER = Script("register", ("count", "key", "servers", "id"), keys=("registry",))

SCRIPTS = (
    ENQUEUE, CLAIM, ADOPT, RENEW, COMPLETE, RETRY, DEAD_LETTER, RELEASE, SWEEP, PROMOTE, REMOVE, REQUEUE,
    PRIORITISE, RECONCILE,
    UPKEEP, JOIN, PRUNE, UPDATE, READ, EXAMINE, PAGE, STATS, POSITION, WATCH, FIRST_OF_USER, OF_USER, OLDEST, WORKERS,
    AMEND, LIMIT, LOCK, UNLOCK, KNOWN, REGISTER, PARKED,
)  # fmt: skip


@cache
def source(name: str, home: str = "streams_queue") -> str:
    """The text of a script, with what it includes put in place."""
    includes = files("streams_queue") / "lua" / "include"
    lines = (files(home) / "lua" / f"{name}.lua").read_text().splitlines()
    return "\n".join(
        (includes / f"{line.split()[2]}.lua").read_text() if line.startswith("--- include ") else line for line in lines
    )


@cache
def sha(name: str, home: str = "streams_queue") -> str:
    """What the server calls a script."""
    return hashlib.sha1(source(name, home).encode(), usedforsecurity=False).hexdigest()
