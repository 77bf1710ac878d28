"""Each Lua file's header is its contract, and the Python door knows no other."""

from __future__ import annotations

import re
from importlib.resources import files
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from streams_queue import scripts, transitions
from streams_queue.answers import Failure
from streams_queue.connection import Connection
from streams_queue.keys import Keys
from streams_queue.model import TRANSITIONS, Lease
from streams_queue.scripts import SCRIPTS, Script
from streams_queue.settings import Settings
from streams_queue.transitions import Transitions
from streams_queue_migrations import door, shard_door
from transitions.tables import Queue, new

MOVING = SimpleNamespace(**{**vars(door), **vars(shard_door)})
HOMES = {
    "streams_queue": (scripts, SCRIPTS),
    "streams_queue_migrations": (MOVING, (*door.SCRIPTS, *shard_door.SCRIPTS)),
}
"""Packages with Lua files, the module that lists their scripts, and the list."""

ALL = [script for _, listed in HOMES.values() for script in listed]
BY_NAME = {script.name: script for script in ALL}
NAMES = sorted(BY_NAME)

INCLUDE = files("streams_queue") / "lua" / "include"
INCLUDES = sorted(path.name.removesuffix(".lua") for path in INCLUDE.iterdir())

_SECTION = re.compile(r"-- (?:(?P<name>KEYS|ARGV|RETURNS) +)?(?P<text>.*)")
_ARGV = re.compile(
    r"(?P<head>\(none\)|[a-z_ ]*?)"
    r"(?:,? ?(?:then )?per (?:message|entry): (?P<each>[a-z_ ]+?))?"
    r"(?:, then [a-z ]+)?(?:; .*)?"  # what follows at no fixed length, and a remark
)
_KEYS = re.compile(r"(?P<house>house(?:, then(?: per message)?: )?)?(?P<each>[a-z ]*)")


class Header(NamedTuple):
    """What stands above the code: ``name: from -> to``, KEYS, ARGV and RETURNS."""

    title: str
    sections: dict[str, str]

    @classmethod
    def of(cls, name: str) -> Header:
        lines = written(name).splitlines()
        sections, current = {"title": ""}, "title"
        for line in lines:
            match = _SECTION.fullmatch(line)
            if line.startswith("--- ") or match is None:
                break
            current = match["name"] or current
            sections[current] = f"{sections.get(current, '')} {match['text'].strip()}".strip()
        return cls(sections.pop("title"), sections)


def in_files(home: str) -> list[str]:
    """The names of a package's Lua files."""
    paths = (files(home) / "lua").iterdir()
    return sorted(path.name.removesuffix(".lua") for path in paths if path.name.endswith(".lua"))


def written(name: str) -> str:
    """The text of a script's file, nothing put in place."""
    return (files(BY_NAME[name].home) / "lua" / f"{name}.lua").read_text()


def words(text: str | None) -> tuple[str, ...]:
    return () if text in {None, "(none)"} else tuple(str(text).split())


@pytest.mark.parametrize("home", HOMES)
def test_every_file_has_its_script_and_the_other_way_round(home):
    module, listed = HOMES[home]
    assert sorted(script.name for script in listed) == in_files(home)
    assert {script.home for script in listed} == {home}
    constants = {value for value in vars(module).values() if isinstance(value, Script)}
    assert constants == set(listed)


def test_no_two_scripts_have_one_name():
    assert len(BY_NAME) == len(ALL)


def test_every_line_of_the_table_of_transitions_has_its_file():
    assert set(TRANSITIONS) <= set(in_files("streams_queue"))


@pytest.mark.parametrize("name", NAMES)
def test_a_header_says_what_its_script_says(name):
    header, script = Header.of(name), BY_NAME[name]
    assert header.title.startswith(f"{name}: ")
    if name in TRANSITIONS:
        assert "->" in header.title
    assert list(header.sections) == ["KEYS", "ARGV", "RETURNS"], "all three, in this order"

    argv = _ARGV.fullmatch(header.sections["ARGV"])
    assert argv is not None, header.sections["ARGV"]
    assert (words(argv["head"]), words(argv["each"])) == (script.head, script.each)

    keys = _KEYS.fullmatch(header.sections["KEYS"])
    assert keys is not None, header.sections["KEYS"]
    assert words(keys["each"]) == script.keys
    assert bool(keys["house"]) == ("--- include house" in written(name))
    assert header.sections["RETURNS"]


