"""`dlq list | show | requeue | delete`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time

import pytest

from canary import CANARY
from cli.conftest import environment
from cli.test_look import HOSTILE, STEERING, STYLES
from helpers import queue_at, running, until, work, worker_of
from streams_queue import Reject

DAY = 86400


@pytest.fixture
async def queue(server, prefix):
    async with queue_at(server, prefix) as queue:
        yield queue


@pytest.fixture
def bury(queue, redis, prefix):
    """Dead letters as other programs see them: a hash and a place among the dead."""

    async def bury(*ids: str, age: float = 0.0, ttl: int = 600, **fields: str) -> None:
        whole, _ = await redis.time()
        died = int(whole) - age
        async with redis.pipeline(transaction=False) as pipeline:
            for id in ids:
                body = {"timestamp": died, "status": "error", "retry_count": 0, "_sq_reason": "error", **fields}
                pipeline.hset(f"{prefix}:msg:{id}", mapping=body)
                pipeline.expire(f"{prefix}:msg:{id}", ttl)
                pipeline.zadd(f"{prefix}:queue:dlq", {id: died})
            await pipeline.execute()

    return bury


@pytest.fixture
async def graves(bury):
    """Five of different kinds, the oldest first."""
    await bury("ancient", age=3 * DAY, _sq_reason="crash", error="a worker died", sku="A-1")
    await bury("old", age=7000, _sq_reason="timeout", error="took too long", sku="A-2")
    await bury("hour", age=3000, _sq_reason="rejected", error="No Stock", sku="A-3", response_token=CANARY)
    await bury("minute", age=100, _sq_reason="error", error=f"denied {CANARY}", sku="B-4", response_token=CANARY)
    await bury("new", age=1, _sq_reason="timeout", error="took too long", sku="B-5")


CHOICES = {
    (): ["new", "minute", "hour", "old", "ancient"],
    ("--limit", "2"): ["new", "minute"],
    ("--reason", "timeout"): ["new", "old"],
    ("--reason", "undecodable"): [],
    ("--older-than", "1h"): ["old", "ancient"],
    ("--newer-than", "1h"): ["new", "minute", "hour"],
    ("--older-than", "1m", "--newer-than", "2h"): ["minute", "hour", "old"],
    ("--text", "stock"): ["hour"],
    ("--text", "B-"): ["new", "minute"],
    ("--text", "sku", "--reason", "timeout", "--limit", "1"): ["new"],
    ("--text", CANARY): [],
    ("--text", CANARY[:8]): [],
}


# ---- list


@pytest.mark.parametrize("options", CHOICES)
async def test_a_list_of_those_that_are_meant(run, graves, options):
    letters = run("dlq", "list", *options, "--json").json
    assert [letter["id"] for letter in letters] == CHOICES[options]
    assert CANARY not in str(letters)


async def test_a_letter_for_scripts(run, queue):
    await queue.enqueue({"sku": "A-1", "password": CANARY}, id="d1")

    async def handle(message):
        raise Reject("no stock")

    await work(queue, handle)
    (letter,) = run("dlq", "list", "--json").json
    assert letter["died_at"] == pytest.approx(time.time(), abs=60)
    assert letter == {
        "id": "d1", "shard": None,
        "died_at": letter["died_at"], "age": letter["age"], "reason": "rejected", "attempts": 1,
        "error": "no stock", "data": {"sku": "A-1", "password": "***"},
    }  # fmt: skip
    heading, row = run("dlq", "list").out.splitlines()
    assert heading.split() == ["id", "died", "reason", "attempts", "error"]
    assert re.fullmatch(r"d1  \d+\.\ds ago  rejected         1  no stock", row)


async def test_no_dead_letters(run, graves, redis, prefix):
    assert run("dlq", "list", "--text", "nonesuch") == (0, "", "no such dead letters\n")
    await redis.delete(f"{prefix}:queue:dlq")
    assert run("dlq", "list") == (0, "", "no dead letters\n")


@pytest.mark.leaks("an id with a line break stands in main")
async def test_ids_of_other_programs(run, terminal, bury, redis, prefix):
    await bury(HOSTILE, error=HOSTILE, **{HOSTILE: HOSTILE, "token": CANARY, "raw": CANARY})
    await redis.zadd(f"{prefix}:queue:dlq", {"no body": "inf", "before": "-inf"})
    assert [letter["id"] for letter in run("dlq", "list", "--json").json] == ["no body", HOSTILE, "before"]
    for command in (["dlq", "list"], ["dlq", "show", HOSTILE], ["dlq", "requeue", HOSTILE, "--dry-run"]):
        for answer in (run(*command), terminal(*command).end(), run(*command, PYTHONIOENCODING="ascii")):
            assert answer.code == 0
            assert CANARY not in answer.out
            assert not STEERING.search(STYLES.sub("", answer.out))
    assert "its body ran out" in run("dlq", "list").out
    answer = run("dlq", "requeue", "--all", "--json").json
    assert answer == {"dry_run": False, "requeued": 1, "missing": 0, "expired": 2}


# ---- show


async def test_show(run, graves, queue):
    await queue.enqueue({}, id="waits")
    assert run("dlq", "show", "minute", "--json").json["error"] == "denied ***"
    assert run("dlq", "show", "waits") == (1, "", "error: message waits is not among the dead letters\n")


# ---- requeue


async def test_requeue_by_id(run, graves, queue):
    code, out, _ = run("dlq", "requeue", "old", "nonesuch", "new", "old", "--json")
    assert code == 1
    assert json.loads(out) == [
        {"id": "old", "outcome": "requeued"},
        {"id": "nonesuch", "outcome": "missing"},
        {"id": "new", "outcome": "requeued"},
    ]
    assert (await queue.stats()).dead == 3
    assert run("dlq", "requeue", "hour").code == 0


@pytest.mark.parametrize("options", [choice for choice in CHOICES if "--limit" not in choice])
async def test_requeue_those_that_are_meant_the_oldest_first(run, graves, queue, options):
    wanted = CHOICES[options][::-1]
    dry = run("dlq", "requeue", "--all", "--dry-run", *options, "--json").json
    assert dry == {"dry_run": True, "requeued": len(wanted), "missing": 0, "expired": 0}
    assert (await queue.stats()).dead == 5
    assert run("dlq", "requeue", "--all", *options, "--json").json == {**dry, "dry_run": False}
    assert [row["id"] for row in run("peek", "--json").json] == wanted
    assert (await queue.stats()).dead == 5 - len(wanted)
    for message in [await queue.get(id) for id in wanted]:
        assert (message.attempts, message.error) == (0, None)


async def test_a_letter_without_a_body_is_told(run, graves, redis, prefix):
    await redis.delete(f"{prefix}:msg:old")
    rehearsed = run("dlq", "requeue", "--all", "--dry-run")
    assert rehearsed.out == "would requeue 4 dead letters; nothing was changed\n1 more had no body any more\n"
    assert run("dlq", "requeue", "--all").out == "requeued 4 dead letters\n1 more had no body any more\n"


async def test_what_dies_again_meanwhile_is_left(start, bury, queue):
    """In two pages, while a worker refuses everything: each is put back once."""
    ids = [f"d{n:03}" for n in range(130)]
    await bury(*ids, age=5, sku="A-1")
    runs = []

    async def handle(message):
        runs.append(message.id)
        raise Reject("again")

    async with running(worker_of(queue, handle)):
        process = start("dlq", "requeue", "--all", "--text", "A-1", "--rate", "130/s")
        await until(lambda: process.poll() is not None, what="the end")
        await until(lambda: len(runs) >= 130, what="every message run")
    assert process.stdout.read() == "requeued 130 dead letters\n"
    assert sorted(runs) == ids
    assert (await queue.stats()).dead == 130


PEAK = """
import atexit, pathlib, re, sys
status = pathlib.Path("/proc/self/status")
peak = pathlib.Path(sys.argv.pop(1))
atexit.register(lambda: peak.write_text(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1]))
from streams_queue.cli import main
main()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_twenty_thousand_throttled_in_level_memory(bury, queue, server, prefix, tmp_path):
    def peak_of(*arguments: str) -> tuple[float, float, str]:
        """Mebibytes at the most, seconds, what was printed."""
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", PEAK, str(tmp_path / "peak"), *arguments],
            env=environment(server, prefix), capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        return int((tmp_path / "peak").read_text()) / 1024, time.monotonic() - began, done.stdout

    await bury(*[f"a{n}" for n in range(200)], age=100, text="x" * 1000)
    few, _, out = peak_of("dlq", "requeue", "--all", "--text", "xxx")
    assert out == "requeued 200 dead letters\n"
    for first in range(0, 20_000, 1000):
        await bury(*[f"b{n}" for n in range(first, first + 1000)], age=100, text="x" * 1000)
    listed, _, out = peak_of("dlq", "list", "--limit", "20000")
    assert len(out.splitlines()) == 20_001
    rehearsed, _, out = peak_of("dlq", "requeue", "--all", "--dry-run")
    assert out == "would requeue 20000 dead letters; nothing was changed\n"
    many, seconds, out = peak_of("dlq", "requeue", "--all", "--text", "xxx", "--rate", "4000/s")
    assert out == "requeued 20000 dead letters\n"
    assert seconds > 4.8, "20,000 at 4,000 a second, the last batch not waited for"
    assert max(listed, rehearsed, many) < few + 15, (few, listed, rehearsed, many)
    assert (await queue.stats()).main == 20_200


