"""What `doctor` says of permissions, and the rights it prints for each role: tried on every kind of server."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import redis

import servers
import streams_queue
from cli.conftest import Run
from helpers import until, work, worker_of
from streams_queue import (
    ConfigurationError,
    HandlerFailed,
    Limits,
    Queue,
    QueueUnavailable,
    Reject,
    ShardedQueue,
)
from streams_queue.cli.doctor.access import look_at_access
from streams_queue.cli.doctor.check import Check
from streams_queue.cli.doctor.roles import (
    _BESIDE,
    _TO_CONNECT,
    ALL_SCRIPTS,
    PASSWORD,
    READS,
    Role,
    commands_of,
    of_shards,
    rule,
)
from streams_queue.connection import Connection
from streams_queue.dashboard import reading
from streams_queue.letters import Wanted
from streams_queue.named import NamedQueue
from streams_queue.settings import Settings
from streams_queue.story import story_of
from streams_queue.transitions import Transitions
from streams_queue_migrations import apply, reshard, roll_back, verify
from streams_queue_migrations.door import Door

KINDS = [name for name in servers.NAMES if name != "testcontainers"]
SECRET = "s"


def let_in(server: servers.Server, role: Role, *prefixes: str, user: str = "u") -> str:
    """Make such a user by the printed rule; the URL that he comes by."""
    words = [f">{SECRET}" if word == PASSWORD else word for word in rule(role, user, prefixes)]
    with server.sync_client() as client:
        client.execute_command(*words)
        client.acl_log_reset()
    return server.url.replace("://", f"://{user}:{SECRET}@")


def denials(server: servers.Server) -> set[str]:
    """What was denied since; what redis-py says of itself left out."""
    with server.sync_client() as client:
        return {entry["object"].partition("|")[0] for entry in client.acl_log()} - {"client"}


async def looked_at(url: str, prefix: str = "q", role: Role | None = None) -> Check:
    connection = Connection(Settings(url, 2.0))
    await connection.open()
    try:
        return (await look_at_access(connection, prefix, role))[0]
    finally:
        await connection.close()


@pytest.fixture(params=KINDS)
def server(request, private) -> servers.Server:
    """Every kind, one's own: users are not swept up between tests."""
    started: servers.Server = private(name=request.param)
    return started


# ---- what the check finds


@pytest.mark.parametrize("role", Role)
async def test_the_rule_of_a_role_is_enough_for_the_check(server, role):
    url = let_in(server, role, "q")
    found = await looked_at(url, role=role)
    assert found.verdict == "ok", found
    with server.sync_client() as client:
        assert client.keys("*") == []


async def test_each_permission_of_a_worker_is_found_by_its_name(server):
    with server.sync_client() as client:
        for command in sorted(commands_of(Role.WORKER) - {"PING", "COMMAND", "EVAL", "EVALSHA"}):
            words = [">s" if word == PASSWORD else word for word in rule(Role.WORKER, "u", ["q"])]
            client.execute_command(*(word for word in words if word != f"+{command.lower()}"))
            found = await looked_at(server.url.replace("://", "://u:s@"), role=Role.WORKER)
            assert found.verdict == "danger", command
            assert re.search(rf"\b{command}\b", found.reason), f"{command}: {found.reason}"
            assert f"+{command.lower()}" in found.remedy
        assert client.keys("*") == []


async def test_the_remedy_mends_it(server):
    with server.sync_client() as client:
        client.execute_command(
            "ACL", "SETUSER", "u", "reset", "on", ">s", "~other:*", "resetchannels", "+@all", "-xack", "-xautoclaim"
        )
        url = server.url.replace("://", "://u:s@")
        for _ in range(2):  # before it may touch the keys, some commands cannot be asked for
            found = await looked_at(url, role=Role.WORKER)
            if found.verdict == "ok":
                break
            command, _, _ = found.remedy.partition(";")
            client.execute_command(*shlex.split(command)[1:])
    assert (await looked_at(url, role=Role.WORKER)).verdict == "ok"


