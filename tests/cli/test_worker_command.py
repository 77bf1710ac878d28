"""`streams-queue worker`, run as people run it: a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import canary
import servers
from helpers import until
from servers import wait_until
from streams_queue import ConfigurationError, Queue, ShardedQueue, Worker

JOBS = """
import asyncio, pathlib, os, time
from streams_queue import Queue, Worker

queue = Queue(os.environ["PREFIX"])
worker = Worker(queue, concurrency=1, lease=2.0, grace=20.0, poll_interval=0.2)
idle = Worker(queue)
not_a_worker = 3

together = Worker(queue, concurrency=1, lease=2.0, grace=20.0, poll_interval=0.2)

@together.batch(size=10, wait=60.0)
async def handle_together(messages):
    with open("started", "a") as started:
        started.write("".join(message.id + "\\n" for message in messages))

@worker.handler
async def handle(message):
    with open("started", "a") as started:
        started.write(message.id + "\\n")
    if "loop" in message.data:
        pathlib.Path("loop").write_text(type(asyncio.get_running_loop()).__module__)
    while "gate" in message.data and not pathlib.Path("open").exists():
        await asyncio.sleep(0.01)
    if "thread" in message.data:
        await asyncio.to_thread(time.sleep, message.data["thread"])
    if "error" in message.data:
        raise ValueError(message.data["error"])
"""

SHARDED = """
import os
from streams_queue import ShardedQueue, Worker

queue = ShardedQueue(os.environ["PREFIX"], shards=None)
worker = Worker(queue, lease=2.0, poll_interval=0.2)

@worker.handler
async def handle(message):
    with open("started", "a") as started:
        started.write(message.id + "\\n")
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The directory that the command starts in, with the application in it."""
    (tmp_path / "jobs.py").write_text(JOBS)
    (tmp_path / "sharded.py").write_text(SHARDED)
    (tmp_path / "broken.py").write_text("import nonesuch_dependency")
    (tmp_path / "misconfigured.py").write_text("from streams_queue import Queue\nQueue('a b')")
    return tmp_path


@pytest.fixture
def start(folder: Path, prefix: str, request: pytest.FixtureRequest) -> Iterator[Start]:
    """Starts `streams-queue worker` with these arguments."""

    def url() -> str:
        server: servers.AnyServer = request.getfixturevalue("server")
        return server.url

    with contextlib.ExitStack() as stack:

        def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-c", "from streams_queue.cli import main; main()", "worker", *arguments],
                cwd=folder,
                env=os.environ | {"PREFIX": prefix, **(environment or {"STREAMS_QUEUE_URL": url()})},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start


@pytest.fixture
async def queue(server: servers.AnyServer, prefix: str):
    opened: Queue[dict[str, Any]]
    async with Queue(prefix, url=server.url) as opened:
        yield opened


def started(folder: Path) -> list[str]:
    path = folder / "started"
    return path.read_text().split() if path.exists() else []


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit code, and what was written to stderr; stdout stays empty."""
    out, err = process.communicate(timeout=20)
    assert out == ""
    canary.check(err)
    return process.returncode, err


async def test_burst_works_off_the_queue(start, queue, folder):
    receipts = await queue.enqueue_many([{"n": n} for n in range(20)])
    code, log = end(start("jobs:worker", "--burst", "--concurrency", "5"))
    assert code == 0, log
    assert sorted(started(folder)) == sorted(receipt.id for receipt in receipts)
    assert await queue.length() == 0
    assert (await queue.stats()).counters["completed_messages"] == 20


@pytest.mark.parametrize("prefix", ["jobs-in-shards"])  # without a hash tag, on a Cluster too
async def test_all_shards_are_worked_off(start, server, prefix, folder):
    async with ShardedQueue(prefix, shards=3, url=server.url) as queue:
        receipts = await queue.enqueue_many([{"user_id": n} for n in range(20)])
        code, log = end(start("sharded:worker", "--burst"))
        assert code == 0, log
        assert f"works on queue {prefix}, in all of its 3 shards" in log
        assert sorted(started(folder)) == sorted(receipt.id for receipt in receipts)
        assert await queue.length() == 0


