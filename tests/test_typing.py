"""What type checkers tell the callers; mypy checks it in `make check`."""

from __future__ import annotations

from typing import Any, assert_type

import msgspec

from streams_queue import Message, Queue, ShardedQueue, Worker


class Email(msgspec.Struct):
    to: str


async def untyped(message: Message[dict[str, Any]]) -> None:
    assert_type(message.data, dict[str, Any])


async def typed(message: Message[Email]) -> None:
    assert_type(message.data, Email)


def test_payloads_have_types():
    dicts, emails = Queue("q", url="redis://nowhere"), Queue("q", url="redis://nowhere", payload=Email)
    assert_type(dicts, Queue[dict[str, Any]])
    assert_type(emails, Queue[Email])
    assert_type(ShardedQueue("q", url="redis://nowhere"), ShardedQueue[dict[str, Any]])
    assert_type(ShardedQueue("q", key="to", url="redis://nowhere", payload=Email), ShardedQueue[Email])
    assert Worker(dicts).handler(untyped) is untyped
    assert Worker(emails).handler(typed) is typed
