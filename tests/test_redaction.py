"""No secret in a log, a repr, or the text of an error."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from helpers import Handler, queue_at, work
from streams_queue import HandlerFailed, Queue, Reject
from streams_queue.redaction import cleared, is_secret, redacted, scrubbed

TOKEN = "s3cret-0123456789"


@pytest.fixture
async def queue(server, prefix) -> AsyncIterator[Queue[Any]]:
    async with queue_at(server, prefix) as queue:
        yield queue


@pytest.mark.parametrize(
    "name",
    [
        "token",
        "response_token",
        "Bot_Token_2",
        "PASSWORD",
        "db_password",
        "client_secret",
        "api_key",
        "x_API_KEYs",
        "apiKey",
        "X-Api-Key",
    ],
)
def test_names_of_secrets(name):
    assert is_secret(name)


@pytest.mark.parametrize("name", ["user_id", "key", "message", "pass", ""])
def test_other_names(name):
    assert not is_secret(name)


def test_redacted_all_the_way_down():
    value = {"a": [{"token": TOKEN, "b": ({"password": [TOKEN]},)}], "secret": {"x": TOKEN}, 5: {"c": 1}}
    assert redacted(value) == {"a": [{"token": "***", "b": [{"password": "***"}]}], "secret": "***", 5: {"c": 1}}


class Login(msgspec.Struct):
    user: str
    password: str


class Job(msgspec.Struct):
    login: Login
    response_token: str


SECRETS: dict[str, Any] = {
    "a field": {"response_token": TOKEN},
    "within a dict": {"config": {"auth": [{"password": TOKEN}]}},
    "a list of them": {"tokens": ["other", TOKEN]},
    "in bytes": {"token": TOKEN.encode()},
    "with awkward characters": {"token": f"{TOKEN}\n'\"\\é"},
    "a number": {"api_key": 9876543210123},
}


@pytest.mark.parametrize("payload", SECRETS.values(), ids=SECRETS.keys())
@pytest.mark.parametrize("how", ["raise", "repr", "reject", "chained"])
async def test_a_secret_that_a_handler_raises_is_nowhere_to_be_read(queue, caplog, redis, prefix, payload, how):
    caplog.set_level(logging.DEBUG)
    shown: list[str] = []

    def dig(value: Any) -> Any:
        """The secret within the payload."""
        if isinstance(value, dict):
            value = list(value.values())
        return dig(value[-1]) if isinstance(value, list) else value

    async def handle(message):
        shown.append(repr(message))
        shown.append(f"{message}")
        secret = dig(message.data)
        match how:
            case "raise":
                raise ValueError(f"cannot log in with {secret}")
            case "repr":
                raise ValueError(f"cannot log in with {message.data!r}")
            case "reject":
                raise Reject(f"bad {secret!r}")
            case "chained":
                raise ValueError("no") from KeyError(secret)

    id = (await queue.enqueue(payload)).id
    await work(queue, handle, max_retries=1)
    with pytest.raises(HandlerFailed) as failure:
        await queue.result(id)
    letters = await queue.dead_letters.list()
    stored = await redis.hgetall(f"{prefix}:msg:{id}")
    shown += [caplog.text, repr(letters), str(failure.value), repr(failure.value)]
    shown += [letter.error or "" for letter in letters]
    shown += [stored["error"], stored.get("last_error", "")]
    core = "9876543210123" if "api_key" in payload else TOKEN
    assert [text for text in shown if core in text] == []


async def test_a_typed_payload(server, prefix, caplog):
    caplog.set_level(logging.DEBUG)

    async def handle(message):
        assert message.data.login.password == TOKEN
        raise ValueError(repr(message.data))

    async with queue_at(server, prefix, payload=Job) as queue:
        await queue.enqueue(Job(Login("me", TOKEN), "t-" + TOKEN))
        await work(queue, handle, max_retries=0)
        (letter,) = await queue.dead_letters.list()
    assert TOKEN not in caplog.text + repr(letter) + (letter.error or "")
    assert "me" in repr(letter)


async def test_an_undecodable_body(server, prefix, caplog, redis):
    async with queue_at(server, prefix, payload=Job) as queue:
        id = (await queue.enqueue(Job(Login("me", TOKEN), "t-" + TOKEN))).id
        await redis.hset(f"{prefix}:msg:{id}", "login", f'{{"password": "{TOKEN}"}}')
        await work(queue, Handler().handle)
        (letter,) = await queue.dead_letters.list()
    assert letter.reason == "undecodable"
    assert TOKEN not in caplog.text + repr(letter) + (letter.error or "")


@pytest.mark.parametrize(
    "text",
    [
        f'{{"password": "{TOKEN}"}}',
        f' \n[{{"a": {{"token": "{TOKEN}"}}}}]',
        json.dumps(json.dumps({"api_key": TOKEN})),
        f'{{"secret": "{TOKEN}"}}'.encode(),
    ],
    ids=["an object", "after white space", "as a JSON string", "in bytes"],
)
def test_json_within_a_text(text):
    shown = cleared({"body": text, "note": f"it was {TOKEN}"}, {"body": text})
    assert TOKEN not in repr(shown)
    assert "***" in shown["body"]


def test_short_secrets_do_not_blot_out_the_text():
    assert (
        scrubbed("True, an error in 1", {"token": 1, "password": "", "secret": ["an", True]}) == "True, an error in 1"
    )