async def test_keys_and_channels(server):
    with server.sync_client() as client:
        for rights, missing in ((["~q:*", "resetchannels"], "&q:*"), (["~other:*", "allchannels"], "~q:*")):
            client.execute_command("ACL", "SETUSER", "u", "reset", "on", ">s", *rights, "+@all")
            found = await looked_at(server.url.replace("://", "://u:s@"), role=Role.WORKER)
            assert found.verdict == "danger" and found.reason.endswith(f"needs {missing}."), found.reason


async def test_a_user_whose_role_nobody_named(server):
    found = await looked_at(let_in(server, Role.VIEWER, "q"))
    assert found.verdict == "warning" and "what a viewer does, not more" in found.reason
    assert "--role viewer" in found.remedy
    found = await looked_at(server.url)
    assert found.verdict == "ok"


async def test_every_script_is_run(private, monkeypatch):
    sent, send = set(), Transitions._send

    async def recorded(self, script, *more):
        answer = await send(self, script, *more)
        sent.add(script)
        return answer

    monkeypatch.setattr(Transitions, "_send", recorded)
    assert (await looked_at(private().url)).verdict == "ok"
    assert sent == set(ALL_SCRIPTS)


async def test_nothing_is_written_that_could_not_be_taken_away(server):
    with server.sync_client() as client:
        client.execute_command("ACL", "SETUSER", "u", "reset", "on", ">s", "~*", "allchannels", "+@all", "-del")
        found = await looked_at(server.url.replace("://", "://u:s@"), role=Role.WORKER)
        assert client.keys("*") == []
    assert found.verdict == "danger" and found.reason.endswith("needs DEL.")


async def test_a_prefix_that_leaves_no_room(private):
    found = await looked_at(private().url, "q" * 120)
    assert found.verdict == "unknown"


async def test_a_full_server_is_not_a_denial(private):
    server = private()
    with server.sync_client() as client:
        client.config_set("maxmemory", 1)
    with pytest.raises(QueueUnavailable):
        await looked_at(server.url)
    with server.sync_client() as client:
        assert client.keys("*") == []


# ---- what the roles may do, and may not


async def denied(*acts: Callable[[], Awaitable[Any]]) -> None:
    for act in acts:
        with pytest.raises(ConfigurationError, match="denied access"):
            await act()


async def filled(server: servers.Server) -> None:
    """A queue q with one message waiting and one dead letter, and another queue, other."""
    async with Queue("q", url=server.url) as queue:
        await queue.enqueue({}, id="dead")

        async def handle(message):
            raise Reject("no")

        await worker_of(queue, handle).run(burst=True)
        await queue.enqueue({}, id="waits")
    async with Queue("other", url=server.url) as other:
        await other.enqueue({"secret": "of others"}, id="o1")


async def others_are_out_of_reach(url: str) -> None:
    other: Queue[Any] = Queue("other", url=url)
    await denied(other.open)
    other.keys.meta = "q:meta"  # as somebody would who wants to go on
    async with other:
        await denied(lambda: other.get("o1"), lambda: other.enqueue({}), other.stats, lambda: other.remove("o1"))
        with pytest.raises(redis.exceptions.NoPermissionError):
            await other.connection.client.execute_command("HGETALL", "other:msg:o1")
        with pytest.raises(redis.exceptions.NoPermissionError):
            await other.connection.client.execute_command("PUBLISH", "other:events:x", "x")


