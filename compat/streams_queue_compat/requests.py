"""A chat request, as the documented chat queue knows it."""

import dataclasses
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Self

from streams_queue_compat.logs import log_error

logger = logging.getLogger("bot_logic.services.chat_api_queue")

StatusCallback = Callable[["QueuedRequest", str, Any, str | None], Awaitable[None]]
"""``await callback(request, status, response, error)``"""


@dataclasses.dataclass
class QueuedRequest:
    """One chat request. Its repr does not show the bot's token."""

    request_id: str
    user_id: str
    message: str
    source_type: str
    source_id: str
    response_token: str = dataclasses.field(repr=False)
    chat_id: str
    chat_type: str
    message_id: str
    timestamp: float = dataclasses.field(default_factory=time.time)
    status: str = "queued"
    retry_count: int = 0
    dedup_key: str | None = dataclasses.field(default=None, repr=False)
    status_callback: StatusCallback | None = dataclasses.field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """The fields, without the callback."""
        fields = (field.name for field in dataclasses.fields(self) if field.name != "status_callback")
        return {name: getattr(self, name) for name in fields}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], status_callback: StatusCallback | None = None) -> Self:
        """The request in a dict; fields it does not know are passed over, missing ones empty."""
        known = {field.name for field in dataclasses.fields(cls)} - {"status_callback"}
        required = {
            field.name: ""
            for field in dataclasses.fields(cls)
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        }
        given = {name: value for name, value in data.items() if name in known}
        return cls(**{**required, **given}, status_callback=status_callback)

    async def notify_status(self, status: str, response: Any = None, error: str | None = None) -> None:
        """Take this status and tell the callback, if this object has one. What the callback raises is logged."""
        self.status = status
        if self.status_callback is None:
            return
        try:
            await self.status_callback(self, status, response, error)
        except Exception as failed:  # noqa: BLE001  # whatever it is, it is the callback's own
            what = f"the callback of request {self.request_id} failed at status {status}"
            log_error(logger, what, failed, self.to_dict())