async def test_it_runs_in_uvloop_where_that_is_installed(start, queue, folder):
    pytest.importorskip("uvloop", reason="not for this platform")
    await queue.enqueue({"loop": 1})
    end(start("jobs:worker", "--burst"))
    assert (folder / "loop").read_text() == "uvloop"
    (folder / "uvloop.py").write_text("raise ModuleNotFoundError(__name__)")
    await queue.enqueue({"loop": 1})
    code, log = end(start("jobs:worker", "--burst"))
    assert code == 0, log
    assert (folder / "loop").read_text().startswith("asyncio.")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_handlers_finish(start, queue, folder, number):
    held, waiting = await queue.enqueue_many([{"gate": 1}, {}])
    process = start("jobs:worker")
    wait_until(lambda: started(folder), what="handler started")
    process.send_signal(number)
    (folder / "open").touch()
    code, log = end(process)
    assert code == 0, log
    assert await queue.get(held.id) is None
    assert (await queue.get(waiting.id)).status == "queued"
    assert started(folder) == [held.id]


async def test_a_signal_hands_over_the_batch_that_is_gathered(start, queue, folder):
    ids = [receipt.id for receipt in await queue.enqueue_many([{}] * 13)]
    process = start("jobs:together")
    await until(lambda: being_worked_on(queue, 3), what="the second batch is gathered")
    assert started(folder) == ids[:10]
    process.send_signal(signal.SIGTERM)
    assert process.wait(15) == 0
    assert started(folder) == ids
    assert await queue.length() == 0


async def being_worked_on(queue: Queue[Any], count: int) -> bool:
    stats = await queue.stats()
    return stats.main == stats.processing == count


async def test_a_second_signal_hands_back_now(start, queue, folder):
    receipts = await queue.enqueue_many([{"gate": 1}, {"gate": 1}, {}])
    process = start("jobs:worker", "--concurrency", "2")
    wait_until(lambda: len(started(folder)) == 2, what="two handlers started")
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    code, log = end(process)
    assert code == 0, log
    for receipt in receipts:
        message = await queue.get(receipt.id)
        assert (message.status, message.attempts) == ("queued", 0)


async def test_a_thread_that_cannot_be_cancelled_keeps_no_process(start, queue, folder):
    """Its message is handed back, so it must not go on beside the one that has it next."""
    receipt = await queue.enqueue({"thread": 30})
    process = start("jobs:worker")
    wait_until(lambda: started(folder), what="handler started")
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    process.wait(5)
    code, log = end(process)
    assert code == 0
    assert "threads of handlers do not end" in log
    message = await queue.get(receipt.id)
    assert (message.status, message.attempts) == ("queued", 0)


async def test_log_lines_cannot_be_forged_and_show_no_payload(start, queue):
    await queue.enqueue({"error": "a\x1b[31m\n2026-01-01 00:00:00 INFO forged", "body": "private"})
    process = start("jobs:worker", "--burst")
    code, log = end(process)
    assert code == 0
    assert "\\x1b[31m\n        2026-01-01 00:00:00 INFO forged" in log
    assert "\x1b" not in log
    assert "private" not in log


async def test_log_level(start, queue):
    await queue.enqueue({})
    code, log = end(start("jobs:worker", "--burst", "--log-level", "warning"))
    assert (code, [line for line in log.splitlines() if "Remedy:" not in line]) == (0, [])


@pytest.mark.parametrize(
    ("target", "error"),
    [
        ("jobs", "'jobs' is not MODULE:OBJECT: write for example myapp.jobs:worker"),
        ("jobs:", "'jobs:' is not MODULE:OBJECT"),
        ("nowhere:worker", "no module 'nowhere': write it as an import statement would, and start in the directory"),
        ("jobs.py:worker", "no module 'jobs.py': write it"),
        ("jobs:missing", "module jobs has no 'missing': did you mean jobs:worker or jobs:idle or jobs:together?"),
        ("jobs:not_a_worker", "jobs:not_a_worker is of type int, not a streams_queue.Worker: did you mean jobs:worker"),
        ("misconfigured:worker", "module misconfigured: queue prefix 'a b' is not"),
    ],
)
def test_a_target_that_is_none(start, target, error):
    code, log = end(start(target, REDIS_URL="redis://127.0.0.1:1"))
    assert code == 2
    assert log.startswith(f"error: {error}")
    assert log.count("\n") == 1


