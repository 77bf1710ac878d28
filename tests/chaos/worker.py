"""A worker in a process of its own: it does what a message asks for, and writes down each run."""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import itertools
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import msgspec

from chaos.ledger import Ledger
from streams_queue import Message, Queue, Worker, failpoints
from streams_queue_compat.redis_queue_manager import RedisQueueManager


class Orders(msgspec.Struct, kw_only=True):
    """How a worker is to be."""

    url: str
    prefix: str
    ledger: str
    lease: float
    concurrency: int = 4
    grace: float = 5.0
    retry_delay: float = 0.1
    max_retries: int = 3
    batch: int = 0
    """Messages that the handler takes at a time; 0 is a handler of one."""
    clock: float = 0.0
    """Seconds by which this process's clock is wrong."""
    one_at_a_time_per: str | None = None
    by_hand: bool = False
    """Drive the queue by the documented API's calls instead of a worker."""


async def main(orders: Orders, ready: Callable[[], None]) -> None:
    """Work until SIGTERM; a second one hands back at once, as `streams-queue worker` has it."""
    importlib.reload(failpoints)  # the environment is the worker's own, the import was the nursery's
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", force=True)
    _set_clock(orders.clock)
    ledger = Ledger(Path(orders.ledger))
    if orders.by_hand:
        await _drive(orders, ledger, ready)
    queue: Queue[Any] = Queue(orders.prefix, url=orders.url)
    worker = Worker(
        queue,
        concurrency=orders.concurrency,
        lease=orders.lease,
        retry_delay=orders.retry_delay,
        max_retries=orders.max_retries,
        grace=orders.grace,
        poll_interval=0.5,
        one_at_a_time_per=orders.one_at_a_time_per,
    )

    async def handle(message: Message[Any]) -> str:
        return await work(message, ledger)

    async def handle_together(messages: list[Message[Any]]) -> list[str]:
        return [await handle(message) for message in messages]

    if orders.batch:
        worker.batch(size=orders.batch, wait=0.3)(handle_together)
    else:
        worker.handler(handle)

    received: list[int] = []

    def on_signal() -> None:
        received.append(1)
        if len(received) == 1:
            worker.stop()
        else:
            scope.cancel()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, on_signal)
    with anyio.CancelScope() as scope:
        async with queue:
            _when_it_has_joined(ready)
            await worker.run()


def _when_it_has_joined(ready: Callable[[], None]) -> None:
    """Call it when the worker has joined its queue: before, a server that is away ends it."""

    def said(record: logging.LogRecord) -> bool:
        if "has joined queue" in str(record.msg):
            ready()
        return record.levelno > logging.INFO

    voice = logging.getLogger("streams_queue.consumer")
    voice.setLevel(logging.DEBUG)
    voice.addFilter(said)


async def _drive(orders: Orders, ledger: Ledger, ready: Callable[[], None]) -> None:
    """An old program without a processor: it asks for a message, works on it, and takes it out."""
    os.environ["STREAMS_QUEUE_URL"] = orders.url
    manager = RedisQueueManager(orders.prefix)
    manager.lock_expiry = orders.lease
    ready()
    for run in itertools.count(1):
        while (id := await manager.get_next_message()) is None:  # noqa: ASYNC110  (as such a program does)
            await asyncio.sleep(0.02)
        ledger.write("start", [id], run)
        await manager.update_message(id, {"progress": 50})
        await asyncio.sleep(0.02)
        ledger.write("end", [id], run)  # before it is out of the queue: it may be killed in between, and run again
        await manager.remove_message(id)


def _set_clock(seconds: float) -> None:
    if seconds:
        true_time = time.time
        time.time = lambda: true_time() + seconds


async def work(message: Message[Any], ledger: Ledger) -> str:
    """One run: ``start``, what the message asks for, ``end``."""
    ledger.write("start", [message.id], message.deliveries)
    try:
        await _do(message)
        ledger.write("end", [message.id], message.deliveries)
    except asyncio.CancelledError:
        ledger.write("cancelled", [message.id], message.deliveries)
        raise
    except BaseException:
        ledger.write("raised", [message.id], message.deliveries)
        raise
    return f"{os.getpid()} {fingerprint(message.data)}"


async def _do(message: Message[Any]) -> None:
    failpoints.hit("mid_handler")
    if "token" not in message.data:
        raise AssertionError("a handler was given an empty body")
    task = message.data.get("do", "nothing")
    if message.data.get("first") and message.deliveries > 1:
        return
    match task:
        case "sleep":
            await asyncio.sleep(message.data["seconds"])
        case "block":
            time.sleep(message.data["seconds"])  # noqa: ASYNC251  (what the fault is about)
        case "wait":
            while not Path(message.data["gate"]).exists():  # noqa: ASYNC110, ASYNC240  (another process opens it)
                await asyncio.sleep(0.02)
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "raise":
            raise ERRORS[message.data["error"]]


ERRORS: dict[str, BaseException] = {
    "CancelledError": asyncio.CancelledError(),
    "SystemExit": SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt(),
    "ExceptionGroup": ExceptionGroup("several", [ValueError("one"), KeyError("two")]),
}


def fingerprint(data: Any) -> str:
    """The same for the same payload, types included."""
    return hashlib.sha256(repr(sorted(data.items())).encode(errors="surrogatepass")).hexdigest()[:16]
