"""Secrets in every field of messages, in a server's address and in a log-in; and all that is ever put out, searched."""

from __future__ import annotations

import base64
import itertools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus

import httpx
import pytest

from canary import CANARY, ODD_CANARY, check, found_in
from cli.commands import Commands
from cli.conftest import PROGRAM, environment
from dashboard.serving import PREFIX, Board, serving
from helpers import worker_of
from servers import Server
from streams_queue import Queue, Reject, Retry

WORDS = [CANARY, ODD_CANARY]
SECONDS = 30
JOBS = f"""
from urllib.parse import quote, quote_plus
from streams_queue import Queue, Reject, Worker

worker = Worker(Queue({PREFIX!r}), concurrency=1, lease=2.0, retry_delay=600.0)

@worker.handler
async def handle(message):
    secret = message.data["response_token"]
    match message.data["n"]:
        case 0: return {{"access_token": secret, "text": f"with {{secret}}"}}
        case 1: raise Reject(f"refused {{secret}}")
        case 2: raise ValueError(f"GET https://example.org/{{quote(secret)}}?token={{quote_plus(secret)}}: 403")
        case 3: raise ValueError({{"password": secret}}) from KeyError(secret)
"""


@pytest.mark.parametrize("word", WORDS)
def test_each_form_is_found(word):
    forms = [word, quote(word, safe=""), quote_plus(word)]
    for before, after in itertools.product(range(4), repeat=2):
        hidden = b"\xff" * before + word.encode() + b"\xfe" * after
        forms += [base64.b64encode(hidden).decode(), base64.urlsafe_b64encode(hidden).decode()]
    for form in forms:
        assert found_in(f"some {form} more"), form
        assert found_in(b"\xff" + form.encode()), form
    assert found_in(f"{word[:-1]} {base64.b64encode(word[1:].encode()).decode()[:8]}") is None


def fields(secret: str, n: int) -> dict[str, object]:
    """A payload with a secret wherever one may stand."""
    return {
        "n": n, "user_id": f"u{n}", "response_token": secret, "Password": secret, "my_secret_word": secret,
        "OPENAI_API_KEY": secret, "text": f"say {secret} twice: {secret}", "deep": [{"tokens": [secret]}],
        "json": f'{{"secret": "{secret}"}}', "raw": secret, "headers": {"X-Token": secret, "echo": f"<{secret}>"},
        f"name {secret}": 1,
    }  # fmt: skip


@pytest.fixture
def guarded(private) -> Iterator[tuple[Server, str]]:
    """A server whose password is a secret, too, and its address with the password in it."""
    server: Server = private("--requirepass", ODD_CANARY)
    yield server, f"redis://:{quote(ODD_CANARY, safe='')}@127.0.0.1:{server.port}/0"


@pytest.fixture
async def filled(guarded):
    """Messages with secrets, waiting, scheduled, in retry, finished, dead, and some of an older program's."""
    _, url = guarded
    async with Queue(PREFIX, url=url) as queue:
        for word in WORDS:
            end = "odd" if word is ODD_CANARY else "plain"
            for n in range(4):
                await queue.enqueue(fields(word, n), id=f"m{n}-{end}", unique_key=f"{word}{n}")

        async def handle(message):
            secret = message.data["response_token"]
            match message.data["n"]:
                case 0:
                    return {"access_token": secret, "text": f"with {secret}"}
                case 1:
                    raise Reject(f"refused {secret}, {quote(secret, safe='')}, {quote_plus(secret)}")
                case 2:
                    raise Retry(600.0)
                case _:
                    raise ValueError(f"token={secret} was refused")

        await worker_of(queue, handle, max_retries=0).run(burst=True)
        for word in WORDS:
            end = "odd" if word is ODD_CANARY else "plain"
            await queue.enqueue(fields(word, 9), id=f"w-{end}")
            await queue.enqueue(fields(word, 9), id=f"s-{end}", delay=600)
        yield queue


COMMANDS = [
    *["stats", "stats --json", "peek", "peek --json", "dlq list", "dlq list --json", "dlq list --text refused"],
    *["doctor", "doctor --json", "verify", "verify --json", "position w-odd", "dlq requeue --all --dry-run"],
    *["enqueue {"],
    *[f"{command} {id}" for command in ("show", "show --json") for id in ("m0-odd", "m2-odd", "w-odd", "w-plain")],
    *[f"{command} {id}" for command in ("dlq show", "dlq show --json") for id in ("m1-odd", "m3-odd", "m3-plain")],
    *["dlq requeue m1-odd", "dlq delete --yes m3-odd", "remove --yes s-odd", "pause", "resume"],
]  # fmt: skip


