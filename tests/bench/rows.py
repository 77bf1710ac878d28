"""What is measured: each function here fills a part of the figures."""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import sys
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bench.peers import OURS, Missing, Peer
from bench.programs.common import Task, run
from bench.programs.ours import FEW, PREFIX
from bench.runs import Bench, Failed, Program, Run
from migrations.old_state import OldState
from streams_queue import Queue
from streams_queue_compat import chat_api_queue

SHORT, LONG = 10_000, 1_000_000
"""Messages that wait, in a short line and in a long one."""

WAITING = 50_000
"""Messages of which the memory is measured."""

REACTIONS = 200
LOOK_UPS = 500
IDLE_SECONDS = 20.0


class Row(NamedTuple):
    """A line of the table of targets."""

    work: str
    target: str
    measured: str
    met: bool | None


class Pair(NamedTuple):
    """Ours and a peer, one after the other: messages a second."""

    ours: float
    theirs: float


@dataclass
class Figures:
    """All that was measured."""

    rows: list[Row] = field(default_factory=list)
    finish: dict[str, list[Pair]] = field(default_factory=dict)
    enqueue: dict[str, list[Pair]] = field(default_factory=dict)
    batch: dict[str, list[Pair]] = field(default_factory=dict)
    costs: dict[str, list[Run]] = field(default_factory=dict)
    """Of finishing, by queue, ours included."""
    missing: dict[str, str] = field(default_factory=dict)
    """Peers that were not run, and why."""
    commands: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Calls and microseconds of each command inside Redis, for one message."""

    def add(self, work: str, target: str, measured: str, met: bool | None) -> None:
        row = Row(work, target, measured, met)
        self.rows.append(row)
        say(f"{work}: {measured} (target {target})")


def say(words: str) -> None:
    print(words, flush=True)


def ratio(pairs: Iterable[Pair]) -> float:
    """How many times as fast ours is: the median over the pairs."""
    return statistics.median(pair.ours / pair.theirs for pair in pairs)


# ---- beside other queues


def beside_peers(bench: Bench, figures: Figures, peers: Iterable[Peer]) -> None:
    """Enqueue from 32 callers, and finish it: ours and each peer, one after the other, pair by pair."""
    for peer in peers:
        try:
            peer.command()
            for _ in range(bench.options.pairs):
                ours, theirs = _enqueued_and_finished(bench, OURS), _enqueued_and_finished(bench, peer)
                figures.enqueue.setdefault(peer.name, []).append(Pair(ours.enqueued, theirs.enqueued))
                figures.finish.setdefault(peer.name, []).append(Pair(ours.finished.rate, theirs.finished.rate))
                figures.costs.setdefault(OURS.name, []).append(ours.finished)
                figures.costs.setdefault(peer.name, []).append(theirs.finished)
        except (Missing, Failed) as reason:
            figures.missing[peer.name] = str(reason)
            say(f"{peer.name}: not run: {reason}")
            continue
        say(f"{peer.name}: enqueue {_medians(figures.enqueue[peer.name])}")
        say(f"{peer.name}: finish {_medians(figures.finish[peer.name])}; {_costs(figures.costs[peer.name])}")
    if OURS.name in figures.costs:
        say(f"ours: {_costs(figures.costs[OURS.name])}")
    python = [peer.name for peer in peers if peer.is_python and peer.advised]
    work = "finish no-op messages, one worker process"
    _against(figures, work, figures.finish, python, 6)
    _against(figures, work, figures.finish, [peer.name for peer in peers if not peer.advised], 6)
    _against(figures, work, figures.finish, [peer.name for peer in peers if not peer.is_python], 1.5)
    _against(figures, "`enqueue` from 32 concurrent callers", figures.enqueue, python, 1.5)


class _Both(NamedTuple):
    enqueued: float
    finished: Run


def _enqueued_and_finished(bench: Bench, peer: Peer) -> _Both:
    bench.flush()
    count = _count(bench, peer)
    return _Both(bench.fill(peer, count), bench.work(peer, count))


def in_batches(bench: Bench, figures: Figures, peers: Iterable[Peer]) -> None:
    """`enqueue_many` beside the peers' batch calls."""
    able = [peer for peer in peers if peer.batches and peer.name not in figures.missing]
    for peer in able:
        try:
            for _ in range(bench.options.pairs):
                rates = []
                for who in (OURS, peer):
                    bench.flush()
                    rates.append(bench.fill(who, _count(bench, who), "fill-many"))
                figures.batch.setdefault(peer.name, []).append(Pair(*rates))
        except (Missing, Failed) as reason:
            figures.missing[peer.name] = str(reason)
            say(f"{peer.name}: not run: {reason}")
            continue
        say(f"{peer.name}: batches {_medians(figures.batch[peer.name])}")
    _against(figures, "`enqueue_many`", figures.batch, ["streaq"], 3)
    _against(figures, "`enqueue_many`", figures.batch, [peer.name for peer in able if peer.name != "streaq"], 1.2)


