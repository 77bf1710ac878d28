"""Workers in one process: each message is done once, and every outcome follows the policy."""

from __future__ import annotations

import asyncio
import functools
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from helpers import LEASE, Handler, Held, queue_at, running, until, warnings, work, worker_of
from streams_queue import ConfigurationError, HandlerFailed, Queue, QueueUnavailable, Retry, Worker
from streams_queue.consumer import Consumer
from streams_queue.transitions import Transitions


@pytest.fixture
async def queue(server, prefix) -> AsyncIterator[Queue[Any]]:
    async with queue_at(server, prefix) as queue:
        yield queue


async def consumers(redis: Any, prefix: str) -> list[str]:
    """Those that live: `returned` and `locked` are the engine's own."""
    found = set()
    for stream in ("stream:high", "stream", "stream:low"):
        found |= {info["name"] for info in await redis.xinfo_consumers(f"{prefix}:{stream}", "workers")}
    return sorted(found - {"returned", "locked"})


async def is_at_rest(queue: Queue[Any], redis: Any, prefix: str) -> None:
    """Nothing left, nothing pending, no consumer of a worker that is gone."""
    stats = await queue.stats()
    assert (stats.main, stats.processing, stats.retry, stats.scheduled) == (0, 0, 0, 0)
    for stream in ("stream:high", "stream", "stream:low"):
        assert await redis.xlen(f"{prefix}:{stream}") == 0
        assert (await redis.xpending(f"{prefix}:{stream}", "workers"))["pending"] == 0
    assert await consumers(redis, prefix) == []
    assert not [key async for key in redis.scan_iter(f"{prefix}:lock:*")]


# ---- done once


async def test_each_message_is_done_once(queue, redis, prefix):
    handler = Handler()
    ids = [receipt.id for receipt in await queue.enqueue_many([{"n": n} for n in range(500)])]
    others = [worker_of(queue, handler.handle, concurrency=7) for _ in range(3)]
    async with running(others[0]), running(others[1]), running(others[2]):
        await asyncio.gather(*(queue.result(id, timeout=20) for id in ids))
    assert Counter(handler.ids) == Counter(ids)
    assert {(message.attempts, message.deliveries) for message in handler.messages} == {(1, 1)}
    stats = await queue.stats()
    assert stats.counters["completed_messages"] == 500
    await is_at_rest(queue, redis, prefix)


async def test_a_message_is_taken_at_once_by_an_idle_worker(queue):
    handler = Handler()
    async with running(worker_of(queue, handler.handle, poll_interval=5.0)):
        await queue.result((await queue.enqueue({})).id, timeout=2)
        began = time.monotonic()
        for _ in range(20):
            await queue.result((await queue.enqueue({})).id, timeout=2)
        assert time.monotonic() - began < 2


@pytest.mark.parametrize("priority", ["high", "normal", "low"])
async def test_an_idle_worker_hears_of_every_priority(queue, priority):
    handler = Handler()
    async with running(worker_of(queue, handler.handle, poll_interval=5.0)):
        await queue.result((await queue.enqueue({})).id, timeout=2)
        await queue.result((await queue.enqueue({}, priority=priority)).id, timeout=2)


async def test_no_more_handlers_than_slots(queue):
    now = most = 0

    async def handle(message):
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.002)
        now -= 1

    ids = [(await queue.enqueue({}, priority=priority)).id for _ in range(20) for priority in ("high", "normal", "low")]
    async with running(worker_of(queue, handle, concurrency=4)):
        await asyncio.gather(*(queue.result(id, timeout=10) for id in ids))
        for priority in ("low", "normal", "high"):  # one of each at once for an idle worker's one read
            await queue.enqueue({}, priority=priority)
        await until(lambda: now == 0)
    assert most == 4


async def test_slots_that_are_added_while_all_are_taken_are_filled_at_once(queue):
    held = Held()
    await queue.enqueue_many([{} for _ in range(3)])
    worker = worker_of(queue, held.handle, concurrency=1)
    async with running(worker):
        await held.holds(1)
        worker.concurrency = 3
        try:
            await held.holds(3)
        finally:
            held.go.set()


async def test_one_slot_and_three_priorities_at_once(queue):
    held = Held()
    async with running(worker_of(queue, held.handle, concurrency=1)):
        await asyncio.gather(*(queue.enqueue({}, priority=p) for p in ("low", "normal", "high")))
        await held.holds()
        await asyncio.sleep(0.1)
        assert len(held.started) == 1
        held.go.set()
        await until(lambda: len(held.finished) == 3)
    assert {message.attempts for message in held.started} == {1}