def test_a_module_that_cannot_be_imported_shows_why(start):
    code, log = end(start("broken:worker", REDIS_URL="redis://127.0.0.1:1"))
    assert code == 2
    assert "broken.py" in log
    assert "No module named 'nonesuch_dependency'" in log
    assert log.endswith("error: module broken cannot be imported: see the traceback above\n")


def test_a_module_that_ends_the_process(start, folder):
    (folder / "script.py").write_text("import sys\nsys.exit(0)\n")
    code, log = end(start("script:worker", REDIS_URL="redis://127.0.0.1:1"))
    assert code == 2
    assert log.startswith("error: module script ends the process while it is imported (exit code 0)")


def test_a_worker_without_a_handler(start):
    code, log = end(start("jobs:idle", REDIS_URL="redis://127.0.0.1:1"))
    assert code == 2
    assert log == "error: this worker has no handler: decorate one with @worker.handler or @worker.batch(...)\n"


@pytest.mark.parametrize(
    ("url", "code", "error"),
    [
        ("redis://:pass@127.0.0.1:1", 3, "error: redis://:***@127.0.0.1:1: "),
        ("http://user:pass@host", 2, "error: module jobs: REDIS_URL: cannot use 'http://user:***@host'"),
    ],
)
def test_a_server_that_cannot_be_reached(start, url, code, error):
    found, log = end(start("jobs:worker", REDIS_URL=url))
    assert found == code
    assert log.startswith(error)
    assert "pass" not in log


def test_a_server_that_nobody_else_can_reach(start, folder):
    for url, warnings in (("embedded://", 1), (f"embedded://{folder}/data", 0)):
        code, log = end(start("jobs:worker", "--burst", "--log-level", "warning", STREAMS_QUEUE_URL=url))
        assert code == 0, log
        assert log.count("embedded:// is a server of this process alone") == log.count("\n") == warnings


def test_concurrency_is_checked_wherever_it_is_set(start):
    assert end(start("jobs:worker", "--concurrency", "0"))[0] == 2
    worker: Worker[Any] = Worker(Queue("q", url="redis://127.0.0.1:1"), concurrency=3)
    with pytest.raises(ConfigurationError, match="concurrency=0 is not a whole number above 0"):
        worker.concurrency = 0
    with pytest.raises(ConfigurationError, match=r"concurrency=1\.5"):
        Worker(worker.queue, concurrency=1.5)  # type: ignore[arg-type]
    assert worker.concurrency == 3


# ---- health and metrics


def served_at(process: subprocess.Popen[str]) -> str:
    """Where a worker says that it serves its health and metrics."""
    assert process.stderr
    for line in process.stderr:
        if "health and metrics" in line:
            return line.rstrip().rpartition(" ")[2]
    raise AssertionError("the worker does not say where")


def fetched(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


async def test_a_worker_serves_its_health_and_metrics(start, queue, folder, prefix):
    await queue.enqueue_many([{"gate": 1}, {}])
    process = start("jobs:worker", "--metrics-port", "0")
    url = served_at(process)
    assert url.startswith("http://127.0.0.1:")
    wait_until(lambda: started(folder), what="handler started")
    assert fetched(f"{url}/live")[0] == 200
    assert fetched(f"{url}/ready") == (200, '{"ready": true}\n')
    load = json.loads(fetched(f"{url}/load")[1])
    assert (load["queue"], load["busy"], load["slots"], load["waiting"]) == (prefix, 1, 1, 1)
    status, text = fetched(f"{url}/metrics")
    assert status == 200
    assert f'streams_queue_worker_messages_started_total{{queue="{prefix}"}} 1.0' in text
    assert "process_cpu_seconds_total" in text, "the application's own metrics are there, too"
    assert "streams_queue_depth" not in text, "what a queue counts comes from one place, not from each worker"
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: fetched(f"{url}/ready")[0] == 503, what="not ready once it stops")
    assert fetched(f"{url}/live")[0] == 200
    (folder / "open").touch()
    code, log = end(process)
    assert code == 0, log


