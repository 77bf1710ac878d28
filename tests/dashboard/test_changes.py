"""What the buttons do."""

from __future__ import annotations

import html
import json
import re
from typing import Any

import pytest

from dashboard.conftest import SECRET, fields_in, seen
from helpers import work
from streams_queue import InvalidMessage, Reject
from streams_queue.dashboard import changes
from streams_queue.dashboard.editing import restored


async def give_up(queue, reason="no stock"):
    async def handle(message):
        raise Reject(reason)

    await work(queue, handle)


async def test_pause_and_resume(browser, queue, prefix):
    assert "Pause" in await browser.text(f"/queues/{prefix}")
    answer = await browser.post(f"/queues/{prefix}/pause")
    assert answer.headers["location"] == f"/queues/{prefix}"
    assert (await queue.stats()).paused
    text = await browser.text(f"/queues/{prefix}")
    assert "Paused: workers take nothing new." in text
    assert "Resume" in text
    await browser.post(f"/queues/{prefix}/resume")
    assert not (await queue.stats()).paused


async def test_one_dead_letter_is_requeued_from_its_page(browser, queue, prefix):
    await queue.enqueue({"n": 1}, id="d1")
    await give_up(queue)
    page = (await browser.get(f"/queues/{prefix}/message?id=d1")).text
    form = [*fields_in(page), ("choice", "requeue selected")]
    answer = await browser.send(f"/queues/{prefix}/dead/change", form, 303)
    assert "1 requeued." in await browser.text(answer.headers["location"])
    assert (await queue.get("d1")).status == "queued"


async def test_what_is_marked_is_confirmed_first(browser, queue, prefix, bury, redis):
    await bury("d1", "d2", "d3")
    form = [("choice", "delete selected"), ("id", "d1"), ("id", "d3"), ("id", "d1")]
    answer = await browser.post(f"/queues/{prefix}/dead/confirm", form, 200)
    assert "Delete 2 dead letters of" in seen(answer.text)
    assert (await queue.stats()).dead == 3, "nothing happened so far"
    answer = await browser.send(f"/queues/{prefix}/dead/change", fields_in(answer.text), 303)
    assert "2 deleted." in await browser.text(answer.headers["location"])
    assert await redis.zrange(f"{prefix}:queue:dlq", 0, -1) == ["d2"]


async def test_all_that_the_filters_leave(browser, queue, prefix, bury):
    await bury("a1", "a2", "a3", _sq_reason="timeout", error="slow")
    await bury("b1", _sq_reason="error", error="slow")
    form = [("choice", "requeue all"), ("reason", "timeout"), ("text", "SLOW")]
    answer = await browser.post(f"/queues/{prefix}/dead/confirm", form, 200)
    assert "Requeue 3 dead letters of" in seen(answer.text)
    assert "given up for: timeout; with the words: SLOW" in seen(answer.text)
    answer = await browser.send(f"/queues/{prefix}/dead/change", fields_in(answer.text), 303)
    assert answer.headers["location"] == f"/queues/{prefix}/dead?reason=timeout&text=SLOW&requeued=3"
    stats = await queue.stats()
    assert (stats.main, stats.dead) == (3, 1)


async def test_what_dies_after_the_question_is_left_alone(browser, queue, prefix, bury, redis):
    await bury("before")
    answer = await browser.post(f"/queues/{prefix}/dead/confirm", [("choice", "delete all")], 200)
    now = float((await redis.time())[0]) + 2
    await redis.zadd(f"{prefix}:queue:dlq", {"after": now})
    await redis.hset(f"{prefix}:msg:after", mapping={"timestamp": now})
    await redis.expire(f"{prefix}:msg:after", 60)
    await browser.send(f"/queues/{prefix}/dead/change", fields_in(answer.text), 303)
    assert await redis.zrange(f"{prefix}:queue:dlq", 0, -1) == ["after"]


