"""What all programs that use a sharded queue have agreed on: the registry of its shards, on its first server."""

from typing import NamedTuple

from streams_queue.connection import Connection
from streams_queue.errors import ConfigurationError
from streams_queue.keys import Keys, registry_prefix
from streams_queue.routing import MOST_SHARDS
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

    @classmethod
    async def read(cls, connection: Connection, name: str) -> "Registry | None":
        """What is agreed; None where nothing is: there is no such sharded queue."""
        return await cls._registered(connection, name, "", "", "")

    @classmethod
    async def agree(cls, connection: Connection, name: str, count: int, key: str | None, servers: int) -> "Registry":
        """What is agreed; these where nothing was."""
        registry = await cls._registered(connection, name, count, key or "", servers)
        assert registry is not None
        return registry

    @classmethod
    async def _registered(
        cls, connection: Connection, name: str, count: int | str, key: str, servers: int | str
    ) -> "Registry | None":
        fields = await Transitions(connection, Keys(registry_prefix(name))).register(count, key, servers)
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
            return cls(shards, fields["key"].decode() or None, servers, version, former, "moving" in fields)
        except (KeyError, ValueError) as error:
            raise ConfigurationError(
                f"the key {registry_prefix(name)}:shards holds no registry of shards ({error!r}): is it another "
                "program's?"
            ) from None

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


def place_of_server(place: int, servers: int) -> str:
    """What stands for the number of shards on the servers after the first."""
    return f"server {place} of {servers}"


def _within(number: bytes, most: int) -> int:
    if not 1 <= int(number) <= most:
        raise ValueError(f"{int(number)} is not from 1 to {most}")
    return int(number)