async def test_an_idle_crowd_makes_few_calls(queue, redis):
    """Twenty workers wait, one message comes: one of them is woken, and not all of them ask."""
    handler = Handler()
    crowd = [worker_of(queue, handler.handle, poll_interval=10.0, lease=30.0) for _ in range(20)]
    tasks = [asyncio.create_task(worker.run()) for worker in crowd]
    try:
        await until(lambda: blocked(redis, 20), what="all of them waiting")
        await redis.config_resetstat()
        await queue.result((await queue.enqueue({})).id, timeout=5)
        stats = await redis.info("commandstats")
        scripts = sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("evalsha", "eval"))
        assert len(handler.ids) == 1
        # enqueue, watch, adopt, complete, claim again; and each second a lock or a round of upkeep by every worker.
        assert scripts < 60
        assert stats["cmdstat_xreadgroup"]["calls"] < 10
    finally:
        for worker in crowd:
            worker.stop()
        await asyncio.gather(*tasks)


async def blocked(redis: Any, count: int) -> bool:
    return bool((await redis.info("clients"))["blocked_clients"] >= count)


# ---- outcomes


async def test_a_failed_message_is_tried_again_and_then_a_dead_letter(queue, redis, prefix):
    delays = []

    async def handle(message):
        delays.append((message.attempts, message.retries, message.error))
        raise ValueError(f"attempt {message.attempts}")

    id = (await queue.enqueue({"a": 1})).id
    await work(queue, handle, max_retries=2)
    assert delays == [(1, 0, None), (2, 1, "ValueError: attempt 1"), (3, 2, "ValueError: attempt 2")]
    (letter,) = await queue.dead_letters.list()
    assert (letter.id, letter.reason, letter.error) == (id, "error", "ValueError: attempt 3")
    assert (letter.attempts, letter.retries, letter.deliveries) == (3, 2, 3)
    await is_at_rest(queue, redis, prefix)


async def test_no_retries(queue):
    async def handle(message):
        raise ValueError

    id = (await queue.enqueue({})).id
    await work(queue, handle, max_retries=0)
    with pytest.raises(HandlerFailed, match="error: ValueError"):
        await queue.result(id)


async def due_in(queue: Queue[Any], id: str) -> float:
    message = await queue.get(id)
    assert message is not None
    assert message.due_at is not None
    return message.due_at - time.time()


async def test_back_off_doubles(queue, redis, prefix):
    async def handle(message):
        raise ValueError

    id = (await queue.enqueue({})).id
    for attempt, wanted in ((1, 10), (2, 20), (3, 40)):
        await work(queue, handle, retry_delay=10.0)
        assert await due_in(queue, id) == pytest.approx(wanted, abs=1.0), attempt
        await redis.zadd(f"{prefix}:queue:retry", {id: 0})  # an operator is in a hurry
    await work(queue, handle, retry_delay=10.0)
    assert (await queue.stats()).dead == 1


async def test_a_retry_happens_when_it_is_due(queue):
    times = []

    async def handle(message):
        times.append(time.monotonic())
        if message.attempts == 1:
            raise ValueError

    id = (await queue.enqueue({})).id
    async with running(worker_of(queue, handle, retry_delay=0.5)):
        await queue.result(id, timeout=10)
    assert 0.5 <= times[1] - times[0] < 3


@pytest.mark.parametrize(
    ("instruction", "wanted"),
    [(Retry(30), 30), (Retry(), 10), (Retry(0.0), 0), (Retry(-5), 0), (Retry(1e300), 7 * 86400)],
    ids=str,
)
async def test_retry_asked_for(queue, instruction, wanted):
    ran = 0

    async def handle(message):
        nonlocal ran
        ran += 1
        raise instruction

    id = (await queue.enqueue({})).id
    await work(queue, handle, retry_delay=10.0, max_retries=1)
    if wanted:
        assert await due_in(queue, id) == pytest.approx(wanted, abs=1.0)
        assert ran == 1
    else:
        assert ran == 2
        with pytest.raises(HandlerFailed, match="retry in"):
            await queue.result(id)