def _count(bench: Bench, peer: Peer) -> int:
    return max(500, round(bench.options.messages * peer.share))


def _against(figures: Figures, work: str, pairs: dict[str, list[Pair]], names: list[str], target: float) -> None:
    """A row for the fastest of these: the one that we are least ahead of."""
    ratios = {name: ratio(pairs[name]) for name in names if pairs.get(name)}
    if not ratios:
        return
    fastest = min(ratios, key=lambda name: ratios[name])
    lead = ratios[fastest]
    figures.add(f"{work}, against {fastest}", f"{target:g} x", f"{lead:.2f} x", lead >= target)


def _medians(pairs: list[Pair]) -> str:
    ours, theirs = (statistics.median(rates) for rates in zip(*pairs, strict=True))
    return f"{theirs:,.0f}/s, ours {ours:,.0f}/s, {ratio(pairs):.2f} x"


def _costs(runs: list[Run]) -> str:
    worker, server = (
        statistics.median(times) for times in ([run.worker for run in runs], [run.server for run in runs])
    )
    return f"processor time for a message: worker {worker * 1e6:.0f} µs, server {server * 1e6:.0f} µs"


# ---- ours alone


def share(bench: Bench, figures: Figures) -> None:
    """How near Redis is to its limit while we finish messages."""
    shares = []
    for _ in range(bench.options.pairs):
        bench.flush()
        bench.fill(OURS, bench.options.messages, "fill-many")
        shares.append(bench.work(OURS, bench.options.messages).share)
    share = statistics.median(shares)
    figures.add("share of one Redis core in use while finishing", "85 %", f"{share:.0%}", share >= 0.85)