async def test_commands(guarded, filled):
    server, url = guarded
    wrong = url.replace(quote(ODD_CANARY, safe=""), quote(CANARY, safe=""))
    with Commands() as commands:
        for command in COMMANDS:
            for address in (url, wrong):
                environ = environment(server, PREFIX, STREAMS_QUEUE_URL=address)
                done = commands.run(command.split(), environ, b"")
                check(done.out + done.err, command)
                assert (done.code == 0) == (address == url) or command in {"doctor", "doctor --json", "enqueue {"}, done
        for address in ("redis://:{}@127.0.0.1:1", "redis://:{}@[", "rediss://u:{}@127.0.0.1:x/0", "http://:{}@a/"):
            for word in WORDS:
                bad = address.format(quote(word, safe=""))
                done = commands.run(["stats", "--url", bad], environment(server, PREFIX), b"")
                assert done.code != 0
                check(done.out + done.err, bad)


async def test_a_workers_log(guarded, filled, tmp_path):
    (tmp_path / "jobs.py").write_text(JOBS)
    for n, word in itertools.product(range(4), WORDS):
        await filled.enqueue(fields(word, n))
    for form in ("text", "json"):
        check(log_of_a_worker(guarded[1], tmp_path, form), f"the log as {form}")


def log_of_a_worker(url: str, folder: Path, form: str) -> bytes:
    done = subprocess.run(
        [*PROGRAM, "worker", "jobs:worker", "--burst", "--log-payload", "--log-level", "debug", "--log-format", form],
        cwd=folder, env=os.environ | {"STREAMS_QUEUE_URL": url}, capture_output=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done
    return done.stdout + done.stderr


def _pages(board: Board) -> Iterator[str]:
    start = f"queues/{PREFIX}"
    yield from ("", start, f"{start}/messages", f"{start}/messages?user=u9", f"{start}/dead", "metrics")
    yield from (f"{start}/dead?text=refused", f"{start}/dead/export?format=csv", f"{start}/dead/export?format=json")
    for id in ("m0", "m1", "m2", "m3", "w", "s"):
        for end in ("odd", "plain"):
            yield f"{start}/message?id={id}-{end}"
            yield f"api/{start}/messages/{id}-{end}"
    yield from (f"{start}/dead/edit?id=m1-odd", f"{start}/dead/edit?id=m3-plain")
    for path in ("", "/load", "/history", "/workers", "/line", "/messages?user=u9", "/dead-letters"):
        yield f"api/{start}{path}"
    yield from ("api/queues", "api/openapi.json")


async def test_pages_calls_exports_and_the_dashboards_log(guarded, filled):
    server, url = guarded
    login = {"STREAMS_QUEUE_URL": url, "STREAMS_QUEUE_DASHBOARD_PASSWORD": ODD_CANARY}
    with serving(server, "--log-level=debug", **login) as board:
        async with httpx.AsyncClient(base_url=board.address, auth=("admin", ODD_CANARY), timeout=SECONDS) as client:
            for path in _pages(board):
                answer = await client.get(f"/{path}")
                assert answer.status_code == 200, (path, answer.text)
                check(answer.content + repr(answer.headers).encode(), path)
            page = await client.get(f"/queues/{PREFIX}/dead/edit?id=m1-odd")
            csrf = {"csrf": client.cookies["streams_queue_csrf"]}
            start = f"/queues/{PREFIX}/dead"
            for path, form in {
                f"{start}/amend": {"id": "m1-odd", "died": "0", "data": page.text},
                f"{start}/confirm": {"choice": "delete all"},
                f"{start}/change": {"choice": "requeue selected", "id": "m1-odd"},
            }.items():
                answer = await client.post(path, data=form | csrf)
                check(answer.content, path)
            async with client.stream("GET", f"/queues/{PREFIX}/events") as events:
                async for line in events.aiter_lines():
                    check(line, "the events")
                    if line.startswith("data:"):
                        break
            stranger = await client.get("/", auth=("admin", CANARY))
            assert stranger.status_code == 401
            check(stranger.content)
            address = await client.get(f"/?token={quote(ODD_CANARY)}", auth=("a", ODD_CANARY))
            check(address.content)
        check(board.log, "the dashboard's log")
