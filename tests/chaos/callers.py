"""What callers do: cancel, collide, send strange payloads, let bodies run out, raise (faults 7, 8, 15, 16, 17)."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections import Counter
from typing import Any

from chaos import worker
from chaos.lab import Lab, Lane
from chaos.scenario import fault
from chaos.verdict import SECRET
from helpers import until
from streams_queue import Expired, HandlerFailed, InvalidMessage, Queue
from streams_queue.answers import Enqueued
from streams_queue.arguments import Conditions


@fault("7", "enqueue cancelled after 0 to 5 ms")
async def enqueue_cancelled(lab: Lab) -> None:
    """What was accepted runs once, what is in doubt at most once; no connection gives one call another's answer."""
    count = lab.size(500, 10_000)
    async with lab.lane() as lane:
        await lane.start(2, concurrency=16)
        for first in range(0, count, 20):
            ids = [f"{lane.name}-c{n}" for n in range(first, first + 20)]
            lane.ledger.write("attempted", ids)
            await asyncio.gather(*(_cancelled_enqueue(lane, id, shared=n % 2 == 0) for n, id in enumerate(ids)))
            lab.tally.runs += len(ids)
        await lane.idle(60)
        counters = (await lane.queue.stats()).counters
        ran = lane.ledger.ids("start")
        assert counters["total_messages"] == len(ran), f"{counters['total_messages']} taken in, {len(ran)} ran"
        assert ran <= lane.ledger.ids("attempted")
        await lane.judge()


async def _cancelled_enqueue(lane: Lane, id: str, *, shared: bool) -> None:
    """`shared`: by the call that shares round trips; otherwise on a connection that the cancellation cuts off."""
    queue, payload = lane.queue, {"token": SECRET}

    async def alone() -> Enqueued:
        new = Conditions.checked("normal", None, None, None).message(id, None, queue.codec.encode(payload))
        (answer,) = await queue.transitions.enqueue([new], dedup_expiry=queue.dedup_expiry)
        assert isinstance(answer, Enqueued)
        return answer

    task: asyncio.Task[Any] = asyncio.create_task(queue.enqueue(payload, id=id) if shared else alone())
    await asyncio.sleep(random.uniform(0, 0.005))
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        answer = await task
        assert answer.id == id, f"{id} was answered with {answer.id}"
        lane.ledger.write("accepted", [id])