async def test_an_interruption_says_how_far_it_came(terminal, bury, queue):
    await bury(*[f"d{n}" for n in range(2000)])
    view = terminal("dlq", "requeue", "--all", "--rate", "100/s")
    view.wait_for("50/2000")
    view.press("\x03")
    code, out, _ = view.end()
    assert code == 130
    (told,) = re.findall(r"at least (\d+) were requeued before this", out)
    assert 50 <= int(told) <= (await queue.stats()).main <= int(told) + 25, "a batch may have been on its way"


# ---- delete


async def test_delete_by_id(run, graves, queue):
    await queue.enqueue({}, id="waits")
    code, out, err = run("dlq", "delete", "old", "waits", "--yes")
    assert (code, err) == (1, "")
    assert [line.split() for line in out.splitlines()] == [["id", "outcome"], ["old", "deleted"], ["waits", "missing"]]
    assert await queue.position("waits") == 1


@pytest.mark.parametrize("options", [choice for choice in CHOICES if "--limit" not in choice])
async def test_delete_those_that_are_meant(run, graves, queue, options):
    count = len(CHOICES[options])
    assert run("dlq", "delete", "--all", "--dry-run", *options, "--json").json == {
        "dry_run": True, "deleted": count, "missing": 0,
    }  # fmt: skip
    assert (await queue.stats()).dead == 5
    refused = run("dlq", "delete", "--all", *options)
    assert (refused.code, refused.out) == (2, "")
    assert "add --yes" in refused.err
    assert run("dlq", "delete", "--all", "--yes", *options).out.startswith(f"deleted {count} dead letter")
    assert (await queue.stats()).dead == 5 - count


