"""What a person should know about the server that holds a queue: settings that lose messages, faults, dangers.

`inspect` looks, in two round trips (three on Cluster); `report` says it in the log, once at a worker's start.

The known faults come from the servers' release notes and issues, each row with its reference; only what touches
streams, blocking reads, scripts or the append-only file is here. A version that no row names gives no finding.
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

import anyio
import msgspec

from streams_queue.connection import Connection
from streams_queue.settings import Address

logger = logging.getLogger(__name__)

REPORT_WITHIN = 1.0
"""Seconds after which `report` gives up on a server that does not answer."""

NEARLY_FULL = 0.9
"""Of `maxmemory`."""


class Severity(StrEnum):
    """How bad a finding is. A danger loses messages, or stops the queue; a warning may; a note does not."""

    DANGER = "danger"
    WARNING = "warning"
    NOTE = "note"


class Finding(msgspec.Struct, frozen=True):
    """One thing that a person should know: what was found, what can go wrong, and what mends it."""

    name: str
    severity: Severity
    what: str
    why: str
    remedy: str


class Fault(NamedTuple):
    """A fault of the server's versions from `since` on, before `mended`, and what it does to a queue."""

    product: str
    since: str
    mended: str
    effect: str
    reference: str


_SCRIPTS = "Whoever may run scripts, as every user of a queue may, can crash or take over the server."
_UNBLOCKED = "Whoever may send blocking reads, as workers do, can crash or take over the server."
_AUTOCLAIM = "A crafted XAUTOCLAIM can crash or take over the server."
_TIMEOUT = "A worker's blocking read may take longer than it asked for: idle workers lose their connections."
_MOVED = "On Cluster the server may crash when a slot moves whose messages workers wait for."
_NOT_SYNCED = "The append-only file may not be synced: a power loss then takes more than the last second."
_ACL = "Restarting from the append-only file drops what scripts wrote, if the user default may not write it."

KNOWN_FAULTS = (
    Fault("redis", "6.2.0", "6.2.17", _SCRIPTS, "CVE-2024-46981"),
    Fault("redis", "7.0.0", "7.2.7", _SCRIPTS, "CVE-2024-46981"),
    Fault("redis", "7.4.0", "7.4.2", _SCRIPTS, "CVE-2024-46981"),
    Fault("redis", "6.2.0", "6.2.20", _SCRIPTS, "CVE-2025-49844"),
    Fault("redis", "7.0.0", "7.2.11", _SCRIPTS, "CVE-2025-49844"),
    Fault("redis", "7.4.0", "7.4.6", _SCRIPTS, "CVE-2025-49844"),
    Fault("redis", "8.0.0", "8.0.4", _SCRIPTS, "CVE-2025-49844"),
    Fault("redis", "8.2.0", "8.2.2", _SCRIPTS, "CVE-2025-49844"),
    Fault("redis", "7.2.0", "7.2.14", _UNBLOCKED, "CVE-2026-23479"),
    Fault("redis", "7.4.0", "7.4.9", _UNBLOCKED, "CVE-2026-23479"),
    Fault("redis", "8.0.0", "8.2.6", _UNBLOCKED, "CVE-2026-23479"),
    Fault("redis", "8.4.0", "8.4.3", _UNBLOCKED, "CVE-2026-23479"),
    Fault("redis", "8.6.0", "8.6.3", _UNBLOCKED, "CVE-2026-23479"),
    Fault("redis", "7.0.0", "7.0.4", _AUTOCLAIM, "CVE-2022-31144"),
    Fault("redis", "7.0.0", "7.0.5", _AUTOCLAIM, "CVE-2022-35951"),
    Fault("redis", "7.0.0", "7.0.11", _NOT_SYNCED, "redis#11973"),
    Fault("redis", "7.2.0", "7.2.5", _TIMEOUT, "redis#13004"),
    Fault("redis", "7.2.0", "7.2.7", _MOVED, "redis#13311"),
    Fault("valkey", "8.0.0", "8.0.2", _SCRIPTS, "CVE-2024-46981"),
    Fault("valkey", "7.2.4", "7.2.11", _SCRIPTS, "CVE-2025-49844"),
    Fault("valkey", "8.0.0", "8.0.6", _SCRIPTS, "CVE-2025-49844"),
    Fault("valkey", "8.1.0", "8.1.4", _SCRIPTS, "CVE-2025-49844"),
    Fault("valkey", "7.2.4", "7.2.13", _UNBLOCKED, "CVE-2026-23479"),
    Fault("valkey", "8.0.0", "8.0.9", _UNBLOCKED, "CVE-2026-23479"),
    Fault("valkey", "8.1.0", "8.1.7", _UNBLOCKED, "CVE-2026-23479"),
    Fault("valkey", "9.0.0", "9.0.4", _UNBLOCKED, "CVE-2026-23479"),
)

