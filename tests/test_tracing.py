"""Spans from the producer to the handler, also across processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import timeit
from pathlib import Path
from typing import Any

import opentelemetry.trace
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from helpers import Handler, Held, queue_at, running, until, work, worker_of
from streams_queue import QueueUnavailable, Reject, Worker, tracing
from streams_queue.model import Lease
from streams_queue.observation import Run, Watch
from streams_queue_compat.redis_queue_manager import RedisQueueManager

WORKER = """
import json, os
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from streams_queue import Queue, Worker

class ToFile(SpanExporter):
    def export(self, spans):
        with open("spans", "a") as file:
            for span in spans:
                file.write(span.to_json(indent=None) + "\\n")
        return SpanExportResult.SUCCESS

trace.set_tracer_provider(TracerProvider())
trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(ToFile()))
worker = Worker(Queue(os.environ["PREFIX"]))

@worker.handler
async def handle(message):
    with trace.get_tracer("application").start_as_current_span("within the handler"):
        pass
"""


class Spans:
    """What was traced in this process."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    @property
    def all(self) -> tuple[Any, ...]:
        return self._exporter.get_finished_spans()

    def of(self, kind: SpanKind) -> list[Any]:
        return [span for span in self.all if span.kind is kind]

    @property
    def names(self) -> list[str]:
        return sorted(span.name for span in self.all)


@pytest.fixture
def spans(monkeypatch) -> Spans:
    """As where an application has set up a tracer provider."""
    spans = Spans()
    monkeypatch.setattr(opentelemetry.trace, "_TRACER_PROVIDER", spans.provider)
    return spans


@pytest.fixture
async def queue(server, prefix):
    async with queue_at(server, prefix) as queue:
        yield queue


def spans_of_a_worker(folder: Path, **environment: str) -> list[Any]:
    """What a worker process traced that worked off the queue."""
    (folder / "jobs.py").write_text(WORKER)
    command = "from streams_queue.cli import main; main()"
    subprocess.run(
        [sys.executable, "-c", command, "worker", "jobs:worker", "--burst"],
        cwd=folder, env=os.environ | environment, check=True, timeout=30,
    )  # fmt: skip
    return [json.loads(line) for line in (folder / "spans").read_text().splitlines()]


def parent_of(span: Any) -> int | None:
    return span.parent.span_id if span.parent else None


async def test_one_trace_over_two_processes(spans, queue, server, prefix, tmp_path):
    with spans.provider.get_tracer("application").start_as_current_span("request"):
        receipt = await queue.enqueue({})
    inner, processed = spans_of_a_worker(tmp_path, PREFIX=prefix, STREAMS_QUEUE_URL=server.url)
    sent, request = spans.all
    trace_id = f"0x{sent.context.trace_id:032x}"
    assert {span["context"]["trace_id"] for span in (inner, processed)} == {trace_id}
    assert (request.name, sent.name, processed["name"]) == ("request", f"send {prefix}", f"process {prefix}")
    assert parent_of(sent) == request.context.span_id
    assert processed["parent_id"] == f"0x{sent.context.span_id:016x}"
    assert inner["parent_id"] == processed["context"]["span_id"], "the handler's own spans stand below ours"
    assert processed["kind"] == "SpanKind.CONSUMER"
    (link,) = processed["links"]
    assert link["context"]["span_id"] == f"0x{sent.context.span_id:016x}", "a link, as the conventions ask"
    assert processed["attributes"].items() >= {
        "messaging.system": "streams_queue", "messaging.operation.type": "process",
        "messaging.operation.name": "process", "messaging.destination.name": prefix,
        "messaging.message.id": receipt.id, "messaging.consumer.group.name": "workers",
        "streams_queue.attempt": 1, "streams_queue.result": "completed",
    }.items()  # fmt: skip


