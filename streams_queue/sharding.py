"""One queue over many: its messages spread over shards by a key, on one server or several."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Unpack, overload

import anyio
import msgspec

from streams_queue.codec import value_in
from streams_queue.door import Resharded
from streams_queue.errors import ConfigurationError, NotFound, QueueUnavailable, StreamsQueueError
from streams_queue.keys import Keys, registry_prefix, shard_prefix, valid_id
from streams_queue.limits import Limits
from streams_queue.listener import Listener
from streams_queue.model import Payload, Priority, Receipt
from streams_queue.queue import Options, Queue
from streams_queue.registry import Registry, refuse_stranger
from streams_queue.routing import MOST_SHARDS, made_id
from streams_queue.settings import Settings
from streams_queue.shards import Routing, Shards, key_stays, part_of, together

logger = logging.getLogger(__name__)

FOLLOWS = 2.0
"""Seconds between two looks at the number of shards."""

_PAUSES = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0)
"""Seconds after looks at a registry that does not yet say what a shard knows: it fell back behind, as by a failover."""


class ShardedQueue(Queue[Payload]):
    """A queue whose messages are spread over shards, each of them a `Queue`: for more than one server can carry.

    It has the methods of `Queue`. Messages with the same key are in the same shard, in the order of their enqueues;
    there is no order between shards. `position` and `ahead` count within the message's shard. Counts are sums.

    An id that the queue made says where its message is. One of a caller's own is looked for in all shards at once, and
    is known per shard only, as a ``unique_key`` is: the same one with another key is no duplicate.

    Args:
        prefix: the queue's name, without a hash tag. Shard 3 of ``chat_api`` is the queue ``{chat_api:3}``.
        shards: how many, from 1 to 1024. Who opens the queue first decides, for all. None takes what was decided, the
            key too.
        key: the field of the payload that a message goes by; None: all go by their ids, as each message does whose
            field is missing, None or empty.
        url: of one server, as for `Queue`, or of several: shard i is on ``url[i % len(url)]``. All programs name the
            same, in the same order. A text may hold several, separated by blanks; so may ``STREAMS_QUEUE_URL``.
        options: as for `Queue`.

    Raises:
        ConfigurationError: as for `Queue`; or a bad number of shards, a prefix with braces, a key that no message can
            have.
    """

    @overload
    def __init__(
        self: "ShardedQueue[dict[str, Any]]",
        prefix: str,
        *,
        shards: int | None = ...,
        key: str | None = ...,
        url: str | Sequence[str] | None = ...,
        payload: None = ...,
        **options: Unpack[Options],
    ) -> None: ...

    @overload
    def __init__(
        self,
        prefix: str,
        *,
        shards: int | None = ...,
        key: str | None = ...,
        url: str | Sequence[str] | None = ...,
        payload: type[Payload],
        **options: Unpack[Options],
    ) -> None: ...

    def __init__(
        self,
        prefix: str,
        *,
        shards: int | None = 16,
        key: str | None = "user_id",
        url: str | Sequence[str] | None = None,
        payload: type[Payload] | None = None,
        **options: Unpack[Options],
    ) -> None:
        self.servers = Settings.resolve_all(url)
        """Where the shards are, in order."""
        self.shards: Sequence[Queue[Payload]] = ()
        """Each of them a queue; empty until this one is open."""
        self.key = _key(key, payload)
        self._asked = _count(shards)
        self._agreement: Registry | None = None
        self._all_shards: list[Queue[Payload]] = []  # those included that are not in use any more
        self._following: asyncio.Task[None] | None = None
        self._opening = asyncio.Lock()
        self._looking = asyncio.Lock()
        self._options: dict[str, Any] = {"payload": payload, **options}
        made: Any = super().__init__
        made(prefix, url=self.servers[0].url, **self._options)

    def _check_prefix(self) -> None:
        prefix = self.keys.prefix
        if "{" in prefix or "}" in prefix:
            raise ConfigurationError(
                f"prefix {prefix!r} has braces: leave them out, each shard's prefix has a hash tag of its own"
            )
        Keys(shard_prefix(prefix, MOST_SHARDS - 1))  # the longest that a shard may have

    def __repr__(self) -> str:
        url, shards = " ".join(settings.display for settings in self.servers), len(self.shards) or self._asked
        return f"ShardedQueue({self.keys.prefix!r}, shards={shards}, key={self.key!r}, url={url!r})"

    async def open(self) -> None:
        """Connect to all servers, and agree on the number of shards. Harmless when open already.

        Raises:
            QueueUnavailable: nothing answers at one of them.
            UnsupportedServer: one is older than Redis 6.2.
            ConfigurationError: as for `Queue.open`; or the number of shards, of servers or the key is not what was
                agreed, or nothing was where ``shards`` is None.
        """
        async with self._opening:
            if not self.connection.is_open:
                await self._open()

    async def _open(self) -> None:
        await self.connection.open()
        try:
            await self._find_shards()
            await self.transitions.check_schema()
        except BaseException:
            await self.close()
            raise
        if self.shards:
            self._following = asyncio.create_task(self._follow(), name="streams-queue shards")

    async def close(self) -> None:
        """Send what was submitted, then disconnect from all servers."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait([self._following])
        await together(shard.drain() for shard in self._all_shards)
        await together(shard.close() for shard in self._all_shards)
        await super().close()

    async def enqueue(
        self,
        payload: Payload | Mapping[str, Any],
        *,
        id: str | None = None,
        priority: Priority = "normal",
        delay: float | None = None,
        at: datetime | float | None = None,
        unique_key: str | None = None,
        ttl: float | None = None,
        replicas: int = 0,
    ) -> Receipt:
        """As `Queue.enqueue`.

        After a change of the number of shards an own id or ``unique_key`` is looked for in the message's
        former shard, too.
        """
        while True:
            try:
                return await self._enqueued_before(payload, id, unique_key) or await super().enqueue(
                    payload, id=id, priority=priority, delay=delay, at=at, unique_key=unique_key, ttl=ttl,
                    replicas=replicas,
                )  # fmt: skip
            except Resharded as refused:
                await self._rerouted(refused.version)

    async def update(self, id: str, changes: Mapping[str, Any]) -> bool:
        """As `Queue.update`; what a message goes by stays as it is.

        Raises:
            InvalidMessage: as for `Queue.update`; or the key is among the changes.
        """
        if self.key is not None and self.key in changes:
            raise key_stays(self.key)
        return await super().update(id, changes)

    def check_limits(self, limits: Limits) -> None:
        """As `Queue.check_limits`; and they can be divided among the shards. Only after `open`."""
        super().check_limits(limits)
        part_of(limits, self.routing)

    async def pause(self) -> None:
        """As `Queue.pause`, in every shard that there is now."""
        await self.look()
        await super().pause()

    async def resume(self) -> None:
        """As `Queue.resume`, in every shard that there is now."""
        await self.look()
        await super().resume()

    async def set_limits(self, limits: Limits) -> None:
        """As `Queue.set_limits`, divided among the shards that there are now.

        Raises:
            ConfigurationError: they cannot be divided.
        """
        await self.look()
        await super().set_limits(limits)

    async def result(self, id: str, timeout: float | None = None) -> Any:
        """As `Queue.result`. For an id of your own all shards are asked once where it is."""
        with anyio.fail_after(timeout):
            return await (await self._holder(id)).result(id)

    async def _enqueued_before(
        self, payload: Payload | Mapping[str, Any], id: str | None, unique_key: str | None
    ) -> Receipt | None:
        if (id is None and unique_key is None) or not self.shards or self.routing.former is None:
            return None
        fields = self.codec.encode(payload)
        own_id = valid_id(id) if id is not None else self._new_ids([fields])[0]
        number = self.routing.former_home(own_id, fields)
        if number is None:
            return None
        former = self._all_shards[number]
        slot = former._slot(unique_key) if unique_key is not None else None
        found = await former.transitions.known(own_id, slot)
        return found and Receipt(found.id, duplicate=True, status=found.status)

    # ---- where messages are

    def _new_ids(self, payloads: Sequence[Sequence[bytes]]) -> list[str]:
        values = [value_in(flat, self.key) if self.key is not None else None for flat in payloads]
        return [made_id(uuid, value) for uuid, value in zip(super()._new_ids(payloads), values, strict=True)]

    def _home(self, id: str, fields: Sequence[bytes]) -> Queue[Payload]:
        return self._all_shards[self.routing.home(id, fields)]

    async def _holder(self, id: str) -> Queue[Payload]:
        holders = [self._all_shards[number] for number in self.routing.holders(id)]
        if len(holders) == 1:
            return holders[0]
        found = await together(shard.transitions.watch(shard.listener.channel, [id]) for shard in holders)
        for shard, (event,) in zip(holders, found, strict=True):
            if event is not None:
                return shard
        raise NotFound(f"no message {id!r} in queue {self.keys.prefix!r}: never enqueued, or finished long ago")

    @property
    def routing(self) -> Routing:
        """How messages find their shards. Only after `open`."""
        if not isinstance(self.transitions, Shards):
            raise RuntimeError("await ShardedQueue.open() first")  # noqa: TRY004  (no argument is wrong)
        return self.transitions.routing

    # ---- what all agree on

    async def _find_shards(self) -> None:
        name, servers = self.keys.prefix, len(self.servers)
        found = await Registry.read(self.connection, name)
        if self._asked is not None:
            if found is None:
                await refuse_stranger(name, self.connection, self.servers)
            registry = await Registry.agree(self.connection, name, self._asked, self.key, servers)
            registry.require(name, self._asked, self.key, servers)
        else:
            if found is None:
                raise ConfigurationError(
                    f"nothing says how many shards queue {name!r} has: open it once with shards=N, or name the server "
                    f"that has the key {registry_prefix(name)}:shards"
                )
            registry = found
            self.key = _key(registry.key, self._options["payload"])
            registry.require(name, registry.shards, self.key, servers)
        await self._use_shards(registry)

    @property
    def version(self) -> int:
        """Of the number of shards that this queue goes by: 1, and one more for each change. Only after `open`."""
        assert self._agreement is not None
        return self._agreement.version

    async def look(self) -> None:
        """Learn of a new number of shards, if there is one. It looks by itself every two seconds."""
        if not self.shards:
            return  # a queue that turned out to have none
        async with self._looking:
            registry = await Registry.read(self.connection, self.keys.prefix)
            if registry is None or registry.agrees_with(self._agreement):
                return  # without one, somebody has flushed the server
            await self._use_shards(registry)

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(FOLLOWS)
            try:
                await self.look()
            except StreamsQueueError as error:
                logger.debug("the number of shards of %s could not be read: %s", self.keys.prefix, error)

    async def _rerouted(self, version: int) -> None:
        """Return when a number of shards is known that was not when a shard refused a message."""
        for pause in _PAUSES:
            if self.version > version:
                return
            await asyncio.sleep(pause)
            await self.look()
        raise QueueUnavailable(
            f"a shard of queue {self.keys.prefix!r} knows of another number of shards, but the registry of shards does "
            "not say so: run `streams-queue reshard`"
        )

    async def _use_shards(self, registry: Registry) -> None:
        """Have a queue for each shard; those on the same server share its clients, and one channel to hear by.

        The client of a Cluster sends one command after the other. So there each shard has its own.
        """
        routing = Routing(registry.shards, registry.key, registry.former, registry.moving)
        if not isinstance(self.transitions, Shards):
            self.transitions = Shards(self.connection, self.keys, routing, [])
            self.transitions.rerouted = self._rerouted
        await self._reach(routing.known, self.transitions)
        for place, shard in enumerate(self._all_shards[1 : len(self.servers)], 2):
            await registry.recognise(
                self.keys.prefix, place, self.connection, shard.connection, may_mark=self._asked is not None
            )
        for shard in self._all_shards:
            shard.transitions.shards_version = registry.version
        self.transitions.reroute(routing, [shard.transitions for shard in self._all_shards])
        self.shards = self._all_shards[: routing.in_use]
        self._agreement = registry

    async def shards_to_be(self, count: int) -> Sequence[Queue[Payload]]:
        """The first so many shards, whether they are in use or not. Only after `open`."""
        assert isinstance(self.transitions, Shards)
        await self._reach(count, self.transitions)
        return self._all_shards[:count]

    async def _reach(self, count: int, all_shards: Shards) -> None:
        for number in range(len(self._all_shards), count):
            self._all_shards.append(self._shard(number, all_shards))
        await together(shard.connection.open() for shard in self._all_shards)

    def _shard(self, number: int, all_shards: Shards) -> Queue[Payload]:
        settings = self.servers[number % len(self.servers)]
        make: Any = Queue
        shard: Queue[Payload] = make(shard_prefix(self.keys.prefix, number), url=settings.url, **self._options)
        if shard.connection.is_cluster:
            shard.listener = Listener(shard.connection, shard.keys, all_shards)
            return shard
        neighbour = next((known for known in self._all_shards if known.settings == settings), None)
        shard.use(neighbour.connection if neighbour else self.connection if number == 0 else shard.connection)
        shard.listener = neighbour.listener if neighbour else Listener(shard.connection, shard.keys, all_shards)
        return shard


def _count(shards: Any) -> int | None:
    if shards is None:
        return None
    if type(shards) is not int or not 1 <= shards <= MOST_SHARDS:
        raise ConfigurationError(f"shards={shards!r:.200} is not a whole number from 1 to {MOST_SHARDS}")
    return shards


def _key(key: Any, payload: Any) -> str | None:
    if key is None:
        return None
    if not isinstance(key, str) or not key:
        raise ConfigurationError(
            f"key={key!r:.200} is not the name of a payload's field; None lets messages go by their ids"
        )
    try:
        key.encode()
    except UnicodeEncodeError as error:
        raise ConfigurationError(f"key={key!r:.200} cannot be encoded: {error}") from None
    if payload is not None:
        fields = [field.encode_name for field in msgspec.structs.fields(payload)]
        if key not in fields:
            raise ConfigurationError(
                f"key={key!r:.200} is no field of {payload.__name__}, which has {', '.join(fields)}: name one of them, "
                "or None, which lets messages go by their ids"
            )
    return key
