"""Who may come in, and what is refused."""

from __future__ import annotations

import base64
import logging
import re
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount, Route

from dashboard.conftest import browsing
from streams_queue import ConfigurationError, Limits
from streams_queue.dashboard import dashboard
from streams_queue.dashboard.access import is_loopback
from streams_queue.dashboard.guard import BODY_LIMIT

USERS = {"ops": "opens-es\u00e4me", "boss": "secret-two"}


def basic(name: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


# ---- the name that was asked for


@pytest.mark.parametrize("host", ["localhost", "localhost:8470", "127.0.0.1:9", "[::1]:80", "LOCALHOST", "localhost."])
async def test_loopback_names_are_answered(browser, host):
    await browser.get("/", headers={"Host": host})


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", "evil.example:localhost", "[::1", ""],
)
async def test_other_names_are_not(browser, prefix, host):
    for path in ("/", f"/queues/{prefix}", "/static/dashboard.css", "/events"):
        await browser.get(path, 421, headers={"Host": host})


async def test_two_hosts_are_none(browser):
    await browser.get("/", 400, headers=[("Host", "localhost"), ("Host", "localhost")])


async def test_names_that_are_allowed(opened, queue):
    browser = await opened(allowed_hosts=["queues.example.org", "::2"], credentials=USERS)
    auth = basic("boss", "secret-two")
    for host in ("queues.example.org:8443", "Queues.Example.ORG", "localhost", "[::2]:1"):
        await browser.get("/", headers={"Host": host, **auth})
    await browser.get("/", 421, headers={"Host": "example.org", **auth})


@pytest.mark.parametrize("host", ["http://a", "a:80", "*", "*.example.org", "", "a b", "me@a"])
def test_hosts_that_are_none(host):
    with pytest.raises(ConfigurationError, match="allowed host"):
        dashboard(url="redis://localhost", allowed_hosts=[host], credentials=USERS)


def test_other_names_want_credentials():
    with pytest.raises(ConfigurationError, match="give credentials"):
        dashboard(url="redis://localhost", allowed_hosts=["queues.example.org"])


# ---- who asks


async def test_a_name_and_a_password(opened, queue):
    browser = await opened(credentials=USERS)
    answer = await browser.get("/", 401)
    assert answer.headers["www-authenticate"].startswith("Basic realm=")
    for name, password in USERS.items():
        await browser.get("/", headers=basic(name, password))


@pytest.mark.parametrize(
    "headers",
    [
        basic("ops", "secret-two"),
        basic("ops", ""),
        basic("", ""),
        basic("nobody", "opens-es\u00e4me"),
        {"Authorization": "Basic"},
        {"Authorization": "Basic !!!"},
        {"Authorization": "Basic " + base64.b64encode(b"\xff\xfe:x").decode()},
        {"Authorization": "Bearer " + base64.b64encode(b"ops:opens").decode()},
    ],
)
async def test_wrong_credentials(opened, queue, prefix, headers, caplog):
    browser = await opened(credentials=USERS)
    for path in ("/", f"/queues/{prefix}/dead", "/static/dashboard.js", "/events", "/nowhere"):
        await browser.get(path, 401, headers=headers)
    await browser.send(f"/queues/{prefix}/pause", [], 401, headers)
    assert not (await queue.stats()).paused
    assert any("refused GET /events of nobody (127.0.0.1): 401" in record.getMessage() for record in caplog.records)
    assert not any(password in caplog.text for password in USERS.values())


async def test_without_credentials_only_this_machine_is_answered(opened, queue):
    client: Any
    for client in (("192.0.2.7", 80), ("::ffff:192.0.2.7", 80), ("testclient", 1)):
        await (await opened(client=client)).get("/", 403)
    for client in (("::1", 80), ("127.0.0.9", 80), ("::ffff:127.0.0.1", 1), None):
        await (await opened(client=client)).get("/")


@pytest.mark.parametrize("header", ["Forwarded", "X-Forwarded-For", "X-Real-IP"])
async def test_without_credentials_no_proxy_is_answered(browser, header):
    await browser.get("/", 403, headers={header: "192.0.2.7"})


async def test_the_applications_own_login(opened, queue, prefix):
    browser = await opened(identify=lambda scope: dict(scope["headers"]).get(b"x-user", b"").decode() or None)
    await browser.get("/", 401)
    assert "ada" in await browser.text("/", headers={"X-User": "ada"})


@pytest.mark.parametrize("name", [object(), True, b"ada", {"user": "ada"}])
async def test_what_is_no_name_is_nobody(opened, queue, name):
    browser = await opened(identify=lambda _: name)
    await browser.get("/", 401)


def test_a_login_that_has_to_be_awaited_is_refused():
    async def identify(scope: Any) -> str | None:
        return None

    with pytest.raises(ConfigurationError, match="identify"):
        dashboard(url="redis://localhost", identify=identify)  # type: ignore[arg-type]


def test_its_repr_shows_no_password():
    app = dashboard(url="redis://localhost", credentials=USERS)
    assert not any(password in repr(app.access) for password in USERS.values())


@pytest.mark.parametrize("credentials", [{"": "x"}, {"a:b": "x"}, {"a": ""}])
def test_credentials_that_are_none(credentials):
    with pytest.raises(ConfigurationError, match="credentials"):
        dashboard(url="redis://localhost", credentials=credentials)


@pytest.mark.parametrize(
    ("host", "ours"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False), ("10.0.0.1", False),
     ("example.org", False), ("127.0.0.1.example.org", False)],
)  # fmt: skip
def test_what_is_loopback(host, ours):
    assert is_loopback(host) is ours


