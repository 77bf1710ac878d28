"""The only door to Redis: how the scripts of one queue are run, and what their errors mean.

Arguments of another shape than a script takes fail here, before Redis sees them.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from redis import exceptions

from streams_queue.connection import Connection
from streams_queue.errors import InvalidMessage, QueueUnavailable
from streams_queue.keys import Keys
from streams_queue.scripts import Script
from streams_queue.translation import translated

BATCH = 500
"""Messages that one call of a script takes at most: it keeps each call within milliseconds."""

Item = TypeVar("Item")
Argument = str | bytes | int | float


class NotJoined(QueueUnavailable):
    """The queue has no consumer groups or no lease: never joined, or its keys are gone. Join it (again)."""


class Resharded(QueueUnavailable):
    """The queue has another number of shards than the caller goes by. Read the registry, and enqueue where it says."""

    def __init__(self, message: str, version: int = 0) -> None:
        super().__init__(message)
        self.version = version
        """Of the registry that the caller went by."""


def batches(items: Iterable[Item], size: int = BATCH) -> Iterable[list[Item]]:
    """The items in lists of at most `size`."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


class Door:
    """Runs scripts for one queue over one connection."""

    def __init__(self, connection: Connection, keys: Keys) -> None:
        self.connection = connection
        self.keys = keys

    @property
    def where(self) -> str:
        """The queue, or the shard, and its server without credentials: for the log."""
        return f"queue {self.keys.prefix} at {self.connection.settings.display}"

    def _keys_of(self, script: Script, ids: Iterable[str]) -> list[str]:
        """Each message's keys: Cluster wants every key known beforehand declared."""
        named = [getattr(self.keys, kind) for kind in script.keys]
        return [key(id) for id in ids for key in named]

    async def _each(self, script: Script, head: Sequence[Argument], rows: Sequence[Sequence[Argument]]) -> list[str]:
        answers: list[str] = []
        for batch in batches(rows):
            reply = await self._run(script, head, batch, self._keys_of(script, (str(row[0]) for row in batch)))
            answers += [answer.decode() for answer in reply]
        return answers

    async def _run(
        self,
        script: Script,
        head: Sequence[Argument],
        rows: Sequence[Sequence[Argument]] = (),
        keys: Sequence[str] = (),
        tails: Sequence[Sequence[Argument]] = (),
        *,
        house: bool = True,
        replicas: int = 0,
    ) -> Any:
        """Run a script; `tails` is what follows each row (or the head) at no fixed length.

        With `replicas`: its answer, and how many of them have confirmed it.
        """
        keys_due = len(script.keys) * (len(rows) if script.each else 1)
        fits = len(head) == len(script.head) and all(len(row) == len(script.each) for row in rows)
        if not fits or len(keys) != keys_due:
            raise TypeError(
                f"{script.name} takes {script.head}, then {script.each} and the keys {script.keys} for each message"
            )
        parts = itertools.zip_longest(rows, tails, fillvalue=())
        pieces = itertools.chain.from_iterable(itertools.chain.from_iterable(parts))
        arguments = [*head, *pieces]
        all_keys = [*self.keys.house, *keys] if house else list(keys)
        with self._translated():
            try:
                return await self._send(script, all_keys, arguments, replicas)
            except (exceptions.ConnectionError, exceptions.TimeoutError):
                if not script.idempotent:
                    raise
                return await self._send(script, all_keys, arguments, replicas)

    async def _send(self, script: Script, keys: list[str], arguments: list[Argument], replicas: int) -> Any:
        try:
            return await self._call("EVALSHA", script.sha, keys, arguments, replicas)
        except exceptions.NoScriptError:  # a restart, a failover, SCRIPT FLUSH
            return await self._call("EVAL", script.source, keys, arguments, replicas)

    async def _call(self, command: str, script: str, keys: list[str], arguments: list[Argument], replicas: int) -> Any:
        if replicas:
            return await self.connection.confirmed(replicas, command, script, keys, arguments)
        return await self.connection.client.execute_command(command, script, len(keys), *keys, *arguments)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """`translated`, with the answers that mean "join first" told apart."""
        try:
            with translated(f"queue {self.keys.prefix!r}: "):
                yield
        except QueueUnavailable as error:
            if any(code in str(error) for code in ("NOTJOINED", "NOGROUP")):
                raise NotJoined(str(error)) from error.__cause__
            if "RESHARDED" in str(error):
                raise Resharded(str(error)) from error.__cause__
            raise
        except UnicodeEncodeError as error:
            raise InvalidMessage(f"an argument cannot be encoded: {error}") from error
