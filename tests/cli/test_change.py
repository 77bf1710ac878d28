"""`enqueue`, `remove`, `pause`, `resume`."""

from __future__ import annotations

import json

import pytest

from canary import CANARY
from helpers import queue_at


@pytest.fixture
async def queue(server, prefix):
    async with queue_at(server, prefix) as queue:
        yield queue


# ---- enqueue


async def test_a_message_from_the_command(run, queue):
    data = {"sku": "A-1", "n": 2**70, "none": None, "list": [1, "ä"], "f": 0.5}
    options = ["--id", "o1", "--priority", "high", "--ttl", "2h", "--unique-key", "k"]
    assert run("enqueue", json.dumps(data), *options, "--json").json == {
        "id": "o1", "status": "queued", "duplicate": False,
    }  # fmt: skip
    message = await queue.get("o1")
    assert message.data == data
    assert message.priority == "high"
    assert run("enqueue", "{}", "--unique-key", "k") == (0, "o1 queued duplicate\n", "")


async def test_a_delay(run, queue):
    assert run("enqueue", "{}", "--id", "o1", "--delay", "15m").out == "o1 scheduled\n"
    assert 890 < run("show", "o1", "--json").json["due_at"] - run("show", "o1", "--json").json["now"] <= 900


@pytest.mark.parametrize("at", ["2090-12-24T18:00:00+01:00", "2090-12-24T17:00:00Z", "3817818000"])
async def test_a_time(run, queue, at):
    assert run("enqueue", "{}", "--id", "o1", "--at", at).out == "o1 scheduled\n"
    assert run("show", "o1", "--json").json["due_at"] == 3817818000


async def test_lines_of_standard_input(run, queue):
    lines = "".join(f'{{"n": {n}}}\n' for n in range(1201))
    receipts = run("enqueue", "-", "--json", "--priority", "low", stdin=lines).json
    assert len(receipts) == 1201
    assert {receipt["status"] for receipt in receipts} == {"queued"}
    messages = [await queue.get(receipts[n]["id"]) for n in (0, 499, 500, 1200)]
    assert [(message.data["n"], message.priority) for message in messages] == [
        (0, "low"), (499, "low"), (500, "low"), (1200, "low"),
    ]  # fmt: skip
    assert await queue.position(receipts[1200]["id"]) == 1201


async def test_no_lines_at_all(run):
    assert run("enqueue", "-", "--json").json == []


async def test_a_bad_line_says_what_is_in_the_queue_by_then(run, queue):
    lines = "".join(f'{{"n": {n}}}\n' for n in range(700)) + f'{{"token": "{CANARY}\n'
    code, out, err = run("enqueue", "-", stdin=lines)
    assert code == 2
    assert err.startswith("error: line 701 is no JSON: ")
    assert err.endswith("the first 500 messages are in the queue\n")
    assert await queue.length() == 500
    assert len(out.splitlines()) == 501
    assert CANARY not in out + err


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["{"], "the payload is no JSON: "),
        (["[1]"], "the payload is no JSON object"),
        (['"x"'], "the payload is no JSON object"),
        (["NaN"], "the payload is no JSON: "),
        (["{}", "--id", "a b"], "message id 'a b' is not 1 to 128 of the characters"),
        (["{}", "--ttl", "0"], "ttl 0.0 is not a number of seconds above 0"),
        (["{}", "--delay", "9999999d"], "delay 863999913600.0 is not a number of seconds from 0"),
        (["{}", "--delay", "5", "--at", "3817818000"], "delay 5.0 and at 3817818000.0 both say when it is due"),
        (["-", "--id", "x"], "--id and --unique-key are for one message"),
    ],
)
async def test_what_is_refused(run, queue, arguments, error):
    code, out, err = run("enqueue", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {error}")
    assert await queue.length() == 0


@pytest.mark.parametrize("option", [
    ("--delay", "soon"), ("--ttl", "-5"), ("--priority", "urgent"), ("--at", "noon"), ("--at", "2090-12-24T18:00:00"),
    ("--at", "nan"),
])  # fmt: skip
async def test_misuse(run, option):
    code, out, err = run("enqueue", "{}", *option)
    assert (code, out) == (2, "")
    assert f"Invalid value for '{option[0]}'" in err


async def test_a_payload_over_the_limit(run, queue):
    code, _, err = run("enqueue", "-", stdin=json.dumps({"x": "y" * (1 << 20)}))
    assert code == 2
    assert "1048576 are allowed" in err


# ---- priority


async def test_priority(run, queue):
    await queue.enqueue({}, id="o1")
    await queue.enqueue({}, id="o2", delay=60)
    assert run("priority", "o1", "high") == (0, "id  outcome\no1  changed\n", "")
    assert run("priority", "o2", "low", "--json").json == [{"id": "o2", "outcome": "changed"}]
    assert run("priority", "o1", "high", "--json").json == [{"id": "o1", "outcome": "same"}]
    assert [(await queue.get(id)).priority for id in ("o1", "o2")] == ["high", "low"]
    code, out, _ = run("priority", "nonesuch", "low", "--json")
    assert (code, json.loads(out)) == (1, [{"id": "nonesuch", "outcome": "missing"}])
    code, out, err = run("priority", "o1", "urgent")
    assert (code, out) == (2, "")
    assert "'urgent' is not one of 'high', 'normal', 'low'" in err


# ---- remove


async def test_remove(run, queue):
    await queue.enqueue({}, id="o1")
    await queue.enqueue({}, id="o2", delay=60)
    code, out, err = run("remove", "o1", "o2", "o1", "nonesuch", "--yes", "--json")
    assert (code, err) == (1, "")
    assert json.loads(out) == [
        {"id": "o1", "outcome": "removed"},
        {"id": "o2", "outcome": "removed"},
        {"id": "nonesuch", "outcome": "missing"},
    ]
    assert await queue.length() == 0
    assert "o1  removed" not in run("show", "o1").out
    assert run("show", "o1", "--json").json["status"] == "removed"


async def test_nobody_to_ask(run, queue, prefix):
    await queue.enqueue({}, id="o1")
    code, out, err = run("remove", "o1", stdin="y\n")
    assert (code, out) == (2, "")
    what = f"remove 1 message from {prefix} for good"
    assert err == f"error: this would {what}, and nobody can be asked here: add --yes to do it\n"
    assert await queue.length() == 1


@pytest.mark.parametrize(("answer", "code", "left"), [("y\r", 0, 0), ("n\r", 1, 1), ("\r", 1, 1), ("\x03", 1, 1)])
async def test_somebody_is_asked(terminal, queue, prefix, answer, code, left):
    await queue.enqueue({}, id="o1")
    asking = terminal("remove", "o1")
    asking.wait_for_question(f"Really remove 1 message from {prefix} for good? [y/N]")
    asking.press(answer)
    assert asking.end().code == code
    assert await queue.length() == left


# ---- pause, resume


async def test_pause_and_resume(run, queue):
    assert run("pause") == (0, "paused: workers finish what they hold and take nothing new\n", "")
    assert (await queue.stats()).paused
    assert run("pause", "--json").json == {"paused": True}
    assert run("resume") == (0, "resumed: workers take messages again\n", "")
    assert not (await queue.stats()).paused
    assert run("resume", "--json").json == {"paused": False}
