"""Which queues a database has."""

import re

from streams_queue.connection import Connection
from streams_queue.keys import Keys
from streams_queue_migrations.door import Door

_SET = re.compile(r"(.+):queue:(?:main|retry|dlq)")


async def discover(connection: Connection) -> list[str]:
    """The prefixes that have a ``queue:main``, ``queue:retry`` or ``queue:dlq``, in order.

    Reads the whole database by SCAN, which holds up nobody. An empty queue has no keys, and is not found.

    Raises:
        QueueUnavailable: the server does not answer.
        ConfigurationError: the prefix of a queue found has characters that no queue of ours may have.
    """
    found: set[str] = set()
    door = Door(connection, Keys("any"))
    async for keys in door.scan("*:queue:*"):
        matches = (_SET.fullmatch(key.decode(errors="surrogateescape")) for key in keys)
        found |= {match[1] for match in matches if match}
    return [Keys(prefix).prefix for prefix in sorted(found)]
