"""The picture of the README: a queue on a busy morning. `make pictures` takes it anew."""

from __future__ import annotations

import asyncio
import itertools
import random
import re
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec
import pytest
import uvicorn
from playwright.async_api import expect

from dashboard.serving import Board
from helpers import Held, queue_at, running, until, worker_of
from streams_queue import Queue, Reject, worker
from streams_queue.dashboard import Dashboard, dashboard
from streams_queue.dashboard.history import History, Sample

PREFIX = "emails"
COUNTERS = {"total_messages": 884_213, "completed_messages": 883_871, "retry_count": 1_912, "dlq_messages": 138}
EVERY = 10
"""Seconds from one look to the next, in the hour that is made up."""


@pytest.fixture
def prefix() -> str:
    return PREFIX


@pytest.fixture
async def busy(server, redis, monkeypatch) -> AsyncIterator[Queue[Any]]:
    """Messages in every place, and three workers on as many hosts."""
    names = (f"mailer-{n}-{4100 + 37 * n}-{{:08x}}{n:08x}" for n in itertools.count(1))
    began = int((await redis.time())[0]) - 9 * 3600
    monkeypatch.setattr(worker, "consumer_name", lambda: next(names).format(began))
    numbers = itertools.count(884_104)

    async def add(queue: Queue[Any], count: int, **options: Any) -> None:
        for _ in range(count):
            await queue.enqueue({"template": "receipt"}, id=f"mail-{next(numbers)}", **options)

    async with queue_at(server, PREFIX) as queue, AsyncExitStack() as stack:
        await add(queue, 7)

        async def refuse(message):
            raise Reject("mailbox is full")

        await worker_of(queue, refuse, concurrency=7).run(burst=True)
        await add(queue, 3)

        async def fail(message):
            raise TimeoutError("no answer from the mail server")

        await worker_of(queue, fail, concurrency=3, retry_delay=600.0).run(burst=True)
        await add(queue, 12, delay=1800)
        await add(queue, 12)
        held = Held()
        for _ in range(3):
            await stack.enter_async_context(running(worker_of(queue, held.handle, concurrency=4, lease=30.0)))
        await held.holds(12)
        await add(queue, 43)
        await redis.hset(f"{PREFIX}:stats", mapping=COUNTERS)
        yield queue
        held.go.set()
        await until(lambda: len(held.finished) >= 12, what="the end of the work")


def hour_of(sample: Sample) -> History:
    """An hour that ends with this sample: a wave of requests, and failures at its height."""
    chance = random.Random(7)
    history, counters = History(), dict.fromkeys(COUNTERS, 0)
    earlier: list[tuple[float, dict[str, int], int, int, float]] = []
    for look in range(-3600 // EVERY, 1):
        wave = max(0.0, 1 - abs(look + 190) / 70)
        arrived = int(chance.gauss(145, 12) + 110 * wave)
        waiting = int(abs(chance.gauss(40, 8)) + 260 * wave**2)
        failed = chance.random() < 0.04 + 0.4 * wave
        grown = {
            "total_messages": arrived, "completed_messages": int(arrived * (1 - 0.2 * wave)),
            "retry_count": int(failed) * chance.randint(1, 3), "dlq_messages": int(failed and wave > 0.6),
        }  # fmt: skip
        counters = {name: count + grown[name] for name, count in counters.items()}
        earlier.append((sample.now + look * EVERY - 1, counters, waiting, min(12, 9 + int(4 * wave)), waiting / 15))
    ended = {name: COUNTERS[name] - count for name, count in counters.items()}
    for now, counted, waiting, working, oldest in earlier:
        stats = msgspec.structs.replace(
            sample.stats, main=waiting + working, processing=working,
            counters={name: ended[name] + count for name, count in counted.items()},
        )  # fmt: skip
        history.add(Sample(now, stats, now - oldest))
    return history


@asynccontextmanager
async def served(app: Dashboard) -> AsyncIterator[Board]:
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_config=None, lifespan="off", ws="none", timeout_graceful_shutdown=1)
    serving = uvicorn.Server(config)
    async with app:
        task = asyncio.create_task(serving.serve([listening]))
        yield Board(f"http://127.0.0.1:{listening.getsockname()[1]}")
        await app.end_streams()
        serving.should_exit = True
        await task


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_picture(visit, server, busy, shoot, scheme):
    app = dashboard(url=server.url, prefixes=[PREFIX])
    (watched,) = app._watch.queues
    await watched.look()
    assert watched.sample is not None
    watched.history = hour_of(watched.sample)
    await watched.queue.close()
    async with served(app) as board:
        page = await visit(board / f"queues/{PREFIX}", scheme=scheme, device_scale_factor=1.5, height=992)
        await expect(page.locator("#live-state")).to_have_text("live")
        await expect(page.locator("#workers tbody tr")).to_have_count(3)
        await expect(page.locator(".chart rect.main").nth(55)).to_be_attached()
        facts = page.locator("dl.facts")
        await expect(facts).to_contain_text(re.compile(r"oldest waits\s*[1-9]"))
        await shoot(page, whole=False)