async def test_a_producer(server):
    await filled(server)
    url = let_in(server, Role.PRODUCER, "q")
    async with Queue("q", url=server.url) as theirs, Queue("q", url=url, ttl=60) as queue:

        async def handle(message):
            return message.data["n"]

        worker = worker_of(theirs, handle)
        working = asyncio.create_task(worker.run())
        first = await queue.enqueue({"n": 1}, unique_key="k", priority="high", ttl=60)
        assert await queue.result(first.id, timeout=10) == 1
        worker.stop()
        await working
        later, *_ = await queue.enqueue_many([{"n": 2}, {"n": 3}], delay=60)
        assert await queue.position(later.id) and await queue.ahead(later.id) is not None
        assert await queue.update(later.id, {"n": 4})
        found = await queue.get(later.id)
        assert found is not None and found.data["n"] == 4
        assert await queue.length() == 3 and (await queue.stats()).scheduled == 2
        assert await queue.remove(later.id)
        with pytest.raises(HandlerFailed):
            await queue.result("dead", timeout=10)
        with pytest.raises(QueueUnavailable, match="0 of 1 replicas"):
            await queue.enqueue({}, replicas=1)
        assert denials(server) == set()
        await denied(
            lambda: queue.transitions.join("w", 30.0), lambda: queue.transitions.claim("w", 1),
            queue.dead_letters.list, queue.resume,
        )  # fmt: skip
    await others_are_out_of_reach(url)


async def test_a_worker(server):
    url = let_in(server, Role.WORKER, "q")
    queue: Queue[Any]
    async with Queue("q", url=url, ttl=60) as queue:
        attempts: list[str] = []

        async def handle(message):
            attempts.append(message.id)
            if message.id == "again" and attempts.count("again") == 1:
                raise ValueError("once")
            if message.id == "dies":
                raise Reject("as it asked for")
            if message.id == "lost" and attempts.count("lost") == 1:
                with server.sync_client() as client:
                    client.delete("q:lock:lost")
                await asyncio.sleep(20)
            if message.id == "parent":
                await queue.enqueue({}, id="child")

        worker = worker_of(queue, handle, retry_delay=0.01)
        working = asyncio.create_task(worker.run())
        for id in ("again", "dies", "lost", "parent"):
            await queue.enqueue({}, id=id, delay=0.01, priority="low")
        with server.sync_client() as client:
            client.hset("q:msg:added", mapping={"timestamp": "1", "status": "queued"})
            client.zadd("q:queue:main", {"added": 10**9})
        await queue.enqueue({}, id="added-now")
        for id in ("again", "lost", "parent", "child"):
            assert await queue.result(id, timeout=20) is None
        with pytest.raises(HandlerFailed):
            await queue.result("dies", timeout=10)
        await until(lambda: "added" in attempts, 15)
        worker.stop()
        await working
        assert denials(server) - {"config"} == set()
        await denied(lambda: queue.transitions.dead_letters(0, 1))
    await others_are_out_of_reach(url)


async def test_a_maintainer(server):
    await filled(server)
    url = let_in(server, Role.MAINTAINER, "q")
    async with Queue("q", url=url) as queue:
        assert [letter.id for letter in await queue.dead_letters.list()] == ["dead"]
        assert await queue.dead_letters.requeue("dead")
        assert (await story_of(queue, "dead") or {})["status"] == "queued"
        await queue.pause()
        await queue.resume()
        await queue.enqueue({}, id="more")
        assert await queue.remove("more") and await queue.dead_letters.delete("dead") is False
        assert (await verify(queue, lambda *_: None)).prefix == "q"
        assert (await apply(queue, lambda *_: None, lambda *_: None, force=True, watch=0.1)).verified.clean
        assert await queue.connection.ask("MEMORY USAGE", "q:msg:waits", near="q")
        assert denials(server) - {"config"} == set()
        await denied(
            lambda: queue.transitions.claim("w", 1),
            lambda: queue.transitions.sweep(max_deliveries=3, dead_letter_ttl=60),
        )
        assert (await roll_back(queue, lambda *_: None)).messages == 2
    await others_are_out_of_reach(url)