async def test_a_change_takes_no_more_than_was_confirmed(browser, queue, prefix, bury, monkeypatch):
    monkeypatch.setattr(changes, "MOST", 100)
    await bury(*[f"d{n}" for n in range(250)], apart=0.01, error="x")
    for form in ([("choice", "delete all")], [("choice", "delete all"), ("text", "x")]):
        answer = await browser.post(f"/queues/{prefix}/dead/confirm", form, 200)
        assert "Delete 100 dead letters" in seen(answer.text)
        assert "There are more" in seen(answer.text)
        before = (await queue.stats()).dead
        await browser.send(f"/queues/{prefix}/dead/change", fields_in(answer.text), 303)
        assert (await queue.stats()).dead == before - 100
    await browser.post(f"/queues/{prefix}/dead/change", [("choice", "delete all"), ("began", "9e9"), ("count", "1e9")])
    assert (await queue.stats()).dead == 0, "50 were left"


async def test_nothing_to_confirm(browser, prefix, bury):
    await browser.post(f"/queues/{prefix}/dead/confirm", [("choice", "delete selected")], 422)
    answer = await browser.post(f"/queues/{prefix}/dead/confirm", [("choice", "delete all")], 200)
    assert "Nothing to delete" in seen(answer.text)


@pytest.mark.parametrize(
    "form",
    [{}, {"choice": "eat all"}, {"choice": "delete"}, {"choice": "delete all", "began": "nan", "count": "1"},
     {"choice": "delete all", "began": "1", "count": "many"}, {"choice": "delete all", "began": "1", "count": "inf"},
     {"choice": "delete all", "reason": "boredom", "began": "1", "count": "1"},
     {"choice": "delete selected", "id": "~!"}],
)  # fmt: skip
async def test_forms_that_are_none(browser, queue, prefix, bury, form):
    await bury("d1")
    await browser.post(f"/queues/{prefix}/dead/change", form, 422)
    assert (await queue.stats()).dead == 1


async def test_what_was_gone_is_told(browser, prefix, bury, redis):
    await bury("d1", "d2")
    await redis.delete(f"{prefix}:msg:d2")
    form = [("choice", "requeue selected"), *[("id", id) for id in ("d1", "d2", "d3")]]
    answer = await browser.post(f"/queues/{prefix}/dead/change", form)
    assert "1 requeued, 1 had gone meanwhile, 1 had no body any more." in await browser.text(answer.headers["location"])


# ---- edit


PAYLOAD: dict[str, Any] = {
    "sku": "A-1", "n": 7, "ratio": 0.5, "blob": b"\x00\xff", "pair": (1, 2), "none": None, "yes": True, "status": "x",
    "api_key": SECRET, "url": f"https://x/?key={SECRET}",
    "nested": {"password": SECRET, "more": [1, {"token": SECRET}]},
}  # fmt: skip


async def edit_page(browser, prefix, id="d1") -> tuple[Any, list[tuple[str, str]]]:
    page = (await browser.get(f"/queues/{prefix}/dead/edit?id={id}")).text
    assert SECRET not in page
    (text,) = re.findall(r"<textarea[^>]*>(.*?)</textarea>", page, re.DOTALL)
    return json.loads(html.unescape(text)), fields_in(page)


async def save(browser, prefix, fields, data, then="requeue", status=303):
    text = data if isinstance(data, str) else json.dumps(data)
    form = [*fields, ("data", text), ("then", then)]
    return await browser.send(f"/queues/{prefix}/dead/amend", form, status)


@pytest.fixture
async def dead(queue):
    await queue.enqueue(PAYLOAD, id="d1", ttl=100)
    await give_up(queue, f"refused {SECRET}")


async def test_an_edited_letter_keeps_what_was_hidden(browser, queue, prefix, dead):
    data, fields = await edit_page(browser, prefix)
    assert data["api_key"] == data["nested"]["password"] == "***"
    data["sku"], data["new"] = "B-2", {"deep": [1, "x"]}
    data["nested"]["more"].append("last")
    del data["n"]
    answer = await save(browser, prefix, fields, data)
    assert "1 requeued." in await browser.text(answer.headers["location"])
    message = await queue.get("d1")
    wanted = {**PAYLOAD, "sku": "B-2", "new": {"deep": [1, "x"]}}
    wanted["nested"] = {"password": SECRET, "more": [1, {"token": SECRET}, "last"]}
    del wanted["n"]
    assert message.data == wanted
    assert type(message.data["pair"]) is tuple
    assert (message.status, message.attempts) == ("queued", 0)