@pytest.mark.parametrize(("answer", "code", "left"), [("y\r", 0, 3), ("\r", 1, 5)])
async def test_somebody_is_asked_and_told_how_many(terminal, graves, queue, prefix, answer, code, left):
    asking = terminal("dlq", "delete", "--all", "--reason", "timeout")
    asking.wait_for_question(f"Really delete 2 dead letters of {prefix} for good? [y/N]")
    asking.press(answer)
    assert asking.end().code == code
    assert (await queue.stats()).dead == left


# ---- misuse


@pytest.mark.parametrize("command", ["requeue", "delete"])
@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], "say which: ids, or --all, and not both"),
        (["x", "--all"], "say which: ids, or --all, and not both"),
        (["x", "--reason", "error"], "--reason, --older-than, --newer-than and --text go with --all, not with ids"),
    ],
)
async def test_which_ones(run, command, arguments, error):
    assert run("dlq", command, *arguments) == (2, "", f"error: {error}\n")


@pytest.mark.parametrize(
    "option", [("--rate", "0"), ("--rate", "fast"), ("--older-than", "yesterday"), ("--reason", "boredom")]
)
async def test_values_that_are_none(run, option):
    code, _, err = run("dlq", "requeue", "--all", *option)
    assert code == 2
    assert f"Invalid value for '{option[0]}'" in err