# ---- changes

CHANGES = ["pause", "resume", "dead/confirm", "dead/change", "dead/amend", "limits/change", "message/priority"]


def test_every_change_is_on_the_list():
    app = dashboard(url="redis://localhost")
    posts = {
        route.path.removeprefix("/queues/{prefix}/")
        for route in app._routes.routes
        if isinstance(route, Route) and "POST" in (route.methods or ())
    }
    assert {path for path in posts if not path.startswith("/api")} == set(CHANGES)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_a_change_is_a_post(browser, prefix, change, method):
    answer = await browser.client.request(method, f"/queues/{prefix}/{change}")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize("change", CHANGES)
async def test_a_change_wants_its_token(browser, prefix, change):
    path = f"/queues/{prefix}/{change}"
    await browser.send(path, [], 403)  # no cookie, no token
    await browser.send(path, [("csrf", "x" * 43)], 403)
    token = await browser.token()
    await browser.send(path, [], 403)  # the cookie alone, which a page elsewhere sends too
    await browser.send(path, [("csrf", "x" * 43)], 403)
    browser.client.cookies.clear()
    await browser.send(path, [("csrf", token)], 403)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:81"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost"},
        {"Origin": "http://evil.example", "Sec-Fetch-Site": "same-origin"},
    ],
)
async def test_a_change_from_another_site(browser, prefix, queue, headers):
    await browser.post(f"/queues/{prefix}/pause", status=403, headers=headers)
    assert not (await queue.stats()).paused


@pytest.mark.parametrize(
    "headers",
    [{}, {"Origin": "http://localhost"}, {"Origin": "null", "Sec-Fetch-Site": "same-origin"},
     {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}],
)  # fmt: skip
async def test_a_change_from_its_own_page(browser, prefix, queue, headers):
    await browser.post(f"/queues/{prefix}/pause", headers=headers)
    assert (await queue.stats()).paused


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x", "application/json", ""])
async def test_a_form_is_a_form(browser, prefix, kind):
    token = await browser.token()
    await browser.send(f"/queues/{prefix}/pause", [("csrf", token)], 415, {"Content-Type": kind})


@pytest.mark.parametrize("change", CHANGES)
async def test_read_only(opened, queue, prefix, bury, change):
    await bury("d1")
    browser = await opened(read_only=True)
    form = {"choice": "delete selected", "id": "d1", "died": "1", "data": "{}", "max_length": "3", "priority": "high"}
    await queue.enqueue({}, id="m1")
    answer = await browser.post(f"/queues/{prefix}/{change}", form, 403)
    assert "read-only" in answer.text
    assert (await queue.stats()).dead == 1
    assert await queue.limits() == Limits()
    for path in ("", "/dead", "/message?id=d1", "/message?id=m1", "/limits"):
        page = (await browser.get(f"/queues/{prefix}{path}")).text
        assert 'method="post"' not in page or "confirm" in page
        assert "<button" not in re.sub(r"<form[^>]*method=\"get\".*?</form>", "", page, flags=re.DOTALL)


async def test_a_request_that_is_too_large(browser, prefix):
    form = [("csrf", await browser.token()), ("data", "x" * BODY_LIMIT)]
    await browser.send(f"/queues/{prefix}/dead/amend", form, 413)

    async def chunks():
        for _ in range(BODY_LIMIT // 65536 + 2):
            yield b"x" * 65536

    answer = await browser.client.post(f"/queues/{prefix}/pause", content=chunks())
    assert answer.status_code == 413


async def test_a_request_that_breaks_off(browser, prefix, caplog):
    """It is refused like others, and no fault of the dashboard's."""
    received = iter([{"type": "http.request", "body": b"csrf", "more_body": True}, {"type": "http.disconnect"}])
    sent: list[Any] = []

    async def receive() -> Any:
        return next(received)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "http_version": "1.1", "method": "POST", "path": f"/queues/{prefix}/pause", "query_string": b"",
        "root_path": "", "scheme": "http", "headers": [(b"host", b"localhost")], "client": ("127.0.0.1", 1),
        "server": ("localhost", 80), "asgi": {"version": "3.0", "spec_version": "2.4"},
    }  # fmt: skip
    await browser.client._transport.app(scope, receive, send)
    assert sent[0]["status"] == 400
    assert "the request broke off" in caplog.text


