"""`stats`, `peek`, `position`, `show`: what a person and a script see."""

from __future__ import annotations

import json
import os
import re
import subprocess

import pytest
from rich.cells import cell_len

import servers
from canary import CANARY
from cli.conftest import PROGRAM
from helpers import queue_at, work
from streams_queue import Reject

HOSTILE = "\x1b[2J\x1b]0;owned\x07\r\nposition 1\u202e\u2066\x9b31m\x7f"
STEERING = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069]")
STYLES = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
async def queue(server, prefix):
    async with queue_at(server, prefix) as queue:
        yield queue


async def give_up(queue, reason="no stock", **options):
    async def handle(message):
        raise Reject(reason)

    await work(queue, handle, **options)


# ---- stats


async def test_stats_for_scripts(run, queue):
    await queue.enqueue_many([{}, {}])
    await queue.enqueue({}, delay=3600)
    await queue.pause()
    found = run("stats", "--json").json
    assert (found["main"], found["scheduled"], found["paused"]) == (2, 1, True)
    assert found["counters"]["total_messages"] == 3


async def test_stats_for_people(run, queue):
    await queue.enqueue({})
    code, out, err = run("stats")
    assert (code, err) == (0, "")
    rows = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert (rows["main"], rows["paused"], rows["total_messages"]) == ("1", "no", "1")


async def test_stats_show_outside_edits_once(run, queue, redis, prefix):
    await redis.hset(f"{prefix}:stats", "outside_added", 3)
    assert run("stats", "--json").json["edits"] == {"added": 3}
    assert [line.split() for line in run("stats").out.splitlines() if "added" in line] == [["outside_added", "3"]]


async def test_stats_of_a_queue_that_never_was(run):
    assert run("stats", "--json").json["main"] == 0


async def test_a_counter_with_a_hostile_name(run, terminal, queue, redis, prefix):
    await redis.hset(f"{prefix}:stats", HOSTILE, 5)
    assert not STEERING.search(run("stats").out)
    shown = terminal("stats").end()
    assert not STEERING.search(STYLES.sub("", shown.out))


async def test_watching_in_a_terminal_ends_with_ctrl_c(terminal, queue):
    await queue.enqueue({})
    view = terminal("stats", "--watch", "0.1")
    view.wait_for("total_messages")
    await queue.enqueue_many([{}] * 4321)
    view.wait_for("4322")
    view.press("\x03")
    code, out, _ = view.end()
    assert code == 0
    assert out.endswith("\x1b[?25h"), "the cursor is back"
    assert "Abort" not in out


async def test_watching_goes_on_when_the_server_is_back(terminal, tmp_path):
    server = servers.start("embedded", tmp_path)
    view = terminal("stats", "--watch", "0.1", "--url", server.url)
    view.wait_for("processing")
    server.kill()
    view.wait_for("connecting to")
    server.start()
    view.wait_for("processing")
    view.press("\x03")
    assert view.end().code == 0
    server.stop()


async def test_watching_without_a_terminal_is_a_line_a_look(start, queue):
    for options, read in ((["--json"], json.loads), ([], str)):
        process = start("stats", "--watch", "0.1", *options)
        lines = [read(process.stdout.readline()) for _ in range(3)]
        process.terminate()
        assert process.wait(20) == 0
        assert all("main" in line for line in lines)


# ---- peek


async def test_peek_is_the_head_of_the_line(run, queue):
    await queue.enqueue_many([{"n": n} for n in range(250)])
    first = await queue.enqueue({}, id="urgent", priority="high")
    rows = run("peek", "--limit", "300", "--json").json
    assert [row["position"] for row in rows] == list(range(1, 252))
    assert [row["position"] for row in rows] == [await queue.position(row["id"]) for row in rows]
    assert rows[-1]["id"] == first.id
    assert rows[-1]["priority"] == "high"
    assert 0 <= rows[0]["age"] < 60
    assert rows[0]["attempts"] == 0
    assert run("peek", "--json", "--limit", "3").json == [{**row, "age": pytest.approx(row["age"], abs=60)}
                                                           for row in rows[:3]]  # fmt: skip


async def test_peek_for_people(run, queue):
    await queue.enqueue({}, id="order-1")
    heading, row = run("peek").out.splitlines()
    assert heading.split() == ["position", "id", "status", "priority", "age", "attempts", "error"]
    assert row.split()[:4] == ["1", "order-1", "queued", "normal"]


async def test_an_empty_line(run):
    assert run("peek") == (0, "", "nobody is in line\n")
    assert run("peek", "--json").json == []


