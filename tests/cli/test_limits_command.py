"""`limits`, `limits set`, `limits clear`, and what `enqueue` says when one of them refuses."""

from __future__ import annotations

import json

import pytest

from helpers import queue_at
from streams_queue import Limits, Rate

NONE = {
    "key": None, "max_length": None, "accept": None, "accept_per_key": None, "work": None, "work_per_key": None,
    "concurrency_per_key": None, "normal_share": 0.2, "low_share": 0.05,
}  # fmt: skip


@pytest.fixture
async def queue(server, prefix):
    async with queue_at(server, prefix) as queue:
        yield queue


async def test_all_of_them_set_and_shown(run, queue):
    assert run("limits", "--json").json == NONE
    shown = run(
        "limits", "set", "--key", "user_id", "--max-length", "10000", "--accept", "100/s", "--accept-per-key", "5/1m",
        "--work", "30/s", "--work-per-key", "1/1.5s", "--concurrency-per-key", "1", "--normal-share", "0.3",
        "--low-share", "0.1", "--json",
    ).json  # fmt: skip
    assert shown == {
        "key": "user_id", "max_length": 10000, "accept": {"count": 100, "per": 1.0},
        "accept_per_key": {"count": 5, "per": 60.0}, "work": {"count": 30, "per": 1.0},
        "work_per_key": {"count": 1, "per": 1.5}, "concurrency_per_key": 1, "normal_share": 0.3, "low_share": 0.1,
    }  # fmt: skip
    assert run("limits", "--json").json == shown
    assert await queue.limits() == Limits(
        key="user_id", max_length=10000, accept=Rate(100), accept_per_key=Rate(5, per=60), work=Rate(30),
        work_per_key=Rate(1, per=1.5), concurrency_per_key=1, normal_share=0.3, low_share=0.1,
    )  # fmt: skip


async def test_what_is_not_named_stays(run, queue):
    await queue.set_limits(Limits(max_length=5, accept=Rate(1)))
    run("limits", "set", "--accept", "2/s")
    assert await queue.limits() == Limits(max_length=5, accept=Rate(2))
    run("limits", "clear", "max-length")
    assert await queue.limits() == Limits(accept=Rate(2))
    run("limits", "set", "--low-share", "0")
    run("limits", "clear", "low-share", "accept")
    assert await queue.limits() == Limits()
    await queue.set_limits(Limits(max_length=5, key="user_id"))
    assert run("limits", "clear", "--json").json == NONE


async def test_shown_to_people(run, queue):
    await queue.set_limits(Limits(max_length=5, accept=Rate(30), low_share=0.1))
    code, out, err = run("limits")
    assert (code, err) == (0, "")
    assert dict(line.split() for line in out.splitlines()) == {
        "key": "none", "max-length": "5", "accept": "30/s", "accept-per-key": "none", "work": "none",
        "work-per-key": "none", "concurrency-per-key": "none", "normal-share": "0.2", "low-share": "0.1",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["set"], "--max-length"),
        (["set", "--accept", "0/s"], "count=0 is not a whole number from 1"),
        (["set", "--accept", "30"], "'30' is no rate: write for example 30/s"),
        (["set", "--accept", "1/0s"], "per=0"),
        (["set", "--max-length", "0"], "max_length=0 is not a whole number from 1"),
        (["set", "--max-length", "many"], "'--max-length'"),
        (["set", "--accept-per-key", "5/s"], "accept_per_key needs a key"),
        (["set", "--low-share", "1.5"], "low_share=1.5"),
        (["set", "--nonesuch", "1"], "--nonesuch"),
        (["clear", "nonesuch"], "'nonesuch' is no limit: name some of key, max-length"),
        (["--prefix", "x", "set", "--max-length", "1"], "limits set --prefix"),
    ],
)
async def test_wrong_input_names_the_value_and_the_remedy(run, queue, arguments, words):
    await queue.set_limits(Limits(max_length=5))
    code, out, err = run("limits", *arguments)
    assert (code, out) == (2, "")
    assert words in " ".join(err.replace("│", " ").split())
    assert await queue.limits() == Limits(max_length=5)


async def test_the_key_stays_while_it_is_needed(run, queue):
    await queue.set_limits(Limits(key="user_id", accept_per_key=Rate(1)))
    code, _, err = run("limits", "clear", "key")
    assert (code, "needs a key" in err) == (2, True)
    assert run("limits", "clear", "key", "accept-per-key").code == 0


async def test_enqueue_says_why_and_when(run, queue, prefix):
    await queue.set_limits(Limits(accept=Rate(1, per=3600)))
    assert run("enqueue", "{}").code == 0
    code, out, err = run("enqueue", "{}")
    assert (code, out) == (4, "")
    assert err.startswith(f"error: queue '{prefix}' takes no more now, its limit is accept=1/h: try again in 3")


async def test_lines_up_to_the_refused_one(run, queue):
    await queue.set_limits(Limits(max_length=600))
    lines = "".join(f'{{"n": {n}}}\n' for n in range(1200))
    code, out, err = run("enqueue", "-", "--json", stdin=lines)
    assert code == 4
    ids = [receipt["id"] for receipt in json.loads(out + "]")]
    assert len(ids) == await queue.length() == 600
    assert err.startswith("the first 600 messages are in the queue\nerror: queue ")