async def test_too_slow(queue):
    seen = []

    async def handle(message):
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    id = (await queue.enqueue({})).id
    await work(queue, handle, timeout=0.1, max_retries=1)
    assert seen == ["cancelled", "cancelled"]
    with pytest.raises(HandlerFailed) as failure:
        await queue.result(id)
    assert failure.value.reason == "timeout"
    assert failure.value.error == "the handler took longer than 0.1 s"


async def test_a_handler_that_finishes_though_it_was_too_slow(queue):
    async def handle(message):
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            return "just in time"

    id = (await queue.enqueue({})).id
    await work(queue, handle, timeout=0.1, max_retries=0)
    assert await queue.result(id) == "just in time"


async def group(message):
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(bare(KeyError("inner")))
        tasks.create_task(asyncio.sleep(30))


async def cancel_myself(message):
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(30)


async def cancel_myself_and_return(message):
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


async def bare(error):
    raise error


RAISES: dict[str, Any] = {
    "CancelledError": (lambda message: bare(asyncio.CancelledError()), "CancelledError"),
    "SystemExit": (lambda message: bare(SystemExit(3)), "SystemExit: 3"),
    "KeyboardInterrupt": (lambda message: bare(KeyboardInterrupt()), "KeyboardInterrupt"),
    "GeneratorExit": (lambda message: bare(GeneratorExit()), "GeneratorExit"),
    "StopIteration": (lambda message: bare(StopIteration()), "StopIteration"),
    "TimeoutError": (lambda message: bare(TimeoutError("mine")), "TimeoutError: mine"),
    "ExceptionGroup": (lambda message: bare(ExceptionGroup("many", [ValueError(), OSError()])), "many (2 sub-exc"),
    "BaseExceptionGroup": (lambda message: bare(BaseExceptionGroup("many", [asyncio.CancelledError()])), "many (1 sub"),
    "TaskGroup": (group, "(1 sub-exception)"),
    "an error of ours": (lambda message: bare(QueueUnavailable("another queue is down")), "another queue is down"),
    "a lone surrogate": (lambda message: bare(ValueError("\ud800")), "ValueError: ?"),
    "a long text": (lambda message: bare(ValueError("x" * 5000)), "x…"),
    "nothing to say": (lambda message: bare(ValueError()), "ValueError"),
    "its own cancellation": (cancel_myself, "CancelledError"),
    "its own cancellation on leaving": (cancel_myself_and_return, None),
}


@pytest.mark.parametrize(("raises", "words"), RAISES.values(), ids=RAISES.keys())
async def test_whatever_a_handler_raises_the_policy_holds_and_the_worker_lives(queue, redis, prefix, raises, words):
    ran: list[int] = []

    async def handle(message):
        if message.data["bad"]:
            ran.append(message.attempts)
            return await raises(message)
        return "fine"

    bad, *good = [receipt.id for receipt in await queue.enqueue_many([{"bad": n == 0} for n in range(4)])]
    async with running(worker_of(queue, handle, max_retries=1, concurrency=2)) as run:
        for id in good:
            assert await queue.result(id, timeout=5) == "fine"
        if words is not None:
            with pytest.raises(HandlerFailed) as failure:
                await queue.result(bad, timeout=10)
            assert words in failure.value.error
            assert len(failure.value.error) <= 2000
            assert failure.value.reason == "error"
            assert ran == [1, 2]
        else:
            await queue.result(bad, timeout=10)
            assert ran == [1]
        assert await queue.result((await queue.enqueue({"bad": False})).id, timeout=5) == "fine"
        assert not run.done()
    await is_at_rest(queue, redis, prefix)


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


async def test_an_error_that_cannot_be_printed(queue):
    async def handle(message):
        raise Unprintable

    id = (await queue.enqueue({})).id
    await work(queue, handle, max_retries=0)
    with pytest.raises(HandlerFailed, match="Unprintable"):
        await queue.result(id)


# ---- burst


async def test_burst_ends_when_there_is_nothing_left_to_do_now(queue, redis, prefix):
    handler = Handler()
    await work(queue, handler.handle)
    later = (await queue.enqueue({}, delay=60)).id
    now = (await queue.enqueue({})).id
    await work(queue, handler.handle)
    assert handler.ids == [now]
    assert await queue.remove(later)
    await is_at_rest(queue, redis, prefix)


