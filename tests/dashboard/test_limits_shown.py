"""A queue's limits in the dashboard, the keys that messages wait for, and the priority of one that waits."""

from __future__ import annotations

import logging
import time
from typing import Any

import pytest

from dashboard.conftest import SECRET, fields_in, seen
from dashboard.test_api import Caller
from helpers import Held, running, until, work, worker_of
from streams_queue import Limits, Rate, Reject, Retry
from streams_queue.limits import MEANINGS

SET = Limits(key="user_id", max_length=100, accept=Rate(30), work_per_key=Rate(5, per=10), low_share=0.1)


@pytest.fixture
async def api(browser, prefix) -> Caller:
    return Caller(browser, prefix)


@pytest.fixture
def recorded(caplog):
    """The lines of the audit log so far."""
    caplog.set_level(logging.INFO)

    def lines() -> list[str]:
        return [line.getMessage() for line in caplog.records if line.name == "streams_queue.dashboard.audit"]

    return lines


def form_of(page: str, **written: str) -> list[tuple[str, str]]:
    """The form as a browser sends it: what it shows, but for what somebody has written."""
    hidden = fields_in(page)
    shown = {name.removeprefix("shown_"): value for name, value in hidden if name.startswith("shown_")}
    assert shown.keys() == MEANINGS.keys()
    return [*hidden, *{**shown, **written}.items()]


async def park(queue: Any, users: int = 1, each: int = 3) -> None:
    """Have messages wait for their keys' turns, the first of each being dead."""
    await queue.set_limits(Limits(key="user_id", concurrency_per_key=1))
    await queue.enqueue_many([{"user_id": f"u{user}", "n": n} for n in range(each) for user in range(users)])


# ---- the form


async def test_the_page_has_the_words_of_the_command(browser, queue, prefix):
    await queue.set_limits(SET)
    page = (await browser.get(f"/queues/{prefix}/limits")).text
    for name, meaning in MEANINGS.items():
        assert f">{name.replace('_', '-')}</label>" in page
        assert meaning in seen(page)
    fields = dict(fields_in(page))
    assert {name: fields[f"shown_{name}"] for name in MEANINGS} == {
        "key": "user_id", "max_length": "100", "accept": "30/s", "accept_per_key": "", "work": "",
        "work_per_key": "5/10s", "concurrency_per_key": "", "normal_share": "0.2", "low_share": "0.1",
    }  # fmt: skip
    assert "No message waits for its key." in seen(page)


async def test_limits_are_changed(browser, queue, prefix, recorded):
    await queue.set_limits(SET)
    page = (await browser.get(f"/queues/{prefix}/limits")).text
    form = form_of(page, max_length=" 50 ", accept="", work="100/1m", concurrency_per_key="2", low_share="")
    answer = await browser.send(f"/queues/{prefix}/limits/change", form, 303)
    assert "5 limits changed." in await browser.text(answer.headers["location"])
    assert await queue.limits() == Limits(
        key="user_id", max_length=50, work=Rate(100, per=60.0), work_per_key=Rate(5, per=10), concurrency_per_key=2
    )
    (line,) = recorded()
    assert "limits by " in line
    assert f"queue {prefix}" in line
    assert "max-length 50, accept none, work 100/m, concurrency-per-key 2, low-share 0.05" in line


async def test_what_was_not_touched_stays_as_somebody_else_made_it(browser, queue, prefix):
    await queue.set_limits(SET)
    page = (await browser.get(f"/queues/{prefix}/limits")).text
    others = Limits(key="user_id", max_length=7, work_per_key=Rate(1, per=0.1234567))
    await queue.set_limits(others)
    await browser.send(f"/queues/{prefix}/limits/change", form_of(page, work="9/s"), 303)
    assert await queue.limits() == Limits(key="user_id", max_length=7, work_per_key=others.work_per_key, work=Rate(9))


@pytest.mark.parametrize(
    ("written", "words"),
    [({"max_length": "many"}, "max-length: 'many' is no number"), ({"accept": "30"}, "accept: '30' is no rate: write"),
     ({"accept": "0/s"}, "accept: rate count=0 is not"), ({"max_length": "0"}, "max_length=0 is not a whole number"),
     ({"low_share": "nan"}, "low_share=nan is not a number"), ({"low_share": "0.9"}, "leave nothing for high ones"),
     ({"concurrency_per_key": "1"}, "concurrency_per_key needs a key")],
)  # fmt: skip
async def test_what_is_no_limit_is_refused_and_stays_in_the_form(browser, queue, prefix, written, words, recorded):
    page = (await browser.get(f"/queues/{prefix}/limits")).text
    form = form_of(page, work="9/s", **written)
    answer = await browser.send(f"/queues/{prefix}/limits/change", form, 422)
    assert words in seen(answer.text)
    ((name, text),) = written.items()
    assert f'name="{name}" value="{text}"' in answer.text
    assert 'name="work" value="9/s"' in answer.text
    assert await queue.limits() == Limits()
    assert recorded() == []
    corrected = [*fields_in(answer.text), ("work", "9/s"), (name, dict(form)[f"shown_{name}"])]
    kept = {field for field, _ in corrected}
    corrected += [(field, dict(form)[f"shown_{field}"]) for field in MEANINGS if field not in kept]
    await browser.send(f"/queues/{prefix}/limits/change", corrected, 303)
    assert await queue.limits() == Limits(work=Rate(9))