async def test_the_producer_s_span(spans, queue, prefix):
    await queue.enqueue({}, id="m1")
    await queue.enqueue_many([{}, {}, {}])
    single, batch = spans.all
    assert (single.kind, batch.kind) == (SpanKind.PRODUCER, SpanKind.PRODUCER)
    common = {
        "messaging.system": "streams_queue", "messaging.operation.type": "send", "messaging.operation.name": "send",
        "messaging.destination.name": prefix,
    }  # fmt: skip
    assert dict(single.attributes) == {**common, "messaging.message.id": "m1"}
    assert dict(batch.attributes) == {**common, "messaging.batch.message_count": 3}


async def test_each_message_of_a_batch_and_each_attempt_leads_to_its_sender(spans, queue):
    await queue.enqueue_many([{"n": n} for n in range(3)])

    async def handle(message):
        if message.data["n"] == 0 and message.attempts == 1:
            raise ValueError("once")

    await work(queue, handle)
    (sent,) = spans.of(SpanKind.PRODUCER)
    processed = spans.of(SpanKind.CONSUMER)
    assert len(processed) == 4
    assert {parent_of(span) for span in processed} == {sent.context.span_id}
    assert sorted(span.attributes["streams_queue.attempt"] for span in processed) == [1, 1, 1, 2]


async def test_a_batch_is_one_span_that_leads_to_all_its_senders(spans, queue):
    for id in ("a", "b", "c"):
        await queue.enqueue({}, id=id)
    seen = []

    async def handle(messages):
        seen.append(opentelemetry.trace.get_current_span().get_span_context().span_id)
        return [None, ValueError("bad"), None] if len(messages) == 3 else None

    worker = Worker(queue, retry_delay=0.0)
    worker.batch(size=3)(handle)
    await worker.run(burst=True)
    batch, again = spans.of(SpanKind.CONSUMER)
    assert seen == [batch.context.span_id, again.context.span_id]
    assert batch.parent is None
    senders = {span.context.span_id for span in spans.of(SpanKind.PRODUCER)}
    assert {link.context.span_id for link in batch.links} == senders
    assert batch.attributes["messaging.batch.message_count"] == 3
    assert batch.attributes["streams_queue.completed"] == 2
    assert (batch.status.status_code, batch.attributes["error.type"]) == (StatusCode.ERROR, "error")
    assert again.attributes["streams_queue.result"] == "completed"


async def test_a_failure_is_an_error_without_secrets(spans, queue):
    await queue.enqueue({"token": "canary-token"}, id="failing")
    await queue.enqueue({}, id="refused")

    async def handle(message):
        if message.id == "refused":
            raise Reject("no such article")
        raise ValueError(f"bad {message.data['token']}")

    await work(queue, handle, max_retries=0)
    by_id = {span.attributes["messaging.message.id"]: span for span in spans.of(SpanKind.CONSUMER)}
    failing, refused = by_id["failing"], by_id["refused"]
    assert (failing.status.status_code, failing.status.description) == (StatusCode.ERROR, "ValueError: bad ***")
    assert (failing.attributes["error.type"], failing.attributes["streams_queue.result"]) == ("error", "failed")
    assert (refused.status.description, refused.attributes["error.type"]) == ("no such article", "rejected")
    assert "canary" not in "".join(span.to_json() for span in spans.all)


async def test_handlers_side_by_side_do_not_see_each_other_s_span(spans, queue):
    held = Held()
    seen: dict[str, int] = {}

    async def handle(message):
        await held.handle(message)
        seen[message.id] = opentelemetry.trace.get_current_span().get_span_context().span_id

    async with running(worker_of(queue, handle)):
        await queue.enqueue_many([{}] * 5)
        await held.holds(5)
        held.go.set()
        await until(lambda: len(spans.of(SpanKind.CONSUMER)) == 5, what="all are done")
    ours = {span.attributes["messaging.message.id"]: span.context.span_id for span in spans.of(SpanKind.CONSUMER)}
    assert seen == ours
    assert not opentelemetry.trace.get_current_span().get_span_context().is_valid


