"""Who looks after the queue, by which clock, under which lease (faults 18, 19, 20a)."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time

from chaos.lab import Lab, Lane
from chaos.scenario import fault
from helpers import until
from streams_queue import ConfigurationError, Queue, Worker, maintenance
from streams_queue.maintenance import Maintenance


@fault("18", "ten maintainers at once")
async def ten_maintainers(lab: Lab) -> None:
    """Each message is promoted once, whoever does it."""
    count = lab.size(500, 10_000)
    async with lab.lane() as lane, contextlib.AsyncExitStack() as stack, lab.server.client() as admin:
        await lane.enqueue(count, delay=0.2)
        queues = [
            await stack.enter_async_context(Queue[dict[str, str]](lane.queue.keys.prefix, url=lab.url))
            for _ in range(10)
        ]
        policy = Worker(lane.queue).policy
        maintainers = [Maintenance(queue.transitions, f"m{n}", lab.lease, policy) for n, queue in enumerate(queues)]
        for maintainer in maintainers:
            await maintainer._transitions.join(maintainer._consumer, lab.lease)

        async def all_promoted() -> bool:
            await asyncio.gather(*(maintainer.round(full=True) for maintainer in maintainers))
            lab.tally.runs += 1
            return (await lane.queue.stats()).scheduled == 0

        await until(all_promoted, 60)
        entries = await admin.xlen(lane.queue.keys.streams["n"])
        assert entries == count, f"{entries} entries of {count} messages"
        await lane.start(2, concurrency=16)
        await lane.idle(120)
        await lane.judge()


@fault("18", "workers restarted, half of them by kill -9", seconds=900)
async def restarts(lab: Lab) -> None:
    """Their consumers are pruned, what they held never is lost."""
    rounds = lab.size(4, 100)
    async with lab.lane() as lane:
        async with lane.producing(lab.size(200, 50), do="sleep", seconds=0.02):
            for _ in range(rounds):
                await lane.start(10, concurrency=2)
                await lane.started(lane.ledger.count("start") + 3)
                for worker in lane.alive[:5]:
                    worker.kill()
                await lane.end_workers()
                lab.tally.runs += 10
        await lane.start(2)
        await lane.idle(60)
        # Nobody lived long enough to sweep before: recovery counts from the last start.
        await lane.judge(duplicates=rounds * 10, recovery=float("inf"))


@fault("19", "workers whose clocks are an hour off, both ways")
async def wrong_clocks(lab: Lab) -> None:
    """Nothing is early or late by a client's clock: due times, retries and leases go by the server's."""
    count = lab.size(20, 1_000)
    async with lab.lane() as lane:
        await lane.start(1, clock=3600.0, retry_delay=0.5)
        await lane.start(1, clock=-3600.0, retry_delay=0.5)
        long = await lane.enqueue(2, do="sleep", seconds=2 * lab.lease)
        delayed = await lane.enqueue(count, delay=1.0)
        failing = await lane.enqueue(4, do="raise", error="ExceptionGroup")
        await lane.done([*long, *delayed], 30)
        await lane.idle()
        accepted = {entry.id: entry.at for entry in lane.ledger.entries() if entry.word == "attempted"}
        late_by = maintenance.INTERVAL + 1.0
        for id in delayed:
            (run,) = lane.ledger.runs_of(id)
            assert 1.0 <= run.start - accepted[id] <= 1.0 + late_by, f"{id} ran after {run.start - accepted[id]:.2f} s"
        for id in failing:
            runs = lane.ledger.runs_of(id)
            assert len(runs) == 4, f"{id} ran {len(runs)} times"
            for number, (one, two) in enumerate(itertools.pairwise(runs)):
                wait = 0.5 * 2**number
                assert wait * 0.4 <= two.start - one.start <= wait * 1.6 + late_by, f"{id} was retried at a wrong time"
        lab.tally.runs += len(accepted)
        await lane.judge()


@fault("20a", "a worker that wants another lease than those that live")
async def another_lease(lab: Lab) -> None:
    """It is refused at its start, by an error that names both."""
    async with lab.lane() as lane:
        await lane.start()
        await lane.done(await lane.enqueue())
        for lease in (lab.lease / 2, lab.lease * 2, 30.0):
            worker = Worker(lane.queue, lease=lease)

            @worker.handler
            async def handle(message: object) -> None:
                raise AssertionError("it was to be refused")

            try:
                await worker.run()
            except ConfigurationError as error:
                assert f"{lease:g} s" in str(error) and f"{lab.lease:g} s" in str(error), error
            else:
                raise AssertionError(f"a lease of {lease} s beside {lab.lease} s was accepted")
            lab.tally.runs += 1
        await lane.done(await lane.enqueue())
        await lane.judge()


@fault("20a", "the lock of a running message deleted by hand")
async def lock_deleted(lab: Lab) -> None:
    """Its holder has lost it, and another runs it after the next sweep."""

    async def each(lane: Lane) -> None:
        async with lab.server.client() as admin:
            holder = await lane.start(concurrency=1)
            for _ in range(lab.size(1, 5)):
                (id,) = await lane.enqueue(do="sleep", seconds=3600, first=True)
                await until(lambda: lane.ledger.runs_of(id), what="its first run")  # noqa: B023
                other = await lane.start(concurrency=1)
                await admin.delete(lane.queue.keys.lock(id))
                began = time.monotonic()
                (result,) = await lane.done([id])
                lab.tally.recovered(time.monotonic() - began, maintenance.INTERVAL + lab.lease / 3 + 1.0)
                assert int(result.split()[0]) in {other.pid, holder.pid}
                await until(lambda: lane.ledger.runs_of(id)[0].how == "cancelled", what="the holder giving up")  # noqa: B023
                await other.end()
                lab.tally.runs += 1
        await lane.judge(duplicates=lab.size(1, 5), overlaps=True, edited=True)

    await lab.side_by_side(lab.size(2, 10), each)


@fault("20a", "the server down for longer than the lease with work in flight")
async def down_for_longer_than_the_lease(lab: Lab) -> None:
    """Holders keep what nobody claimed: each message runs once."""
    server = lab.serve("--appendonly", "yes", "--appendfsync", "always")
    async with lab.lane() as lane:
        await lane.start(2)
        for _ in range(lab.size(1, 10)):
            before = lane.ledger.count("start")
            ids = await lane.enqueue(8, do="sleep", seconds=4 * lab.lease)
            await lane.started(before + 8)
            server.kill()
            await asyncio.sleep(1.5 * lab.lease)  # the fault's own length
            await asyncio.to_thread(server.start)
            await lab.in_service()
            await lane.done(ids, 30)
            lab.tally.runs += 1
        await lane.judge()