async def test_a_form_with_too_many_fields(browser, prefix):
    form = [("csrf", await browser.token()), *[("id", "x")] * 20_001]
    await browser.send(f"/queues/{prefix}/dead/confirm", form, 422)


# ---- what every answer carries


@pytest.mark.parametrize(
    "path", ["/", "/queues/{}", "/queues/{}/dead", "/nowhere", "/static/dashboard.css", "/queues/none"]
)
async def test_headers(browser, prefix, path):
    headers = (await browser.client.get(path.format(prefix))).headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["form-action"] == policy["connect-src"] == "'self'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-opener-policy"] == headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["referrer-policy"] == "same-origin"
    assert "static" in path or headers["cache-control"] == "no-store"


async def test_refusals_carry_them_too(browser):
    headers = (await browser.client.get("/", headers={"Host": "evil.example"})).headers
    assert "content-security-policy" in headers
    assert headers["cache-control"] == "no-store"


async def test_the_cookie(opened, queue):
    browser = await opened()
    cookie = (await browser.get("/")).headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
    assert "Secure" not in cookie
    assert "set-cookie" not in (await browser.get("/")).headers, "one is enough"
    over_tls = await opened(base="https://localhost")
    assert "Secure" in (await over_tls.get("/")).headers["set-cookie"]


@pytest.mark.parametrize("path", ["/", "/queues/{}", "/queues/{}/messages", "/queues/{}/dead", "/nowhere"])
async def test_no_page_has_a_script_or_a_style_of_its_own(browser, prefix, bury, path):
    await bury("d1", error="oops")
    page = (await browser.client.get(path.format(prefix))).text
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon[a-z]+=|javascript:", page)
    assert not re.search(r"(?:src|href|action)=\"(?:https?:)?//", page), "nothing from elsewhere"


# ---- the log


async def test_each_change_leaves_one_line(opened, queue, prefix, bury, caplog):
    caplog.set_level(logging.INFO)
    await bury("d1", "d2", secret="x", text="payload-words")
    browser = await opened(credentials={"ada": "p"})
    browser.client.headers.update(basic("ada", "p"))
    await browser.post(f"/queues/{prefix}/pause")
    await browser.post(f"/queues/{prefix}/resume")
    await browser.post(f"/queues/{prefix}/dead/change", [("choice", "requeue selected"), ("id", "d1")])
    await browser.post(f"/queues/{prefix}/dead/change", [("choice", "delete selected"), ("id", "d1"), ("id", "d2")])
    lines = [record.getMessage() for record in caplog.records if record.name == "streams_queue.dashboard.audit"]
    assert lines == [
        f"pause by ada from 127.0.0.1: queue {prefix}, 0 ids: done",
        f"resume by ada from 127.0.0.1: queue {prefix}, 0 ids: done",
        f"requeue by ada from 127.0.0.1: queue {prefix}, 1 id (d1): 1 requeued",
        f"delete by ada from 127.0.0.1: queue {prefix}, 2 ids: 1 missing, 1 deleted",
    ]
    assert "payload-words" not in caplog.text


async def test_the_line_is_one_line(opened, queue, prefix, redis, caplog):
    caplog.set_level(logging.INFO)
    await redis.zadd(f"{prefix}:queue:dlq", {"a\r\nforged by root\x1b[2J": 1})
    await redis.hset(f"{prefix}:msg:a\r\nforged by root\x1b[2J", mapping={"timestamp": 1})
    await redis.expire(f"{prefix}:msg:a\r\nforged by root\x1b[2J", 60)
    browser = await opened(identify=lambda _: "eve\nforged")
    (id,) = re.findall(r'name="id" value="(~[^"]+)"', (await browser.get(f"/queues/{prefix}/dead")).text)
    await browser.post(f"/queues/{prefix}/dead/change", [("choice", "delete selected"), ("id", id)])
    (line,) = [record.getMessage() for record in caplog.records if record.name == "streams_queue.dashboard.audit"]
    assert line.isprintable()
    assert line.startswith("delete by eve\\nforged from 127.0.0.1")
    assert line.endswith("1 deleted")


async def test_mounted_apps_say_where_their_pages_are(server, prefix, queue):
    """Under any root: see also the page of the documentation, whose examples are run."""
    board: Any = dashboard(url=server.url, prefixes=[prefix])
    outer = Starlette(routes=[Mount("/ops/queues", board)])
    async with board, browsing(outer) as browser:
        answer = await browser.get("/ops/queues/")
        page = answer.text
        assert "Path=/ops/queues/;" in answer.headers["set-cookie"]
        assert f'href="/ops/queues/queues/{prefix}"' in page
        assert 'src="/ops/queues/static/dashboard.js"' in page
        await browser.get("/ops/queues/static/dashboard.css")
        await browser.get(f"/ops/queues/queues/{prefix}")
        token = str(browser.client.cookies["streams_queue_csrf"])
        answer = await browser.send(f"/ops/queues/queues/{prefix}/pause", [("csrf", token)], 303)
        assert answer.headers["location"] == f"/ops/queues/queues/{prefix}"
        assert (await queue.stats()).paused