async def test_a_viewer(server):
    await filled(server)
    url = let_in(server, Role.VIEWER, "q")
    with server.sync_client() as client:
        before = _picture(client)
        async with Queue("q", url=url) as queue:
            t = queue.transitions
            assert (await queue.stats()).dead == 1 and await queue.position("waits") == 1
            assert await queue.get("waits") is not None
            assert [letter.id for letter in await queue.dead_letters.list()] == ["dead"]
            assert (await story_of(queue, "dead") or {})["status"] == "error"
            assert [page async for page in t.walk("main")] and [page async for page in t.walk("dlq")]
            assert await Door(queue.connection, queue.keys).consumers() == []
            assert await reading.workers(queue) == []
            assert not (await reading.of_user(queue, "u", None)).indexed
            await reading.line(queue, None, 10)
            await reading.letters(queue, Wanted(), None, 10)
            assert denials(server) == set()
            await denied(
                lambda: queue.enqueue({}), lambda: queue.remove("waits"), lambda: queue.update("waits", {"x": 1}),
                lambda: queue.dead_letters.requeue("dead"), lambda: queue.dead_letters.delete("dead"), queue.pause,
                queue.resume, lambda: t.join("w", 30.0), lambda: t.claim("w", 1),
                lambda: t.lock("q:lock:waits", "me", 60.0),
            )  # fmt: skip
            eval_ = queue.connection.client.execute_command
            with pytest.raises(redis.exceptions.ResponseError):
                await eval_("EVAL", "return redis.call('DEL', KEYS[1])", 1, "q:queue:main")
        assert _picture(client) == before
    await others_are_out_of_reach(url)


# ---- with shards


@pytest.mark.parametrize("role", Role)
async def test_of_a_queue_with_shards(server, role):
    """Any number of them, and what they have in common; another queue's shards are out of reach."""
    async with ShardedQueue("other", shards=2, url=server.url) as other:
        await other.enqueue({"user_id": "u1"}, id="o1")
    async with ShardedQueue("q", shards=12, url=server.url) as queue:
        receipts = await queue.enqueue_many([{"user_id": f"u{n}"} for n in range(30)])
        await queue.set_limits(Limits(max_length=1000))

        async def refuse(message):
            raise Reject("no")

        for shard in queue.shards[:2]:
            await work(shard, refuse)
    url = let_in(server, role, *of_shards("q"))
    async with NamedQueue("q", url=url) as queue:
        assert len(queue.shards) == 12
        await _ROLES_WITH_SHARDS[role](queue, receipts[-1].id, url)
        assert denials(server) - {"config"} == set()
        for shard in queue.shards:
            assert (await look_at_access(shard.connection, shard.keys.prefix, role))[0].verdict == "ok"
    if role is Role.VIEWER:
        async with NamedQueue("q", url=url) as queue:
            await denied(queue.pause, lambda: queue.set_limits(Limits()))
    with pytest.raises(ConfigurationError, match=r"(?i)perm"):
        async with ShardedQueue("other", shards=2, url=url):
            pass


async def _produce(queue: Any, id: str, url: str) -> None:
    async with ShardedQueue("q", shards=12, url=url) as sharded:
        receipt = await sharded.enqueue({"user_id": "u1"}, id="own")
        assert await sharded.position(receipt.id) and await sharded.position(id)
        assert await sharded.set_priority("own", "high") and await sharded.remove("own")


async def _work(queue: Any, id: str, url: str) -> None:
    async def handle(message):
        return 1

    async with ShardedQueue("q", shards=None, url=url) as sharded:
        await work(sharded, handle)
        await sharded.open()
        assert (await sharded.stats()).main == 0
        assert await sharded.result(id) == 1


async def _maintain(queue: Any, id: str, url: str) -> None:
    await queue.pause()
    await queue.set_limits(Limits(max_length=500))
    await queue.dead_letters.requeue((await queue.dead_letters.list())[0].id)
    assert (await reshard(queue, 13, lambda *_: None)).clean
    await queue.resume()


async def _look(queue: Any, id: str, url: str) -> None:
    assert (await queue.stats()).dead and await queue.dead_letters.list()
    assert (await queue.limits()).max_length == 1000
    assert await story_of(queue, id)
    await reading.line(queue, None, 10)
    assert await reading.waiting_keys(queue) == (0, [])


