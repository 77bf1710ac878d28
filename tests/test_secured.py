"""Redis Cluster and Sentinel with TLS, users with no more rights than they need, and Sentinels with a password."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import servers
import setups
from helpers import Handler, running, worker_of
from streams_queue import ConfigurationError, Queue, QueueUnavailable, StreamsQueueError
from streams_queue.cli.doctor.access import look_at_access
from streams_queue.cli.doctor.roles import PASSWORD, Role, rule
from streams_queue.connection import Connection
from streams_queue.settings import Settings

SECRET = "hunter2"
ASKED = "the-sentinels-own"
PREFIX = f"{setups.HOME}secured"
KIND = "redis-7.0"

Setup = setups.Cluster | setups.Watched


@pytest.fixture(scope="module")
def encryption(tmp_path_factory) -> list[str]:
    try:
        return setups.encrypted(tmp_path_factory.mktemp("certificates"))
    except servers.Missing as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module", params=setups.NAMES)
def secured(request, encryption, tmp_path_factory) -> Iterator[Setup]:
    """All that is said is encrypted; a user for each role, on every server."""
    directory = tmp_path_factory.mktemp(request.param)
    setup: Setup
    if request.param == "cluster":
        setup = setups.Cluster(directory, *encryption, "--tls-cluster", "yes", kind=KIND)
    else:
        setup = setups.Watched(directory, *encryption, kind=KIND, asks_for=ASKED)
    for role in Role:
        words = rule(role, role.value, [PREFIX], on_cluster=request.param == "cluster")
        for node in setup.nodes:
            setups.command(node, *(f">{SECRET}" if word == PASSWORD else word for word in words))
    yield setup
    setup.stop()


def url_for(setup: Setup, role: Role) -> str:
    url = setup.url.replace("://", f"://{role}:{SECRET}@")
    return url if isinstance(setup, setups.Cluster) else f"{url}&sentinel_password={ASKED}"


@contextlib.asynccontextmanager
async def opened(setup: Setup, role: Role) -> AsyncIterator[Queue[Any]]:
    async with Queue[Any](PREFIX, url=url_for(setup, role)) as queue:
        yield queue


def denials(setup: Setup) -> set[str]:
    """What any server denied anybody, what redis-py says of itself left out."""
    logs = [setups.command(node, "ACL LOG") for node in setup.nodes]
    return {entry["object"] for log in logs for entry in log} - {"client|setinfo"}


MAY_BE_DENIED = {"config|get", "cluster|info"}
"""What a worker asks of its server's settings."""


@pytest.fixture(autouse=True)
def _nothing_denied_yet(secured: Setup) -> None:
    for node in secured.nodes:
        setups.command(node, "ACL LOG", "RESET")


async def test_a_producer_and_a_worker_with_their_rights_alone(secured):
    handler = Handler(lambda message: message.data["n"])
    async with opened(secured, Role.PRODUCER) as producer, opened(secured, Role.WORKER) as of_worker:
        async with running(worker_of(of_worker, handler.handle)):
            ids = [(await producer.enqueue({"n": n}, replicas=n % 2)).id for n in range(20)]
            assert [await producer.result(id, timeout=10) for id in ids] == list(range(20))
        assert await producer.position(ids[0]) is None
    assert denials(secured) <= MAY_BE_DENIED


@pytest.mark.parametrize("role", Role)
async def test_doctor_finds_the_rights_of_each_role_enough(secured, role):
    connection = Connection(Settings(url_for(secured, role)))
    await connection.open()
    try:
        (check,) = await look_at_access(connection, PREFIX, role)
    finally:
        await connection.close()
    assert check.verdict == "ok", check.reason


@pytest.mark.parametrize("secured", ["cluster"], indirect=True)
async def test_a_slot_on_its_way_asks_no_more_rights(secured):
    """A client is sent on by ASK, with a command of its own."""
    slot, source, target = secured.slot(PREFIX), secured.nodes[0], secured.nodes[1]
    handler = Handler()
    async with (
        opened(secured, Role.PRODUCER) as producer,
        opened(secured, Role.WORKER) as of_worker,
        running(worker_of(of_worker, handler.handle)),
    ):
        waiting = [(await producer.enqueue({"n": n})).id for n in range(5)]
        await asyncio.to_thread(secured.move, slot, source, target)
        await asyncio.to_thread(secured.move, slot, target, source)
        waiting.append((await producer.enqueue({"n": "last"})).id)
        await asyncio.gather(*(producer.result(id, timeout=20) for id in waiting))
    assert denials(secured) <= MAY_BE_DENIED


async def refused(url: str, kind: type[StreamsQueueError] = ConfigurationError) -> str:
    with pytest.raises(kind) as caught:
        async with Queue[Any](PREFIX, url=url):
            pass
    assert SECRET not in str(caught.value) and ASKED not in str(caught.value)
    return str(caught.value)


async def test_who_is_not_let_in(secured, tmp_path):
    url = url_for(secured, Role.WORKER)
    assert "denied" in await refused(url.replace(SECRET, "wrong"))
    assert "denied" in await refused(url.replace("worker:", "nobody:"))
    stranger = Path(setups.encrypted(tmp_path)[1])
    authority = secured.nodes[0].authority
    assert authority
    distrusting = url.replace(authority, str(stranger))
    if isinstance(secured, setups.Cluster):
        assert "TLS failed" in await refused(distrusting)
    else:  # redis-py does not tell why a Sentinel did not answer
        assert "No master found" in await refused(distrusting, QueueUnavailable)


@pytest.mark.parametrize("given", ["", "&sentinel_password=wrong"])
@pytest.mark.parametrize("secured", ["sentinel"], indirect=True)
async def test_sentinels_that_ask_for_a_password(secured, given):
    text = await refused(url_for(secured, Role.WORKER).replace(f"&sentinel_password={ASKED}", given))
    assert "?sentinel_password=" in text
