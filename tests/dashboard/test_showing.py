"""What the pages show: counts, workers, messages, dead letters; and that nothing hostile or secret comes through."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import re

import pytest

from cli.test_look import HOSTILE, STEERING
from dashboard.conftest import SECRET, seen
from helpers import Held, running, until, work, worker_of
from streams_queue import Reject
from streams_queue.cli.doctor.roles import PASSWORD, Role, rule
from streams_queue.dashboard import events
from streams_queue.dashboard.export import defused
from streams_queue.dashboard.reading import LETTERS, LOOKED_AT

MARKUP = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"


def rows_of(page: str) -> list[list[str]]:
    """The cells of a page's tables, row by row, without the headings."""
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    cells = [[seen(cell).strip() for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)] for row in rows]
    return [row for row in cells if row]


def links(page: str, words: str) -> list[str]:
    found = re.findall(rf'<a [^>]*href="([^"]*)"[^>]*>\s*{words}\s*</a>', page)
    return [link.replace("&amp;", "&") for link in found]


async def ids_on(browser, path: str) -> list[str]:
    return re.findall(r'name="id" value="([^"]+)"', (await browser.get(path)).text)


# ---- queues


async def test_the_overview_counts(opened, queue, prefix):
    await queue.enqueue_many([{}] * 1234)
    await queue.enqueue({}, delay=3600)
    held = Held()
    async with running(worker_of(queue, held.handle, concurrency=2)):
        await held.holds(2)
        text = await (await opened()).text("/")
        held.go.set()
        await queue.pause()
    assert f"{prefix} waiting 1,232 working 2 retry 0 scheduled 1 dead 0" in text
    assert re.search(r"oldest waits \d", text)
    assert "paused" in await (await opened()).text("/")


async def test_all_queues_of_the_database_are_found(opened, redis, queue, prefix):
    await queue.enqueue({})
    await queue.transitions.join("w1", 30)
    await redis.hset("other:meta", "schema", 1)
    await redis.zadd("old one:queue:main", {"a": 1})
    await redis.zadd("waits:queue:retry", {"a": 1})
    await redis.hset("x:msg:a:meta", mapping={"timestamp": 1})
    await redis.set("text:queue:main", "x", ex=60)
    page = (await (await opened(prefixes=None)).get("/")).text
    assert re.findall(r"<h2[^>]*><a[^>]*>([^<]*)", page) == sorted([prefix, "other", "waits"])
    await redis.delete("x:msg:a:meta")


async def test_a_database_without_queues(opened, server):
    assert "No queues yet" in await (await opened(prefixes=None)).text("/")


async def test_a_queue_that_is_not_shown(opened, queue, prefix):
    browser = await opened(prefixes=["another"])
    for path in ("", "/dead", "/messages", "/message?id=a", "/events", "/dead/export?format=csv", "/dead/edit?id=a"):
        await browser.get(f"/queues/{prefix}{path}", 404)
    await browser.post(f"/queues/{prefix}/pause", status=404)


async def test_the_queues_page_tells_who_works_on_what(opened, queue, prefix):
    await queue.enqueue({}, id="o1")
    held = Held()
    worker = worker_of(queue, held.handle)
    async with running(worker):
        await held.holds()
        page = (await (await opened()).get(f"/queues/{prefix}")).text
        held.go.set()
    host, pid, _ = worker.consumer.rsplit("-", 2)
    (row,) = [row for row in rows_of(page) if row[0] == host]
    assert row[1] == pid
    assert re.fullmatch(r"\d+\.\ds ago", row[2])
    assert re.fullmatch(r"\d+\.\ds ago", row[3])
    assert row[4:] == ["1", "o1"]
    assert ["1", "o1", "processing", "normal"] in [row[:4] for row in rows_of(page)]


