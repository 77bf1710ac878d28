"""Which queues a database has."""

import re
from contextlib import suppress

from streams_queue.connection import Connection
from streams_queue.errors import ConfigurationError
from streams_queue.keys import Keys, name_of_sharded, registry_prefix
from streams_queue.translation import translated

_KEY = re.compile(rb"(.+?):(?:queue:(?:main|retry|scheduled|dlq)|(meta))", re.DOTALL)

_STEP = 1000


async def discover(connection: Connection) -> list[str]:
    """The prefixes of queues that have messages, or that a worker has joined, in order; a sharded queue's name instead
    of its shards'.

    Reads the names of all keys by SCAN, which holds up nobody. Left out are prefixes that no queue of ours may have,
    and those that this user may not look at.

    Raises:
        QueueUnavailable: the server does not answer.
        ConfigurationError: this user may not send SCAN.
    """
    found: set[str] = set()
    with translated():
        for pattern, kind in (("*:queue:*", "zset"), ("*:meta", "hash")):
            async for key in connection.client.scan_iter(pattern, count=_STEP, _type=kind):
                match = _KEY.fullmatch(key)
                if match and (match[2] is None or await _is_joined(connection, key)):
                    found.add(match[1].decode(errors="replace"))
    names = {name for prefix in found if (name := name_of_sharded(prefix)) is not None}
    sharded = {name for name in names if await _is_sharded(connection, name)}
    alone = {prefix for prefix in found if name_of_sharded(prefix) not in sharded and _is_ours(prefix, connection)}
    return sorted(alone | sharded)


async def _is_sharded(connection: Connection, name: str) -> bool:
    with suppress(ConfigurationError), translated():
        return await connection.client.hget(Keys(registry_prefix(name)).registry, "count") is not None
    return False


async def _is_joined(connection: Connection, meta: bytes) -> bool:
    with suppress(ConfigurationError), translated():
        return await connection.client.hget(meta.decode(errors="surrogateescape"), "schema") is not None
    return False


def _is_ours(prefix: str, connection: Connection) -> bool:
    try:
        keys = Keys(prefix)
    except ConfigurationError:
        return False
    return keys.has_hash_tag or not connection.is_cluster