ACL_FAULTS = (
    Fault("redis", "7.0.0", "8.6.0", _ACL, "redis#14541"),
    # Measured with 8.1.8, 9.0.0, 9.1.1 and 9.1.2; a later release of an older line may have it mended too.
    Fault("valkey", "7.2.4", "9.1.2", _ACL, "valkey#3983"),
)
"""Of use to those alone who do not connect as the user default: the file is read with that user's rights."""


class Server(NamedTuple):
    """What a server said of itself. What it may not say is missing."""

    address: Address
    info: Mapping[str, Any]
    config: Mapping[str, Any]
    cluster: Mapping[str, Any]

    @property
    def embedded(self) -> bool:
        """Whether it is a server of this process's own."""
        return self.address.kind == "embedded"

    @property
    def appends(self) -> bool | None:
        """Whether there is an append-only file; None where it does not say."""
        if "aof_enabled" in self.info:
            return _number(self.info["aof_enabled"]) == 1
        return self.config["appendonly"] == "yes" if "appendonly" in self.config else None

    @property
    def product(self) -> str:
        """``redis`` or ``valkey``."""
        return "valkey" if "valkey_version" in self.info else "redis"

    @property
    def version(self) -> str:
        """Of the product; empty where it does not say."""
        return str(self.info.get(f"{self.product}_version", ""))


async def inspect(connection: Connection, prefix: str) -> list[Finding]:
    """What is worth knowing about the server of the queue with this prefix, the node that owns it on Cluster.

    What the server does not let us see (INFO or CONFIG forbidden, renamed or absent) is left out.

    Raises:
        QueueUnavailable: it does not answer.
    """
    return findings_of(await ask(connection, prefix))


async def ask(connection: Connection, prefix: str) -> Server:
    """What the server of this queue says of itself, in two round trips, or three on Cluster.

    Raises:
        QueueUnavailable: it does not answer.
    """
    return Server(
        connection.settings.address,
        info=await connection.ask("INFO", near=prefix) or {},
        # One pattern, since 6.2 takes no more: appendonly, appendfsync, save, stop-writes-..., and no password.
        config=await connection.ask("CONFIG GET", "[as][pat]*", near=prefix) or {},
        cluster=(await connection.ask("CLUSTER INFO", near=prefix) or {}) if connection.is_cluster else {},
    )


def findings_of(server: Server) -> list[Finding]:
    """What is worth knowing of it."""
    return [finding for look in _LOOKS if (finding := look(server)) is not None]


