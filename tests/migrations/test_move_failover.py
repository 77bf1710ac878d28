"""The primary dies amid `streams-queue migrate`: what the operator is told, and that the next run ends it."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import canary
import setups
from cli.conftest import PROGRAM
from migrations.old_state import OldState, as_text
from migrations.steps import work_off
from servers import Server, wait_until
from streams_queue import Queue

MESSAGES, OTHERS = 8_000, 100
DOWN_AFTER = 2.0
"""Seconds until a silent primary is taken for dead. Sentinel asks once a second: with less it may have its doubts about
one that it has just chosen."""

AWAY = 3
"""The exit code of a command whose server could not be reached, or not any more."""

Company = setups.Cluster | setups.Watched
Moment = Callable[[Any, str], bool]


@pytest.fixture(params=setups.NAMES)
def company(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Company]:
    """A primary with a replica that takes over; of a Cluster, the one with the queue."""
    if request.param == "cluster":
        company: Company = setups.Cluster(tmp_path, replicas=(1, 0, 0), node_timeout=DOWN_AFTER)
    else:
        company = setups.Watched(tmp_path, down_after=DOWN_AFTER)
    yield company
    company.stop()


class Operator:
    """Gives commands, each a process of its own."""

    def __init__(self, company: Company, prefix: str, directory: Path) -> None:
        self._company = company
        self._prefix = prefix
        self._directory = directory
        self._environment = os.environ | {"STREAMS_QUEUE_URL": company.url, "STREAMS_QUEUE_PREFIX": prefix}

    def begin(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*PROGRAM, *words], cwd=self._directory, env=self._environment, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def meets_a_failover(self, moment: Moment, *words: str) -> None:
        """The primary is killed when its data shows that the command is so far: that is said, in a line."""
        primary, command = self._company.home, self.begin(*words)
        with primary.sync_client(decode_responses=False) as client:
            wait_until(lambda: moment(client, self._prefix), 30, "the moment")
        primary.kill()
        out, err = command.communicate(timeout=60)
        canary.check(out + err)
        assert (command.returncode, out) == (AWAY, ""), err
        assert err.startswith(f"error: queue '{self._prefix}': ") and err.count("\n") == 1, err

    def call(self, *words: str) -> dict[str, Any]:
        """What it says of the queue in the end: while the server cannot be reached it is given again."""
        deadline = time.monotonic() + 60
        while True:
            process = self.begin(*words, "--json")
            out, err = process.communicate(timeout=60)
            if process.returncode != AWAY or time.monotonic() > deadline:
                break
        assert process.returncode == 0, (out, err)
        found = json.loads(out)
        return dict(found[0] if isinstance(found, list) else found)


def filled(primary: Server, prefix: str) -> OldState:
    """An old queue, and its replica has all of it."""
    now = time.time()
    with primary.sync_client(decode_responses=False) as client:
        state = OldState(client, prefix)
        for n in range(MESSAGES):
            state.queued(f"m{n:06d}", now - 50_000 + n, chat=(f"u{n % 50}", f"text {n}"))
        for n in range(OTHERS):
            state.retrying(f"r{n:03d}", now + 50_000 + n)
            state.dead(f"d{n:03d}", now - n)
        state.flush()
        assert client.wait(1, 20_000) == 1
    return state


def has_entered(count: int) -> Moment:
    return lambda client, prefix: bool(client.xlen(f"{prefix}:stream") >= count)


def is_stripped(client: Any, prefix: str) -> bool:
    """Half of the messages are as the old code knows them."""
    return not client.hexists(f"{prefix}:msg:m{MESSAGES // 2:06d}", "_sq_entry")


async def test_a_failover_in_the_middle(company: Company, tmp_path: Path) -> None:
    """Of a move, of the way back, and of a move that had only to be proved: 0 lost, and each message runs once."""
    prefix = f"{setups.HOME}shop"
    state, operator = filled(company.home, prefix), Operator(company, prefix, tmp_path)

    operator.meets_a_failover(has_entered(1), "migrate")
    assert operator.call("migrate")["well"]
    assert operator.call("verify")["well"]
    again = operator.call("migrate")
    assert again["well"] and not any(again[name] for name in ("entered", "ordered", "kept", "left", "dropped"))
    brought_back(company)

    operator.meets_a_failover(is_stripped, "migrate", "--rollback", "--yes")
    assert operator.call("migrate", "--rollback", "--yes")["messages"] == MESSAGES + 2 * OTHERS
    is_as_the_old_code_knows_it(company.home, prefix)
    brought_back(company)

    operator.meets_a_failover(has_entered(MESSAGES), "migrate")
    assert operator.call("migrate")["well"]
    async with Queue[Any](prefix, url=company.url) as queue:
        stats = await queue.stats()
        assert (stats.main, stats.retry, stats.dead, stats.lost) == (MESSAGES, OTHERS, OTHERS, 0)
        seen = await work_off(queue, concurrency=100)
    assert Counter(message.id for message in seen) == Counter(map(as_text, state.main))


def is_as_the_old_code_knows_it(primary: Server, prefix: str) -> None:
    with primary.sync_client() as client:
        assert not client.exists(f"{prefix}:stream", f"{prefix}:meta")
        for n in range(0, MESSAGES, 97):
            names = client.hkeys(f"{prefix}:msg:m{n:06d}")
            assert names and not [name for name in names if name.startswith("_sq_")]


def brought_back(company: Company) -> None:
    """The one that died is a replica of the one that took its place, and has all that it has."""
    (dead,) = [node for node in company.nodes if not node.is_running]
    dead.start()
    wait_until(lambda: setups.replication(dead).get("role") == "slave", 60, "the former primary a replica")
    wait_until(lambda: setups.in_step(company.home, 1), 60, "the replica in step")
