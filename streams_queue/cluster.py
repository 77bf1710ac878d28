"""redis-py's client of a Cluster, mended."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import AsyncIterator, Sequence
from typing import Any

import redis
from redis import exceptions
from redis.asyncio import RedisCluster
from redis.asyncio.client import PubSub
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import AbstractConnection

from streams_queue import wire
from streams_queue.pools import MAX_CONNECTIONS, pool
from streams_queue.settings import Address
from streams_queue.translation import REDIS_ERRORS

_REDIRECTS = 16

Argument = str | bytes | int | float


class ClusterClient(RedisCluster):
    """Sends its commands one after the other, and so keeps one connection to each node.

    redis-py sends ASKING and the command it is meant for over whatever connection is free: with
    several, redirects during a slot move fail. A pipeline is outside of this.
    """

    def __init__(self, address: Address, common: dict[str, Any]) -> None:
        self._place, self._common = address, common
        self._turn = asyncio.Lock()
        if int(redis.__version__.partition(".")[0]) < 6:
            # From 6 on the given Retry speaks for these two as well.
            common = {**common, "cluster_error_retry_attempts": 0, "connection_error_retry_attempts": 0}
        super().__init__(
            startup_nodes=[ClusterNode(host, port) for host, port in address.hosts],
            require_full_coverage=False,  # a queue lives in one slot: others may be down
            max_connections=MAX_CONNECTIONS,
            ssl=address.tls,
            **common,
        )
        self._first = dict(self.nodes_manager.startup_nodes)
        self.connection_kwargs["connection_class"] = kind = wire.Tls if address.tls else wire.Tcp
        for node in self._first.values():
            node.connection_class = kind

    def pubsub(self, **options: Any) -> PubSub:  # type: ignore[override]
        """At any node, since each passes on what is published: redis-py has none here before 8."""
        address = self._place._replace(hosts=(random.choice(self._place.hosts),))
        connections = pool(address, self._common, 1, self._common["socket_connect_timeout"])
        return PubSub(connections, **options)

    async def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        """When its turn has come."""
        async with self._alone():
            return await super().execute_command(*args, **kwargs)

    async def together(self, key: str, *commands: Sequence[Argument]) -> list[Any]:
        """Commands in one packet, over one connection, to the node that has this key; each answer, errors among them.

        The first command decides where all of them go.
        """
        async with self._alone():
            for _ in range(_REDIRECTS):
                await self.initialize()
                node = self.nodes_manager.get_node_from_slot(self.keyslot(key))
                answers = await self._packet(node, commands)
                if isinstance(answers[0], exceptions.MovedError):
                    await self.aclose()  # and look anew who has the slot
                elif isinstance(answers[0], exceptions.AskError | exceptions.TryAgainError):
                    await asyncio.sleep(0.05)  # it is on its way: neither end takes a script with keys not made yet
                else:
                    break
            return answers

    async def _packet(self, node: ClusterNode, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        connection = node.acquire_connection()
        try:
            await connection.send_packed_command(connection.pack_commands(commands), False)
            return [await _answer(connection) for _ in commands]
        except REDIS_ERRORS:
            await self.aclose()  # another node may have taken its place
            raise
        finally:
            node._free.append(connection)

    async def aclose(self) -> None:
        """Disconnect from all nodes."""
        # From redis-py 7 on a failed call marks the client as not initialized, and closing skips those.
        self._initialize = False
        nodes = self._nodes()
        await super().aclose()
        await asyncio.gather(*(node.disconnect() for node in nodes))

    def __del__(self, *_: Any) -> None:
        # A loop that has ended leaves nothing to close: redis-py would complain to the next one.
        self._initialize = True
        with contextlib.suppress(AttributeError):  # it was never made
            for node in self._nodes():
                node._connections = []

    @contextlib.asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """Wait for one's turn, and mend what redis-py loses when a call fails."""
        async with self._turn:
            if self._initialize:
                # It strikes out nodes that failed (5 and 6), and all that are not members now, be they the only ones
                # to be known under a lasting name.
                for name, node in self._first.items():
                    self.nodes_manager.startup_nodes.setdefault(name, node)
            try:
                yield
            except BaseException:
                # Before 8.1 it forgets a connection that could not send, and a node may have so and so many.
                for node in self._nodes():
                    if not node._free:
                        node._free.extend(node._connections)
                raise

    def _nodes(self) -> list[ClusterNode]:
        """Each of them once: they stand in several places, and not the same object in each."""
        known = self.nodes_manager
        listed = itertools.chain(
            self._first.values(),
            known.startup_nodes.values(),
            known.nodes_cache.values(),
            *known.slots_cache.values(),
        )
        return list({id(node): node for node in listed}.values())


async def _answer(connection: AbstractConnection) -> Any:
    try:
        return await connection.read_response()
    except exceptions.ResponseError as error:
        return error


def owner(client: RedisCluster, key: str) -> ClusterNode | None:
    """The node that has this key; where nobody has, any node, which will say so."""
    try:
        return client.get_node_from_key(key)
    except exceptions.SlotNotCoveredError:
        return client.get_default_node()