@pytest.mark.leaks("an id without a body")
async def test_ids_that_other_programs_wrote(run, terminal, queue, redis, prefix):
    await redis.zadd(f"{prefix}:queue:main", {HOSTILE: 5, b"\xff\xfe": 6, "far": 1e300, "never": "inf"})
    await redis.hset(f"{prefix}:msg:far", mapping={"timestamp": "1e300", "status": HOSTILE, "error": HOSTILE})
    rows = run("peek", "--json").json
    assert [row["id"] for row in rows] == [HOSTILE, "\udcff\udcfe", "far", "never"]
    assert [row["status"] for row in rows] == [None, None, "queued", None]
    for answer in (run("peek"), run("peek", PYTHONIOENCODING="ascii"), terminal("peek").end()):
        assert answer.code == 0
        assert not STEERING.search(STYLES.sub("", answer.out))
        assert "\\x1b[2J" in answer.out


async def test_a_narrow_terminal(terminal, queue):
    await queue.enqueue({}, id="x" * 100)
    await queue.enqueue({"name": "名前" * 40, "long": "y" * 500}, id="o2")
    for command in (["peek"], ["show", "o2"], ["stats"]):
        out = STYLES.sub("", terminal(*command, columns=50).end().out)
        assert max(cell_len(line) for line in out.splitlines()) <= 50
    assert terminal("peek", columns=50).end().out.count("x") >= 100, "an id is shown in full"


async def test_colour_is_for_terminals_that_want_it(run, terminal, queue):
    await queue.enqueue({}, id="o1")
    assert "\x1b" not in run("show", "o1").out
    assert "\x1b[1m" in terminal("show", "o1").end().out
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]", terminal("show", "o1", NO_COLOR="1").end().out)


# ---- position


async def test_position(run, queue):
    await queue.enqueue({}, id="o1")
    await queue.enqueue({}, id="o2")
    await queue.enqueue({}, id="o3", priority="high")
    assert run("position", "o2") == (0, "position 2, 2 ahead\n", "")
    assert run("position", "o3", "--json").json == {"id": "o3", "position": 3, "ahead": 0}


async def test_no_position(run):
    assert run("position", "nonesuch\x1b[2J") == (1, "", "error: message nonesuch\\x1b[2J is in no queue\n")


# ---- show


async def test_the_story_of_a_waiting_message(run, queue):
    await queue.enqueue({"sku": "A-1", "n": 2**70, "raw": b"\xff", "tags": {"a"}}, id="o1", ttl=600, priority="low")
    story = run("show", "o1", "--json").json
    assert (story["id"], story["status"], story["places"]) == ("o1", "queued", ["main"])
    assert (story["position"], story["ahead"], story["priority"]) == (1, 0, "low")
    assert (story["attempts"], story["deliveries"], story["retries"], story["crashes"]) == (0, 0, 0, 0)
    assert 590 < story["ttl"] <= 600
    assert story["data"] == {"sku": "A-1", "n": 2**70, "raw": "\\xff", "tags": ["a"]}
    assert story["end"] is story["error"] is story["lock"] is None


async def test_the_story_of_a_message_being_worked_on(run, queue):
    await queue.enqueue({}, id="o1")

    async def handle(message):
        story = run("show", "o1", "--json").json
        assert story["status"] == "processing"
        assert story["holder"] == story["lock"]
        assert 0 <= story["lock_ttl"] <= 1
        assert (story["attempts"], story["deliveries"]) == (1, 1)

    worker = await work(queue, handle, max_retries=0)
    assert worker.queue is queue
    assert (await queue.stats()).dead == 0


async def test_the_story_of_a_finished_message(run, queue):
    async def handle(message):
        return {"shipped": 3, "api_key": CANARY}

    await queue.enqueue({}, id="o1")
    await work(queue, handle)
    story = run("show", "o1", "--json").json
    assert (story["status"], story["places"], story["data"]) == ("completed", [], None)
    assert story["end"] == {
        "status": "completed",
        "result": {"shipped": 3, "api_key": "***"},
        "ttl": story["end"]["ttl"],
    }
    out = run("show", "o1").out
    assert "completed (for" in out
    assert CANARY not in out


async def test_the_story_of_one_that_ran_out(run, queue, redis, prefix):
    await queue.enqueue({}, id="o1")
    await redis.delete(f"{prefix}:msg:o1")
    assert run("show", "o1", "--json").json["status"] == "expired"
    assert "expired: its body ran out" in run("show", "o1").out


async def test_no_story(run):
    code, out, err = run("show", "nonesuch", "--json")
    assert (code, out) == (1, "")
    assert err == "error: nothing is known of message nonesuch: never enqueued, or finished long ago\n"


