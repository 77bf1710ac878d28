"""Servers in company, as ordinary processes: a Redis Cluster, and a primary that Sentinels watch.

Both promise what `servers.AnyServer` does. Their raw clients talk to one server: the one that holds `HOME`.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
import trustme
from redis.crc import key_slot
from redis.exceptions import RedisError

import servers
from servers import AnyServer, Server, wait_until

HOME = "{b}"
"""A hash tag whose slot, as that of `{chat_api}`, belongs to a Cluster's first node: tests look at that one."""

SLOTS = 16384
SERVICE = "main"
"""The name by which Sentinel knows the primary."""

AT_ONCE = ("--repl-diskless-sync-delay", "0")
"""A primary does not wait for more replicas before it brings one up to date."""

PATIENT = 60.0
"""Seconds that a node may be silent: a set-up where nothing is to fail over because the machine is busy."""

NAMES = ("cluster", "sentinel")


def kind_asked_for(config: pytest.Config) -> str:
    """The kind of a single server that this run is to have, where a test wants one of its own."""
    asked: str | None = config.getoption("--server")
    return servers.DEFAULT if asked is None or asked in NAMES else asked


def start_any(name: str, directory: Path) -> AnyServer:
    """As `servers.start_any`, for these names too.

    Raises:
        servers.Missing: it is not installed here.
    """
    match name:
        case "cluster":
            return Cluster(directory)
        case "sentinel":
            return Watched(directory)
        case _:
            return servers.start_any(name, directory)


@contextlib.contextmanager
def every_client(server: AnyServer, **options: Any) -> Iterator[list[redis.Redis]]:
    """A raw client of each server that has keys of its own."""
    holding = server.primaries() if isinstance(server, Cluster) else [server]
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(one.sync_client(**options)) for one in holding]


def whole_client(server: AnyServer, **options: Any) -> Any:
    """A raw client that finds each key on the server that has it."""
    if not isinstance(server, Cluster):
        return server.client(**options)
    return redis.asyncio.RedisCluster(
        host="127.0.0.1", port=server.nodes[0].port, **{"decode_responses": True, **options}
    )


def encrypted(directory: Path) -> list[str]:
    """Arguments for servers that speak nothing but TLS, also to each other; redis-7.0 can.

    Raises:
        servers.Missing: it is not installed here.
    """
    servers._BINARIES["redis-7.0"]()
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    files = {name: str(directory / f"{name}.pem") for name in ("authority", "certificate", "key")}
    authority.cert_pem.write_to_path(files["authority"])
    certificate.cert_chain_pems[0].write_to_path(files["certificate"])
    certificate.private_key_pem.write_to_path(files["key"])
    return [
        "--tls-ca-cert-file", files["authority"], "--tls-cert-file", files["certificate"], "--tls-key-file",
        files["key"], "--tls-auth-clients", "no", "--tls-replication", "yes",
    ]  # fmt: skip


class _Company:
    """Servers that stand for one."""

    name: str

    def __init__(self, directory: Path, kind: str, arguments: Sequence[str]) -> None:
        self.directory = directory
        self._kind = kind
        self._arguments = arguments
        self._numbers = itertools.count()
        self.nodes: list[Server] = []

    def _start(self, *arguments: str) -> Server:
        place = self.directory / f"{self.name}-{next(self._numbers)}"
        node = servers.start(self._kind, place, *AT_ONCE, *self._arguments, *arguments)
        self.nodes.append(node)
        return node

    @property
    def home(self) -> Server:
        """The server that raw clients talk to."""
        raise NotImplementedError

    def client(self, **options: Any) -> redis.asyncio.Redis:
        """An async client of the server that holds `HOME`."""
        return self.home.client(**options)

    def sync_client(self, **options: Any) -> redis.Redis:
        return self.home.sync_client(**options)

    def stop(self) -> None:
        """End all of them."""
        for node in self.nodes:
            node.kill()


