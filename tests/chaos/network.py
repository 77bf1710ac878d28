"""Networks that cut off, delay and crumble (fault 13)."""

from __future__ import annotations

import asyncio
import time

from chaos.lab import Lab, Lane
from chaos.proxy import Mode, Proxy
from chaos.scenario import fault
from chaos.verdict import SECRET
from helpers import until
from streams_queue import Queue, QueueUnavailable
from streams_queue.connection import Connection
from streams_queue.settings import Settings


@fault("13", "half-open connections for three leases")
async def half_open(lab: Lab) -> None:
    """Others take over in time; the worker that was cut off writes nothing for what it lost, and goes on."""

    async def each(lane: Lane) -> None:
        async with Proxy(lab.server.port) as proxy:
            for _ in range(lab.size(1, 5)):
                before = lane.ledger.count("start")
                cut_off = await lane.start(url=proxy.url)
                ids = await lane.enqueue(4, do="sleep", seconds=3600, first=True)
                await lane.started(before + 4)
                await proxy.set(Mode.BLACKHOLE)
                began = time.monotonic()
                other = await lane.start()
                results = await asyncio.gather(*(lane.queue.result(id, timeout=20) for id in ids))
                lab.tally.recovered(time.monotonic() - began, lab.recovery)
                assert {int(result.split()[0]) for result in results} == {other.pid}
                await asyncio.sleep(max(0.0, began + 3 * lab.lease - time.monotonic()))  # the fault's own length
                await proxy.set(Mode.PASS)
                await until(lambda: _cancelled(lane, cut_off.pid) >= 4, 15, "it giving up what it lost")  # noqa: B023
                await other.end()
                (id,) = await lane.enqueue()
                await lane.queue.result(id, timeout=15)
                await lane.end_workers()
                lab.tally.runs += 1
        await lane.judge(duplicates=4 * lab.size(1, 5), overlaps=True)
        completed = (await lane.queue.stats()).counters["completed_messages"]
        assert completed == len(lane.ledger.ids("accepted")), f"{completed} counted as completed"

    await lab.side_by_side(lab.size(1, 5), each)


def _cancelled(lane: Lane, pid: int) -> int:
    return sum(entry.word == "cancelled" and entry.pid == pid for entry in lane.ledger.entries())


@fault("13", "requests pass, replies are dropped: a worker for three leases, and a producer")
async def replies_dropped(lab: Lab) -> None:
    """What it was given without knowing goes to others in time; an enqueue that is called again makes one copy."""

    async def each(lane: Lane) -> None:
        async with Proxy(lab.server.port) as proxy, Queue[dict[str, str]](lane.name, url=proxy.url) as producer:
            for _ in range(lab.size(1, 5)):
                await lane.start(url=proxy.url)
                await lane.done(await lane.enqueue())
                await proxy.set(Mode.DROP_REPLIES)
                began = time.monotonic()
                ids = [f"{lane.name}-twice-{lab.tally.runs}-{n}" for n in range(10)]
                lane.ledger.write("attempted", ids)
                refused = await asyncio.gather(*(_refused(producer, id) for id in ids))
                assert all(refused), "an enqueue without a reply was reported as done"
                await lane.start()
                await asyncio.gather(*(lane.queue.result(id, timeout=20) for id in ids))
                lab.tally.recovered(time.monotonic() - began, lab.recovery + 2.5)  # two timeouts of the producer
                await asyncio.sleep(max(0.0, began + 3 * lab.lease - time.monotonic()))  # the fault's own length
                await proxy.set(Mode.PASS)
                receipts = [await producer.enqueue({"token": SECRET}, id=id) for id in ids]
                lane.ledger.write("accepted", ids)
                assert all(receipt.duplicate for receipt in receipts)
                await lane.done(await lane.enqueue())
                await lane.end_workers()
                lab.tally.runs += 1
        await lane.judge(overlaps=True)

    await lab.side_by_side(lab.size(1, 5), each)


async def _refused(producer: Queue[dict[str, str]], id: str) -> bool:
    try:
        await producer.enqueue({"token": SECRET}, id=id)
    except QueueUnavailable:
        return True
    return False


def _slow(name: str, what: str, mode: Mode, count: tuple[int, int]) -> None:
    async def slow(lab: Lab) -> None:
        """Everything runs, once."""
        async with lab.lane() as lane, Proxy(lab.server.port) as proxy:
            proxy.delay = lab.size(100, 500) / 1000
            await proxy.set(mode)
            # Nobody dies here, and a loaded machine passes single bytes on so slowly that replies take seconds.
            await lane.start(2, url=proxy.url, lease=30.0, patience=10.0)
            producer = Queue[dict[str, str]](lane.name, url=proxy.url)
            producer.use(Connection(Settings(proxy.url, 10.0)))
            async with producer:
                ids = await lane.enqueue_to(producer, lab.size(*count))
            await lane.idle(120)
            lab.tally.runs += len(ids)
            await proxy.set(Mode.PASS)
            await lane.judge(duplicates=0)

    slow.__name__ = name
    fault("13", what)(slow)


_slow("latency", "latency of 0 to 500 ms on every packet", Mode.DELAY, (10, 200))
_slow("fragments", "fragments of one byte", Mode.TRICKLE, (5, 500))


@fault("13", "connections reset, again and again")
async def resets(lab: Lab) -> None:
    """Everything runs, once: a lost reply is nobody's crash."""
    async with lab.lane() as lane, Proxy(lab.server.port) as proxy:
        await lane.start(2, url=proxy.url)
        async with Queue[dict[str, str]](lane.name, url=proxy.url) as producer:
            enqueueing = asyncio.create_task(lane.enqueue_to(producer, lab.size(500, 5_000), do="sleep", seconds=0.01))
            for _ in range(lab.size(5, 50)):
                await proxy.set(Mode.RESET)
                await asyncio.sleep(0.1)  # the fault's own rhythm
                await proxy.set(Mode.PASS)
                await asyncio.sleep(0.3)
                lab.tally.runs += 1
            await enqueueing
        await lane.idle(60)
        await lane.judge()
