"""Which queues a database has."""

import re

from streams_queue.connection import Connection
from streams_queue.keys import Keys
from streams_queue_migrations.door import Door

_SET = re.compile(r"(.+):queue:(?:main|retry|scheduled|dlq)", re.DOTALL)


async def discover(connection: Connection) -> list[str]:
    """The prefixes that have a ``queue:main``, ``queue:retry``, ``queue:scheduled`` or ``queue:dlq``, in order.

    Reads the whole database by SCAN, which holds up nobody. An empty queue has no keys, and is not found. What is found
    may be another program's, or have a prefix that no queue of ours may have: opening it says so.

    Raises:
        QueueUnavailable: the server does not answer.
    """
    found: set[str] = set()
    door = Door(connection, Keys("any"))
    async for keys in door.scan("*:queue:*"):
        matches = (_SET.fullmatch(key.decode(errors="surrogateescape")) for key in keys)
        found |= {match[1] for match in matches if match}
    return sorted(found)