class Cluster(_Company):
    """Three primaries, and replicas of each.

    Args:
        directory: for the servers' files.
        arguments: for each node.
        kind: of server.
        replicas: of each primary; or of each in turn.
        node_timeout: seconds until a silent node is taken for dead.
    """

    name = "cluster"

    def __init__(
        self,
        directory: Path,
        *arguments: str,
        kind: str = servers.DEFAULT,
        replicas: Sequence[int] = (1, 1, 1),
        node_timeout: float = PATIENT,
    ) -> None:
        super().__init__(directory, kind, arguments)
        options = [
            "--cluster-enabled", "yes", "--cluster-node-timeout", str(round(node_timeout * 1000)),
            "--cluster-require-full-coverage", "no",  # a queue lives in one slot
            "--cluster-allow-replica-migration", "no",  # no replica goes over to a primary that has none
        ]  # fmt: skip
        try:
            for _ in range(3 + sum(replicas)):
                self._start(*options)
            self.ids = {node.port: str(command(node, "CLUSTER", "MYID")) for node in self.nodes}
            self._form(replicas)
        except BaseException:
            self.stop()
            raise

    def _form(self, replicas: Sequence[int]) -> None:
        first, rest = self.nodes[:3], iter(self.nodes[3:])
        for node, (begin, end) in zip(first, itertools.pairwise((0, SLOTS // 3, 2 * SLOTS // 3, SLOTS)), strict=True):
            command(node, "CLUSTER", "ADDSLOTS", *range(begin, end))
        for epoch, node in enumerate(self.nodes, 1):
            command(node, "CLUSTER", "SET-CONFIG-EPOCH", epoch)
            for other in self.nodes[:epoch]:
                command(node, "CLUSTER", "MEET", "127.0.0.1", other.port)
        for primary, count in zip(first, replicas, strict=True):
            for replica in itertools.islice(rest, count):
                wait_until(lambda: self._is_up(replica), 30, "the cluster formed")  # noqa: B023
                command(replica, "CLUSTER", "REPLICATE", self.ids[primary.port])
        for node in self.nodes:
            wait_until(lambda: self._is_up(node), 30, "the cluster up")  # noqa: B023
        for primary, count in zip(first, replicas, strict=True):
            wait_until(lambda: in_step(primary, count), 60, "the replicas in step")  # noqa: B023

    def _is_up(self, node: Server) -> bool:
        found = command(node, "CLUSTER INFO")
        names = ("cluster_state", "cluster_known_nodes", "cluster_slots_ok")
        return [found[name] for name in names] == ["ok", str(len(self.nodes)), str(SLOTS)]

    @property
    def url(self) -> str:
        return url_of("cluster", self.nodes[:3])

    @property
    def home(self) -> Server:
        return self.owner(self.slot(HOME))

    def primaries(self) -> list[Server]:
        """The nodes that are in charge of slots now."""
        return [node for node in self.nodes if replication(node).get("role") == "master"]

    def slot(self, key: str) -> int:
        """The slot of a key."""
        return int(key_slot(key.encode()))

    def owner(self, slot: int) -> Server:
        """The node in charge of a slot, in its own eyes."""
        for node in self.nodes:
            with contextlib.suppress(RedisError):
                mine = next(line for line in command(node, "CLUSTER NODES").values() if "myself" in line["flags"])
                if any(int(span[0]) <= slot <= int(span[-1]) for span in mine["slots"]):
                    return node
        raise AssertionError(f"nobody has slot {slot}")

    def replica_of(self, primary: Server) -> Server:
        """A replica of it."""
        for node in self.nodes:
            found = replication(node)
            if found.get("role") == "slave" and found["master_port"] == primary.port:
                return node
        raise AssertionError(f"{primary.port} has no replica")

    def give(self, slot: int, target: Server) -> None:
        """Every node takes the target for the owner of the slot; nothing is moved."""
        for node in (target, *(node for node in self.primaries() if node is not target)):
            command(node, "CLUSTER", "SETSLOT", slot, "NODE", self.ids[target.port])

    def move(self, slot: int, source: Server, target: Server, pause: float = 0.01) -> None:
        """Key by key, as redis-cli does it; `pause` seconds after every five, as if the keys were large."""
        command(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", self.ids[source.port])
        command(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", self.ids[target.port])
        with source.sync_client() as client:
            while keys := client.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 5):
                client.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 1000, "KEYS", *keys)
                time.sleep(pause)
        self.give(slot, target)

    def move_whole(self, slot: int, source: Server, target: Server) -> None:
        """At once, as Valkey 9 does it."""
        command(source, "CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", self.ids[target.port])

        def state() -> str:
            newest = iter(command(source, "CLUSTER", "GETSLOTMIGRATIONS")[0])
            return str(dict(zip(newest, newest, strict=True))["state"])

        wait_until(lambda: state() in {"success", "failed", "canceled"}, 30, "the slot moved")
        assert state() == "success", state()


class Watched(_Company):
    """A primary and its replicas, and three Sentinels that watch them.

    Args:
        directory: for the servers' files.
        arguments: for each server that holds data.
        kind: of server.
        replicas: of the primary.
        down_after: seconds until Sentinel takes a silent server for dead.
        asks_for: the password of the Sentinels themselves.
    """

    name = "sentinel"

    def __init__(
        self,
        directory: Path,
        *arguments: str,
        kind: str = servers.DEFAULT,
        replicas: int = 1,
        down_after: float = PATIENT,
        asks_for: str | None = None,
    ) -> None:
        super().__init__(directory, kind, arguments)
        self.sentinels: list[Server] = []
        try:
            primary = self._start()
            for _ in range(replicas):
                self._start("--replicaof", "127.0.0.1", str(primary.port))
            wait_until(lambda: in_step(primary, replicas), 60, "the replicas in step")
            for number in range(3):
                self.sentinels.append(self._watcher(number, primary.port, down_after, asks_for))
            for sentinel in self.sentinels:
                wait_until(lambda: self._sees_all(sentinel, replicas), 60, "the Sentinels agreed")  # noqa: B023
        except BaseException:
            self.stop()
            raise

    def _watcher(self, number: int, port: int, down_after: float, asks_for: str | None) -> Server:
        place = self.directory / f"watcher-{number}"
        place.mkdir(parents=True)
        (place / "sentinel.conf").write_text(
            "\n".join(
                (
                    f"sentinel monitor {SERVICE} 127.0.0.1 {port} 2",
                    f"sentinel down-after-milliseconds {SERVICE} {round(down_after * 1000)}",
                    f"sentinel failover-timeout {SERVICE} 1000",  # Sentinel waits for two of them between failovers
                    *([f"sentinel sentinel-pass {asks_for}"] if asks_for else []),
                    "",
                )
            )
        )
        own = ["--requirepass", asks_for] if asks_for else []
        secured = self._arguments if "--tls-ca-cert-file" in self._arguments else ()
        return servers.start(self._kind, place, str(place / "sentinel.conf"), "--sentinel", *secured, *own)

    def _sees_all(self, sentinel: Server, replicas: int) -> bool:
        found = command(sentinel, "SENTINEL MASTER", SERVICE)
        return (found["num-slaves"], found["num-other-sentinels"]) == (replicas, len(self.sentinels) - 1)

    @property
    def url(self) -> str:
        return url_of("sentinel", self.sentinels, f"/{SERVICE}")

    @property
    def home(self) -> Server:
        return next(node for node in self.nodes if replication(node).get("role") == "master")

    def stop(self) -> None:
        for sentinel in self.sentinels:
            sentinel.kill()
        super().stop()


def command(node: Server, *words: Any) -> Any:
    """What a server answers; two words in one have redis-py read the answer."""
    with node.sync_client() as client:
        return client.execute_command(*words)


def url_of(kind: str, nodes: Sequence[Server], path: str = "") -> str:
    """These servers by one URL."""
    authority = nodes[0].authority
    scheme, options = ("rediss", f"?ssl_ca_certs={authority}") if authority else ("redis", "")
    return f"{scheme}+{kind}://{','.join(f'127.0.0.1:{node.port}' for node in nodes)}{path}{options}"


def replication(node: Server) -> dict[str, Any]:
    """What it says of it; nothing where it is away, or breaks off, as a server does that changes its role."""
    with contextlib.suppress(RedisError), node.sync_client() as client:
        return dict(client.info("replication"))
    return {}


def in_step(primary: Server, replicas: int) -> bool:
    """Whether it has so many replicas, and they have what it has."""
    found = replication(primary)
    states = [found[f"slave{n}"]["state"] for n in range(found.get("connected_slaves", 0))]
    return found.get("role") == "master" and states == ["online"] * replicas
