"""Metrics, health and load: of a whole queue, and of the workers of one process."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
import time
import timeit
import urllib.error
import urllib.request
from typing import Any, NamedTuple

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as plain_text

from helpers import SOON, Handler, Held, queue_at, running, until, work, worker_of
from streams_queue import ConfigurationError, Limits, Rate, RateLimited, Reject, Retry, Worker
from streams_queue.metrics import (
    BUCKETS,
    EDITS,
    REASONS,
    REFUSING,
    WorkerCollector,
    exposition_of_processes,
    exposition_of_queues,
    exposition_of_registry,
    observe,
)
from streams_queue.monitor import Exporter, Monitor
from streams_queue.observation import Observation, Run

Values = dict[tuple[str, ...], float]


def values(text: str | bytes) -> Values:
    """Each sample's name and labels without the queue, with its value."""
    return {
        (sample.name, *(label for name, label in sorted(sample.labels.items()) if name != "queue")): sample.value
        for family in plain_text(text if isinstance(text, str) else text.decode())
        for sample in family.samples
    }


async def measured(*queues: Any) -> Values:
    return values((await exposition_of_queues(queues)).body)


@pytest.fixture
async def queue(server, prefix):
    async with queue_at(server, prefix) as queue:
        yield queue


class Response(NamedTuple):
    status: int
    text: str
    headers: Any = None

    @property
    def json(self) -> Any:
        return json.loads(self.text)


