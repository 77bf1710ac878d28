"""Batch handlers: how messages are gathered, an outcome for each, and what becomes of a batch that is cut short."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest

from helpers import LEASE, SOON, queue_at, running, until
from streams_queue import ConfigurationError, HandlerFailed, Message, Queue, Reject, Retry, Worker
from streams_queue.limits import Limits
from streams_queue.metrics import WorkerCollector
from streams_queue.transitions import Transitions

Outcomes = list[Any] | None
Handle = Callable[[list[Message[Any]]], Awaitable[Outcomes]]


@pytest.fixture
async def queue(server, prefix) -> AsyncIterator[Queue[Any]]:
    async with queue_at(server, prefix) as queue:
        yield queue


class Batches:
    """A batch handler that remembers what it was given, and does as it is told."""

    def __init__(self, does: Callable[[list[Message[Any]]], Any] = lambda _: None) -> None:
        self.given: list[list[str]] = []
        self.messages: list[Message[Any]] = []
        self._does: Callable[[list[Message[Any]]], Any] = does

    @property
    def sizes(self) -> list[int]:
        return [len(ids) for ids in self.given]

    async def handle(self, messages: list[Message[Any]]) -> Outcomes:
        self.given.append([message.id for message in messages])
        self.messages += messages
        outcomes: Outcomes = self._does(messages)
        return outcomes


class HeldBatches:
    """A batch handler that waits to be let go, and tells when it is at work."""

    def __init__(self) -> None:
        self.started: list[list[str]] = []
        self.cancelled = 0
        self.finished = 0
        self.go = asyncio.Event()

    async def handle(self, messages: list[Message[Any]]) -> Outcomes:
        self.started.append([message.id for message in messages])
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        self.finished += 1
        return [f"with {len(messages)}" for _ in messages]

    async def holds(self, count: int = 1) -> None:
        await until(lambda: len(self.started) >= count, what=f"{count} batches at work")


def worker_of(queue: Queue[Any], handle: Handle, *, size: int = 10, wait: float = 0.05, **options: Any) -> Worker[Any]:
    defaults = {"lease": LEASE, "retry_delay": 0.0, "grace": SOON, "poll_interval": 0.2, "concurrency": 1}
    worker = Worker(queue, **{**defaults, **options})
    worker.batch(size=size, wait=wait)(handle)
    return worker


async def work(queue: Queue[Any], handle: Handle, **options: Any) -> Worker[Any]:
    worker = worker_of(queue, handle, **options)
    await worker.run(burst=True)
    return worker


async def filled(queue: Queue[Any], count: int, **options: Any) -> list[str]:
    rows = [{"n": n} for n in range(count)]
    return [receipt.id for receipt in await queue.enqueue_many(rows, **options)]


# ---- gathering


async def test_what_waits_comes_in_full_lists_and_in_order(queue):
    ids = await filled(queue, 250)
    batches = Batches()
    await work(queue, batches.handle, size=100, wait=60.0)
    assert batches.sizes == [100, 100, 50]
    assert [id for batch in batches.given for id in batch] == ids
    assert await queue.length() == 0


async def test_a_list_that_is_not_full_is_handed_over_in_time(queue):
    batches = Batches()
    async with running(worker_of(queue, batches.handle, size=100, wait=0.3)):
        began = time.monotonic()
        first, *_ = ids = await filled(queue, 3)
        await queue.result(first, timeout=5)
        assert 0.3 <= time.monotonic() - began < 0.3 + LEASE
    assert batches.given == [ids]


async def test_what_comes_while_one_waits_joins_it(queue):
    batches = Batches()
    async with running(worker_of(queue, batches.handle, size=3, wait=60.0)):
        for _ in range(3):
            id = (await queue.enqueue({})).id
            await until(lambda: is_processing(queue, id), what="it was taken")  # noqa: B023
        await queue.result(id, timeout=5)
    assert batches.sizes == [3]


async def is_processing(queue: Queue[Any], id: str) -> bool:
    message = await queue.get(id)
    return message is None or message.status == "processing"


async def test_a_list_of_more_than_one_claim_can_bring(queue):
    await filled(queue, 1200)
    batches = Batches()
    await work(queue, batches.handle, size=1100, wait=60.0)
    assert batches.sizes == [1100, 100]


async def test_without_a_wait_it_is_what_there_is(queue):
    batches = Batches()
    async with running(worker_of(queue, batches.handle, size=100, wait=0)):
        for _ in range(3):
            await queue.result((await queue.enqueue({})).id, timeout=5)
    assert batches.sizes == [1, 1, 1]


async def test_no_more_batches_at_a_time_than_concurrency_and_none_waits_behind_one(queue):
    """What a busy worker could not begin stays in line, where another finds it."""
    held = HeldBatches()
    worker = worker_of(queue, held.handle, concurrency=2, size=10, wait=0.02)
    async with running(worker):
        await filled(queue, 5)
        await held.holds(1)
        await filled(queue, 5)
        await held.holds(2)
        await filled(queue, 30)
        await asyncio.sleep(0.5)
        stats = await queue.stats()
        assert (len(held.started), stats.processing, stats.main) == (2, 10, 40)
        assert worker.busy == 2
        held.go.set()
        await until(lambda: held.finished == 5)
    assert [len(ids) for ids in held.started] == [5, 5, 10, 10, 10]


async def test_a_busy_worker_does_not_take_what_an_idle_one_waits_for(queue):
    held, batches = HeldBatches(), Batches()
    async with running(worker_of(queue, held.handle, wait=0.1, poll_interval=10.0)):
        await filled(queue, 1)
        await held.holds()
        async with running(worker_of(queue, batches.handle, wait=0, poll_interval=10.0)):
            for _ in range(5):
                await queue.result((await queue.enqueue({})).id, timeout=5)
        held.go.set()
    assert len(held.started) == 1
    assert {message.deliveries for message in batches.messages} == {1}


async def test_what_a_claim_brings_too_late_goes_back_uncharged(queue, monkeypatch):
    """A claim was under way when the batch was handed over, and the last slot with it."""
    held, claims_with_messages = HeldBatches(), 0
    claim = Transitions.claim

    async def slow_claim(self: Transitions, *args: Any, **options: Any) -> Any:
        nonlocal claims_with_messages
        claimed = await claim(self, *args, **options)
        claims_with_messages += bool(claimed.deliveries)
        if claims_with_messages == 1:
            await filled(queue, 3)
        if claims_with_messages == 2:
            await held.holds(1)
        return claimed

    await filled(queue, 1)
    monkeypatch.setattr(Transitions, "claim", slow_claim)
    async with running(worker_of(queue, held.handle, size=10, wait=0.02, lease=30.0)):
        await until(lambda: claims_with_messages == 2 and all_but_the_held_wait(queue), what="they went back")
        monkeypatch.undo()
        held.go.set()
        await until(lambda: queue_is_empty(queue))
    assert [len(ids) for ids in held.started] == [1, 3]
    assert (await queue.stats()).counters["completed_messages"] == 4


async def all_but_the_held_wait(queue: Queue[Any]) -> bool:
    stats = await queue.stats()
    return stats.processing == 1 and stats.main == 4


async def queue_is_empty(queue: Queue[Any]) -> bool:
    return await queue.length() == 0


async def test_leases_are_kept_while_messages_are_gathered(queue):
    batches = Batches()
    async with running(worker_of(queue, batches.handle, size=2, wait=60.0)):
        first = (await queue.enqueue({})).id
        await asyncio.sleep(2.5 * LEASE)
        second = (await queue.enqueue({})).id
        await queue.result(second, timeout=5)
    assert batches.given == [[first, second]]
    assert [message.deliveries for message in batches.messages] == [1, 1]
    assert (await queue.stats()).counters.get("lost_leases", 0) == 0


async def test_a_stop_hands_over_what_is_gathered(queue):
    batches = Batches()
    async with running(worker_of(queue, batches.handle, size=10, wait=60.0)):
        ids = await filled(queue, 3)
        await until(lambda: is_processing(queue, ids[-1]))
    assert batches.given == [ids]
    assert await queue.length() == 0


async def test_a_cancelled_worker_gives_back_what_is_gathered(queue):
    batches = Batches()
    worker = asyncio.create_task(worker_of(queue, batches.handle, size=10, wait=60.0).run())
    ids = await filled(queue, 3)
    await until(lambda: is_processing(queue, ids[-1]))
    worker.cancel()
    await asyncio.wait([worker])
    assert batches.given == []
    await work(queue, batches.handle)
    assert [(message.id, message.attempts) for message in batches.messages] == [(id, 1) for id in ids]


async def test_four_workers_do_each_message_once(queue):
    ids = await filled(queue, 2000)
    batches = Batches()
    workers = [worker_of(queue, batches.handle, concurrency=2, size=70, wait=0.01) for _ in range(4)]
    await asyncio.gather(*(worker.run(burst=True) for worker in workers))
    assert Counter(message.id for message in batches.messages) == Counter(ids)
    assert (await queue.stats()).counters["completed_messages"] == 2000


# ---- outcomes


async def test_none_completes_all(queue):
    ids = await filled(queue, 3)
    await work(queue, Batches().handle)
    assert [await queue.result(id, timeout=5) for id in ids] == [None, None, None]


async def test_each_message_has_an_outcome_of_its_own(queue):
    rows = ["fine", "retried", "later", "rejected", "raised", "a_class", "nothing"]
    for id in rows:
        await queue.enqueue({}, id=id)
    outcomes = {
        "fine": {"row": 7}, "retried": Retry(delay=0), "later": Retry(delay=60), "rejected": Reject("no such article"),
        "raised": ValueError("bad row"), "a_class": KeyError, "nothing": None,
    }  # fmt: skip
    batches = Batches(lambda messages: [outcomes[m.id] if m.attempts == 1 else "in the end" for m in messages])
    await work(queue, batches.handle)
    assert batches.given[0] == rows
    assert sorted(id for batch in batches.given[1:] for id in batch) == ["a_class", "raised", "retried"]
    done = ["fine", "retried", "raised", "a_class", "nothing"]
    assert [await queue.result(id, timeout=5) for id in done] == [{"row": 7}, *["in the end"] * 3, None]
    assert (await queue.get("later")).status == "retry"
    with pytest.raises(HandlerFailed, match="no such article"):
        await queue.result("rejected", timeout=5)


async def test_what_gather_returns_are_outcomes(queue):
    async def one(message: Message[Any]) -> Any:
        if message.data["n"] == 1:
            raise Reject("the second")
        return message.data["n"]

    async def handle(messages: list[Message[Any]]) -> list[Any]:
        return await asyncio.gather(*map(one, messages), return_exceptions=True)

    ids = await filled(queue, 3)
    await work(queue, handle)
    assert [await queue.result(id, timeout=5) for id in (ids[0], ids[2])] == [0, 2]
    with pytest.raises(HandlerFailed, match="the second"):
        await queue.result(ids[1], timeout=5)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (["too", "few"], "for each of its 3 messages, not 2 outcomes"),
        ([1, 2, 3, 4], "for each of its 3 messages, not 4 outcomes"),
        ({"a": 1}, "for each of its 3 messages, not dict"),
        ("yes", "for each of its 3 messages, not str"),
        (True, "for each of its 3 messages, not bool"),
    ],
)
async def test_any_other_answer_fails_them_all(queue, caplog, answer, words):
    ids = await filled(queue, 3)
    await work(queue, Batches(lambda _: answer).handle, max_retries=0)
    dead = await queue.dead_letters.list()
    assert {letter.id for letter in dead} == set(ids)
    assert {(letter.reason, words in letter.error) for letter in dead} == {("error", True)}
    assert caplog.text.count("a batch of 3 messages failed") == 1


async def test_outcomes_that_nobody_awaited_are_no_results(queue):
    async def one() -> None: ...

    ids = await filled(queue, 2)
    await work(queue, Batches(lambda messages: [one() for _ in messages]).handle, max_retries=0)
    await work(queue, Batches(lambda messages: [one()] * 3).handle, max_retries=0)
    dead = await queue.dead_letters.list()
    assert {letter.id for letter in dead} == set(ids)
    assert all("coroutine that nobody awaited: use asyncio.gather" in letter.error for letter in dead)


@pytest.mark.parametrize("error", [ValueError("down"), SystemExit(3), asyncio.CancelledError(), BaseException()])
async def test_a_raise_fails_them_all_and_each_is_tried_again(queue, caplog, error):
    def does(messages: list[Message[Any]]) -> None:
        if messages[0].attempts == 1:
            raise error

    ids = await filled(queue, 5)
    batches = Batches(does)
    await work(queue, batches.handle)
    assert Counter(message.id for message in batches.messages) == dict.fromkeys(ids, 2)
    assert {message.retries for message in batches.messages[5:]} == {1}
    assert caplog.text.count("Traceback") == (0 if isinstance(error, asyncio.CancelledError) else 1)
    assert (await queue.stats()).counters["retry_count"] == 5


async def test_an_instruction_that_is_raised_is_for_all(queue):
    def does(messages: list[Message[Any]]) -> None:
        raise Retry(delay=60) if messages[0].data["n"] < 2 else Reject("all of them")

    ids = await filled(queue, 4)
    await work(queue, Batches(does).handle, size=2)
    assert [(await queue.get(id)).status for id in ids] == ["retry", "retry", "error", "error"]
    assert {letter.error for letter in await queue.dead_letters.list()} == {"all of them"}


async def test_the_time_is_the_whole_batch_s(queue):
    async def handle(messages: list[Message[Any]]) -> None:
        await asyncio.sleep(60)

    ids = await filled(queue, 3)
    await work(queue, handle, timeout=0.2, max_retries=0)
    dead = await queue.dead_letters.list()
    assert {letter.id for letter in dead} == set(ids)
    assert {(letter.reason, letter.error) for letter in dead} == {("timeout", "the handler took longer than 0.2 s")}


async def test_a_handler_may_do_with_its_list_what_it_likes(queue):
    ids = await filled(queue, 3)

    async def handle(messages: list[Message[Any]]) -> list[str]:
        outcomes = [message.id for message in messages]
        messages.clear()
        return outcomes

    await work(queue, handle)
    assert [await queue.result(id, timeout=5) for id in ids] == ids


async def test_outcomes_are_written_in_one_round_trip(queue, redis):
    await filled(queue, 100)
    calls = []
    complete = Transitions.complete

    async def counted(self: Transitions, consumer: str, done: Any, **options: Any) -> list[str]:
        calls.append(len(done))
        return await complete(self, consumer, done, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Transitions, "complete", counted)
        await work(queue, Batches().handle, size=100)
    assert calls == [100]


async def test_no_message_shows_another_s_secrets(queue, caplog):
    await queue.enqueue_many([{"token": f"canary-{n}-canary"} for n in range(3)])

    def does(messages: list[Message[Any]]) -> Any:
        words = " ".join(message.data["token"] for message in messages)
        if messages[0].attempts == 1:
            raise ValueError(words)
        return [ValueError(words), Reject(words), ValueError(words)]

    await work(queue, Batches(does).handle, max_retries=1)
    dead = await queue.dead_letters.list()
    assert {letter.error for letter in dead} == {"ValueError: *** *** ***", "*** *** ***"}
    assert "canary" not in caplog.text


# ---- beside limits


async def test_a_list_has_one_message_of_each_key_that_goes_one_at_a_time(queue):
    for n in range(12):
        await queue.enqueue({"user_id": f"u{n % 4}", "n": n})
    batches = Batches()
    await work(queue, batches.handle, one_at_a_time_per="user_id")
    assert batches.sizes == [4, 4, 4]
    for user in range(4):
        assert [m.data["n"] for m in batches.messages if m.data["user_id"] == f"u{user}"] == [user, user + 4, user + 8]


async def test_a_key_that_one_message_pauses_holds_up_no_other(queue):
    await queue.set_limits(Limits(key="chat"))
    for n in range(4):
        await queue.enqueue({"chat": f"c{n % 2}"}, id=f"m{n}")

    def does(messages: list[Message[Any]]) -> list[Any]:
        return [Retry(delay=60, key="c1") if m.data["chat"] == "c1" else "sent" for m in messages]

    batches = Batches(does)
    async with running(worker_of(queue, batches.handle)):
        assert [await queue.result(id, timeout=5) for id in ("m0", "m2")] == ["sent", "sent"]
    assert await queue.length() == 2
    assert {(await queue.get(id)).retries for id in ("m1", "m3")} == {0}


# ---- those that do not take part


async def test_what_cannot_be_decoded_does_not_reach_the_handler(server, prefix, queue):
    class Email(msgspec.Struct):
        to: str

    for id, payload in {"a": {"to": "a"}, "bad": {"unknown": 1}, "b": {"to": "b"}}.items():
        await queue.enqueue(payload, id=id)
    async with queue_at(server, prefix, payload=Email) as emails:
        batches = Batches()
        await work(emails, batches.handle)
        assert batches.given == [["a", "b"]]
        assert [(dead.id, dead.reason) for dead in await queue.dead_letters.list()] == [("bad", "undecodable")]
        await queue.enqueue({"unknown": 1}, id="alone")
        await work(emails, batches.handle)
    assert batches.given == [["a", "b"]]
    assert await queue.length() == 0


async def test_a_message_that_is_taken_out_meanwhile_is_left_out(queue, caplog):
    held = HeldBatches()
    ids = await filled(queue, 3)
    async with running(worker_of(queue, held.handle)):
        await held.holds()
        assert await queue.remove(ids[1])
        await until(lambda: "lost message" in caplog.text, what="the loss was noticed")
        assert held.cancelled == 0
        held.go.set()
        results = [await queue.result(id, timeout=5) for id in (ids[0], ids[2])]
    assert results == ["with 3", "with 3"]
    assert caplog.text.count("lost message") == 1
    assert (await queue.stats()).counters["removed_messages"] == 1


async def test_a_message_that_is_lost_while_it_waits_is_not_handed_over(queue, caplog):
    batches = Batches()
    async with running(worker_of(queue, batches.handle, size=3, wait=60.0)):
        first, second = await filled(queue, 2)
        await until(lambda: is_processing(queue, second))
        await queue.remove(first)
        await until(lambda: "lost message" in caplog.text, what="the loss was noticed")
        third = (await queue.enqueue({})).id
        await queue.result(third, timeout=5)
    assert batches.given == [[second, third]]


async def test_the_handler_is_cancelled_when_all_are_lost(queue):
    held = HeldBatches()
    ids = await filled(queue, 3)
    async with running(worker_of(queue, held.handle)):
        await held.holds()
        for id in ids:
            await queue.remove(id)
        await until(lambda: held.cancelled, what="it was cancelled")
    assert held.finished == 0
    assert await queue.length() == 0


async def test_a_batch_whose_messages_are_all_lost_while_they_wait_does_not_begin(queue):
    batches = Batches()
    worker = worker_of(queue, batches.handle, size=3, wait=60.0)
    async with running(worker):
        ids = await filled(queue, 2)
        await until(lambda: is_processing(queue, ids[-1]))
        for id in ids:
            await queue.remove(id)
        await until(lambda: worker.busy == 0, what="the slot is free")
    assert batches.given == []


async def test_an_interrupted_batch_goes_back_uncharged(queue):
    held = HeldBatches()
    ids = await filled(queue, 3)
    worker = worker_of(queue, held.handle)
    task = asyncio.create_task(worker.run())
    await held.holds()
    worker.stop(grace=0)
    await task
    assert held.cancelled == 1
    batches = Batches()
    await work(queue, batches.handle)
    assert batches.given == [ids]
    assert {(message.attempts, message.deliveries) for message in batches.messages} == {(1, 2)}


async def test_a_handler_that_does_not_heed_its_cancellation_keeps_no_message(queue, caplog):
    go = asyncio.Event()

    async def handle(messages: list[Message[Any]]) -> None:
        while not go.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await go.wait()

    ids = await filled(queue, 3)
    worker = worker_of(queue, handle)
    task = asyncio.create_task(worker.run())
    await until(lambda: is_processing(queue, ids[-1]))
    await asyncio.sleep(0.2)
    worker.stop(grace=0)
    await until(lambda: "do not heed" in caplog.text)
    batches = Batches()
    await work(queue, batches.handle)
    go.set()
    await task
    assert batches.given == [ids]
    assert "handlers of 3 messages" in caplog.text


async def test_a_suspect_is_a_batch_of_its_own(queue):
    """Two of the messages were in the hands of a worker that died: their next death is their last."""
    ids = await filled(queue, 6)
    transitions = queue.transitions
    await transitions.join("dead", LEASE)
    assert len((await transitions.claim("dead", 2)).deliveries) == 2
    await asyncio.sleep(LEASE + 0.1)
    assert (await transitions.sweep(max_deliveries=2, dead_letter_ttl=60)).recovered == 2
    batches = Batches()
    await work(queue, batches.handle, max_deliveries=2)
    assert sorted(batches.given) == sorted([[ids[0]], [ids[1]], ids[2:]])


# ---- what is told of it


async def test_each_message_is_counted_with_its_outcome_and_the_batch_s_time(queue):
    async def handle(messages: list[Message[Any]]) -> list[Any]:
        await asyncio.sleep(0.1)
        return [ValueError(), Reject("no"), "done", None]

    await filled(queue, 4)
    worker = worker_of(queue, handle, retry_delay=60.0)
    collector = WorkerCollector(worker)
    await worker.run(burst=True)
    found = {
        (sample.name.removeprefix("streams_queue_worker_"), sample.labels.get("reason", "")): sample.value
        for metric in collector.collect()
        for sample in metric.samples
    }
    assert (found["messages_started_total", ""], found["messages_completed_total", ""]) == (4, 2)
    assert (found["messages_failed_total", "error"], found["messages_failed_total", "rejected"]) == (1, 1)
    assert (found["run_seconds_count", ""], found["wait_seconds_count", ""]) == (4, 4)
    assert 0.4 <= found["run_seconds_sum", ""] < 4 * SOON


async def test_the_log_has_a_line_for_each_message(queue, caplog):
    caplog.set_level("DEBUG", "streams_queue.messages")
    for id in ("good", "bad"):
        await queue.enqueue({}, id=id)
    await work(queue, Batches(lambda _: [1, Reject("no")]).handle)
    lines = [record.getMessage() for record in caplog.records if record.name == "streams_queue.messages"]
    begun, ended = lines[:2], lines[2:]
    assert [line.split(":")[0] for line in begun] == ["message good started", "message bad started"]
    assert ended[0].startswith("message good completed: attempt 1")
    assert ended[1].endswith("rejected: no")


# ---- bad input


@pytest.mark.parametrize("size", [0, -1, 1.5, "100", None])
def test_a_size_that_is_none(queue_unopened, size):
    with pytest.raises(ConfigurationError, match=rf"size={size!r} is not a whole number above 0"):
        Worker(queue_unopened).batch(size=size)


@pytest.mark.parametrize("wait", [-0.1, float("inf"), float("nan"), "1", None])
def test_a_wait_that_is_none(queue_unopened, wait):
    with pytest.raises(ConfigurationError, match=rf"wait={wait!r} is not a number of seconds from 0 on"):
        Worker(queue_unopened).batch(wait=wait)


def test_a_decorator_that_is_not_called_says_how_it_is_written(queue_unopened):
    async def handle(messages: list[Message[Any]]) -> None: ...

    with pytest.raises(ConfigurationError, match=r"write @worker.batch\(size=100, wait=0.05\)"):
        Worker(queue_unopened).batch(handle)  # type: ignore[arg-type]


def test_a_handler_that_is_no_coroutine_function(queue_unopened):
    with pytest.raises(ConfigurationError, match="write `async def`"):
        Worker(queue_unopened).batch()(lambda messages: None)  # type: ignore[arg-type,return-value]


def test_one_worker_one_handler(queue_unopened):
    async def one(message: Message[Any]) -> None: ...

    async def many(messages: list[Message[Any]]) -> None: ...

    worker: Worker[Any] = Worker(queue_unopened)
    assert worker.batch()(many) is many
    with pytest.raises(ConfigurationError, match="one worker, one handler"):
        worker.handler(one)
    with pytest.raises(ConfigurationError, match="one worker, one handler"):
        worker.batch()(many)


async def test_no_handler_at_all(queue):
    with pytest.raises(ConfigurationError, match=r"@worker.handler or @worker.batch"):
        await Worker(queue).run()


@pytest.fixture
def queue_unopened(prefix) -> Queue[Any]:
    return Queue(prefix, url="redis://localhost:1")
