"""What all programs that use a sharded queue have agreed on: the registry of its shards, on its first server."""

import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

from streams_queue.codec import Fields
from streams_queue.connection import Connection
from streams_queue.errors import ConfigurationError
from streams_queue.keys import Keys, registry_prefix
from streams_queue.routing import MOST_SHARDS
from streams_queue.settings import Settings
from streams_queue.transitions import Transitions


class OutOfOrder(ConfigurationError):
    """The servers of a sharded queue were named in another order than the others name them."""


class Registry(NamedTuple):
    """What all programs that use a sharded queue have agreed on (``{name}:shards``)."""

    shards: int
    key: str | None
    servers: int
    version: int
    """Goes up with each change of the number of shards."""
    former: int | None = None
    """How many shards there were before their number was last changed."""
    moving: bool = False
    """Whether messages are still being moved to where they belong."""
    id: str = ""
    """Of the queue: what its servers' marks bear. Empty where an older version agreed on it."""
    marked: tuple[tuple[int, str], ...] = ()
    """The servers after the first that bear the mark: which, and where they were when they got it."""

    @classmethod
    async def read(cls, connection: Connection, name: str) -> "Registry | None":
        """What is agreed; None where nothing is: there is no such sharded queue."""
        return await cls._registered(connection, name)

    @classmethod
    async def agree(cls, connection: Connection, name: str, count: int, key: str | None, servers: int) -> "Registry":
        """What is agreed; these where nothing was."""
        registry = await cls._registered(connection, name, count, key or "", servers, uuid.uuid4().hex)
        assert registry is not None
        return registry

    @classmethod
    async def _registered(cls, connection: Connection, name: str, *terms: Any) -> "Registry | None":
        fields = await _at(connection, name).register(*terms)
        if not fields:
            return None
        if fields.get("count", b"").startswith(b"server "):
            raise OutOfOrder(
                f"the first server that was named is {fields['count'].decode()} of queue {name!r}: name all of them in "
                "the order in which the others name them"
            )
        try:
            shards, servers = _within(fields["count"], MOST_SHARDS), _within(fields["servers"], MOST_SHARDS)
            version = int(fields["version"])
            former = _within(fields["former"], MOST_SHARDS) if "former" in fields else None
            id, key = fields.get("id", b"").decode(), fields["key"].decode() or None
            return cls(shards, key, servers, version, former, "moving" in fields, id, _marked(fields))
        except (KeyError, ValueError) as error:
            raise ConfigurationError(
                f"the key {registry_prefix(name)}:shards holds no registry of shards ({error!r}): is it another "
                "program's?"
            ) from None

    def agrees_with(self, other: "Registry | None") -> bool:
        """Whether the shards are the same. Which servers bear the mark concerns who opens the queue."""
        return other is not None and self._replace(marked=()) == other._replace(marked=())

    def require(self, name: str, shards: int, key: str | None, servers: int) -> None:
        """Nothing, where this is what a program was told.

        Raises:
            ConfigurationError: it is not; names both, and the remedy.
        """
        if shards != self.shards and not (self.moving and shards == self.former):
            raise ConfigurationError(
                f"queue {name!r} has {self.shards} shards, {shards} were asked for: say that (or None), or "
                f"change their number with `streams-queue reshard --prefix {name}`"
            )
        if key != self.key:
            raise ConfigurationError(
                f"messages of queue {name!r} go by {self.key!r}, key={key!r} was asked for: say key={self.key!r}, or "
                "shards=None to take what was agreed"
            )
        if servers != self.servers:
            raise ConfigurationError(
                f"the shards of queue {name!r} are on {self.servers} servers, {servers} were named: name all of them, "
                "in the same order"
            )

    async def recognise(self, name: str, place: int, first: Connection, server: Connection, *, may_mark: bool) -> None:
        """Make sure that this is the server at this place: it bears the queue's mark, or nobody has given it one yet.

        Args:
            name: of the queue.
            place: from 2 on.
            first: to the server that has this registry.
            server: to the one that was named.
            may_mark: give it the mark, where nobody has.

        Raises:
            ConfigurationError: it is another one, or it has lost all that it had.
        """
        mark, title = await _at(server, name).register(), place_of_server(place, self.servers)
        if mark and mark.get("count") != title.encode():
            raise ConfigurationError(
                f"{server.settings.display} is not {title} of queue {name!r}: name each server once, and all programs "
                "in the same order"
            )
        known, id = dict(self.marked).get(place), mark.get("id", b"").decode()
        if self.id and (id or known is not None) and id != self.id:
            raise ConfigurationError(
                f"{server.settings.display} does not bear the mark of {title} of queue {name!r}, as "
                f"{known or 'the server'} did that was named when it got it: name that one. If it is the same, and has "
                f"lost its data, say that its shards begin empty: redis-cli HDEL '{registry_prefix(name)}:shards' "
                f"'{_FIELD}{place}' at {first.settings.display}, redis-cli DEL '{registry_prefix(name)}:shards' at "
                f"{server.settings.display}, and open the queue with its number of shards"
            )
        if may_mark and known is None:
            await _at(server, name).register(title, "", self.servers, self.id)
            await _at(first, name).note_server(f"{_FIELD}{place}", server.settings.display)


async def refuse_stranger(name: str, first: Connection, servers: Sequence[Settings]) -> None:
    """Nothing, where no server after the first knows of this queue, of which the first knows nothing.

    Raises:
        ConfigurationError: one does: the first is another one, or has lost all that it had.
    """
    for place, settings in enumerate(servers[1:], 2):
        connection = Connection(settings)
        await connection.open()
        try:
            mark = await _at(connection, name).register()
        finally:
            await connection.close()
        if mark and await Registry.read(first, name) is None:  # else somebody else agreed on one this moment
            raise ConfigurationError(
                f"{servers[0].display} knows nothing of queue {name!r}, and {settings.display} does, as "
                f"{mark.get('count', b'').decode(errors='replace')!r}: name the right server first, and number {place} "
                f"behind it. If it is the right one, and has lost its data, say that the queue begins anew: "
                f"redis-cli DEL '{registry_prefix(name)}:shards' at each of the others"
            )


def place_of_server(place: int, servers: int) -> str:
    """What stands for the number of shards on the servers after the first."""
    return f"server {place} of {servers}"


_FIELD = "server "
"""Begins the field of the registry that says where a server was when it got its mark."""


def _marked(fields: Fields) -> tuple[tuple[int, str], ...]:
    """The servers that the registry knows to bear the mark; what somebody else wrote there is none."""
    return tuple(
        sorted(
            (int(place), address.decode(errors="replace"))
            for field, address in fields.items()
            if field.startswith(_FIELD) and (place := field.removeprefix(_FIELD)).isdecimal()
        )
    )


def _at(connection: Connection, name: str) -> Transitions:
    return Transitions(connection, Keys(registry_prefix(name)))


def _within(number: bytes, most: int) -> int:
    if not 1 <= int(number) <= most:
        raise ValueError(f"{int(number)} is not from 1 to {most}")
    return int(number)
