"""Servers that die, forget, refuse, or stand still (faults 9 to 12)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import servers
from chaos.lab import Lab, Lane
from chaos.ledger import ENQUEUED
from chaos.proxy import Mode, Proxy
from chaos.scenario import fault
from helpers import until
from streams_queue import QueueUnavailable

IN_FLIGHT = 8
"""Two workers with four slots."""


async def _resumed(lane: Lane, limit: float | None = None) -> None:
    """Wait until work goes on, and measure how long that took."""
    lab, began, before = lane.lab, time.monotonic(), lane.ledger.count("end")
    await until(lambda: lane.ledger.count("end") > before, 30, "work going on")
    lab.tally.recovered(time.monotonic() - began, limit or lab.after_outage)


# ---- 9: killed


def _killed_server(fsync: str) -> None:
    async def killed(lab: Lab) -> None:
        """0 of what was acknowledged is lost; what was in flight may run again, nothing else."""
        server = lab.serve("--appendonly", "yes", "--appendfsync", fsync)
        kills = lab.size(2, 20)
        async with lab.lane() as lane:
            await lane.start(2)
            async with lane.producing(100, do="sleep", seconds=0.005):
                await lane.enqueue(lab.size(300, 20_000), do="sleep", seconds=0.005)
                for _ in range(kills):
                    begun = lane.ledger.count("start")
                    await lane.started(begun + lab.size(30, 500))
                    server.kill()
                    await asyncio.to_thread(server.start)
                    await _resumed(lane)
                    lab.tally.runs += 1
            await lane.idle(120)
            await lane.judge(duplicates=kills * IN_FLIGHT)

    killed.__name__ = f"server_killed_{fsync}"
    fault("9", f"kill -9 of the server under load, AOF {fsync}")(killed)


for _fsync in ("always", "everysec"):
    _killed_server(_fsync)


@fault("9", "power lost, AOF everysec: kill -9 of the server, and the end of its file cut off")
async def power_lost(lab: Lab) -> None:
    """Lost is only what was accepted in the last second; the rest is consistent, and work goes on.

    A server that finds its file cut off within a transaction leaves a MULTI without EXEC in it, and at its next start
    takes what follows for part of that: so the file is written anew first, as an operator should have it.
    """
    server = lab.serve("--appendonly", "yes", "--appendfsync", "everysec")
    losses, touched, at_risk = lab.size(2, 20), set[str](), set[str]()
    async with lab.lane() as lane:
        await lane.start(2)
        async with lane.producing(200, do="sleep", seconds=0.02):
            await lane.enqueue(500 * losses, do="sleep", seconds=0.02)  # so that the newest wait
            for _ in range(losses):
                await lane.started(lane.ledger.count("start") + 450)  # a second and more
                server.kill()
                killed = time.monotonic()
                touched |= lane.ledger.between(killed - 1.0)
                at_risk |= lane.ledger.between(killed - 1.0, killed, *ENQUEUED)
                file = _append_only_file(server)
                os.truncate(file, max(0, file.stat().st_size - random.randrange(20_000)))
                await asyncio.to_thread(server.start)
                await _file_written_anew(server)
                await _resumed(lane)
                lab.tally.runs += 1
        await lane.idle(120)
        again = sum(entry.word == "end" and entry.id in touched for entry in lane.ledger.entries())
        await lane.judge(duplicates=losses * IN_FLIGHT + again, at_risk=at_risk, overlaps=True)


@fault("9", "power lost, AOF always: kill -9 of the server, and what it has not acknowledged yet cut off")
async def power_lost_always(lab: Lab) -> None:
    """0 lost: a server that syncs before it answers has on its disk whatever it acknowledged to anybody.

    So the cut must not go deeper. Everybody talks to the server through a proxy: it stops passing replies on, the size
    of the file is noted, and what the server writes from then on has been acknowledged to nobody when it is killed.
    """
    server = lab.serve("--appendonly", "yes", "--appendfsync", "always")
    losses = lab.size(2, 20)
    async with Proxy(server.port) as proxy, lab.lane(url=proxy.url) as lane:
        await lane.start(2)
        async with lane.producing(200, do="sleep", seconds=0.02):
            await lane.enqueue(100 * losses + 100, do="sleep", seconds=0.02)  # so that the newest wait
            for _ in range(losses):
                await lane.started(lane.ledger.count("start") + 100)
                file = _append_only_file(server)
                await proxy.set(Mode.DROP_REPLIES)
                acknowledged = file.stat().st_size
                await until(lambda: file.stat().st_size > acknowledged, 5, "a write that nobody hears of")  # noqa: B023
                server.kill()
                os.truncate(file, random.randint(acknowledged, file.stat().st_size - 1))
                await proxy.set(Mode.RESET)  # nobody waits for a reply that was dropped
                await asyncio.to_thread(server.start)
                await _file_written_anew(server)
                await proxy.set(Mode.PASS)
                await _resumed(lane)
                lab.tally.runs += 1
        await lane.idle(120)
        await lane.judge(duplicates=losses * IN_FLIGHT, overlaps=True)


def _append_only_file(server: servers.Server) -> Path:
    """The one that is being written."""
    return max(server.directory.rglob("*.aof"), key=lambda path: path.stat().st_mtime_ns)


async def _file_written_anew(server: servers.Server) -> None:
    async with server.client() as client:
        await client.bgrewriteaof()

        async def written() -> bool:
            found = await client.info("persistence")
            return not (found["aof_rewrite_in_progress"] or found["aof_rewrite_scheduled"])

        await until(written, 30, "the file written anew")


# ---- 10: forgetful

Loss = Callable[[Lab, Lane, Any], Awaitable[None]]


async def _delete_streams(lab: Lab, lane: Lane, admin: Any) -> None:
    await admin.delete(*lane.queue.keys.streams.values())


async def _destroy_groups(lab: Lab, lane: Lane, admin: Any) -> None:
    for stream in lane.queue.keys.streams.values():
        await admin.xgroup_destroy(stream, "workers")


async def _delete_consumers(lab: Lab, lane: Lane, admin: Any) -> None:
    for stream in lane.queue.keys.streams.values():
        for info in await admin.xinfo_consumers(stream, "workers"):
            await admin.xgroup_delconsumer(stream, "workers", info["name"])


async def _trim(lab: Lab, lane: Lane, admin: Any) -> None:
    for stream in lane.queue.keys.streams.values():
        await admin.xtrim(stream, maxlen=0, approximate=False)


async def _flush(lab: Lab, lane: Lane, admin: Any) -> None:
    await admin.flushall()


async def _restart_empty(lab: Lab, lane: Lane, admin: Any) -> None:
    await asyncio.to_thread(lab.server.restart)


async def _loses(lab: Lab, loss: Loss, *, everything: bool) -> None:
    repeats = lab.size(1, 10)
    async with lab.lane() as lane, lab.server.client() as admin:
        await lane.start(2)
        forgotten: set[str] = set()
        for _ in range(repeats):
            ended = lane.ledger.count("end")
            await lane.enqueue(lab.size(100, 1_000), do="sleep", seconds=0.02)
            await until(lambda: lane.ledger.count("end") >= ended + 30, 20, "work under way")  # noqa: B023
            accepted = lane.ledger.ids("accepted")
            await loss(lab, lane, admin)
            if everything:
                forgotten |= accepted
            began = time.monotonic()
            (next_one,) = await lane.enqueue(priority="high")
            await lane.queue.result(next_one, timeout=20)
            if not everything and (waiting := accepted - lane.ledger.ids("start")):
                await until(lambda: waiting & lane.ledger.ids("start"), 20, "what waited going on")
            lab.tally.recovered(time.monotonic() - began, 2.0 + 0.2 + lab.rejoining)
            lab.tally.runs += 1
            await lane.idle(60)
        await lane.judge(duplicates=repeats * IN_FLIGHT, at_risk=forgotten, counted=not everything, edited=True)


def _forgetful(name: str, what: str, loss: Loss) -> None:
    async def forgets(lab: Lab) -> None:
        """Work goes on within 2 s; the streams are rebuilt from main: 0 lost, but what was in flight may run again."""
        await _loses(lab, loss, everything=False)

    forgets.__name__ = name
    fault("10", f"{what} under load")(forgets)


def _forgets_everything(name: str, what: str, loss: Loss) -> None:
    async def forgets(lab: Lab) -> None:
        """What Redis forgot is lost, as with any database; what is enqueued from then on runs, within 2 s."""
        await _loses(lab, loss, everything=True)

    forgets.__name__ = name
    fault("10", f"{what}: what came before is forgotten with it, all that follows runs")(forgets)


_forgetful("streams_deleted", "the streams deleted", _delete_streams)
_forgetful("groups_destroyed", "the consumer groups destroyed", _destroy_groups)
_forgetful("consumers_deleted", "the consumers deleted", _delete_consumers)
_forgetful("streams_trimmed", "the streams trimmed to nothing", _trim)
_forgets_everything("flushed", "FLUSHALL", _flush)
_forgets_everything("restarted_empty", "the server restarted empty", _restart_empty)


# ---- 11: refusing


def _length() -> float:
    """Seconds of an outage; not always the same, or every back-off would end with it."""
    return random.uniform(1.0, 2.5)


async def _under_load(
    lab: Lab, outage: Callable[[Any], Awaitable[None]], *, refuses: bool = True, duplicates: int = 0
) -> None:
    """An outage, again and again, under workers and a producer that go on."""
    rounds = lab.size(1, 10)
    async with lab.lane() as lane, lab.server.client(single_connection_client=True) as admin:
        await admin.ping()
        await lane.start(2)
        async with lane.producing(100, do="sleep", seconds=0.01):
            for _ in range(rounds):
                await lane.started(lane.ledger.count("start") + 20)
                await outage(admin)
                await _resumed(lane)
                lab.tally.runs += 1
        await lane.idle(60)
        assert lane.refused or not refuses, "nobody was refused: was there an outage?"
        accepted, counters = len(lane.ledger.ids("accepted")), (await lane.queue.stats()).counters
        completed = counters["completed_messages"]
        assert completed == accepted, f"{accepted} accepted, {completed} counted as completed"
        await lane.judge(duplicates=rounds * duplicates)


@fault("11", "server frozen for longer than the socket timeout and the lease")
async def frozen(lab: Lab) -> None:
    """Work goes on; holders keep what they held, and each transition counts once."""

    # Between its two attempts a Cluster's client asks who has the slot, maybe the one that is frozen.
    attempts = 5.0 if lab.server_name == "cluster" else 1.5

    async def freeze(admin: Any) -> None:
        lab.server.suspend()
        await asyncio.sleep(attempts + lab.lease)  # the fault's own length
        lab.server.resume()

    await _under_load(lab, freeze)


@fault("11", "LOADING: the server answers, but reads its data still", not_on=("redis-6.2",))
async def loading(lab: Lab) -> None:
    """As an outage: nothing crashes, nothing is lost that was saved."""
    server = lab.serve("--save", "3600 1", "--key-load-delay", "500", "--loading-process-events-interval-bytes", "1024")
    with server.sync_client() as client:
        client.mset({f"other:{n}": "x" * 50 for n in range(3_000)})

    async def restart(admin: Any) -> None:
        await asyncio.to_thread(server.restart)
        await admin.connection_pool.disconnect()

    await _under_load(lab, restart, duplicates=IN_FLIGHT)


@fault("11", "BUSY: a script of somebody else's that does not end")
async def busy(lab: Lab) -> None:
    """Refusals are ridden out."""

    async def hang(admin: Any) -> None:
        await admin.config_set("lua-time-limit", 100)
        async with lab.server.client() as other:
            hanging = asyncio.ensure_future(other.execute_command("EVAL", "while true do end", 0))
            await asyncio.sleep(_length())
            await admin.script_kill()
            with contextlib.suppress(Exception):
                await hanging

    await _under_load(lab, hang)


@fault("11", "MISCONF: snapshots fail, and so writes are refused")
async def misconfigured(lab: Lab) -> None:
    """Refusals are ridden out; no script is half done."""
    lab.serve("--dbfilename", "blocked.rdb")
    obstacle = lab.server.directory / "blocked.rdb"

    async def saved(admin: Any) -> bool:
        await admin.bgsave()
        await until(lambda: _not_saving(admin))
        return bool((await admin.info("persistence"))["rdb_last_bgsave_status"] == "ok")

    async def refuse(admin: Any) -> None:
        await admin.config_set("save", "3600 1000000")
        obstacle.unlink(missing_ok=True)
        obstacle.mkdir()
        assert not await saved(admin)
        await asyncio.sleep(_length())
        obstacle.rmdir()
        assert await saved(admin)

    await _under_load(lab, refuse)


async def _not_saving(admin: Any) -> bool:
    return not (await admin.info("persistence"))["rdb_bgsave_in_progress"]


@contextlib.asynccontextmanager
async def _configured(admin: Any, name: str, value: int) -> AsyncIterator[None]:
    before = (await admin.config_get(name))[name]
    await admin.config_set(name, value)
    try:
        yield
    finally:
        await admin.config_set(name, before)


@fault("11", "NOREPLICAS: too few replicas for a write")
async def no_replicas(lab: Lab) -> None:
    """Refusals are ridden out."""

    async def refuse(admin: Any) -> None:
        async with _configured(admin, "min-replicas-to-write", 1):
            await asyncio.sleep(_length())

    await _under_load(lab, refuse)


@fault("11", "READONLY: the server turns into a replica for a while")
async def read_only(lab: Lab) -> None:
    """Refusals are ridden out, blocked readers come back."""

    async def demote(admin: Any) -> None:
        await admin.execute_command("REPLICAOF", "127.0.0.1", "1")
        await asyncio.sleep(_length())
        await admin.execute_command("REPLICAOF", "NO", "ONE")

    await _under_load(lab, demote)


@fault("11", "CLIENT KILL of every connection, each second")
async def clients_killed(lab: Lab) -> None:
    """A lost reply is nobody's crash, and no message waits for a lease."""

    async def kill(admin: Any) -> None:
        for kind in ("normal", "pubsub"):
            await admin.client_kill_filter(_type=kind, skipme=True)
        await asyncio.sleep(1.0)  # the fault's own rhythm

    await _under_load(lab, kill, refuses=False)


