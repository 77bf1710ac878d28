"""`Settings` -> redis-py clients, and redis-py's exceptions -> ours.

What redis-py decides by itself differs from version to version (retries, timeouts, protocol, host name
checks), so everything is set here: nothing is sent twice behind our back, and nothing waits for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import ssl
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import redis
from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Redis, RedisCluster
from redis.asyncio.client import PubSub
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import (
    MasterNotFoundError,
    Sentinel,
    SentinelConnectionPool,
)
from redis.backoff import NoBackoff

from streams_queue import embedded, wire
from streams_queue.errors import (
    ConfigurationError,
    InvalidMessage,
    QueueUnavailable,
    StreamsQueueError,
    UnsupportedServer,
)
from streams_queue.settings import Address, Settings

__all__ = ["REDIS_ERRORS", "Connection", "translate", "translated"]

REDIS_ERRORS = (
    exceptions.RedisError,
    exceptions.RedisClusterException,
    exceptions.ChildDeadlockedError,
    OSError,  # TimeoutError among them
)
"""Everything a call through redis-py can fail with; `translate` knows each of them."""

_MAX_CONNECTIONS = 64
_REDIRECTS = 16

_Argument = str | bytes | int | float


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
            client = self._make(self.settings.timeout, _MAX_CONNECTIONS)
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
        self, replicas: int, command: str, script: str, keys: Sequence[str], arguments: Sequence[_Argument]
    ) -> tuple[Any, int]:
        """Run a script (EVALSHA or EVAL); its answer, and how many replicas have what it wrote, where it wrote at all.

        WAIT counts from the last write of its own connection, and on a connection without one it confirms anything. So
        both go in one packet: over the same connection, with no round trip in between in which a server could change
        its role. A client of its own keeps these waits from whoever waits for no replicas. Only after `open`.
        """
        if self._confirming is None:
            self._confirming = self._make(self.settings.timeout, _MAX_CONNECTIONS)
        run = (command, script, len(keys), *keys, *arguments)
        wait = ("WAIT", replicas, max(1, round(self.replica_timeout * 1000)))
        if isinstance(self._confirming, _Cluster):
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
                return str(error) if _is_denied(error) else None
        return None

    async def _at_owner(self, near: str, command: str, *arguments: str) -> Any:
        client = self.client
        target = {"target_nodes": _owner(client, near)} if isinstance(client, RedisCluster) else {}
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
        common = _common(address, self.settings.timeout, timeout)
        client: Redis | RedisCluster
        if address.kind == "cluster":
            client = _Cluster(address, common)
        elif address.kind == "sentinel":
            client = self._by_sentinel(common, connections)
        else:
            client = Redis.from_pool(_pool(address, common, connections, self.settings.timeout))
        self._clients.append(client)
        return client

    def _by_sentinel(self, common: dict[str, Any], connections: int) -> Redis:
        address = self._address
        plain = {name: value for name, value in common.items() if name not in {"username", "password", "db"}}
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
        pool = _SentinelPool(
            address.service,
            sentinel,
            connection_class=wire.SentinelTls if address.tls else wire.Sentinel,
            max_connections=connections,
            timeout=self.settings.timeout,
            **common,
        )
        return Redis.from_pool(pool)


class _SentinelPool(SentinelConnectionPool, BlockingConnectionPool):
    """Asks Sentinel for the primary, and waits for a free connection instead of failing."""


def _sentinels_of(client: Redis | RedisCluster) -> list[Redis]:
    """The clients by which it asks for the primary."""
    pool = None if isinstance(client, RedisCluster) else client.connection_pool
    return list(pool.sentinel_manager.sentinels) if isinstance(pool, _SentinelPool) else []


class _Cluster(RedisCluster):
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
            max_connections=_MAX_CONNECTIONS,
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
        pool = _pool(address, self._common, 1, self._common["socket_connect_timeout"])
        return PubSub(pool, **options)

    async def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        async with self._alone():
            return await super().execute_command(*args, **kwargs)

    async def together(self, key: str, *commands: Sequence[_Argument]) -> list[Any]:
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

    async def _packet(self, node: ClusterNode, commands: Sequence[Sequence[_Argument]]) -> list[Any]:
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


def _common(address: Address, connect_timeout: float, timeout: float) -> dict[str, Any]:
    options: dict[str, Any] = {
        "db": address.db,
        "username": address.username,
        "password": address.password,
        "socket_timeout": timeout,
        "socket_connect_timeout": connect_timeout,
        "decode_responses": False,
        "encoding_errors": "surrogateescape",  # an id that another program wrote in no encoding goes back as it came
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0),
        "retry_on_error": [],
        "health_check_interval": 0,
    }
    if address.kind != "unix":
        options["socket_keepalive"] = True
    if address.tls:
        options |= _tls(address)
    return options


def _tls(address: Address) -> dict[str, Any]:
    options = dict(address.options)
    for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"):
        if name in options and not Path(options[name]).is_file():
            raise ConfigurationError(f"{name}: there is no file {options[name]!r}")
    verified = options.setdefault("ssl_cert_reqs", "required") == "required"
    return {**options, "ssl_check_hostname": verified}


def _pool(address: Address, common: dict[str, Any], connections: int, wait: float) -> BlockingConnectionPool:
    where: dict[str, Any]
    kind: type[wire.Tcp | wire.Tls | wire.Unix]
    if address.kind == "unix":
        kind, where = wire.Unix, {"path": address.path}
    else:
        host, port = address.hosts[0]
        kind, where = wire.Tls if address.tls else wire.Tcp, {"host": host, "port": port}
    return BlockingConnectionPool(connection_class=kind, max_connections=connections, timeout=wait, **where, **common)


def _owner(client: RedisCluster, key: str) -> ClusterNode | None:
    try:
        return client.get_node_from_key(key)
    except exceptions.SlotNotCoveredError:
        return client.get_default_node()


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


@contextlib.contextmanager
def translated(context: str = "") -> Iterator[None]:
    """Raise what redis-py raises inside as an exception of ours, its text led by `context`; a group of such too."""
    try:
        yield
    except REDIS_ERRORS as error:
        ours = translate(error)
        raise type(ours)(f"{context}{ours}") from error
    except ExceptionGroup as group:
        if group.split(REDIS_ERRORS)[1] is not None:
            raise  # something else is among them
        ours = translate(_first_of(group))
        raise type(ours)(f"{context}{ours}") from group


def _first_of(error: Exception) -> Exception:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


_DENIED = (
    exceptions.AuthenticationError,
    exceptions.AuthorizationError,
    exceptions.AuthenticationWrongNumberOfArgsError,
    exceptions.NoPermissionError,
)
_DENIED_WORDS = (
    "NOAUTH",
    "NOPERM",
    "WRONGPASS",
    "ACL failure in script",  # what a script may not do: from Redis 7.0 on
    "The user executing the script can't",  # and on 6.2
)


_DENIED_AT_SENTINEL = ("AuthenticationError", "NoPermissionError", *_DENIED_WORDS)


def _is_denied(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, _DENIED) or any(words in str(error) for words in _DENIED_WORDS):
            return True
        error = error.__cause__  # no node of a Cluster that let us in is an error of another kind
    return False


def translate(error: BaseException) -> StreamsQueueError:
    """The exception of ours for one of redis-py's or the operating system's.

    ConfigurationError where a person has to act (credentials, permissions, TLS, a key of another type,
    a prefix without a hash tag on Cluster), InvalidMessage for an argument that cannot be sent, QueueUnavailable for
    everything else.
    """
    text = str(error) or type(error).__name__
    if isinstance(error, MasterNotFoundError):
        return _no_primary(text)
    if _is_denied(error):
        return ConfigurationError(f"the server denied access: {text}")
    if isinstance(error, exceptions.DataError):
        return InvalidMessage(f"an argument cannot be sent to Redis: {text}")
    if "WRONGTYPE" in text:
        return ConfigurationError(
            f"a key under this prefix belongs to another program: {text}; remove it, or choose another prefix"
        )
    if isinstance(error, exceptions.ClusterCrossSlotError) or "same key slot" in text:
        return ConfigurationError(f"on Redis Cluster the prefix needs a hash tag, such as {{chat_api}}: {text}")
    # redis-py 5 knows this one as any other reply, where the client is not meant for a Cluster.
    if isinstance(error, exceptions.MovedError) or text.startswith("MOVED "):
        return QueueUnavailable(f"a Redis Cluster sends us elsewhere ({text}); does the URL say redis+cluster://?")
    if _distrusted(error):
        return ConfigurationError(f"TLS failed: {text}; check the certificate, ssl_ca_certs and the host name")
    return QueueUnavailable(text)


def _no_primary(text: str) -> StreamsQueueError:
    # redis-py goes on with why each Sentinel gave no answer, and the repr of its client, in some versions with its
    # password: none of that is shown.
    told = text.partition(" : ")[0]
    if any(words in text for words in _DENIED_AT_SENTINEL):
        return ConfigurationError(f"{told}: the Sentinels denied access; say ?sentinel_password=... in the URL")
    return QueueUnavailable(told)


def _distrusted(error: BaseException | None) -> bool:
    while error is not None:
        # An end of file in the handshake is a server going down, not one that is set up wrongly.
        if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            return True
        error = error.__cause__ or error.__context__
    return False
