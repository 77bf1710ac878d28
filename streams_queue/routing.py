"""Which shard a message belongs to: arithmetic alone, the same in every process and version.

The hash of a key is the first eight digits of its SHA-1, which any language can compute (not for security). An id that
a sharded queue makes ends with it, ``<UUID4>.<hash>``, so the id alone says where its message is, whatever the number
of shards.
"""

import hashlib
import re

from streams_queue.errors import InvalidMessage

MOST_SHARDS = 1024

_MADE = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\.([0-9a-f]{8})")


def hash_of(key: bytes) -> int:
    """A number from 0 to 2**32 - 1."""
    return int(hashlib.sha1(key, usedforsecurity=False).hexdigest()[:8], 16)


def jump(hash: int, shards: int) -> int:
    """The shard, from 0 on, of so many. O(log shards).

    The jump consistent hash of Lamping and Veach ("A Fast, Minimal Memory, Consistent Hash Algorithm", 2014): each
    shard gets as many hashes as any other, and one shard more takes its part from all of them and moves nothing else.
    """
    here, next = -1, 0
    while next < shards:
        here = next
        hash = (hash * 2862933555777941757 + 1) & (1 << 64) - 1
        next = int((here + 1) * ((1 << 31) / ((hash >> 33) + 1)))
    return here


def made_id(uuid: str, key: bytes | None) -> str:
    """An id that says where its message is: by its key, or by itself where there is none."""
    return f"{uuid}.{hash_of(uuid.encode() if key is None else key):08x}"


def hash_in(id: str) -> int | None:
    """The hash that an id carries; None in one of a caller's own."""
    match = _MADE.fullmatch(id)
    return int(match[1], 16) if match else None


def hash_for(id: str, key: bytes | None) -> int:
    """The hash that a message goes by: its key's, or its id's where it has none.

    Raises:
        InvalidMessage: the id is one that a sharded queue made for another key: its message would not be found.
    """
    carried = hash_in(id)
    if key is None:
        return hash_of(id.encode()) if carried is None else carried
    hash = hash_of(key)
    if carried not in {None, hash}:
        raise InvalidMessage(
            f"message id {id!r} was made for a message with another key, whose hash it ends with: leave the id out, or "
            "give one of your own"
        )
    return hash
