"""The server that the demo plays on, and a queue there of which nothing stays."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

from streams_queue import ConfigurationError, Queue, embedded
from streams_queue.door import batches
from streams_queue.settings import Settings


def server_url() -> str:
    """The server that the environment names, or an embedded one, which lives as long as this process.

    Raises:
        ConfigurationError: a plain Redis script could not reach it.
    """
    named = any(os.environ.get(name) for name in ("STREAMS_QUEUE_URL", "REDIS_URL"))
    settings = Settings.resolve(None if named else "embedded://")
    kind = settings.address.kind
    if kind == "embedded":
        return f"unix://{quote(embedded.socket_path(settings.address.path))}"
    if kind in ("single", "unix"):
        return settings.url
    raise ConfigurationError(
        f"{settings.display}: the demo runs a plain Redis script, which needs redis://, rediss:// or unix://; "
        "without a URL the demo starts a server of its own"
    )


@asynccontextmanager
async def temporary_queue(prefix: str) -> AsyncIterator[Queue[dict[str, Any]]]:
    """A queue whose keys are removed in the end."""
    queue: Queue[dict[str, Any]] = Queue(prefix)
    async with queue:
        try:
            yield queue
        finally:
            client = queue.connection.client
            for keys in batches([key async for key in client.scan_iter(match=f"{prefix}:*", count=1000)]):
                await client.delete(*keys)
