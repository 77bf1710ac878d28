from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
import redis.exceptions
import redis.sentinel  # its exceptions belong to the tree
import trustme

import servers
import setups
from streams_queue import wire
from streams_queue.connection import Connection
from streams_queue.errors import (
    ConfigurationError,
    InvalidMessage,
    QueueUnavailable,
    StreamsQueueError,
    UnsupportedServer,
)
from streams_queue.settings import Settings
from streams_queue.translation import REDIS_ERRORS, translate, translated

SECRET = "hunter2"
Private = Callable[..., servers.Server]


@pytest.fixture
def private(tmp_path, request) -> Private:
    """Starts a server of one's own."""

    def start(*arguments: str, name: str = servers.DEFAULT) -> servers.Server:
        server = servers.start(name, tmp_path / str(servers.free_port()), *arguments)
        request.addfinalizer(server.kill)
        return server

    return start


@contextlib.asynccontextmanager
async def opened(url: str, timeout: float = 5.0) -> AsyncIterator[Connection]:
    connection = Connection(Settings(url, timeout))
    try:
        await connection.open()
        yield connection
    finally:
        await connection.close()


async def refused(url: str, kind: type[StreamsQueueError], timeout: float = 5.0) -> str:
    """The text `open` fails with. Neither it nor the traceback shows the password."""
    with pytest.raises(kind) as caught:
        async with opened(url, timeout):
            pass
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    return str(caught.value)


async def test_commands_and_reads_that_block(server, prefix):
    async with opened(server.url, timeout=1.0) as connection:
        assert connection.is_cluster == isinstance(server, setups.Cluster)
        await connection.open()  # again: nothing happens
        assert await connection.client.set(f"{prefix}:x", b"\xff", ex=60)
        assert await connection.client.get(f"{prefix}:x") == b"\xff"
        assert await connection.reader(1.5).xread({f"{prefix}:s": "$"}, block=1500) == []


async def test_a_burst_waits_for_connections_instead_of_failing(server, prefix):
    async with opened(server.url) as connection:
        await asyncio.gather(*(connection.client.incr(f"{prefix}:n") for _ in range(500)))
        assert await connection.client.getdel(f"{prefix}:n") == b"500"


async def test_open_comes_first_and_close_is_no_end(server):
    connection = Connection(Settings(server.url))
    with pytest.raises(RuntimeError):
        connection.client  # noqa: B018
    with pytest.raises(RuntimeError):
        connection.reader(1.0)
    await connection.close()
    for _ in range(2):
        await connection.open()
        assert await connection.client.ping()
        await connection.close()


async def test_close_leaves_no_connection(server, redis):
    before = len(await redis.client_list())
    async with opened(server.url) as connection:
        await asyncio.gather(*(connection.client.ping() for _ in range(10)), connection.reader(1.0).ping())
        assert len(await redis.client_list()) > before + 1

    async def gone() -> bool:
        return len(await redis.client_list()) == before

    await until(gone)


async def test_a_thread_has_a_connection_of_its_own(server):
    settings = Settings(server.url)
    answers: list[bool] = []

    async def elsewhere() -> None:
        async with opened(settings.url) as connection:
            answers.append(await connection.client.ping())

    async with opened(settings.url) as connection:
        thread = threading.Thread(target=lambda: asyncio.run(elsewhere()))
        thread.start()
        await asyncio.to_thread(thread.join)
        assert await connection.client.ping()
    assert answers == [True]


async def test_embedded():
    async with opened("embedded://") as one, opened("embedded://") as other:
        await one.client.set("k", "v", ex=60)
        assert await other.client.getdel("k") == b"v"
        assert await one.reader(0.1).ping()


async def test_a_call_that_timed_out_was_sent_once(private):
    server = private()
    async with opened(server.url, timeout=0.4) as connection:
        await sent_once(connection, server)


