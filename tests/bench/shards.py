"""``python -m bench.shards``: one queue on one server, four shards on one server, and four shards on four servers.

One producer and one worker process drive them, on a machine that may have two cores: what is measured is not how fast
four servers are but that none of them does more than its part. A server's own time for a message says how many it could
carry; the busiest one is the bottleneck.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import uvloop

import servers
from bench.chart import Bar, drawn
from bench.peers import ROOT
from bench.runs import SERVER
from streams_queue import Queue, ShardedQueue, Worker

CHART = ROOT / "docs" / "scaling.svg"
USERS = 10_000
CONCURRENCY = 500
SET_UPS = ((1, 1), (1, 4), (4, 4))
"""(servers, shards)"""


class Work(NamedTuple):
    """What a phase took.

    Attributes:
        rate: messages a second.
        cpu: each server's processor time for one message of the whole, in microseconds.
        commands: each server's calls for one message of the whole, those inside scripts included.
        client: the processor time of producer or worker for one message, in microseconds.
        sent: bytes over the network for one message, to all servers and from them.
    """

    rate: float
    cpu: list[float]
    commands: list[float]
    client: float
    sent: float

    @property
    def bottleneck(self) -> float:
        """Messages a second that the busiest server could carry."""
        return 1e6 / max(self.cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="draw docs/scaling.svg, too")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # what a server without a file of its own is to be warned of
    rounds = [[_measured(*how, options.messages) for how in SET_UPS] for _ in range(options.rounds)]
    bars: dict[str, list[Bar]] = {}
    print(HEAD)
    for (count, shards), runs in zip(SET_UPS, zip(*rounds, strict=True), strict=True):
        for phase, name in enumerate(("enqueue", "finish")):
            work = _median([run[phase] for run in runs])
            bars.setdefault(name, []).append(Bar(_named(count, shards), work.bottleneck))
            print(
                f"| {_named(count, shards)} | {name} | {work.rate:,.0f} | {_each(work.commands)} | {_each(work.cpu)} "
                f"| {work.bottleneck:,.0f} | {work.client:.1f} | {work.sent:,.0f} |",
                flush=True,
            )
    if options.write:
        panels = [
            (f"{name}: messages a second that the busiest server could carry", rows) for name, rows in bars.items()
        ]
        CHART.write_text(drawn("What more servers bring", panels, _named(*SET_UPS[-1])))


HEAD = """\
| set-up | work | messages/s | commands a message, each server | server µs a message, each | the busiest could carry \
| client µs a message | network bytes a message |
|---|---|---|---|---|---|---|---|"""


def _named(count: int, shards: int) -> str:
    return f"{count} server{'s' * (count > 1)}, {shards} shard{'s' * (shards > 1)}"


def _median(works: list[Work]) -> Work:
    """The run whose bottleneck is the median; the rate is the median of all."""
    ordered = sorted(works, key=lambda work: work.bottleneck)
    return ordered[len(ordered) // 2]._replace(rate=statistics.median(work.rate for work in works))


def _each(values: list[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


def _measured(count: int, shards: int, messages: int) -> tuple[Work, Work]:
    with _running(count) as running:
        return uvloop.run(_worked(running, shards, messages))


@contextlib.contextmanager
def _running(count: int) -> Iterator[list[servers.Server]]:
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        started = []
        for n in range(count):
            server = servers.start(SERVER, Path(directory) / str(n))
            stack.callback(server.stop)
            started.append(server)
        yield started


async def _worked(running: list[servers.Server], shards: int, messages: int) -> tuple[Work, Work]:
    urls = [server.url for server in running]
    queue: Queue[Any] = Queue("b", url=urls[0]) if shards == 1 else ShardedQueue("b", shards=shards, url=urls)
    payloads = [{"user_id": f"u{n % USERS}", "text": "x" * 100} for n in range(messages)]
    async with queue:
        enqueued = await _phase(running, messages, queue.enqueue_many(payloads))
        worker = Worker(queue, concurrency=CONCURRENCY)
        worker.handler(_nothing)
        finished = await _phase(running, messages, worker.run(burst=True))
        assert await queue.length() == 0
    return enqueued, finished


async def _phase(running: list[servers.Server], messages: int, work: Any) -> Work:
    clients = [server.sync_client() for server in running]
    before = [_spent(client) for client in clients]
    began, used = time.monotonic(), time.process_time()
    await work
    took, used = time.monotonic() - began, time.process_time() - used
    after = [await asyncio.to_thread(_spent, client) for client in clients]
    spent = [
        [(late - early) / messages for early, late in zip(*pair, strict=True)]
        for pair in zip(before, after, strict=True)
    ]
    cpu, commands, sent = zip(*spent, strict=True)
    return Work(messages / took, [share * 1e6 for share in cpu], list(commands), used / messages * 1e6, sum(sent))


def _spent(client: Any) -> tuple[float, float, float]:
    """Seconds of processor time, calls, and bytes over the network so far."""
    cpu, net = client.info("cpu"), client.info("stats")
    calls = sum(row["calls"] for row in client.info("commandstats").values())
    sent = net["total_net_input_bytes"] + net["total_net_output_bytes"]
    return cpu["used_cpu_user"] + cpu["used_cpu_sys"], calls, sent


async def _nothing(message: Any) -> None:
    pass


if __name__ == "__main__":
    main()
