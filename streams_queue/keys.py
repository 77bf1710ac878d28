"""The name of every key: each is a method or an attribute here, and nowhere else.

``main``, ``retry``, ``dlq``, ``message``, ``lock``, ``slot`` and ``stats`` are documented keys, which other programs
read and write; they never change type or meaning. The rest is the engine's own.
"""

import hashlib
import re

from streams_queue.errors import ConfigurationError, InvalidMessage

_PREFIX = re.compile(r"[A-Za-z0-9_.:{}-]{1,128}")
_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_SHARD = re.compile(r"\{([A-Za-z0-9_.:-]+):(0|[1-9]\d{0,3})\}")
_TAG = re.compile(r"^[^{]*\{[^}]+\}")
RESERVED_IDS = frozenset({"global_lock"})  # P:lock:global_lock is the lock of all old workers, not of a message


def _is(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def valid_id(id: str) -> str:
    """The id itself.

    Raises:
        InvalidMessage: it is not 1 to 128 of the characters ``A-Z a-z 0-9 _ . : -``, or is reserved.
    """
    if not _is(_ID, id):
        raise InvalidMessage(f"message id {id!r:.200} is not 1 to 128 of the characters A-Z a-z 0-9 _ . : -")
    if id in RESERVED_IDS:
        raise InvalidMessage(f"message id {id!r} is reserved: choose another")
    return id


def hash_of_key(field: str, value: bytes) -> str:
    """What stands for the messages whose payload has this value in this field, both as they are stored, in the names of
    keys (SHA-1, which Lua can compute too; not for security).
    """
    return hashlib.sha1(field.encode() + b"=" + value, usedforsecurity=False).hexdigest()


def shard_prefix(name: str, shard: int) -> str:
    """The prefix of one shard's queue. Its hash tag is its own: on Redis Cluster shards spread over the nodes."""
    return f"{{{name}:{shard}}}"


def name_of_sharded(prefix: str) -> str | None:
    """The name of the sharded queue whose shard has this prefix; None where it is no shard's."""
    match = _SHARD.fullmatch(prefix)
    return match[1] if match else None


def number_of_shard(prefix: str) -> int | None:
    """Which of its queue's shards has this prefix; None where it is no shard's."""
    match = _SHARD.fullmatch(prefix)
    return int(match[2]) if match else None


def registry_prefix(name: str) -> str:
    """The prefix of what a sharded queue's shards have in common."""
    return f"{{{name}}}"


def tagged(prefix: str) -> str:
    """The prefix itself where Redis Cluster keeps all its keys on one node; in braces otherwise."""
    return prefix if _TAG.search(prefix) else f"{{{prefix}}}"


class Keys:
    """The keys of the queue with this prefix.

    Raises:
        ConfigurationError: the prefix is empty, longer than 128 characters, or has others than ``A-Z a-z 0-9 _ . : {
        } -``.
    """

    def __init__(self, prefix: str) -> None:
        if not _is(_PREFIX, prefix):
            raise ConfigurationError(
                f"queue prefix {prefix!r:.200} is not 1 to 128 of the characters A-Z a-z 0-9 _ . : {{ }} -"
            )
        self.prefix = prefix
        self.main = f"{prefix}:queue:main"
        self.retry = f"{prefix}:queue:retry"
        self.scheduled = f"{prefix}:queue:scheduled"
        self.dlq = f"{prefix}:queue:dlq"
        self.streams = {"h": f"{prefix}:stream:high", "n": f"{prefix}:stream", "l": f"{prefix}:stream:low"}
        self.stats = f"{prefix}:stats"
        self.meta = f"{prefix}:meta"
        self.lost = f"{prefix}:lost"
        self.lines = {"h": f"{prefix}:line:high", "l": f"{prefix}:line:low"}
        self.bodiless = f"{prefix}:bodiless"
        self.parked = f"{prefix}:parked"
        self.wake = f"{prefix}:wake"
        self.rate = f"{prefix}:rate"
        self.maintainer = f"{prefix}:maintainer"
        self.accepts = f"{prefix}:accept"
        self.global_lock = f"{prefix}:lock:global_lock"
        self.registry = f"{prefix}:shards"
        self.resharder = f"{prefix}:resharder"
        self.house = [
            self.main, self.retry, self.scheduled, self.dlq, *self.streams.values(), self.stats, self.meta, self.lost,
            *self.lines.values(), self.bodiless, self.parked, self.wake,
        ]  # fmt: skip
        """What every script receives first, in the order that ``lua/include/house.lua`` names."""

    @property
    def has_hash_tag(self) -> bool:
        """Whether Redis Cluster keeps all keys of this prefix on one node."""
        return tagged(self.prefix) == self.prefix

    def message(self, id: str) -> str:
        """The body: a hash, one field per key."""
        return f"{self.prefix}:msg:{id}"

    def lock(self, id: str) -> str:
        """The lease made visible: who works on the message."""
        return f"{self.prefix}:lock:{id}"

    def done(self, id: str) -> str:
        """What is left of a finished message."""
        return f"{self.prefix}:done:{id}"

    def arriving(self, id: str) -> str:
        """The body of a message that comes from another shard, until it has left that."""
        return f"{self.prefix}:arriving:{id}"

    def moved(self, id: str) -> str:
        """The proof that a message has left for another shard."""
        return f"{self.prefix}:moved:{id}"

    def slot(self, unique_key: str) -> str:
        """The dedup slot: MD5 of the key in UTF-8, as the documented queue computes it (not for security)."""
        digest = hashlib.md5(unique_key.encode(), usedforsecurity=False).hexdigest()
        return f"{self.prefix}:dedup:{digest}"

    def user(self, user_id: str) -> str:
        """A user's unfinished messages (SHA-1, which Lua can compute too; not for security)."""
        return f"{self.prefix}:user:{hashlib.sha1(user_id.encode(), usedforsecurity=False).hexdigest()}"

    def turns(self, key: str) -> str:
        """Messages of one key (its `hash_of_key`) that stand in main, where so many of them may run at once."""
        return f"{self.prefix}:key:{key}"

    def parked_of(self, key: str) -> str:
        """Those of one key that are parked."""
        return f"{self.prefix}:parked:{key}"

    def pause(self, key: str) -> str:
        """Stands while a key is paused."""
        return f"{self.prefix}:pause:{key}"

    def rate_of(self, key: str) -> str:
        """The rate at which messages of a key begin."""
        return f"{self.prefix}:rate:{key}"

    def accepts_of(self, key: str) -> str:
        """The rate at which messages of a key are accepted."""
        return f"{self.prefix}:accept:{key}"

    def channel(self, token: str) -> str:
        """The channel on which one listening process hears of its messages."""
        return f"{self.prefix}:events:{token}"