async def report(connection: Connection, prefix: str) -> None:
    """Log what `inspect` finds, a line each: notes as information, the others as warnings. Raises nothing.

    It takes no longer than a second. A cancellation does not cut it short, or a worker that has nothing to do would
    end before it has spoken.
    """
    with anyio.move_on_after(REPORT_WITHIN, shield=True) as scope:
        try:
            findings = await inspect(connection, prefix)
        except Exception as error:  # noqa: BLE001  (an answer nobody thought of must not end a worker)
            logger.info("queue %s: could not look at the server: %s", prefix, error)
            return
        for found in findings:
            level = logging.INFO if found.severity is Severity.NOTE else logging.WARNING
            text = "%s, %s (%s): %s %s Remedy: %s"
            where = f"queue {prefix} at {connection.settings.display}"
            logger.log(level, text, where, found.name, found.severity, found.what, found.why, found.remedy)
    if scope.cancelled_caught:
        where = f"queue {prefix} at {connection.settings.display}"
        logger.info("%s: the server did not say within %g s how it is set up", where, REPORT_WITHIN)


def faults_of(product: str, version: str, known: Sequence[Fault] = KNOWN_FAULTS) -> list[Fault]:
    """The known faults of this version, such as ``7.2.4`` of ``redis``."""
    return [
        fault
        for fault in known
        if fault.product == product and _parts(fault.since) <= _parts(version) < _parts(fault.mended)
    ]


def upgrade(product: str, version: str) -> str:
    """The lowest newer version known to be without these faults and without others."""
    while faults := faults_of(product, version):
        version = max((fault.mended for fault in faults), key=_parts)
    return version


# ---- what is looked at


def _unseen(server: Server) -> Finding | None:
    if server.info:
        return None
    return Finding(
        "unseen",
        Severity.NOTE,
        "The server does not let this user send INFO.",
        "Whether it may lose messages cannot be seen from here.",
        "ACL SETUSER <user> +info, or ask whoever runs the server.",
    )


def _version(server: Server) -> Finding | None:
    faults = [] if server.embedded else faults_of(server.product, server.version)
    if not faults:
        return None
    name = server.product.capitalize()
    return Finding(
        "version",
        Severity.WARNING,
        f"{name} {server.version} has known faults: {', '.join(fault.reference for fault in faults)}.",
        " ".join(dict.fromkeys(fault.effect for fault in faults)),
        f"Upgrade to {name} {upgrade(server.product, server.version)} or newer; a distribution's package may be mended "
        "under its old number.",
    )


def _default_user(server: Server) -> Finding | None:
    faults = faults_of(server.product, server.version, ACL_FAULTS)
    if not faults or server.address.username in {None, "default"} or not server.appends:
        return None
    (fault,) = faults
    name = server.product.capitalize()
    return Finding(
        "default-user",
        Severity.WARNING,
        f"{name} {server.version} reads its append-only file with the rights of the user default "
        f"({fault.reference}), and this queue is written by the user {server.address.username}.",
        "If default may not write the queue's keys, or is off without rights, the next restart loses the queue.",
        "ACL SETUSER default off allkeys allchannels +@all (off it may stay), and the same in the server's "
        f"configuration; or upgrade to {name} {fault.mended} or newer.",
    )


def _eviction(server: Server) -> Finding | None:
    policy, limit = server.info.get("maxmemory_policy", "noeviction"), _number(server.info.get("maxmemory"))
    if policy == "noeviction":
        return None
    return Finding(
        "eviction",
        Severity.DANGER if limit else Severity.NOTE,
        f"maxmemory-policy is {policy}, and maxmemory is {size(limit) if limit else 'not set'}.",
        "When memory is full, the server deletes messages and locks to make room."
        if limit
        else "Once somebody sets maxmemory, the server will delete messages and locks to make room.",
        "CONFIG SET maxmemory-policy noeviction, and the same in the server's configuration.",
    )


def _memory(server: Server) -> Finding | None:
    limit = _number(server.info.get("maxmemory"))
    used = _number(server.info.get("used_memory")) - _number(server.info.get("mem_not_counted_for_evict"))
    if not limit or used < NEARLY_FULL * limit:
        return None
    return Finding(
        "memory",
        Severity.WARNING,
        f"{size(used)} of {size(limit)} are used, {used / limit:.0%} of maxmemory.",
        "When it is full, new messages are refused.",
        "CONFIG SET maxmemory to more, or find out what fills it: redis-cli --bigkeys.",
    )


