"""The queue that bears a name, whether it has shards or not: for the command line, the dashboard and the exporter."""

from collections.abc import Mapping, Sequence
from typing import Any

from streams_queue.connection import Connection
from streams_queue.errors import ConfigurationError
from streams_queue.keys import Keys, name_of_sharded, number_of_shard
from streams_queue.limits import Limits
from streams_queue.model import Receipt
from streams_queue.queue import Queue
from streams_queue.registry import OutOfOrder, Registry
from streams_queue.settings import Settings
from streams_queue.sharding import ShardedQueue


class NamedQueue(ShardedQueue[dict[str, Any]]):
    """The queue that bears a name, for who looks at it from outside: with shards where its server knows of some.

    One without shards is on the first server, one shard alone on its own.
    """

    def __init__(self, prefix: str, *, url: str | Sequence[str] | None = None) -> None:
        super().__init__(prefix, shards=None, url=url)
        self._name = self.keys
        self._whole: str | None = None
        """The queue whose shard this one is."""

    def _check_prefix(self) -> None:
        """On Redis Cluster it gets a hash tag when it is open, if it has no shards."""

    async def _find_shards(self) -> None:
        self.keys = self._name
        registry = None if self.keys.has_hash_tag else await self._registry(self.keys.prefix)
        if registry is None:
            await self._refuse_registry()
            self.shards, self.key = (), None
            self.keys = Keys(self.settings.prefix(self.keys.prefix))
            self.use(await self._own_connection())
        else:
            self.key = registry.key
            registry.require(self.keys.prefix, registry.shards, self.key, len(self.servers))
            await self._use_shards(registry)

    async def _refuse_registry(self) -> None:
        prefix = self.keys.prefix
        if prefix[0] == "{" and prefix[-1] == "}" and await self._registry(prefix[1:-1]) is not None:
            raise ConfigurationError(
                f"{prefix!r} has what the shards of queue {prefix[1:-1]!r} have in common, and no messages: write "
                f"{prefix[1:-1]!r}"
            )

    async def _own_connection(self) -> Connection:
        """To the server that has this queue: where it is one shard of another, not always the first.

        Raises:
            ConfigurationError: it is on a server that was not named.
        """
        name, number = name_of_sharded(self.keys.prefix), number_of_shard(self.keys.prefix)
        registry = None if name is None else await self._registry(name)
        if name is None or number is None or registry is None:
            return self.connection
        self._whole = name
        if number % registry.servers == 0:
            return self.connection
        registry.require(name, registry.shards, registry.key, len(self.servers))
        await self.connection.close()
        connection = Connection(self.servers[number % len(self.servers)])
        await connection.open()
        return connection

    async def _registry(self, name: str) -> Registry | None:
        try:
            return await Registry.read(self.connection, name)
        except OutOfOrder:
            raise
        except ConfigurationError:  # who may not look at it, or finds another program's key, has no sharded queue
            return None

    async def enqueue(self, payload: Mapping[str, Any], **how: Any) -> Receipt:
        """As `Queue.enqueue`.

        Raises:
            ConfigurationError: this is one shard of a queue, which says itself where its messages belong.
        """
        self._refuse_one_shard()
        return await (super().enqueue(payload, **how) if self.shards else Queue.enqueue(self, payload, **how))

    async def enqueue_many(self, payloads: Sequence[Mapping[str, Any]], **how: Any) -> list[Receipt]:
        """As `Queue.enqueue_many`.

        Raises:
            ConfigurationError: this is one shard of a queue, which says itself where its messages belong.
        """
        self._refuse_one_shard()
        return await super().enqueue_many(payloads, **how)

    def _refuse_one_shard(self) -> None:
        if self._whole is not None:
            raise ConfigurationError(
                f"{self.keys.prefix!r} is one shard of queue {self._whole!r}, whose messages go where their key says: "
                f"write {self._whole!r}"
            )

    def _new_ids(self, payloads: Sequence[Sequence[bytes]]) -> list[str]:
        return super()._new_ids(payloads) if self.shards else Queue._new_ids(self, payloads)

    def _home(self, id: str, fields: Sequence[bytes]) -> Queue[dict[str, Any]]:
        return super()._home(id, fields) if self.shards else self

    def check_limits(self, limits: Limits) -> None:
        """As `Queue.check_limits`."""
        if self.shards:
            super().check_limits(limits)
        else:
            Queue.check_limits(self, limits)

    async def result(self, id: str, timeout: float | None = None) -> Any:
        """As `Queue.result`."""
        return await (super().result(id, timeout) if self.shards else Queue.result(self, id, timeout))


async def shares_of(servers: Sequence[Settings], prefixes: Sequence[str]) -> list[list[str]]:
    """For each server the prefixes of the queues on it, shards instead of a sharded queue."""
    shares: list[list[str]] = [[] for _ in servers]
    for prefix in prefixes:
        async with NamedQueue(prefix, url=[settings.url for settings in servers]) as queue:
            for shard in queue.shards or [queue]:
                shares[queue.servers.index(shard.connection.settings)].append(shard.keys.prefix)
    return shares
