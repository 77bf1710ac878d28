"""`Settings` -> redis-py clients: of one server, by Sentinel, of a Cluster."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Redis, RedisCluster
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool

from streams_queue import embedded, wire
from streams_queue.cluster import Argument, ClusterClient, owner
from streams_queue.errors import UnsupportedServer
from streams_queue.pools import MAX_CONNECTIONS, common, pool
from streams_queue.settings import Address, Settings
from streams_queue.translation import REDIS_ERRORS, is_denied, translated


class Connection:
    """One server, and the clients this event loop uses to talk to it.

    Belongs to one event loop: a thread with a loop of its own makes its own Connection from the same
    settings. Clients answer in bytes.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._address = settings.address
        self._client: Redis | RedisCluster | None = None
        self._confirming: Redis | RedisCluster | None = None
        self._clients: list[Redis | RedisCluster] = []
        self._opening = asyncio.Lock()

    @property
    def is_cluster(self) -> bool:
        """Whether the server is a Redis Cluster, where a prefix needs a hash tag."""
        return self._address.kind == "cluster"

    @property
    def is_open(self) -> bool:
        """Whether there is a client."""
        return self._client is not None

    @property
    def client(self) -> Redis | RedisCluster:
        """The client for commands that do not block. Only after `open`."""
        if self._client is None:
            raise RuntimeError("await Connection.open() first")
        return self._client

    async def open(self) -> None:
        """Connect and check the server; starts the embedded one if asked. Harmless when open already.

        Raises:
            ConfigurationError: wrong credentials, a missing permission, TLS that cannot be trusted.
            UnsupportedServer: older than Redis 6.2.
            QueueUnavailable: nothing answers there, or not now.
        """
        async with self._opening:
            if self._client is not None:
                return
            address = self.settings.address
            if address.kind == "embedded":
                path = await asyncio.to_thread(embedded.socket_path, address.path)
                self._address = Address("unix", path=path)
            client = self._make(self.settings.timeout, MAX_CONNECTIONS)
            try:
                with translated(f"{self.settings.display}: "):
                    await _check(client)
            except BaseException:
                await self.close()
                raise
            self._client = client

    def reader(self, block: float) -> Redis | RedisCluster:
        """A client with one connection of its own, for reads that block up to `block` seconds.

        Only after `open`. Make one and keep it: it reconnects by itself, and lives until `close`.
        """
        if self._client is None:
            raise RuntimeError("await Connection.open() first")
        return self._make(block + self.settings.timeout, 1)

    @property
    def replica_timeout(self) -> float:
        """Seconds that `confirmed` waits for replicas: the reply has to come within the client's own timeout."""
        return self.settings.timeout / 2

    async def confirmed(
        self, replicas: int, command: str, script: str, keys: Sequence[str], arguments: Sequence[Argument]
    ) -> tuple[Any, int]:
        """Run a script (EVALSHA or EVAL); its answer, and how many replicas have what it wrote, where it wrote at all.

        WAIT counts from the last write of its own connection, and on a connection without one it confirms anything. So
        both go in one packet: over the same connection, with no round trip in between in which a server could change
        its role. A client of its own keeps these waits from whoever waits for no replicas. Only after `open`.
        """
        if self._confirming is None:
            self._confirming = self._make(self.settings.timeout, MAX_CONNECTIONS)
        run = (command, script, len(keys), *keys, *arguments)
        wait = ("WAIT", replicas, max(1, round(self.replica_timeout * 1000)))
        if isinstance(self._confirming, ClusterClient):
            answers = await self._confirming.together(keys[0], run, wait)
        else:
            pipeline: Any = self._confirming.pipeline(transaction=False)
            answers = await pipeline.execute_command(*run).execute_command(*wait).execute(raise_on_error=False)
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers[0], answers[1]

    async def ask(self, command: str, *arguments: str, near: str) -> Any:
        """What the server says of itself in answer to `command`; None where it does not answer that to us.

        Only after `open`. On Cluster the node that owns the key `near` is asked.

        Raises:
            QueueUnavailable: no answer came.
        """
        with translated():
            try:
                return await self._at_owner(near, command, *arguments)
            except exceptions.ResponseError:  # forbidden, renamed, or never there
                return None

    async def refusal(self, command: str, *arguments: str, near: str) -> str | None:
        """Why this user may not send the command, in the server's words; None where he may, whatever its answer was.

        Only after `open`. On Cluster the node that owns the key `near` is asked.

        Raises:
            QueueUnavailable: no answer came.
        """
        with translated():
            try:
                await self._at_owner(near, command, *arguments)
            except exceptions.ResponseError as error:
                return str(error) if is_denied(error) else None
        return None

    async def _at_owner(self, near: str, command: str, *arguments: str) -> Any:
        client = self.client
        target = {"target_nodes": owner(client, near)} if isinstance(client, RedisCluster) else {}
        return await client.execute_command(command, *arguments, **target)

    async def drop(self, client: Redis | RedisCluster) -> None:
        """Close one client that `reader` gave."""
        if client in self._clients:
            self._clients.remove(client)
        for one in (client, *_sentinels_of(client)):
            with contextlib.suppress(*REDIS_ERRORS):
                await one.aclose()

    async def close(self) -> None:
        """Close every client handed out. `open` may follow."""
        self._client = self._confirming = None
        while self._clients:
            await self.drop(self._clients[-1])

    def _make(self, timeout: float, connections: int) -> Redis | RedisCluster:
        address = self._address
        options = common(address, self.settings.timeout, timeout)
        client: Redis | RedisCluster
        if address.kind == "cluster":
            client = ClusterClient(address, options)
        elif address.kind == "sentinel":
            client = self._by_sentinel(options, connections)
        else:
            client = Redis.from_pool(pool(address, options, connections, self.settings.timeout))
        self._clients.append(client)
        return client

    def _by_sentinel(self, options: dict[str, Any], connections: int) -> Redis:
        address = self._address
        plain = {name: value for name, value in options.items() if name not in {"username", "password", "db"}}
        sentinel = Sentinel(
            address.hosts,
            sentinel_kwargs={
                **plain,
                "username": address.sentinel_username,
                "password": address.sentinel_password,
                "socket_timeout": self.settings.timeout,
                "ssl": address.tls,
            },
        )
        for client in sentinel.sentinels:
            client.connection_pool.connection_class = wire.Tls if address.tls else wire.Tcp
        primary = _SentinelPool(
            address.service,
            sentinel,
            connection_class=wire.SentinelTls if address.tls else wire.Sentinel,
            max_connections=connections,
            timeout=self.settings.timeout,
            **options,
        )
        return Redis.from_pool(primary)


class _SentinelPool(SentinelConnectionPool, BlockingConnectionPool):
    """Asks Sentinel for the primary, and waits for a free connection instead of failing."""


def _sentinels_of(client: Redis | RedisCluster) -> list[Redis]:
    """The clients by which it asks for the primary."""
    pool = None if isinstance(client, RedisCluster) else client.connection_pool
    return list(pool.sentinel_manager.sentinels) if isinstance(pool, _SentinelPool) else []


async def _check(client: Redis | RedisCluster) -> None:
    target: dict[str, Any] = {}
    if isinstance(client, RedisCluster):
        await client.initialize()
        target = {"target_nodes": client.get_default_node()}
    await client.execute_command("PING", **target)
    # By feature, not by version: Valkey calls itself Redis 7.2.4.
    if not any(await client.execute_command("COMMAND INFO", "XAUTOCLAIM", **target)):
        info = await client.execute_command("INFO", "server", **target)
        raise UnsupportedServer(
            f"Redis {info.get('redis_version', 'of unknown version')} lacks XAUTOCLAIM: "
            "Redis 6.2 or newer, or Valkey, is needed"
        )
