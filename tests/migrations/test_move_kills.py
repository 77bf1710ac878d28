"""kill -9 of a migrating process at any moment: the next run ends as if nothing had happened."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import pytest

import servers
from migrations import programs
from migrations.old_state import OldState, every_damage
from migrations.pictures import Copy, Picture, differences, picture
from migrations.steps import move_back, move_clean
from streams_queue import Queue
from streams_queue_migrations import applying, marking

GRACE = 0.05
MESSAGES = 1500
WRITES = 0.02
"""Seconds that so many take, without verification."""

Step = Callable[[Queue[Any]], Any]


class Victim:
    """Runs one step in a process of its own, forked from one that has imported everything."""

    def __init__(self, step: str, server: servers.AnyServer, prefix: str) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["migrations.programs"])
        self._arguments = (step, server.url, prefix, GRACE)

    def run(self) -> float:
        """Undisturbed; the seconds that it lived after it began."""
        process, told = self._start()
        self._hear(told, "began")
        began = time.monotonic()
        process.join(30)
        assert process.exitcode == 0
        return time.monotonic() - began

    def die(self, since: str, after: float) -> None:
        """Killed so many seconds after it said that it ``began`` or ``writes``."""
        process, told = self._start()
        self._hear(told, since)
        time.sleep(after)
        process.kill()
        process.join(30)

    def _start(self) -> tuple[BaseProcess, Connection]:
        here, there = self._context.Pipe(duplex=False)
        process = self._context.Process(target=programs.run, args=(*self._arguments, there))
        process.start()
        there.close()
        return process, here

    def _hear(self, told: Connection, word: str) -> None:
        while True:
            assert told.poll(20), f"it {word}"
            if told.recv() == word:
                return


def moments(rounds: int, whole: float) -> Iterator[tuple[str, float]]:
    """Two thirds of them while it writes, one third all over its life."""
    chosen = random.Random(rounds)
    for n in range(rounds):
        yield ("writes", chosen.uniform(0, WRITES)) if n % 3 else ("began", chosen.uniform(0, whole))


async def killed_and_run_again(client: Any, queue: Queue[Any], victim: Victim, again: Step, rounds: int) -> None:
    """Each time the same end as that of an undisturbed run; and some kills met the work half done."""
    copy = Copy(client)
    whole = victim.run()
    undisturbed = picture(client, copy)
    copy.put_back()
    untouched, half_done = picture(client, copy), 0
    for since, after in moments(rounds, whole):
        copy.put_back()
        victim.die(since, after)
        half_done += is_half_done(picture(client, copy), untouched, undisturbed)
        await again(queue)
        differ = differences(undisturbed, picture(client, copy))
        assert not differ, f"killed {after:.3f} s after it {since}:\n{differ}"
    print(f"{half_done} of {rounds} kills met it half done")
    assert half_done >= rounds // 5, f"only {half_done} of {rounds} kills met it half done"


def is_half_done(now: Picture, untouched: Picture, done: Picture) -> bool:
    """Some of what had to be changed is as before, some is as after."""
    due = [key for key in {*untouched, *done} if untouched.get(key) != done.get(key)]
    return {now.get(key) == untouched.get(key) for key in due} == {True, False}


@pytest.fixture(autouse=True)
def _same_grace(monkeypatch: pytest.MonkeyPatch, _in_a_hurry: None) -> None:
    monkeypatch.setattr(applying, "GRACE", GRACE)
    monkeypatch.setattr(applying, "LOOKS", 2)
    monkeypatch.setattr(marking, "LASTS", programs.MARK_LASTS)


async def test_an_apply_killed_fifty_times(server, client: Any, queue: Queue[Any], state: OldState):
    every_damage(state, MESSAGES)
    state.flush()
    victim = Victim("apply", server, state.prefix)
    await killed_and_run_again(client, queue, victim, move_clean, rounds=50)


async def test_a_roll_back_killed_ten_times(server, client: Any, queue: Queue[Any], state: OldState):
    every_damage(state, MESSAGES)
    state.flush()
    await move_clean(queue)
    for n in range(600):
        await queue.enqueue({"n": n}, delay=5000 if n % 2 else None, priority="high" if n % 3 else "normal")
    victim = Victim("roll_back", server, state.prefix)
    await killed_and_run_again(client, queue, victim, move_back, rounds=10)
    for key in client.scan_iter(queue.keys.message("*")):
        client.expire(key, 60)
