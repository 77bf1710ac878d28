"""`replicas=N`: a call returns when so many replicas have what it wrote, on real primaries with real replicas."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from redis.exceptions import ResponseError

import servers
import setups
from helpers import Handler, until, work
from streams_queue import InvalidMessage, Queue, QueueUnavailable

TIMEOUT = 1.0
WAIT = TIMEOUT / 2
AT_ONCE = ("--repl-diskless-sync-delay", "0")
SLOTS = 16384


class Pair(NamedTuple):
    """A primary, its replica, and where a queue finds them."""

    primary: servers.Server
    replica: servers.Server
    url: str


def _in_step(primary: servers.Server) -> bool:
    """It has a replica that confirms, which takes a moment longer than to be called online."""
    with primary.sync_client(single_connection_client=True) as client:
        for key in ("{a}", "{b}"):
            with contextlib.suppress(ResponseError):  # MOVED
                client.set(key, 1)
        return bool(client.execute_command("WAIT", 1, 100))


@contextlib.contextmanager
def _single(name: str, directory: Path) -> Iterator[Pair]:
    with contextlib.ExitStack() as stack:
        primary = servers.start(name, directory / "primary", *AT_ONCE)
        stack.callback(primary.kill)
        replica = servers.start(name, directory / "replica", *AT_ONCE, "--replicaof", "127.0.0.1", str(primary.port))
        stack.callback(replica.kill)
        servers.wait_until(lambda: _in_step(primary), what="the replica in step")
        yield Pair(primary, replica, primary.url)


@contextlib.contextmanager
def _sentinel(name: str, directory: Path) -> Iterator[Pair]:
    with _single(name, directory) as pair:
        configuration = directory / "sentinel.conf"
        configuration.write_text(f"sentinel monitor main 127.0.0.1 {pair.primary.port} 1\n")
        sentinel = servers.start(name, directory / "sentinel", str(configuration), "--sentinel")
        try:
            yield pair._replace(url=f"redis+sentinel://127.0.0.1:{sentinel.port}/main")
        finally:
            sentinel.kill()


class Cluster:
    """Two primaries, each with a replica; the slots of {a} and {b} are not in the same half."""

    def __init__(self, name: str, directory: Path, stack: contextlib.ExitStack) -> None:
        self.nodes = []
        for number in range(4):
            node = servers.start(name, directory / str(number), "--cluster-enabled", "yes", *AT_ONCE)
            stack.callback(node.kill)
            self.nodes.append(node)
        self.ids = {node.port: self.command(node, "CLUSTER", "MYID") for node in self.nodes}
        for node, (first, last) in zip(self.nodes, itertools.pairwise([0, SLOTS // 2, SLOTS]), strict=False):
            self.command(node, "CLUSTER", "ADDSLOTS", *range(first, last))
        for epoch, node in enumerate(self.nodes, 1):
            with contextlib.suppress(Exception):
                self.command(node, "CLUSTER", "SET-CONFIG-EPOCH", epoch)
            self.command(node, "CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port)
        everywhere = self.nodes
        servers.wait_until(lambda: all("known_nodes:4" in self.info(node) for node in everywhere), 20, "all known")
        for primary, replica in zip(self.nodes[:2], self.nodes[2:], strict=True):
            self.command(replica, "CLUSTER", "REPLICATE", self.ids[primary.port])
        servers.wait_until(lambda: all("cluster_state:ok" in self.info(node) for node in everywhere), 20, "all up")
        servers.wait_until(lambda: all(map(_in_step, self.nodes[:2])), 20, "the replicas in step")

    def command(self, node: servers.Server, *words: Any) -> Any:
        with node.sync_client() as client:
            return client.execute_command(*words)

    def info(self, node: servers.Server) -> str:
        return str(self.command(node, "CLUSTER", "INFO"))

    def pair(self, prefix: str) -> Pair:
        """The nodes that have the prefix's slot; others are named first, to be asked first."""
        half = 0 if self.slot(prefix) < SLOTS // 2 else 1
        other = self.nodes[1 - half]
        return Pair(self.nodes[half], self.nodes[half + 2], f"redis+cluster://127.0.0.1:{other.port}")

    def slot(self, prefix: str) -> int:
        return int(self.command(self.nodes[0], "CLUSTER", "KEYSLOT", prefix))


@pytest.fixture(scope="module")
def name(request) -> str:
    name = setups.kind_asked_for(request.config)
    if name == "testcontainers":
        pytest.skip("a container's process is not ours to freeze")
    return str(name)


@pytest.fixture(scope="module")
def single(name, tmp_path_factory) -> Iterator[Pair]:
    with _single(name, tmp_path_factory.mktemp("single")) as pair:
        yield pair


@pytest.fixture(scope="module")
def cluster(name, tmp_path_factory) -> Iterator[Cluster]:
    with contextlib.ExitStack() as stack:
        yield Cluster(name, tmp_path_factory.mktemp("cluster"), stack)


@pytest.fixture
async def queue(single, prefix, monkeypatch) -> AsyncIterator[Queue[Any]]:
    async with opened(single.url, prefix, monkeypatch) as queue:
        yield queue