async def get(address: str, path: str, method: str = "GET", **headers: str) -> Response:
    def fetch() -> Response:
        request = urllib.request.Request(f"http://{address}{path}", method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return Response(response.status, response.read().decode(), response.headers)
        except urllib.error.HTTPError as error:
            return Response(error.code, error.read().decode(), error.headers)

    return await asyncio.to_thread(fetch)


# ---- a whole queue


async def test_what_a_queue_counts(queue):
    await queue.enqueue_many([{"n": n} for n in range(5)])
    await queue.enqueue({"n": 5}, id="twice")
    await queue.enqueue({"n": 5}, id="twice")
    await queue.enqueue({"n": 6}, delay=100)
    await queue.remove((await queue.enqueue({"n": 7}, delay=100)).id)
    await queue.set_limits(Limits(key="n", accept_per_key=Rate(1, per=100)))
    await queue.enqueue({"n": 8})
    with pytest.raises(RateLimited):
        await queue.enqueue({"n": 8})

    async def handle(message):
        if message.data["n"] == 1:
            raise Reject("no")
        if message.data["n"] == 2:
            raise ValueError("always")
        if message.data["n"] == 3:
            raise Retry(delay=100)

    await work(queue, handle, max_retries=1)
    found = await measured(queue)
    wanted = {
        "up": 1, "paused": 0, "messages_enqueued_total": 9, "messages_completed_total": 4, "messages_retried_total": 2,
        "messages_failed_total": 4, "messages_recovered_total": 0, "messages_duplicate_total": 1,
        "messages_expired_total": 0, "messages_removed_total": 1, "messages_requeued_total": 0, "leases_lost_total": 0,
    }  # fmt: skip
    assert {name: found[f"streams_queue_{name}",] for name in wanted} == wanted
    refused = {limit: found["streams_queue_messages_refused_total", limit] for limit in REFUSING}
    assert refused == {"max_length": 0, "accept": 0, "accept_per_key": 1}
    died = {reason: found["streams_queue_messages_dead_total", reason] for reason in (*REASONS, "unknown")}
    assert died == {"error": 1, "rejected": 1, "timeout": 0, "crash": 0, "undecodable": 0, "unknown": 0}
    depth = {labels[0]: value for (name, *labels), value in found.items() if name == "streams_queue_depth"}
    assert depth == {"waiting": 0, "processing": 0, "retry": 1, "scheduled": 1, "dead": 2, "lost": 0}


async def test_depth_age_and_workers_of_the_moment(queue):
    held = Held()
    async with running(worker_of(queue, held.handle, concurrency=1)):
        await queue.enqueue_many([{}, {}, {}])
        await held.holds()
        await asyncio.sleep(0.2)
        found = await measured(queue)
        assert found["streams_queue_depth", "waiting"] == 2
        assert found["streams_queue_depth", "processing"] == 1
        assert 0.2 <= found["streams_queue_oldest_waiting_seconds",] < 5
        assert found["streams_queue_workers",] == 1
        held.go.set()
    assert (await measured(queue))["streams_queue_workers",] == 0


async def test_outside_edits_are_told_by_kind(queue, redis, prefix):
    await redis.hset(f"{prefix}:stats", mapping={"outside_added": 3, "outside_invented": 9, "dead_invented": 2})
    await redis.hset(f"{prefix}:stats", "dlq_messages", 5)
    text = (await exposition_of_queues([queue])).body.decode()
    found = values(text)
    assert {kind: found["streams_queue_outside_edits_total", kind] for kind in EDITS}["added"] == 3
    assert found["streams_queue_messages_dead_total", "unknown"] == 5, "counted before reasons were"
    assert "invented" not in text, "who can write a counter must not make labels"


async def test_a_scrape_costs_one_round_trip_a_queue(queue, server, redis, prefix):
    async with queue_at(server, f"{prefix}:other") as other:
        await queue.enqueue_many([{"n": n} for n in range(1000)])
        await measured(queue, other)
        await redis.config_resetstat()
        await measured(queue, other)
        stats = await redis.info("commandstats")
        sent = {name: row["calls"] for name, row in stats.items() if name in ("cmdstat_evalsha", "cmdstat_eval")}
        assert sent == {"cmdstat_evalsha": 2}


async def test_a_queue_out_of_reach_is_down_and_hides_no_other(queue, server, caplog):
    gone: Any = queue_at(server, "gone")
    gone.settings = gone.connection.settings = queue.settings.__class__.resolve("redis://127.0.0.1:1")
    gone.connection = gone.connection.__class__(gone.settings)
    found = {
        (sample.name, sample.labels["queue"]): sample.value
        for family in plain_text((await exposition_of_queues([queue, gone])).body.decode())
        for sample in family.samples
    }
    assert found["streams_queue_up", "gone"] == 0
    assert found["streams_queue_up", queue.keys.prefix] == 1
    assert ("streams_queue_workers", "gone") not in found
    assert "queue gone cannot be measured" in caplog.text


async def test_open_metrics_for_who_asks(queue):
    body, content_type = await exposition_of_queues([queue], "application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert {family.name for family in open_metrics(body.decode())} >= {"streams_queue_messages_enqueued"}


async def test_no_id_and_no_payload_in_any_metric(queue):
    registry = CollectorRegistry()
    worker = worker_of(queue, Handler().handle)
    observe(worker, registry=registry)
    await queue.enqueue({"user_id": "canary-user", "token": "canary-token"}, id="canary-id", unique_key="canary-key")
    await worker.run(burst=True)
    text = (await exposition_of_queues([queue])).body + exposition_of_registry(registry).body
    assert b"canary" not in text
    labels = {name for family in plain_text(text.decode()) for sample in family.samples for name in sample.labels}
    assert labels == {"queue", "state", "priority", "reason", "kind", "limit", "le"}


# ---- several processes


def test_pages_of_processes_are_joined():
    pages: list[bytes] = []
    for n in (1, 2):
        registry = CollectorRegistry()
        counter = Counter("app_jobs", "Jobs\nof \\ mine.", ["process", "text"], registry=registry)
        counter.labels("import", 'a "b"\n\\c').inc(n)
        Histogram("app_seconds", "Time.", buckets=[1], registry=registry).observe(n)
        pages.append(generate_latest(registry))
    body, content_type = exposition_of_processes({1: pages[0], 2: None, 3: pages[1]}, {1: 1, 2: 4, 3: 1})
    assert content_type.startswith("text/plain")
    families = {family.name: family for family in plain_text(body.decode())}
    assert families["app_jobs"].documentation == "Jobs\nof \\ mine."
    jobs = [(sample.labels, sample.value) for sample in families["app_jobs"].samples]
    label = {"exported_process": "import", "text": 'a "b"\n\\c'}
    assert jobs == [({"process": "1", **label}, 1.0), ({"process": "3", **label}, 2.0)]
    assert families["app_seconds"].type == "histogram"
    assert [sample.value for sample in families["app_seconds"].samples if sample.labels.get("le") == "1.0"] == [
        1.0,
        0.0,
    ]
    found = values(body)
    up = [found["streams_queue_worker_process_up", str(n)] for n in (1, 2, 3)]
    restarts = [found["streams_queue_worker_process_restarts_total", str(n)] for n in (1, 2, 3)]
    assert (up, restarts) == ([1, 0, 1], [0, 3, 0])


# ---- the workers of a process


async def test_what_workers_count(queue):
    registry = CollectorRegistry()
    outcomes = {0: None, 1: ValueError("x"), 2: Reject("no"), 3: Retry(delay=100)}

    async def handle(message):
        if outcome := outcomes.get(message.data["n"]):
            raise outcome
        await asyncio.sleep(10 if message.data["n"] == 4 else 0.03)

    worker = worker_of(queue, handle, max_retries=0, timeout=0.2)
    observe(worker, registry=registry)
    await queue.enqueue_many([{"n": n} for n in (0, 1, 2, 3, 4, 5)])
    await worker.run(burst=True)
    found = values(exposition_of_registry(registry).body)
    name = "streams_queue_worker_"
    assert found[f"{name}messages_started_total",] == 6
    assert found[f"{name}messages_completed_total",] == 2
    failures = {reason: found[f"{name}messages_failed_total", reason] for reason in ("error", "timeout", "rejected")}
    assert failures == {"error": 2, "timeout": 1, "rejected": 1}
    counts = {kind: found[f"{name}{kind}_seconds_count",] for kind in ("wait", "run", "end_to_end")}
    assert counts == {"wait": 6, "run": 6, "end_to_end": 2}
    assert found[f"{name}run_seconds_bucket", "0.25"] - found[f"{name}run_seconds_bucket", "0.1"] == 1, "the timeout"
    assert 0.26 <= found[f"{name}run_seconds_sum",] < 1
    assert found[f"{name}end_to_end_seconds_sum",] >= 0.06
    assert found[f"{name}slots",] == worker.concurrency
    assert (found[f"{name}slots_busy",], found[f"{name}ready",]) == (0, 0)


async def test_workers_of_one_queue_are_added_up(queue):
    held, registry = Held(), CollectorRegistry()
    workers = [worker_of(queue, held.handle, concurrency=n) for n in (1, 2)]
    observe(*workers, registry=registry)
    async with running(workers[0]), running(workers[1]):
        await queue.enqueue_many([{}] * 3)
        await held.holds(3)
        found = values(exposition_of_registry(registry).body)
        assert (found["streams_queue_worker_slots",], found["streams_queue_worker_slots_busy",]) == (3, 3)
        assert found["streams_queue_worker_ready",] == 2
        held.go.set()
    with pytest.raises(ConfigurationError, match="shows workers already"):
        observe(worker_of(queue, held.handle), registry=registry)


async def test_what_was_interrupted_is_neither_done_nor_failed(queue):
    held, registry = Held(), CollectorRegistry()
    worker = worker_of(queue, held.handle, grace=0.0)
    observe(worker, registry=registry)
    async with running(worker):
        removed, _ = await queue.enqueue_many([{}, {}])
        await held.holds(2)
        await queue.remove(removed.id)
        await until(lambda: held.cancelled, what="the removed message's handler was cancelled")
    found = values(exposition_of_registry(registry).body)
    assert found["streams_queue_worker_messages_lost_total",] == 1
    assert found["streams_queue_worker_messages_handed_back_total",] == 1
    assert found["streams_queue_worker_messages_completed_total",] == 0


async def test_the_wait_is_since_a_message_came_into_line_by_the_server_s_clock(queue, monkeypatch):
    """Not since its enqueue, where it was delayed; and an hour between two clocks makes no difference."""
    waits: list[float] = []

    class Ears:
        def wants(self) -> bool:
            return True

        def started(self, runs):
            waits.extend(run.wait for run in runs)

        def ended(self, runs, kept):
            waits.extend(run.age for run in runs)

    worker = worker_of(queue, Handler().handle)
    worker.observation.observers.append(Ears())
    real, set_clock = time.time, Observation.set_clock
    set_clocks: list[Observation] = []

    def note(observation: Observation, server_time: float) -> None:
        set_clock(observation, server_time)
        set_clocks.append(observation)

    monkeypatch.setattr(Observation, "set_clock", note)
    monkeypatch.setattr("streams_queue.observation.time.time", lambda: real() - 3600)
    async with running(worker):
        await until(lambda: set_clocks, what="the server's clock was read")
        assert 3599 < set_clocks[0].clock_behind < 3601
        await queue.enqueue({}, delay=0.5)
        await until(lambda: len(waits) == 2, what="it was worked on")
    wait, age = waits
    assert age - wait >= 0.49, "the delay is in the age alone"
    assert 0 <= wait < SOON


async def test_an_observer_that_fails_touches_no_message(queue, caplog):
    class Broken:
        def wants(self) -> bool:
            return True

        def started(self, runs):
            raise ValueError("in started")

        def ended(self, runs, kept):
            raise ValueError("in ended")

    worker = worker_of(queue, Handler().handle)
    worker.observation.observers.append(Broken())
    receipt = await queue.enqueue({})
    await worker.run(burst=True)
    assert await queue.result(receipt.id, timeout=5) is None
    assert "in started" in caplog.text
    assert "in ended" in caplog.text


def test_nobody_who_listens_costs_next_to_nothing():
    observation = Observation("q")
    observation.ask()
    best = min(timeit.repeat(lambda: observation.listening and Run, number=10_000, repeat=5)) / 10_000
    assert best < 1e-6


def test_the_buckets_grow():
    assert sorted(BUCKETS) == list(BUCKETS)


# ---- over HTTP


async def test_health_load_and_metrics_of_a_worker(queue):
    held = Held()
    worker = worker_of(queue, held.handle, concurrency=2)
    with Monitor(worker) as monitor:
        assert (await get(monitor.address, "/ready")).status == 503
        assert (await get(monitor.address, "/live")).json == {"live": True, "silence": 0}
        async with running(worker):
            await queue.enqueue_many([{}] * 3)
            await held.holds(2)
            ready = await get(monitor.address, "/ready")
            assert (ready.status, ready.json) == (200, {"ready": True})
            load = (await get(monitor.address, "/load")).json
            assert {"slots": 2, "busy": 2, "saturation": 1.0, "waiting": 1, "processing": 2}.items() <= load.items()
            assert load["queue"] == queue.keys.prefix
            assert load["workers"] == 1
            assert load["oldest_waiting_seconds"] > 0
            metrics = await get(monitor.address, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
            assert metrics.headers["Content-Type"].startswith("application/openmetrics-text")
            assert metrics.text.endswith("# EOF\n")
            held.go.set()
        assert (await get(monitor.address, "/ready")).status == 503
    assert not any(thread.name == "streams-queue monitor" for thread in threading.enumerate())


async def test_a_blocked_event_loop_is_seen_from_outside(queue):
    """The worker's loop stands still, and whoever asks is told so all the same."""
    answers: list[Response] = []
    asked = threading.Event()
    worker = worker_of(queue, Handler().handle, lease=0.6)
    with Monitor(worker) as monitor:

        def ask() -> None:
            asyncio.run(until(saw_the_block, what="/live said no"))
            asked.set()

        async def saw_the_block() -> bool:
            answers.append(await get(monitor.address, "/live"))
            return answers[-1].status == 503

        async with running(worker):
            await until(lambda: worker.ready, what="the worker is ready")
            assert (await get(monitor.address, "/live")).status == 200
            asker = threading.Thread(target=ask)
            asker.start()
            blocked = asked.wait(10)  # blocks the loop
            assert blocked
            assert answers[-1].json["live"] is False
            assert answers[-1].json["silence"] >= 0.6
            asker.join()
            await until(lambda: worker.live, what="the worker is live again")


async def test_a_server_that_is_away_has_no_load_and_leaves_health_alone(queue):
    worker: Worker[Any] = Worker(queue_of_nobody(queue))
    with Monitor(worker) as monitor:
        load = await get(monitor.address, "/load")
        assert load.status == 503
        assert "127.0.0.1:1" in load.json["error"]
        assert "secret" not in load.text
        assert (await get(monitor.address, "/live")).status == 200
        assert (await get(monitor.address, "/metrics")).status == 200


def queue_of_nobody(queue: Any) -> Any:
    return queue.__class__(queue.keys.prefix, url="redis://:secret@127.0.0.1:1")


async def test_other_requests_are_refused(queue):
    with Monitor(worker_of(queue, Handler().handle)) as monitor:
        assert (await get(monitor.address, "/")).status == 404
        assert (await get(monitor.address, "/metrics/../etc/passwd")).status == 404
        assert (await get(monitor.address, "/live", "POST")).status == 405
        head = await get(monitor.address, "/live", "HEAD")
        assert (head.status, head.text) == (200, "")
        for line in (b"\r\n\r\n", b"GET\r\n\r\n", b"GET http://[ HTTP/1.1\r\n\r\n", b"\xff\xfe \x00 x\r\n\r\n"):
            assert b" 4" in (await asyncio.to_thread(said, monitor.port, line))[:13]
        assert await asyncio.to_thread(said, monitor.port, b"GET /" + b"x" * 100_000) == b""
        assert (await get(monitor.address, "/live")).status == 200


def said(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        try:
            client.sendall(request)
            client.shutdown(socket.SHUT_WR)
            return client.recv(4096)
        except ConnectionError:
            return b""


async def test_loopback_unless_told_otherwise(queue):
    worker = worker_of(queue, Handler().handle)
    with Monitor(worker) as monitor:
        assert re.fullmatch(r"127\.0\.0\.1:\d+", monitor.address)
        with pytest.raises(ConfigurationError, match=rf"cannot listen on 127\.0\.0\.1 port {monitor.port}: "):
            Monitor(worker, port=monitor.port)


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 65536), ("127.0.0.1", -1), ("256.0.0.1", 0), ("x" * 300, 0)])
async def test_an_address_that_is_none(queue, host, port):
    with pytest.raises(ConfigurationError, match="port"):
        Monitor(worker_of(queue, Handler().handle), host=host, port=port)


async def test_one_exporter_for_several_queues(queue, server, prefix, caplog):
    caplog.set_level("INFO")
    await queue.enqueue({})
    async with queue_at(server, f"{prefix}:b") as other:
        await other.enqueue_many([{}, {}])
        serving = asyncio.create_task(Exporter([queue, other]).run())
        address = await until(lambda: re.search(r"http://([\d.:]+)/metrics", caplog.text), what="it listens")
        text = (await get(address[1], "/metrics")).text
        assert f'streams_queue_depth{{queue="{prefix}",state="waiting"}} 1.0' in text
        assert f'streams_queue_depth{{queue="{prefix}:b",state="waiting"}} 2.0' in text
        assert (await get(address[1], f"/load?queue={prefix}:b")).json["waiting"] == 2
        unnamed = await get(address[1], "/load")
        assert unnamed.status == 404
        assert f"{prefix}, {prefix}:b" in unnamed.json["error"]
        assert ((await get(address[1], "/live")).status, (await get(address[1], "/ready")).status) == (200, 200)
        serving.cancel()
        await asyncio.wait([serving])


def test_a_collector_for_a_registry_of_one_s_own():
    queue: Any = queue_of("q")
    collector = WorkerCollector(Worker(queue))
    assert {family.name for family in collector.collect()} >= {"streams_queue_worker_slots"}


def queue_of(prefix: str) -> Any:
    from streams_queue import Queue  # noqa: PLC0415

    return Queue(prefix, url="redis://127.0.0.1:1")