def processes(bench: Bench, figures: Figures) -> None:
    """What a second process of `streams-queue worker --processes` brings, by what a handler computes."""
    for micros, messages in (
        (0, bench.options.messages),
        (200, bench.options.messages // 5),
        (1000, bench.options.messages // 20),
    ):
        rates = [
            [_rate_of_processes(bench, count, micros / 1e6, messages) for count in (1, 2)]
            for _ in range(bench.options.pairs)
        ]
        one, two = (statistics.median(column) for column in zip(*rates, strict=True))
        ratio = statistics.median(second / first for first, second in rates)
        work = f"2 worker processes ({two:,.0f}/s) against one ({one:,.0f}/s), handlers that compute for {micros} µs"
        figures.add(work, "reported", f"{ratio:.2f} x", None)


def _rate_of_processes(bench: Bench, count: int, compute: float, messages: int) -> float:
    """Messages a second, once all processes are at work: they start on a paused queue."""

    async def resumed() -> None:
        async with Queue(PREFIX, url=bench.url) as queue:
            while (await queue.stats()).workers < count:  # noqa: ASYNC110  (another process)
                await asyncio.sleep(0.05)
            await queue.resume()

    def when(share: float) -> float:
        while int(bench.client.hget(f"{PREFIX}:stats", "completed_messages") or 0) < share * messages:
            time.sleep(0.005)
        return time.perf_counter()

    bench.flush()
    bench.fill(OURS, messages, "fill-many")
    bench.client.hset(f"{PREFIX}:meta", "paused", 1)
    arguments = ["worker", "bench.programs.several:worker", "--processes", str(count), "--log-level", "error"]
    environment = {"BENCH_COMPUTE": str(compute), "STREAMS_QUEUE_URL": bench.url}
    running = Program([sys.executable, "-m", "streams_queue.cli", *arguments], environment)
    try:
        run(resumed())
        return 0.9 * messages / -(when(0.05) - when(0.95))
    finally:
        running.kill()


def reaction(bench: Bench, figures: Figures) -> None:
    """From `enqueue` to the start of the handler, on an idle queue, in round trips of the same client."""

    async def measured() -> tuple[float, float]:
        trips, starts = [], []
        async with Queue(PREFIX, url=bench.url) as queue:
            with bench.running(OURS, "react", 0) as running:
                for number in range(REACTIONS + 20):
                    await asyncio.sleep(0.02)  # the worker waits in its read again
                    began = time.perf_counter()
                    await queue.connection.client.execute_command("PING")
                    trips.append(time.perf_counter() - began)
                    await asyncio.sleep(0.02)
                    await queue.enqueue({"sent": time.monotonic_ns(), "number": number})
                    starts.append((await asyncio.to_thread(running.heard))["seconds"])
        return statistics.median(trips[20:]), statistics.median(starts[20:])

    bench.flush()
    trip, start = run(measured())
    figures.add(
        f"`enqueue` to handler start on an idle queue, median ({start * 1e6:,.0f} µs), in bare round trips of the same "
        f"client ({trip * 1e6:,.0f} µs)",
        "2.5", f"{start / trip:.2f}", start / trip <= 2.5,
    )  # fmt: skip


def long_line(bench: Bench, figures: Figures, waiting: int = LONG) -> None:
    """Throughput and position look-up with many waiting against few; then the memory of the worker that ends it all."""
    bench.flush()
    burst = bench.options.messages
    few = run(_filled(bench, 1, SHORT))
    many = run(_filled(bench, 2, waiting))
    throughput, look_up = [], []
    for _ in range(bench.options.pairs):
        rates = []
        for database, line in ((1, SHORT), (2, waiting)):
            run(_filled(bench, database, line + burst))
            rates.append(bench.work(OURS, burst, database).rate)
        throughput.append(rates[1] / rates[0])
        look_up.append(run(_look_ups(bench, 2, many)) / run(_look_ups(bench, 1, few)))
    work = f"throughput with {waiting:,} waiting against {SHORT:,} waiting"
    figures.add(work, "0.9 x", f"{statistics.median(throughput):.2f} x", statistics.median(throughput) >= 0.9)
    times = statistics.median(look_up)
    figures.add("position look-up likewise", "1.5 x the time", f"{times:.2f} x", times <= 1.5)
    run(_filled(bench, 2, waiting))
    with bench.running(OURS, "grow", waiting, 2) as running:
        small, large = (float(running.heard()["bytes"]) for _ in range(2))
    bench.flush()
    growth = large / small
    work = f"worker memory after {waiting:,} messages against after {FEW:,} ({small / 2**20:.0f} MiB)"
    figures.add(work, "1.1 x", f"{growth:.2f} x", growth <= 1.1)


async def _filled(bench: Bench, database: int, total: int) -> list[str]:
    """Enqueue until so many wait; ids of the last ones, which stay for longest."""
    ids: list[str] = []
    async with Queue(PREFIX, url=bench.url_of(database)) as queue:
        task = Task("", total - await queue.length(), bench.options.bytes)  # a worker that stops finishes what it holds
        for batch in task.batches():
            ids = [receipt.id for receipt in await queue.enqueue_many([task.payload(number) for number in batch])]
    return ids


async def _look_ups(bench: Bench, database: int, ids: list[str]) -> float:
    """Seconds that a look-up takes, median."""
    times = []
    async with Queue(PREFIX, url=bench.url_of(database)) as queue:
        for id in random.choices(ids, k=LOOK_UPS):
            began = time.perf_counter()
            await queue.position(id)
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def memory(bench: Bench, figures: Figures) -> None:
    """Redis memory for a waiting message against the old layout alone: what the old code wrote for the same message."""
    task = Task("", WAITING, bench.options.bytes)
    payloads = [task.payload(number) for number in range(WAITING)]

    def old(**fields: Callable[[int], Any]) -> None:
        state = OldState(bench.raw, PREFIX)
        for number in range(WAITING):
            state.queued(str(uuid.uuid4()), **{name: of(number) for name, of in fields.items()})
        state.flush()

    async def native(ttl: float | None) -> None:
        async with Queue(PREFIX, url=bench.url, ttl=ttl) as queue:
            await queue.enqueue_many(payloads)

    async def chat(a_user: int) -> None:
        for first in range(0, WAITING, 500):
            await asyncio.gather(*(
                chat_api_queue.enqueue_chat_request(
                    f"user-{number // a_user}", f"message {number}", "telegram", "-100", "123:secret", "5", "private",
                    "77",
                )
                for number in range(first, first + 500)
            ))  # fmt: skip
        await chat_api_queue._chat.queue.close()

    def used(write: Callable[[], Any]) -> float:
        bench.flush()
        before = bench.memory()
        write()
        return (bench.memory() - before) / WAITING

    plain = {name: (lambda number, name=name: payloads[number][name]) for name in payloads[0]}
    before, now, bounded = used(lambda: old(**plain)), used(lambda: run(native(None))), used(lambda: run(native(3600)))
    figures.add(
        f"Redis memory for a waiting message, against the old layout alone: native ({now:,.0f} and {before:,.0f} "
        f"bytes, {bounded:,.0f} with a TTL, as the old one had)",
        "1.10 x", f"{now / before:.2f} x", now / before <= 1.10,
    )  # fmt: skip
    os.environ["STREAMS_QUEUE_URL"] = bench.url
    before = used(lambda: old(chat=lambda number: (f"user-{number}", f"message {number}")))
    one, four = used(lambda: run(chat(1))), used(lambda: run(chat(4)))
    figures.add(
        "Redis memory for a waiting message of the chat queue with its index of users, one message a user "
        f"({one:,.0f} and {before:,.0f} bytes; "
        f"{four / before:.2f} x with four messages a user)",
        "1.25 x", f"{one / before:.2f} x", one / before <= 1.25,
    )  # fmt: skip
    bench.flush()


def commands(bench: Bench, figures: Figures) -> None:
    """Time inside Redis for one message, `enqueue` from 32 callers to finished, by command."""
    bench.flush()
    count, before = bench.options.messages, bench.command_times()
    bench.fill(OURS, count)
    bench.work(OURS, count)
    used = {
        name: ((calls - before.get(name, (0, 0.0))[0]) / count, (spent - before.get(name, (0, 0.0))[1]) / count)
        for name, (calls, spent) in bench.command_times().items()
    }
    figures.commands = {name: cost for name, cost in used.items() if cost[1] >= 0.005}
    scripts = sum(spent for name, (_, spent) in used.items() if name in ("eval", "evalsha"))
    figures.add("commands' time inside Redis for one message, enqueue to finish", "reported", f"{scripts:.1f} µs", None)


def idle(bench: Bench, figures: Figures) -> None:
    """Requests a second of one idle worker, which sweeps."""
    bench.flush()
    requests = 0
    with bench.running(OURS, "react", 0):
        time.sleep(5)  # it has joined, looked at the server, and swept for the first time
        with bench.client.monitor() as monitor:
            until = time.monotonic() + IDLE_SECONDS
            while time.monotonic() < until:
                requests += monitor.next_command()["client_type"] != "lua"
    rate = requests / IDLE_SECONDS
    figures.add("requests a second of one idle worker, the one that sweeps included", "2", f"{rate:.1f}", rate <= 2)
