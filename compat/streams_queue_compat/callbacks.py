"""Callbacks: who enqueued a message hears of its statuses."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from streams_queue.listener import Event
from streams_queue.model import Status
from streams_queue_compat.logs import MANAGER, log_error

logger = logging.getLogger(MANAGER)

STATUS_QUEUED = "queued"
STATUS_PROCESSING = "processing"
STATUS_COMPLETED = "completed"
STATUS_ERROR = "error"
STATUS_RETRY = "retry"

Callback = Callable[[dict[str, Any], str, Any, str | None], Awaitable[None]]
"""``await callback(message, status, response, error)``"""


class Hearer:
    """Tells a callback of a message's statuses, ``queued`` first."""

    def __init__(self, message: dict[str, Any], callback: Callback) -> None:
        self._message = {**message, "retry_count": 0}
        self._callback = callback
        self._accepted = asyncio.Event()

    async def accepted(self) -> None:
        """The message is in the queue. Only from now on does the callback hear of what became of it."""
        await self._tell(STATUS_QUEUED)
        self._accepted.set()

    async def __call__(self, event: Event) -> None:
        """Tell the callback of this event, once it knows that the message is in the queue."""
        await self._accepted.wait()
        words = event.detail.decode(errors="replace")
        match event.status:
            case Status.COMPLETED:
                await self._tell(STATUS_COMPLETED, msgspec.json.decode(event.detail) if event.detail else None)
            case Status.RETRY:
                self._message["retry_count"] += 1
                await self._tell(STATUS_RETRY, None, words)
            case Status.ERROR:
                await self._tell(STATUS_ERROR, None, words)
            case Status.EXPIRED:
                await self._tell(STATUS_ERROR, None, "the message expired before it was worked on")
            case Status.PROCESSING | Status.QUEUED:
                await self._tell(event.status.value)

    async def _tell(self, status: str, response: Any = None, error: str | None = None) -> None:
        self._message["status"] = status
        try:
            await self._callback(self._message, status, response, error)
        except Exception as failed:  # noqa: BLE001  # whatever it is, it is the callback's own
            what = f"the callback of message {self._message['request_id']} failed at status {status}"
            log_error(logger, what, failed, self._message)