async def sent_once(connection: Connection, server: servers.Server) -> None:
    """The server stands still for one and a half timeouts: a second attempt would get through."""
    await connection.client.set("n", 0)
    server.suspend()
    asyncio.get_running_loop().call_later(1.5 * connection.settings.timeout, server.resume)
    with pytest.raises(QueueUnavailable), translated():
        await connection.client.incr("n")
    await until(lambda: connection.client.get("n"))
    assert await connection.client.get("n") == b"1"


async def until(ask: Callable[[], Awaitable[object]], seconds: float = 10.0) -> None:
    """Poll `ask` until its answer is true; what makes the queue unavailable counts as false."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(QueueUnavailable), translated():
            if await ask():
                return
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_a_cancelled_call_leaves_no_stray_reply(private):
    server = private()
    async with opened(server.url) as connection:
        for client, key in ((connection.client, "a"), (connection.reader(5.0), "b")):
            call = asyncio.ensure_future(client.execute_command("BLPOP", key, 5))
            await until(lambda: blocked(server))
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await connection.client.rpush(key, "stray")
            assert await client.get("k") is None


async def blocked(server: servers.Server) -> bool:
    async with server.client() as client:
        return bool((await client.info("clients"))["blocked_clients"])


async def test_it_reconnects_by_itself(private):
    server = private()
    async with opened(server.url) as connection:
        reader = connection.reader(1.0)
        assert await reader.ping()
        server.kill()
        for client in (connection.client, reader):
            with pytest.raises(QueueUnavailable), translated():
                await client.ping()
        server.start()
        assert await connection.client.ping()
        assert await reader.ping()


async def test_nothing_listens_there():
    text = await refused(f"redis://:{SECRET}@127.0.0.1:{servers.free_port()}", QueueUnavailable)
    assert "redis://:***@127.0.0.1" in text


async def test_no_such_socket(tmp_path):
    await refused(f"unix://{tmp_path}/none.sock", QueueUnavailable)


async def test_no_such_host():
    assert "nowhere.invalid" in await refused(f"redis://:{SECRET}@nowhere.invalid", QueueUnavailable)


async def test_a_server_that_does_not_answer(private):
    server = private()
    server.suspend()
    await refused(server.url, QueueUnavailable, timeout=0.2)


async def test_wrong_or_missing_credentials(private):
    server = private("--requirepass", "right")
    async with opened(server.url) as connection:
        assert await connection.client.ping()
    for credentials in (f":{SECRET}@", f"someone:{SECRET}@", ""):
        assert "denied" in await refused(f"redis://{credentials}127.0.0.1:{server.port}", ConfigurationError)


async def test_a_missing_permission_is_named(private):
    server = private("--user", "limited", "on", ">pw", "~*", "&*", "+@all", "-command")
    async with opened(f"redis://127.0.0.1:{server.port}") as connection:
        await connection.client.set("k", "v")
    text = await refused(f"redis://limited:pw@127.0.0.1:{server.port}", ConfigurationError)
    assert "command" in text


@pytest.mark.parametrize("password", [None, SECRET])
async def test_sentinel_gives_the_primary(private, tmp_path, password):
    arguments = ("--requirepass", password) if password else ()
    primary = private(*arguments)
    configuration = f"sentinel monitor main 127.0.0.1 {primary.port} 1\n"
    if password:
        configuration += f"sentinel auth-pass main {password}\n"
    (tmp_path / "sentinel.conf").write_text(configuration)
    sentinel = private(str(tmp_path / "sentinel.conf"), "--sentinel")
    credentials = f":{password}@" if password else ""
    places = f"127.0.0.1:{servers.free_port()},127.0.0.1:{sentinel.port}"  # the first of them is down
    url = f"redis+sentinel://{credentials}{places}"
    async with opened(f"{url}/main/1") as connection:
        assert (await connection.client.info("server"))["tcp_port"] == primary.port
        await asyncio.gather(*(connection.client.incr("n") for _ in range(200)))
        assert await connection.reader(1.0).get("n") == b"200"
    with primary.sync_client(db=1) as client:
        assert client.get("n") == "200"
    assert "No master found for 'other'" in await refused(f"{url}/other", QueueUnavailable)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[servers.Server]:
    """A cluster of one, which is enough to see the client work."""
    node = servers.start(servers.DEFAULT, tmp_path_factory.mktemp("cluster"), "--cluster-enabled", "yes")
    with node.sync_client() as client:
        client.execute_command("CLUSTER ADDSLOTS", *range(16384))
        servers.wait_until(lambda: client.cluster("INFO")["cluster_state"] == "ok", what="the cluster up")
    yield node
    node.kill()


async def test_cluster(cluster):
    places = f"127.0.0.1:{servers.free_port()},127.0.0.1:{cluster.port}"
    async with opened(f"redis+cluster://{places}") as connection:
        assert connection.is_cluster
        await asyncio.gather(*(connection.client.incr("{q}n") for _ in range(200)))
        assert await connection.client.get("{q}n") == b"200"
        assert await connection.reader(0.1).xread({"{q}s": "$"}, block=100) == []
        with pytest.raises(ConfigurationError, match="hash tag"), translated():
            await connection.client.execute_command("MGET", "a", "b")


async def test_a_cluster_behind_a_url_for_one_server(private):
    nodes = [private("--cluster-enabled", "yes") for _ in range(2)]
    with nodes[0].sync_client() as one, nodes[1].sync_client() as other:
        one.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16382)
        other.execute_command("CLUSTER ADDSLOTSRANGE", 16383, 16383)
        other.execute_command("CLUSTER SET-CONFIG-EPOCH", 2)
        one.execute_command("CLUSTER MEET", "127.0.0.1", nodes[1].port)
        servers.wait_until(
            lambda: all(client.cluster("INFO")["cluster_state"] == "ok" for client in (one, other)), what="both up"
        )
    async with opened(nodes[1].url) as connection:
        with pytest.raises(QueueUnavailable, match=r"does the URL say redis\+cluster://"), translated():
            await connection.client.get("n")


async def test_a_cluster_passes_messages_on(cluster):
    url = f"redis+cluster://127.0.0.1:{cluster.port}"
    async with opened(url) as connection, connection.reader(1.0).pubsub() as channel:
        await channel.subscribe("c")
        assert (await channel.get_message(timeout=5.0))["type"] == "subscribe"
        await connection.client.execute_command("PUBLISH", "c", b"news")
        assert (await channel.get_message(timeout=5.0))["data"] == b"news"
        assert await channel.get_message(timeout=0.1) is None


async def test_a_cluster_call_that_timed_out_was_sent_once(cluster):
    async with opened(f"redis+cluster://127.0.0.1:{cluster.port}", timeout=0.4) as connection:
        await sent_once(connection, cluster)


async def test_a_whole_cluster_may_go_and_come_back(cluster):
    async with opened(f"redis+cluster://127.0.0.1:{cluster.port}") as connection:
        cluster.kill()
        for _ in range(70):  # more than a node may have connections
            with pytest.raises(QueueUnavailable), translated():
                await connection.client.get("n")
        cluster.start()
        await until(lambda: connection.client.set("n", 1))


async def test_a_cluster_node_that_fell_silent_is_left_for_its_successor(cluster):
    url = f"redis+cluster://127.0.0.1:{cluster.port}"
    with socket.create_server(("127.0.0.1", 0)) as silent, cluster.sync_client() as admin:
        async with opened(url, timeout=0.4) as connection:
            admin.config_set("cluster-announce-port", silent.getsockname()[1])
            try:
                admin.client_kill_filter(_type="normal", skipme=True)
                for _ in range(3):
                    with pytest.raises(QueueUnavailable), translated():
                        await connection.client.get("n")
            finally:
                admin.config_set("cluster-announce-port", 0)
            await until(lambda: connection.client.set("n", 1))


TOO_OLD = {
    b"AUTH": b"+OK\r\n",
    b"PING": b"+PONG\r\n",
    b"COMMAND": b"*1\r\n*-1\r\n",
    b"INFO": b"$20\r\nredis_version:5.0.14\r\n",
}


@contextlib.asynccontextmanager
async def fake(answers: dict[bytes, bytes], tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A server that answers each command by its first word; its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while head := await reader.readline():
                words = []
                for _ in range(int(head[1:])):
                    await reader.readline()
                    words.append((await reader.readline()).strip())
                writer.write(answers.get(words[0].upper(), b"-ERR unknown command\r\n"))
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", ssl=tls) as listening:
        yield listening.sockets[0].getsockname()[1]


async def test_a_server_that_is_too_old():
    async with fake(TOO_OLD) as port:
        text = await refused(f"redis://127.0.0.1:{port}", UnsupportedServer)
    assert "5.0.14" in text
    assert "6.2" in text


@pytest.mark.parametrize(
    ("host", "trusted", "options", "kind"),
    [
        ("localhost", True, "", UnsupportedServer),  # TLS is fine: the fake is only too old
        ("localhost", False, "", ConfigurationError),
        ("127.0.0.1", True, "", ConfigurationError),  # the certificate is for localhost
        ("127.0.0.1", False, "&ssl_cert_reqs=none", UnsupportedServer),
    ],
)
async def test_tls(tmp_path, host, trusted, options, kind):
    authority, other = trustme.CA(), trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    (authority if trusted else other).cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with fake(TOO_OLD, context) as port:
        url = f"rediss://:{SECRET}@{host}:{port}?ssl_ca_certs={tmp_path}/ca.pem{options}"
        text = await refused(url, kind)
    assert kind is UnsupportedServer or "TLS failed" in text


async def test_a_certificate_file_that_is_not_there(tmp_path):
    url = f"rediss://:{SECRET}@127.0.0.1?ssl_ca_certs={tmp_path}/none.pem"
    assert "ssl_ca_certs" in await refused(url, ConfigurationError)


def every(root: type[BaseException]) -> set[type[BaseException]]:
    return {root}.union(*(every(child) for child in root.__subclasses__()))


REDIS_TREE = sorted(
    every(redis.exceptions.RedisError) | every(redis.exceptions.RedisClusterException), key=lambda kind: kind.__name__
)


def made(kind: type[BaseException], text: str) -> BaseException:
    if issubclass(kind, redis.exceptions.AskError):
        return kind("7638 127.0.0.1:7000")
    error = kind.__new__(kind, text)
    error.args = (text,)
    return error


DENIED = {
    "AuthenticationError",
    "AuthenticationWrongNumberOfArgsError",
    "AuthorizationError",
    "NoPermissionError",
}


@pytest.mark.parametrize("kind", REDIS_TREE, ids=lambda kind: kind.__name__)
def test_every_exception_of_redis_py_is_translated(kind):
    assert issubclass(kind, REDIS_ERRORS)
    ours = translate(made(kind, "something"))
    person = kind.__name__ in DENIED | {"ClusterCrossSlotError"}
    fallback = InvalidMessage if kind.__name__ == "DataError" else QueueUnavailable
    assert type(ours) is (ConfigurationError if person else fallback)
    assert str(ours)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("WRONGTYPE Operation against a key holding the wrong kind of value", ConfigurationError),
        ("NOAUTH Authentication required.", ConfigurationError),
        ("Error running script: @user_script:1: NOPERM this user has no permissions", ConfigurationError),
        ("OOM command not allowed when used memory > 'maxmemory'.", QueueUnavailable),
        ("MISCONF Redis is configured to save RDB snapshots", QueueUnavailable),
        ("NOREPLICAS Not enough good replicas to write.", QueueUnavailable),
        ("BUSY Redis is busy running a script.", QueueUnavailable),
        ("UNBLOCKED the stream key no longer exists", QueueUnavailable),
        ("Error running script (call to f_1): @user_script:1: -READONLY You can't write", QueueUnavailable),
    ],
)
def test_errors_known_by_their_text(text, kind):
    ours = translate(redis.exceptions.ResponseError(text))
    assert type(ours) is kind
    assert text in str(ours)


@pytest.mark.parametrize("error", [OSError("gone"), ConnectionResetError(), TimeoutError(), BrokenPipeError()])
def test_errors_of_the_operating_system(error):
    ours = translate(error)
    assert type(ours) is QueueUnavailable
    assert str(ours)


def test_translated_keeps_the_cause_and_leads_with_the_context():
    cause = redis.exceptions.BusyLoadingError("loading")
    with pytest.raises(QueueUnavailable, match=r"^queue x: loading$") as caught, translated("queue x: "):
        raise cause
    assert caught.value.__cause__ is cause
    with pytest.raises(ZeroDivisionError), translated():
        raise ZeroDivisionError


def test_a_group_of_such_errors_is_an_outage_as_well():
    inner = ExceptionGroup("two", [redis.exceptions.ConnectionError("gone"), OSError()])
    with pytest.raises(QueueUnavailable, match="at: gone") as caught, translated("at: "):
        raise ExceptionGroup("nested", [inner])
    assert isinstance(caught.value.__cause__, ExceptionGroup)


def test_a_group_with_an_error_of_another_kind_passes():
    with pytest.raises(ExceptionGroup, match="mixed"), translated():
        raise ExceptionGroup("mixed", [redis.exceptions.ConnectionError("gone"), KeyError("ours")])


async def test_a_cancellation_is_never_lost(server):
    async with opened(server.url) as connection:
        await connection.client.get("nothing")
        assert await swallowed(lambda: connection.client.get("nothing"), 15) == 0


async def test_nor_while_sentinel_is_asked_for_the_primary(private, tmp_path):
    (tmp_path / "sentinel.conf").write_text(f"sentinel monitor main 127.0.0.1 {private().port} 1\n")
    sentinel = private(str(tmp_path / "sentinel.conf"), "--sentinel")
    async with opened(f"redis+sentinel://127.0.0.1:{sentinel.port}/main") as connection:

        async def connect() -> None:
            assert isinstance(connection.client, redis.asyncio.Redis)
            await connection.client.connection_pool.disconnect()
            await connection.client.get("nothing")

        assert await swallowed(connect, 40) == 0


async def test_a_client_that_is_dropped_leaves_no_connection_to_sentinel(private, tmp_path):
    (tmp_path / "sentinel.conf").write_text(f"sentinel monitor main 127.0.0.1 {private().port} 1\n")
    sentinel = private(str(tmp_path / "sentinel.conf"), "--sentinel")
    async with opened(f"redis+sentinel://127.0.0.1:{sentinel.port}/main") as connection, sentinel.client() as admin:
        before = len(await admin.client_list())
        for _ in range(10):
            reader = connection.reader(1.0)
            assert await reader.ping()
            await connection.drop(reader)

        async def gone() -> bool:
            return len(await admin.client_list()) <= before

        await until(gone)


async def swallowed(call: Callable[[], Awaitable[object]], longest: int) -> int:
    """How many calls, cancelled up to `longest` turns of the loop later, go on as if nothing had happened.

    Before Python 3.12 one in ten that redis-py sends by itself.
    """
    count = 0

    async def counted() -> None:
        nonlocal count
        await call()
        task = asyncio.current_task()
        count += task is not None and task.cancelling() > 0

    for steps in range(1500):
        task = asyncio.create_task(counted())
        for _ in range(steps % longest):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    return count


async def test_a_send_that_takes_too_long_fails_as_redis_py_has_it():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host, port = silent.getsockname()
        connection = wire.Tcp(host=host, port=port, socket_timeout=0.2, protocol=2)
        with pytest.raises(redis.exceptions.TimeoutError):
            await connection.send_command("PING")
        assert not connection.is_connected
        assert connection.socket_timeout == 0.2