async def test_the_history_grows(opened, queue, prefix):
    browser = await opened()
    await queue.enqueue_many([{}] * 7)

    async def seven() -> bool:
        page = (await browser.get(f"/queues/{prefix}")).text
        return any(row[1] == "7" for row in rows_of(page) if re.fullmatch(r"\d\d:\d\d", row[0]))

    await until(seven, what="seven messages in the history")
    page = (await browser.get(f"/queues/{prefix}")).text
    assert page.count('<svg class="chart"') == 4
    assert page.count('role="img"') == 4
    assert "has looked every few seconds since" in page


async def test_a_server_that_is_away(opened):
    browser = await opened(url="redis://127.0.0.1:1/0", prefixes=["q"])
    assert "away" in await browser.text("/")
    text = await browser.text("/queues/q/dead", 503)
    assert "Service Unavailable" in text
    browser = await opened(url="redis://:hidden-word@127.0.0.1:1/0", prefixes=None)
    text = await browser.text("/")
    assert "cannot be looked for" in text
    assert "hidden-word" not in text


async def test_a_server_that_goes_away(server, opened, queue, prefix, redis):
    """What was seen before stays, and says that it is older."""
    name = f"only_{prefix}"
    await redis.execute_command("ACL", "SETUSER", name, "on", "nopass", "~*", "&*", "+@all")
    browser = await opened(url=server.url.replace("redis://", f"redis://{name}:x@"))
    await queue.enqueue_many([{}] * 5)
    app = browser.client._transport.app
    await app._watch.get(prefix).look()
    listener = Listener(app, f"/queues/{prefix}/events")
    try:
        assert "waiting 5" in await browser.text(f"/queues/{prefix}")
        await redis.execute_command("ACL", "SETUSER", name, "-@all")
        await app._watch.get(prefix).look()
        assert "denied" in await browser.text("/")
        page = await browser.text(f"/queues/{prefix}", 500)
        assert "denied" in page
        await browser.get(f"/queues/{prefix}/dead", 500)
        await until(lambda: any(name == "away" for name, _ in listener.events), what="the listeners hear of it")
        await redis.execute_command("ACL", "SETUSER", name, "+@all")
        await until(lambda: listener.events[-1][0] == "parts", what="it is back")
        assert "waiting 5" in await browser.text(f"/queues/{prefix}")
    finally:
        await listener.close()
        await redis.execute_command("ACL", "DELUSER", name)


async def test_a_queue_without_keys_is_shown_no_more(opened, redis):
    await redis.zadd("ephemeral:queue:retry", {"a": 1})
    browser = await opened(prefixes=None)
    assert "ephemeral" in await browser.text("/")
    await redis.delete("ephemeral:queue:retry")
    watch = browser.client._transport.app._watch
    await watch._search()
    assert "ephemeral" not in await browser.text("/")


async def test_a_viewer_is_enough_to_look(server, opened, queue, prefix, bury, redis):
    """The rights that `doctor --acl viewer` prints, and a prefix, since finding queues takes SCAN."""
    await bury("d1")
    await queue.enqueue({}, id="o1")
    await redis.execute_command(
        *["nopass" if word == PASSWORD else word for word in rule(Role.VIEWER, "eye", [prefix])]
    )
    await redis.execute_command("ACL", "LOG", "RESET")
    try:
        browser = await opened(url=server.url.replace("redis://", "redis://eye:x@"), read_only=True)
        start = f"/queues/{prefix}"
        for path in (
            "/",
            start,
            f"{start}/messages",
            f"{start}/messages?user=u",
            f"{start}/message?id=o1",
            f"{start}/dead",
        ):
            await browser.get(path)
        await browser.get(f"{start}/dead/export?format=csv")
        denied = {entry["object"].partition("|")[0] for entry in await redis.acl_log()}
        assert denied <= {"client", f"{{{prefix}}}:shards"}  # whether the queue has shards, he need not know
    finally:
        await redis.execute_command("ACL", "DELUSER", "eye")


# ---- messages