@pytest.mark.parametrize("script", ALL, ids=lambda script: script.name)
def test_every_kind_of_key_is_a_method_of_keys(script):
    if script.keys in {("lock",), ("user",), ("maintainer",), ("registry",)} or script.name == "enqueue":
        return  # their callers name the key
    for kind in script.keys:
        assert callable(getattr(Keys, kind))


def test_few_includes_each_of_them_used():
    used = {line.split()[2] for name in NAMES for line in written(name).splitlines() if line[:4] == "--- "}
    assert sorted(used) == INCLUDES
    assert len(INCLUDES) <= 16
    for include in INCLUDES:
        assert "--- include" not in (INCLUDE / f"{include}.lua").read_text(), "one level, no nesting"


@pytest.mark.parametrize("name", NAMES)
def test_what_no_script_may_do(name):
    text = BY_NAME[name].source
    assert "--- include" not in text
    calls = set(re.findall(r"(?:call|try)\('([A-Z]+)'", text))
    assert not calls & {"KEYS", "SCAN", "FLUSHALL", "FLUSHDB", "EVAL", "RENAME", "XTRIM", "XSETID"}
    assert "MAXLEN" not in text
    assert "BLOCK" not in text.replace("BLOCKED", "")
    assert "os." not in text
    if name != "update":  # there the engine's own _sq_types is written
        assert "cjson" not in text.replace("cjson.decode, body._sq_types", "")


@pytest.mark.parametrize("name", [name for name in NAMES if name not in {"lock", "unlock", "register"}])
def test_keys_are_spelt_once(name):
    """No key is glued together outside house.lua and place.lua."""
    assert "PREFIX" not in written(name)
    assert not re.search(r"':(?:msg|lock|done|queue|stream)", written(name))


@pytest.mark.parametrize("name", NAMES)
async def test_every_script_compiles_on_this_server(redis: Any, name):
    assert len(await redis.script_load(BY_NAME[name].source)) == 40


async def test_house_names_the_keys_in_the_order_in_which_they_are_sent(queue: Queue):
    """Keys.house on one side, the first lines of house.lua on the other."""
    asked = (
        "MAIN, RETRY, SCHEDULED, DLQ, STREAMS.h, STREAMS.n, STREAMS.l, STATS, META, LOST, LINES.h, LINES.l, BODILESS"
    )
    tail = f"return {{{asked}, HOUSE, PREFIX, GROUP, message_key('x'), lock_key('x'), done_key('x')}}"
    text = (INCLUDE / "house.lua").read_text() + tail
    keys = queue.keys
    assert await queue.redis.eval(text, len(keys.house), *keys.house) == [
        keys.main, keys.retry, keys.scheduled, keys.dlq, keys.streams["h"], keys.streams["n"], keys.streams["l"],
        keys.stats, keys.meta, keys.lost, keys.lines["h"], keys.lines["l"], keys.bodiless,
        len(keys.house), keys.prefix, transitions.GROUP, keys.message("x"), keys.lock("x"), keys.done("x"),
    ]  # fmt: skip


@pytest.fixture
def unconnected() -> Transitions:
    """Its first command to a server would be a RuntimeError."""
    return Transitions(Connection(Settings("redis://127.0.0.1:1/0")), Keys("t"))


@pytest.mark.parametrize("script", ALL, ids=lambda script: script.name)
async def test_a_wrong_shape_is_a_type_error_before_redis_is_reached(unconnected: Transitions, script):
    head, row = ("x",) * len(script.head), ("x",) * len(script.each)
    keys = ["k"] * len(script.keys)
    with pytest.raises(TypeError, match=f"^{script.name} takes"):
        await unconnected._run(script, (*head, "one too many"), [row], keys)
    with pytest.raises(TypeError, match=f"^{script.name} takes"):
        await unconnected._run(script, head, [row, (*row, "one too many")], keys * 2)
    with pytest.raises(TypeError, match=f"^{script.name} takes"):
        await unconnected._run(script, head, [row], [*keys, "one too many"])
    with pytest.raises(RuntimeError, match="open"):
        await unconnected._run(script, head, [row] if script.each else [], keys)


