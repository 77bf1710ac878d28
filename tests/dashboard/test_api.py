"""The JSON API: what it answers, that its description fits, and that its changes are guarded."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import jsonschema
import pytest

from cli.test_look import HOSTILE
from dashboard.conftest import SECRET, Browser
from helpers import Held, running, work, worker_of
from streams_queue import Reject
from streams_queue.dashboard.reading import LETTERS


class Caller:
    """A program that asks, and holds each answer against the description."""

    def __init__(self, browser: Browser, prefix: str) -> None:
        self.browser = browser
        self.start = f"/api/queues/{prefix}"
        self.described: Any = None

    async def get(self, path: str = "", status: int = 200, **options: Any) -> Any:
        answer = await self.browser.client.get(self._whole(path), **options)
        return await self._checked("get", path, answer, status)

    async def post(self, path: str, body: Any = None, status: int = 200, **headers: str) -> Any:
        token = (await self.get("/api/token"))["token"]
        content = body if isinstance(body, (str, bytes)) else json.dumps(body if body is not None else {})
        told = {"Content-Type": "application/json", "X-CSRF-Token": token} | headers
        answer = await self.browser.client.post(self._whole(path), content=content, headers=told)
        return await self._checked("post", path, answer, status)

    def _whole(self, path: str) -> str:
        return path if path.startswith("/api") else self.start + path

    async def _checked(self, method: str, path: str, answer: Any, status: int) -> Any:
        assert answer.status_code == status, answer.text
        if self.described is None:
            self.described = (await self.browser.client.get("/api/openapi.json")).json()
        address = re.sub(r"/messages/[^/?]+", "/messages/{id}", self._whole(path).partition("?")[0])
        address = address.replace(self.start, "/api/queues/{prefix}")
        responses = self.described["paths"][address][method]["responses"]
        said = responses[str(status)]
        if "$ref" in said:
            said = self.described["components"]["responses"][said["$ref"].rpartition("/")[2]]
        kind = answer.headers["content-type"]
        schema = {**said["content"][kind]["schema"], "components": self.described["components"]}
        jsonschema.Draft202012Validator(schema).validate(answer.json())
        return answer.json()


@pytest.fixture
async def api(browser, prefix) -> Caller:
    return Caller(browser, prefix)


async def test_the_description(browser):
    described = (await browser.get("/api/openapi.json")).json()
    assert described["openapi"] == "3.1.0"
    ids = [operation["operationId"] for path in described["paths"].values() for operation in path.values()]
    assert len(ids) == len(set(ids)) == 19
    assert all(operation["summary"] for path in described["paths"].values() for operation in path.values())
    for schema in described["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    refs = set(re.findall(r'"\$ref": "#/components/(\w+)/(\w+)"', json.dumps(described)))
    for kind, name in refs:
        assert name in described["components"][kind]


async def test_queues_and_their_load(api, queue, prefix):
    await queue.enqueue_many([{}] * 3)
    held = Held()
    async with running(worker_of(queue, held.handle, concurrency=1)):
        await held.holds()
        load = await api.get("/load")
        workers = (await api.get("/workers"))["workers"]
        detail = await api.get()
        held.go.set()
    assert (load["queue"], load["waiting"], load["processing"], load["workers"]) == (prefix, 2, 1, 1)
    assert load["slots"] is None
    assert load["oldest_waiting_seconds"] > 0
    (worker,) = workers
    assert (worker["holds"], len(worker["held"]), worker["held"][0]["delivery"]) == (1, 1, 1)
    assert worker["pid"] > 0
    assert detail["summary"]["counts"]["waiting"] == 2
    assert detail["counters"]["total_messages"] == 3
    (one,) = (await api.get("/api/queues"))["queues"]
    assert one["queue"] == prefix
    assert (await api.get("/history"))["minutes"][-1]["samples"] >= 1


async def test_the_line_and_a_message(api, queue):
    await queue.enqueue_many([{"user_id": "u1", "token": SECRET}] * 3)
    first = await api.get("/line?limit=2")
    second = await api.get(f"/line?limit=2&after={first['next']}")
    assert [row["position"] for row in first["messages"] + second["messages"]] == [1, 2, 3]
    assert second["next"] is None
    story = await api.get(f"/messages/{first['messages'][0]['id']}")
    assert story["data"] == {"user_id": "u1", "token": "***"}
    assert len((await api.get("/messages?user=u1"))["ids"]) == 3
    await api.get("/messages/nonesuch", 404)


async def test_a_user_with_more_messages_than_a_page(api, queue):
    await queue.transitions.index_users()
    receipts = await queue.enqueue_many([{"user_id": "u1"}] * (2 * LETTERS + 1), ttl=100)
    first = await api.get("/messages?user=u1")
    second = await api.get(f"/messages?user=u1&after={first['next']}")
    last = await api.get(f"/messages?user=u1&after={second['next']}")
    assert [page["next"] is None for page in (first, second, last)] == [False, False, True]
    assert first["ids"] + second["ids"] + last["ids"] == [receipt.id for receipt in receipts]


async def test_a_finished_message(api, queue):
    await queue.enqueue({}, id="o1")

    async def handle(message):
        return [1, {"secret": SECRET}]

    await work(queue, handle)
    assert (await api.get("/messages/o1"))["end"]["result"] == [1, {"secret": "***"}]


async def test_dead_letters(api, queue, bury):
    await bury(*[f"d{n}" for n in range(7)], apart=100, error=f"no {SECRET}", password=SECRET)
    await bury("late", _sq_reason="timeout")
    first = await api.get("/dead-letters?limit=4&reason=error")
    second = await api.get(f"/dead-letters?limit=4&reason=error&after={first['next']}")
    assert [letter["id"] for letter in first["letters"] + second["letters"]] == [f"d{n}" for n in range(7)]
    assert first["letters"][0]["error"] == "no ***"
    assert [letter["id"] for letter in (await api.get("/dead-letters?newer_than=150s&text=no"))["letters"]] == [
        "d0",
        "d1",
    ]
    assert len((await api.get("/dead-letters"))["letters"]) == 8 < LETTERS


@pytest.mark.parametrize(
    "path",
    ["/line?limit=0", "/line?limit=101", "/line?limit=many", "/line?after=x", "/line?unknown=1",
     "/line?limit=1&limit=2", "/messages", "/messages?user=", "/dead-letters?reason=boredom",
     "/dead-letters?older_than=x", "/messages/~!"],
)  # fmt: skip
async def test_questions_that_are_none(api, path):
    problem = await api.get(path, 422)
    assert problem["status"] == 422
    assert problem["detail"]


async def test_changes(api, queue, bury):
    await bury("d1", "d2", "d3")
    done = await api.post("/dead-letters/requeue", {"ids": ["d1", "none", "d1"]})
    assert done["outcomes"] == [{"id": "d1", "outcome": "requeued"}, {"id": "none", "outcome": "missing"}]
    done = await api.post("/dead-letters/delete", {"ids": ["d2"]})
    assert done["outcomes"] == [{"id": "d2", "outcome": "deleted"}]
    assert await api.post("/pause") == {"paused": True}
    assert (await queue.stats()).paused
    assert await api.post("/resume", "") == {"paused": False}
    assert [letter.id for letter in await queue.dead_letters.list()] == ["d3"]


async def test_an_amendment(api, queue):
    await queue.enqueue({"sku": "A", "api_key": SECRET}, id="d1")

    async def refuse(message):
        raise Reject("no")

    await work(queue, refuse)
    (letter,) = (await api.get("/dead-letters"))["letters"]
    body = {"id": "d1", "data": {"sku": "B", "api_key": "***"}, "died_at": letter["died_at"]}
    await api.post("/dead-letters/amend", {**body, "died_at": 1.5}, 409)
    assert await api.post("/dead-letters/amend", body) == {"id": "d1", "requeued": False}
    assert await api.post("/dead-letters/amend", {**body, "requeue": True}) == {"id": "d1", "requeued": True}
    assert (await queue.get("d1")).data == {"sku": "B", "api_key": SECRET}
    await api.post("/dead-letters/amend", body, 404)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/dead-letters/requeue", {}), ("/dead-letters/requeue", {"ids": []}), ("/dead-letters/requeue", {"ids": [""]}),
        ("/dead-letters/requeue", {"ids": "d1"}), ("/dead-letters/requeue", {"ids": ["d1"], "more": 1}),
        ("/dead-letters/requeue", "{"), ("/dead-letters/requeue", ""), ("/dead-letters/requeue", '{"ids":["\\ud800"]}'),
        ("/dead-letters/delete", b"\xff"), ("/dead-letters/amend", {"id": "d1"}), ("/pause", "[]"),
        ("/pause", {"a": 1}), ("/dead-letters/requeue", "[" * 100_000),
    ],
)  # fmt: skip
async def test_changes_that_are_none(api, queue, bury, path, body):
    await bury("d1")
    await api.post(path, body, 422)
    stats = await queue.stats()
    assert (stats.dead, stats.paused) == (1, False)


async def test_a_change_wants_its_token_and_json(api, browser, prefix, queue):
    await api.post("/pause", status=403, **{"X-CSRF-Token": "x"})
    await api.post("/pause", status=415, **{"Content-Type": "text/plain"})
    await api.post("/pause", status=415, **{"Content-Type": "application/x-www-form-urlencoded"})
    await api.post("/pause", status=403, Origin="http://evil.example")
    browser.client.cookies.clear()
    json_kind = {"Content-Type": "application/json"}
    assert (
        await browser.client.post(f"/api/queues/{prefix}/pause", content="{}", headers=json_kind)
    ).status_code == 403
    assert not (await queue.stats()).paused


async def test_a_password_is_enough(opened, queue, prefix):
    browser = await opened(credentials={"ada": "p"})
    answer = await browser.client.get("/api/queues")
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"
    assert "www-authenticate" in answer.headers
    headers = {"Authorization": "Basic " + base64.b64encode(b"ada:p").decode(), "Content-Type": "application/json"}
    answer = await browser.client.post(f"/api/queues/{prefix}/pause", headers=headers)
    assert answer.json() == {"paused": True}


async def test_read_only_is_for_programs_too(opened, queue, prefix, bury):
    await bury("d1")
    caller = Caller(await opened(read_only=True), prefix)
    for path in ("/pause", "/resume", "/dead-letters/requeue", "/dead-letters/delete", "/dead-letters/amend"):
        await caller.post(path, {"ids": ["d1"]}, 403)
    assert (await queue.stats()).dead == 1


async def test_what_is_not_there(api, browser):
    assert (await browser.client.get("/api/nothing")).headers["content-type"] == "application/problem+json"
    for path in ("/load", "/history", "/line", "/workers", "/dead-letters", "/messages/a"):
        answer = await browser.client.get(f"/api/queues/none{path}")
        assert (answer.status_code, answer.json()["title"]) == (404, "Not Found")
    answer = await browser.client.put("/api/queues")
    assert answer.status_code == 405
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD"}


async def test_hostile_words_stay_words(api, queue, redis, prefix):
    id = f"<script>{HOSTILE}"
    await redis.zadd(f"{prefix}:queue:main", {id: 1, "odd": "inf"})
    await redis.zadd(f"{prefix}:queue:dlq", {id: "-inf"})
    await redis.hset(f"{prefix}:msg:{id}", mapping={"timestamp": "inf", "status": HOSTILE, "_sq_reason": HOSTILE,
                     "retry_count": "1e300", "_sq_deliveries": "nan"})  # fmt: skip
    await redis.expire(f"{prefix}:msg:{id}", 60)
    line = await api.get("/line")
    assert line["messages"][0]["id"] == id
    letters = await api.get("/dead-letters")
    assert letters["letters"][0]["died_at"] is None
    answer = await api.browser.client.get(f"{api.start}/line")
    assert answer.text.isascii()
    assert answer.text.isprintable()


async def test_metrics_are_those_of_the_queues_shown(browser, queue, prefix):
    await queue.enqueue({})
    answer = await browser.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert f'queue="{prefix}"' in answer.text
    assert "streams_queue_messages_enqueued_total" in answer.text
