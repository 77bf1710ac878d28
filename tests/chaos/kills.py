"""Workers that die, stop, or hang (faults 1 to 6)."""

from __future__ import annotations

import asyncio
import itertools
import signal
import time
from functools import partial
from typing import Any

from chaos.lab import Lab, Lane
from chaos.proxy import Mode, Proxy
from chaos.scenario import fault
from helpers import until
from streams_queue import HandlerFailed, scripts

RUNS_AFTER = {
    "after_read": 1, "before_handler": 1, "mid_handler": 2, "before_finish": 2, "after_finish": 1, "mid_sweep": 1,
    "mid_promote": 1,
}  # fmt: skip
"""How often a message has run in the end, when its worker was killed at this place."""


async def _finished_by_another(lane: Lane, ids: list[str], runs: int) -> None:
    """A healthy worker does what is left; each message has run so often in the end."""
    healthy = await lane.start()
    await asyncio.gather(*(lane.queue.result(id, timeout=15) for id in ids))
    for id in ids:
        assert (found := len(lane.ledger.runs_of(id))) == runs, f"{id} ran {found} times instead of {runs}"
    await healthy.end()


async def _killed_at(place: str, rounds: int, lane: Lane) -> None:
    for _ in range(rounds):
        ids = []
        if place == "mid_sweep":
            victim = await lane.start(failpoints="before_handler:kill", concurrency=1)
            ids += await lane.enqueue()
            await lane.died(victim)
        worker = await lane.start(failpoints=f"{place}:kill", concurrency=1)
        if place != "mid_sweep":
            ids += await lane.enqueue(delay=0.05 if place == "mid_promote" else 0.0)
        await lane.died(worker)
        died = time.monotonic()
        await _finished_by_another(lane, ids, RUNS_AFTER[place])
        lane.lab.tally.recovered(time.monotonic() - died, lane.lab.recovery)
        lane.lab.tally.runs += 1
    await lane.judge(duplicates=rounds * (RUNS_AFTER[place] - 1))