async def test_a_search_by_id_leads_to_the_message(browser, queue, prefix):
    await queue.enqueue({"sku": "A-1"}, id="o1")
    answer = await browser.get(f"/queues/{prefix}/messages?id=+o1+", 303)
    text = await browser.text(answer.headers["location"])
    for words in ("o1", "Status queued", "Position 1, 0 ahead", "Stands in main", '"sku": "A-1"'):
        assert words in text, words
    assert "Nothing is known of o2" in await browser.text(f"/queues/{prefix}/messages?id=o2")
    await browser.get(f"/queues/{prefix}/message?id=o2", 404)
    await browser.get(f"/queues/{prefix}/message", 404)
    await browser.get(f"/queues/{prefix}/message?id=~%21", 422)


async def test_a_finished_message_tells_its_end(browser, queue, prefix):
    await queue.enqueue({}, id="o1")

    async def handle(message):
        return {"answer": 42, "token": SECRET}

    await work(queue, handle)
    text = await browser.text(f"/queues/{prefix}/message?id=o1")
    assert "Finished completed known for" in text
    assert '"answer": 42, "token": "***"' in text


async def test_a_search_by_user_looks_through_the_line(browser, queue, prefix):
    await queue.enqueue_many([{"user_id": f"u{n % 3}"} for n in range(9)])
    await queue.enqueue({"user_id": "u1"}, id="mine")
    page = (await browser.get(f"/queues/{prefix}/messages?user=u1")).text
    assert len(re.findall(r'<a class="id"', page)) == 4
    assert ">mine<" in page
    assert "10 messages in line were looked at" in seen(page)
    assert "None" in await browser.text(f"/queues/{prefix}/messages?user=nobody")


async def test_a_search_by_user_in_a_long_line_goes_on(browser, queue, prefix):
    await queue.enqueue_many([{"user_id": "u"}] * (LOOKED_AT + 10))
    await queue.enqueue({"user_id": "last"}, id="mine")
    page = (await browser.get(f"/queues/{prefix}/messages?user=last")).text
    assert "None so far" in seen(page)
    (further,) = links(page, "Look further")
    assert "mine" in await browser.text(further)


async def test_a_search_by_user_takes_the_queues_index(browser, queue, prefix):
    await queue.transitions.index_users()
    await queue.enqueue({"user_id": "u1"}, id="mine", ttl=60)
    assert "mine By the queue" in await browser.text(f"/queues/{prefix}/messages?user=u1")


async def test_the_line_page_by_page(browser, queue, prefix):
    await queue.enqueue_many([{}] * (LETTERS + 5))
    page = (await browser.get(f"/queues/{prefix}/messages")).text
    assert [row[0] for row in rows_of(page)][1:] == [str(n) for n in range(1, LETTERS + 1)]
    (further,) = links(page, "Next")
    page = (await browser.get(further)).text
    assert [row[0] for row in rows_of(page)][1:] == [str(n) for n in range(LETTERS + 1, LETTERS + 6)]
    assert links(page, "Next") == []


# ---- dead letters


@pytest.fixture
async def graves(bury):
    """Five of different kinds, the oldest first."""
    await bury("ancient", age=3 * 86400, _sq_reason="crash", error="a worker died", sku="A-1")
    await bury("old", age=7000, _sq_reason="timeout", error="took too long", sku="A-2")
    await bury("hour", age=3000, _sq_reason="rejected", error="No Stock", sku="A-3")
    await bury("minute", age=100, _sq_reason="error", error=f"denied {SECRET}", sku="B-4", response_token=SECRET)
    await bury("new", age=1, _sq_reason="timeout", error="took too long", sku="B-5")


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ("", ["new", "minute", "hour", "old", "ancient"]),
        ("reason=timeout", ["new", "old"]),
        ("reason=", ["new", "minute", "hour", "old", "ancient"]),
        ("older_than=1h", ["old", "ancient"]),
        ("newer_than=1h", ["new", "minute", "hour"]),
        ("older_than=5m&newer_than=1d", ["hour", "old"]),
        ("text=no+stock", ["hour"]),
        ("text=b-", ["new", "minute"]),
        ("text=b-&reason=timeout", ["new"]),
        (f"text={SECRET}", []),
        ("text=nothing+such", []),
    ],
)
async def test_dead_letters_by_reason_age_and_text(browser, graves, prefix, asked, wanted):
    assert await ids_on(browser, f"/queues/{prefix}/dead?{asked}") == wanted