async def test_a_worker_may_run_again(queue):
    handler = Handler()
    worker = worker_of(queue, handler.handle)
    for n in range(3):
        await queue.enqueue({"n": n})
        await worker.run(burst=True)
    async with running(worker):
        await queue.result((await queue.enqueue({})).id, timeout=5)
    async with running(worker):
        await queue.result((await queue.enqueue({})).id, timeout=5)
    assert len(handler.ids) == 5


# ---- ready


async def always(condition: Any, seconds: float) -> None:
    """It is true now, and at every moment of so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert condition()
        await asyncio.sleep(0.01)


async def test_ready_from_the_first_answer_until_it_is_told_to_stop(queue):
    held = Held()
    worker = worker_of(queue, held.handle, lease=3.0)

    def ready() -> bool:
        return worker.ready

    assert not ready()
    await queue.enqueue({})
    async with running(worker):
        await held.holds()
        assert ready()
        worker.stop()
        assert not ready(), "it takes nothing more"
        held.go.set()
    assert not ready()
    async with running(worker):
        await until(ready, what="ready in its second run")
    assert not ready()


async def test_an_idle_worker_and_a_paused_one_are_ready(queue):
    worker = worker_of(queue, Handler().handle, lease=3.0)
    async with running(worker):
        await until(lambda: worker.ready)
        await always(lambda: worker.ready, 2.0)
        await queue.pause()
        await always(lambda: worker.ready, 2.0)


async def test_a_worker_with_all_slots_taken_is_ready_as_long_as_it_renews(queue):
    held = Held()
    worker = worker_of(queue, held.handle, lease=3.0, concurrency=2)
    async with running(worker):
        await queue.enqueue_many([{}, {}])
        await held.holds(2)
        await always(lambda: worker.ready, 3.0)
        held.go.set()
        await until(lambda: len(held.finished) == 2)
        await always(lambda: worker.ready, 0.5)


async def test_a_worker_whose_claims_are_not_answered_is_not_ready_for_all_its_renewals(queue, monkeypatch):
    held = Held()
    worker = worker_of(queue, held.handle, concurrency=2)

    async def never(*_: Any, **__: Any) -> None:
        await asyncio.Event().wait()

    async with running(worker):
        await queue.enqueue({})
        await held.holds()
        with monkeypatch.context() as patched:
            patched.setattr(queue.transitions, "wait", never)
            await until(lambda: not worker.ready, what="not ready")
            await always(lambda: not worker.ready, LEASE)
        held.go.set()


# ---- stopping


async def test_stop_drains(queue, redis, prefix):
    held = Held()
    first = (await queue.enqueue({})).id
    worker = worker_of(queue, held.handle, concurrency=1)
    run = asyncio.create_task(worker.run())
    await held.holds()
    second = (await queue.enqueue({})).id
    worker.stop()
    await asyncio.sleep(0.2)
    assert not run.done()
    held.go.set()
    await asyncio.wait_for(run, 2)
    assert held.finished == [first]
    assert await queue.position(second) == 1
    assert await consumers(redis, prefix) == []


async def test_past_the_grace_period_messages_go_back_uncharged(queue, redis, prefix):
    held = Held()
    ids = [receipt.id for receipt in await queue.enqueue_many([{} for _ in range(5)])]
    worker = worker_of(queue, held.handle, grace=0.2, concurrency=4)
    run = asyncio.create_task(worker.run())
    await held.holds(4)
    began = time.monotonic()
    worker.stop()
    await asyncio.wait_for(run, 3)
    assert 0.2 <= time.monotonic() - began < 1.2
    assert sorted(held.cancelled) == sorted(ids[:4])
    assert [await queue.position(id) for id in ids] == [1, 2, 3, 4, 5]
    assert await consumers(redis, prefix) == []
    handler = Handler()
    began = time.monotonic()
    await work(queue, handler.handle, concurrency=1)
    assert time.monotonic() - began < LEASE, "no lease was waited for"
    assert handler.ids == ids
    assert {message.attempts for message in handler.messages} == {1}
    assert [message.deliveries for message in handler.messages] == [2, 2, 2, 2, 1]


async def test_cancelled_it_hands_back_at_once(queue, redis, prefix):
    held = Held()
    ids = [receipt.id for receipt in await queue.enqueue_many([{} for _ in range(3)])]
    run = asyncio.create_task(worker_of(queue, held.handle).run())
    await held.holds(3)
    began = time.monotonic()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert time.monotonic() - began < 1
    assert sorted(held.cancelled) == sorted(ids)
    assert (await queue.stats()).processing == 0
    handler = Handler()
    await work(queue, handler.handle)
    assert handler.ids == ids
    assert {message.attempts for message in handler.messages} == {1}
    await is_at_rest(queue, redis, prefix)


async def test_cancelled_twice_it_leaves_no_handler_behind(queue):
    """The second time while the first one's handlers end: their messages go back all the same."""

    async def slow_to_end(message):
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.4)

    await queue.enqueue({})
    run = asyncio.create_task(worker_of(queue, slow_to_end, lease=30.0).run())
    await until(lambda: processing(queue))
    for _ in range(2):
        run.cancel()
        await asyncio.sleep(0.1)
    await asyncio.wait_for(asyncio.wait([run]), 3)
    assert run.cancelled()
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("message ")]
    assert await processing(queue) == 0