@contextlib.asynccontextmanager
async def opened(
    url: str, prefix: str, monkeypatch: pytest.MonkeyPatch, timeout: float = TIMEOUT
) -> AsyncIterator[Queue[Any]]:
    monkeypatch.setenv("REDIS_TIMEOUT", str(timeout))
    async with Queue[Any](prefix, url=url) as queue:
        yield queue


@contextlib.contextmanager
def frozen(server: servers.Server) -> Iterator[None]:
    server.suspend()
    try:
        yield
    finally:
        server.resume()


async def refused(queue: Queue[Any], id: str, **options: Any) -> str:
    """What `enqueue` says that waits in vain, about as long as it should."""
    began = time.monotonic()
    with pytest.raises(QueueUnavailable) as caught:
        await queue.enqueue({}, id=id, **options)
    assert WAIT * 0.9 < time.monotonic() - began < 2 * TIMEOUT + 1.0
    return str(caught.value)


async def confirmed_or_not(queue: Queue[Any], replica: servers.Server) -> None:
    """The story of one message: confirmed, not confirmed, and confirmed when called again."""
    receipt = await queue.enqueue({}, id="first", replicas=1)
    assert not receipt.duplicate
    with frozen(replica):
        text = await refused(queue, "second", replicas=1)
        assert "'second'" in text
        assert "0 of 1 replicas" in text
        assert "call enqueue with the same id" in text
        message = await queue.get("second")
        assert message is not None
        assert message.status == "queued"
        await refused(queue, "second", replicas=1)
        await queue.enqueue({}, id="third")  # waits for nobody
    again = await queue.enqueue({"other": "payload"}, id="second", replicas=1)
    assert (again.id, again.duplicate, again.status) == ("second", True, "queued")
    assert await queue.length() == 3


async def test_confirmed_not_confirmed_and_confirmed_again(queue, single):
    await confirmed_or_not(queue, single.replica)


async def test_what_was_confirmed_is_on_the_replica(queue, single):
    async with single.replica.client() as client:
        for number in range(50):
            receipt = await queue.enqueue({"n": number}, replicas=1)
            assert await client.exists(queue.keys.message(receipt.id))


async def test_more_replicas_than_there_are(queue):
    assert "1 of 2 replicas" in await refused(queue, "lonely", replicas=2)


async def test_behind_sentinel(name, tmp_path, prefix, monkeypatch):
    with _sentinel(name, tmp_path) as pair:
        async with opened(pair.url, prefix, monkeypatch) as queue:
            await confirmed_or_not(queue, pair.replica)


@pytest.mark.parametrize("tag", ["{a}", "{b}"], ids=["one half", "the other"])
async def test_on_a_cluster_the_node_of_the_slot_is_asked(cluster, prefix, tag, monkeypatch):
    pair = cluster.pair(tag)
    async with opened(pair.url, f"{tag}{prefix}", monkeypatch) as queue:
        await confirmed_or_not(queue, pair.replica)


def test_both_halves_of_the_cluster_are_asked(cluster):
    assert cluster.pair("{a}") != cluster.pair("{b}")


