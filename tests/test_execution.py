"""One delivery, without a server: outcomes, results, batches."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from streams_queue import QueueUnavailable, Reject, Retry, Status
from streams_queue.answers import Delivery, Failure
from streams_queue.backoff import LONGEST, retry_delay
from streams_queue.batching import Batcher
from streams_queue.codec import Codec
from streams_queue.execution import Execution, current, encoded_result, handle, is_suspect
from streams_queue.model import Lease
from streams_queue.outcomes import Completed, Failed, Policy, Rejected
from streams_queue.settlement import Settlement
from streams_queue.supervision import Deadlines

POLICY = Policy(
    max_retries=3,
    retry_delay=5.0,
    max_deliveries=3,
    timeout=600.0,
    result_ttl=300,
    dead_letter_ttl=60,
    dedup_expiry=60,
)
LEASE = Lease("m", "n1-0", "1")
FIELDS = {"timestamp": b"1", "status": b"processing", "a": b"b", "_sq_types": b"", "_sq_deliveries": b"1"}


class Fake:
    """Transitions that answer as they are told, and remember."""

    def __init__(self, *answers: str | Exception) -> None:
        self.calls: list[tuple[str, Any]] = []
        self._answers = list(answers)

    def _answer(self, name: str, items: Sequence[Any], otherwise: str) -> list[str]:
        self.calls.append((name, list(items)))
        answer = self._answers.pop(0) if self._answers else otherwise
        if isinstance(answer, Exception):
            raise answer
        return [answer for _ in items]

    async def complete(self, consumer: str, items: Sequence[Any], **_: Any) -> list[str]:
        return self._answer("complete", items, "completed")

    async def retry(self, consumer: str, items: Sequence[Any], **_: Any) -> list[str]:
        return self._answer("retry", items, "retry")

    async def dead_letter(self, consumer: str, items: Sequence[Any], **_: Any) -> list[str]:
        return self._answer("dead_letter", items, "error")

    async def release(self, consumer: str, items: Sequence[Any]) -> list[str]:
        return self._answer("release", items, "queued")


def settlement(fake: Fake) -> Settlement:
    return Settlement(fake, "me", POLICY)  # type: ignore[arg-type]


def execution(fake: Fake | None = None, **fields: bytes) -> Execution[Any]:
    delivery = Delivery(LEASE, {**FIELDS, **fields})
    made: Execution[Any] = Execution(delivery, settlement(fake or Fake()), POLICY)
    assert made.decode(Codec(None, 1 << 20)) is None
    return made


async def outcome_of(handler: Any, run: Execution[Any] | None = None, timeout: float = 5.0) -> Any:
    deadlines = Deadlines(timeout)
    try:
        return await handle(run or execution(), handler, deadlines, lambda: False)
    finally:
        deadlines.close()


# ---- outcomes


async def test_a_return_is_completed():
    async def handler(message):
        return {"a": 1}

    assert await outcome_of(handler) == Completed(b'{"a":1}')


async def test_an_error_is_failed_with_back_off():
    async def handler(message):
        raise ValueError("x")

    assert await outcome_of(handler) == Failed(5.0, "error", "ValueError: x")
    assert await outcome_of(handler, execution(retry_count=b"2")) == Failed(20.0, "error", "ValueError: x")


async def test_instructions():
    async def retry(message):
        raise Retry(7)

    async def reject(message):
        raise Reject("no")

    assert await outcome_of(retry) == Failed(7, "error", "retry in 7 s")
    assert await outcome_of(reject) == Rejected("rejected", "no")


async def test_too_slow():
    assert await outcome_of(lambda message: asyncio.sleep(5), timeout=0.01) == Failed(
        5.0, "timeout", "the handler took longer than 0.01 s"
    )


async def test_one_timer_finds_everybody_who_is_late():
    deadlines = Deadlines(0.05)
    ended: list[str] = []

    async def run(name: str, seconds: float) -> None:
        outcome = await handle(execution(), lambda message: asyncio.sleep(seconds), deadlines, lambda: False)
        ended.append(f"{name}: {outcome.reason if isinstance(outcome, Failed) else 'in time'}")

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(run("slow", 5))
        tasks.create_task(run("quick", 0.01))
        await asyncio.sleep(0.02)
        tasks.create_task(run("later", 5))
    assert ended == ["quick: in time", "slow: timeout", "later: timeout"]
    assert deadlines._timer is None, "nobody is left to be late"


async def test_an_interruption_goes_through():
    run = execution()
    asyncio.get_running_loop().call_soon(run.interrupt)
    with pytest.raises(asyncio.CancelledError):
        await outcome_of(lambda message: asyncio.sleep(5), run)
    await asyncio.sleep(0)  # it ended with the handler


async def test_who_was_interrupted_before_it_began_does_not_get_far():
    run = execution()
    run.interrupt()
    with pytest.raises(asyncio.CancelledError):
        await outcome_of(lambda message: asyncio.sleep(5), run)


async def test_who_goes_on_in_spite_of_it_is_cancelled_again(monkeypatch):
    monkeypatch.setattr("streams_queue.supervision.CANCELLED_AGAIN_AFTER", 0.01)
    heard = 0

    async def stubborn(message):
        nonlocal heard
        while heard < 3:
            try:
                await asyncio.sleep(5)
            except asyncio.CancelledError:
                heard += 1
        return heard

    run = execution()
    asyncio.get_running_loop().call_soon(run.interrupt)
    assert await outcome_of(stubborn, run) == Completed(b"3")
    await asyncio.sleep(0.05)  # nothing is left of it


async def test_an_undecodable_body():
    class Email(msgspec.Struct):
        to: str

    made: Execution[Email] = Execution(Delivery(LEASE, FIELDS), settlement(Fake()), POLICY)
    words = "message m: Object missing required field `to`"
    assert made.decode(Codec(Email, 1 << 20)) == Rejected("undecodable", words)


async def test_the_handler_finds_its_execution():
    run = execution()
    seen = []

    async def handler(message):
        seen.append(current.get())
        seen.append(await asyncio.create_task(current_in_a_task()))

    await outcome_of(handler, run)
    assert seen == [run, run]
    assert current.get() is None


async def current_in_a_task() -> Any:
    return contextvars.copy_context().get(current)


# ---- settling


async def test_one_transition_and_no_second():
    fake = Fake()
    run = execution(fake)
    assert await run.settle(Completed(b"1")) is True
    assert await run.settle(Failed(0.0, "error", "x")) is False
    assert await run.fail("x") is False
    await run.release()
    assert fake.calls == [("complete", [(LEASE, b"1")])]


@pytest.mark.parametrize("answer", ["stale", "gone"])
async def test_what_was_not_written(answer):
    run = execution(Fake(answer))
    assert await run.settle(Completed(b"")) is False
    assert run.settled == answer


async def test_nothing_is_written_for_a_lost_lease():
    fake = Fake()
    run = execution(fake)
    run.lost = True
    assert await run.settle(Completed(b"")) is False
    await run.release()
    assert fake.calls == []


async def test_each_kind_of_outcome_has_its_transition():
    for act, name in (
        (lambda run: run.complete(), "complete"),
        (lambda run: run.fail("x"), "retry"),
        (lambda run: run.give_up("x"), "dead_letter"),
        (lambda run: run.release(), "release"),
    ):
        fake = Fake()
        await act(execution(fake))
        assert [call for call, _ in fake.calls] == [name]


async def test_an_outcome_is_sent_until_the_server_answers(caplog):
    fake = Fake(QueueUnavailable("down"), QueueUnavailable("down"), "completed")
    assert await execution(fake).settle(Completed(b"")) is True
    assert [name for name, _ in fake.calls] == ["complete"] * 3
    assert len(caplog.records) == 1, "said once"


async def test_outcomes_share_a_round_trip():
    fake = Fake()
    both = settlement(fake)
    leases = [Lease(str(n), "n1-0", "1") for n in range(10)]
    await asyncio.gather(*(both.settle(lease, Failed(1.0, "error", "x")) for lease in leases))
    assert len(fake.calls) <= 2
    assert [failure for _, items in fake.calls for failure in items] == [
        Failure(lease, 1.0, "error", "x") for lease in leases
    ]


# ---- pieces


@pytest.mark.parametrize(
    ("value", "encoded"), [(None, b""), (0, b"0"), ("é", '"é"'.encode()), (Status.ERROR, b'"error"'), ((1,), b"[1]")]
)
def test_encoded_results(value, encoded):
    assert encoded_result("m", value) == encoded


def test_back_off():
    assert [retry_delay(5.0, attempt) for attempt in (1, 2, 3, 4)] == [5, 10, 20, 40]
    assert retry_delay(5.0, 10_000) == LONGEST
    assert retry_delay(0.0, 3) == 0


def test_suspects():
    assert not is_suspect(Delivery(LEASE, {**FIELDS, "_sq_crashes": b"2"}))
    assert is_suspect(Delivery(LEASE, {**FIELDS, "_sq_suspect": b"1"}))


async def test_a_batcher_sends_at_once_and_then_what_has_gathered():
    batches: list[list[int]] = []
    go = asyncio.Event()

    async def send(items: Sequence[int]) -> list[int]:
        batches.append(list(items))
        await go.wait()
        return [item * 10 for item in items]

    batcher: Batcher[int, int] = Batcher(send)
    calls = [asyncio.ensure_future(batcher.submit(0))]
    await asyncio.sleep(0)
    calls += [asyncio.ensure_future(batcher.submit(n)) for n in range(1, 6)]
    await asyncio.sleep(0)
    calls[3].cancel()
    go.set()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert batches == [[0], [1, 2, 3, 4, 5]], "who gave up waiting has its item sent all the same"
    assert [answer for answer in answers if isinstance(answer, int)] == [0, 10, 20, 40, 50]
    assert isinstance(answers[3], asyncio.CancelledError)


async def test_a_batch_that_fails_fails_for_all_and_the_next_goes_on():
    failing = True

    async def send(items: Sequence[int]) -> Sequence[int]:
        if failing:
            raise QueueUnavailable("down")
        return items

    batcher: Batcher[int, int] = Batcher(send)
    answers = await asyncio.gather(*(batcher.submit(n) for n in range(3)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [QueueUnavailable] * 3
    failing = False
    assert await batcher.submit(7) == 7
    await batcher.drain()


def test_a_delay_of_another_type_of_number_can_be_written():
    """Redis does not take it; refused there, no outcome of the worker would ever be written."""
    delay: Any = Decimal(1)
    assert type(Retry(delay).delay) is float