def _at_every_failpoint(place: str) -> None:
    async def killed(lab: Lab) -> None:
        """0 lost; the message runs as often as the place says: twice only where its handler had begun before."""
        lanes = lab.size(2, lab.lanes)
        await lab.side_by_side(lanes, partial(_killed_at, place, lab.size(1, 100 // lab.lanes)))

    killed.__name__ = f"killed_{place}"
    fault("1", f"kill -9 of a worker at `{place}`")(killed)


for _place in RUNS_AFTER:
    _at_every_failpoint(_place)


@fault("1", "kill -9 of a worker when Redis has the finish and the reply is on its way")
async def killed_finish_sent(lab: Lab) -> None:
    """The message is finished, so nobody runs it again."""
    rounds = lab.size(1, 10)

    async def each(lane: Lane) -> None:
        async with Proxy(lab.server.port) as proxy:
            for _ in range(rounds):
                proxy.hold_after = None
                worker = await lane.start(url=proxy.url, concurrency=1)
                (warm,) = await lane.enqueue()  # from here on the script is known by its digest
                await lane.queue.result(warm, timeout=10)
                proxy.held.clear()
                proxy.hold_after = scripts.sha("complete").encode()
                (id,) = await lane.enqueue()
                await asyncio.wait_for(proxy.held.wait(), 10)
                await lane.queue.result(id, timeout=10)
                worker.kill()
                await worker.ended()
                await _finished_by_another(lane, [id, *await lane.enqueue()], runs=1)
                lab.tally.runs += 1
        await lane.judge()

    await lab.side_by_side(lab.size(2, 10), each)


@fault("1", "kill -9 of a worker in the middle of a batch of 100")
async def killed_mid_batch(lab: Lab) -> None:
    """0 lost; only those of the batch that had begun run again."""
    rounds = lab.size(1, 5)

    async def each(lane: Lane) -> None:
        for _ in range(rounds):
            ids = await lane.enqueue(49)
            ids += await lane.enqueue(do="die", first=True)
            ids += await lane.enqueue(50)
            victim = await lane.start(batch=100, concurrency=1)
            await lane.died(victim)
            died = time.monotonic()
            healthy = await lane.start(batch=100, concurrency=1)
            await lane.done(ids)
            lab.tally.recovered(time.monotonic() - died, lab.recovery)
            await healthy.end()
            lab.tally.runs += 1
        await lane.judge(duplicates=50 * rounds)

    await lab.side_by_side(lab.size(2, 10), each)


@fault("2", "ten workers, one killed every 0.5 s")
async def one_after_the_other(lab: Lab) -> None:
    """0 lost; no more duplicates than messages were in flight at the kills; nothing is left behind.

    The one that looks after the queue is killed time and again too: then its turn has to end before another sweeps.
    """
    count, concurrency = lab.size(2_000, 100_000), 4
    async with lab.lane() as lane:
        await lane.start(lab.size(4, 10), concurrency=concurrency)
        enqueueing = asyncio.create_task(lane.enqueue(count, do="sleep", seconds=lab.size(4, 2) / 1000))
        kills = 0
        while lane.ledger.count("end") < count * 0.95:
            victim = lane.alive[0]
            victim.kill()
            kills += 1
            await lane.start(concurrency=concurrency)
            await asyncio.sleep(0.5)  # the fault's own rhythm
        await enqueueing
        await lane.idle(60)
        lab.tally.runs += kills
        await lane.judge(duplicates=kills * concurrency, recovery=lab.after_outage)


@fault("2", "each user's messages one at a time, and a worker killed every 0.5 s")
async def in_order(lab: Lab) -> None:
    """0 lost; of each user the messages begin in order of arrival, no two at the same time, and none stays parked."""
    users, each, concurrency = lab.size(6, 40), lab.size(60, 500), 4
    orders: dict[str, Any] = {"concurrency": concurrency, "one_at_a_time_per": "user"}
    async with lab.lane() as lane:
        await lane.start(lab.size(3, 8), **orders)
        sent = await asyncio.gather(
            *(lane.enqueue(each, do="sleep", seconds=0.01, user=f"u{user}") for user in range(users))
        )
        kills = 0
        while lane.ledger.count("end") < users * each * 0.9:
            lane.alive[0].kill()
            kills += 1
            await lane.start(**orders)
            await asyncio.sleep(0.5)  # the fault's own rhythm
        await lane.idle(60)
        lab.tally.runs += kills
        for ids in sent:
            _began_in_order(lane, ids)
        assert (await lane.queue.stats()).parked == 0
        await lane.judge(duplicates=kills * concurrency, recovery=lab.after_outage)


def _began_in_order(lane: Lane, ids: list[str]) -> None:
    """One user's runs: each began when the one before it had ended, or its worker was dead and its message back."""
    wanted, place = set(ids), {id: n for n, id in enumerate(ids)}
    runs = sorted((run for run in lane.ledger.runs() if run.id in wanted), key=lambda run: run.start)
    for before, after in itertools.pairwise(runs):
        assert place[after.id] - place[before.id] in (0, 1), f"{after.id} began after {before.id}"
        assert before.end is None or before.end <= after.start, f"{before.id} and {after.id} at the same time"


@fault("3", "a worker stopped for three leases, then continued")
async def a_zombie(lab: Lab) -> None:
    """It finishes nothing and steals nothing back; what it lost is logged once and counted once."""

    async def each(lane: Lane) -> None:
        for _ in range(lab.size(1, 5)):
            zombie = await lane.start(concurrency=2)
            before = lane.ledger.count("start")
            ids = await lane.enqueue(2, do="sleep", seconds=1.5 * lab.lease)
            await lane.started(before + 2)
            zombie.send(signal.SIGSTOP)
            stopped = time.monotonic()
            other = await lane.start(concurrency=2)
            await lane.started(before + 4)
            lab.tally.recovered(time.monotonic() - stopped, lab.recovery)
            await asyncio.sleep(max(0.0, stopped + 3 * lab.lease - time.monotonic()))  # three leases, as the fault says
            zombie.send(signal.SIGCONT)
            results = await asyncio.gather(*(lane.queue.result(id, timeout=10) for id in ids))
            assert {int(result.split()[0]) for result in results} == {other.pid}, "the zombie finished something"
            await until(lambda: zombie.words().count(" lost message ") >= 2, 10, "the zombie saying what it lost")  # noqa: B023
            assert zombie.words().count(" lost message ") == 2, zombie.words()
            (id,) = await lane.enqueue()
            await lane.queue.result(id, timeout=10)
            await lane.end_workers()
            lab.tally.runs += 1
        await lane.judge(duplicates=2 * lab.size(1, 5), overlaps=True)
        counters = (await lane.queue.stats()).counters
        completed, lost = counters["completed_messages"], counters["lost_leases"]
        assert completed == len(lane.ledger.ids("accepted")), f"{completed} were counted as completed"
        assert lost == 2 * lab.size(1, 5), f"{lost} were counted as lost"

    await lab.side_by_side(lab.size(2, 10), each)


@fault("4", "event loop blocked for two leases; a handler running for 20")
async def long_and_blocking_handlers(lab: Lab) -> None:
    """Each message runs once."""

    async def each(lane: Lane) -> None:
        await lane.start(2, concurrency=2)
        ids = await lane.enqueue(1, do="sleep", seconds=lab.size(4, 20) * lab.lease)
        ids += await lane.enqueue(3, do="block", seconds=2 * lab.lease)
        await asyncio.gather(*(lane.queue.result(id, timeout=30 * lab.lease) for id in ids))
        lab.tally.runs += len(ids)
        await lane.judge()

    await lab.side_by_side(lab.size(1, 5), each)


@fault("5", "a message that kills its process, among nine innocents")
async def poison(lab: Lab) -> None:
    """It is a dead letter with its reason after three deaths; no innocent is one; the queue flows on."""
    await lab.side_by_side(lab.size(2, 10), partial(_poisoned, held=4, seconds=0.2, concurrency=4))


@fault("5", "a message that kills its process, in a batch with nine innocents")
async def poison_in_a_batch(lab: Lab) -> None:
    """The same: before the last time it is in a batch of its own, and so are the nine."""
    await lab.side_by_side(lab.size(2, 10), partial(_poisoned, held=10, seconds=0.01, concurrency=1, batch=10))


async def _poisoned(lane: Lane, *, held: int, seconds: float, **orders: Any) -> None:
    """By one worker at a time, which holds so many messages."""
    rounds = lane.lab.size(1, 5)
    for _ in range(rounds):
        innocents = await lane.enqueue(5, do="sleep", seconds=seconds)
        (killer,) = await lane.enqueue(do="die")
        innocents += await lane.enqueue(4, do="sleep", seconds=seconds)
        keeping = asyncio.create_task(_kept_alive(lane, orders))
        try:
            await asyncio.gather(*(lane.queue.result(id, timeout=40) for id in innocents))
            await lane.queue.result(killer, timeout=20)
        except HandlerFailed as failure:
            assert failure.reason == "crash", failure
        else:
            raise AssertionError("a message that kills its process was completed")
        finally:
            keeping.cancel()
            await asyncio.wait([keeping])
        runs = len(lane.ledger.runs_of(killer))
        assert runs == 3, f"it ran {runs} times instead of 3"
        dead = {message.id for message in await lane.queue.dead_letters.list()}
        assert not dead & set(innocents), "an innocent message is a dead letter"
        assert killer in dead
        lane.lab.tally.runs += 1
    await lane.judge(duplicates=3 * rounds * held)


async def _kept_alive(lane: Lane, orders: dict[str, Any]) -> None:
    """One worker, started again when it dies."""
    while True:
        worker = lane.alive[-1] if lane.alive else await lane.start(**orders)
        await asyncio.shield(worker.gone)
        lane.ledger.write("gone", ["-"], pid=worker.pid)


@fault("6", "SIGTERM with work in flight that ends within the grace period")
async def stopped_within_the_grace(lab: Lab) -> None:
    """It exits with 0 when the work is done; nothing runs twice."""

    async def each(lane: Lane) -> None:
        for _ in range(lab.size(1, 5)):
            worker = await lane.start(grace=3.0)
            before = lane.ledger.count("start")
            await lane.enqueue(4, do="sleep", seconds=0.5)
            await lane.started(before + 4)
            await _ends(worker_of=lane, within=0.5 + 1.0)
            assert worker.gone.result() == 0
            lab.tally.runs += 1
        await lane.judge()

    await lab.side_by_side(lab.size(2, 10), each)


async def _ends(worker_of: Lane, within: float, signals: int = 1) -> None:
    (worker,) = worker_of.alive
    began = time.monotonic()
    for turn in range(signals):
        if turn:
            await asyncio.sleep(0.1)  # two signals at once would be one
        worker.send(signal.SIGTERM)
    await worker.ended()
    took = time.monotonic() - began
    assert took < within, f"it took {took:.2f} s to exit, {within:g} s are allowed"


async def _unfinished_comes_back(lane: Lane, *, grace: float, within: float, signals: int) -> None:
    """What a stopped worker did not finish is at work again in under a second, uncharged."""
    worker = await lane.start(grace=grace)
    before = lane.ledger.count("start")
    ids = await lane.enqueue(4, do="sleep", seconds=3600, first=True)
    await lane.started(before + 4)
    await _ends(lane, within=within, signals=signals)
    gone = time.monotonic()
    assert worker.gone.result() == 0
    other = await lane.start()
    await lane.started(before + 8)
    lane.lab.tally.recovered(time.monotonic() - gone, 1.0)
    await asyncio.gather(*(lane.queue.result(id, timeout=10) for id in ids))
    assert "recovered_messages" not in (await lane.queue.stats()).counters, "a hand-back is not a recovery"
    await other.end()
    lane.lab.tally.runs += 1


@fault("6", "SIGTERM with work in flight that outlasts the grace period; SIGTERM twice")
async def stopped_before_the_end(lab: Lab) -> None:
    """It exits within grace + 1 s, and at once after a second signal; what was unfinished is back in under a second."""

    async def each(lane: Lane) -> None:
        for _ in range(lab.size(1, 5)):
            await _unfinished_comes_back(lane, grace=1.0, within=1.0 + 1.0, signals=1)
            await _unfinished_comes_back(lane, grace=60.0, within=1.0 + 0.1, signals=2)
        await lane.judge(duplicates=8 * lab.size(1, 5))

    await lab.side_by_side(lab.size(1, 5), each)


@fault("6", "SIGTERM at start, and while the server is away")
async def stopped_at_bad_moments(lab: Lab) -> None:
    """It exits within grace + 1 s; the queue is as it was."""

    async def at_start(lane: Lane, pause: float) -> None:
        worker = await lane._bear("", None, 1.0, {})
        await asyncio.sleep(pause)
        worker.send(signal.SIGTERM)
        code = await worker.ended(5)
        # Before its signal handlers stand it ends as any process does.
        assert code in {0, -signal.SIGTERM}, f"exit code {code}\n{worker.words()}"
        lab.tally.runs += 1

    async with lab.lane() as lane:
        for pause in itertools.islice(itertools.cycle((0.0, 0.01, 0.02, 0.03, 0.05)), lab.size(5, 100)):
            await at_start(lane, pause)
        async with Proxy(lab.server.port) as proxy:
            for _ in range(lab.size(1, 10)):
                await proxy.set(Mode.PASS)
                worker = await lane.start(url=proxy.url, grace=1.0)
                (id,) = await lane.enqueue()
                await lane.queue.result(id, timeout=10)
                await proxy.set(Mode.RESET)
                await until(lambda: "unavailable" in worker.words(), 10, "the worker noticing")  # noqa: B023
                await _ends(lane, within=1.0 + 1.0)
                lab.tally.runs += 1
        (id,) = await lane.enqueue()
        await _finished_by_another(lane, [id], runs=1)
        await lane.judge()