@fault("11", "SCRIPT FLUSH every 50 ms")
async def scripts_flushed(lab: Lab) -> None:
    """Scripts are sent again."""

    async def flush(admin: Any) -> None:
        for _ in range(20):
            await admin.script_flush()
            await asyncio.sleep(0.05)  # the fault's own rhythm

    await _under_load(lab, flush, refuses=False)


@fault("11", "maxclients: connections closed, and no new ones accepted")
async def no_more_clients(lab: Lab) -> None:
    """As an outage."""

    async def refuse(admin: Any) -> None:
        async with _configured(admin, "maxclients", 1):
            for kind in ("normal", "pubsub"):
                await admin.client_kill_filter(_type=kind, skipme=True)
            await asyncio.sleep(_length())

    await _under_load(lab, refuse)


# ---- 12: full


@fault("12", "maxmemory with noeviction, reached under load")
async def out_of_memory(lab: Lab) -> None:
    """Enqueue is refused with QueueUnavailable; running work finishes; enqueue resumes by itself."""
    for _ in range(lab.size(1, 10)):
        async with lab.lane() as lane, lab.server.client() as admin:
            gate = lab.directory / f"{lane.name}.gate"
            await lane.start(2)
            held = await lane.enqueue(IN_FLIGHT, do="wait", gate=str(gate))
            await lane.started(IN_FLIGHT)
            used = (await admin.info("memory"))["used_memory"]
            async with _configured(admin, "maxmemory", used + (4 << 20)):
                await admin.config_set("maxmemory-policy", "noeviction")
                await _fill(lane)
                await asyncio.sleep(lab.lease)  # held work is renewed while memory is out
                opened = time.monotonic()
                gate.touch()
                await asyncio.gather(*(lane.queue.result(id, timeout=10) for id in held))
                await lane.idle(60)
                await lane.enqueue(20)
                await lane.idle(60)
                lab.tally.recovered(time.monotonic() - opened, lab.after_outage + 5)
            await lane.judge()
            lab.tally.runs += 1


async def _fill(lane: Lane) -> None:
    with contextlib.suppress(QueueUnavailable):
        while True:
            ids = [f"{lane.name}-fill-{lane.ledger.count('attempted')}-{n}" for n in range(10)]
            lane.ledger.write("attempted", ids)
            for id in ids:
                await lane.queue.enqueue({"token": "t", "filling": "x" * 50_000}, id=id)
                lane.ledger.write("accepted", [id])