async def test_what_follows_in_the_same_task_is_outside_the_span(spans, queue):
    await queue.enqueue({}, id="m1")
    worker = worker_of(queue, Handler().handle)
    assert worker.observation.ask()
    message = await queue.get("m1")
    watch = Watch(worker.observation, [Run(worker.observation, Lease("m1", "n1-0", "1"), message, {})])
    assert opentelemetry.trace.get_current_span().get_span_context().is_valid
    watch.end([("completed", "", "")])
    assert not opentelemetry.trace.get_current_span().get_span_context().is_valid


async def test_a_message_without_a_sender_begins_a_trace(spans, queue, redis, prefix):
    await queue.enqueue({}, id="m1")
    await redis.hset(f"{prefix}:msg:m1", "_sq_trace", b"\xff00-nonsense")
    await queue.enqueue({}, id="m2")
    await redis.hdel(f"{prefix}:msg:m2", "_sq_trace")
    await work(queue, Handler().handle)
    for span in spans.of(SpanKind.CONSUMER):
        assert (span.parent, span.links) == (None, ())


async def test_the_field_is_the_engine_s_own_and_goes_with_the_body(spans, queue, redis, prefix):
    receipt = await queue.enqueue({"a": "1"})
    raw = await redis.hget(f"{prefix}:msg:{receipt.id}", "_sq_trace")
    (sent,) = spans.all
    assert raw[:-1] == f"00-{sent.context.trace_id:032x}-{sent.context.span_id:016x}-0"
    assert (await queue.get(receipt.id)).data == {"a": "1"}
    await work(queue, Handler().handle)
    assert not await redis.exists(f"{prefix}:msg:{receipt.id}")


async def test_a_state_of_the_tracing_system_is_handed_on(spans, queue, redis, prefix):
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    context = tracing._PROPAGATOR.extract({"traceparent": parent, "tracestate": "vendor=1,other=2"})
    with spans.provider.get_tracer("application").start_as_current_span("request", context=context):
        receipt = await queue.enqueue({})
    assert (await redis.hget(f"{prefix}:msg:{receipt.id}", "_sq_trace")).endswith("-01 vendor=1,other=2")
    await work(queue, Handler().handle)
    (processed,) = spans.of(SpanKind.CONSUMER)
    assert processed.context.trace_state.get("other") == "2"


async def test_a_refused_enqueue_is_an_error(spans, server, prefix):
    queue = queue_at(server, prefix)
    await queue.open()
    await queue.connection.close()
    with pytest.raises((QueueUnavailable, RuntimeError)):
        await queue.enqueue({})
    (sent,) = spans.all
    assert sent.status.status_code is StatusCode.ERROR
    assert sent.attributes["error.type"]


async def test_polling_and_upkeep_have_no_spans(spans, queue):
    await work(queue, Handler().handle)
    await queue.stats()
    assert spans.all == ()


async def test_the_documented_api_is_traced_too(spans, server, prefix, monkeypatch):
    monkeypatch.setenv("STREAMS_QUEUE_URL", server.url)
    manager = RedisQueueManager(prefix)
    id = await manager.enqueue({"user_id": "u", "message": "hi"})
    await manager.close()
    (sent,) = spans.all
    assert (sent.name, sent.attributes["messaging.message.id"]) == (f"send {prefix}", id)


async def test_without_a_provider_nothing_is_written(queue, redis, prefix):
    assert not tracing.is_on()
    receipt = await queue.enqueue({})
    assert not await redis.hexists(f"{prefix}:msg:{receipt.id}", "_sq_trace")


def test_without_a_provider_it_costs_next_to_nothing():
    assert min(timeit.repeat(tracing.is_on, number=10_000, repeat=5)) / 10_000 < 2e-6


def test_without_the_api_nothing_is_missed(tmp_path):
    (tmp_path / "opentelemetry.py").write_text("raise ModuleNotFoundError('gone', name='opentelemetry')")
    program = "from streams_queue import Worker, tracing; assert not tracing.is_on()"
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=30)
