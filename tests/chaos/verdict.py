"""The verdict: what the ledger says happened, against what Redis holds, by the invariants I1 to I8.

I1  every accepted id was executed, or stands in a queue, or ended in a way that was asked for and counted
I2  no id in a queue without a body, no body without a place
I3  two deliveries of one message never overlap while the first holds its lease
I4  duplicates <= messages in flight at the fault
I5  at the end: nothing in the streams, nothing pending, no more consumers than live workers
I6  the statistics add up, and count no outside edit where nobody edited anything
I7  what was held when a worker died is at work again in time
I8  no unhandled exception, no secret in any output, file handles level
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import msgspec

from helpers import until
from streams_queue.transitions import GROUP

if TYPE_CHECKING:
    from chaos.lab import Lane, Process

SECRET = "sesame-8d1c"
"""Stands in every payload, and must stand in no output."""

SERVICE = {"returned", "locked", "suspects"}
"""Consumers that are no workers."""

HANDLES = 48
"""Open file handles of a worker, connections among them, are always fewer."""


class Verdict(msgspec.Struct):
    """Of one lane."""

    accepted: int
    lost: list[str]
    forgotten: int
    at_risk: int
    """Accepted ids that the server may lose by its own rules."""
    duplicates: int
    allowed: int
    recovery: float
    """The longest time from a worker's death until what it held was at work again; 0 where nobody died."""
    broken: list[str]
    """Each invariant that does not hold, in words."""


class Tally(msgspec.Struct):
    """Of one scenario: all its lanes."""

    runs: int = 0
    accepted: int = 0
    lost: int = 0
    forgotten: int = 0
    at_risk: int = 0
    duplicates: int = 0
    allowed: int = 0
    recovery: float = 0.0
    broken: list[str] = msgspec.field(default_factory=list)

    def add(self, verdict: Verdict) -> None:
        self.accepted += verdict.accepted
        self.lost += len(verdict.lost)
        self.forgotten += verdict.forgotten
        self.at_risk += verdict.at_risk
        self.duplicates += verdict.duplicates
        self.allowed += verdict.allowed
        self.recovery = max(self.recovery, verdict.recovery)
        self.broken += verdict.broken

    def recovered(self, seconds: float, limit: float) -> None:
        """A recovery that the scenario measured itself."""
        self.recovery = max(self.recovery, seconds)
        if seconds > limit:
            self.broken.append(f"I7: recovery took {seconds:.2f} s, {limit:g} s are allowed")


async def judge(
    lane: Lane,
    *,
    duplicates: int = 0,
    gone: Collection[str] = (),
    at_risk: Collection[str] = (),
    recovery: float | None = None,
    overlaps: bool = False,
    counted: bool = True,
    quiet: bool = True,
    bodies_of: Collection[str] = (),
    edited: bool = False,
) -> Verdict:
    """Check a lane when its work has come to an end; its workers still live.

    Args:
        duplicates: runs beyond the first that the fault may cause.
        gone: ids that a caller or a TTL took out.
        at_risk: ids that the server may lose by its own rules, as they were accepted just before it died; counted all
            the same.
        recovery: seconds allowed for it; None: as the lab has it.
        overlaps: a worker was cut off or stopped, so a run that had lost its lease may still have been going on.
        counted: whether the statistics are to add up.
        quiet: whether workers may log no traceback but a handler's.
        bodies_of: ids whose bodies somebody may have left without a place.
        edited: somebody edited the keys, or a Cluster moved them and left scripts half done.
    """
    broken: list[str] = []
    state = await _state(lane)
    accepted, ended = lane.ledger.ids("accepted"), lane.ledger.ids("end")

    missing, risked = accepted - ended - state.placed - set(gone), accepted & set(at_risk)
    lost = sorted(missing - risked)
    if lost:
        broken.append(f"I1: {len(lost)} lost, {', '.join(lost[:3])} among them")
    broken += await _bodies_and_places(lane, state, set(bodies_of))

    runs = lane.ledger.runs()
    again = Counter(run.id for run in runs)
    failed = Counter(run.id for run in runs if run.how == "raised")
    repeated = sum(max(0, count - 1 - failed[id]) for id, count in again.items())
    if not overlaps and (overlap := _overlap(lane)):
        broken.append(f"I3: two runs of {overlap} at the same time")
    if repeated > duplicates:
        broken.append(f"I4: {repeated} duplicates, {duplicates} are allowed")

    broken += await _nothing_left(lane)
    stats = await lane.queue.stats()
    if counted and (wrong := _sums(stats.counters, stats.main + stats.retry + stats.scheduled + stats.dead)):
        broken.append(f"I6: {wrong}")

    if stats.edits and not edited:
        broken.append(f"I6: nobody edited anything, but {stats.edits} were counted")

    longest, limit = _longest_recovery(lane), lane.lab.recovery if recovery is None else recovery
    if longest > limit:
        broken.append(f"I7: recovery took {longest:.2f} s, {limit:g} s are allowed")
    broken += [f"I8: {fault}" for worker in lane.workers for fault in _faults_of(worker, quiet)]
    return Verdict(len(accepted), lost, len(missing & risked), len(risked), repeated, duplicates, longest, broken)


# ---- what Redis holds