async def test_read_only_shows_them(opened, queue, prefix):
    await queue.set_limits(SET)
    text = await (await opened(read_only=True)).text(f"/queues/{prefix}/limits")
    assert "max-length 100" in text
    assert "work none" in text


# ---- the same for programs


async def test_limits_by_the_api(api, queue, recorded):
    assert (await api.get("/limits"))["max_length"] is None
    asked = {"key": "user_id", "accept": {"count": 30}, "work": {"count": 5, "per": 0.25}, "low_share": 0.1}
    found = await api.post("/limits", asked)
    assert found == await api.get("/limits")
    assert found["work"] == {"count": 5, "per": 0.25}
    assert await queue.limits() == Limits(key="user_id", accept=Rate(30), work=Rate(5, per=0.25), low_share=0.1)
    await api.post("/limits", {"accept": None, "low_share": None, "max_length": 9.0})
    assert await queue.limits() == Limits(key="user_id", work=Rate(5, per=0.25), max_length=9)
    await api.post("/limits", await api.get("/limits"))
    assert await queue.limits() == Limits(key="user_id", work=Rate(5, per=0.25), max_length=9)
    assert recorded()[1].endswith("max-length 9, accept none, low-share 0.05")


@pytest.mark.parametrize(
    ("asked", "status", "words"),
    [({"max_length": 0}, 422, "max_length"), ({"work": "30/s"}, 422, "work"), ({"work": {"count": 0}}, 422, "count"),
     ({"speed": 3}, 422, "speed"), ({"low_share": 1}, 422, "low_share"), ([], 422, ""),
     ({"work_per_key": {"count": 1}}, 409, "work_per_key needs a key: name the payload's field"),
     ({"low_share": 0.5, "normal_share": 0.5}, 409, "leave nothing for high ones")],
)  # fmt: skip
async def test_what_the_api_refuses(api, queue, asked, status, words):
    assert words in (await api.post("/limits", asked, status))["detail"]
    assert await queue.limits() == Limits()


# ---- keys that messages wait for


async def test_a_message_that_waits_for_its_turn(api, browser, queue, prefix):
    await park(queue, users=2)
    held = Held()
    async with running(worker_of(queue, held.handle, concurrency=4)):
        await held.holds(2)

        async def is_parked():
            return (await queue.stats()).parked == 4

        await until(is_parked)
        assert (await api.get("/api/queues"))["queues"][0]["counts"]["parked"] in {0, 2, 3, 4}
        assert (await api.get())["summary"]["counts"]["parked"] == 4
        found = await api.get("/waiting-keys")
        assert found["parked"] == 4
        told = [(key["value"], key["messages"], key["waits_for"], key["waits_until"]) for key in found["keys"]]
        assert sorted(told) == [("u0", 2, "turn", None), ("u1", 2, "turn", None)]
        story = await api.get(f"/messages/{found['keys'][0]['first']}")
        assert (story["status"], story["waits_for"], story["waits_until"]) == ("queued", "turn", None)
        line = (await api.get("/line"))["messages"]
        assert [row["waits_for"] for row in line] == [None, None, "turn", "turn", "turn", "turn"]
        page = await browser.text(f"/queues/{prefix}/limits")
        assert "4 messages parked" in page
        assert "u1 its key's turn" in page
        assert "Parked, waits for its key's turn" in await browser.text(
            f"/queues/{prefix}/message?id={found['keys'][0]['first']}"
        )
        held.go.set()


async def test_a_key_that_is_paused(api, browser, queue, prefix):
    await queue.set_limits(Limits(key="chat"))
    await queue.enqueue_many([{"chat": "c1", "api_key": SECRET}] * 3)

    async def slow_down(message):
        raise Retry(delay=60, key="c1")

    await work(queue, slow_down)
    (key,) = (await api.get("/waiting-keys"))["keys"]
    assert (key["value"], key["messages"], key["waits_for"]) == ("c1", 3, "pause")
    assert 0 < key["waits_until"] - time.time() < 61
    assert (await api.get(f"/messages/{key['first']}"))["waits_until"] == pytest.approx(key["waits_until"], abs=0.1)
    assert "the end of its key's pause" in await browser.text(f"/queues/{prefix}/limits")


