"""`doctor`: each finding on a real server that is in that state, and what people and scripts are told."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

import servers
from chaos.proxy import Mode, Proxy
from cli.conftest import PROGRAM, environment
from cli.test_look import STYLES
from helpers import Held, running, until, worker_of
from streams_queue import Queue
from streams_queue.cli.doctor import command
from streams_queue.cli.doctor import queue as in_queue
from streams_queue.cli.doctor import server as on_server
from streams_queue.cli.doctor.check import Check, Verdict
from streams_queue.settings import Settings, parse

PASSWORD = "swordfish-77"
WELL = ("--appendonly", "yes", "--requirepass", PASSWORD)


class Collected(list[Check]):
    """Takes the place of the report."""

    def tell(self, check: Check) -> None:
        self.append(check)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(in_queue, "MEASURED", 0.3)
    monkeypatch.setattr(in_queue, "PATIENCE", 0.0)


async def examined(url: str, *prefixes: str, role: Any = None) -> dict[str, Check]:
    """The checks by name; of several of one name the last."""
    told = Collected()
    await command._examine(cast(Any, told), Settings(url, 2.0), prefixes, None, role)
    for check in told:
        assert check.reason and PASSWORD not in check.reason + check.remedy
        assert check.remedy or check.verdict in {Verdict.OK, Verdict.UNKNOWN}, check
    return {check.check: check for check in told}


def verdicts(found: dict[str, Check]) -> dict[str, str]:
    """What is not well, `version` left out, which depends on the server that the tests were given."""
    return {name: str(check.verdict) for name, check in found.items() if check.verdict != "ok" and name != "version"}


async def test_nothing_is_wrong(private):
    server = private(*WELL)
    async with Queue("q", url=server.url) as queue:
        await queue.enqueue({})
        held = Held()
        async with running(worker_of(queue, held.handle)):
            await held.holds()
            found = await examined(server.url, "q")
            held.go.set()
    assert verdicts(found) == {}
    assert list(found) == [
        "url", "encryption", "connection", "latency", "clock", "password", "version", "default-user", "eviction",
        "memory", "persistence", "replicas", "cluster", "workers", "agreement", "growth", "access",
    ]  # fmt: skip
    assert [check.queue for check in found.values()] == 13 * [None] + 4 * ["q"]


# ---- the server


async def test_a_key_of_another_program(private):
    """Nothing else of the queue can be looked at; the others are."""
    server = private(*WELL)
    with server.sync_client() as client:
        client.set("wrong:queue:dlq", "a text")
        client.set("wrong:stream", "a text")
    found = await examined(server.url, "wrong")
    assert verdicts(found) == {"queue": "danger"}
    assert "wrong:stream is a string, not a stream" in found["queue"].reason
    assert "RENAME wrong:stream wrong:stream.old" in found["queue"].remedy
    assert not {"workers", "agreement"} & set(found)


async def test_settings_that_lose_messages(private):
    server = private("--requirepass", PASSWORD, "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
    found = await examined(server.url)
    assert verdicts(found) == {"eviction": "danger", "persistence": "warning"}
    assert "noeviction" in found["eviction"].remedy


@pytest.mark.parametrize(("fsync", "loses"), [("always", "takes nothing"), ("everysec", "takes the last second")])
async def test_what_a_loss_of_power_takes(private, fsync, loses):
    found = await examined(private(*WELL, "--appendfsync", fsync).url)
    assert found["persistence"].verdict == "ok" and loses in found["persistence"].reason


async def test_memory_nearly_full(private):
    server = private("--requirepass", PASSWORD)  # a file would have buffers, which come and go
    with server.sync_client() as client:
        for n in range(40):
            client.set(f"x{n}", "x" * 500_000)
        client.config_set("maxmemory", int(client.info("memory")["used_memory"] * 1.05))
    assert verdicts(await examined(server.url)) == {"memory": "warning", "persistence": "warning"}


@pytest.mark.parametrize("name", ["redis-7.0"])
async def test_a_version_with_known_faults(private, name):
    found = await examined(private(*WELL, name=name).url)
    assert found["version"].verdict == "warning" and "CVE-2025-49844" in found["version"].reason


async def test_replicas(private, monkeypatch):
    primary = private(*WELL)
    assert "no replicas" in (await examined(primary.url))["replicas"].reason
    replica = private(*WELL, "--masterauth", PASSWORD, "--replicaof", "127.0.0.1", str(primary.port))
    with primary.sync_client() as client:
        await until(lambda: (client.info("replication").get("slave0") or {}).get("state") == "online")
    found = (await examined(primary.url))["replicas"]
    assert found.verdict == "ok" and "1 replicas keep up" in found.reason
    monkeypatch.setattr(on_server, "LAGS", 0)
    replica.suspend()
    await until(lambda: _replica_lags(primary))
    found = (await examined(primary.url))["replicas"]
    replica.resume()
    assert found.verdict == "warning" and f"127.0.0.1:{replica.port}" in found.reason
    assert (await examined(replica.url))["replicas"].verdict == "danger"


def _replica_lags(primary: servers.Server) -> bool:
    with primary.sync_client() as client:
        return bool(client.info("replication")["slave0"]["lag"] > 0)


async def test_enqueues_that_wait_for_replicas_that_are_not_there(private):
    server = private(*WELL)
    with server.sync_client() as client:
        client.hset("q:meta", "replicas", 1)
        found = await examined(server.url, "q")
    assert found["confirmations"].verdict == "danger" and "1 replicas, and 0" in found["confirmations"].reason


async def test_a_node_of_a_cluster(private):
    node = private("--appendonly", "yes", "--cluster-enabled", "yes")
    with node.sync_client() as client:
        client.execute_command("CLUSTER", "ADDSLOTS", *range(16384))
        await until(lambda: client.cluster("INFO")["cluster_state"] == "ok")
    assert verdicts(await examined(node.url))["cluster"] == "danger"
    url = f"redis+cluster://127.0.0.1:{node.port}"
    found = await examined(url, "q")
    assert found["cluster"].verdict == "ok"
    assert found["queue"].verdict == "danger" and "'{q}'" in found["queue"].reason
    found = await examined(url, "{q}")
    assert [found[name].verdict for name in ("access", "growth", "workers")] == ["ok"] * 3
    assert found["agreement"].verdict == "unknown" and "there is no queue '{q}'" in found["agreement"].reason
    with node.sync_client() as client:
        assert client.keys("*") == []


async def test_a_long_way_to_the_server(private):
    async with Proxy(private(*WELL).port) as proxy:
        proxy.delay = 0.08
        await proxy.set(Mode.DELAY)
        found = await examined(f"redis://:{PASSWORD}@127.0.0.1:{proxy.port}")
    assert verdicts(found) == {"latency": "warning"}


@pytest.mark.parametrize(("shift", "which"), [(3600, "behind"), (-3600, "ahead of")])
async def test_clocks_apart(private, monkeypatch, shift, which):
    clock = SimpleNamespace(perf_counter=time.perf_counter, time=lambda: time.time() + shift)
    monkeypatch.setattr(on_server, "time", clock)
    found = await examined(private(*WELL).url)
    assert verdicts(found) == {"clock": "warning"}
    assert f"3600.0 s {which} this machine's" in found["clock"].reason


# ---- the way there


@pytest.mark.parametrize(
    ("url", "verdict"),
    [
        ("redis://localhost", "ok"),
        ("redis://127.1.2.3", "ok"),
        ("redis://[::1]", "ok"),
        ("unix:///run/redis.sock", "ok"),
        ("redis://cache", "warning"),
        ("redis://10.0.0.5", "warning"),
        ("redis+sentinel://localhost,far/service", "warning"),
        ("rediss://cache", "ok"),
        ("rediss://cache?ssl_cert_reqs=none", "danger"),
    ],
)
def test_encryption(url, verdict):
    assert on_server.look_at_encryption(parse(url)).verdict == verdict


async def test_who_is_let_in(private):
    closed = private("--appendonly", "yes", "--requirepass", PASSWORD)
    near = private("--appendonly", "yes")
    wide = private("--appendonly", "yes", "--protected-mode", "no")
    with wide.sync_client() as client:
        client.execute_command("ACL", "SETUSER", "u", "on", f">{PASSWORD}", "~*", "&*", "+@all")
    assert (await examined(closed.url))["password"].verdict == "ok"
    assert "this machine alone" in (await examined(near.url))["password"].reason
    assert (await examined(wide.url))["password"].verdict == "danger"
    named = wide.url.replace("://", f"://u:{PASSWORD}@")
    assert (await examined(named))["password"].verdict == "danger", "the user default has none all the same"


def tell(server: servers.AnyServer, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, "doctor", *arguments], env=environment(server, "q"), capture_output=True, text=True, check=False
    )


def test_a_password_among_the_arguments(private):
    server = private(*WELL)
    for arguments, verdict in ((["--url", server.url], "warning"), ([], "ok")):
        done = tell(server, "--json", *arguments)
        assert {row["check"]: row["verdict"] for row in json.loads(done.stdout)}["url"] == verdict
        assert PASSWORD not in done.stdout + done.stderr


# ---- queues


async def test_a_queue_that_fills_the_memory(private):
    server = private(*WELL)
    async with Queue("q", url=server.url) as queue:
        await queue.enqueue({"x": "x" * 10_000})
        with server.sync_client() as client:
            client.config_set("maxmemory", client.info("memory")["used_memory"] + 20_000_000)
        filling = asyncio.create_task(_fill(queue))
        found = (await examined(server.url, "q"))["growth"]
        filling.cancel()
        await asyncio.wait([filling])
    assert found.verdict == "danger" and "measured over 0.3 s" in found.reason and "full in" in found.reason
    assert 9 < float(found.reason.split("about ")[1].split(" KiB")[0]) < 30


async def _fill(queue: Queue[Any]) -> None:
    while True:
        await queue.enqueue({"x": "x" * 10_000})
        await asyncio.sleep(0.005)


async def test_nobody_works(private):
    server = private(*WELL)
    async with Queue("q", url=server.url) as queue:
        assert (await examined(server.url, "q"))["workers"].verdict == "ok"
        await queue.enqueue({})
        assert (await examined(server.url, "q"))["workers"].verdict == "danger"
        await queue.pause()
        found = (await examined(server.url, "q"))["workers"]
        assert found.verdict == "warning" and found.remedy == "streams-queue resume --prefix q"


async def test_workers_that_went_without_a_word(private):
    server = private(*WELL)
    async with Queue("q", url=server.url) as queue:
        await queue.transitions.join("gone", 0.05)
        await until(lambda: _idle(server, 0.2))
        found = (await examined(server.url, "q"))["workers"]
        assert found.verdict == "warning" and "gone never said goodbye" in found.reason
        await queue.enqueue({})
        await queue.transitions.claim("gone", 1)
        await until(lambda: _idle(server, 0.2))
        found = (await examined(server.url, "q"))["workers"]
        assert found.verdict == "danger" and "1 messages are in their hands; no worker lives" in found.reason
        with server.sync_client() as client:
            client.hset("q:meta", "lease_ms", 1000)  # one that lives beside it
            await until(lambda: _idle(server, 3.1))
            await queue.transitions.join("lives", 1.0)
        found = (await examined(server.url, "q"))["workers"]
        assert found.verdict == "warning" and "1 workers live" in found.reason


def _idle(server: servers.Server, seconds: float) -> bool:
    with server.sync_client() as client:
        return all(row["idle"] > seconds * 1000 for row in client.xinfo_consumers("q:stream", "workers"))


async def test_sets_and_streams_that_disagree(private):
    server = private(*WELL)
    async with Queue("q", url=server.url) as queue:
        await queue.enqueue({}, id="o1")
    with server.sync_client() as client:
        client.delete("q:stream")
        found = await examined(server.url, "q")
        assert found["agreement"].verdict == "danger" and "o1" in found["agreement"].reason
        assert "verify --prefix q" in found["agreement"].remedy


async def test_two_queues(private):
    server = private(*WELL)
    told = Collected()
    await command._examine(cast(Any, told), Settings(server.url, 2.0), ["a", "b"], None, None)
    assert [check.queue for check in told] == 13 * [None] + 4 * ["a"] + 4 * ["b"]


# ---- what cannot be seen


async def test_what_an_acl_forbids_is_unknown(private):
    server = private(*WELL)
    async with Queue("q", url=server.url) as queue:
        await queue.enqueue({})
    with server.sync_client() as client:
        client.execute_command(
            "ACL", "SETUSER", "u", "on", ">p", "~*", "&*", "+@all", "-info", "-config", "-memory", "-scan"
        )
    found = await examined(server.url.replace(f":{PASSWORD}@", "u:p@"), "q")
    unknown = {name for name, check in found.items() if check.verdict == "unknown"}
    assert unknown == {
        "version", "default-user", "eviction", "memory", "persistence", "replicas", "cluster", "agreement",
        "growth",
    }  # fmt: skip
    assert found["eviction"].remedy == "redis-cli ACL SETUSER u +info"
    assert "'scan'" in found["agreement"].reason


async def test_the_time_may_not_be_asked_for(private):
    server = private(*WELL)
    with server.sync_client() as client:
        client.execute_command("ACL", "SETUSER", "u", "on", ">p", "~*", "&*", "+@all", "-time")
    found = (await examined(server.url.replace(f":{PASSWORD}@", "u:p@")))["clock"]
    assert (found.verdict, found.remedy) == ("unknown", "redis-cli ACL SETUSER u +time")


async def test_the_time_of_syncing_may_not_be_seen(private):
    server = private(*WELL)
    with server.sync_client() as client:
        client.execute_command("ACL", "SETUSER", "u", "on", ">p", "~*", "&*", "+@all", "-config")
    found = await examined(server.url.replace(f":{PASSWORD}@", "u:p@"))
    assert found["persistence"].verdict == "unknown"


# ---- what people and scripts are told


def test_exit_codes(private):
    server = private(*WELL, name="embedded")
    assert tell(server).returncode == 0
    with server.sync_client() as client:
        client.config_set("appendonly", "no")
        assert tell(server).returncode == 4
        client.zadd("q:queue:main", {"o1": time.time()})
        assert tell(server).returncode == 1
        assert tell(server, "--url", "http://x").returncode == 2
        client.flushall()


def test_a_line_a_check(private):
    done = tell(private("--requirepass", PASSWORD))
    lines = [line.split(maxsplit=3) for line in done.stdout.splitlines()]
    assert {line[0] for line in lines} <= set(Verdict)
    assert [line[2] for line in lines] == 13 * ["-"] + 4 * ["q"]
    (persistence,) = (line for line in lines if line[1] == "persistence")
    assert persistence[0] == "warning" and "Remedy: CONFIG SET appendonly yes" in persistence[3]
    assert "\x1b" not in done.stdout


def test_a_narrow_terminal(private, terminal):
    server = private("--requirepass", PASSWORD)
    answer = terminal("doctor", columns=60, STREAMS_QUEUE_URL=server.url).end()
    out = STYLES.sub("", answer.out)
    assert answer.code == 4
    assert max(map(len, out.splitlines())) <= 60
    assert "\x1b[33mwarning" in answer.out and "CONFIG SET appendonly" in " ".join(out.split())
    plain = terminal("doctor", NO_COLOR="1", STREAMS_QUEUE_URL=server.url).end().out
    assert "warning" in plain and "\x1b[33m" not in plain


def test_a_server_that_is_away(private):
    server = private()
    server.kill()
    for arguments in ([], ["--json"]):
        done = tell(server, *arguments)
        assert done.returncode == 3
        assert "danger" in done.stdout and f"redis-cli -h 127.0.0.1 -p {server.port} PING" in done.stdout
    assert {row["check"] for row in json.loads(done.stdout)} == {"url", "encryption", "connection"}


def test_a_wrong_password(private):
    server = private(*WELL)
    server.password = "wrong-" + PASSWORD
    done = tell(server)
    assert done.returncode == 2
    assert PASSWORD not in done.stdout + done.stderr