@pytest.mark.parametrize(
    "asked",
    ["reason=boredom", "older_than=yesterday", "newer_than=-1h", "after=x", "after=1_~", "after=nan_", "text=%1b"],
)
async def test_filters_that_are_none(browser, prefix, asked):
    await browser.get(f"/queues/{prefix}/dead?{asked}", 422)


async def test_dead_letters_page_by_page(browser, bury, prefix):
    ids = [f"d{n:03}" for n in range(2 * LETTERS + 7)]
    await bury(*ids, apart=0.5)
    found, address = [], f"/queues/{prefix}/dead"
    for pages in range(1, 5):  # noqa: B007  (read below)
        page = (await browser.get(address)).text
        found += re.findall(r'name="id" value="([^"]+)"', page)
        if not (further := links(page, "Next")):
            break
        (address,) = further
    assert (found, pages) == (ids, 3)


async def test_a_filter_that_few_pass_has_a_way_to_go_on(browser, bury, prefix):
    await bury("needle", age=90000, error="needle")
    await bury(*[f"d{n}" for n in range(LOOKED_AT + 50)], error="hay")
    page = (await browser.get(f"/queues/{prefix}/dead?text=needle")).text
    assert "None among those" in seen(page)
    (further,) = links(page, "Look further")
    assert await ids_on(browser, further) == ["needle"]


async def test_a_hundred_thousand_dead_letters_cost_no_more_than_a_hundred(browser, bury, prefix, redis):
    """Counted in commands, those in scripts included: a page reads its own letters, and looks for its place."""
    await bury(*[f"d{n:06}" for n in range(100_000)], apart=0.001, error="hay")

    async def cost(path: str) -> tuple[str, int]:
        await redis.config_resetstat()
        page = (await browser.get(path)).text
        stats = await redis.info("commandstats")
        return page, sum(row["calls"] for name, row in stats.items() if not name.startswith("cmdstat_info"))

    page, first = await cost(f"/queues/{prefix}/dead")
    assert "100,000 dead letters" in seen(page)
    (further,) = links(page, "Next")
    page, second = await cost(further)
    assert f'value="d{LETTERS:06}"' in page
    _, filtered = await cost(f"/queues/{prefix}/dead?text=needle")
    _, overview = await cost("/")
    watching = 60  # looks that may come meanwhile
    assert first <= LETTERS + 40 + watching
    assert second <= LETTERS + 80 + watching, "and log n for where the page begins"
    assert filtered <= LOOKED_AT + 20 * 80 + watching
    assert overview <= watching


async def test_the_export_has_all_that_the_filters_leave(browser, graves, prefix):
    answer = await browser.get(f"/queues/{prefix}/dead/export?format=json&reason=timeout")
    assert [letter["id"] for letter in answer.json()] == ["new", "old"]
    assert answer.headers["content-disposition"] == f'attachment; filename="{prefix}-dead-letters.json"'
    answer = await browser.get(f"/queues/{prefix}/dead/export?format=csv")
    rows = list(csv.reader(io.StringIO(answer.text)))
    assert rows[0] == ["id", "died_at", "reason", "attempts", "error", "data"]
    assert [row[0] for row in rows[1:]] == ["new", "minute", "hour", "old", "ancient"]
    assert json.loads(rows[2][5]) == {"sku": "B-4", "response_token": "***"}
    assert SECRET not in answer.text
    await browser.get(f"/queues/{prefix}/dead/export?format=xls", 422)