@fault("8", "a handler raises CancelledError, SystemExit, KeyboardInterrupt, an ExceptionGroup")
async def strange_exceptions(lab: Lab) -> None:
    """Each is a failure like any other: tried again, then a dead letter; the worker lives."""
    async with lab.lane() as lane:
        process = await lane.start(max_retries=1, retry_delay=0.05)
        for _ in range(lab.size(1, 25)):
            ids = {error: (await lane.enqueue(do="raise", error=error))[0] for error in worker.ERRORS}
            for error, id in ids.items():
                try:
                    await lane.queue.result(id, timeout=20)
                except HandlerFailed as failure:
                    assert failure.reason == "error" and error in failure.error, failure
                else:
                    raise AssertionError(f"{error} counted as done")
                assert len(lane.ledger.runs_of(id)) == 2
            lab.tally.runs += len(ids)
        assert process.alive
        cancelled = sum(run.how == "cancelled" for run in lane.ledger.runs())
        await lane.judge(duplicates=cancelled // 2)


@fault("15", "the body runs out while queued, in retry, and in flight")
async def bodies_run_out(lab: Lab) -> None:
    """Visible as expired, counted, on the list of what was lost; no handler is called with an empty body."""

    async def expire(lane: Lane, ids: list[str]) -> None:
        async with lab.server.client() as admin:
            for id in ids:
                await admin.pexpire(lane.queue.keys.message(id), 1)

    async def each(lane: Lane) -> None:
        count = lab.size(3, 100)
        queued = await lane.enqueue(count, ttl=0.5)
        async with lab.server.client() as admin:
            await until(lambda: _none_exists(admin, lane, queued), what="the TTL running out")
        await lane.start(max_retries=3, retry_delay=1.0)
        await _all_expired(lane, queued)
        assert not lane.ledger.count("start"), "a handler was called for a message that had run out"

        retried = await lane.enqueue(count, do="raise", error="ExceptionGroup")
        await until(lambda: lane.ledger.count("raised") >= count, 20)
        await until(lambda: _in_retry(lane, count))
        await expire(lane, retried)
        await _all_expired(lane, retried)

        held = await lane.enqueue(4, do="sleep", seconds=3600)
        await lane.started(count + 4)
        await expire(lane, held)
        await _all_expired(lane, held)
        await until(lambda: lane.ledger.count("cancelled") == 4, what="handlers without a message cancelled")

        await lane.idle()
        ids = {*queued, *retried, *held}
        stats = await lane.queue.stats()
        assert stats.counters["expired_messages"] == stats.lost == len(ids), stats
        lab.tally.runs += len(ids)
        await lane.judge(gone=ids)

    await lab.side_by_side(1, each)


async def _none_exists(admin: Any, lane: Lane, ids: list[str]) -> bool:
    return not await admin.exists(*map(lane.queue.keys.message, ids))


async def _in_retry(lane: Lane, count: int) -> bool:
    return (await lane.queue.stats()).retry == count


async def _all_expired(lane: Lane, ids: list[str]) -> None:
    ends = await asyncio.gather(*(lane.queue.result(id, timeout=30) for id in ids), return_exceptions=True)
    kinds = Counter(type(end).__name__ for end in ends)
    assert kinds == {Expired.__name__: len(ids)}, kinds


@fault("16", "100 concurrent enqueues of one dedup key; of one id with different bodies")
async def collisions(lab: Lab) -> None:
    """One winner each, and every caller is told of it; never a body that is mixed of two."""
    async with lab.lane() as lane, contextlib.AsyncExitStack() as stack:
        producers: list[Queue[Any]] = [
            await stack.enter_async_context(Queue(lane.queue.keys.prefix, url=lab.url)) for _ in range(4)
        ]
        for n in range(lab.size(20, 1_000)):
            key = f"key-{n}"
            names = [f"{lane.name}-{n}-{m}" for m in range(100)]
            lane.ledger.write("attempted", names)
            turns = zip(itertools.cycle(producers), names, strict=False)
            receipts = await asyncio.gather(*(q.enqueue({"token": "t"}, id=id, unique_key=key) for q, id in turns))
            winners = [receipt.id for receipt in receipts if not receipt.duplicate]
            assert len(winners) == 1 and {receipt.id for receipt in receipts} == set(winners), winners
            lane.ledger.write("accepted", winners)

            same = f"{lane.name}-same-{n}"
            lane.ledger.write("attempted", [same])
            turns = zip(itertools.cycle(producers), map(str, range(50)), strict=False)
            receipts = await asyncio.gather(
                *(q.enqueue({"token": "t", "who": who, f"only-{who}": who}, id=same) for q, who in turns)
            )
            assert sum(not receipt.duplicate for receipt in receipts) == 1
            message = await lane.queue.get(same)
            assert message is not None
            who = message.data["who"]
            assert message.data == {"token": "t", "who": who, f"only-{who}": who}, message.data
            lane.ledger.write("accepted", [same])
            lab.tally.runs += 2
        await lane.start(2, concurrency=16)
        await lane.idle(120)
        await lane.judge()


def _nested(depth: int) -> Any:
    value: Any = "bottom"
    for _ in range(depth):
        value = [value]
    return value


PAYLOADS: list[dict[str, Any]] = [
    {"empty": ""}, {"megabyte": "x" * ((1 << 20) - 200)}, {"nul": "a\0b", "\0": "name"}, {"crlf": "a\r\nb\r\n"},
    {"bidi": "\u202eabc\u2066", "zero width": "\u200b"}, {"nested": _nested(90)},
    {"large": 2**53 + 1, "larger": 12345678901234567890, "negative": -(2**63)}, {"word": "123"}, {"word": "true"},
    {"word": "None"}, {"nothing": None}, {"bool": True, "float": 1.5},
    {"tiny": 5e-324, "inf": float("inf"), "nan": float("nan")},
    {"int": 0, "minus": -0.0},
    {"list": [], "dict": {}, "mixed": [1, "1", None, True, {"a": []}]}, {"emoji": "👩‍👩‍👧", "combining": "e\u0301"},
    {"status": "mine", "retry_count": "mine", "timestamp": 7, "error": None, "_sq_owner": "mine"},
]  # fmt: skip
REFUSED: list[dict[str, Any]] = [
    {"too large": "x" * (1 << 20)}, {"surrogate": "\ud800"}, {"\udfff": "name"},
    {"deep": _nested(150)}, {"deepest": _nested(100_000)},
]  # fmt: skip


@fault("17", "strange payloads: empty, 1 MB, NUL, bidi, deep, past 2^53, words that look like other types")
async def payloads(lab: Lab) -> None:
    """Each comes to the handler as it was put in, or is refused before any write."""
    async with lab.lane() as lane:
        await lane.start(2)
        for _ in range(lab.size(1, 50)):
            for payload in PAYLOADS:
                whole = {"token": "t", **payload}
                id = f"{lane.name}-p{lab.tally.runs}"
                lane.ledger.write("attempted", [id])
                await lane.queue.enqueue(whole, id=id)
                lane.ledger.write("accepted", [id])
                result = await lane.queue.result(id, timeout=10)
                assert result.split()[1] == worker.fingerprint(whole), f"{list(payload)} came out differently"
                lab.tally.runs += 1
            for payload in REFUSED:
                try:
                    await lane.queue.enqueue({"token": "t", **payload}, id="refused")
                except InvalidMessage:
                    assert await lane.queue.get("refused") is None
                else:
                    await lane.queue.remove("refused")
                    raise AssertionError(f"{str(list(payload))[:40]!r} was not refused")
                lab.tally.runs += 1
        await lane.judge()
