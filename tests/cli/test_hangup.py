"""A terminal that is closed under a command: who only looks ends, who works finishes what it holds."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.conftest import IN_ITS_TERMINAL, UNDER_NOHUP, Terminal
from helpers import queue_at, until
from streams_queue import Queue

Start = Callable[..., Terminal]

JOBS = """
import asyncio, os, pathlib
from streams_queue import Queue, Worker

worker = Worker(Queue(os.environ["STREAMS_QUEUE_PREFIX"]), lease=2.0, poll_interval=0.2)
gate = pathlib.Path(os.environ["GATE"])

@worker.handler
async def handle(message):
    while not gate.exists():
        await asyncio.sleep(0.01)
    return "done"
"""


@pytest.fixture
async def queue(server, prefix):
    async with queue_at(server, prefix) as queue:
        yield queue


@pytest.mark.parametrize("before", [IN_ITS_TERMINAL, UNDER_NOHUP, ""], ids=["SIGHUP", "SIGHUP ignored", "no SIGHUP"])
@pytest.mark.parametrize("options", [[], ["--json"]], ids=["view", "json"])
def test_whoever_watches_ends_with_the_terminal(terminal: Start, before, options):
    view = terminal("stats", "--watch", "0.1", *options, before=before)
    view.wait_for("processing")
    view.wait_for("processing")
    view.hang_up()
    assert view.process.wait(20) == (-signal.SIGHUP if before == IN_ITS_TERMINAL else 1)


def test_whoever_watches_into_a_pipe_that_is_closed_ends_without_a_word(start):
    process = start("stats", "--watch", "0.1")
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(20) == 1
    assert process.stderr.read() == ""


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """Handlers wait until this file is there."""
    (tmp_path / "jobs_at_the_terminal.py").write_text(JOBS)
    return tmp_path / "gate"


def worker_in(terminal: Start, gate: Path, before: str) -> Terminal:
    folder = str(gate.parent)
    return terminal("worker", "jobs_at_the_terminal:worker", before=before, GATE=str(gate), PYTHONPATH=folder)


async def test_a_worker_finishes_what_it_holds_when_its_terminal_is_closed(terminal: Start, queue: Queue[Any], gate):
    held = await queue.enqueue({})
    worker = worker_in(terminal, gate, IN_ITS_TERMINAL)
    await until(lambda: _is_at_work(queue, held.id))
    worker.hang_up()
    with pytest.raises(subprocess.TimeoutExpired):
        worker.process.wait(0.3)
    gate.write_text("")
    assert worker.process.wait(20) == 0
    assert await queue.result(held.id, timeout=5) == "done"
    stats = await queue.stats()
    assert "recovered_messages" not in stats.counters and stats.processing == 0


async def test_a_worker_under_nohup_goes_on_without_a_terminal(terminal: Start, queue: Queue[Any], gate):
    gate.write_text("")
    worker = worker_in(terminal, gate, UNDER_NOHUP)
    first = await queue.enqueue({})
    assert await queue.result(first.id, timeout=20) == "done"
    worker.hang_up()
    with pytest.raises(subprocess.TimeoutExpired):
        worker.process.wait(0.3)
    second = await queue.enqueue({})
    assert await queue.result(second.id, timeout=20) == "done"
    worker.process.terminate()
    assert worker.process.wait(20) == 0


async def _is_at_work(queue: Queue[Any], id: str) -> bool:
    message = await queue.get(id)
    return message is not None and message.status == "processing"


def test_the_demo_takes_its_keys_along(terminal: Start, server, tmp_path):
    view = terminal("demo", REDIS_URL=server.url, TMPDIR=str(tmp_path))
    view.wait_for("no. 75")  # of the requests, which are being sent
    view.hang_up()
    view.process.wait(20)
    with server.sync_client() as client:
        assert client.keys("*") == []
