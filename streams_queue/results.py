"""Waiting for a message's end, and what came of it."""

import asyncio
from typing import Any

import anyio
import msgspec

from streams_queue.codec import text
from streams_queue.errors import Expired, HandlerFailed, NotFound, Removed
from streams_queue.listener import REREAD, Event, Listener
from streams_queue.model import FINAL, Status
from streams_queue.transitions import Transitions


class Results:
    """The ends of a queue's messages."""

    def __init__(self, prefix: str, transitions: Transitions, listener: Listener) -> None:
        self._prefix = prefix
        self._transitions = transitions
        self._listener = listener

    async def wait(self, id: str) -> Any:
        """The value that the message's handler returned, once there is one.

        Raises:
            HandlerFailed: it is a dead letter.
            Expired: its TTL ran out.
            Removed: somebody took it out.
            NotFound: nothing is known of it, or no longer.
        """
        await self._listener.start()
        heard: asyncio.Queue[Event] = asyncio.Queue()
        self._listener.hear(id, heard.put)
        try:
            return await self._result_of(await self._end_of(id, heard))
        finally:
            self._listener.forget(id, heard.put)

    async def _end_of(self, id: str, heard: asyncio.Queue[Event]) -> Event:
        event = await self._listener.look(id)
        if event is None:
            raise NotFound(f"no message {id!r} in queue {self._prefix!r}: never enqueued, or finished long ago")
        while event is None or event.status not in FINAL:
            missing = event is None
            with anyio.move_on_after(REREAD) as nothing_heard:
                event = await heard.get()
            if nothing_heard.cancelled_caught:
                event = await self._listener.look(id)  # an event can be missed, a status cannot
                if event is None and missing:  # the first time it may have been between two places
                    raise Expired(f"message {id!r} is gone without a trace, its body ran out")
        return event

    async def _result_of(self, event: Event) -> Any:
        match event.status:
            case Status.ERROR:
                raise HandlerFailed(text(event.detail) or "", await self._reason(event.id))
            case Status.EXPIRED:
                raise Expired(f"message {event.id!r} expired before it was worked on")
            case Status.REMOVED:
                raise Removed(f"message {event.id!r} was removed")
        return msgspec.json.decode(event.detail) if event.detail else None

    async def _reason(self, id: str) -> str:
        (fields,) = await self._transitions.read([id])
        return text(fields.get("_sq_reason")) or "error"
