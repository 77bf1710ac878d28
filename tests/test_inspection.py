"""What a worker says about its server: each finding on a real server that gives cause for it, where one can."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import shutil
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, cast

import pytest
import redis

import servers
from helpers import SOON, Handler, running, until, work, worker_of
from streams_queue import Queue, QueueUnavailable, inspection
from streams_queue.connection import Connection
from streams_queue.inspection import ACL_FAULTS, KNOWN_FAULTS, Finding, Severity, faults_of, inspect, report, upgrade
from streams_queue.settings import Settings

KINDS = [name for name in servers.NAMES if name != "testcontainers"]


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[Connection]:
    connection = Connection(Settings(url, 2.0))
    try:
        await connection.open()
        yield connection
    finally:
        await connection.close()


async def findings(url: str, prefix: str = "q") -> dict[str, Finding]:
    """By name, without `version`, which depends on the server that the tests were given."""
    async with opened(url) as connection:
        return {found.name: found for found in await inspect(connection, prefix) if found.name != "version"}


AOF = ("--appendonly", "yes")


# ---- settings


@pytest.mark.parametrize("name", KINDS)
async def test_every_kind_of_server(private, name):
    settings = ("--maxmemory", "100mb", "--maxmemory-policy", "volatile-lru", *AOF, "--appendfsync", "no")
    found = await findings(private(*settings, name=name).url)
    assert {name: found.severity for name, found in found.items()} == {"eviction": "danger", "fsync": "warning"}
    assert "volatile-lru" in found["eviction"].what and "100.0 MiB" in found["eviction"].what
    assert "CONFIG SET appendfsync everysec" in found["fsync"].remedy


async def test_nothing_to_say(private):
    assert await findings(private(*AOF).url) == {}


async def test_an_eviction_that_sleeps_is_a_note(private):
    found = await findings(private(*AOF, "--maxmemory-policy", "allkeys-lru").url)
    assert found["eviction"].severity is Severity.NOTE
    assert "not set" in found["eviction"].what


async def test_no_file_and_no_snapshots(private):
    (found,) = (await findings(private().url)).values()
    assert (found.name, found.severity) == ("persistence", "warning")
    assert found.why.startswith("All messages are lost")


async def test_snapshots_alone(private):
    (found,) = (await findings(private("--save", "3600", "1").url)).values()
    assert "3600 1" in found.what and "last snapshot" in found.why


async def test_the_embedded_server_says_nothing(tmp_path):
    assert await findings("embedded://") == {}
    assert await findings(f"embedded://{tmp_path / 'kept'}") == {}


async def test_memory_nearly_full(private):
    server = private(*AOF, "--maxmemory-policy", "noeviction")
    with server.sync_client() as client:
        client.set("x", "x" * 20_000_000)
        client.config_set("maxmemory", int(client.info("memory")["used_memory"] * 1.05))
        (found,) = (await findings(server.url)).values()
        assert (found.name, found.severity) == ("memory", "warning")
        client.config_set("maxmemory", int(client.info("memory")["used_memory"] * 1.5))
        assert await findings(server.url) == {}


# ---- states


@pytest.mark.parametrize("stops", ["yes", "no"])
async def test_snapshots_that_fail(private, stops):
    server = private(*AOF, "--save", "3600", "1", "--stop-writes-on-bgsave-error", stops)
    async with Queue("q", url=server.url) as queue:
        shutil.rmtree(server.directory)
        with server.sync_client() as client:
            client.bgsave()
            await until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")
        found = {found.name: found for found in await inspect(queue.connection, "q")}["snapshot"]
        assert found.severity == {"yes": "danger", "no": "warning"}[stops]
        assert ("refuses all writes" in found.why) is (stops == "yes")
        refused = pytest.raises(QueueUnavailable, match="MISCONF") if stops == "yes" else contextlib.nullcontext()
        with refused:
            await queue.enqueue({})


async def test_a_replica(private):
    primary = private(*AOF)
    replica = private(*AOF, "--replicaof", "127.0.0.1", str(primary.port))
    (found,) = (await findings(replica.url)).values()
    assert (found.name, found.severity) == ("replica", "danger")
    assert f"127.0.0.1:{primary.port}" in found.what


async def test_cluster_looks_at_the_owner(private):
    """Two nodes; only the one that owns the queue evicts."""
    nodes = [private(*AOF, "--cluster-enabled", "yes", "--maxmemory-policy", policy) for policy in POLICIES]
    url = f"redis+cluster://127.0.0.1:{nodes[0].port}"
    with nodes[0].sync_client() as one, nodes[1].sync_client() as two:
        one.execute_command("CLUSTER", "ADDSLOTS", *range(8192))
        two.execute_command("CLUSTER", "ADDSLOTS", *range(8192, 16383))
        one.execute_command("CLUSTER", "MEET", "127.0.0.1", nodes[1].port)
        await until(lambda: one.cluster("INFO")["cluster_known_nodes"] == "2", 30.0)
        await until(lambda: len(one.cluster("SLOTS")) == 2, 30.0)
        prefixes = {one.cluster("KEYSLOT", f"{{p{n}}}") < 8192: f"{{p{n}}}" for n in range(20)}
        found = await findings(url, prefixes[True])
        assert found.keys() == {"cluster"} and found["cluster"].severity == "danger"
        assert "16383 of 16384" in found["cluster"].what
        two.execute_command("CLUSTER", "ADDSLOTS", 16383)
        await until(lambda: one.cluster("INFO")["cluster_state"] == two.cluster("INFO")["cluster_state"] == "ok", 30.0)
    assert await findings(url, prefixes[True]) == {}
    assert (await findings(url, prefixes[False])).keys() == {"eviction"}


POLICIES = ("noeviction", "allkeys-lru")


async def test_a_cluster_without_the_queues_slot(private):
    node = private(*AOF, "--cluster-enabled", "yes")
    with node.sync_client() as client:
        client.execute_command("CLUSTER", "ADDSLOTS", *range(8192))
        prefix = next(f"{{p{n}}}" for n in itertools.count() if client.cluster("KEYSLOT", f"{{p{n}}}") >= 8192)
    assert (await findings(f"redis+cluster://127.0.0.1:{node.port}", prefix)).keys() == {"cluster"}


# ---- what may not be seen


@pytest.mark.parametrize(
    ("rights", "names"),
    [("-config", {"persistence", "eviction"}), ("-info", {"unseen", "persistence"}), ("-info -config", {"unseen"})],
)
async def test_what_an_acl_forbids_is_left_out(private, rights, names):
    server = private("--maxmemory-policy", "allkeys-lru")
    with server.sync_client() as client:
        client.execute_command("ACL", "SETUSER", "u", "on", ">p", "~*", "&*", "+@all", *rights.split())
    found = await findings(server.url.replace("://", "://u:p@"))
    assert found.keys() == names
    assert "unseen" not in found or found["unseen"].severity is Severity.NOTE


@pytest.mark.parametrize("name", KINDS)
async def test_commands_that_were_renamed_away(private, name):
    server = private("--rename-command", "CONFIG", "", "--maxmemory-policy", "allkeys-lru", *AOF, name=name)
    assert (await findings(server.url)).keys() == {"eviction"}
    server = private("--rename-command", "CONFIG", "", "--rename-command", "INFO", "", name=name)
    assert (await findings(server.url)).keys() == {"unseen"}


async def test_a_server_that_is_away(private, caplog):
    caplog.set_level(logging.INFO)
    server = private()
    async with opened(server.url) as connection:
        server.kill()
        with pytest.raises(QueueUnavailable):
            await inspect(connection, "q")
        await report(connection, "q")
    (record,) = caplog.records
    assert record.levelno == logging.INFO and "could not look" in record.getMessage()


async def test_a_server_that_hangs(private, caplog):
    caplog.set_level(logging.INFO)
    server = private()
    async with opened(server.url) as connection:
        server.suspend()
        began = time.monotonic()
        await report(connection, "q")
        assert time.monotonic() - began < inspection.REPORT_WITHIN + 0.5
    (record,) = caplog.records
    assert record.levelno == logging.INFO and "did not say" in record.getMessage()


class Told:
    """A connection whose server says what the test has it say."""

    is_cluster = False

    def __init__(self, url: str = "redis://h", config: Mapping[str, Any] | None = None, **info: Any) -> None:
        self.settings = Settings(url)
        self._answers = {"INFO": info, "CONFIG GET": config}
        self.asked: list[str] = []

    async def ask(self, command: str, *arguments: str, near: str) -> Any:
        self.asked.append(command)
        return self._answers[command]

    async def findings(self) -> dict[str, Finding]:
        return {found.name: found for found in await inspect(cast(Connection, self), "q")}


async def test_two_questions():
    told = Told(redis_version="1.0.0")
    assert await told.findings() == {}
    assert told.asked == ["INFO", "CONFIG GET"]


async def test_a_file_that_cannot_be_written():
    found = await Told(aof_enabled=1, aof_last_write_status="err").findings()
    assert found.keys() == {"append"} and found["append"].severity == "danger"


@pytest.mark.parametrize(
    "info",
    [
        {"x": 1},
        {"maxmemory": "", "used_memory": None, "maxmemory_policy": "noeviction"},
        {"aof_enabled": "?", "role": None, "redis_version": 7.2},
        {"valkey_version": "", "server_name": "valkey"},
        {"redis_version": "unknown"},
    ],
)
async def test_odd_answers_are_no_error(info):
    assert set(await Told(**info).findings()) <= {"persistence", "version"}


# ---- versions

VERSIONS = [
    ("redis", "6.2.16", ["CVE-2024-46981", "CVE-2025-49844"], "6.2.20"),
    ("redis", "6.2.17", ["CVE-2025-49844"], "6.2.20"),
    ("redis", "6.2.20", [], "6.2.20"),
    ("redis", "7.0.3", ["CVE-2024-46981", "CVE-2025-49844", "CVE-2022-31144", "CVE-2022-35951", "redis#11973"],
     "7.2.14"),
    ("redis", "7.0.15", ["CVE-2024-46981", "CVE-2025-49844"], "7.2.14"),
    ("redis", "7.2.13", ["CVE-2026-23479"], "7.2.14"),
    ("redis", "7.2.14", [], "7.2.14"),
    ("redis", "7.4.9", [], "7.4.9"),
    ("redis", "8.0.4", ["CVE-2026-23479"], "8.2.6"),
    ("redis", "8.2.10", [], "8.2.10"),
    ("redis", "255.255.255", [], "255.255.255"),
    ("valkey", "7.2.4", ["CVE-2025-49844", "CVE-2026-23479"], "7.2.13"),
    ("valkey", "7.2.13", [], "7.2.13"),
    ("valkey", "8.0.1", ["CVE-2024-46981", "CVE-2025-49844", "CVE-2026-23479"], "8.0.9"),
    ("valkey", "8.1.0-rc1", ["CVE-2025-49844", "CVE-2026-23479"], "8.1.7"),
    ("valkey", "9.0.3", ["CVE-2026-23479"], "9.0.4"),
    ("valkey", "9.1.0", [], "9.1.0"),
    ("keydb", "6.3.4", [], "6.3.4"),
    ("redis", "", [], ""),
]  # fmt: skip


@pytest.mark.parametrize(("product", "version", "references", "target"), VERSIONS)
def test_known_faults(product, version, references, target):
    assert [fault.reference for fault in faults_of(product, version)] == references
    assert upgrade(product, version) == target


@pytest.mark.parametrize("fault", [*KNOWN_FAULTS, *ACL_FAULTS])
def test_a_row_has_an_end(fault):
    assert fault in faults_of(fault.product, fault.since, [fault])
    assert not faults_of(fault.product, fault.mended, [fault])


async def test_valkey_is_no_redis():
    found = await Told(redis_version="7.2.4", valkey_version="8.1.3", server_name="valkey").findings()
    assert found["version"].what == "Valkey 8.1.3 has known faults: CVE-2025-49844, CVE-2026-23479."
    assert "Valkey 8.1.7" in found["version"].remedy
    found = await Told(redis_version="7.2.4").findings()
    assert found["version"].what.startswith("Redis 7.2.4 has known faults: ")


# ---- the rights of the user default


@pytest.mark.parametrize(
    ("url", "info", "said"),
    [
        ("redis://orders:s@h", {"redis_version": "7.0.0", "aof_enabled": 1}, True),
        ("redis://orders:s@h", {"redis_version": "8.6.0", "aof_enabled": 1}, False),
        ("redis://orders:s@h", {"redis_version": "6.2.14", "aof_enabled": 1}, False),
        ("redis://orders:s@h", {"redis_version": "7.2.4", "valkey_version": "9.1.1", "aof_enabled": 1}, True),
        ("redis://orders:s@h", {"redis_version": "7.2.4", "valkey_version": "9.1.2", "aof_enabled": 1}, False),
        ("redis://orders:s@h", {"redis_version": "7.0.0", "aof_enabled": 0}, False),
        ("redis://default:s@h", {"redis_version": "7.0.0", "aof_enabled": 1}, False),
        ("redis://:s@h", {"redis_version": "7.0.0", "aof_enabled": 1}, False),
    ],
)
async def test_whom_the_default_user_concerns(url, info, said):
    assert ("default-user" in await Told(url, **info).findings()) is said


class WithoutDefault(servers.Server):
    """Lets the user orders in, and not the user default."""

    def sync_client(self, **options: Any) -> redis.Redis:
        return super().sync_client(username="orders", password="s", **options)


@pytest.mark.parametrize("name", KINDS)
async def test_what_is_said_of_the_default_user_is_true(tmp_path, request, name):
    """Where it is said a restart loses the queue, elsewhere it does not; and the remedy keeps it."""
    try:
        binary = servers._BINARIES[name]()
    except servers.Missing as reason:
        pytest.skip(f"{name}: {reason}")
    config = tmp_path / "users.conf"
    server = WithoutDefault(name, binary, tmp_path / "data", [str(config), *AOF])
    request.addfinalizer(server.kill)
    url = server.url.replace("://", "://orders:s@")

    async def kept(default: str) -> int:
        config.write_text(f"user default {default}\nuser orders on >s ~* &* +@all\n")
        server.restart()
        async with Queue("q", url=url) as queue:
            await queue.enqueue_many([{}, {}, {}])
        server.restart()
        async with Queue("q", url=url) as queue:
            return await queue.length()

    assert await kept("off allkeys allchannels +@all") == 3
    loses = "default-user" in await findings(url)
    assert await kept("off") == (0 if loses else 6)


# ---- what a worker says


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    """Level and name of each finding in the log, `version` left out."""
    records = [record for record in caplog.records if record.name == "streams_queue.inspection"]
    assert all("Remedy: " in record.getMessage() and record.args for record in records)
    found = [(record.levelno, str(record.args[1])) for record in records if isinstance(record.args, tuple)]
    return [(level, name) for level, name in found if name != "version"]


async def test_a_worker_says_it_once_a_start(private, caplog):
    caplog.set_level(logging.INFO)
    async with Queue("q", url=private("--maxmemory-policy", "allkeys-lru").url) as queue:
        for start in (1, 2):
            await work(queue, Handler().handle)
            assert said(caplog) == start * [(logging.INFO, "eviction"), (logging.WARNING, "persistence")]


async def test_the_embedded_server_starts_quietly(caplog, tmp_path):
    caplog.set_level(logging.DEBUG, "streams_queue.inspection")
    for url in ("embedded://", f"embedded://{tmp_path / 'kept'}"):
        async with Queue("q", url=url) as queue:
            await work(queue, Handler().handle)
    assert said(caplog) == []


async def test_a_worker_does_not_wait_for_it(server, prefix, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    asked = asyncio.Event()

    async def never(*_: object) -> list[Finding]:
        asked.set()
        return await asyncio.Event().wait()  # type: ignore[return-value]  # it never does

    monkeypatch.setattr(inspection, "inspect", never)
    monkeypatch.setattr(inspection, "REPORT_WITHIN", SOON)
    async with Queue(prefix, url=server.url) as queue:
        handler = Handler()
        task = asyncio.create_task(worker_of(queue, handler.handle).run())
        await asked.wait()
        await queue.result((await queue.enqueue({})).id, timeout=SOON / 2)
        task.cancel()
        await asyncio.wait([task])


async def test_a_fault_in_it_ends_no_worker(server, prefix, monkeypatch, caplog):
    caplog.set_level(logging.INFO)

    async def broken(*_: object) -> list[Finding]:
        raise ValueError("as nobody thought")

    monkeypatch.setattr(inspection, "inspect", broken)
    async with Queue(prefix, url=server.url) as queue, running(worker_of(queue, Handler().handle)):
        await queue.result((await queue.enqueue({})).id, timeout=SOON)
    assert "could not look at the server: as nobody thought" in caplog.text


async def test_no_password_is_asked_for(private, caplog, monkeypatch):
    caplog.set_level(logging.DEBUG)
    server, answers, ask = private("--requirepass", "hunter2", "--masterauth", "hunter2"), {}, Connection.ask

    async def overheard(connection: Connection, command: str, *arguments: Any, **named: Any) -> Any:
        answers[command] = await ask(connection, command, *arguments, **named)
        return answers[command]

    monkeypatch.setattr(Connection, "ask", overheard)
    async with Queue("q", url=server.url) as queue:
        await work(queue, Handler().handle)
    assert set(answers) == {"INFO", "CONFIG GET", "TIME"} and "appendfsync" in answers["CONFIG GET"]
    assert "hunter2" not in caplog.text + repr(answers)