async def test_a_hidden_value_can_be_replaced(browser, queue, prefix, dead):
    data, fields = await edit_page(browser, prefix)
    data["api_key"] = "fresh"
    answer = await save(browser, prefix, fields, data, then="")
    assert "The payload was changed." in await browser.text(answer.headers["location"])
    (message,) = await queue.dead_letters.list()
    assert message.data == {**PAYLOAD, "api_key": "fresh"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "no JSON"),
        ("[]", "a payload is a JSON object"),
        ('{"a": "***"}', "stands for something that is not shown"),
        ('{"url": "https://y/?key=***"}', "stands for something that is not shown"),
        ('{"***": 1}', "stands for something that is not shown"),
        ('{"a": "' + "x" * (1 << 20) + '"}', "are allowed"),
        ('{"a": ' + "[" * 200 + "]" * 200 + "}", "nested deeper"),
        ('{"a": ' + "[" * 900 + "]" * 900 + "}", "nested deeper"),
        ('{"a": ' + '{"b":' * 900 + "1" + "}" * 900 + "}", "nested deeper"),
        ("[" * 100_000, "no JSON"),
    ],
)
async def test_what_cannot_be_saved_is_said_and_can_be_mended(browser, queue, prefix, dead, text, words):
    _, fields = await edit_page(browser, prefix)
    page = (await save(browser, prefix, fields, text, status=422)).text
    assert words in seen(page)
    assert html.escape(text, quote=False)[:60] in page.replace("&#34;", '"'), "what was written is still there"
    assert dict(fields_in(page))["died"] == dict(fields)["died"]
    (message,) = await queue.dead_letters.list()
    assert message.data == PAYLOAD


async def test_an_edit_of_what_has_gone(browser, queue, prefix, dead):
    data, fields = await edit_page(browser, prefix)
    await queue.dead_letters.requeue("d1")
    await browser.get(f"/queues/{prefix}/dead/edit?id=d1", 404)
    await save(browser, prefix, fields, data, status=404)
    await give_up(queue)
    page = (await save(browser, prefix, fields, {"sku": "late"}, status=422)).text
    assert "died again meanwhile" in page
    (message,) = await queue.dead_letters.list()
    assert message.data == PAYLOAD


async def test_a_letter_of_an_old_producer_stays_one(browser, queue, prefix, bury, redis):
    await bury("d1", user_id="7", count="5", items='["a"]', response_token=SECRET)
    data, fields = await edit_page(browser, prefix)
    assert data == {"user_id": "7", "count": 5, "items": ["a"], "response_token": "***"}
    await save(browser, prefix, fields, {**data, "count": 6, "items": ["a", "b"]})
    hash = await redis.hgetall(f"{prefix}:msg:d1")
    assert (hash["user_id"], hash["count"], hash["items"]) == ("7", "6", '["a","b"]')
    assert hash["response_token"] == SECRET
    assert "_sq_types" not in hash


@pytest.mark.parametrize(
    ("given", "shown", "original", "wanted"),
    [
        (["***", "b"], ["***", "b"], ["s1", "b"], ["s1", "b"]),
        (["b", "***"], ["***", "b"], ["s1", "b"], None),
        (["b"], ["***", "b"], ["s1", "b"], ["b"]),
        ([{"token": "***"}, "x", "y"], ["x", {"token": "***"}], ["x", {"token": "s"}], [{"token": "s"}, "x", "y"]),
        ({"a": 1}, {"a": True}, {"a": True}, {"a": 1}),
        ({"a": 1.0}, {"a": 1}, {"a": 1}, {"a": 1.0}),
        ({"***": 2}, {"***": 1}, {"s1": 1}, {"s1": 2}),
        ("***", "***", "s1", "s1"),
    ],
)
def test_what_was_shown_becomes_what_it_was(given, shown, original, wanted):
    if wanted is None:
        with pytest.raises(InvalidMessage):
            restored(given, shown, original)
        return
    found = restored(given, shown, original)
    assert json.dumps(found) == json.dumps(wanted)