async def test_a_slot_on_its_way_and_moved(cluster, monkeypatch):
    source, target = cluster.pair("{a}"), cluster.pair("{b}")
    slot = cluster.slot("{a}")
    ids = {pair: cluster.ids[pair.primary.port] for pair in (source, target)}
    async with opened(source.url, "{a}moving", monkeypatch) as queue:
        await queue.enqueue({}, id="before", replicas=1)
        cluster.command(target.primary, "CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
        cluster.command(source.primary, "CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
        try:
            keys = cluster.command(source.primary, "CLUSTER", "GETKEYSINSLOT", slot, 1000)
            cluster.command(source.primary, "MIGRATE", "127.0.0.1", target.primary.port, "", 0, 5000, "KEYS", *keys)
            with pytest.raises(QueueUnavailable):
                await queue.enqueue({}, id="early", replicas=1)
        finally:
            for pair in (target, source):
                cluster.command(pair.primary, "CLUSTER", "SETSLOT", slot, "NODE", ids[target])
        with frozen(target.replica):
            assert "'moved'" in await refused(queue, "moved", replicas=1)
        with frozen(source.replica):
            await queue.enqueue({}, id="moved-too", replicas=1)
        assert await queue.length() == 3


async def calls_of(server: servers.Server) -> dict[str, int]:
    async with server.client() as client:
        found = await client.info("commandstats")
    return {name: found.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("wait", "evalsha")}


async def test_calls_side_by_side_share_one_wait(queue, single):
    await queue.enqueue({}, replicas=1)
    before = await calls_of(single.primary)
    receipts = await asyncio.gather(*(queue.enqueue({}, id=f"m{n}", replicas=1) for n in range(200)))
    after = await calls_of(single.primary)
    assert len({receipt.id for receipt in receipts}) == 200
    assert {name: after[name] - before[name] for name in after} == {"wait": 1, "evalsha": 1}


async def test_who_waits_for_replicas_delays_nobody_else(single, prefix, monkeypatch):
    async with opened(single.url, prefix, monkeypatch, timeout=5.0) as queue:
        await _nobody_else_is_delayed(queue, single)


async def _nobody_else_is_delayed(queue: Queue[Any], single: Pair) -> None:
    await queue.enqueue({}, replicas=1)
    with frozen(single.replica):
        waiting: list[asyncio.Task[Any]] = [
            asyncio.create_task(queue.enqueue({}, id=f"w{n}", replicas=1 + n % 2)) for n in range(200)
        ]
        waiting += [asyncio.create_task(queue.enqueue_many([{}] * 10, replicas=1)) for _ in range(100)]
        for number in range(20):
            await queue.enqueue({}, id=f"free{number}")
        assert not any(task.done() for task in waiting)
        answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(answer, QueueUnavailable) for answer in answers)
    for number in range(200):  # each is told of its own message
        assert repr(f"w{number}") in str(answers[number])
    assert await queue.length() == 1 + 20 + 200 + 1000


async def test_many_at_once(queue, single):
    assert len(await queue.enqueue_many([{}] * 1200, replicas=1)) == 1200
    assert await queue.enqueue_many([], replicas=1) == []
    with frozen(single.replica), pytest.raises(QueueUnavailable, match=r"'[-\w]+', '[-\w]+', '[-\w]+' and 7 more"):
        await queue.enqueue_many([{}] * 10, replicas=1)
    assert await queue.length() == 1210


async def test_a_duplicate_that_cannot_be_counted_waits_all_the_same(queue, single, monkeypatch):
    with frozen(single.replica):
        await refused(queue, "m", replicas=1)
        async with single.primary.client() as client:
            await client.hset(queue.keys.stats, "duplicate_messages", "many")
        # A fresh connection: it has written nothing yet that WAIT could look at.
        async with opened(single.url, queue.keys.prefix, monkeypatch) as other:
            await refused(other, "m", replicas=1)


async def test_a_duplicate_of_a_unique_key_names_the_one_that_holds_it(queue, single):
    await queue.enqueue({}, id="holder", unique_key="k")
    with frozen(single.replica):
        assert "'holder'" in await refused(queue, "other", unique_key="k", replicas=1)


async def test_a_finished_message_is_confirmed_too(queue, single):
    await queue.enqueue({}, id="m", replicas=1)
    await work(queue, Handler().handle)
    again = await queue.enqueue({}, id="m", replicas=1)
    assert (again.duplicate, again.status) == (True, "completed")


async def test_scripts_that_the_server_forgot_are_sent_again(queue, single):
    await queue.enqueue({}, replicas=1)
    async with single.primary.client() as client:
        await client.script_flush()
    await queue.enqueue({}, id="m", replicas=1)
    with frozen(single.replica):
        async with single.primary.client() as client:
            await client.script_flush()
        assert "'n'" in await refused(queue, "n", replicas=1)


async def test_a_server_that_wants_replicas_itself_refuses_before_any_write(queue, single):
    async with single.primary.client() as client:
        await client.config_set("min-replicas-to-write", 2)
        try:
            with pytest.raises(QueueUnavailable):
                await queue.enqueue({}, id="m")
            with pytest.raises(QueueUnavailable):
                await queue.enqueue({}, id="m", replicas=1)
        finally:
            await client.config_set("min-replicas-to-write", 0)
    assert await queue.get("m") is None


async def test_a_cancelled_call_leaves_no_stray_reply(queue, single):
    await queue.enqueue({}, replicas=1)
    with frozen(single.replica):
        for _ in range(20):
            call = asyncio.create_task(queue.enqueue_many([{}], replicas=1))
            await asyncio.sleep(0.01)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
    for number in range(100):
        receipts = await queue.enqueue_many([{}] * 2, replicas=1)
        assert [receipt.duplicate for receipt in receipts] == [False, False], number


async def test_a_primary_that_changes_its_role_confirms_nothing(name, tmp_path, prefix, monkeypatch):
    with _single(name, tmp_path) as pair:
        async with opened(pair.url, prefix, monkeypatch) as queue:
            await queue.enqueue({}, replicas=1)
            pair.replica.suspend()
            call = asyncio.create_task(queue.enqueue({}, id="m", replicas=1))
            async with pair.primary.client() as client:

                async def waits() -> bool:
                    return bool((await client.info("clients"))["blocked_clients"])

                await until(waits)
                await client.execute_command("REPLICAOF", "127.0.0.1", str(pair.replica.port))
            with pytest.raises(QueueUnavailable):
                await call


@pytest.mark.parametrize("replicas", [-1, 1.0, 1.5, "1", True, None, 10**30])
async def test_a_number_of_replicas_that_is_none(queue, replicas):
    for call in (queue.enqueue({}, id="m", replicas=replicas), queue.enqueue_many([{}], replicas=replicas)):
        with pytest.raises(InvalidMessage, match="replicas"):
            await call
    assert await queue.length() == 0