async def test_a_task_that_was_cancelled_before_may_run_a_worker(queue):
    """One that cleans up, say: what is too slow there is charged as anywhere."""
    slow = Handler(lambda message: asyncio.sleep(60))
    id = (await queue.enqueue({})).id

    async def clean_up() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await work(queue, slow.handle, timeout=0.2, retry_delay=60.0)

    task = asyncio.create_task(clean_up())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task], timeout=2)
    task.cancel()
    await asyncio.wait([task])
    assert slow.ids == [id]
    assert (await queue.get(id)).status == "retry"


@pytest.mark.parametrize("how", ["stop", "cancel"])
async def test_leaving_at_any_moment_under_load_keeps_and_charges_nothing(queue, redis, prefix, how):
    """What a claim on its way brings, what is being finished: each message runs, none waits for a lease."""
    handler = Handler(lambda message: asyncio.sleep(0.001))
    ids = [receipt.id for receipt in await queue.enqueue_many([{} for _ in range(600)])]
    for round_ in range(15):
        worker = worker_of(queue, handler.handle, concurrency=20, lease=30.0)
        run = asyncio.create_task(worker.run())
        await asyncio.sleep(0.01 + round_ * 0.0017)
        if how == "stop":
            worker.stop()
        else:
            run.cancel()
        await asyncio.wait_for(asyncio.wait([run]), 3)
        assert run.cancelled() == (how == "cancel")
        assert (await queue.stats()).processing == 0
    await asyncio.wait_for(work(queue, handler.handle, concurrency=100, lease=30.0), 10)
    assert set(handler.ids) == set(ids)
    assert {message.attempts for message in handler.messages} == {1}
    if how == "stop":
        assert len(handler.ids) == len(ids)
    assert (await queue.stats()).counters["completed_messages"] == 600
    await is_at_rest(queue, redis, prefix)


async def test_who_is_cancelled_while_it_joins_leaves_no_consumer(queue, redis, prefix, monkeypatch):
    join = Transitions.join

    async def slow(self, *terms):
        await join(self, *terms)
        await asyncio.Event().wait()  # the reply is on its way

    monkeypatch.setattr(Transitions, "join", slow)
    run = asyncio.create_task(worker_of(queue, Handler().handle).run())
    await until(lambda: redis.exists(f"{prefix}:meta"))
    run.cancel()
    await asyncio.wait([run])
    assert run.cancelled()
    assert await redis.xinfo_consumers(f"{prefix}:stream", "workers") == []


async def test_stop_before_run(queue):
    worker = worker_of(queue, Handler().handle)
    worker.stop()
    await asyncio.wait_for(worker.run(), 2)


async def test_a_handler_that_does_not_heed_its_cancellation(queue):
    go = asyncio.Event()

    async def stubborn(message):
        while not go.is_set():
            try:
                await go.wait()
            except asyncio.CancelledError:
                continue
        return "done"

    id = (await queue.enqueue({})).id
    worker = worker_of(queue, stubborn, grace=0.1)
    run = asyncio.create_task(worker.run())
    await until(lambda: processing(queue))
    worker.stop()
    await asyncio.sleep(0.3)
    go.set()
    await asyncio.wait_for(run, 3)
    assert await queue.result(id, timeout=1) == "done"