# ---- what must not come through


@pytest.fixture
async def hostile(queue, redis, prefix):
    """Everything that an outsider can choose, hostile: ids, names, values, errors, counters, holders."""
    words = f"{MARKUP}{HOSTILE}=cmd|' /C calc'!A0"

    async def refuse(message):
        raise Reject(f"{words} {message.data['api_key']}")

    payload = {"user_id": words, words: words, "list": [words, {"password": SECRET}], "api_key": SECRET}
    await queue.enqueue(payload, id="bad")
    await work(queue, refuse)
    id = f"id {words}"
    body = {"timestamp": 1, "status": words, "_sq_reason": words, "error": f"{words}{SECRET}", "_sq_owner": words,
            "response_token": SECRET, "text": words}  # fmt: skip
    for where in ("main", "dlq"):
        await redis.zadd(f"{prefix}:queue:{where}", {f"{id} {where}": 1})
        await redis.hset(f"{prefix}:msg:{id} {where}", mapping=body)
        await redis.expire(f"{prefix}:msg:{id} {where}", 60)
    await redis.set(f"{prefix}:lock:{id} main", words, ex=60)
    await redis.hset(f"{prefix}:stats", words, 3)


async def test_nothing_hostile_or_secret_comes_through(browser, hostile, prefix):
    start = f"/queues/{prefix}"
    paths = ["/", start, f"{start}/messages", f"{start}/dead", f"{start}/message?id=bad", f"{start}/dead/edit?id=bad"]
    paths += [
        f"{start}/messages?user={MARKUP}%1b%E2%80%AE",
        f"{start}/messages?id={MARKUP}%1b",
        f"{start}/dead?text={MARKUP}",
    ]
    listed = (await browser.get(f"{start}/dead")).text + (await browser.get(f"{start}/messages")).text
    odd = re.findall(r"/message\?id=(~[^\"]+)", listed)
    assert len(odd) == 2
    paths += [f"{start}/message?id={id}" for id in odd]
    paths += [f"{start}/dead/export?format={kind}" for kind in ("csv", "json")]
    for path in paths:
        answer = await browser.get(path)
        assert SECRET not in answer.text, path
        assert not STEERING.search(answer.text.replace("\r\n", "\n")), path
        if "export" not in path:
            assert "<script>" not in answer.text and "<img" not in answer.text, path
    shown = await browser.text(f"{start}/message?id={odd[0]}")
    assert "<script>alert(1)</script>" in shown, "shown as text"


@pytest.mark.parametrize(
    "cell", ["=1+1", "+1", "-1", "@SUM(A1)", "  =1", "\t=1", "\r=1", "|x", "%x", "\uff1d1", '=HYPERLINK("x")']
)
def test_no_cell_is_a_formula(cell):
    assert defused(cell)[0] in "'\\"


def test_an_ordinary_cell_stays():
    assert defused("no stock: A-1") == "no stock: A-1"


async def test_an_id_of_no_encoding(browser, raw, prefix):
    id = b"\xff/../\x00%2e"
    await raw.zadd(f"{prefix}:queue:dlq", {id: 1})
    await raw.hset(b"%b:msg:%b" % (prefix.encode(), id), mapping={"timestamp": 1, "error": b"\xfe"})
    await raw.expire(b"%b:msg:%b" % (prefix.encode(), id), 60)
    (reference,) = await ids_on(browser, f"/queues/{prefix}/dead")
    await browser.get(f"/queues/{prefix}/message?id={reference}")
    await browser.get(f"/queues/{prefix}/dead/export?format=csv")
    await browser.post(f"/queues/{prefix}/dead/change", [("choice", "delete selected"), ("id", reference)])
    assert await raw.zcard(f"{prefix}:queue:dlq") == 0


# ---- live