async def test_no_secret_is_shown_and_no_payload_steers(run, terminal, queue):
    data = {
        "response_token": CANARY,
        "echo": f"the token is {CANARY}",
        "deep": [{"password": CANARY}],
        "in json": f'{{"secret": "{CANARY}"}}',
        "bytes": CANARY.encode(),
        "hostile": HOSTILE,
        HOSTILE: HOSTILE,
    }
    await queue.enqueue(data, id="d1")
    await give_up(queue, f"refused {CANARY}: {HOSTILE}")
    for command in (["show", "d1"], ["show", "d1", "--json"], ["peek"], ["stats"]):
        for answer in (run(*command), terminal(*command).end()):
            assert answer.code == 0
            assert CANARY not in answer.out + answer.err
            assert not STEERING.search(STYLES.sub("", answer.out))
    assert "refused ***" in run("show", "d1").out


@pytest.mark.leaks("a hash of an old producer")
async def test_a_payload_nested_deeper_than_the_stack(run, queue, redis, prefix):
    deep = "[" * 900 + "]" * 900
    await redis.hset(f"{prefix}:msg:old", mapping={"timestamp": "5", "deep": deep, "token": CANARY, "x": 1})
    await redis.zadd(f"{prefix}:queue:dlq", {"old": 5})
    assert run("show", "old", "--json").json["data"] == {
        "deep": "(nested too deep to be shown)", "token": "***", "x": 1,
    }  # fmt: skip


# ---- which queue, which server


async def test_no_prefix(run):
    code, out, err = run("stats", STREAMS_QUEUE_PREFIX="")
    assert (code, out) == (2, "")
    assert err == "error: which queue? Name it, as in --prefix orders, or set STREAMS_QUEUE_PREFIX\n"


async def test_the_options_are_stronger_than_the_environment(run, queue, server, prefix):
    await queue.enqueue({})
    options = ["--prefix", prefix, "--url", server.url]
    found = run("stats", "--json", *options, STREAMS_QUEUE_PREFIX="other", STREAMS_QUEUE_URL="redis://127.0.0.1:1")
    assert found.json["main"] == 1


@pytest.mark.parametrize(
    ("url", "code", "error"),
    [
        ("redis://:pass@127.0.0.1:1", 3, "error: redis://:***@127.0.0.1:1: "),
        ("http://user:pass@host", 2, "error: url: cannot use 'http://user:***@host'"),
        ("embedded://", 2, "error: embedded:// is a server of this process alone"),
    ],
)
async def test_a_server_that_cannot_be_used(run, url, code, error):
    found = run("stats", "--url", url)
    assert (found.code, found.out) == (code, "")
    assert found.err.startswith(error)
    assert "pass@" not in found.err


async def test_a_reader_that_leaves_early(start, queue):
    await queue.enqueue_many([{"n": n} for n in range(3000)])
    process = start("peek", "--limit", "3000")
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(20) == 1


# ---- completion


def _completed(words: str, **environ: str) -> list[str]:
    asked = {"_STREAMS_QUEUE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    found = subprocess.run(PROGRAM, env=os.environ | asked, capture_output=True, text=True, timeout=20, check=True)
    return found.stdout.split()


def test_completion_knows_commands_and_options():
    assert _completed("streams-queue st") == ["stats"]
    assert "--prefix" in _completed("streams-queue peek --")


def test_completion_can_be_installed(tmp_path):
    done = subprocess.run(
        [*PROGRAM, "--install-completion", "bash"],
        env=os.environ | {"HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (script,) = tmp_path.glob(".bash_completions/*")
    assert script.name == "streams-queue.sh"
    assert "_STREAMS_QUEUE_COMPLETE=complete_bash" in script.read_text()
    assert str(script) in (tmp_path / ".bashrc").read_text()
    # As bash asks: the function that the script defines, for a program of this name on PATH.
    (tmp_path / "streams-queue").write_text(f"#!/bin/sh\nexec '{PROGRAM[0]}' -c '{PROGRAM[2]}' \"$@\"\n")
    (tmp_path / "streams-queue").chmod(0o755)
    asking = (
        f". '{script}'; COMP_WORDS=(streams-queue pos); COMP_CWORD=1; "
        "_streams_queue_completion streams-queue; echo ${COMPREPLY[@]}"
    )
    environ = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    told = subprocess.run(["bash", "-c", asking], env=environ, capture_output=True, text=True, timeout=20, check=False)
    assert (told.stdout, told.stderr) == ("position\n", "")