_ROLES_WITH_SHARDS = {
    Role.PRODUCER: _produce, Role.WORKER: _work, Role.MAINTAINER: _maintain, Role.VIEWER: _look,
}  # fmt: skip


def _picture(client: Any) -> dict[str, bytes]:
    return {key: client.dump(key) if client.type(key) != "stream" else client.xlen(key) for key in client.keys("*")}


@pytest.mark.parametrize("role", Role)
def test_as_printed_the_rule_is_refused(server, role):
    with server.sync_client() as client:
        with pytest.raises(redis.exceptions.ResponseError, match="password hash"):
            client.execute_command(*rule(role, "u", ["q"]))
        assert "u" not in client.acl_users()


# ---- how it is derived


def test_reads_write_nothing(private):
    with private(name="embedded").sync_client() as client:
        known = client.execute_command("COMMAND", "INFO", *READS)
        for name in READS - {"TIME", "XINFO"}:  # which have no such flag of their own
            assert "readonly" in known[name.lower()]["flags"], name


def test_what_python_sends_beside_the_scripts_is_in_a_role():
    package = Path(streams_queue.__file__).parent
    sent: set[str] = set()
    for path in (package / "transitions.py", package.parent / "migrations/streams_queue_migrations/door.py"):
        text = path.read_text()
        sent |= {name.upper() for name in re.findall(r"client\.([a-z_]+)\(", text)}
        sent |= set(re.findall(r"(?:command|ask)\(\"([A-Z]+)", text))
    plain = {"DELETE": "DEL", "XPENDING_RANGE": "XPENDING", "XINFO_GROUPS": "XINFO", "XINFO_CONSUMERS": "XINFO",
             "SCAN_ITER": "SCAN"}  # fmt: skip
    ours = {plain.get(name, name) for name in sent} - {"EXECUTE_COMMAND"}
    assert ours <= {command for role in Role for command in commands_of(role)}


def test_nothing_is_listed_by_hand_that_the_scripts_have():
    for role, beside in _BESIDE.items():
        assert not beside & _TO_CONNECT, role


# ---- how it is printed


def test_the_line_can_be_pasted(run: Run, private):
    server = private()
    answer = run("doctor", "--acl", "worker", "--user", "orders", "--prefix", "{a}", "--prefix", "b")
    assert answer.code == 0 and "SHA-256" in answer.err
    line = answer.out.strip().replace(PASSWORD, ">s")
    with server.sync_client() as client:
        client.execute_command(*shlex.split(line))
        user = client.acl_getuser("orders")
    assert user["keys"] == ["~{a}:*", "~b:*"] or set(user["keys"]) == {"{a}:*", "b:*"}
    document = run("doctor", "--acl", "worker", "--user", "orders", "--prefix", "b", "--json").json
    assert document == {"role": "worker", "user": "orders", "command": rule(Role.WORKER, "orders", ["b"])}
    json.dumps(document)


def test_the_line_of_a_queue_with_shards(run: Run, private):
    answer = run("doctor", "--acl", "worker", "--user", "chat", "--prefix", "chat", "--sharded", "--json")
    assert answer.json["command"] == rule(Role.WORKER, "chat", ["{chat}", "{chat:[0-9]*}"])
    assert "'~{chat:[0-9]*}:*'" in run("doctor", "--acl", "worker", "--user", "c", "--prefix", "chat", "--sharded").out


@pytest.mark.parametrize(
    "arguments",
    [
        ["--acl", "worker", "--prefix", "q"],
        ["--acl", "worker", "--user", "a b", "--prefix", "q"],
        ["--acl", "worker", "--user", "u", "--prefix", "q*"],
        ["--acl", "boss", "--user", "u"],
        ["--user", "u"],
        ["--sharded", "--prefix", "q"],
        ["--acl", "worker", "--user", "u", "--sharded", "--prefix", "{q}"],
    ],
)
def test_misuse(run: Run, arguments):
    assert run("doctor", *arguments, STREAMS_QUEUE_PREFIX="").code == 2