class Listener:
    """A browser that listens: the events of a stream, as they come."""

    def __init__(self, app, path: str, query: str = "") -> None:
        self.events: list[tuple[str, dict[str, str]]] = []
        self._text = ""
        self.status = 0
        self._gone = asyncio.Event()
        scope = {
            "type": "http", "http_version": "1.1", "method": "GET", "path": path, "raw_path": path.encode(),
            "query_string": query.encode(), "root_path": "", "scheme": "http", "headers": [(b"host", b"localhost")],
            "client": ("127.0.0.1", 1), "server": ("localhost", 80), "asgi": {"version": "3.0", "spec_version": "2.4"},
        }  # fmt: skip
        self.task = asyncio.create_task(app(scope, self._receive, self._send))

    async def _receive(self):
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message):
        await asyncio.sleep(0)  # a socket lets others go first
        if message["type"] == "http.response.start":
            self.status = message["status"]
        self._text += message.get("body", b"").decode()
        *whole, self._text = self._text.split("\n\n")
        for event in whole:
            if event.startswith("event: "):
                name, data = event.split("\n")
                self.events.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))

    async def close(self) -> None:
        self._gone.set()
        self.task.cancel()
        await asyncio.wait([self.task])


async def test_pages_hear_of_changes(browser, queue, prefix):
    app = browser.client._transport.app
    everything, one = Listener(app, "/events"), Listener(app, f"/queues/{prefix}/events")
    try:
        await until(lambda: everything.events and one.events, what="the first events")
        assert set(everything.events[0][1]) == {"queues"}
        assert set(one.events[0][1]) == {"now", "pause", "charts", "workers", "head"}
        await queue.enqueue_many([{}] * 4321)
        await until(lambda: any("4,321" in str(parts) for _, parts in everything.events), what="the news")
        await until(lambda: any("4,321" in str(parts) for _, parts in one.events), what="the news")
        assert not any("pause" in parts for _, parts in one.events[1:]), "what did not change is not sent again"
    finally:
        await everything.close()
        await one.close()


async def test_a_messages_page_follows_it(browser, queue, prefix):
    app = browser.client._transport.app
    await queue.enqueue({}, id="o1")
    await browser.get("/")
    story = Listener(app, f"/queues/{prefix}/message/events", "id=o1")
    letters = Listener(app, f"/queues/{prefix}/dead/events")

    async def refuse(message):
        raise Reject("no stock")

    try:
        await until(lambda: story.events and "queued" in story.events[-1][1]["story"], what="it waits")
        await work(queue, refuse)
        await until(lambda: "no stock" in story.events[-1][1].get("story", ""), what="it died")
        await until(lambda: "1 dead letter" in letters.events[-1][1].get("total", ""), what="it is counted")
        assert "Requeue" not in story.events[-1][1].get("letter", ""), "no cookie, no button"
        await browser.get(f"/queues/{prefix}/message/events?id=~x", 422)
    finally:
        await story.close()
        await letters.close()


async def test_streams_end_with_the_dashboard(browser, prefix):
    app = browser.client._transport.app
    listener = Listener(app, f"/queues/{prefix}/events")
    await until(lambda: listener.events, what="the first event")
    await app.end_streams()
    await asyncio.wait_for(listener.task, 5)
    assert listener.status == 200


async def test_no_more_listen_than_may(browser, prefix, monkeypatch):
    """However many come at the same moment; and one that leaves makes room."""
    monkeypatch.setattr(events, "MOST_LISTENERS", 3)
    app = browser.client._transport.app
    listeners = [Listener(app, path) for path in ["/events", f"/queues/{prefix}/events"] * 5]
    await until(lambda: all(one.status for one in listeners), what="an answer to each")
    assert sorted(one.status for one in listeners) == [200] * 3 + [503] * 7
    for one in listeners:
        await one.close()
    again = Listener(app, "/events")
    await until(lambda: again.status, what="an answer")
    assert again.status == 200
    await again.close()
