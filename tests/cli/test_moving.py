"""`migrate` and `verify` as people and scripts call them: what they print, leave in files, and end with."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from canary import CANARY
from cli.test_look import HOSTILE, STEERING, STYLES
from migrations.old_state import OldState
from streams_queue import Queue
from streams_queue.settings import Settings

STEERS = ("\x1b[2J", "\x07", "\x9b", "\u202e", "\u2066")
"""What of a hostile id no progress bar writes itself."""


@pytest.fixture
def client(server):
    with server.sync_client(decode_responses=False) as client:
        yield client


@pytest.fixture
def old(client, prefix) -> OldState:
    """An old queue of three messages."""
    state = OldState(client, prefix)
    for n in range(3):
        state.queued(f"m{n}", time.time() - 10 + n, response_token=CANARY)
    state.flush()
    return state


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    return tmp_path


def migrate(run, reports: Path, *arguments: str, **more: str) -> Any:
    return run("migrate", "--report-dir", str(reports), *arguments, **more)


def report_in(reports: Path) -> Any:
    (path,) = reports.glob("*.json")
    return json.loads(path.read_text())


@pytest.mark.usefixtures("old")
def test_what_scripts_read(run, reports, prefix):
    (planned,) = migrate(run, reports, "--dry-run", "--json").json
    assert planned["well"] and planned["prefix"] == prefix and planned["findings"] == []
    assert planned["censuses"][0] | {"found": {}, "examples": {}} == {
        "queue": "main", "ids": 3, "found": {}, "examples": {},
    }  # fmt: skip
    assert list(reports.iterdir()) == [], "nothing was written"
    (applied,) = migrate(run, reports, "--json").json
    assert (applied["well"], applied["entered"], applied["set_aside"]) == (True, 3, {})
    assert report_in(reports) == {name: value for name, value in applied.items() if name != "well"}
    verified = run("verify", "--json").json
    assert verified["well"] and verified["ids"]["main"] == 3
    (back,) = migrate(run, reports, "--rollback", "--yes", "--json").json
    assert (back["well"], back["messages"]) == (True, 3)
    code, out, err = run("verify", "--json")
    assert (code, err) == (1, "") and not json.loads(out)["well"], "it has no entries now"


def test_ids_that_have_no_encoding_or_would_steer_a_terminal(run, terminal, client, reports, prefix):
    state = OldState(client, prefix)
    state.queued(b"\xff\xfe", 5.0, response_token=CANARY)
    state.queued(HOSTILE, 6.0)
    state.place("main", HOSTILE + "gone", 1.0)
    state.place("main", b"\xfegone", 2.0)
    state.flush()
    for code, out, err in (migrate(run, reports, "--dry-run"), migrate(run, reports), run("verify")):
        assert code == 0, err
        assert not STEERING.search(out + err) and CANARY not in out + err
    shown = terminal("verify").end().out
    assert "\\x1b[2J" in shown and not any(text in shown for text in STEERS)
    times = next(check for check in report_in(reports)["verified"]["checks"] if check["name"] == "times")
    assert times["examples"] == ["\udcff\udcfe", HOSTILE]
    (aside,) = reports.glob("*.set-aside.jsonl")
    assert [json.loads(line)["id"] for line in aside.read_text().splitlines()] == [HOSTILE + "gone", "\udcfegone"]
    assert not any(CANARY in path.read_text() for path in reports.iterdir())


def test_a_refusal_leaves_no_report(run, client, reports, old):
    old.lock("global_lock", "processor")
    old.flush()
    code, out, err = migrate(run, reports)
    assert (code, out) == (1, "") and "is held by 'processor'" in err
    assert list(reports.iterdir()) == []
    (refused,) = json.loads(migrate(run, reports, "--json").out)
    assert (refused["well"], refused["code"]) == (False, 1) and refused["error"] in err
    assert not client.exists(old.key("stream"))
    assert migrate(run, reports, "--force").code == 0


@pytest.mark.usefixtures("old")
def test_a_report_that_cannot_be_written_is_known_before_anything_is(run, client, prefix):
    code, _, err = migrate(run, Path("/proc"))
    assert code == 2 and re.fullmatch(r"error: the report cannot be written to /proc/.*\n", err)
    assert not client.exists(f"{prefix}:stream")


def test_one_bad_queue_holds_up_no_other(run, client, reports, prefix, old):
    client.rpush(f"{prefix}-a-list:queue:main", "another program's")
    client.zadd(f"{prefix} with blanks:queue:main", {"x": 1})
    everything = {"STREAMS_QUEUE_PREFIX": ""}
    code, out, err = migrate(run, reports, "--all", **everything)
    assert code == 2, "the highest of the queues' codes"
    assert f"queue {prefix}: 3 messages moved in" in out
    assert f"{prefix}-a-list:queue:main is a list" in err and f"queue prefix '{prefix} with blanks' is not" in err
    assert client.xlen(old.key("stream")) == 3
    code, out, err = migrate(run, reports, "--all", "--json", **everything)
    found = {result["prefix"]: result for result in json.loads(out)}
    assert {name: result["well"] for name, result in found.items()} == {
        prefix: True, f"{prefix}-a-list": False, f"{prefix} with blanks": False,
    }  # fmt: skip
    client.delete(f"{prefix} with blanks:queue:main")
    assert migrate(run, reports, "--all", "--dry-run", **everything).code == 1
    client.delete(f"{prefix}-a-list:queue:main")
    assert migrate(run, reports, "--all", **everything).code == 0


async def test_all_finds_a_queue_that_has_scheduled_messages_alone(run, server, client, reports, prefix):
    async with Queue(prefix, url=server.url) as queue:
        await queue.enqueue({}, id="later", delay=500)
    everything = {"STREAMS_QUEUE_PREFIX": ""}
    assert migrate(run, reports, "--all", "--rollback", "--yes", **everything).code == 0
    assert client.zrange(f"{prefix}:queue:retry", 0, -1) == [b"later"]
    client.flushall()
    assert migrate(run, reports, "--all", "--rollback", **everything).out == "no queue was found\n"
    assert json.loads(migrate(run, reports, "--all", "--json", **everything).out) == []


def test_which_queues_must_be_said_once(run, reports):
    code, _, err = migrate(run, reports, "--all")
    assert code == 2 and "nor --all and STREAMS_QUEUE_PREFIX" in err
    code, _, err = migrate(run, reports, STREAMS_QUEUE_PREFIX="")
    assert code == 2 and "which queues?" in err
    code, _, err = migrate(run, reports, "--dry-run", "--rollback")
    assert code == 2 and "do not go together" in err


@pytest.mark.usefixtures("old")
def test_going_back_asks_first(run, terminal, client, reports, prefix):
    migrate(run, reports)
    code, _, err = migrate(run, reports, "--rollback")
    assert code == 2 and "add --yes" in err
    asked = terminal("migrate", "--rollback")
    asked.wait_for(f"Really roll back {prefix}?")
    asked.press("n\n")
    assert asked.end().code == 1 and client.exists(f"{prefix}:stream")
    asked = terminal("migrate", "--rollback")
    asked.wait_for("[y/N]")
    asked.press("y\n")
    assert asked.end().code == 0 and not client.exists(f"{prefix}:stream")


def test_a_terminal_sees_how_far_it_is(terminal, client, reports, prefix):
    state = OldState(client, prefix)
    for n in range(30_000):
        state.queued(f"m{n}", 1e9 + n)
    state.flush()
    shown = terminal("migrate", "--report-dir", str(reports), columns=200).end()
    assert shown.code == 0
    plain = STYLES.sub("", shown.out)
    assert re.search(rf"{prefix} main\s.*\d+/30000\s+[\d,]+/s\s+\d:\d\d:\d\d", plain), "rate, and time left"
    assert "30,000 messages moved in" in plain
    assert shown.out.rindex("report: ") > shown.out.rindex("\x1b[1A"), "no bar wipes it out"


def test_a_queue_that_does_not_exist_is_not_clean(run, server):
    meant = Settings(server.url).prefix("typo")
    code, out, err = run("verify", "--prefix", "typo")
    assert (code, out) == (1, "") and err.startswith(f"error: there is no queue {meant!r}")


async def test_going_back_says_that_types_are_lost(run, reports, server, prefix):
    async with Queue(prefix, url=server.url) as queue:
        await queue.enqueue_many([{"text": "123"}, {"text": "a"}])
    said = migrate(run, reports, "--rollback", "--yes").out
    assert "2 messages are as the old code knows them" in said
    assert "2 have values that had a type, which is lost" in said


def test_a_server_that_is_away(run, reports):
    assert migrate(run, reports, "--url", "redis://127.0.0.1:1/0").code == 3
    assert run("verify", "--url", "redis://127.0.0.1:1/0").code == 3
    assert list(reports.iterdir()) == []
