"""The dashboard asked without a browser: requests straight to the application, against a real server."""

from __future__ import annotations

import html
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest

import canary
from helpers import queue_at
from streams_queue import Queue
from streams_queue.dashboard import dashboard

SECRET = canary.CANARY
HERE = ("127.0.0.1", 4711)

_INPUT = re.compile(r"<(?:input|button)\b[^>]*>")


@pytest.fixture
async def queue(server, prefix) -> AsyncIterator[Queue[Any]]:
    async with queue_at(server, prefix) as queue:
        yield queue


class Browser:
    """What a browser does: keeps the cookie, follows links, sends forms with what stands in them."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client

    async def get(self, path: str, status: int = 200, **options: Any) -> httpx.Response:
        answer = await self.client.get(path, **options)
        assert answer.status_code == status, answer.text
        if not canary.found_in(path):  # what was asked for is shown again
            canary.check(answer.content, path)
        return answer

    async def text(self, path: str, status: int = 200, **options: Any) -> str:
        """What a reader sees, without tags."""
        answer = await self.get(path, status, **options)
        return seen(answer.text)

    async def token(self) -> str:
        if not self.client.cookies:
            await self.get("/")
        return str(self.client.cookies["streams_queue_csrf"])

    async def post(self, path: str, form: Any = (), status: int = 303, **options: Any) -> httpx.Response:
        """Send a form with the token that a page would have had in it."""
        fields = [*(form.items() if isinstance(form, Mapping) else form), ("csrf", await self.token())]
        return await self.send(path, fields, status, **options)

    async def send(self, path: str, fields: Any, status: int, headers: Any = None) -> httpx.Response:
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        answer = await self.client.post(path, content=urlencode(list(fields)), headers={**kind, **(headers or {})})
        assert answer.status_code == status, answer.text
        return answer


def seen(page: str) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", page)))


def fields_in(page: str) -> list[tuple[str, str]]:
    """What the hidden fields of a page hold."""
    found = []
    for tag in _INPUT.findall(page):
        if 'type="hidden"' in tag:
            name, value = re.search(r'name="([^"]*)"', tag), re.search(r'value="([^"]*)"', tag)
            assert name and value, tag
            found.append((html.unescape(name[1]), html.unescape(value[1])))
    return found


Open = Callable[..., Awaitable[Browser]]


@asynccontextmanager
async def browsing(app: Any, base: str = "http://localhost", client: Any = HERE) -> AsyncIterator[Browser]:
    transport = httpx.ASGITransport(app=app, client=client)
    async with httpx.AsyncClient(transport=transport, base_url=base) as asking:
        yield Browser(asking)


@pytest.fixture
async def opened(server, prefix) -> AsyncIterator[Open]:
    """Makes dashboards with these options, and a browser for each."""
    async with AsyncExitStack() as stack:

        async def open_one(*, base: str = "http://localhost", client: Any = HERE, **options: Any) -> Browser:
            app = dashboard(**{"url": server.url, "prefixes": [prefix], **options})
            await stack.enter_async_context(app)
            return await stack.enter_async_context(browsing(app, base, client))

        yield open_one


@pytest.fixture
async def browser(opened: Open, queue) -> Browser:
    """A browser, and a dashboard with one queue."""
    return await opened()


@pytest.fixture
def bury(redis, prefix):
    """Dead letters as other programs see them: a hash and a place among the dead."""

    async def bury(*ids: str, age: float = 0.0, ttl: int = 600, apart: float = 0.0, **fields: Any) -> None:
        whole, _ = await redis.time()
        for start in range(0, len(ids), 5000):
            async with redis.pipeline(transaction=False) as pipeline:
                for n, id in enumerate(ids[start : start + 5000], start):
                    died = int(whole) - age - n * apart
                    body = {"timestamp": died, "status": "error", "retry_count": 0, "_sq_reason": "error", **fields}
                    pipeline.hset(f"{prefix}:msg:{id}", mapping=body)
                    pipeline.expire(f"{prefix}:msg:{id}", ttl)
                    pipeline.zadd(f"{prefix}:queue:dlq", {id: died})
                await pipeline.execute()

    return bury