def _persistence(server: Server) -> Finding | None:
    if server.appends is not False or (server.embedded and not server.address.path):
        return None
    snapshots = server.config.get("save")
    return Finding(
        "persistence",
        Severity.WARNING,
        "The append-only file is off, and no snapshots are taken."
        if snapshots == ""
        else f"The append-only file is off (save: {'unknown' if snapshots is None else snapshots}).",
        "All messages are lost when the server's process ends or the machine dies."
        if snapshots == ""
        else "What came after the last snapshot is lost when the server's process or the machine dies.",
        "CONFIG SET appendonly yes, and the same in the server's configuration.",
    )


def _fsync(server: Server) -> Finding | None:
    if not server.appends or server.config.get("appendfsync") != "no":
        return None
    return Finding(
        "fsync",
        Severity.WARNING,
        "appendfsync is no.",
        "The operating system decides when the append-only file is on the disk: a power loss may take half a minute.",
        "CONFIG SET appendfsync everysec, and the same in the server's configuration.",
    )


def _append(server: Server) -> Finding | None:
    status = server.info.get("aof_last_write_status", "ok")
    if status == "ok":
        return None
    return Finding(
        "append",
        Severity.DANGER,
        f"The server cannot write its append-only file: aof_last_write_status is {status}.",
        "It refuses all writes: nothing is enqueued, and nothing is worked on.",
        "Look into the server's log, and at the disk: is it full? The server tries again by itself.",
    )


def _snapshot(server: Server) -> Finding | None:
    status = server.info.get("rdb_last_bgsave_status", "ok")
    if status == "ok":
        return None
    stops = server.config.get("stop-writes-on-bgsave-error") != "no" and server.config.get("save") != ""
    return Finding(
        "snapshot",
        Severity.DANGER if stops else Severity.WARNING,
        f"The last snapshot failed: rdb_last_bgsave_status is {status}.",
        "With stop-writes-on-bgsave-error the server refuses all writes: nothing is enqueued or worked on."
        if stops
        else "Whoever relies on snapshots, a backup for example, has old data.",
        "Look into the server's log (disk full? no memory to fork?), mend that, then BGSAVE.",
    )


def _replica(server: Server) -> Finding | None:
    if server.info.get("role") != "slave":
        return None
    primary = f"{server.info.get('master_host', '?')}:{server.info.get('master_port', '?')}"
    return Finding(
        "replica",
        Severity.DANGER,
        f"The server is a replica of {primary}.",
        "It refuses writes, or forgets them when it next syncs with its primary.",
        f"Connect to {primary}, or by redis+sentinel:// or redis+cluster://, which find the primary.",
    )


def _cluster(server: Server) -> Finding | None:
    state = server.cluster.get("cluster_state", "ok")
    if state == "ok":
        return None
    return Finding(
        "cluster",
        Severity.DANGER,
        f"cluster_state is {state}: {server.cluster.get('cluster_slots_ok', '?')} of 16384 slots are served.",
        "The nodes refuse commands: nothing is enqueued, and nothing is worked on.",
        "redis-cli --cluster check <host>:<port> says what is missing; redis-cli --cluster fix mends slots.",
    )


_LOOKS: tuple[Callable[[Server], Finding | None], ...] = (
    _unseen,
    _replica,
    _cluster,
    _append,
    _snapshot,
    _eviction,
    _memory,
    _persistence,
    _fsync,
    _default_user,
    _version,
)


def _parts(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version.partition("-")[0])))


def _number(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        return 0


def size(count: int) -> str:
    """Bytes as people read them."""
    return f"{count / (1 << 20):.1f} MiB" if count < 1 << 30 else f"{count / (1 << 30):.1f} GiB"