async def test_no_call_sends_more_than_500_messages(queue: Queue, monkeypatch: pytest.MonkeyPatch):
    sizes = []
    run = Transitions._run

    async def counted(self, script, head, rows=(), *more, **named):
        sizes.append(len(rows))
        return await run(self, script, head, rows, *more, **named)

    monkeypatch.setattr(Transitions, "_run", counted)
    t, ids = queue.transitions, [f"m{n}" for n in range(1001)]
    leases = [Lease(id, "n1-1", "1") for id in ids]
    failures = [Failure(lease, 1.0, "error", "oops") for lease in leases]
    assert len(await t.enqueue([new(id) for id in ids], dedup_expiry=1)) == 1001
    assert len(await t.renew("w1", leases)) == 1001
    assert len(await t.complete("w1", [(lease, b"") for lease in leases], result_ttl=1)) == 1001
    assert len(await t.retry("w1", failures, max_retries=1, dead_letter_ttl=1, dedup_expiry=1)) == 1001
    assert len(await t.dead_letter("w1", failures, dead_letter_ttl=1)) == 1001
    assert len(await t.release("w1", leases)) == 1001
    assert len(await t.positions(ids)) == 1001
    assert len(await t.watch("channel", ids)) == 1001
    assert len(await t.read(ids)) == 1001
    assert len(await t.requeue(ids, dedup_expiry=1)) == 1001
    assert len(await t.prioritise(ids, "high")) == 1001
    assert len(await t.remove(ids)) == 1001
    assert len((await t.claim("w1", 1001)).deliveries) == 0
    assert max(sizes) == 500


async def test_every_key_known_beforehand_is_declared(queue: Queue, monkeypatch: pytest.MonkeyPatch):
    """Redis Cluster finds the node by them."""
    sent: dict[str, list[str]] = {}
    send = Transitions._send

    async def recorded(self, script, keys, arguments, replicas):
        sent[script.name] = keys
        return await send(self, script, keys, arguments, replicas)

    monkeypatch.setattr(Transitions, "_send", recorded)
    t, keys = queue.transitions, queue.keys
    lease = Lease("a", "n1-1", "1")
    await t.enqueue([new("a", slot=keys.slot("k"))], dedup_expiry=1)
    await t.renew("w1", [lease])
    await t.complete("w1", [(lease, b"")], result_ttl=1)
    await t.retry("w1", [Failure(lease, 1.0, "error", "")], max_retries=1, dead_letter_ttl=1, dedup_expiry=1)
    await t.dead_letter("w1", [Failure(lease, 1.0, "error", "")], dead_letter_ttl=1)
    await t.release("w1", [lease])
    await t.requeue(["a"], dedup_expiry=1)
    await t.prioritise(["a"], "high")
    await t.watch("channel", ["a"])
    await t.update("a", [b"x", b"y"], b"")
    await t.remove(["a"])
    body, lock, done = keys.message("a"), keys.lock("a"), keys.done("a")
    assert {name: declared[len(keys.house) :] for name, declared in sent.items()} == {
        "enqueue": [body, done, keys.slot("k")],
        "renew": [body, lock],
        "complete": [body, lock, done],
        "retry": [body, lock, done],
        "dead_letter": [body, lock, done],
        "release": [body, lock],
        "requeue": [body, lock, done],
        "prioritise": [body],
        "watch": [body, done],
        "update": [body],
        "remove": [body, lock, done],
    }
    assert all(declared[: len(keys.house)] == keys.house for declared in sent.values())


async def test_large_bodies_go_in_smaller_batches(queue: Queue, monkeypatch: pytest.MonkeyPatch):
    sizes = []
    run = Transitions._run

    async def counted(self, script, head, rows=(), *more, **named):
        sizes.append(len(rows))
        return await run(self, script, head, rows, *more, **named)

    monkeypatch.setattr(Transitions, "_run", counted)
    await queue.enqueue(*[f"m{n}" for n in range(10)], text="x" * (1 << 20))
    assert sizes == [3, 3, 3, 1]


async def test_scripts_that_the_server_forgot_are_sent_again(queue: Queue):
    await queue.enqueue("a")
    await queue.redis.script_flush()
    (lease,) = await queue.claim()
    await queue.redis.script_flush()
    assert await queue.complete(lease) == "completed"
