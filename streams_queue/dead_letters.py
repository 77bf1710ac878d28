"""The dead letters of a queue: what was given up, to look at, requeue and delete."""

import builtins
from collections.abc import AsyncIterator, Sequence
from typing import Generic

from streams_queue.answers import Place
from streams_queue.codec import Codec
from streams_queue.errors import Expired
from streams_queue.model import Message, Payload
from streams_queue.transitions import Transitions

_SCAN = 100
"""Dead letters that are read at once."""


class DeadLetters(Generic[Payload]):
    """The messages that were given up, until somebody requeues or deletes them, or ``dead_letter_ttl`` ends."""

    def __init__(self, transitions: Transitions, codec: Codec[Payload], dedup_expiry: int) -> None:
        self._transitions = transitions
        self._codec = codec
        self._dedup_expiry = dedup_expiry

    async def list(self, limit: int = 50, offset: int = 0) -> list[Message[Payload]]:
        """Dead letters, the newest first. One whose body ran out is left out. O(log n + limit).

        Of one that does not fit the queue's Struct, which may be why it is here, ``data`` is a dict.
        """
        places = await self._transitions.dead_letters(max(0, offset), limit) if limit > 0 else []
        return await self._read(places)

    async def scan(self) -> AsyncIterator[Message[Payload]]:
        """All dead letters, the newest first, as `list` shows them; a hundred of them are in memory at a time.

        They may be requeued and deleted meanwhile: the others are met all the same. One that dies meanwhile is not.
        """
        async for page in self._transitions.walk("dlq", newest_first=True, count=_SCAN):
            for letter in await self._read(page.places):
                yield letter

    async def requeue(self, id: str) -> bool:
        """Put a dead letter at the end of the line, its counts started anew; False when there is none of this id.

        Raises:
            Expired: its body had run out; it is taken off the dead letters and counted as lost.
        """
        (answer,) = await self._transitions.requeue([id], dedup_expiry=self._dedup_expiry)
        if answer == "expired":
            raise Expired(f"dead letter {id!r} has no body any more and cannot be requeued")
        return answer == "queued"

    async def delete(self, id: str) -> bool:
        """Discard a dead letter; False when there is none of this id."""
        return (await self._transitions.remove([id], only_dead=True))[0]

    async def _read(self, places: Sequence[Place]) -> "builtins.list[Message[Payload]]":
        found = await self._transitions.read_at(places)
        return [
            self._codec.decode(place.id, fields, lenient=True)
            for place, fields in zip(places, found, strict=True)
            if "timestamp" in fields
        ]