async def test_a_key_whose_rate_is_spent(api, queue):
    await queue.set_limits(Limits(key="chat", work_per_key=Rate(1, per=60)))
    await queue.enqueue_many([{"chat": "c1"}, {"chat": "c1"}, {"chat": 7}, {}])

    async def handle(message):
        pass

    await work(queue, handle)
    (key,) = (await api.get("/waiting-keys"))["keys"]
    assert (key["value"], key["messages"], key["waits_for"]) == ("c1", 1, "rate")
    assert 0 < key["waits_until"] - time.time() < 61


async def test_a_key_that_is_a_secret_stays_one(api, browser, queue, prefix):
    await queue.set_limits(Limits(key="access_token"))
    await queue.enqueue_many([{"access_token": SECRET}] * 2)

    async def slow_down(message):
        raise Retry(delay=60, key=SECRET)

    await work(queue, slow_down)
    assert [key["value"] for key in (await api.get("/waiting-keys"))["keys"]] == ["***"]
    assert SECRET not in (await browser.get(f"/queues/{prefix}/limits")).text


async def test_outsiders_broke_what_waits(api, queue, redis, prefix):
    """A body that ran out, a list of a key that is gone, or is a text by now."""
    await queue.set_limits(Limits(key="chat"))
    receipts = await queue.enqueue_many([{"chat": f"c{n}"} for n in range(3)])

    async def slow_down(message):
        raise Retry(delay=60, key=message.data["chat"])

    await work(queue, slow_down)
    await redis.delete(f"{prefix}:msg:{receipts[0].id}")
    lists = await redis.keys(f"{prefix}:parked:*")
    await redis.delete(lists[0])
    await redis.set(lists[1], "a text", ex=60)
    found = await api.get("/waiting-keys")
    assert found["parked"] == 3
    assert len(found["keys"]) >= 1
    assert {key["value"] for key in found["keys"]} <= {None, "c0", "c1", "c2"}


# ---- priorities


async def test_a_waiting_messages_priority_is_changed(browser, queue, prefix, recorded):
    await queue.enqueue({}, id="m1")
    page = (await browser.get(f"/queues/{prefix}/message?id=m1")).text
    assert "Make it high" in page
    form = [*fields_in(page), ("priority", "high")]
    answer = await browser.send(f"/queues/{prefix}/message/priority", form, 303)
    page = await browser.text(answer.headers["location"])
    assert "The priority was changed." in page
    assert "Make it normal" in page and "Make it high" not in page
    assert (await queue.get("m1")).priority == "high"
    answer = await browser.send(f"/queues/{prefix}/message/priority", form, 303)
    assert "It had this priority already." in await browser.text(answer.headers["location"])
    assert ["changed, high" in line or "same, high" in line for line in recorded()] == [True, True]
    assert all("1 id (m1)" in line for line in recorded())


async def test_only_what_waits_has_the_buttons(browser, queue, prefix):
    await queue.enqueue({}, id="d1")

    async def refuse(message):
        raise Reject("no")

    await work(queue, refuse)
    await queue.enqueue({}, id="later", delay=60)
    assert "Make it" not in await browser.text(f"/queues/{prefix}/message?id=d1")
    assert "Make it" in await browser.text(f"/queues/{prefix}/message?id=later")
    form = [("id", "d1"), ("priority", "high")]
    assert "it is a dead letter" in (await browser.post(f"/queues/{prefix}/message/priority", form, 409)).text
    form = [("id", "none"), ("priority", "high")]
    await browser.post(f"/queues/{prefix}/message/priority", form, 404)
    form = [("id", "later"), ("priority", "urgent")]
    assert "high, normal, low" in (await browser.post(f"/queues/{prefix}/message/priority", form, 422)).text


async def test_priorities_by_the_api(api, queue, recorded):
    await queue.enqueue({}, id="m1")
    assert await api.post("/messages/m1/priority", {"priority": "low"}) == {
        "id": "m1", "priority": "low", "changed": True,
    }  # fmt: skip
    assert not (await api.post("/messages/m1/priority", {"priority": "low"}))["changed"]
    await api.post("/messages/m1/priority", {"priority": "urgent"}, 422)
    await api.post("/messages/m2/priority", {"priority": "low"}, 404)
    held = Held()
    async with running(worker_of(queue, held.handle)):
        await held.holds()
        refused = await api.post("/messages/m1/priority", {"priority": "high"}, 409)
        assert "a worker has it by now" in refused["detail"]
        held.go.set()
    assert len(recorded()) == 4