class State(msgspec.Struct):
    """Every id that has a place, by queue, and every id that has a body."""

    queues: dict[str, set[str]]
    bodies: set[str]

    @property
    def placed(self) -> set[str]:
        return set[str]().union(*self.queues.values())


async def _state(lane: Lane) -> State:
    async with lane.lab.server.client(encoding_errors="replace") as client:
        keys = lane.queue.keys
        queues: dict[str, set[str]] = {}
        for key in (keys.main, keys.retry, keys.scheduled, keys.dlq):
            queues[key] = {str(id) for id in await client.zrange(key, 0, -1)}
        start = keys.message("")
        found = [key async for key in client.scan_iter(f"{start}*", count=5000, _type="hash")]
        # A live body has a timestamp: a tool that writes a field just after the end leaves a hash that is none.
        bodies = {key.removeprefix(start) for key in found if await client.hexists(key, "timestamp")}
    return State(queues, bodies)


async def _bodies_and_places(lane: Lane, first: State, excused: set[str]) -> list[str]:
    """I2; what differs has lease + sweep to be mended."""

    async def differs() -> tuple[set[str], set[str]]:
        state = await _state(lane)
        return state.placed - state.bodies, state.bodies - state.placed - excused

    if first.placed == first.bodies:
        return []
    deadline = time.monotonic() + lane.lab.recovery
    while any(pair := await differs()) and time.monotonic() < deadline:
        pass
    words = []
    if pair[0]:
        words.append(f"I2: {len(pair[0])} without a body, {sorted(pair[0])[:3]}")
    if pair[1]:
        words.append(f"I2: {len(pair[1])} bodies without a place, {sorted(pair[1])[:3]}")
    return words


async def _nothing_left(lane: Lane) -> list[str]:
    """I5. Consumers of killed workers are forgotten by `prune`, which the engine runs once a minute."""
    main = (await lane.queue.stats()).main
    words = []
    async with lane.lab.server.client() as client:
        for stream in lane.queue.keys.streams.values():
            if (length := await client.xlen(stream)) > main:
                words.append(f"I5: {length} entries left in {stream}, {main} in main")
            summary: Any = await client.xpending(stream, GROUP) if await client.exists(stream) else {"pending": 0}
            if summary["pending"] > main:
                words.append(f"I5: {summary['pending']} entries pending in {stream}")

        async def no_more_than_live() -> bool:
            await lane.queue.transitions.prune("", idle=lane.lab.lease)
            names = {
                info["name"]
                for stream in lane.queue.keys.streams.values()
                if await client.exists(stream)
                for info in await client.xinfo_consumers(stream, GROUP)
            }
            return len(names - SERVICE) <= len(lane.alive)

        try:
            await until(no_more_than_live, 4 * lane.lab.lease + 2, "consumers <= live workers")
        except AssertionError as error:
            words.append(f"I5: {error}")
    return words


def _sums(counters: dict[str, int], unfinished: int) -> str:
    """Every message that was counted in stands somewhere or was counted out."""
    names = ("completed_messages", "removed_messages", "expired_messages")
    out = {name: counters.get(name, 0) for name in names}
    total = counters.get("total_messages", 0)
    if total == sum(out.values()) + unfinished:
        return ""
    return f"{total} came in, but {out} and {unfinished} unfinished"


# ---- what the ledger says


def _overlap(lane: Lane) -> str:
    """An id of which two runs overlap: the second began before the first had ended, or its process had died."""
    deaths = {entry.pid: entry.at for entry in lane.ledger.entries() if entry.word == "gone"}
    latest: dict[str, float] = {}
    for run in sorted(lane.ledger.runs(), key=lambda run: run.start):
        if run.start < latest.get(run.id, 0.0):
            return run.id
        end = run.end if run.end is not None else deaths.get(run.pid, float("inf"))
        latest[run.id] = max(latest.get(run.id, 0.0), end)
    return ""


def _longest_recovery(lane: Lane) -> float:
    """From a death to the next run of what was being worked on: that one may have begun somewhere else already."""
    deaths = {entry.pid: entry.at for entry in lane.ledger.entries() if entry.word == "gone"}
    starts: dict[str, list[float]] = {}
    for run in lane.ledger.runs():
        starts.setdefault(run.id, []).append(run.start)
    longest = 0.0
    for run in lane.ledger.runs():
        died = deaths.get(run.pid)
        if run.how is None and died is not None:
            later = [at for at in starts[run.id] if at > run.start]
            if later:
                longest = max(longest, min(later) - died)
    return longest


def _faults_of(worker: Process, quiet: bool) -> list[str]:
    words, faults = worker.words(), []
    if SECRET in words:
        faults.append(f"a secret in the output of {worker.log.name}")
    if "never retrieved" in words or "never awaited" in words:
        faults.append(f"an exception that nobody looked at in {worker.log.name}")
    if quiet and (traces := words.count("Traceback")) > (failures := words.count(" failed in attempt ")):
        faults.append(f"{traces - failures} tracebacks in {worker.log.name} that are no handler's: {_last_line(words)}")
    if worker.alive and (handles := worker.handles()) > HANDLES:
        faults.append(f"{worker.log.name}: {handles} open file handles")
    if not worker.alive and worker.gone.result() > 0:
        faults.append(f"{worker.log.name}: exit code {worker.gone.result()}: {_last_line(words)}")
    return faults


def _last_line(words: str) -> str:
    return words.strip().rpartition("\n")[2][:200]