async def test_a_port_in_use_or_none_at_all(start):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, log = end(start("jobs:worker", "--metrics-port", str(port)))
    assert code == 2
    assert log.startswith(f"error: cannot listen on 127.0.0.1 port {port}: ")
    assert end(start("jobs:worker", "--metrics-port", "70000")) == (2, "error: port 70000 is not from 0 to 65535\n")
    code, log = end(start("jobs:worker", "--metrics-port", "0", "--metrics-host", "nowhere.invalid"))
    assert code == 2
    assert log.startswith("error: cannot listen on nowhere.invalid port 0: ")


async def test_without_what_metrics_need(start, folder):
    (folder / "prometheus_client.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'prometheus_client'\", name='prometheus_client')"
    )
    code, log = end(start("jobs:worker", "--metrics-port", "0"))
    assert code == 2
    assert log == 'error: metrics need prometheus_client: pip install "streams-queue[metrics]"\n'
    assert end(start("jobs:worker", "--burst"))[0] == 0


# ---- the log


def lines_about(id: str, log: str) -> list[str]:
    return [line for line in log.splitlines() if f" {id} " in line or f'"{id}"' in line]


async def test_a_line_at_the_start_and_the_end_of_a_message(start, queue):
    await queue.enqueue({"token": "canary"}, id="m1")
    code, log = end(start("jobs:worker", "--burst", "--log-level", "debug"))
    assert code == 0
    begun, done = lines_about("m1", log)
    assert re.search(r"DEBUG   streams_queue.messages: message m1 started: attempt 1, waited \d+\.\d{3} s$", begun)
    assert re.search(r"message m1 completed: attempt 1, waited \d+\.\d{3} s, ran \d+\.\d{3} s$", done)
    await queue.enqueue({}, id="m2")
    assert lines_about("m2", end(start("jobs:worker", "--burst"))[1]) == [], "a busy worker does not drown its log"


async def test_an_end_that_is_no_completion_is_information(start, queue):
    await queue.enqueue({"error": "a\r\n2026-01-01 INFO forged", "password": "canary-pw"}, id="m1")
    _, log = end(start("jobs:worker", "--burst"))
    (line,) = [line for line in lines_about("m1", log) if "streams_queue.messages" in line]
    assert "INFO    streams_queue.messages: message m1 failed: attempt 1, waited" in line
    assert line.endswith(r", error: ValueError: a\r\n2026-01-01 INFO forged")


async def test_the_log_as_json(start, queue, prefix):
    await queue.enqueue({"error": "a\n\u202eforged", "body": "private"}, id="m1")
    code, log = end(start("jobs:worker", "--burst", "--log-format", "json", "--log-level", "debug"))
    assert code == 0
    assert log.isascii()
    records = [json.loads(line) for line in log.splitlines()]
    assert all({"time", "level", "logger", "message"} <= set(record) for record in records)
    begun, failed = (record for record in records if record["logger"] == "streams_queue.messages")
    assert (begun["level"], begun["outcome"], begun["id"], begun["queue"]) == ("DEBUG", "started", "m1", prefix)
    assert (failed["level"], failed["outcome"], failed["attempt"]) == ("INFO", "failed", 1)
    assert failed["error"] == "ValueError: a\\n\\u202eforged"
    assert failed["run"] >= 0
    assert failed["wait"] >= 0
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", failed["time"])
    assert "private" not in log


async def test_the_payload_when_asked_for_without_its_secrets(start, queue):
    await queue.enqueue({"body": "shown", "token": "canary", "deep": {"api_key": "canary"}}, id="m1")
    await queue.enqueue({"long": "x" * 10_000}, id="m2")
    _, log = end(start("jobs:worker", "--burst", "--log-payload", "--log-level", "debug"))
    begun, done = lines_about("m1", log)
    for line in (begun, done):
        assert '"body": "shown"' in line
        assert '"token": "***"' in line
        assert '"deep": {"api_key": "***"}' in line
    assert "canary" not in log
    assert all(4000 < len(line) < 5000 for line in lines_about("m2", log))
