"""How fast an old queue is moved in, against XADD over one pipelined connection to the same server.

PYTHONPATH=tests python -m migrations_rate [--messages 1000000] [--users 10000] [--server embedded]

XADD is measured twice: of the messages, and of their ids alone, which is what the engine writes into a stream. Beside
the rates by the clock stands what a message costs in processor time, of the server and this process together: it
is nearly the same on a machine that has other work.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis as redis_py

import servers
from migrations.old_state import OldState, chat_fields
from migrations.steps import silent
from streams_queue import Queue
from streams_queue_migrations import Applied, apply, applying, verifying

PIPELINE = 1000
USERS = 10_000


class Cost:
    """What was done since it was made: messages a second, and microseconds of processor time for each."""

    def __init__(self, client: redis_py.Redis) -> None:
        self._client = client
        self._began, self._used = time.perf_counter(), self._processor()

    def _processor(self) -> float:
        used = self._client.info("cpu")
        return float(used["used_cpu_user"] + used["used_cpu_sys"]) + time.process_time()

    def of(self, messages: int) -> tuple[float, float]:
        seconds, used = time.perf_counter() - self._began, self._processor() - self._used
        return messages / seconds, used / messages * 1e6


def written(client: redis_py.Redis, prefix: str, messages: int, users: int = USERS) -> None:
    """Chat requests, as an old producer enqueued them."""
    state, start = OldState(client, prefix), time.time() - messages / 1000
    for n in range(messages):
        state.queued(_id(n), start + n / 1000, chat=(f"user-{n % users}", f"message number {n}"))
    state.flush()


def _id(n: int) -> str:
    return f"00000000-0000-4000-8000-{n:012d}"


def xadd_rate(client: redis_py.Redis, messages: int, fields: Callable[[int], dict[str, str]]) -> tuple[float, float]:
    """XADD over one connection, a thousand a round trip."""
    cost = Cost(client)
    for first in range(0, messages, PIPELINE):
        pipeline = client.pipeline(transaction=False)
        for n in range(first, min(first + PIPELINE, messages)):
            pipeline.xadd("rate", fields(n))  # type: ignore[arg-type]  # dict is invariant
        pipeline.execute()
    done = cost.of(messages)
    client.unlink("rate")
    return done


async def moved(
    client: redis_py.Redis, url: str, prefix: str, messages: int
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Moving them in alone, and with the verification."""
    alone: list[tuple[float, float]] = []

    async def timed(*args: Any, **options: Any) -> Any:
        alone.append(cost.of(messages))
        return await verifying.look_twice(*args, **options)

    applying.look_twice = timed  # type: ignore[attr-defined]
    try:
        async with Queue(prefix, url=url) as queue:
            cost = Cost(client)
            applied: Applied = await apply(queue, silent, silent, watch=0)
            whole = cost.of(messages)
    finally:
        applying.look_twice = verifying.look_twice  # type: ignore[attr-defined]
    assert applied.verified.clean and applied.entered == messages
    return alone[0], whole


def measured(server: servers.AnyServer, messages: int, users: int) -> None:
    with server.sync_client(decode_responses=False, socket_timeout=120) as client:
        for prefix in ("plain", "chat_api"):
            client.flushall()
            written(client, prefix, messages, users)
            ids = xadd_rate(client, messages, lambda n: {"id": _id(n)})
            whole = xadd_rate(
                client, messages, lambda n: {"id": _id(n), **chat_fields(f"user-{n % users}", f"message number {n}")}
            )
            alone, verified = asyncio.run(moved(client, server.url, prefix, messages))
            _say(f"{prefix}, {messages:,} messages of {users:,} users")
            _say("  XADD of the messages", whole)
            _say("  XADD of their ids", ids)
            for what, cost in (("moved in", alone), ("with verification", verified)):
                _say(f"  {what}", cost, f"{cost[0] / whole[0]:.2f} x and {cost[0] / ids[0]:.2f} x")


def _say(what: str, cost: tuple[float, float] | None = None, ratios: str = "") -> None:
    figures = f" {cost[0]:>9,.0f}/s {cost[1]:>6.1f} us   {ratios}" if cost else ""
    print(f"{what:<24}{figures}".rstrip(), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=USERS)
    parser.add_argument("--server", choices=servers.NAMES, default=servers.DEFAULT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        server = servers.start_any(options.server, Path(directory))
        try:
            measured(server, options.messages, options.users)
        finally:
            server.stop()


if __name__ == "__main__":
    main()