async def test_a_handler_that_never_heeds_it_keeps_its_worker_but_not_its_message(queue, caplog):
    go = asyncio.Event()

    async def stubborn(message):
        while not go.is_set():
            try:
                await go.wait()
            except asyncio.CancelledError:
                continue

    id = (await queue.enqueue({})).id
    worker = worker_of(queue, stubborn, grace=0.1)
    run = asyncio.create_task(worker.run())
    other = Handler(lambda message: "done elsewhere")
    try:
        await until(lambda: processing(queue))
        async with running(worker_of(queue, other.handle)):
            began = time.monotonic()
            worker.stop()
            assert await queue.result(id, timeout=5) == "done elsewhere"
            # Grace, the time to heed a cancellation, and the other's poll interval are 1.1 s.
            assert time.monotonic() - began < 2.0
        assert "do not heed their cancellation" in caplog.text
        assert not run.done()
    finally:
        go.set()  # or nothing would ever end it
    await asyncio.wait_for(run, 3)
    assert (await queue.stats()).counters["completed_messages"] == 1


async def test_who_is_cancelled_before_it_begins_goes_back_and_is_not_called_stubborn(queue, caplog, monkeypatch):
    """As all tasks are at the end of `asyncio.run`."""
    start = Consumer._start

    def start_and_end(self, claimed, room):
        over = start(self, claimed, room)
        for task in self._tasks:
            task.cancel()
        return over

    monkeypatch.setattr(Consumer, "_start", start_and_end)
    await queue.enqueue({})
    worker = worker_of(queue, Handler().handle, lease=30.0)
    run = asyncio.create_task(worker.run())
    await until(lambda: processing(queue))
    run.cancel()
    await asyncio.wait([run])
    assert await processing(queue) == 0
    assert "do not heed" not in caplog.text


async def test_one_worker_runs_once_at_a_time(queue):
    worker = worker_of(queue, Handler().handle)
    async with running(worker):
        await until(lambda: worker._running)
        with pytest.raises(ConfigurationError, match="runs already"):
            await worker.run()


async def processing(queue: Queue[Any]) -> int:
    return (await queue.stats()).processing


# ---- set up wrongly


async def test_two_leases(queue, server, prefix):
    handler = Handler()
    async with running(worker_of(queue, handler.handle, lease=2.0)):
        await queue.result((await queue.enqueue({})).id, timeout=5)
        with pytest.raises(ConfigurationError, match=r"lease=5 s .* a lease of 2 s"):
            await worker_of(queue, handler.handle, lease=5.0).run()
        await queue.result((await queue.enqueue({})).id, timeout=5)
    await work(queue, handler.handle, lease=5.0)  # the others are gone: a new lease may begin


async def test_no_handler(queue):
    with pytest.raises(ConfigurationError, match="no handler"):
        await Worker(queue).run()


async def test_handlers_that_are_none(queue):
    worker = Worker(queue)

    def plain(message):
        pass

    with pytest.raises(ConfigurationError, match="async def"):
        worker.handler(plain)
    worker.handler(functools.partial(Handler.handle, Handler()))
    with pytest.raises(ConfigurationError, match="already"):
        worker.handler(Handler().handle)


@pytest.mark.parametrize(
    "options",
    [
        {"concurrency": 0}, {"concurrency": 1.5}, {"lease": 0}, {"lease": float("inf")}, {"max_retries": -1},
        {"retry_delay": -1}, {"max_deliveries": 0}, {"timeout": 0}, {"grace": -1}, {"poll_interval": 0},
        {"timeout": float("nan")}, {"lease": "30"},
    ],
    ids=str,
)  # fmt: skip
async def test_a_bad_number(queue, options):
    with pytest.raises(ConfigurationError):
        Worker(queue, **options)


async def test_no_server_at_the_start():
    with pytest.raises(QueueUnavailable):
        await worker_of(Queue("q", url="redis://127.0.0.1:1"), Handler().handle).run()


async def test_a_worker_opens_its_queue(server, prefix):
    queue = queue_at(server, prefix)
    await work(queue, Handler().handle)
    assert await queue.length() == 0
    await queue.close()


# ---- what it logs


async def test_a_failure_is_logged_with_its_trace(queue, caplog):
    async def handle(message):
        raise ValueError("broken") from KeyError("why")

    id = (await queue.enqueue({})).id
    await work(queue, handle, max_retries=0)
    (record,) = warnings(caplog.records)
    text = record.getMessage()
    assert f"message {id} failed in attempt 1" in text
    assert "KeyError: 'why'" in text
    assert "ValueError: broken" in text


async def test_good_work_is_not_worth_a_warning(queue, caplog):
    await queue.enqueue_many([{} for _ in range(50)])
    await work(queue, Handler().handle)
    assert warnings(caplog.records) == []
