"""One server for each process of the run, clean before and after each test; no key may be left without a bound."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any

import pytest
import redis.asyncio as redis_asyncio

import canary
import servers
import setups

UNBOUNDED = re.compile(
    r"""
    (?P<prefix>.+?):(?:
        stream(?:|:high|:low)                  # delivery; an entry goes when its message is finished
      | queue:(?:main|retry|scheduled|dlq)     # an id goes when its message is finished
      | line:(?:high|low)                      # an id goes when its message is finished
      | parked                                 # an id goes when its message is finished
      | wake                                   # a key goes when its time has come
      | stats | meta | shards                  # a fixed number of fields
      | lost                                   # capped
      | arriving:[^:].*                        # the body of a message on its way to another shard
    )
    """,
    re.VERBOSE,
)
"""The keys that need no TTL. Beside these: the body of a message that still stands in a queue."""

_BODY = re.compile(r"(?P<prefix>.+?):msg:(?P<id>[^:].*)", re.DOTALL)
_numbers = itertools.count(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--server",
        choices=(*servers.NAMES, *setups.NAMES),
        default=None,
        help=f"the server to test against (default: {servers.DEFAULT})",
    )


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: much of the suite waits."""
    return (os.cpu_count() or 1) + 1


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Reports go from process to process in UTF-8, which has no lone surrogates; what tests print has."""
    return _encodable((yield))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """No test that passes has printed or logged a secret, nor has a process that it started."""
    report = yield
    if report.when == "teardown" and report.passed:  # the last has what all phases put out
        for name, text in report.sections:
            if found := canary.found_in(text):
                report.outcome, report.longrepr = "failed", f"a secret stands in the {name}: ... {found} ..."
    return report


def _encodable(report: Any) -> Any:
    match report:
        case str():
            return report.encode(errors="backslashreplace").decode()
        case dict():
            return {name: _encodable(value) for name, value in report.items()}
        case list() | tuple():  # a skip's place is a tuple, and pytest insists on it
            return type(report)(_encodable(value) for value in report)
        case _:
            return report


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.AnyServer]:
    """The run's server: `.url`, `.client()`."""
    asked = request.config.getoption("--server")
    name = asked or servers.DEFAULT
    try:
        running = setups.start_any(name, tmp_path_factory.mktemp(name))
    except servers.Missing as reason:
        if asked:
            pytest.exit(f"--server {name}: {reason}", returncode=3)
        pytest.skip(f"{name}: {reason}")
    yield running
    running.stop()


@pytest.fixture
def private(tmp_path, request) -> Callable[..., servers.Server]:
    """Starts a server of one's own, of the kind that the run asks for unless it is named."""
    asked = setups.kind_asked_for(request.config)
    if asked == "testcontainers":
        asked = servers.DEFAULT

    def start(*arguments: str, name: str = asked) -> servers.Server:
        try:
            server = servers.start(name, tmp_path / str(servers.free_port()), *arguments)
        except servers.Missing as reason:
            pytest.skip(f"{name}: {reason}")
        request.addfinalizer(server.kill)
        return server

    return start


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """A prefix no other test of this run uses; on a Cluster its keys are where the raw clients look."""
    home = setups.HOME if request.config.getoption("--server") == "cluster" else ""
    return f"{home}t{next(_numbers)}"


@pytest.fixture
def sharded_prefix(prefix: str) -> str:
    """A prefix for a queue of shards: each of them has a hash tag of its own, and a Cluster has them on all nodes."""
    return prefix.removeprefix(setups.HOME)


@pytest.fixture
async def everywhere(server: servers.AnyServer) -> AsyncIterator[Any]:
    """A raw client that answers in text, for keys that a Cluster has on all nodes."""
    async with setups.whole_client(server) as client:
        yield client


@pytest.fixture
async def redis(server: servers.AnyServer) -> AsyncIterator[redis_asyncio.Redis]:
    """A raw client that answers in text."""
    async with server.client() as client:
        yield client


@pytest.fixture
async def raw(server: servers.AnyServer) -> AsyncIterator[redis_asyncio.Redis]:
    """A raw client that answers in bytes."""
    async with server.client(decode_responses=False) as client:
        yield client


@pytest.fixture(autouse=True)
def _bounded_keys(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test that uses the server: every key has a TTL or is on the list; then all are gone."""
    if "server" not in request.fixturenames:
        yield
        return
    server: servers.AnyServer = request.getfixturevalue("server")
    yield
    with setups.every_client(server, decode_responses=False) as clients:
        leaks = request.node.get_closest_marker("leaks")
        left = [] if leaks else [key for client in clients for key in unbounded(client)]
        for client in clients:
            client.flushall()
    assert not left, "keys without a bound: " + ", ".join(left)


def unbounded(client: Any) -> list[str]:
    """Every key, with its type, that has neither a TTL nor a place on the list of the unbounded.

    The client answers in bytes: old programs' ids need have no encoding.
    """
    return [
        f"{_text(key)} ({_text(client.type(key))})"
        for key in sorted(client.scan_iter(count=1000))
        if client.pttl(key) == -1 and not UNBOUNDED.fullmatch(_text(key)) and not _is_waiting_body(client, key)
    ]


def _is_waiting_body(client: Any, key: bytes) -> bool:
    match = _BODY.fullmatch(_text(key))
    return match is not None and any(
        client.zscore(f"{match['prefix']}:queue:{queue}", match["id"].encode("latin-1")) is not None
        for queue in ("main", "retry", "scheduled")
    )


def _text(raw: bytes) -> str:
    return raw.decode("latin-1")
