"""Several servers: Sentinel failover, Cluster failover, slots on their way (fault 20)."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Awaitable, Callable
from typing import Any

from redis.exceptions import RedisError

import servers
from chaos.lab import Lab, Lane
from chaos.ledger import ENQUEUED
from chaos.scenario import fault
from helpers import until

DOWN_AFTER = 2.0
"""Seconds, of Sentinel. It asks once a second: with less, it may take a primary that it has just chosen for dead."""
NODE_TIMEOUT = 1.0
"""Seconds, of a Cluster."""
LAG = 1.0
"""Seconds: what was accepted so shortly before a crash may not have reached the replica."""
SLOTS = 16384
AT_ONCE = ("--repl-diskless-sync-delay", "0")
"""A primary does not wait for more replicas before it brings one up to date."""


async def _replication(server: servers.Server) -> dict[str, Any]:
    """What it says of it; nothing where it breaks off, as a server does that changes its role."""
    with contextlib.suppress(RedisError):
        async with server.client() as client:
            return dict(await client.info("replication"))
    return {}


async def _replicating(primary: servers.Server, replicas: int = 1) -> None:
    async def in_step() -> bool:
        found = await _replication(primary)
        state = [found[f"slave{n}"]["state"] for n in range(found.get("connected_slaves", 0))]
        return found.get("role") == "master" and state == ["online"] * replicas

    await until(in_step, 60, "the replica in step")


def _sentinel(lab: Lab, replicas: int) -> tuple[list[servers.Server], servers.Server]:
    """A primary and its replicas, and the Sentinel that watches them."""
    primary = lab.serve(*AT_ONCE)
    others = [lab.serve(*AT_ONCE, "--replicaof", "127.0.0.1", str(primary.port)) for _ in range(replicas)]
    configuration = lab.directory / "sentinel.conf"
    configuration.write_text(
        f"sentinel monitor main 127.0.0.1 {primary.port} 1\n"
        f"sentinel down-after-milliseconds main {round(DOWN_AFTER * 1000)}\n"
        "sentinel failover-timeout main 1000\n"  # Sentinel waits for two of them between failovers
    )
    sentinel = lab.serve(str(configuration), "--sentinel")
    lab.judged_by(primary)
    return [primary, *others], sentinel


Planned = Callable[[servers.Server, servers.Server], Awaitable[None]]


async def _fails_over(
    lab: Lab, lane: Lane, nodes: list[servers.Server], down_after: float, planned: Planned | None, confirm: int
) -> None:
    """The first of the nodes loses its place to another, time and again: as planned, or killed."""
    rounds, touched, at_risk = lab.size(1, 5), set[str](), set[str]()
    primary, *replicas = nodes
    await lane.start(2)
    async with lane.producing(100, do="sleep", seconds=0.01, replicas=confirm):
        for number in range(1, rounds + 1):
            await lane.started(lane.ledger.count("start") + 50)
            began = time.monotonic()
            if planned:
                await planned(primary, replicas[0])
            else:
                primary.kill()
            new = await until(lambda: _primary_of(replicas), 30, "a replica in charge")  # noqa: B023
            ended = lane.ledger.count("end")
            await until(lambda: lane.ledger.count("end") > ended + 20, 30, "work going on")  # noqa: B023
            lab.tally.recovered(time.monotonic() - began, lab.after_failover(down_after))
            if not planned:
                touched |= lane.ledger.between(began - LAG, began + down_after)
                if not confirm:
                    at_risk |= lane.ledger.between(began - LAG, began + down_after, *ENQUEUED)
                if number < rounds:
                    await asyncio.to_thread(primary.start)
            primary, replicas = new, [node for node in (*replicas, primary) if node is not new]
            lab.judged_by(primary)
            lab.tally.runs += 1
            if number < rounds:
                await _replicating(primary, len(replicas))
    await lane.idle(60)
    again = sum(entry.word == "end" and entry.id in touched for entry in lane.ledger.entries())
    await lane.judge(
        duplicates=rounds * 8 + again, at_risk=at_risk, counted=planned is not None, overlaps=planned is None
    )


async def _primary_of(nodes: list[servers.Server]) -> servers.Server | None:
    for node in nodes:
        if (await _replication(node)).get("role") == "master":
            return node
    return None


async def _sentinel_fails_over(lab: Lab, *, planned: bool = False, replicas: int = 1, confirm: int = 0) -> None:
    nodes, sentinel = _sentinel(lab, replicas)
    await _replicating(nodes[0], replicas)

    async def by_plan(primary: servers.Server, _: servers.Server) -> None:
        async with primary.client() as old, sentinel.client() as watcher:
            await old.execute_command("CLIENT", "PAUSE", 3000, "WRITE")
            await _replicating(primary)
            await watcher.execute_command("SENTINEL", "FAILOVER", "main")

    async with lab.lane(url=f"redis+sentinel://127.0.0.1:{sentinel.port}/main") as lane:
        await _fails_over(lab, lane, nodes, DOWN_AFTER, by_plan if planned else None, confirm)


@fault("20", "Sentinel: the primary killed")
async def sentinel_crash(lab: Lab) -> None:
    """Work goes on within down-after + 5 s; lost is only what was accepted within the replication lag."""
    await _sentinel_fails_over(lab)


@fault("20", "Sentinel: the primary of two replicas killed, enqueue with `replicas=1`")
async def sentinel_crash_confirmed(lab: Lab) -> None:
    """Nothing is lost: Sentinel chooses the replica that is ahead, and that has what any of them confirmed."""
    await _sentinel_fails_over(lab, replicas=2, confirm=1)


@fault("20", "Sentinel: a planned failover, writes paused")
async def sentinel_planned(lab: Lab) -> None:
    """Work goes on within down-after + 5 s; nothing is lost."""
    await _sentinel_fails_over(lab, planned=True)


class _Cluster:
    """Three primaries, and replicas of the first."""

    def __init__(self, lab: Lab, replicas: int = 1) -> None:
        options = ["--cluster-enabled", "yes", "--cluster-node-timeout", str(round(NODE_TIMEOUT * 1000)), *AT_ONCE]
        options += ["--cluster-allow-replica-migration", "no"]  # no replica goes over to a primary that has none
        self.nodes = [lab.serve(*options, "--cluster-require-full-coverage", "no") for _ in range(3 + replicas)]
        self.ids: dict[int, str] = {}

    async def command(self, node: servers.Server, *words: Any) -> Any:
        async with node.client() as client:
            return await client.execute_command(*words)

    async def form(self) -> None:
        primaries, replicas = self.nodes[:3], self.nodes[3:]
        for node in self.nodes:
            self.ids[node.port] = str(await self.command(node, "CLUSTER", "MYID"))
        bounds = [0, SLOTS // 3, 2 * SLOTS // 3, SLOTS]
        for node, (first, last) in zip(primaries, itertools.pairwise(bounds), strict=True):
            await self.command(node, "CLUSTER", "ADDSLOTS", *range(first, last))
        for epoch, node in enumerate(self.nodes, 1):
            with contextlib.suppress(Exception):
                await self.command(node, "CLUSTER", "SET-CONFIG-EPOCH", epoch)
            await self.command(node, "CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port)
        for replica in replicas:
            await until(lambda: self._knows_all(replica), 20, "the cluster formed")  # noqa: B023
            await self.command(replica, "CLUSTER", "REPLICATE", self.ids[primaries[0].port])
        for node in primaries:
            await until(lambda: self._is_up(node), 20, "the cluster up")  # noqa: B023
        await _replicating(primaries[0], len(replicas))

    async def _knows_all(self, node: servers.Server) -> bool:
        return f"cluster_known_nodes:{len(self.nodes)}" in await self.command(node, "CLUSTER", "INFO")

    async def _is_up(self, node: servers.Server) -> bool:
        return await self._knows_all(node) and "cluster_state:ok" in await self.command(node, "CLUSTER", "INFO")

    async def own(self, prefix: str) -> int:
        """The slot of a prefix with a hash tag, moved to the first node."""
        slot = int(await self.command(self.nodes[0], "CLUSTER", "KEYSLOT", prefix))
        for node in self.nodes[:3]:
            await self.command(node, "CLUSTER", "SETSLOT", slot, "NODE", self.ids[self.nodes[0].port])
        return slot

    async def move(self, slot: int, source: servers.Server, target: servers.Server) -> None:
        """Key by key, as redis-cli does it."""
        await self.command(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", self.ids[source.port])
        await self.command(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", self.ids[target.port])
        async with source.client() as client:
            while keys := await client.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 5):
                await client.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 1000, "KEYS", *keys)
                await asyncio.sleep(0.01)  # so that it takes a while, as with large keys
        for node in (target, source, *(node for node in self.nodes[:3] if node not in {source, target})):
            await self.command(node, "CLUSTER", "SETSLOT", slot, "NODE", self.ids[target.port])

    async def move_whole(self, slot: int, source: servers.Server, target: servers.Server) -> None:
        """At once, as Valkey 9 does it."""
        await self.command(source, "CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", self.ids[target.port])

        async def moved() -> bool:
            newest = iter((await self.command(source, "CLUSTER", "GETSLOTMIGRATIONS"))[0])
            state = dict(zip(newest, newest, strict=True))["state"]
            assert state not in {"failed", "canceled"}, state
            return bool(state == "success")

        await until(moved, 30, "the slot moved")

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[:3])


async def _slot_moves(lab: Lab, *, whole: bool) -> None:
    cluster = _Cluster(lab)
    await cluster.form()
    slot = await cluster.own("{q0}")
    rounds = lab.size(2, 20)
    async with lab.lane(url=cluster.url, prefix="{{{}}}") as lane:
        await lane.start(2)
        source, target = cluster.nodes[0], cluster.nodes[1]
        async with lane.producing(100, do="sleep", seconds=0.01):
            for _ in range(rounds):
                await lane.started(lane.ledger.count("start") + 50)
                await (cluster.move_whole if whole else cluster.move)(slot, source, target)
                began, ended = time.monotonic(), lane.ledger.count("end")
                await until(lambda: lane.ledger.count("end") > ended + 20, 30, "work going on")  # noqa: B023
                lab.tally.recovered(time.monotonic() - began, lab.after_outage)
                source, target = target, source
                lab.tally.runs += 1
        lab.judged_by(source)
        await lane.idle(60)
        await lane.judge(duplicates=rounds * 8, overlaps=True, counted=False, edited=True)


@fault("20", "Cluster: the queue's slot moved from node to node under load")
async def slot_moves(lab: Lab) -> None:
    """0 lost; work may wait until the slot has moved."""
    await _slot_moves(lab, whole=False)


@fault(
    "20", "Cluster: the queue's slot moved as a whole under load (CLUSTER MIGRATESLOTS)",
    not_on=("redis-6.2", "redis-7.0", "valkey-8.1", "redis-8.2"),
)  # fmt: skip
async def slot_moves_whole(lab: Lab) -> None:
    """0 lost; work goes on at once, and nothing runs twice but what was in flight."""
    await _slot_moves(lab, whole=True)


async def _cluster_fails_over(lab: Lab, *, planned: bool = False, replicas: int = 1, confirm: int = 0) -> None:
    cluster = _Cluster(lab, replicas)
    await cluster.form()
    await cluster.own("{q0}")

    async def by_plan(_: servers.Server, replica: servers.Server) -> None:
        await cluster.command(replica, "CLUSTER", "FAILOVER")

    async with lab.lane(url=cluster.url, prefix="{{{}}}") as lane:
        nodes = [cluster.nodes[0], *cluster.nodes[3:]]
        await _fails_over(lab, lane, nodes, NODE_TIMEOUT, by_plan if planned else None, confirm)


@fault("20", "Cluster: the primary killed")
async def cluster_crash(lab: Lab) -> None:
    """Work goes on within node-timeout + 5 s; lost is only what was accepted within the replication lag."""
    await _cluster_fails_over(lab)


@fault("20", "Cluster: the primary of two replicas killed, enqueue with `replicas=1`")
async def cluster_crash_confirmed(lab: Lab) -> None:
    """Nothing is lost: the replica that is ahead is elected, and that has what any of them confirmed."""
    await _cluster_fails_over(lab, replicas=2, confirm=1)


@fault("20", "Cluster: a planned failover")
async def cluster_planned(lab: Lab) -> None:
    """Work goes on within node-timeout + 5 s; nothing is lost."""
    await _cluster_fails_over(lab, planned=True)
